"""``fp remove``: take names, and models with their last name, out of the registry."""

from __future__ import annotations

import sys

import click

from cli import options
from cli.exits import Exit


@click.command("remove")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=options.model_names)
@click.option(
    "--origin", metavar="ORIGIN", help="Remove everything that was imported from ORIGIN (fp list shows origins)."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask, also on a terminal.")
@options.registry
@options.messages
@click.pass_context
def command(
    ctx: click.Context, /, *, names: tuple[str, ...], origin: str | None, yes: bool, registry: str | None
) -> Exit:
    """Remove names from the registry, all or none; a model goes, signature and all, with its last name."""
    from cli.registry import open_existing
    from cli.text import counted, printable
    from fingerprint.errors import UnknownModelError

    console = options.console(ctx)
    if not names and origin is None:
        raise click.UsageError("give a NAME, or --origin", ctx)
    names = tuple({name.lower(): name for name in names}.values())
    with open_existing(registry) as opened:
        for name in names:
            if opened.get(name).named(name) is None:
                raise UnknownModelError(f"{name}: give a name or an alias, not the identity of a signature")
        if origin is not None:
            opened.require_from(origin)
        what = printable(" ".join(names) if origin is None else " ".join([*names, f"everything from {origin}"]))
        asks = not yes and sys.stdin is not None and sys.stdin.isatty()
        if asks and not click.confirm(f"Remove {what}?", err=True):
            console.note("nothing was removed")
            return Exit.OK
        with opened.together():
            imported = () if origin is None else opened.remove_origin(origin)
            gone = {name.lower() for name in imported}
            others = [name for name in names if name.lower() not in gone]
            for name in others:
                opened.remove(name)
        if origin is not None:
            console.note(f"removed {counted(len(imported), 'name')} imported from {origin}")
        for name in others:
            console.note(f"removed {name}")
    return Exit.OK
