"""What a signature holds of one matrix, as linear equations: ``leftᵀ W right = values`` for known directions.

A stranger can compute the directions of the tensor sketch, of sampled rows and columns, of neurons in the fixed frame
and of a first convolution. Whoever has embeddings and norm gains can compute the other frames of the residual stream.
Attention channels and units of convolutions are kept as unit rows: their lengths are guessed from the deviation of the
matrix, which the signature tells, and the guess counts as noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fingerprint.measure import matrix_shape
from fingerprint.signs import Stream, sign_matrix
from fingerprint.vocabulary import ChannelKind, Depth, Frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fingerprint.records import ChannelSample, Fingerprint, NeuronSample

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_SKETCHED = 1e-3
"""Noise of sketches and slices over their size: half floats, and the cutting of the largest entries."""
_ROUNDED = 6e-3
"""Noise of neurons and channels over their size: 8-bit integers."""
LENGTHS = 0.15
"""Spread of the lengths of rows around the one that is guessed from the deviation of the matrix."""


@dataclass(frozen=True, slots=True)
class Section:
    """Equations about a matrix W: ``left`` (rows, a), ``right`` (columns, b), ``values`` (a, b) and their noise.

    ``unit`` is the axis of ``values`` along which only directions are known and lengths were guessed: 1 if its rows
    are, 0 if its columns are, -1 if all is known. ``frame`` is that of neurons and channels.
    """

    kind: str
    left: Float64
    right: Float64
    values: Float64
    noise: float
    unit: int = -1
    frame: str = ""

    @property
    def numbers(self) -> int:
        """How many equations there are."""
        return self.values.size


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody who has a signature; ``frames`` (width, w) are directions of the residual stream that they know beside
    the fixed ones, by name, and ``gains`` (width,) what the columns of a matrix are multiplied by, by its position."""

    fingerprint: Fingerprint
    frames: Mapping[str, Float64] = field(default_factory=dict)
    gains: Mapping[int, Float64] = field(default_factory=dict)

    def knows(self, frame: str) -> bool:
        """Whether the directions of a frame can be computed."""
        return frame == Frame.FIXED or frame in self.frames

    def directions(self, frame: str, position: int, width: int, *, reads: bool) -> Float64:
        """Directions (width, w) of a frame for slices of the matrix at ``position``; ``reads``: from the stream."""
        if frame == Frame.FIXED:
            # Samples in the fixed frame are of slices less their own means.
            size = self.fingerprint.parameters.frame_width
            return _centred_signs(self.fingerprint.parameters.seed, Stream.FRAME, width, size) / math.sqrt(size)
        found = self.frames[frame]
        return found * self.gains[position][:, None] if reads and position in self.gains else found

    def stretch(self, frame: str, along: Float64, *, reads: bool) -> float:
        """How long a slice with entries of deviation 1 is in a frame: as neurons are that are in the fixed one too."""
        fixed = {one.tensors: one for one in self.fingerprint.neurons if one.frame == Frame.FIXED}
        ratios = []
        for one in self.fingerprint.neurons:
            other = fixed.get(one.tensors)
            if one.frame == frame and other is not None:
                _, here, there = np.intersect1d(one.indices, other.indices, return_indices=True)
                rows, known = (one.gate, other.gate) if reads else (one.down, other.down)
                lengths = np.linalg.norm(known[there], axis=1)
                ratios.append(np.linalg.norm(rows[here], axis=1) / np.maximum(lengths, 1e-30))
        ratio = float(np.median(np.concatenate(ratios))) if ratios else 0.0
        return ratio * math.sqrt(len(along)) if ratio > 0 else float(np.linalg.norm(along))


def sections_of(reader: Reader, position: int) -> list[Section]:
    """All equations about the matrix at ``position`` that are exact but for rounding and guessed lengths."""
    found = [*_sketches(reader, position), *_slices(reader, position)]
    found += [one for sample in reader.fingerprint.neurons for one in _neurons(reader, sample, position)]
    found += [one for sample in reader.fingerprint.channels for one in _channels(reader, sample, position)]
    return found


def numbers_held(fingerprint: Fingerprint, position: int) -> int:
    """How many numbers a signature holds of the matrix at ``position``, in all frames."""
    record = fingerprint.tensors[position]
    found = sum(sample.values.size for sample in record.axes) + (0 if record.sketch is None else record.sketch.size)
    for sample in fingerprint.neurons:
        for place, part in zip(sample.tensors, (sample.gate, sample.up, sample.down), strict=True):
            found += part.size if place == position and part is not None else 0
    for one in fingerprint.channels:
        found += one.parts.size // 2 if position in one.tensors else 0
    return found


def section(
    kind: str, left: Float64, right: Float64, values: NDArray[np.floating], noise: float, **more: Any
) -> Section:
    """Equations whose noise is given as a share of the values' own size."""
    size = float(np.sqrt(np.mean(values**2))) if values.size else 0.0
    return Section(kind, left, right, values.astype(np.float64), noise * size, **more)


def chosen(indices: Int64, size: int, *, centred: bool = False) -> Float64:
    """Columns (size, m) that take slices out of an axis; ``centred``: less the mean of all slices."""
    found = np.zeros((size, indices.size))
    found[indices, np.arange(indices.size)] = 1.0
    return found - 1.0 / size if centred else found


