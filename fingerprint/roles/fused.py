"""Fused blocks among matrices without names: which shapes hold several matrices of one layer, where it is certain."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from msgspec import Struct

from fingerprint.vocabulary import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

Plane = tuple[int, int]


class Fused(Struct, frozen=True):
    """A shape that holds several matrices of one layer, one after another along its outputs.

    ``flipped``: stored as (in, out), to be transposed first. ``sizes`` are the rows of the parts after that.
    """

    flipped: bool
    sizes: tuple[int, ...]
    roles: tuple[Role, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the parts in names."""
        return tuple(map(str, self.roles))

    def runs(self) -> list[tuple[tuple[int, int], ...]]:
        """Where the parts lie, as ``roles.parts.split`` wants it."""
        edges = [sum(self.sizes[:count]) for count in range(len(self.sizes) + 1)]
        return [(edge,) for edge in pairwise(edges)]


class _Shapes(Struct, frozen=True):
    """Shapes on one width, counted: all of them, and those that occur one way round only.

    ``alike`` has the latter by number and by whether the width is on their rows, ``numbers`` their numbers, ascending;
    ``pairs`` counts, by number, sizes x with as many (x, h) as (h, x), and ``gated`` those with two to one.
    """

    stored: Counter[Plane]
    width: int
    single: list[Plane]
    alike: Mapping[tuple[int, bool], list[Plane]]
    numbers: list[int]
    pairs: Counter[int]
    gated: Counter[int]

    @property
    def squares(self) -> int:
        """How many square matrices of the width there are."""
        return self.stored[self.width, self.width]

    def rows(self, plane: Plane) -> int:
        """Outputs of a block, which are its columns where it is stored as (in, out)."""
        return plane[1] if plane[0] == self.width else plane[0]


def find_fused(planes: Counter[Plane], width: int) -> dict[Plane, Fused]:
    """Fused blocks by their stored shape.

    ``planes`` counts matrices by shape, ``width`` is the size most of them share. Linear in the number of shapes.
    """
    shapes = _shapes(planes, width)
    found: dict[Plane, Fused] = {}
    candidates = [(plane, down) for plane in shapes.single if (down := _down(shapes, plane)) is not None]
    rivals = Counter(planes[plane] for plane, _ in candidates)
    downs: set[Plane] = set()
    for plane, down in candidates:
        if rivals[planes[plane]] == 1 and _is_gate_up(shapes, plane):
            half = shapes.rows(plane) // 2
            found[plane] = Fused(plane[0] == width, (half, half), (Role.GATE, Role.UP))
            downs.add(down)
    doubtful = {plane for plane, _ in candidates} | {down for _, down in candidates}
    rest = _shapes(planes, width, leave_out=downs | set(found))
    for plane in rest.single:
        if plane not in doubtful and (sizes := _attention(rest, plane)) is not None:
            found[plane] = Fused(plane[0] == width, sizes, (Role.QUERY, Role.KEY, Role.VALUE))
    return found


def with_parts(planes: Counter[Plane], width: int, fused: Mapping[Plane, Fused]) -> Counter[Plane]:
    """The count of shapes with the parts of fused blocks in their place, as stored: flipped blocks in flipped parts.

    Of a layer or two, the block may be something else by chance, such as the gates of a recurrent cell: it does not add
    to the square matrices then, unless there is one pair of matrices that can be the MLP of these layers, and nothing
    else has the block's size. Linear in the number of shapes.
    """
    result = Counter({plane: count for plane, count in planes.items() if plane not in fused})
    uses = Counter(size for plane in planes for size in {*plane})
    layers = _layers_of_one_mlp(planes, width)
    for plane, block in fused.items():
        certain = planes[plane] > 2 or (planes[plane] == layers and uses[sum(block.sizes)] == 1)
        for part in block.sizes:
            if part != width or certain:
                result[(width, part) if block.flipped else (part, width)] += planes[plane]
    return result


def _layers_of_one_mlp(planes: Counter[Plane], width: int) -> int:
    """How often matrices lead from the width to one size and back, if there is one such size and both are as many."""
    pairs = [rows for rows, columns in planes if columns == width != rows and planes[width, rows]]
    if len(pairs) != 1:
        return 0
    there, back = planes[pairs[0], width], planes[width, pairs[0]]
    return there if there == back else 0


def _shapes(planes: Counter[Plane], width: int, leave_out: set[Plane] | None = None) -> _Shapes:
    single: list[Plane] = []
    alike: defaultdict[tuple[int, bool], list[Plane]] = defaultdict(list)
    pairs: Counter[int] = Counter()
    gated: Counter[int] = Counter()
    for plane, count in planes.items():
        if (plane[0] == width) == (plane[1] == width) or (leave_out and plane in leave_out):
            continue
        back = planes[plane[::-1]]
        if not back:
            single.append(plane)
            alike[count, plane[0] == width].append(plane)
        elif plane[0] != width:
            pairs[count] += count == back
            gated[min(count, back)] += max(count, back) == 2 * min(count, back)
    numbers = sorted(planes[plane] for plane in single)
    return _Shapes(planes, width, single, alike, numbers, pairs, gated)


def _down(shapes: _Shapes, plane: Plane) -> Plane | None:
    """For (2f, h): (h, f), if that occurs as often and (f, h) never."""
    half, odd = divmod(shapes.rows(plane), 2)
    down = (half, shapes.width) if plane[0] == shapes.width else (shapes.width, half)
    if odd or half in {1, shapes.width} or shapes.stored[down] != shapes.stored[plane] or shapes.stored[down[::-1]]:
        return None
    return down


def _is_gate_up(shapes: _Shapes, plane: Plane) -> bool:
    """Whether (2f, h) beside (h, f) can only be gate and up.

    Query, key and value with half as many heads for keys, and their output, have the same shapes: then the MLP must
    be elsewhere, or nothing of attention is.
    """
    flipped, count = plane[0] == shapes.width, shapes.stored[plane]
    keys = shapes.squares >= 2 * count or bool(shapes.alike.get((2 * count, flipped)))
    # Three times the width may as well be query, key and value.
    if shapes.gated[count] or shapes.rows(plane) == 3 * shapes.width:
        return False
    if shapes.pairs[count]:
        return keys
    others = len(shapes.alike[count, flipped]) - 1 + len(shapes.alike.get((count, not flipped), ())) - 1
    return keys or others > 0 or shapes.squares >= count


def _attention(shapes: _Shapes, plane: Plane) -> tuple[int, int, int] | None:
    """For (a + 2 kv, h) with one output (h, a) for each and no keys elsewhere: a, kv, kv.

    Where a = h, one or two squares more (a pooler, a head's transform) are allowed if there are several layers.
    """
    flipped, count, width = plane[0] == shapes.width, shapes.stored[plane], shapes.width
    outputs = shapes.alike.get((count, not flipped), [])
    others = len(shapes.numbers) - bisect_left(shapes.numbers, count) - 1
    spare = 2 if count > 2 else 0
    if count <= shapes.squares <= count + spare:
        inner = width
    elif len(outputs) == 1 and not shapes.squares:
        # The output's matrices, whose own queries are nowhere else.
        inner = shapes.rows(outputs[0])
        others -= 1
    else:
        return None
    rows = shapes.rows(plane)
    shared, odd = divmod(rows - inner, 2)
    # Twice the width may as well be a gate and up; what else there is of every layer may be keys.
    if odd or shared <= 0 or inner % shared or rows == 2 * width or (count > 1 and others):
        return None
    return inner, shared, shared
