"""``fp inspect``: what the readers see, without measuring anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli import options
from cli.exits import Exit, strongest

if TYPE_CHECKING:
    from cli.render.inspection import Inspection


@click.command("inspect")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=options.PATH)
@click.option("--tensors", is_flag=True, help="Show all tensors: name, shape, type, role, layer.")
@options.remote
@options.output
@options.messages
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    paths: tuple[str, ...],
    tensors: bool,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
) -> Exit:
    """Show what a checkpoint or signature is: format, quantisation, number types, tensors, inferred roles and layers,
    findings, and what it says about where it comes from.

    Reads names and shapes only, no weights. Exit status: 2 if a path cannot be read, 3 if parts of it are absent.
    """
    from cli.messages import route
    from cli.output import refuse_overwriting
    from cli.paths import expanded
    from cli.render.inspection import inspection_view
    from cli.render.write import keeping, writing
    from fingerprint.errors import WeightprintError

    console = options.console(ctx)
    route(console)
    refuse_overwriting(output, paths)
    statuses = [Exit.OK]
    with keeping(statuses, console), writing(inspection_view(tensors=tensors), format, output, console) as writer:
        for path in expanded(paths, null=False):
            try:
                found = _inspected(path)
            except WeightprintError as error:
                console.error(str(error))
                console.trace(error)
                statuses.append(Exit.ERROR)
                continue
            if not found.complete:
                statuses.append(Exit.INCONCLUSIVE)
            writer.write(found)
    return strongest(statuses)


def _inspected(path: str) -> Inspection:
    from cli.render.inspection import of_checkpoint, of_fingerprint
    from fingerprint.checkpoint import open_checkpoint
    from signatures.signature import is_signature, read_signature

    if is_signature(path):
        return of_fingerprint(path, read_signature(path).fingerprint)
    with open_checkpoint(options.located(path)) as checkpoint:
        return of_checkpoint(path, checkpoint)
