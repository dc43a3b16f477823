"""``fp sketch``: a signature file, without registering it."""

from __future__ import annotations

import click

from cli import options
from cli.exits import Exit


@click.command("sketch")
@click.argument("path", metavar="PATH", type=options.PATH)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    type=options.PATH,
    help="The signature file to be written (.fpsig).",
)
@click.option("--force", is_flag=True, help="Replace FILE even if it exists and is no signature.")
@options.registered_depth
@options.device
@options.remote
@options.key
@options.disclose
@options.messages
@click.pass_context
def command(
    ctx: click.Context, /, *, path: str, output: str, force: bool, depth: str | None, key: str | None, disclose: str
) -> Exit:
    """Measure a checkpoint and write its signature to a file.

    The signature can be registered elsewhere, or scanned in place of the weights, of which it tells little unless they
    are small.
    """
    import os

    from cli.measure import Measuring, signature_of
    from cli.messages import route
    from cli.output import refuse_overwriting, refuse_replacing
    from cli.text import counted, file_size
    from fingerprint.errors import UsageError
    from signatures.signature import is_signature, write_signature

    console = options.console(ctx)
    route(console)
    refuse_overwriting(output, (path,))
    if not force:
        refuse_replacing(output, "signature", known=is_signature(output))
    if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
        raise UsageError(f"{output}: its folder does not exist")
    signature = signature_of(path, console, Measuring(depth, options.secret_key(key, depth), less=disclose == "less"))
    write_signature(output, signature)
    tensors = counted(len(signature.fingerprint.tensors), "tensor")
    console.note(f"{output}: {signature.identity}, {tensors}, {file_size(os.path.getsize(output))}")
    return Exit.OK
