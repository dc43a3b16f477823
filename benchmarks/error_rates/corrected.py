"""What is left after correction: the smallest p-value of each test among all unrelated pairs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.error_rates.moving import OWN_FRAME_PAIRS, with_own_frames
from benchmarks.error_rates.parts import in_parts
from fingerprint.comparing.comparison import compare_fingerprints

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from benchmarks.error_rates.population import Model

Smallest = dict[str, tuple[float, str, str]]
"""The smallest log10 p of a test, and between which models it was."""


def smallest_corrected(
    pairs: Sequence[tuple[str, Model, Model]],
    registered_models: int | None = None,
    own_frame_pairs: int = OWN_FRAME_PAIRS,
    workers: int = 1,
) -> dict[str, Any]:
    """Compare all pairs as the product does, correct for the number of registered models, keep each test's smallest.

    That number is ``registered_models``, by default of those among the pairs. As in a scan, not every pair has its
    layers aligned in their own frames: a fixed random part has, ``own_frame_pairs`` of them.
    """
    aligned = with_own_frames(pairs, own_frame_pairs)
    number = registered_models or len({registered.id for _, registered, _ in pairs})
    smallest: Smallest = {}
    for part in in_parts(pairs, lambda some: _smallest(some, number, aligned), workers, "after correction"):
        _keep_smaller(smallest, part)
    return {
        "corrected_pairs": len(pairs),
        "own_frame_pairs": len(aligned),
        "registered_models": number,
        "smallest": dict(sorted(smallest.items())),
    }


def _smallest(
    pairs: Sequence[tuple[str, Model, Model]], registered_models: int, aligned: Container[tuple[str, str]]
) -> Smallest:
    smallest: Smallest = {}
    for _, registered, suspect in pairs:
        own_frames = (registered.id, suspect.id) in aligned
        comparison = compare_fingerprints(registered.registered, suspect.suspect, own_frames=own_frames)
        found = [(one.test.value, one.corrected(registered_models).log10_p) for one in comparison.evidence]
        _keep_smaller(smallest, {test: (log10_p, registered.id, suspect.id) for test, log10_p in found})
    return smallest


def _keep_smaller(smallest: Smallest, other: Smallest) -> None:
    for test, one in other.items():
        if one[0] < smallest.get(test, (math.inf,))[0]:
            smallest[test] = one
