"""What a moved suspect's tables of tokens say of how they were moved: by their energies and distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.vocabulary import Content, Role
from signatures.reordered import same_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import TensorRecord

PERMUTED: Final = "vocabulary-permuted"
REPLACED: Final = "vocabulary-replaced"
MOVED: Final = "vocabulary-moved"
_SAME_ENERGY: Final = 0.05
_SAME_LENGTH: Final = 0.1
"""Difference of two sketches' lengths that other signs make: .06 was seen of a permutation."""
_ISOMETRY: Final = 5e-5
"""Difference of energies that rounding makes: 5e-7 was seen of a rotation, and 1e-3 and more of the least training."""
_CHANGED: Final = 0.2
_TINY: Final = 1e-300
_OTHER_SHAPE: Final = 0.05
"""Difference of kurtosis from which values were mixed: at most .01 was seen of a fine-tune, .1 of rotations."""
OF_TOKENS: Final = frozenset({Role.TOKEN_EMBEDDING, Role.OUTPUT_HEAD})
"""Roles of the tables that have a row for each token."""


def token_table(comparison: Comparison) -> str:
    """What is known of tokens that are not where they were.

    A table of the same energy was permuted; also of the same energy less the means of its rows and columns, since
    LayerNorm does not read the former. One of another energy by both was replaced; not said of models with LayerNorm,
    whose tables may have any mean over the stream, turned into any sketch. Else it was moved, no more is known.
    """
    pairs = list(_pairs(comparison))
    if any(_same_energy(*pair) for pair in pairs):
        return PERMUTED
    other = all(_ratio(*pair) > _CHANGED and _centred(*pair) > _CHANGED for pair in pairs)
    return REPLACED if other and not _has_layer_norm(comparison) else MOVED


def mixed_table(comparison: Comparison) -> bool:
    """Whether the suspect has the registered table with its values mixed, as a rotation mixes them.

    It keeps their energy, to rounding, and not the values; of a table that was changed beside about the energy, and not
    the shape of the distribution.
    """
    pairs = [pair for pair in _pairs(comparison) if _same_energy(*pair)]
    turned = any(_ratio(*pair) <= _ISOMETRY and not same_values(*pair) for pair in pairs)
    return turned or (
        bool(pairs)
        and all(
            abs(one.statistics.kurtosis - other.statistics.kurtosis) > _OTHER_SHAPE * one.statistics.kurtosis
            for one, other in pairs
        )
    )


def changed_table(comparison: Comparison) -> bool:
    """Whether the energy of the table differs by more than any order or rotation, and less than another table's would.

    Nothing is told of models with LayerNorm, which does not read the mean over the stream: anything may be there.
    """
    ratios = [_ratio(*pair) for pair in _pairs(comparison)]
    return bool(ratios) and not _has_layer_norm(comparison) and 10 * _ISOMETRY < min(ratios) <= _CHANGED


def _has_layer_norm(comparison: Comparison) -> bool:
    return any(one.role is Role.NORM_BIAS for one in comparison.registered.tensors)


def _pairs(comparison: Comparison) -> Iterator[tuple[TensorRecord, TensorRecord]]:
    """The largest registered table of tokens with each of the suspect's that may be the same: heads may be as well."""
    ours, theirs = (
        [one for one in side.tensors if one.role in OF_TOKENS and one.content is Content.WEIGHTS]
        for side in (comparison.registered, comparison.suspect)
    )
    mine = max((one for one in ours if one.role is Role.TOKEN_EMBEDDING), key=lambda one: one.elements, default=None)
    return iter([] if mine is None else [(mine, one) for one in theirs])


def _same_energy(one: TensorRecord, other: TensorRecord) -> bool:
    return _ratio(one, other) <= _SAME_ENERGY or _centred(one, other) <= _SAME_LENGTH


def _centred(one: TensorRecord, other: TensorRecord) -> float:
    """Relative difference of the lengths of two sketches, which are of matrices without the means of rows and columns.

    1 where they cannot be compared.
    """
    if one.sketch is None or other.sketch is None or sorted(one.shape) != sorted(other.shape):
        return 1.0
    mine, its = (float(np.linalg.norm(sketch.astype(np.float64))) for sketch in (one.sketch, other.sketch))
    return abs(mine - its) / max(mine, its, _TINY)


def _ratio(one: TensorRecord, other: TensorRecord) -> float:
    """Relative difference of the mean squares of two tensors' elements."""
    mine, its = (each.statistics.mean**2 + each.statistics.deviation**2 for each in (one, other))
    return abs(mine - its) / max(mine, its, _TINY)
