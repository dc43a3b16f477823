"""Who a measured suspect is: candidates from the index, comparisons with each, and the report on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, overload

from msgspec.structs import replace

from fingerprint.comparing.comparison import compare_fingerprints, with_own_frames
from fingerprint.memory import give_back
from fingerprint.records import Fingerprint
from fingerprint.threads import single_blas
from signatures.disclosure import with_tests_lost
from signatures.options import ScanOptions
from signatures.report import HALF, RegistrySummary
from signatures.reporting import build_report, in_own_frames
from signatures.search import find_candidates, signature_of
from signatures.verdict import POSSIBLE, assess

if TYPE_CHECKING:
    from fingerprint.comparing.comparison import Comparison
    from signatures.records import ModelRecord
    from signatures.registry import Registry
    from signatures.report import Report
    from signatures.suspect import Suspect

LEAST_CANDIDATES: Final = 20
_SECOND_LOOKS: Final = 8
_EXPLAINS: Final = -12.0
_IN_OWN_FRAMES: Final = 10
"""Candidates whose layers are aligned in their own frames: a second or two each, and retrieval has ranked them."""


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
    chosen = [one.model for one in candidates]
    comparisons = compare_all(suspect, _Known(registry, chosen, _nothing(suspect.fingerprint)))
    compared = list(zip(chosen, comparisons, strict=True))
    findings = [finding for model, comparison in compared if (finding := assess(model, comparison, models)) is not None]
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
    return with_tests_lost(report, [(model.name, comparison.registered) for model, comparison in compared])


class _Known(Sequence[Fingerprint]):
    """The fingerprints of registered models, read from the registry whenever one is asked for: all of them take much
    memory. ``nothing`` stands for a model that was removed meanwhile. Raises ``SignatureError``."""

    def __init__(self, registry: Registry, models: Sequence[ModelRecord], nothing: Fingerprint) -> None:
        self._registry, self._models, self._nothing = registry, models, nothing

    def __len__(self) -> int:
        return len(self._models)

    @overload
    def __getitem__(self, place: int) -> Fingerprint: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Fingerprint]: ...

    def __getitem__(self, place: int | slice) -> Fingerprint | Sequence[Fingerprint]:
        if isinstance(place, slice):
            return _Known(self._registry, self._models[place], self._nothing)
        signature = signature_of(self._registry, self._models[place])
        return self._nothing if signature is None else signature.fingerprint


def _nothing(like: Fingerprint) -> Fingerprint:
    """A fingerprint without anything to compare."""
    return replace(like, tensors=(), neurons=(), channels=(), grams=(), findings=())


def compare_all(suspect: Suspect, registered: Sequence[Fingerprint]) -> list[Comparison]:
    """Compare a suspect with registered fingerprints, the best candidates first; again, if a comparison asks for it."""
    with single_blas():
        comparisons = _compared(suspect, registered)
        for _ in range(_SECOND_LOOKS):
            if not suspect.look_again(comparisons):
                break
            comparisons = _compared(suspect, registered)
        # What explains half of the suspect leaves nothing to look for in its layers' own frames.
        if in_own_frames(suspect.fingerprint) and not any(
            one.log10_p <= _EXPLAINS and one.suspect_coverage >= HALF for one in comparisons
        ):
            first = zip(comparisons, registered[:_IN_OWN_FRAMES], strict=False)
            comparisons[:_IN_OWN_FRAMES] = [_in_own_frames(one, ours, suspect.fingerprint) for one, ours in first]
    return comparisons


def _compared(suspect: Suspect, registered: Sequence[Fingerprint]) -> list[Comparison]:
    return [_lightened(compare_fingerprints(ours, suspect.fingerprint, own_frames=False)) for ours in registered]


def _in_own_frames(comparison: Comparison, registered: Fingerprint, suspect: Fingerprint) -> Comparison:
    """The comparison with layers in their own frames too, of both sides as wholes."""
    if comparison.sampled:
        return comparison
    return _lightened(with_own_frames(replace(comparison, registered=registered, suspect=suspect)))


def _lightened(comparison: Comparison) -> Comparison:
    """The comparison as it is if it says anything, else without what its two sides take of memory."""
    if comparison.matches or any(one.log10_p <= POSSIBLE for one in comparison.evidence):
        return comparison
    give_back()  # decoding a signature takes several times what is kept of it
    return replace(comparison, registered=_outline(comparison.registered), suspect=_outline(comparison.suspect))


def _outline(fingerprint: Fingerprint) -> Fingerprint:
    """Without what was measured of rows, columns, neurons and layers."""
    tensors = tuple(replace(tensor, sketch=None, axes=()) for tensor in fingerprint.tensors)
    return replace(fingerprint, tensors=tensors, neurons=(), channels=(), grams=())
