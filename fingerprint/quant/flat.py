"""Layouts that forget the shape: bitsandbytes' 4-bit blocks over the flattened weight, and HQQ's regrouped one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from fingerprint.dtypes import DType, Kind
from fingerprint.quant.rows import PIECE, floats

if TYPE_CHECKING:
    from fingerprint.tensors import Array, TensorView


class FlatView(Struct, frozen=True):
    """A tensor whose elements are dequantised by range; layouts implement ``values``."""

    name: str
    storage: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> DType:
        """float32, under the name of the storage."""
        return DType(self.storage, 32, Kind.FLOAT, np.dtype("<f4"))

    def values(self, start: int, stop: int) -> Array:
        """Elements ``start`` to ``stop``, float32. Raises ``InputError``."""
        raise NotImplementedError

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        total = math.prod(self.shape)
        if not 0 <= start <= stop <= total:
            raise IndexError(f"elements {start} to {stop} of a tensor of {total}")
        with np.errstate(all="ignore"):
            pieces = [self.values(at, min(at + PIECE, stop)) for at in range(start, stop, PIECE)]
        if not pieces:
            return np.empty(0, np.float32)
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).astype(np.float32, copy=False)


class Nested(Struct, frozen=True):
    """Scales of blocks that are themselves 8-bit codes: ``codes`` looked up in ``table``, times ``scales`` of blocks of
    ``block`` of them, plus ``offset``."""

    table: TensorView
    scales: TensorView
    block: int
    offset: float


class Bnb4(FlatView, frozen=True):
    """bitsandbytes' NF4 and FP4: two codes in a byte, the first in the high bits, looked up in ``table`` (16).

    ``absmax`` has a scale for each ``block`` elements of the flattened weight; ``nested`` where it is coded itself.
    """

    codes: TensorView
    table: TensorView
    absmax: TensorView
    block: int
    nested: Nested | None

    def values(self, start: int, stop: int) -> Array:
        """See ``FlatView.values``."""
        raw = self._octets(start // 2, -(-stop // 2))
        codes = np.empty((raw.size, 2), np.uint8)
        np.right_shift(raw, 4, out=codes[:, 0])
        np.bitwise_and(raw, 15, out=codes[:, 1])
        flat = codes.reshape(-1)[start % 2 : start % 2 + stop - start]
        first, last = start // self.block, -(-stop // self.block)
        # A block may be claimed to be far longer than the weight.
        scales = np.repeat(self._scales(first, last), min(self.block, stop))
        scales = scales[start - first * self.block :][: stop - start]
        values: Array = floats(self.table.read(0, 16)).take(flat) * scales
        return values

    def _octets(self, first: int, last: int) -> Array:
        """Bytes of the codes, which may be stored as numbers of another type (``quant_storage``)."""
        width = self.codes.dtype.bits // 8
        raw = self.codes.read(first // width, -(-last // width)).view(np.uint8)
        return raw[first % width : first % width + last - first]

    def _scales(self, first: int, last: int) -> Array:
        stored = self.absmax.read(first, last)
        if self.nested is None:
            return floats(stored)
        inner = self.nested
        low, high = first // inner.block, -(-last // inner.block)
        scales = floats(inner.scales.read(low, high))[np.arange(first, last) // inner.block - low]
        return floats(inner.table.read(0, 256))[stored] * scales + np.float32(inner.offset)


class Hqq(FlatView, frozen=True):
    """HQQ: the flattened weight cut into ``rows`` rows of ``columns``, packed in ``8 / bits`` strips of rows.

    The first strip is in the highest bits. ``scale`` and ``zero`` belong to rows (``by_rows``) or to columns.
    """

    bits: int
    packed: TensorView
    scale: TensorView
    zero: TensorView
    rows: int
    columns: int
    by_rows: bool

    def values(self, start: int, stop: int) -> Array:
        """See ``FlatView.values``."""
        strips = 8 // self.bits
        height = self.rows // strips
        found = np.empty(stop - start, np.uint8)
        for number in range(strips):
            low, high = number * height * self.columns, (number + 1) * height * self.columns
            first, last = max(start, low), min(stop, high)
            if first < last:
                shift = np.uint8(8 - self.bits * (number + 1))
                part = self.packed.read(first - low, last - low) >> shift
                found[first - start : last - start] = part & np.uint8((1 << self.bits) - 1)
        scale, zero = (self._spread(view, start, stop) for view in (self.scale, self.zero))
        return (found.astype(np.float32) - zero) * scale

    def _spread(self, view: TensorView, start: int, stop: int) -> Array:
        """The scale or zero point of each element."""
        if self.by_rows:
            low, high = start // self.columns, -(-stop // self.columns)
            if self.columns > stop:
                return floats(view.read(low, high))
            return np.repeat(floats(view.read(low, high)), self.columns)[start - low * self.columns :][: stop - start]
        places = np.arange(start, stop) % self.columns
        low, high = int(places.min()), int(places.max()) + 1
        return floats(view.read(low, high)).take(places - low)
