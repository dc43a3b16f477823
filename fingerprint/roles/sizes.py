"""What a multiset of shapes says about the sizes in it: width, neurons, hidden units, fused blocks."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Plane = tuple[int, int]
# By size x: how many matrices are (x, width), and how many (width, x).
_Counts = dict[int, tuple[int, int]]
_UNKNOWN = (Axis.UNKNOWN, Axis.UNKNOWN)
_SMALLEST_VOCABULARY = 1000


@dataclass(frozen=True, slots=True)
class Fused:
    """A shape that holds several matrices of one layer, one after another along its outputs.

    ``flipped``: stored as (in, out), to be transposed first. ``sizes`` are the rows of the parts after that.
    """

    flipped: bool
    sizes: tuple[int, ...]
    labels: tuple[str, ...]
    roles: tuple[Role, ...]
    axes: tuple[tuple[Axis, Axis], ...]

    def runs(self) -> list[tuple[tuple[int, int], ...]]:
        """Where the parts lie, as ``roles.parts.split`` wants it."""
        edges = [sum(self.sizes[:count]) for count in range(len(self.sizes) + 1)]
        return [(edge,) for edge in pairwise(edges)]


@dataclass(slots=True)
class Sizes:
    """What is understood of the sizes; axes and roles of each shape follow.

    ``width`` is the size that most matrices share; ``residual`` whether it is hidden. ``neurons`` are hidden sizes of
    MLPs on that width, ``units`` other hidden sizes, ``fused`` blocks to be split. ``leading`` are the numbers of
    matrices in stacks. ``flow`` is 1 where matrices are
    known to be stored as (out, in), -1 where as (in, out), 0 where unknown.
    """

    planes: Counter[Plane]
    width: int | None = None
    residual: bool = False
    repeated: bool = False
    gated: bool = False
    flow: int = 0
    neurons: frozenset[int] = frozenset()
    units: frozenset[int] = frozenset()
    tainted: frozenset[int] = frozenset()
    leading: frozenset[int] = frozenset()
    fused: dict[Plane, Fused] = field(default_factory=dict)

    def axes(self, plane: Plane) -> tuple[Axis, Axis]:
        """Axes of a matrix of that shape."""
        rows, columns = plane
        if min(plane) < 2:
            return _UNKNOWN
        if rows == columns:
            # One axis of a square attention matrix is made of channels, and the shape cannot tell which.
            return _UNKNOWN
        return self._axis(rows, plane, 0), self._axis(columns, plane, 1)

    def kernel_axes(self, shape: tuple[int, ...]) -> tuple[Axis, Axis]:
        """Axes of a kernel (out, in, ...): its columns run over places too, so only the rows can be exchangeable."""
        size = shape[0]
        if size in self.tainted:
            return _UNKNOWN
        if self.residual and size == self.width:
            return (Axis.RESIDUAL if self.repeated else Axis.UNIT), Axis.UNKNOWN
        return (Axis.UNIT if size in self.units else Axis.UNKNOWN), Axis.UNKNOWN

    def role(self, plane: Plane) -> Role:
        """What a matrix of that shape does, as far as that is certain."""
        down = (self.width, plane[1]) if self.flow > 0 else (plane[0], self.width)
        inner = plane[1] if self.flow > 0 else plane[0]
        return Role.DOWN if self.gated and self.flow and plane == down and inner in self.neurons else Role.OTHER

    def _axis(self, size: int, plane: Plane, side: int) -> Axis:
        other = plane[1 - side]
        if size in self.tainted:
            return Axis.UNKNOWN
        if size == self.width:
            return self._width_axis(other, side)
        if size in self.neurons and other == self.width:
            return Axis.NEURON
        if size in self.units:
            return Axis.UNIT
        table = other == self.width and self.residual and size >= max(_SMALLEST_VOCABULARY, 4 * other)
        return Axis.TOKEN if table and self.planes[plane] <= 2 and size not in self.neurons else Axis.UNKNOWN

    def _width_axis(self, other: int, side: int) -> Axis:
        # Biases of stacked matrices are stacked too, and those of queries and keys are rotary channels.
        if not self.residual or self.width is None or other in self.leading:
            return Axis.UNKNOWN
        if other not in self.neurons:
            there, back = self.planes[other, self.width], self.planes[self.width, other]
            inputs = 1 if self.flow > 0 else 0
            # As many matrices one way as the other: perhaps attention of another width, whose outputs are channels.
            if there == back > 1 and not (self.flow and side == inputs):
                return Axis.UNKNOWN
        return Axis.RESIDUAL if self.repeated else Axis.UNIT


def understand(
    planes: Mapping[Plane, int], kernels: Mapping[tuple[int, ...], int], leading: Iterable[int] = ()
) -> Sizes:
    """Find width, neurons, units and fused blocks among matrices (rows, columns) and kernels (out, in, ...).

    ``planes`` and ``kernels`` count how often each shape occurs; ``leading`` are the numbers of matrices in stacks.
    Linear in the number of distinct shapes.
    """
    sizes = Sizes(Counter(planes), leading=frozenset(leading))
    sizes.width = _width(sizes.planes)
    sizes.repeated = any(count > 1 for plane, count in planes.items() if plane[0] != plane[1])
    if sizes.width is not None:
        _find_fused(sizes, sizes.width)
        _find_neurons(sizes, sizes.width)
    sizes.tainted = _tainted(sizes.planes, kernels)
    hidden = _hidden(sizes, kernels)
    sizes.residual = sizes.width is not None and (bool(sizes.neurons) or sizes.width in hidden)
    sizes.units = hidden - {sizes.width} - sizes.neurons
    return sizes


def _width(planes: Counter[Plane]) -> int | None:
    """The size that most matrices share, if at least three do; of two as frequent, the smaller."""
    votes: Counter[int] = Counter()
    for (rows, columns), count in planes.items():
        for size in {rows, columns} if min(rows, columns) > 1 else ():
            votes[size] += count
    width = max(votes, key=lambda size: (votes[size], -size), default=None)
    return width if width is not None and width > 1 and votes[width] >= 3 else None


# --- fused blocks ---------------------------------------------------------------------------------------------------


def _find_fused(sizes: Sizes, width: int) -> None:
    """Split what is unambiguous, and count the parts in its place (as stored: flipped blocks give flipped parts)."""
    stored = Counter(sizes.planes)
    single = [plane for plane in stored if (plane[0] == width) != (plane[1] == width) and not stored[plane[::-1]]]
    downs: set[Plane] = set()
    for plane in single:
        fused = _gate_up(stored, width, plane)
        if fused is not None:
            _put(sizes, width, plane, fused)
            downs.add((fused.sizes[0], width) if fused.flipped else (width, fused.sizes[0]))
    rest = [plane for plane in single if plane not in sizes.fused and plane not in downs]
    for plane in rest:
        fused = _attention(stored, width, plane, [other for other in rest if other != plane])
        if fused is not None:
            _put(sizes, width, plane, fused)


def _put(sizes: Sizes, width: int, plane: Plane, fused: Fused) -> None:
    sizes.fused[plane] = fused
    count = sizes.planes.pop(plane)
    for part in fused.sizes:
        sizes.planes[(width, part) if fused.flipped else (part, width)] += count


def _gate_up(stored: Counter[Plane], width: int, plane: Plane) -> Fused | None:
    """(2f, h) where (h, f) occurs as often and (f, h) never: gate and up in one."""
    flipped = plane[0] == width
    rows = plane[1] if flipped else plane[0]
    neurons = rows // 2
    down, separate = ((neurons, width), (width, neurons)) if flipped else ((width, neurons), (neurons, width))
    if rows % 2 or neurons in {1, width} or stored[down] != stored[plane] or stored[separate]:
        return None
    axes = (Axis.NEURON, Axis.RESIDUAL)
    return Fused(flipped, (neurons, neurons), ("gate", "up"), (Role.GATE, Role.UP), (axes, axes))


def _attention(stored: Counter[Plane], width: int, plane: Plane, others: list[Plane]) -> Fused | None:
    """(a + 2 kv, h) with one output (h, a) for each and no keys elsewhere: query, key and value in one.

    Where a = h, one or two squares more (a pooler, a head's transform) are allowed if there are several layers.
    """
    flipped, count = plane[0] == width, stored[plane]
    rows = plane[1] if flipped else plane[0]
    repeated = [other for other in others if stored[other] == count]
    spare = 2 if count > 2 else 0
    if count <= stored[width, width] <= count + spare:
        inner = width
    else:
        # The output's matrices, whose own queries are nowhere else.
        outputs = [other for other in repeated if (other[1] == width) == flipped]
        if len(outputs) != 1 or stored[width, width]:
            return None
        inner = outputs[0][0] if flipped else outputs[0][1]
        repeated.remove(outputs[0])
    shared, odd = divmod(rows - inner, 2)
    # Twice the width may as well be a gate and up; what else there is of every layer may be keys.
    if odd or shared <= 0 or inner % shared or rows == 2 * width or (count > 1 and repeated):
        return None
    axes = (Axis.CHANNEL, Axis.RESIDUAL)
    roles = (Role.QUERY, Role.KEY, Role.VALUE)
    return Fused(flipped, (inner, shared, shared), tuple(map(str, roles)), roles, (axes,) * 3)


# --- neurons of MLPs ------------------------------------------------------------------------------------------------


def _find_neurons(sizes: Sizes, width: int) -> None:
    """Sizes f with two (f, h) to each (h, f), or one to one where nothing but square attention is left."""
    planes = sizes.planes
    pairs: _Counts = {}
    alone: _Counts = {}
    for rows, columns in planes:
        if (rows == width) == (columns == width):
            continue
        other = columns if rows == width else rows
        there, back = planes[other, width], planes[width, other]
        (pairs if there and back else alone)[other] = (there, back)
    squares = planes[width, width]
    for flow in (1, -1):
        gated = {f: min(counts) for f, counts in pairs.items() if _is_gated(counts, flow)}
        gated = {f: count for f, count in gated.items() if _has_company(f, count, {**pairs, **alone}, squares, flow)}
        repeats = Counter(gated.values())
        gated = {f: count for f, count in gated.items() if repeats[count] == 1}
        if gated:
            sizes.neurons, sizes.gated, sizes.flow = frozenset(gated), True, flow
            return
    sizes.flow = _flow_of_fused(sizes)
    ungated = {f: there for f, (there, back) in pairs.items() if there == back}
    if len(ungated) != len(pairs) or not ungated:
        return
    count = max(ungated.values())
    chosen = [f for f, number in ungated.items() if number == count]
    if len(chosen) != 1 or any(number > 2 or number == count for f, number in ungated.items() if f != chosen[0]):
        return
    blocks = {f for f, (there, back) in alone.items() if width < f <= 3 * width and there + back == count}
    # What else there is of every layer, or of every other one, may be its MLP.
    often = max(min(count, 3), (count + 1) // 2)
    crowd = [f for f, (there, back) in alone.items() if there + back >= often and f not in blocks]
    if count == 1 and len(alone) + len(pairs) > 1:
        crowd = [f for f in crowd if f < _SMALLEST_VOCABULARY and alone[f] != (1, 0)]
    if not crowd and (squares >= 2 * count or (blocks and squares >= count)):
        sizes.neurons = frozenset(chosen)


def _is_gated(counts: tuple[int, int], flow: int) -> bool:
    there, back = counts if flow > 0 else counts[::-1]
    return there == 2 * back


def _has_company(neurons: int, count: int, counts: _Counts, squares: int, flow: int) -> bool:
    """Whether the rest of the layer is there and leans the same way.

    Query, key, value and fc-in of one size would count as two to one against output and fc-out; then nothing else of
    the layer is left to be attention.
    """
    least = min(count, 3)
    rest = [both for f, both in counts.items() if f != neurons and max(both) >= least]
    lean = sum(there - back for there, back in rest)
    if lean * flow < 0:
        return False
    return bool(rest) or squares >= least or count == 1


def _flow_of_fused(sizes: Sizes) -> int:
    flows = {fused.flipped for fused in sizes.fused.values()}
    return 0 if len(flows) != 1 else -1 if flows == {True} else 1


# --- hidden units ---------------------------------------------------------------------------------------------------


def _tainted(planes: Counter[Plane], kernels: Mapping[tuple[int, ...], int]) -> frozenset[int]:
    """Sizes that come in groups: gates of recurrent cells (3n or 4n), and channels of grouped convolutions."""
    tainted: set[int] = set()
    inputs: defaultdict[int, int] = defaultdict(int)
    for (rows, _), count in planes.items():
        inputs[rows] += count
    for rows, columns in planes:
        for gates in (3, 4):
            if rows == gates * columns and not planes[columns, rows] and inputs[rows] > 1:
                tainted.add(rows)
    produced = {shape[0] for shape in kernels} | {rows for rows, _ in planes}
    narrow: Counter[int] = Counter()
    for shape, count in kernels.items():
        if 1 < shape[1] < shape[0] and shape[0] % shape[1] == 0 and shape[1] not in produced:
            narrow[shape[1]] += count
    for shape in kernels:
        if narrow[shape[1]] > 1 and shape[1] not in produced:
            tainted.add(shape[0])
    return frozenset(tainted)


def _hidden(sizes: Sizes, kernels: Mapping[tuple[int, ...], int]) -> frozenset[int]:
    """Sizes that one map puts out and another takes in, and that are not the network's own input and output.

    An input and output table of one size (autoencoders) closes a circle of sizes and is on two matrices only.
    """
    produced: defaultdict[int, Counter[int]] = defaultdict(Counter)
    consumed: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for plane, count in (*sizes.planes.items(), *(((shape[0], shape[1]), count) for shape, count in kernels.items())):
        rows, columns = plane
        if rows != columns and columns > 1 and rows > 1:
            produced[rows][columns] += count
            consumed[columns][rows] += count
    both = [size for size in produced if size in consumed]
    circular = _circular(produced, both)
    found: set[int] = set()
    for size in both:
        sources, targets = produced[size], consumed[size]
        if len(sources) == 1 and sources.keys() == targets.keys():
            continue
        if size in circular and sources.total() + targets.total() < 3:
            continue
        # In a transformer keys may have the size of something else by chance: then their numbers differ.
        if sizes.neurons and size != sizes.width and sources.total() != targets.total():
            continue
        found.add(size)
    return frozenset(found)


def _circular(produced: Mapping[int, Iterable[int]], both: list[int]) -> set[int]:
    """Sizes on a circle: that a chain of maps leads from and back to."""
    if not both:
        return set()
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = {size: position for position, size in enumerate(both)}
    edges = [(number[size], number[source]) for size in both for source in produced[size] if source in number]
    if not edges:
        return set()
    heads, tails = np.array(edges).T
    graph = coo_array((np.ones(len(edges), np.int8), (heads, tails)), shape=(len(both), len(both)))
    _, component = connected_components(graph, connection="strong")
    members = np.bincount(component)
    return {size for size in both if members[component[number[size]]] > 1}
