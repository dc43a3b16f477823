"""Channels inside the branches of residual convolutional networks, between the stream that these read and write.

What a branch's first kernels make of the stream, and what its last ones make of a channel for the stream, are the
channel's coordinates, as a neuron's are what it reads and writes. The stream's own channels are written down by the
shortest way to them from the network's input: the first kernel, and the shortcuts between stages. No order of channels
shows in that. Nor does a positive scale, or whether a batch norm was folded: every kernel is taken balanced, with rows
and columns of equal lengths, which is one and the same kernel whatever its rows and columns were multiplied by
(Sinkhorn & Knopp 1967).

Which kernels meet in one space, names need not tell. Channels that are alike in what writes a space are alike in what
reads it: in ten small residual networks, rescaled, folded or not, the similarities of pairs of channels of kernels that
do not meet correlated by .12 at most, those of kernels inside one branch by .59 to .82, and every space hung together
by pairs above .2.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, product
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fingerprint.gauge.unit_rows import MOST_COMPOSED, compose, composed_shape, natural_order, read_whole, sample_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.parameters import Parameters
    from fingerprint.records import NeuronSample

    Float64 = NDArray[np.float64]

MOST_KERNELS: Final = 256
"""Kernels of a network that is looked at, in the order of their names."""
MOST_NUMBERS: Final = 1 << 27
"""Numbers of these kernels together: each is read some times."""
MOST_COORDINATES: Final = 1 << 12
"""Numbers by which a channel is written down."""
MOST_INSIDE: Final = 4
"""Spaces one behind the other inside a branch."""
MEETING: Final = 0.2
"""Correlation of similarities from which two kernels are taken to meet in one space."""
_COMPARED: Final = 128
"""Channels of a space whose similarities are compared."""
_FEWEST: Final = 16
"""Channels of a space that is looked at."""
_MOST_INPUTS: Final = 16
_INPUT: Final = -1
"""The space of the network's input."""
_DEEPEST: Final = 12
"""Kernels on the way from the input to a space that is written down."""
_ROUNDS: Final = 30
_TINY: Final = 1e-30

Shape = tuple[int, int, int, int]
_End = tuple[int, int]
"""A kernel's position, with 0 for the space that it writes, 1 for that which it reads."""


class _Kernel(Struct, frozen=True):
    """A convolution from one space to another."""

    position: int
    shape: Shape
    source: int
    target: int


class _Space(Struct, frozen=True):
    """A space of channels as it is written down: ``units`` (channels, inputs, h, w) of length 1, by the ``kernels``
    on the way from the input, the last of which writes it, through the spaces ``way``."""

    units: Float64
    kernels: tuple[int, ...]
    way: frozenset[int]


class _Network:
    """The kernels of a network, balanced, and the spaces in which they meet."""

    def __init__(self, tensors: Sequence[CanonicalTensor], usable: Sequence[int]) -> None:
        self._tensors = tensors
        self._factors: dict[int, tuple[Float64, Float64]] = {}
        shapes = {i: _shape(tensors[i]) for i in usable if len(tensors[i].view.shape) in {3, 4}}
        apart = [i for i in shapes if shapes[i][1] == 1]
        if len(apart) > 1:  # of each channel alone: only one of them could read a picture
            shapes = {i: shape for i, shape in shapes.items() if shape[1] > 1}
        order = _first(sorted(shapes, key=lambda i: natural_order(tensors[i].name)), shapes)
        produced = {shapes[i][0] for i in order}
        ends: dict[int, list[_End]] = defaultdict(list)
        for i in order:
            for axis in (0, 1):
                if shapes[i][axis] >= _FEWEST:
                    ends[shapes[i][axis]].append((i, axis))
        number: dict[_End, int] = {}
        for same in ends.values():
            number |= self._meeting(same, len(number))
        self.kernels: list[_Kernel] = []
        for i in order:
            into = shapes[i][1]
            source = _INPUT if into <= _MOST_INPUTS and into not in produced else number.get((i, 1))
            target = number.get((i, 0))
            if source is not None and target is not None and source != target:
                self.kernels.append(_Kernel(i, shapes[i], source, target))

    def balanced(self, position: int) -> Float64:
        """A kernel (out, in, h, w) whose rows have equal lengths, and its columns too."""
        kernel = read_whole(self._tensors[position]).reshape(_shape(self._tensors[position]))
        if position not in self._factors:
            self._factors[position] = _factors(np.einsum("oihw,oihw->oi", kernel, kernel))
        rows, columns = self._factors[position]
        kernel *= rows[:, None, None, None]
        kernel *= columns[:, None, None]
        return kernel

    def matrix(self, position: int) -> Float64:
        """A matrix as it is."""
        return read_whole(self._tensors[position])

    def _meeting(self, ends: Sequence[_End], first: int) -> dict[_End, int]:
        """Numbers, from ``first``, of the spaces of some ends of kernels of one width."""
        number = {end: first + place for place, end in enumerate(ends)}
        likeness = np.stack([self._similarities(*end) for end in ends])
        for row, column in np.argwhere(np.triu(likeness @ likeness.T >= MEETING, 1)).tolist():
            new, old = number[ends[row]], number[ends[column]]
            if new != old and ends[row][0] != ends[column][0]:
                number = {end: new if at == old else at for end, at in number.items()}
        return number

    def _similarities(self, position: int, axis: int) -> Float64:
        """Of all pairs of a kernel's rows (0) or columns (1), centred and of length 1."""
        kernel = np.moveaxis(self.balanced(position), axis, 0)[:_COMPARED]
        rows = kernel.reshape(len(kernel), -1)
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)
        found = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
        found = found - found.mean()
        similarities: Float64 = found / max(float(np.linalg.norm(found)), _TINY)
        return similarities

    def in_order(self) -> list[_Kernel]:
        """The kernels, those of which nothing tells who writes what they read behind the last one in front of them, by
        their names, that writes as many channels and that nothing seems to read.

        Between kernels of single channels (depthwise ones) nothing tells; where names are gone, the order is no order.
        """
        read, written = _ends(self.kernels)
        unread: dict[int, list[int]] = defaultdict(list)
        found = []
        for kernel in self.kernels:
            if kernel.source not in written and kernel.source != _INPUT and unread[kernel.shape[1]]:
                found.append(replace(kernel, source=unread[kernel.shape[1]].pop()))
            else:
                found.append(kernel)
            if kernel.target not in read:
                unread[kernel.shape[0]].append(kernel.target)
        return found


