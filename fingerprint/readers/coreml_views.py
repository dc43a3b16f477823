"""Compressed constants of Core ML: numbers of one to eight bits, palettes, and sparse arrays, read by range.

Formats: the ``constexpr`` operations of MIL (coremltools/converters/mil/mil/ops/defs/iOS16 and iOS18).
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct, field

from fingerprint.errors import MalformedFileError
from fingerprint.readers.packed import taken

if TYPE_CHECKING:
    from fingerprint.dtypes import DType
    from fingerprint.tensors import Array, TensorView

_STEP = 1 << 16
"""Elements of a sparse array between two places whose number of values is kept."""


class Bits(Struct, frozen=True):
    """Whole numbers of ``bits`` bits in ``octets`` (1-D, U8), without gaps.

    The first bit is the lowest of a byte, or the highest where ``high_first``. Those of a signed ``dtype`` are in two's
    complement.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    bits: int
    octets: TensorView
    high_first: bool = False

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        if not 0 <= start <= stop <= math.prod(self.shape):
            raise IndexError(f"elements {start} to {stop} of {self.shape}")
        first = start - start % 8  # eight numbers are whole bytes
        raw = self.octets.read(first * self.bits // 8, -(-stop * self.bits // 8)).astype(np.uint8, copy=False)
        digits = np.unpackbits(raw, bitorder="big" if self.high_first else "little")[
            : (stop - first) * self.bits
        ].reshape(-1, self.bits)
        powers = 1 << np.arange(self.bits, dtype=np.uint8)
        codes: Array = (digits @ (powers[::-1] if self.high_first else powers)).astype(np.uint8)[start - first :]
        if self.dtype.numpy.kind == "i":
            sign = np.int8(1 << (self.bits - 1)) if self.bits < 8 else np.int8(-128)
            return np.asarray((codes.view(np.int8) ^ sign) - sign)
        return codes


class Palettised(Struct, frozen=True):
    """Codes into palettes: ``palettes`` (…, colours, width) are shared by runs of ``indices`` along every axis.

    Each code stands for ``width`` neighbouring elements along ``axis`` (0 where the width is 1).
    """

    name: str
    dtype: DType
    indices: TensorView
    palettes: TensorView
    axis: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the elements."""
        width = self.palettes.shape[-1]
        return tuple(size * width if axis == self.axis else size for axis, size in enumerate(self.indices.shape))

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``; takes memory for what is asked for, however far its codes and palettes lie apart."""
        colours, width = self.palettes.shape[-2:]
        grid = self.palettes.shape[:-2]
        flat = np.arange(start, stop, dtype=np.int64)
        codes, groups, part = np.zeros_like(flat), np.zeros_like(flat), np.zeros_like(flat)
        below, step = 1, 1
        for axis in reversed(range(len(grid))):
            size = self.indices.shape[axis]
            flat, place = np.divmod(flat, self.shape[axis])
            if axis == self.axis:
                place, part = np.divmod(place, width)
            codes += place * below
            groups += place // (size // grid[axis]) * step
            below, step = below * size, step * grid[axis]
        if not codes.size:
            return np.empty(0, self.dtype.numpy)
        chosen = taken(self.indices, codes).astype(np.int64)
        if int(chosen.max()) >= colours:
            raise MalformedFileError("a code beyond its palette", tensor=self.name)
        places = (groups * colours + chosen) * width + part
        found: Array = taken(self.palettes, places).astype(self.dtype.numpy, copy=False)
        return found


class Sparse(Struct, frozen=True):
    """Zeros but where ``mask`` (0 or 1, one for each element) says that the next of ``values`` (1-D) is."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    mask: TensorView
    values: TensorView
    _before: list[int] = field(default_factory=lambda: [0])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        total = math.prod(self.shape)
        if not 0 <= start <= stop <= total:
            raise IndexError(f"elements {start} to {stop} of {self.shape}")
        with self._lock:  # parts of one array are measured by several threads
            while len(self._before) <= start // _STEP:
                at = (len(self._before) - 1) * _STEP
                there = int(np.count_nonzero(self.mask.read(at, min(at + _STEP, total))))
                self._before.append(self._before[-1] + there)
        first = start - start % _STEP
        kept = self.mask.read(first, stop) != 0
        skipped = int(np.count_nonzero(kept[: start - first]))
        kept = kept[start - first :]
        begin = self._before[start // _STEP] + skipped
        count = int(np.count_nonzero(kept))
        if begin + count > math.prod(self.values.shape):
            raise MalformedFileError("fewer values than the mask has places for", tensor=self.name)
        elements = np.zeros(stop - start, self.dtype.numpy)
        elements[kept] = self.values.read(begin, begin + count)
        return elements
