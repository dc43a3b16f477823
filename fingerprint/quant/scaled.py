"""Numbers with a scale for each tensor, row, group or block: FP8 as DeepSeek ships it, int8, MX and NVFP4, MLX.

Layouts: DeepSeek-V3's inference code (``weight_scale_inv``, multiplied in spite of its name), bitsandbytes' int8
(``SCB`` / 127), compressed-tensors, NVIDIA ModelOpt, the OCP Microscaling specification as gpt-oss uses it, and MLX
(scale and bias).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fingerprint.quant.rows import (
    E2M1,
    RowsView,
    floats,
    group_indices,
    matrix,
    powers_of_two,
    spread,
    times,
    unpacked,
    words,
)

if TYPE_CHECKING:
    from fingerprint.tensors import Array, TensorView


class Scaled(RowsView, frozen=True):
    """``numbers`` (..., rows, columns) times the scale of their block, after subtracting its zero point.

    ``scale`` (..., row blocks, column blocks), ``zero`` like it or None; a block has ``block`` rows and columns, and
    the blocks of each ``height`` rows begin anew. ``factor`` multiplies everything.
    """

    numbers: TensorView
    scale: TensorView
    zero: TensorView | None
    block: tuple[int, int]
    height: int
    factor: float = 1.0

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        values = floats(matrix(self.numbers, first, last))
        if self.zero is not None:
            values = values - self._grid(self.zero, first, last)
        values = values * self._grid(self.scale, first, last)
        return values * np.float32(self.factor) if self.factor != 1.0 else values

    def _grid(self, view: TensorView, first: int, last: int) -> Array:
        # Every matrix of a stack has its own row blocks, the last of which may be shorter.
        blocks = -(-self.height // self.block[0])
        places = np.arange(first, last)
        places = places // self.height * blocks + places % self.height // self.block[0]
        low = int(places[0])
        grid = floats(matrix(view, low, int(places[-1]) + 1))[places - low]
        return spread(grid, self.block[1], self.shape[-1])


class PackedInts(RowsView, frozen=True):
    """Integers of ``bits`` bits in words along the columns, an offset of half their range added (compressed-tensors).

    ``scale`` and ``zero`` (packed along the rows, or None) are (rows, groups); ``g_idx`` (columns) or None as in GPTQ.
    """

    bits: int
    packed: TensorView
    scale: TensorView
    zero: TensorView | None
    g_idx: TensorView | None

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        columns, count = self.shape[1], self.scale.shape[1]
        half = np.float32(1 << (self.bits - 1))
        values = unpacked(words(matrix(self.packed, first, last)), self.bits, columns).astype(np.float32) - half
        if self.g_idx is None:
            groups = np.arange(columns) // -(-columns // count)
        else:
            groups = group_indices(self.g_idx, 0, columns, count)
        if self.zero is not None:
            each = 32 // math.gcd(32, self.bits)
            low, high = first // each * each, -(-last // each) * each
            end = min(-(-high * self.bits // 32), self.zero.shape[0])
            stored = np.ascontiguousarray(words(matrix(self.zero, low * self.bits // 32, end)).T)
            stored = np.pad(stored, ((0, 0), (0, -(-high * self.bits // 32) - end)))
            zeros = unpacked(stored, self.bits, high - low).T.astype(np.float32) - half
            values -= zeros[first - low : last - low][:, groups]
        scales = floats(matrix(self.scale, first, last))
        return times(values, scales) if self.g_idx is None and columns % count == 0 else values * scales[:, groups]


class Floats4(RowsView, frozen=True):
    """4-bit floats, two in a byte (``codes``: (..., columns / 2) or words of eight), the first in the lowest bits.

    ``scale`` (..., groups) are bytes of exponents (``exponents``) or floats; ``factor`` a scale for the whole tensor,
    by which its view is multiplied, or divided (``divided``); None for none.
    """

    codes: TensorView
    scale: TensorView
    exponents: bool
    factor: TensorView | None = None
    divided: bool = False

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        columns = self.shape[-1]
        each = columns * 4 // (self.codes.dtype.bits)
        raw = words(self.codes.read(first * each, last * each)).reshape(last - first, each)
        groups = columns // self._group()
        scale = self.scale.read(first * groups, last * groups).reshape(last - first, groups)
        scale = powers_of_two(scale) if self.exponents else floats(scale)
        if self.factor is not None:
            factor = floats(self.factor.read(0, 1))
            scale = scale / factor if self.divided else scale * factor
        return times(E2M1.take(unpacked(raw, 4, columns)), scale)

    def _group(self) -> int:
        return math.prod(self.shape) // math.prod(self.scale.shape)


class Mlx(RowsView, frozen=True):
    """``packed`` (..., rows, words) numbers times ``scales`` plus ``biases``, both (..., rows, groups)."""

    bits: int
    packed: TensorView
    scales: TensorView
    biases: TensorView

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        columns = self.shape[-1]
        numbers = unpacked(words(matrix(self.packed, first, last)), self.bits, columns).astype(np.float32)
        scales, biases = (floats(matrix(view, first, last)) for view in (self.scales, self.biases))
        values = times(numbers, scales).reshape(*scales.shape, -1)
        values += biases[:, :, None]
        return values.reshape(last - first, columns)
