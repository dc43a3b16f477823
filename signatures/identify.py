"""Who a measured suspect is: candidates from the index, comparisons with each, and the report on them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from fingerprint.comparing.comparison import compare_fingerprints
from fingerprint.memory import give_back
from fingerprint.threads import single_blas
from signatures.disclosure import with_tests_lost
from signatures.options import ScanOptions
from signatures.report import HALF, RegistrySummary
from signatures.reporting import build_report, in_own_frames
from signatures.search import find_candidates, signature_of
from signatures.verdict import assess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import Fingerprint
    from signatures.registry import Registry
    from signatures.report import Report
    from signatures.suspect import Suspect

LEAST_CANDIDATES: Final = 20
_SECOND_LOOKS: Final = 8
_EXPLAINS: Final = -12.0
_IN_OWN_FRAMES: Final = 10
"""Candidates whose layers are aligned in their own frames: half a second each, and retrieval has ranked them."""


def scan_suspect(registry: Registry, suspect: Suspect, *, path: str, options: ScanOptions | None = None) -> Report:
    """Match a suspect against every registered model.

    Raises ``RegistryError``, ``SignatureError`` if a model that it would be compared with cannot be read (it may be the
    base that makes siblings of others), and ``InputError`` if the suspect's weights cannot be read a second time.
    """
    started = time.perf_counter()
    options = options or ScanOptions()
    models = registry.count()
    declared = [registry.get(name).name for name in options.base]
    candidates = find_candidates(registry, suspect.fingerprint, max(LEAST_CANDIDATES, 2 * options.top_k))
    loaded = ((one.model, signature_of(registry, one.model)) for one in candidates)
    known = [(model, signature.fingerprint) for model, signature in loaded if signature is not None]
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
    with single_blas():
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
