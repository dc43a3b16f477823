"""Views of stored tensors: what a reader hands out, and the lazy rearrangements of it.

A view reads its elements on demand, so that a checkpoint of any size is measured in bounded memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.dtypes import DType

Array = NDArray[Any]


class TensorView(Protocol):
    """A named tensor whose elements are read on demand, in row-major order."""

    @property
    def name(self) -> str:
        """Name in the checkpoint (a label: it annotates reports and decides nothing)."""

    @property
    def dtype(self) -> DType:
        """Element type as stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes; ``()`` for a scalar."""

    def read(self, start: int, stop: int) -> Array:
        """Elements ``start`` to ``stop`` of the row-major flattening.

        Returns a 1-D array of ``dtype.numpy`` with ``stop - start`` elements; it may be a read-only window on a
        memory map and must not be written to. Raises ``InputError`` if the bytes cannot be had.
        """


def element_count(shape: tuple[int, ...]) -> int:
    """Number of elements of a tensor of that shape (1 for a scalar)."""
    return math.prod(shape)


def read_rows(view: TensorView, start: int, stop: int) -> Array:
    """Rows ``start`` to ``stop`` along the first axis, flattened to 2-D: ``(stop - start, product of the rest)``."""
    width = math.prod(view.shape[1:])
    return view.read(start * width, stop * width).reshape(stop - start, width)


class LikeSource(Struct, frozen=True):
    """Base of views that change the elements or their order; the rest is as in ``source``, unless a view says so."""

    source: TensorView

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    @property
    def dtype(self) -> DType:
        """Element type of the source."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the source."""
        return self.source.shape


class RowSlice(Struct, frozen=True):
    """Rows ``start`` to ``stop`` of the first axis of ``source``, as a tensor of its own: a part of a fused block."""

    source: TensorView
    name: str
    start: int
    stop: int

    @property
    def dtype(self) -> DType:
        """Element type of the source."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return (self.stop - self.start, *self.source.shape[1:])

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        base = self.start * math.prod(self.source.shape[1:])
        return self.source.read(base + start, base + stop)


class Reshaped(Struct, frozen=True):
    """The same elements in the same row-major order under another shape."""

    source: TensorView
    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if element_count(self.shape) != element_count(self.source.shape):
            raise ValueError(f"cannot reshape {self.source.shape} to {self.shape}")

    @property
    def dtype(self) -> DType:
        """Element type of the source."""
        return self.source.dtype

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        return self.source.read(start, stop)


class Chained(Struct, frozen=True):
    """The elements of ``parts``, of one type, one after the other in row-major order: an array stored in pieces."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[TensorView, ...]

    @property
    def dtype(self) -> DType:
        """Element type of the parts."""
        return self.parts[0].dtype

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        if not 0 <= start <= stop <= element_count(self.shape):
            raise IndexError(f"elements {start} to {stop} of a tensor of {element_count(self.shape)}")
        pieces: list[Array] = []
        position = 0
        for part in self.parts:
            length = element_count(part.shape)
            low, high = max(start - position, 0), min(stop - position, length)
            if low < high:
                pieces.append(part.read(low, high))
            position += length
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self.parts[0].read(0, 0)


def renamed(view: TensorView, name: str) -> TensorView:
    """The same tensor under another name."""
    return Reshaped(view, name, view.shape)


class RowGather(Struct, frozen=True):
    """Runs of rows of ``source`` joined in the given order: a part of a block whose heads are interleaved.

    ``runs`` holds pairs ``(start, stop)`` of row numbers along the first axis.
    """

    source: TensorView
    name: str
    runs: tuple[tuple[int, int], ...]

    @property
    def dtype(self) -> DType:
        """Element type of the source."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the joined part."""
        return (sum(stop - start for start, stop in self.runs), *self.source.shape[1:])

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        width = math.prod(self.source.shape[1:])
        pieces: list[Array] = []
        position = 0
        for first, last in self.runs:
            length = (last - first) * width
            low, high = max(start - position, 0), min(stop - position, length)
            if low < high:
                pieces.append(self.source.read(first * width + low, first * width + high))
            position += length
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self.source.read(0, 0)


class Transposed(Struct, frozen=True):
    """The transpose of a 2-D ``source``: ``(in, out)`` layouts turned into ``(out, in)``.

    Reads whole strips of the source's columns in pieces of bounded size; the caller asks for row-aligned ranges large
    enough to make that worth while.
    """

    source: TensorView
    name: str
    piece: int = 1 << 20

    def __post_init__(self) -> None:
        if len(self.source.shape) != 2:
            raise ValueError(f"only a matrix can be transposed, not {self.source.shape}")

    @property
    def dtype(self) -> DType:
        """Element type of the source."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape after transposition."""
        rows, columns = self.source.shape
        return (columns, rows)

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        source_rows = self.source.shape[0]
        if stop <= start:
            return self.source.read(0, 0)
        first, last = start // source_rows, -(-stop // source_rows)
        # A piece of one long row is a piece of one column: the rest of the source is not touched.
        top, bottom = (start % source_rows, stop - first * source_rows) if last == first + 1 else (0, source_rows)
        strip = np.concatenate(list(self._strips(top, bottom, first, last)))
        flat = np.ascontiguousarray(strip.T).reshape(-1)
        offset = first * source_rows + top
        return flat[start - offset : stop - offset]

    def _strips(self, top: int, bottom: int, first: int, last: int) -> Iterator[Array]:
        """Columns ``first`` to ``last`` of rows ``top`` to ``bottom`` of the source, in pieces."""
        columns = self.source.shape[1]
        if columns > self.piece:
            for row in range(top, bottom):
                yield self.source.read(row * columns + first, row * columns + last).reshape(1, -1)
            return
        step = max(1, self.piece // columns)
        for row in range(top, bottom, step):
            yield read_rows(self.source, row, min(row + step, bottom))[:, first:last]
