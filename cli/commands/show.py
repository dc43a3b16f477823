"""``fp show``: everything the registry knows about a model."""

from __future__ import annotations

import click

from cli import options
from cli.exits import Exit


@click.command("show")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=options.model_names)
@options.registry
@options.output
@options.messages
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    names: tuple[str, ...],
    registry: str | None,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
) -> Exit:
    """Show models: who registered them and when, and what their signatures hold.

    NAME is a name, an alias, or the identity of a signature (sha256:...).
    """
    from cli.messages import route
    from cli.registry import open_existing
    from cli.render.signature import SHOWN_VIEW, Shown
    from cli.render.write import write_all

    console = options.console(ctx)
    route(console)
    with open_existing(registry) as opened:
        records = [opened.get(name) for name in names]
        shown = (Shown.of(record, opened.load_signature(record)) for record in records)
        write_all(SHOWN_VIEW, shown, format, output, console)
    return Exit.OK
