"""``fp import``: models from bundles that another registry exported."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import click

from cli import options
from cli.exits import Exit

if TYPE_CHECKING:
    from signatures.records import Imported

_NOT_IN_ORIGINS: Final = re.compile(r"[^A-Za-z0-9._:/@+-]+")


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=options.PATH)
@click.option(
    "--origin",
    metavar="ORIGIN",
    help="Where the models come from, to find and remove them by (default: file: and the file's name without ending).",
)
@options.registry
@options.output
@options.messages
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    files: tuple[str, ...],
    origin: str | None,
    registry: str | None,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
) -> Exit:
    """Bring in the models of bundles (fp export). Each bundle comes in whole or not at all.

    Every signature is checked as a suspect would be; the models keep their origin and can be removed by it.
    """
    from cli.exits import strongest
    from cli.messages import route
    from cli.registry import Destination
    from cli.render.models import model_view
    from cli.render.write import keeping, writing
    from fingerprint.errors import InputError, NameTakenError, SignatureError, UsageError

    console = options.console(ctx)
    route(console)
    statuses = [Exit.OK]
    with (
        keeping(statuses, console),
        Destination(registry) as target,
        writing(model_view(), format, output, console) as writer,
    ):
        for path in files:
            source = origin if origin is not None else _origin_of(path)
            try:
                _require_bundle(path)
                done = target.made().import_(path, source)
            except (InputError, SignatureError, NameTakenError, UsageError) as error:
                console.error(str(error))
                console.trace(error)
                statuses.append(Exit.ERROR)
                continue
            console.note(f"{path}: {_told(done, source)}")
            for record in done.records:
                writer.write(record)
    return strongest(statuses)


def _require_bundle(path: str) -> None:
    """Raise ``UsageError`` where there is something else than a bundle, ``InputError`` where nothing can be read."""
    from pathlib import Path

    from fingerprint.errors import UsageError
    from fingerprint.source import stat_path
    from signatures.bundle import is_bundle
    from signatures.signature import is_signature

    if is_signature(path):
        raise UsageError(f"{path}: is a single signature; `fp register {path} --name ORG/MODEL` takes it in")
    stat_path(path)
    if not is_bundle(Path(path)):
        raise UsageError(f"{path}: is no bundle of models, as `fp export` writes them")


def _told(done: Imported, source: str) -> str:
    """What came, and what was there already: the one keeps the origin given now, the other that of its time."""
    from cli.text import counted

    parts = []
    if done.new or not done.known:
        parts.append(f"{counted(len(done.new), 'new name')} from {source}")
    if done.known:
        held = {entry.name.lower(): entry.origin for record in done.records for entry in record.registrations}
        origins = sorted({held[name.lower()] for name in done.known if name.lower() in held})
        unchanged = f"{counted(len(done.known), 'name')} registered already with these weights, from"
        parts.append(f"{unchanged} {', '.join(origins)}: nothing was changed there")
    return "; ".join(parts)


def _origin_of(path: str) -> str:
    """An origin made of the file's name."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return f"file:{_NOT_IN_ORIGINS.sub('_', stem)[:150]}"
