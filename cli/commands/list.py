"""``fp list``: the registered models."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from cli import options
from cli.exits import Exit

if TYPE_CHECKING:
    from signatures.records import ModelRecord


@click.command("list")
@click.argument("globs", nargs=-1, metavar="[GLOB]...", shell_complete=options.model_names)
@options.registry
@options.output
@options.messages
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    globs: tuple[str, ...],
    registry: str | None,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
) -> Exit:
    """List the registered models, or those with a name or alias that matches a GLOB (such as 'acme/*')."""
    from cli.registry import open_if_any
    from cli.render.models import model_view
    from cli.render.write import write_all

    console = options.console(ctx)
    with open_if_any(registry) as opened:
        records = () if opened is None else opened.models()
    chosen = [record for record in records if not globs or _matches(record, globs)]
    if not records:
        console.note("no model is registered yet; `fp register PATH --name ORG/MODEL` adds one")
    elif not chosen:
        console.note("no registered model has such a name")
    write_all(model_view(), chosen, format, output, console)
    return Exit.OK


def _matches(record: ModelRecord, globs: tuple[str, ...]) -> bool:
    names = [entry.name.lower() for entry in record.registrations]
    return any(fnmatchcase(name, glob.lower()) for name in names for glob in globs)
