"""``fp compare``: two checkpoints or signatures, without a registry."""

from __future__ import annotations

from typing import Any

import click

from cli import options
from cli.exits import Exit, of_report, strongest
from signatures.report import COMPARE_SCHEMA, Confidence


@click.command("compare")
@click.argument("registered", metavar="A", type=options.PATH)
@click.argument("suspect", metavar="B", type=options.PATH)
@options.fail_on
@options.globs
@options.depth
@options.device
@options.remote
@click.option(
    "--deep",
    is_flag=True,
    help="Read both whole and undo what keeps the function (permutation, scales, signs, rotation) explicitly; report "
    "what is left, tensors held out of the fit apart.",
)
@click.option(
    "--transform", metavar="FILE", type=options.PATH, help="With --deep: write what was undone to FILE (.npz)."
)
@options.key
@options.output
@options.messages
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    registered: str,
    suspect: str,
    fail_on: str,
    deep: bool,
    transform: str | None,
    key: str | None,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
    **chosen: Any,
) -> Exit:
    """Compare two checkpoints or signatures: was B made from A?

    A takes the place of the registered model and B that of the suspect; the tests are those of fp scan, corrected for
    one model. Without other models nothing can be said about a common base. Exit status as for fp scan.
    """
    from cli.messages import route
    from cli.output import refuse_overwriting
    from cli.progress import reading
    from cli.render.report import report_view
    from cli.render.write import keeping, write_all
    from fingerprint.errors import UsageError
    from signatures.options import ScanOptions
    from signatures.scan import compare_paths

    console = options.console(ctx)
    route(console)
    refuse_overwriting(output, (registered, suspect))
    if transform is not None and not deep:
        raise UsageError("--transform belongs to --deep")
    if deep and chosen["depth"] == options.Depth.QUICK:
        raise UsageError("--deep reads both whole: leave out --depth quick")
    refuse_overwriting(transform, (registered, suspect))
    secret = options.secret_key(key, chosen["depth"])
    with reading(console, registered, suspect) as progress:
        ours, theirs = options.located(registered), options.located(suspect)
        asked = ScanOptions(**chosen)
        if deep:
            from signatures.deep import compare_deep

            report = compare_deep(ours, theirs, options=asked, progress=progress, transform=transform)
        else:
            report = compare_paths(ours, theirs, options=asked, progress=progress)
        if secret is not None:
            from signatures.keyed_check import check_comparison

            report = check_comparison(report, ours, theirs, secret, progress)
    statuses = [of_report(report, Confidence(fail_on))]
    with keeping(statuses, console):
        write_all(report_view(COMPARE_SCHEMA, against=registered), [report], format, output, console)
    return strongest(statuses)
