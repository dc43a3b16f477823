"""Neurons of MLPs among matrices without names: which sizes on the width can be nothing else.

A size x on the width h is judged by how many matrices (x, h) and (h, x) there are. A gated MLP has two to one, an
ungated one and the output of attention have one to one. A shard that is cut in the middle of layers, attention whose
inner width is not h, and two towers whose sizes meet by chance can have the same counts, so that the rest of the layer
has to be there too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable

    from fingerprint.roles.fused import Plane

_Counts = dict[int, tuple[int, int]]
_NEAR = 4
_SMALLEST_VOCABULARY = 1000


class Mlps(Struct, frozen=True):
    """Sizes that are neurons; whether their MLPs are gated; 1 if matrices are (out, in), -1 if (in, out), else 0."""

    neurons: frozenset[int]
    gated: bool
    flow: int


class _Sizes(Struct, frozen=True):
    """Sizes x on a width h with the numbers of (x, h) and of (h, x); ``pairs`` has those with both.

    ``elsewhere`` are sizes that also occur without the width: neurons never do.
    """

    width: int
    squares: int
    pairs: _Counts
    alone: _Counts
    elsewhere: frozenset[int]


def find_mlps(planes: Counter[Plane], width: int) -> Mlps:
    """Neurons among matrices counted by shape, on the size that most of them share. Linear in the number of shapes."""
    pairs: _Counts = {}
    alone: _Counts = {}
    elsewhere: set[int] = set()
    for rows, columns in planes:
        if width not in {rows, columns}:
            elsewhere |= {rows, columns}
        if (rows == width) != (columns == width):
            other = columns if rows == width else rows
            there, back = planes[other, width], planes[width, other]
            (pairs if there and back else alone)[other] = (there, back)
    sizes = _Sizes(width, planes[width, width], pairs, alone, frozenset(elsewhere))
    normal, flipped = _gated(sizes), _gated(_turned(sizes))
    if normal and flipped:
        return Mlps(frozenset(), gated=False, flow=0)
    if normal or flipped:
        return Mlps(frozenset(normal or flipped), gated=True, flow=1 if normal else -1)
    return Mlps(frozenset(_ungated(sizes)), gated=False, flow=0)


def _turned(sizes: _Sizes) -> _Sizes:
    pairs = {size: (back, there) for size, (there, back) in sizes.pairs.items()}
    alone = {size: (back, there) for size, (there, back) in sizes.alone.items()}
    return _Sizes(sizes.width, sizes.squares, pairs, alone, sizes.elsewhere)


def _gated(sizes: _Sizes) -> list[int]:
    """Sizes of gated MLPs, if matrices are stored as (out, in)."""
    even = sorted(there for there, back in sizes.pairs.values() if there == back)
    # Three to one is attention with an inner width of its own, and as many key heads as query heads; a decoder that
    # attends to an encoder too has twice as much of it.
    triple = sorted(back for there, back in sizes.pairs.values() if there == 3 * back and back > 2)
    all_pairs = sorted(min(counts) for counts in sizes.pairs.values())
    tables = max(_SMALLEST_VOCABULARY, 4 * sizes.width)
    inputs = max((there for size, (there, _) in sizes.alone.items() if there > 2 or size < tables), default=0)
    often = max(map(max, sizes.alone.values()), default=0)
    leans = {least: _lean((*sizes.pairs.values(), *sizes.alone.values()), least) for least in (1, 2, 3)}
    found = []
    for size, (there, count) in sizes.pairs.items():
        if there != 2 * count or size in sizes.elsewhere or leans[min(count, 3)] - (there - count) < 0:
            continue
        # Queries and outputs of another inner width are even; whatever else occurs about as often is a rival.
        slack = 1 if count > 2 else 0
        attention = _between(even, count - slack, count + slack)
        explained = 1 + attention + _between(triple, count - slack, 2 * count)
        rivals = _between(all_pairs, count // _NEAR + 1, _NEAR * count - 1) - explained
        if rivals or attention > 1 or (attention and max(sizes.squares, inputs) < count):
            continue
        if attention or count <= sizes.squares <= 6 * count or (count > 2 and (explained > 1 or often > 2)):
            found.append(size)
    return found


def _between(numbers: list[int], low: int, high: int) -> int:
    """How many of the ascending numbers are from ``low`` to ``high``."""
    return bisect_right(numbers, high) - bisect_left(numbers, low)


def _lean(counts: Iterable[tuple[int, int]], least: int) -> int:
    """How many more inputs than outputs the width is, over sizes that occur at least so often."""
    return sum(there - back for there, back in counts if max(there, back) >= least)


def _ungated(sizes: _Sizes) -> list[int]:
    """The size of the ungated MLP, where nothing is left beside it but square attention."""
    even = {size: there for size, (there, back) in sizes.pairs.items() if there == back}
    if len(even) != len(sizes.pairs) or not even:
        return []
    count = max(even.values())
    chosen = [size for size, number in even.items() if number == count]
    if (
        len(chosen) != 1
        or chosen[0] in sizes.elsewhere
        or any(number > 2 for size, number in even.items() if size != chosen[0])
    ):
        return []
    numbers = {size: there + back for size, (there, back) in sizes.alone.items()}
    blocks = {size for size, number in numbers.items() if sizes.width < size <= 3 * sizes.width and number == count}
    # What else there is of every layer, or of every other one, may be its MLP.
    often = max(min(count, 3), (count + 1) // 2)
    crowd = [size for size, number in numbers.items() if number >= often and size not in blocks]
    if count == 1:
        crowd = [size for size in crowd if size < _SMALLEST_VOCABULARY]
    # Of a layer or two, keys and values as wide as the stream could be the squares, and query and output the pair.
    enough = sizes.squares >= (2 if count > 2 else 4) * count or (count > 2 and blocks and sizes.squares >= count)
    return chosen if enough and not crowd else []