def of_heads(channels: Int64, head: int, shared: int, size: int) -> Float64:
    """Columns (size, m) that add up the channels of all heads of a group, of ``shared`` channels of key/value heads."""
    found = np.zeros((size, channels.size))
    group = size // shared
    for member in range(group):
        found[(channels // head * group + member) * head + channels % head, np.arange(channels.size)] = 1.0
    return found


def _centred_signs(seed: int, stream: Stream, size: int, width: int) -> Float64:
    signs = sign_matrix(seed, stream, size, width).astype(np.float64)
    found: Float64 = signs - signs.mean(axis=0)
    return found


def _sketches(reader: Reader, position: int) -> Iterator[Section]:
    record, seed = reader.fingerprint.tensors[position], reader.fingerprint.parameters.seed
    if record.sketch is not None:
        k = record.sketch.shape[0]
        left, right = (_centred_signs(seed, Stream.SKETCH, size, k) for size in matrix_shape(record.shape))
        yield section("sketch", left, right, record.sketch.astype(np.float64) * k, _SKETCHED)


def _slices(reader: Reader, position: int) -> Iterator[Section]:
    record, seed = reader.fingerprint.tensors[position], reader.fingerprint.parameters.seed
    shape = matrix_shape(record.shape)
    for sample in record.axes:
        width = sample.values.shape[1]
        signs = _centred_signs(seed, Stream.SLICE, shape[1 - sample.dimension], width) / math.sqrt(width)
        across = chosen(sample.indices, sample.size, centred=reader.fingerprint.depth != Depth.QUICK)
        values = sample.values.astype(np.float64)
        if sample.dimension == 0:
            yield section("slices", across, signs, values, _SKETCHED)
        else:
            yield section("slices", signs, across, values.T, _SKETCHED)


def _neurons(reader: Reader, sample: NeuronSample, position: int) -> Iterator[Section]:
    if sample.frame == Frame.UNITS:
        yield from _units(reader, sample, position)
    if position not in sample.tensors or not reader.knows(sample.frame) or len(set(sample.tensors)) < 2:
        return
    part = sample.tensors.index(position)
    values = (sample.gate, sample.up, sample.down)[part]
    if values is None:
        return
    rows, columns = matrix_shape(reader.fingerprint.tensors[position].shape)
    writes = part == 2
    # Gates in a frame of the model's own are less what all of them have in common.
    across = chosen(sample.indices, sample.size, centred=part == 0 and sample.frame != Frame.FIXED)
    along = reader.directions(sample.frame, position, rows if writes else columns, reads=not writes)
    if writes:
        yield section("neurons", along, across, values.T, _ROUNDED, frame=sample.frame)
    else:
        yield section("neurons", across, along, values, _ROUNDED, frame=sample.frame)


def _units(reader: Reader, sample: NeuronSample, position: int) -> Iterator[Section]:
    """Of a network's first convolution, the units of which are rows of its kernel and of no product of kernels."""
    record = reader.fingerprint.tensors[position]
    rows, columns = matrix_shape(record.shape)
    if position != sample.tensors[0] or len(record.shape) < 3 or record.shape[1] in _outputs(reader.fingerprint):
        return
    parameters = reader.fingerprint.parameters
    signs = sign_matrix(parameters.seed, Stream.FRAME, columns, parameters.frame_width).astype(np.float64)
    length = record.statistics.deviation * math.sqrt(columns)
    if length > 0:
        across = chosen(sample.indices, rows, centred=True)
        yield section("neurons", across, signs / math.sqrt(signs.shape[1]), sample.gate * length, _ROUNDED, unit=1)


def _outputs(fingerprint: Fingerprint) -> set[int]:
    return {record.shape[0] for record in fingerprint.tensors if len(record.shape) >= 3}


def channel_parts(reader: Reader, sample: ChannelSample, position: int) -> Iterator[tuple[Float64, Float64, bool]]:
    """Of a sample, the parts that are about the matrix at ``position``: the (m, w) rows with lengths as one of its
    entries has deviation 1 and directions have length 1; what takes the channels out of it; whether it reads."""
    shape = matrix_shape(reader.fingerprint.tensors[position].shape)
    narrow = position == sample.tensors[0]
    if position not in sample.tensors:
        return
    writes = not narrow and sample.kind is ChannelKind.VALUE_OUTPUT
    size = shape[1] if writes else shape[0]
    if sample.kind is not ChannelKind.ROTARY:
        places, parts, shared, head = [sample.indices], [sample.parts[0 if narrow else 1]], sample.size, sample.head
    else:
        real = sample.indices // sample.head * 2 * sample.head + sample.indices % sample.head
        places, shared, head = [real, real + sample.head], 2 * sample.size, 2 * sample.head
        parts = [sample.parts[i] for i in ((0, 1) if narrow else (2, 3))]
    if size % shared:
        return
    for channels, rows in zip(places, parts, strict=True):
        length = math.sqrt(size // shared * len(parts))
        yield rows.astype(np.float64) * length, of_heads(channels, head, shared, size), not writes


def _channels(reader: Reader, sample: ChannelSample, position: int) -> Iterator[Section]:
    if not reader.knows(sample.frame):
        return
    record = reader.fingerprint.tensors[position]
    shape = matrix_shape(record.shape)
    for rows, across, reads in channel_parts(reader, sample, position):
        along = reader.directions(sample.frame, position, shape[1] if reads else shape[0], reads=reads)
        values = rows * record.statistics.deviation * reader.stretch(sample.frame, along, reads=reads)
        if reads:
            yield section("channels", across, along, values, _ROUNDED, unit=1, frame=sample.frame)
        else:
            yield section("channels", along, across, values.T, _ROUNDED, unit=0, frame=sample.frame)
