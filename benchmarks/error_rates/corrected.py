"""What is left after correction: the smallest p-value of each test among all unrelated pairs."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from benchmarks.error_rates.comparisons import PROGRESS
from benchmarks.error_rates.moving import OWN_FRAME_PAIRS, with_own_frames
from fingerprint.comparing.comparison import compare_fingerprints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.error_rates.population import Model

_log = logging.getLogger(__name__)


def smallest_corrected(
    pairs: Sequence[tuple[str, Model, Model]],
    registered_models: int | None = None,
    own_frame_pairs: int = OWN_FRAME_PAIRS,
) -> dict[str, Any]:
    """Compare all pairs as the product does, correct for the number of registered models, keep each test's smallest.

    That number is ``registered_models``, by default of those among the pairs. As in a scan, not every pair has its
    layers aligned in their own frames: a fixed random part has, ``own_frame_pairs`` of them.
    """
    aligned = with_own_frames(pairs, own_frame_pairs)
    registered_models = registered_models or len({registered.id for _, registered, _ in pairs})
    smallest: dict[str, tuple[float, str, str]] = {}
    for done, (_, registered, suspect) in enumerate(pairs):
        if done % PROGRESS == 0:
            _log.info("%d pairs of models: after correction", done)
        own_frames = (registered.id, suspect.id) in aligned
        comparison = compare_fingerprints(registered.registered, suspect.suspect, own_frames=own_frames)
        for one in comparison.evidence:
            corrected = one.corrected(registered_models)
            if corrected.log10_p < smallest.get(one.test.value, (math.inf,))[0]:
                smallest[one.test.value] = (corrected.log10_p, registered.id, suspect.id)
    return {
        "corrected_pairs": len(pairs),
        "own_frame_pairs": len(aligned),
        "registered_models": registered_models,
        "smallest": dict(sorted(smallest.items())),
    }