_Told = tuple[_Space, "Float64", int]
"""A space, what its channels become, and the kernel or matrix that reads or writes them there."""


class _Branches:
    """A network's spaces as they are written down, and what their channels are beside that."""

    def __init__(self, network: _Network, kernels: Sequence[_Kernel]) -> None:
        """Of a network whose ``kernels`` are joined so."""
        self._network, self._all = network, kernels
        self._spaces = spaces = self._written_down(kernels)
        self._kernels = [one for one in kernels if one.source in spaces and one.target in spaces]
        self._again = [
            one
            for one in kernels
            if one.target in spaces
            and one.position not in spaces[one.target].kernels
            and (one.source not in spaces or one.source not in spaces[one.target].way)
        ]
        """Kernels that write a space which others write too, and do not read what came of it."""
        self.streams = {one.target for one in self._again}

    def told(self, matrices: Mapping[int, tuple[int, int]]) -> Iterator[_Told]:
        """All that is told of them; ``matrices`` are shapes, by position, of what may be a classifier."""
        return chain(self._inside(), self._written_again(), self._classified(matrices))

    def _inside(self) -> Iterator[_Told]:
        """Spaces inside branches, with what their channels are for the stream."""
        for number in sorted(self._spaces.keys() - self.streams):
            if (found := self._onward(number)) is not None:
                yield self._spaces[number], *found

    def _written_again(self) -> Iterator[_Told]:
        """Streams, with what a branch in front of which they do not lie writes of their channels."""
        for kernel in self._again:
            source = self._spaces.get(kernel.source)
            if source is not None and kernel.target not in source.way:
                read = _read_by(self._network.balanced(kernel.position), source.units)
                if read is not None:
                    yield self._spaces[kernel.target], read, kernel.position

    def _classified(self, matrices: Mapping[int, tuple[int, int]]) -> Iterator[_Told]:
        """Streams that one of ``matrices``, shapes by position, reads into fewer classes."""
        for number in sorted(self.streams):
            for position, (classes, channels) in matrices.items():
                if channels == len(self._spaces[number].units) > classes:
                    yield self._spaces[number], self._network.matrix(position).T, position

    def supposed(self) -> Iterator[_Told]:
        """Spaces that nothing seems to read, each with every kernel that seems to read nothing and may belong there.

        As much training again leaves little of what tells that kernels meet.
        """
        read, written = _ends(self._all)
        loose = [one for one in self._all if one.source not in written and one.source != _INPUT]
        ends = [space for number, space in self._spaces.items() if number not in read | self.streams]
        for kernel in loose:
            for number in sorted(self.streams) if kernel.target not in self._spaces else ():
                stream = self._spaces[number]
                if len(stream.units) == kernel.shape[1]:
                    units = _read_by(self._network.balanced(kernel.position), stream.units)
                    if units is not None:
                        ends.append(_Space(_unit(units), (*stream.kernels, kernel.position), stream.way | {number}))
        for space, kernel in product(ends, loose):
            target = self._spaces.get(kernel.target)
            if target is None or len(space.units) != kernel.shape[1] or kernel.position in space.kernels:
                continue
            down = _written_by(self._network.balanced(kernel.position), target.units)
            if down is not None:
                yield space, down, kernel.position

    def _written_down(self, kernels: Sequence[_Kernel]) -> dict[int, _Space]:
        """The spaces that can be reached from the input, each by the fewest kernels, the smallest of as many."""
        by_size = sorted(kernels, key=lambda one: one.shape[2] * one.shape[3])
        found: dict[int, _Space] = {}
        for _ in range(_DEEPEST):
            reached: dict[int, _Space] = {}
            for kernel in by_size:
                if kernel.target in found or kernel.target in reached:
                    continue
                if kernel.source == _INPUT:
                    units = _unit(self._network.balanced(kernel.position))
                    reached[kernel.target] = _Space(units, (kernel.position,), frozenset({_INPUT}))
                elif (source := found.get(kernel.source)) is not None:
                    composed = _read_by(self._network.balanced(kernel.position), source.units)
                    if composed is not None:
                        way = source.way | {kernel.source}
                        reached[kernel.target] = _Space(_unit(composed), (*source.kernels, kernel.position), way)
            if not reached:
                break
            found |= reached
        return found

    def _onward(self, number: int, inside: tuple[int, ...] = ()) -> tuple[Float64, int] | None:
        """What the channels of a space are for the stream, and the kernel that reads them; ``inside`` are the spaces in
        front of it that the question began with."""
        inside = (*inside, number)
        reading = [one for one in self._kernels if one.source == number]
        for kernel in reading:
            # Of no channel's own making: else any two networks would agree that have similar channels.
            if kernel in self._again and self._spaces[kernel.target].way.isdisjoint(inside):
                units = self._spaces[kernel.target].units
                written = _written_by(self._network.balanced(kernel.position), units)
                return None if written is None else (written, kernel.position)
        for kernel in reading if len(inside) < MOST_INSIDE else []:
            if kernel.target not in self.streams and (found := self._onward(kernel.target, inside)) is not None:
                written = _written_by(self._network.balanced(kernel.position), found[0])
                return None if written is None else (written, kernel.position)
        return None


