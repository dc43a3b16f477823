"""Units of a checkpoint: the order in which parts of very large models are kept where not all can be.

A unit is what belongs to one layer outside of its experts, or one expert of one layer. The order depends on their
numbers alone, so that two relatives, and the signature and the suspect, keep the same ones.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Unit = tuple[int, int]


def unit_of(layer: int | None, expert: int | None) -> Unit:
    """The unit of a part: its layer and expert, -1 where it has none."""
    return (-1 if layer is None else layer, -1 if expert is None else expert)


def ordered_units(units: Iterable[Unit]) -> list[Unit]:
    """First everything outside of experts, then experts by a hash of layer and number, one of each layer in turn."""
    by_layer: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        by_layer[unit[0]].append(unit)
    order: list[tuple[int, bytes, Unit]] = []
    for found in by_layer.values():
        experts = sorted((unit for unit in found if unit[1] >= 0), key=_hash)
        order += [(0, _hash(unit), unit) for unit in found if unit[1] < 0]
        order += [(turn, _hash(unit), unit) for turn, unit in enumerate(experts, start=1)]
    return [unit for _, _, unit in sorted(order)]


def first_of(units: Sequence[Unit], count: int) -> set[int]:
    """Positions of the ``count`` first parts in the order of their units; all, if there are no more."""
    if len(units) <= count:
        return set(range(len(units)))
    rank = {unit: place for place, unit in enumerate(ordered_units(set(units)))}
    return set(sorted(range(len(units)), key=lambda position: (rank[units[position]], position))[:count])


def spread(number: int, count: int) -> set[int]:
    """``count`` of the numbers below ``number``, spread evenly; all, if there are no more."""
    if number <= count:
        return set(range(number))
    return {round(place * (number - 1) / (count - 1)) for place in range(count)}


def _hash(unit: Unit) -> bytes:
    return hashlib.sha256(b"weightprint budget %d %d" % unit).digest()
