"""What a moved suspect's tables of tokens say of how they were moved: by their energies and distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.vocabulary import Content, Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import TensorRecord

PERMUTED: Final = "vocabulary-permuted"
REPLACED: Final = "vocabulary-replaced"
_SAME_ENERGY: Final = 0.05
_SAME_LENGTH: Final = 0.1
"""Difference of two sketches' lengths that a permutation of rows and a rotation may make: 1 / sqrt(2) of 1/k twice."""
_OTHER_SHAPE: Final = 0.05
"""Difference of kurtosis from which values were mixed: at most .01 was seen of a fine-tune, .1 of rotations."""
_TABLES: Final = (Role.TOKEN_EMBEDDING, Role.OUTPUT_HEAD)


def token_table(comparison: Comparison) -> str:
    """Whether the tokens were permuted or the table replaced: the table has the same energy, or another.

    Less the means of its rows and columns it may have it too, of which LayerNorm does not read the former.
    """
    return PERMUTED if any(_same_energy(*pair) for pair in _pairs(comparison)) else REPLACED


def mixed_table(comparison: Comparison) -> bool:
    """Whether the suspect has a table of the energy of the registered one's whose values are otherwise distributed."""
    pairs = [pair for pair in _pairs(comparison) if _same_energy(*pair)]
    return bool(pairs) and all(
        abs(one.statistics.kurtosis - other.statistics.kurtosis) > _OTHER_SHAPE * one.statistics.kurtosis
        for one, other in pairs
    )


def _pairs(comparison: Comparison) -> Iterator[tuple[TensorRecord, TensorRecord]]:
    """The largest registered table of tokens with each of the suspect's that may be the same: heads may be as well."""
    ours, theirs = (
        [one for one in side.tensors if one.role in _TABLES and one.content is Content.WEIGHTS]
        for side in (comparison.registered, comparison.suspect)
    )
    mine = max((one for one in ours if one.role is _TABLES[0]), key=lambda one: one.elements, default=None)
    return iter([] if mine is None else [(mine, one) for one in theirs])


def _same_energy(one: TensorRecord, other: TensorRecord) -> bool:
    mine, its = (each.statistics.mean**2 + each.statistics.deviation**2 for each in (one, other))
    if abs(mine - its) <= _SAME_ENERGY * max(mine, its):
        return True
    if one.sketch is None or other.sketch is None or sorted(one.shape) != sorted(other.shape):
        return False
    lengths = [
        float(np.linalg.norm(each.sketch.astype(np.float64))) for each in (one, other) if each.sketch is not None
    ]
    return abs(lengths[0] - lengths[1]) <= _SAME_LENGTH * max(lengths)
