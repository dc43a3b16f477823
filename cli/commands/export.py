"""``fp export``: models in one file, for another registry."""

from __future__ import annotations

import click

from cli import options
from cli.exits import Exit


@click.command("export")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=options.model_names)
@click.option("--all", "everything", is_flag=True, help="Export all models with all their names.")
@click.option("-o", "--output", required=True, metavar="FILE", type=options.PATH, help="The bundle to be written.")
@options.registry
@options.messages
@click.pass_context
def command(
    ctx: click.Context, /, *, names: tuple[str, ...], everything: bool, output: str, registry: str | None
) -> Exit:
    """Write models, signatures and what is said about them, to one file for fp import."""
    from cli.registry import open_existing
    from cli.text import counted

    console = options.console(ctx)
    if bool(names) == everything:
        raise click.UsageError("give either names or --all", ctx)
    with open_existing(registry) as opened:
        count = opened.export(None if everything else names, output)
    console.note(f"{output}: {counted(count, 'model')}")
    return Exit.OK
