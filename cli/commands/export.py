"""``fp export``: models in one file, for another registry."""

from __future__ import annotations

import click

from cli import options
from cli.exits import Exit


@click.command("export")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=options.model_names)
@click.option("--all", "everything", is_flag=True, help="Export all models with all their names.")
@click.option("-o", "--output", required=True, metavar="FILE", type=options.PATH, help="The bundle to be written.")
@click.option("--force", is_flag=True, help="Replace FILE even if it exists and is no bundle.")
@options.registry
@options.messages
@click.pass_context
def command(
    ctx: click.Context, /, *, names: tuple[str, ...], everything: bool, output: str, force: bool, registry: str | None
) -> Exit:
    """Write models, signatures and what is said about them, to one file for fp import."""
    from pathlib import Path

    from cli.output import refuse_replacing
    from cli.registry import open_existing
    from cli.text import counted
    from signatures.bundle import is_bundle

    console = options.console(ctx)
    if bool(names) == everything:
        raise click.UsageError("give either names or --all", ctx)
    if not force:
        refuse_replacing(output, "bundle", known=is_bundle(Path(output)))
    with open_existing(registry) as opened:
        count = opened.export(None if everything else names, output)
    console.note(f"{output}: {counted(count, 'model')}")
    return Exit.OK