def branch_samples(
    tensors: Sequence[CanonicalTensor], usable: Sequence[int], count: int, parameters: Parameters, *, suspect: bool
) -> Iterator[NeuronSample]:
    """Channels inside residual branches, and those of streams that have another writer or are read by a classifier;
    nothing for other networks. Of a suspect also what may belong together where nothing tells. Raises ``InputError``.
    """
    network = _Network(tensors, usable)
    shapes = {position: tensors[position].view.shape for position in usable}
    matrices = {position: (shape[0], shape[1]) for position, shape in shapes.items() if len(shape) == 2}
    orders = [network.in_order()]
    if suspect and network.kernels not in orders:  # there may be no order in its names
        orders.append(network.kernels)
    readings = [_Branches(network, kernels) for kernels in orders]
    if not any(reading.streams for reading in readings):
        return
    found = chain.from_iterable(reading.told(matrices) for reading in readings)
    for space, down, last in chain(found, readings[-1].supposed() if suspect else ()):
        if len(space.units) >= _FEWEST:
            yield sample_of(space.units, down, (space.kernels[-1], last), count, parameters)


def _ends(kernels: Sequence[_Kernel]) -> tuple[set[int], set[int]]:
    """The spaces that some kernels read, and those that they write."""
    return {one.source for one in kernels}, {one.target for one in kernels}


def _first(order: Sequence[int], shapes: Mapping[int, Shape]) -> list[int]:
    """As many of the kernels as are looked at."""
    together = np.cumsum([prod(shapes[i]) for i in order])
    return list(order[: min(MOST_KERNELS, int(np.searchsorted(together, MOST_NUMBERS, "right")))])


def _shape(tensor: CanonicalTensor) -> Shape:
    out, into, *window = tensor.view.shape
    high, wide = window if len(window) == 2 else (1, *window)
    return out, into, high, wide


def _factors(energy: Float64) -> tuple[Float64, Float64]:
    """By what rows and columns are multiplied so that the sums of squares ``energy`` (out, in) are equal along both."""
    rows, columns = (np.ones(size) for size in energy.shape)
    for _ in range(_ROUNDS):
        rows = 1.0 / np.maximum(energy @ columns, _TINY)
        columns = 1.0 / np.maximum(energy.T @ rows, _TINY)
    # Of what is 0 everywhere nothing is made.
    rows[~energy.any(axis=1)] = 0.0
    columns[~energy.any(axis=0)] = 0.0
    return np.sqrt(rows), np.sqrt(columns)


def _unit(rows: Float64) -> Float64:
    lengths = np.linalg.norm(rows.reshape(len(rows), -1), axis=1)
    unit: Float64 = rows / np.maximum(lengths, _TINY)[:, None, None, None]
    return unit


def _read_by(kernel: Float64, units: Float64) -> Float64 | None:
    """What a kernel (out, in, h, w) makes of units (in, ...): (out, ...); None where that is too large."""
    shape = composed_shape(kernel.shape, units.shape)
    return None if shape is None or prod(shape[1:]) > MOST_COORDINATES else compose(kernel, units)


def _written_by(kernel: Float64, units: Float64) -> Float64 | None:
    """What a kernel (out, in, h, w) makes of each channel that it reads, at each tap, where what it writes is ``units``
    (out, ...): (in, n); None where that is too large."""
    out, into, high, wide = kernel.shape
    flat = units.reshape(out, -1)
    if flat.shape[1] > MOST_COORDINATES or into * high * wide * flat.shape[1] > MOST_COMPOSED:
        return None
    written: Float64 = (kernel.transpose(1, 2, 3, 0).reshape(-1, out) @ flat).reshape(into, -1)
    return written
