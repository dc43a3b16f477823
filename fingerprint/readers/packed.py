"""Views that rearrange what a container stores: integers of less than a byte, other orders of axes, cropped rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from fingerprint.dtypes import DType
    from fingerprint.tensors import Array, TensorView

_PIECE = 1 << 20


def taken(source: TensorView, places: Array) -> Array:
    """The elements of ``source`` at the flat ``places`` (1-D, int64, one at least), read in pieces of bounded size."""
    low, high = int(places.min()), int(places.max()) + 1
    if high - low <= _PIECE:
        return source.read(low, high).take(places - low)
    values = np.empty(places.size, source.dtype.numpy)
    pieces = places // _PIECE
    for piece in np.unique(pieces):
        inside = pieces == piece
        wanted = places[inside]
        first = int(wanted.min())
        values[inside] = source.read(first, int(wanted.max()) + 1)[wanted - first]
    return values


class Packed(Struct, frozen=True):
    """Elements of ``bits`` (2 or 4) bits, the first in the lowest bits of a byte; ``dtype`` is that of the elements.

    ``octets`` (1-D, U8) may end in padding. Integers of a signed ``dtype`` are in two's complement; codes of a float
    type of four bits are reinterpreted.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    bits: int
    octets: TensorView

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        each = 8 // self.bits
        first = start // each
        octets = self.octets.read(first, -(-stop // each))
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        codes = ((octets[:, None] >> shifts) & np.uint8((1 << self.bits) - 1)).reshape(-1)
        codes = codes[start - first * each : stop - first * each]
        if self.dtype.numpy.kind == "i":
            sign = np.int8(1 << (self.bits - 1))
            return np.asarray((codes.view(np.int8) ^ sign) - sign)
        return np.asarray(codes if self.dtype.numpy.kind == "u" else codes.view(self.dtype.numpy))


class Permuted(Struct, frozen=True):
    """``source`` with its axes in another order: axis ``k`` of the view is axis ``order[k]`` of the source."""

    source: TensorView
    name: str
    order: tuple[int, ...]

    @property
    def dtype(self) -> DType:
        """Element type of the source."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the new order."""
        return tuple(self.source.shape[axis] for axis in self.order)

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``; may go over all of the source."""
        if stop <= start:
            return self.source.read(0, 0)
        return taken(self.source, self._places(start, stop))

    def _places(self, start: int, stop: int) -> Array:
        """Where the elements are in the source."""
        strides = [1] * len(self.order)
        for axis in range(len(self.order) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * self.source.shape[axis + 1]
        flat = np.arange(start, stop, dtype=np.int64)
        places = np.zeros_like(flat)
        for axis in reversed(self.order):
            flat, index = np.divmod(flat, self.source.shape[axis])
            places += index * strides[axis]
        return places


class Cropped(Struct, frozen=True):
    """The first ``columns`` columns of a matrix whose rows are padded."""

    source: TensorView
    name: str
    columns: int

    @property
    def dtype(self) -> DType:
        """Element type of the source."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the padding."""
        return (self.source.shape[0], self.columns)

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        width = self.source.shape[1]
        first, last = start // self.columns, -(-stop // self.columns)
        rows = self.source.read(first * width, last * width).reshape(-1, width)[:, : self.columns]
        return rows.reshape(-1)[start - first * self.columns : stop - first * self.columns]


class Repeated(Struct, frozen=True):
    """A tensor whose elements are all ``value``: a parameter that a format leaves out."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    value: int

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        if not 0 <= start <= stop <= math.prod(self.shape):
            raise IndexError(f"elements {start} to {stop} of {self.shape}")
        return np.full(stop - start, self.value, self.dtype.numpy)
