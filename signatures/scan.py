"""Scan a suspect, as deep as it takes, or compare it with one model.

Half of the program compares, and is loaded while processes measure (``identify``).
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from fingerprint.errors import InputError, RegistryError, SignatureError, described
from fingerprint.vocabulary import Depth
from signatures.claims import may_name
from signatures.options import ScanOptions
from signatures.records import anonymous_model
from signatures.report import (
    HALF,
    Confidence,
    Link,
    Match,
    Power,
    RegistrySummary,
    Report,
    SuspectSummary,
    Verdict,
)
from signatures.suspect import open_suspect

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from signatures.registry import Registry
    from signatures.suspect import Opened

_FEW_MODELS: Final = 4
"""Models of a registry whose signatures are read while a suspect is measured: both take memory."""

_log = logging.getLogger(__name__)


def scan_path(
    registry: Registry,
    path: str | os.PathLike[str],
    *,
    options: ScanOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Scan a checkpoint or a signature file.

    A suspect that cannot be read, takes more memory than there is, or is to be compared with a registered model whose
    file is damaged, gives a report with verdict ``error``; only a registry that cannot be searched raises
    (``RegistryError``).
    """
    started = time.perf_counter()
    options = options or ScanOptions()
    try:
        with open_suspect(
            path,
            include=options.include,
            exclude=options.exclude,
            progress=progress,
            meanwhile=_needed_next(registry),
        ) as opened:
            scan = partial(_scan, registry, opened, str(path), options)
            report = _at_first_that_explains(opened.depths(options.depth), scan)
    except (InputError, SignatureError) as error:
        _log.info("%s cannot be scanned", path, exc_info=error)
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        return _error_report(registry, str(path), message, time.perf_counter() - started)
    except MemoryError as error:
        _log.info("%s cannot be scanned", path, exc_info=error)
        message = f"{path}: there is not enough memory to scan it ({described(error)})"
        return _error_report(registry, str(path), message, time.perf_counter() - started)
    return replace(report, seconds=time.perf_counter() - started)


def _scan(registry: Registry, opened: Opened, path: str, options: ScanOptions, depth: Depth) -> Report:
    suspect = opened.at(depth)
    from signatures.identify import scan_suspect

    return scan_suspect(registry, suspect, path=path, options=options)


def _needed_next(registry: Registry) -> Iterator[None]:
    """Load, step by step, what is needed when the suspect is measured."""
    import signatures.identify  # noqa: F401 - here and now

    yield
    registry.open_index()
    yield
    for model in registry.models() if registry.count() <= _FEW_MODELS else ():  # all of them are likely candidates
        with suppress(RegistryError):  # it is raised if that one is
            registry.load_signature(model)
        yield


def _at_first_that_explains(depths: Sequence[Depth], scan: Callable[[Depth], Report]) -> Report:
    """The report at the first of the depths that explains the suspect, or at the last; the one before, if it accuses
    and the next one fails, whatever the reason."""
    report = scan(depths[0])
    for depth in depths[1:]:
        if any(match.link in {Link.LINEAGE, Link.SIBLING} and _explains(match) for match in report.matches):
            break
        try:
            report = scan(depth)
        except RegistryError:
            raise
        except Exception as error:  # noqa: BLE001 - for want of memory, or in a library: it does not hide what was found
            _log.info("a look at %s depth failed", depth.value, exc_info=error)
            return report.despite(error, f"looking at it at {depth.value} depth")
    return report


def _explains(match: Match) -> bool:
    return match.confidence is Confidence.CERTAIN and match.coverage.suspect >= HALF


def _error_report(registry: Registry, path: str, error: str, seconds: float) -> Report:
    return Report(
        suspect=SuspectSummary(path=path),
        verdict=Verdict.ERROR,
        error=error,
        matches=(),
        mixture=None,
        power=Power((), ("everything: the suspect could not be read",), "nothing"),
        notes=(),
        registry=RegistrySummary(registry.count(), registry.digest),
        seconds=seconds,
    )


def compare_paths(
    registered: str | os.PathLike[str],
    suspect: str | os.PathLike[str],
    *,
    options: ScanOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Compare two checkpoints or signature files; ``registered`` takes the place of the registered model.

    Raises ``InputError``, ``SignatureError``, ``IncompatibleParametersError``.
    """
    from signatures.disclosure import with_tests_lost
    from signatures.identify import compare_all
    from signatures.reporting import build_report
    from signatures.verdict import assess

    started = time.perf_counter()
    options = options or ScanOptions()
    include, exclude = options.include, options.exclude
    with (
        open_suspect(suspect, include=include, exclude=exclude, progress=progress) as theirs,
        open_suspect(registered, include=include, exclude=exclude, registered=True, progress=progress) as ours,
    ):

        def compare(depth: Depth) -> Report:
            second = theirs.at(depth)
            first = ours.at(depth).fingerprint
            (comparison,) = compare_all(second, [first])
            model = anonymous_model(str(registered))
            finding = assess(model, comparison, 1)
            report = build_report(
                second.fingerprint,
                [finding] if finding is not None else [],
                path=str(suspect),
                second_look=second.measured is not None,
                registry=RegistrySummary(1, ""),
                seconds=0.0,
                named=lambda name: [model] if may_name(name, model) else [],
            )
            return with_tests_lost(report, [(str(registered), first)])

        depths = theirs.depths(options.depth)
        if ours.depths(options.depth) == (Depth.QUICK,):  # it lies elsewhere, and is large
            depths = (Depth.QUICK,)
        report = _at_first_that_explains(depths, compare)
    return replace(report, seconds=time.perf_counter() - started)
