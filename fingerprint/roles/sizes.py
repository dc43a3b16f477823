"""What a multiset of shapes says about the sizes in it: width, neurons, hidden units, fused blocks."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct, field

from fingerprint.roles.fused import Fused, Plane, find_fused, with_parts
from fingerprint.roles.mlps import find_mlps
from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_UNKNOWN = (Axis.UNKNOWN, Axis.UNKNOWN)
_SMALLEST_VOCABULARY = 1000
_MLP = frozenset({Role.GATE, Role.UP})


class Sizes(Struct):
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

    def part_axes(self, block: Fused) -> tuple[tuple[Axis, Axis], ...]:
        """Axes of the parts of a fused block, in (out, in)."""
        columns = Axis.RESIDUAL if self.residual and self.width not in self.tainted else Axis.UNKNOWN
        return tuple(
            (Axis.CHANNEL if role not in _MLP else Axis.NEURON if size in self.neurons else Axis.UNKNOWN, columns)
            for size, role in zip(block.sizes, block.roles, strict=True)
        )

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
            # Matrices both ways that are no MLP: perhaps attention of another width, whose outputs are channels.
            layered = max(there, back) > 1 or self.planes[self.width, self.width]
            if there and back and layered and not (self.flow and side == inputs):
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
        sizes.fused = find_fused(sizes.planes, sizes.width)
        sizes.planes = with_parts(sizes.planes, sizes.width, sizes.fused)
        mlps = find_mlps(sizes.planes, sizes.width)
        sizes.neurons, sizes.gated, sizes.flow = mlps.neurons, mlps.gated, mlps.flow or _flow_of_fused(sizes)
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
    repeated = {size for plane, count in sizes.planes.items() if count > 1 and plane[0] != plane[1] for size in plane}
    found: set[int] = set()
    for size in both:
        sources, targets = produced[size], consumed[size]
        if len(sources) == 1 and sources.keys() == targets.keys():
            continue
        if size in circular and sources.total() + targets.total() < 3:
            continue
        # Where layers repeat, keys may have the size of something else by chance: not as often, and not of one shape.
        once = len(sources) == len(targets) == 1 and sources.total() == targets.total()
        if size in repeated and size != sizes.width and not once:
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
