"""``fp list``: the registered models."""

from __future__ import annotations

import click

from cli import options
from cli.exits import Exit


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
        count = 0 if opened is None else opened.count()
        chosen = () if opened is None else opened.matching(globs) if globs else opened.models()
    if not count:
        console.note("no model is registered yet; `fp register PATH --name ORG/MODEL` adds one")
    elif not chosen:
        console.note("no registered model has such a name")
    write_all(model_view(), chosen, format, output, console)
    return Exit.OK
