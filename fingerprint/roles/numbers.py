"""Numbers of layers in names that say nothing else: ``9f3c.2.b71a`` is of layer 2 if its siblings count the layers.

A number counts layers where the names that differ from each other in nothing but that number have every number from 0
(or 1) on, and where at least two such rows of names, alike up to the number, have the same ones.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBER = re.compile(r"(?<![^\W_])[0-9]{1,4}(?![^\W_])")
MOST_NUMBERS = 4
"""Numbers in one name that are looked at, from the left."""
LEAST_ROWS = 2


def layers_in(names: Iterable[tuple[int, str]]) -> dict[int, int]:
    """The layer of every name that has one, counted from 0, by the position given with it.

    Of several numbers in a name the leftmost that counts layers is taken. Linear in the total length of the names.
    """
    rows: dict[tuple[str, str], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, name in names:
        for found, _ in zip(_NUMBER.finditer(name), range(MOST_NUMBERS), strict=False):
            rows[name[: found.start()], name[found.end() :]][int(found[0])].append(position)
    counts: dict[tuple[str, frozenset[int]], list[dict[int, list[int]]]] = defaultdict(list)
    for (before, _), numbered in rows.items():
        first = min(numbered)
        if len(numbered) > 1 and first <= 1 and max(numbered) - first + 1 == len(numbered):
            counts[before, frozenset(numbered)].append(numbered)
    layers: dict[int, int] = {}
    # Shorter beginnings first: the number of a layer stands before that of an expert.
    for (_, numbers), found_rows in sorted(counts.items(), key=lambda one: len(one[0][0])):
        if len(found_rows) < LEAST_ROWS:
            continue
        first = min(numbers)
        for numbered in found_rows:
            for number, positions in numbered.items():
                for position in positions:
                    layers.setdefault(position, number - first)
    return layers
