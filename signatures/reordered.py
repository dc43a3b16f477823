"""Matrices whose values are all there, in another order: told by statistics that no order of the values changes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from fingerprint.vocabulary import Content

if TYPE_CHECKING:
    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import TensorRecord

_ROUNDING: Final = 1e-6
"""Relative difference of two sums of the same numbers in another order: 4e-8 was the largest seen. The least training
on small models changed one of the four by 5e-3."""
_IN_PLACE: Final = 0.999


def same_values(one: TensorRecord, other: TensorRecord) -> bool:
    """Whether two tensors hold the same numbers in any order, or their negatives, as far as four statistics tell."""
    if sorted(one.shape) != sorted(other.shape):
        return False
    mine, its = one.statistics, other.statistics
    pairs = [(getattr(mine, name), getattr(its, name)) for name in ("deviation", "largest", "kurtosis")]
    same = all(abs(a - b) <= _ROUNDING * max(abs(a), abs(b)) for a, b in pairs)
    return same and abs(abs(mine.mean) - abs(its.mean)) <= _ROUNDING * max(mine.largest, its.largest)


def reordered(comparison: Comparison) -> dict[int, int]:
    """For each registered matrix that is found nowhere in place, the suspect's one of the same values, if any.

    By position. Nothing is told of a quick look, which does not read all values.
    """
    if comparison.sampled:
        return {}
    placed = [match for match in comparison.matches if match.digest or abs(match.cosine) >= _IN_PLACE]
    ours, theirs = comparison.registered.tensors, comparison.suspect.tensors
    found: dict[int, int] = {}
    taken = {match.suspect for match in placed}
    known = {match.registered for match in placed}
    free: dict[tuple[int, ...], list[tuple[float, int]]] = defaultdict(list)
    for position, tensor in enumerate(theirs):
        if position not in taken and tensor.content is Content.WEIGHTS and tensor.statistics.deviation > 0:
            insort(free[tuple(sorted(tensor.shape))], (tensor.statistics.deviation, position))
    for position, tensor in enumerate(ours):
        if position in known or tensor.content is not Content.WEIGHTS:
            continue
        near, deviation = free[tuple(sorted(tensor.shape))], tensor.statistics.deviation
        start = bisect_left(near, (deviation * (1 - 2 * _ROUNDING), -1))
        stop = bisect_left(near, (deviation * (1 + 2 * _ROUNDING), -1))
        for place in range(start, stop):
            if same_values(tensor, theirs[near[place][1]]):
                found[position] = near.pop(place)[1]
                break
    return found
