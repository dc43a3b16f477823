"""What became of the gains of norms, as far as the values of vectors tell."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.vocabulary import Axis, Content, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import TensorRecord

_UNEVEN: Final = 0.01
_MOSTLY: Final = 0.5
_NEAR: Final = 0.2
"""Difference of means and deviations up to which a vector may be another one, trained on: .05 was seen."""


def gains_folded(comparison: Comparison) -> bool:
    """Whether the registered model's gains differ along the stream, and none of the suspect's do.

    Among vectors without names biases are no gains: as many that are constant, and not zero, count too.
    """
    ours = _gains(comparison.registered.tensors)
    if not _are_uneven(ours):
        return False
    theirs = _gains(comparison.suspect.tensors, ours[0].elements)
    even = [sum(_is_even(one) for one in side) for side in (ours, theirs)]
    return not _are_uneven(theirs) or even[1] - even[0] > _MOSTLY * len(ours)


def gains_changed(comparison: Comparison) -> float:
    """Share of the registered gains that differ along the stream of which the suspect has none that is like them.

    The order of the stream does not matter.
    """
    ours = [one for one in _gains(comparison.registered.tensors) if _is_uneven(one)]
    if not ours:
        return 0.0
    theirs = _gains(comparison.suspect.tensors, ours[0].elements)
    if len(theirs) < len(ours):  # layers in one tensor have gains in one too
        return 0.0
    return float(np.mean([not any(_are_near(one, other) for other in theirs) for one in ours]))


def _are_near(one: TensorRecord, other: TensorRecord) -> bool:
    mine, its = one.statistics, other.statistics
    return all(
        abs(a - b) <= _NEAR * max(abs(a), abs(b)) for a, b in ((mine.mean, its.mean), (mine.deviation, its.deviation))
    )


def _is_even(gains: TensorRecord) -> bool:
    """Whether a vector is one number, not zero, all along."""
    return abs(gains.statistics.mean) > 0 and not _is_uneven(gains)


def _is_uneven(gains: TensorRecord) -> bool:
    return gains.statistics.deviation > _UNEVEN * abs(gains.statistics.mean)


def _are_uneven(gains: Sequence[TensorRecord]) -> bool:
    """Whether most vectors of gains differ along the stream by more than one in a hundred."""
    return bool(gains) and float(np.mean([_is_uneven(one) for one in gains])) >= _MOSTLY


def _gains(tensors: Sequence[TensorRecord], usual: int = -1) -> list[TensorRecord]:
    """The vectors that may be gains of norms. Where neither names nor axes tell their length, it is ``usual``."""
    named = [one for one in tensors if one.role is Role.NORM_GAIN]
    if named:
        return named
    widths = Counter(sample.size for one in tensors for sample in one.axes if sample.axis is Axis.RESIDUAL)
    width = widths.most_common(1)[0][0] if widths else usual
    return [one for one in tensors if one.shape == (width,) and one.content in {Content.VECTOR, Content.CONSTANT}]
