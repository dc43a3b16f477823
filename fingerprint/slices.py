"""The sampled slices of a matrix that every depth reads: which they are, what they are cut to, and their digests.

A quick look reads whole rows as they are stored, and nothing else of a large matrix. They are the first ones, by the
smallest random words, of those that a full look sketches; so what both know of a matrix can be compared.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.blocks import without_nonfinite
from fingerprint.digest import TensorDigester
from fingerprint.dtypes import to_float32
from fingerprint.signs import Stream, among, bits, sample_indices
from fingerprint.tensors import RowGather, RowSlice, Transposed
from fingerprint.vectors import median

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fingerprint.blocks import Slices
    from fingerprint.parameters import Parameters
    from fingerprint.tensors import TensorView

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

QUICK_SLICES: Final = 24
"""Slices of each matrix that a quick look reads: 24 in place by chance are a matter of 10**-23."""
DIGESTED_SLICES: Final = 8
"""How many of them have their values hashed, and make the vector by which a quick look is retrieved."""
MOST_DIGESTED: Final = 1 << 18
"""Longest slice whose values are hashed."""
_LEAST_DIGESTED: Final = 64
"""Elements other than zero below which equal slices say nothing."""
_CEILING_MEDIANS: Final = 6.0
"""Four standard deviations of a Gaussian: one element in 16,000 lies beyond."""
_CEILING_RUN: Final = 256


def quick_indices(size: int, parameters: Parameters) -> Int64:
    """Numbers of the slices of an axis of ``size`` that a quick look reads: (m,), ascending."""
    return sample_indices(parameters.seed, Stream.AXIS_SAMPLE, size, min(QUICK_SLICES, parameters.axis_samples))


def digested_indices(size: int, parameters: Parameters) -> Int64:
    """Numbers of the slices of an axis of ``size`` whose values are hashed: (m,), ascending."""
    return sample_indices(parameters.seed, Stream.AXIS_SAMPLE, size, min(DIGESTED_SLICES, parameters.axis_samples))


def places_within(wanted: Int64, indices: Int64) -> Int64:
    """Where those of ``wanted`` that are among ``indices`` (both ascending) stand there."""
    places = np.searchsorted(indices, wanted)
    there = places < indices.size
    there[there] = indices[places[there]] == wanted[there]
    found: Int64 = places[there]
    return found


class StoredSlices(Struct, frozen=True):
    """Those slices of a canonical matrix that lie together in the file.

    ``size`` slices of ``length`` elements along ``dimension``: rows (0), or columns (1) where the matrix is stored the
    other way round, even as a part of a block whose parts are fused. Slice i is row i of ``source``, of it the elements
    from first to last of each of ``pieces``.
    """

    source: TensorView
    dimension: int
    pieces: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, view: TensorView) -> Self:
        """The stored slices of a matrix."""
        if isinstance(view, Transposed):
            return cls(view.source, 1, ((0, view.source.shape[1]),))
        if isinstance(view, RowSlice) and isinstance(view.source, Transposed):
            return cls(view.source.source, 1, ((view.start, view.stop),))
        if isinstance(view, RowGather) and isinstance(view.source, Transposed):
            return cls(view.source.source, 1, view.runs)
        return cls(view, 0, ((0, math.prod(view.shape[1:])),))

    @property
    def is_whole(self) -> bool:
        """Whether the slices are whole rows of the source."""
        return self.length == math.prod(self.source.shape[1:])

    @property
    def size(self) -> int:
        """Number of slices."""
        return self.source.shape[0]

    @property
    def length(self) -> int:
        """Elements of each."""
        return sum(last - first for first, last in self.pieces)

    def read(self, index: int) -> Array:
        """The elements of one slice, of the stored type; raises ``InputError``."""
        start = index * math.prod(self.source.shape[1:])
        parts = [self.source.read(start + first, start + last) for first, last in self.pieces]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def ceiling(runs: Iterator[Array]) -> float:
    """The magnitude to which elements are cut for the sketches: a multiple of the median of some that are not zero.

    A few huge entries or dead neurons, which cost a network nothing, would otherwise be all that a sketch sees.
    """
    magnitudes = np.abs(clean(np.concatenate([run.reshape(-1) for run in runs])))
    present = magnitudes[magnitudes > 0]
    if not present.size:
        return math.inf
    return _CEILING_MEDIANS * median(present)


@lru_cache(maxsize=256)
def ceiling_runs(rows: int, columns: int, parameters: Parameters) -> tuple[tuple[int, int, int], ...]:
    """What ``ceiling`` looks at of a matrix as it is stored: (row, first and last column) of a run of each row read."""
    length = min(columns, _CEILING_RUN)
    chosen = quick_indices(rows, parameters)
    places = bits(parameters.seed, Stream.PROBE, 0, chosen.size) % np.uint64(columns - length + 1)
    return tuple((row, first, first + length) for row, first in zip(chosen.tolist(), places.tolist(), strict=True))


def within(block: Float32, limit: float) -> Float32:
    """``block`` cut to magnitudes up to ``limit``."""
    if not math.isfinite(limit):
        return block
    most = np.float32(limit)
    return np.clip(block, -most, most)


def clean(native: Array) -> Float32:
    """As float32, with 0 for what is not finite."""
    return without_nonfinite(np.ascontiguousarray(to_float32(native)))


class SliceCollector:
    """Keeps the first slices along both axes of a matrix, as they are stored, from blocks in any order."""

    def __init__(self, rows: int, columns: int, parameters: Parameters) -> None:
        self._parameters = parameters
        self._sizes = (rows, columns)
        self._indices = (digested_indices(rows, parameters), digested_indices(columns, parameters))
        self._numbers = (self._indices[0].tolist(), self._indices[1].tolist())
        self._kept: list[Array | None] = [None, None]

    def add(self, start: int, first: int, block: Array, slices: Slices) -> None:
        """Keep what is wanted of rows ``start`` onwards, columns ``first`` onwards of the stored type."""
        stop, last = start + len(block), first + block.shape[1]
        low, high = among(self._numbers[0], start, stop)
        if low < high and (kept := self._of(0, block)) is not None:
            kept[low:high, first:last] = slices.rows(self._indices[0][low:high] - start)
        left, right = among(self._numbers[1], first, last)
        if left < right and (kept := self._of(1, block)) is not None:
            kept[left:right, start:stop] = slices.columns(self._indices[1][left:right] - first)

    def _of(self, dimension: int, block: Array) -> Array | None:
        length = self._sizes[1 - dimension]
        if self._kept[dimension] is None and length <= MOST_DIGESTED:
            self._kept[dimension] = np.zeros((self._indices[dimension].size, length), block.dtype)
        return self._kept[dimension]

    def slices(self, dimension: int) -> Array | None:
        """The first rows (0) or columns (1), a row of the array each; None if they are too long."""
        return self._kept[dimension]


def slice_digests(
    slices: Array | None, casts: Mapping[str, Callable[[Array], Array]], block: int
) -> tuple[bytes, dict[str, bytes]]:
    """The content digest of ``slices`` (m, n) one after the other, and those after rounding by each of ``casts``.

    Empty for slices that say nothing: nearly all zeros, or all equal.
    """
    if slices is None or slices.size == 0:
        return b"", {}
    flat = slices.reshape(-1)
    if np.count_nonzero(flat) < _LEAST_DIGESTED or (slices == slices[:, :1]).all():
        return b"", {}
    return _digest(flat, block), {name: _digest(rounded(flat), block) for name, rounded in casts.items()}


def _digest(flat: Array, block: int) -> bytes:
    digester = TensorDigester(block)
    digester.update(flat)
    return digester.digest()
