"""Scan a suspect, as deep as it takes: fingerprint, candidates, comparisons; or compare it with one model."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace
from threadpoolctl import threadpool_limits

from fingerprint.comparing.comparison import compare_fingerprints
from fingerprint.errors import InputError, RegistryError, SignatureError, UsageError, described
from fingerprint.memory import give_back
from fingerprint.vocabulary import Depth
from signatures.claims import may_name
from signatures.disclosure import with_tests_lost
from signatures.records import anonymous_model
from signatures.report import (
    Confidence,
    Link,
    Match,
    Power,
    RegistrySummary,
    Report,
    SuspectSummary,
    Verdict,
)
from signatures.reporting import build_report, in_own_frames
from signatures.search import find_candidates
from signatures.suspect import AUTO, open_suspect
from signatures.verdict import HALF, assess

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import Fingerprint
    from signatures.registry import Registry
    from signatures.suspect import Suspect

_log = logging.getLogger(__name__)
LEAST_CANDIDATES: Final = 20
DEPTHS: Final = (AUTO, *(one.value for one in Depth))
_SECOND_LOOKS: Final = 8
_EXPLAINS: Final = -12.0
_IN_OWN_FRAMES: Final = 10
"""Candidates whose layers are aligned in their own frames: half a second each, and retrieval has ranked them."""


class ScanOptions(Struct, frozen=True):
    """How to scan. ``base`` names models that are declared to be the suspect's base; ``include`` and ``exclude`` are
    globs over stored tensor names; ``top_k`` bounds the matches in the report, not what is compared."""

    top_k: int = 10
    base: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    depth: str = AUTO

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"at least one match must be allowed in the report, not {self.top_k}")
        if self.depth not in DEPTHS:
            raise UsageError(f"depth {self.depth!r} is not one of {', '.join(DEPTHS)}")


def scan_path(
    registry: Registry,
    path: str | os.PathLike[str],
    *,
    options: ScanOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Scan a checkpoint or a signature file. A suspect that cannot be read, or takes more memory than there is, gives
    a report with verdict ``error``; only a registry that cannot be used raises (``RegistryError``)."""
    started = time.perf_counter()
    options = options or ScanOptions()
    try:
        with open_suspect(path, include=options.include, exclude=options.exclude, progress=progress) as opened:
            report = _at_first_that_explains(
                opened.depths(options.depth),
                lambda depth: scan_suspect(registry, opened.at(depth), path=str(path), options=options),
            )
    except (InputError, SignatureError) as error:
        _log.info("%s cannot be scanned", path, exc_info=error)
        return _error_report(registry, str(path), str(error), time.perf_counter() - started)
    except MemoryError as error:
        _log.info("%s cannot be scanned", path, exc_info=error)
        message = f"{path}: there is not enough memory to scan it ({described(error)})"
        return _error_report(registry, str(path), message, time.perf_counter() - started)
    return replace(report, seconds=time.perf_counter() - started)


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


def scan_suspect(registry: Registry, suspect: Suspect, *, path: str, options: ScanOptions | None = None) -> Report:
    """Match a suspect against every registered model. Raises ``RegistryError``, and ``InputError`` if the suspect's
    weights cannot be read a second time."""
    started = time.perf_counter()
    options = options or ScanOptions()
    models = registry.count()
    declared = [registry.get(name).name for name in options.base]
    candidates = find_candidates(registry, suspect.fingerprint, max(LEAST_CANDIDATES, 2 * options.top_k))
    known = [(one.model, registry.load_signature(one.model).fingerprint) for one in candidates]
    give_back()  # decoding a signature takes several times what is kept of it
    comparisons = compare_all(suspect, [ours for _, ours in known])
    findings = [
        finding
        for (model, _), comparison in zip(known, comparisons, strict=True)
        if (finding := assess(model, comparison, models)) is not None
    ]
    report = build_report(
        suspect.fingerprint,
        findings,
        path=path,
        second_look=suspect.measured is not None,
        bases=declared,
        top_k=options.top_k,
        registry=RegistrySummary(models, registry.digest),
        seconds=time.perf_counter() - started,
        named=registry.resembling,
    )
    return with_tests_lost(report, [(model.name, ours) for model, ours in known])


def compare_all(suspect: Suspect, registered: Sequence[Fingerprint]) -> list[Comparison]:
    """Compare a suspect with registered fingerprints, the best candidates first; again, if a comparison asks for it."""
    # The matrices are small: threads inside BLAS would only wait for each other.
    with threadpool_limits(1, "blas"):
        comparisons = _compared(suspect, registered, own_frames=False)
        for _ in range(_SECOND_LOOKS):
            if not suspect.look_again(comparisons):
                break
            comparisons = _compared(suspect, registered, own_frames=False)
        # What explains half of the suspect leaves nothing to look for in its layers' own frames.
        if in_own_frames(suspect.fingerprint) and not any(
            one.log10_p <= _EXPLAINS and one.suspect_coverage >= HALF for one in comparisons
        ):
            comparisons[:_IN_OWN_FRAMES] = _compared(suspect, registered[:_IN_OWN_FRAMES], own_frames=True)
    return comparisons


def _compared(suspect: Suspect, registered: Sequence[Fingerprint], *, own_frames: bool) -> list[Comparison]:
    return [compare_fingerprints(ours, suspect.fingerprint, own_frames=own_frames) for ours in registered]


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
