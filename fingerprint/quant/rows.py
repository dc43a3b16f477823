"""What the views of quantised matrices share: reading row by row, and taking narrow numbers out of words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from fingerprint.dtypes import F32, DType, Kind, to_float32
from fingerprint.errors import MalformedFileError
from fingerprint.tensors import LikeSource

if TYPE_CHECKING:
    from fingerprint.tensors import Array, TensorView

PIECE = 1 << 18
"""Elements dequantised at a time."""
MAX_ROW = 1 << 22
"""Most elements of a row: rows are dequantised whole."""


class RowsView(Struct, frozen=True):
    """A tensor whose rows (along the last axis, leading axes flattened) are dequantised on demand.

    ``storage`` names the layout in reports. Layouts implement ``rows``.
    """

    name: str
    storage: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> DType:
        """float32, under the name of the storage."""
        return DType(self.storage, 32, Kind.FLOAT, np.dtype("<f4"))

    def rows(self, first: int, last: int) -> Array:
        """Rows ``first`` to ``last``: (last - first, columns) float32. Raises ``InputError``."""
        raise NotImplementedError

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        total, width = math.prod(self.shape), self.shape[-1] if self.shape else 1
        if not 0 <= start <= stop <= total:
            raise IndexError(f"elements {start} to {stop} of a tensor of {total}")
        if start == stop:
            return np.empty(0, np.float32)
        first, last = start // width, -(-stop // width)
        step = max(1, PIECE // width)
        # A hostile scale overflows, or is no number at all.
        with np.errstate(all="ignore"):
            pieces = [self.rows(at, min(at + step, last)) for at in range(first, last, step)]
        flat = (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).reshape(-1)
        return flat[start - first * width : stop - first * width].astype(np.float32, copy=False)


def matrix(view: TensorView, first: int, last: int) -> Array:
    """Rows ``first`` to ``last`` of a stored tensor, leading axes flattened: (last - first, columns)."""
    width = view.shape[-1]
    return view.read(first * width, last * width).reshape(last - first, width)


def words(array: Array) -> Array:
    """Integers as unsigned ones of the same width."""
    return array.view(f"u{array.dtype.itemsize}")


def unpacked(packed: Array, bits: int, count: int) -> Array:
    """``count`` numbers of ``bits`` bits out of each row of ``packed`` words, the first in the lowest bits.

    Numbers may straddle words, as those of 3 bits do. Returns uint8 (``bits`` is at most 8): (rows, count).
    """
    if bits == 8:
        return octets(packed)[:, :count]
    if 8 % bits == 0:
        held = octets(packed)
        parts = np.empty((*held.shape, 8 // bits), np.uint8)
        for number in range(8 // bits):
            np.right_shift(held, np.uint8(number * bits), out=parts[:, :, number])
        np.bitwise_and(parts, np.uint8((1 << bits) - 1), out=parts)
        return parts.reshape(len(packed), -1)[:, :count]
    width = packed.dtype.itemsize * 8
    at = np.arange(count) * bits
    place, offset = at // width, (at % width).astype(np.uint64)
    wide = np.pad(packed.astype(np.uint64), ((0, 0), (0, 1)))
    pair = wide[:, place] | (wide[:, place + 1] << np.uint64(width))
    numbers: Array = ((pair >> offset) & np.uint64((1 << bits) - 1)).astype(np.uint8)
    return numbers


def octets(packed: Array) -> Array:
    """The bytes of each row of words, the lowest byte of a word first."""
    return np.ascontiguousarray(packed).astype(packed.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def times(values: Array, scales: Array) -> Array:
    """(rows, columns) times (rows, groups): each group of neighbouring columns has one scale."""
    rows, groups = scales.shape
    product: Array = (values.reshape(rows, groups, -1) * scales[:, :, None]).reshape(rows, -1)
    return product


def spread(values: Array, block: int, size: int) -> Array:
    """Each column repeated ``block`` times, cut to ``size`` columns; as it is where one column stands for all."""
    repeated: Array = values if values.shape[1] == 1 else np.repeat(values, block, axis=1)[:, :size]
    return repeated


class Exponents(LikeSource, frozen=True):
    """E8M0 scales that are stored as bytes, as the powers of two that they stand for."""

    @property
    def dtype(self) -> DType:
        """float32."""
        return F32

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        return powers_of_two(self.source.read(start, stop))


def group_indices(stored: TensorView, first: int, last: int, count: int) -> Array:
    """The groups of the inputs ``first`` to ``last``. Raises ``MalformedFileError`` if there are fewer groups."""
    groups = stored.read(first, last)
    if groups.size and (int(groups.min()) < 0 or int(groups.max()) >= count):
        raise MalformedFileError("the index of groups names one that there is not", tensor=stored.name)
    return groups


def floats(array: Array) -> Array:
    """Stored scales as float32."""
    return to_float32(array)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of the 16 codes of a 4-bit float (OCP MX, E2M1)."""


def powers_of_two(codes: Array) -> Array:
    """E8M0 scales, as bytes or as that type, in float32; 255 is NaN."""
    if codes.dtype != np.uint8:
        return to_float32(codes)
    values = np.ldexp(np.float32(1), codes.astype(np.int32) - 127).astype(np.float32)
    values[codes == 255] = np.nan
    return values
