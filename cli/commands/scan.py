"""``fp scan``: match suspects against the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.exits import Exit, of_report, strongest
from cli.paths import STANDARD
from signatures.report import (
    Confidence,
    Power,
    RegistrySummary,
    Report,
    SuspectSummary,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cli.console import Console
    from cli.render.write import Writer
    from signatures.keyed import Key
    from signatures.registry import Registry
    from signatures.scan import ScanOptions


@click.command("scan")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=options.PATH)
@options.registry
@options.fail_on
@click.option(
    "--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Most matches in one suspect's report."
)
@click.option(
    "--base",
    multiple=True,
    metavar="NAME",
    shell_complete=options.model_names,
    help="Registered model that is known to be the suspect's base (repeatable): what it explains is no accusation.",
)
@options.globs
@options.depth
@click.option(
    "-0", "--null", is_flag=True, help="Paths on standard input end with NUL (find -print0), not with a line break."
)
@options.key
@options.output
@options.messages
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    paths: tuple[str, ...],
    registry: str | None,
    fail_on: str,
    top_k: int,
    null: bool,
    key: str | None,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
    **chosen: Any,
) -> Exit:
    """Match suspects against the registered models.

    PATH is a checkpoint (a file, a folder, an index of shards) or a signature; - reads a list of paths from standard
    input. An error of one suspect does not stop the rest.

    Exit status: 1 if there is a match at or above --fail-on, else 2 if there was an error, else 3 if a scan was not
    whole or inconclusive, or the list of paths was empty, else 0. Siblings, shared components and common
    initialisation do not raise it.
    """
    from cli.messages import route
    from cli.output import refuse_overwriting
    from cli.registry import open_if_any
    from cli.render.report import report_view
    from cli.render.write import keeping, writing
    from signatures.scan import ScanOptions

    console = options.console(ctx)
    route(console)
    refuse_overwriting(output, paths)
    wanted = ScanOptions(top_k=top_k, **chosen)
    secret = options.secret_key(key)
    statuses: list[Exit] = []
    with keeping(statuses, console), open_if_any(registry) as opened:
        if opened is not None:
            _require_models(opened, wanted.base)
        with writing(report_view(), format, output, console) as writer:
            for report in _reports(opened, paths, wanted, secret, console, null=null):
                statuses.append(of_report(report, Confidence(fail_on)))
                if report.error is not None:
                    console.error(report.error)
                _hand_out(report, writer, statuses, last=len(statuses) == len(paths) and STANDARD not in paths)
    if not statuses:
        console.warning("the list of paths is empty: nothing was scanned")
        statuses.append(Exit.INCONCLUSIVE)
    return strongest(statuses)


def _require_models(registry: Registry, names: tuple[str, ...]) -> None:
    """Raise ``UnknownModelError`` before anything is read if one is not registered."""
    for name in names:
        registry.get(name)


def _reports(
    registry: Registry | None,
    paths: tuple[str, ...],
    wanted: ScanOptions,
    key: Key | None,
    console: Console,
    *,
    null: bool,
) -> Iterator[Report]:
    from cli.paths import expanded

    for path in expanded(paths, null=null):
        yield _scan_one(registry, path, wanted, key, console)


def _hand_out(report: Report, writer: Writer[Report], statuses: list[Exit], *, last: bool) -> None:
    """Write a report; if nobody reads the results any more, the rest stays unscanned, which the status says."""
    from cli.output import OutputClosedError

    try:
        writer.write(report)
    except OutputClosedError:
        if not last:
            statuses.append(Exit.INCONCLUSIVE)
        raise


def _scan_one(registry: Registry | None, path: str, wanted: ScanOptions, key: Key | None, console: Console) -> Report:
    """The report of one suspect, also for what no reader expected."""
    from cli.progress import reading
    from fingerprint.errors import RegistryError, WeightprintError
    from signatures.keyed_check import check_scan
    from signatures.scan import scan_path

    try:
        if registry is None or not registry.models():
            return _not_compared(path, registry, console)
        with reading(console, path) as progress:
            report = scan_path(registry, path, options=wanted, progress=progress)
            return report if key is None else check_scan(registry, report, path, key, progress)
    except RegistryError:
        raise
    except WeightprintError as error:
        console.trace(error)
        return _failed(path, f"{path}: {error}")
    except Exception as error:  # noqa: BLE001 - a defect met in one suspect must not hide the results of the others
        console.trace(error)
        return _failed(path, f"{path}: unexpected {type(error).__name__}: {error} (a defect of this program)")


def _not_compared(path: str, registry: Registry | None, console: Console) -> Report:
    """The report where no model is registered: the suspect is opened, so that errors show, but not measured."""
    from fingerprint.checkpoint import open_checkpoint
    from fingerprint.errors import WeightprintError
    from signatures.signature import is_signature, read_signature

    try:
        if is_signature(path):
            held = read_signature(path).fingerprint
            suspect = SuspectSummary(
                path=path,
                format=held.format,
                files=held.files,
                bytes=held.stored_bytes,
                tensors=len(held.tensors),
                parameters=held.elements,
                dtypes=dict(held.dtypes),
            )
        else:
            with open_checkpoint(path) as checkpoint:
                suspect = SuspectSummary(
                    path=path,
                    format=checkpoint.format,
                    files=len(checkpoint.files),
                    bytes=checkpoint.bytes,
                    tensors=len(checkpoint.tensors),
                    parameters=checkpoint.parameters,
                    dtypes=checkpoint.dtypes,
                )
    except WeightprintError as error:
        console.trace(error)
        return _failed(path, str(error))
    return Report(
        suspect=suspect,
        verdict=Verdict.INCONCLUSIVE,
        error=None,
        matches=(),
        mixture=None,
        power=Power((), ("everything: no model is registered",), "nothing: no model is registered"),
        notes=("the registry is empty: there was nothing to compare with",),
        registry=RegistrySummary(0, "" if registry is None else registry.digest),
        seconds=0.0,
    )


def _failed(path: str, message: str) -> Report:
    return Report(
        suspect=SuspectSummary(path=path),
        verdict=Verdict.ERROR,
        error=message,
        matches=(),
        mixture=None,
        power=Power((), ("everything: the suspect could not be read",), "nothing"),
        notes=(),
        registry=RegistrySummary(0, ""),
        seconds=0.0,
    )
