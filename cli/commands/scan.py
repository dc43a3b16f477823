"""``fp scan``: match suspects against the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct, ValidationError, convert

from cli import options
from cli.bulk import Answer
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

    from cli.bulk import Bulk
    from cli.console import Console
    from cli.render.write import Writer
    from cli.tasks import ScanTask
    from signatures.keyed import Key
    from signatures.options import ScanOptions
    from signatures.registry import Registry


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
@options.device
@options.remote
@options.bulk
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
    executor: str | None,
    jobs: int | None,
    resume: str | None,
    key: str | None,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
    **chosen: Any,
) -> Exit:
    """Match suspects against the registered models.

    PATH is a checkpoint (a file, a folder, an index of shards, a URL) or a signature; - reads a list of paths from
    standard input. An error of one suspect does not stop the rest. With --jobs several are scanned at once; the
    results come in the order of the list in any case. With --resume a run that was interrupted goes on where it
    stopped.

    Exit status: 1 if there is a match at or above --fail-on, else 2 if there was an error, else 3 if a scan was not
    whole or inconclusive, or the list of paths was empty, else 0. Siblings, shared components and common
    initialisation do not raise it.
    """
    from cli.bulk import Bulk
    from cli.messages import route
    from cli.output import refuse_overwriting
    from cli.registry import open_if_any
    from cli.render.report import report_view
    from cli.render.write import keeping, writing
    from signatures.options import ScanOptions

    console = options.console(ctx)
    route(console)
    refuse_overwriting(output, paths)
    refuse_overwriting(resume, (*paths, *([output] if output else [])))
    bulk = Bulk(executor, jobs, resume)
    wanted = ScanOptions(top_k=top_k, **chosen)
    secret = options.secret_key(key, wanted.depth)
    statuses: list[Exit] = []
    with keeping(statuses, console), open_if_any(registry) as opened:
        if opened is not None:
            _require_models(opened, wanted.base)
        with writing(report_view(), format, output, console) as writer:
            for report in _reports(opened, paths, wanted, secret, console, bulk, null=null):
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
    bulk: Bulk,
    *,
    null: bool,
) -> Iterator[Report]:
    """The reports in the order of the paths, by whom ``bulk`` says."""
    from cli.bulk import worked
    from cli.paths import expanded

    _require_engine(bulk)
    if bulk.alone and bulk.resume is None:
        for path in expanded(paths, null=null):
            yield scan_one(registry, path, wanted, key, console)
        return
    models = "" if registry is None else registry.digest
    with bulk.journal(lambda: _settings(registry, wanted, key)) as journal:

        def known(path: str) -> Report | None:
            return None if journal is None else _from_journal(journal.result(path))

        def done(path: str, report: Report) -> None:
            # The next run tries an error again, and what was compared with other models than this one was begun with.
            if journal is not None and report.error is None and report.registry.digest == models:
                journal.add(path, report.to_json())

        here = _Here(registry, wanted, key, console)
        with bulk.workers(here, lambda: _task(registry, wanted, key, console)) as workers:
            total = None if STANDARD in paths else len(paths)
            for _, report in worked(workers, expanded(paths, null=null), console, total=total, known=known, done=done):
                yield report


def _require_engine(bulk: Bulk) -> None:
    """Raise ``UsageError`` if ``FP_INDEX`` names no engine, or one that serves one process where several are to search.

    What is wrong for all suspects is said once.
    """
    from fingerprint.errors import UsageError
    from signatures.engines import serves_one_process

    if serves_one_process() and not bulk.alone:
        raise UsageError(
            "FP_INDEX names embedded Milvus, which serves one process at a time: leave out --jobs and --executor, "
            "or let it name a server"
        )


class _Here(Struct, frozen=True):
    """The task of a list where this process does the work."""

    registry: Registry | None
    wanted: ScanOptions
    key: Key | None
    console: Console

    def do(self, item: str) -> Answer[Report]:
        """See ``Task.do``."""
        return Answer(scan_one(self.registry, item, self.wanted, self.key, self.console))

    def lost(self, item: str, reason: str) -> Answer[Report]:
        """See ``Task.lost``."""
        return Answer(failed(item, reason))


def _task(registry: Registry | None, wanted: ScanOptions, key: Key | None, console: Console) -> ScanTask:
    from cli.tasks import ScanTask, Sender
    from signatures.bulk.pinned import PinnedRegistry
    from signatures.engines import chosen_engine

    if registry is not None and chosen_engine():
        registry.catch_up_index()  # who writes vectors on a server holds a lock that other machines do not see
    pinned = None if registry is None else PinnedRegistry.of(registry)
    return ScanTask(Sender.here(console), pinned, wanted, key)


def _settings(registry: Registry | None, wanted: ScanOptions, key: Key | None) -> dict[str, Any]:
    """What reports depend on besides the suspect: the registered models with their names, how they are searched and
    suspects measured, options, the program."""
    from importlib.metadata import version

    from msgspec.structs import asdict

    from fingerprint.device import chosen_name
    from signatures.engines import chosen_engine

    return {
        "task": "scan",
        "program": version("weightprint"),
        "models": None if registry is None else registry.contents(),
        "index": chosen_engine(),
        "device": chosen_name(),
        "key": None if key is None else key.identity,
        **asdict(wanted),
    }


def _from_journal(values: Any) -> Report | None:
    """A report as the journal keeps it; None if there is none, or if another version of the program wrote it."""
    if values is None:
        return None
    try:
        return convert(values, Report)
    except ValidationError:
        return None


def _hand_out(report: Report, writer: Writer[Report], statuses: list[Exit], *, last: bool) -> None:
    """Write a report; if nobody reads the results any more, the rest stays unscanned, which the status says."""
    from cli.output import OutputClosedError

    try:
        writer.write(report)
    except OutputClosedError:
        if not last:
            statuses.append(Exit.INCONCLUSIVE)
        raise


def scan_one(registry: Registry | None, path: str, wanted: ScanOptions, key: Key | None, console: Console) -> Report:
    """The report of one suspect, also for what no reader expected."""
    from cli.progress import reading
    from fingerprint.errors import RegistryError, WeightprintError
    from signatures.scan import scan_path

    try:
        if registry is None or not registry.count():
            return _not_compared(path, registry, console)
        with reading(console, path) as progress:
            place = options.located(path)
            report = scan_path(registry, place, options=wanted, progress=progress)
            if key is None:
                return report
            from signatures.keyed_check import check_scan

            try:
                return check_scan(registry, report, place, key, progress)
            except RegistryError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it does not hide what was found before
                console.trace(error)
                return report.despite(error, "the check with the key")
    except RegistryError:
        raise
    except WeightprintError as error:
        console.trace(error)
        return failed(path, f"{path}: {error}")
    except Exception as error:  # noqa: BLE001 - a defect met in one suspect must not hide the results of the others
        console.trace(error)
        return failed(path, f"{path}: unexpected {type(error).__name__}: {error} (a defect of this program)")


def _not_compared(path: str, registry: Registry | None, console: Console) -> Report:
    """The report where no model is registered: the suspect is opened, so that errors show, but not measured."""
    from fingerprint.checkpoint import open_checkpoint
    from fingerprint.claims import read_claims
    from fingerprint.errors import WeightprintError
    from signatures.claims import check_claims
    from signatures.signature import is_signature, read_signature

    try:
        if is_signature(path):
            held = read_signature(path).fingerprint
            claimed = held.claims
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
            with open_checkpoint(options.located(path)) as checkpoint:
                claimed = checkpoint.metadata
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
        return failed(path, str(error))
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
        claims=check_claims(read_claims(claimed), (), None, Verdict.INCONCLUSIVE),
    )


def failed(path: str, message: str) -> Report:
    """The report of a suspect that could not be scanned."""
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
