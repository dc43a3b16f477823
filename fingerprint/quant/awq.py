"""AWQ: 4-bit numbers with a scale and a zero point for each group of inputs, in the three layouts of AutoAWQ.

Layouts as in ``awq/modules/linear`` (gemm.py, gemv.py, gemv_fast.py of AutoAWQ 0.2.9), called by the ``version`` of the
config. The first keeps (in, out), the others (out, in).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fingerprint.quant.rows import RowsView, floats, matrix, unpacked, words

if TYPE_CHECKING:
    from fingerprint.tensors import Array, TensorView

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of eight neighbouring outputs, the one that is in the lowest four bits, in the next four, and so on."""

FAST_ROWS, FAST_INPUTS = 4, 64
"""Rows that are interleaved in the layout of ``gemv_fast``, and how many inputs of a row lie together."""
_FAST_ORDER = np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).reshape(4, 4, 2).transpose(0, 2, 1).reshape(-1)
"""Which of 32 neighbouring inputs the stored ones are: threads take pairs, and even numbers go before odd ones."""


class Awq(RowsView, frozen=True):
    """``qweight`` (in, out / 8) packed along the outputs in ``AWQ_ORDER``, ``qzeros`` (groups, out / 8) likewise,
    ``scales`` (groups, out); groups of inputs follow one another."""

    qweight: TensorView
    qzeros: TensorView
    scales: TensorView

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        size = self.shape[0] // self.scales.shape[0]
        low, high = first // size, -(-last // size)
        groups = np.arange(first, last) // size - low
        values = self._unpacked(self.qweight, first, last).astype(np.float32)
        values -= self._unpacked(self.qzeros, low, high).astype(np.float32)[groups]
        values *= floats(matrix(self.scales, low, high))[groups]
        return values

    def _unpacked(self, view: TensorView, first: int, last: int) -> Array:
        stored = unpacked(words(matrix(view, first, last)), 4, self.shape[1]).reshape(-1, 8)
        ordered = np.empty_like(stored)
        ordered[:, AWQ_ORDER] = stored
        return ordered.reshape(last - first, -1)


def padded_groups(inputs: int, size: int) -> int:
    """Words that hold the zero points of a row in the layouts of vectors, or 0 where groups of ``size`` cannot be."""
    if inputs % size or size < 32:
        return 0
    many = max(1, 128 // size)
    needed = math.ceil(inputs // size / 8)
    return math.ceil(needed / many) * many


class AwqGemv(RowsView, frozen=True):
    """``qweight`` (out, in / 8), the first of eight neighbouring inputs in the lowest bits; ``qzeros`` (out, words)
    likewise along the groups of ``size`` inputs; ``scales`` (out, 8 * words), of which the first are used."""

    size: int
    qweight: TensorView
    qzeros: TensorView
    scales: TensorView

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        columns = self.shape[1]
        groups = columns // self.size
        values = unpacked(words(matrix(self.qweight, first, last)), 4, columns).astype(np.float32)
        zeros = unpacked(words(matrix(self.qzeros, first, last)), 4, groups).astype(np.float32)
        scales = floats(matrix(self.scales, first, last))[:, :groups]
        values = values.reshape(last - first, groups, self.size)
        values -= zeros[:, :, None]
        values *= scales[:, :, None]
        return values.reshape(last - first, columns)


class AwqGemvFast(RowsView, frozen=True):
    """``qweight`` (out / 4, in), words of 16 bits over runs of 64 inputs of four rows in turn.

    ``scales`` and ``qzeros`` (groups or more, out) are of groups of ``size`` inputs; the latter is added after scaling.
    """

    size: int
    qweight: TensorView
    qzeros: TensorView
    scales: TensorView

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        columns = self.shape[1]
        low, high = first // FAST_ROWS, -(-last // FAST_ROWS)
        stored = unpacked(words(matrix(self.qweight, low, high)), 4, FAST_ROWS * columns)
        runs = stored.reshape(high - low, columns // FAST_INPUTS, FAST_ROWS, FAST_INPUTS).swapaxes(1, 2)
        numbers = np.empty((high - low, FAST_ROWS, columns // 32, 32), np.uint8)
        numbers[..., _FAST_ORDER] = runs.reshape(numbers.shape)
        values = numbers.reshape(-1, columns)[first - low * FAST_ROWS : last - low * FAST_ROWS].astype(np.float32)
        values = values.reshape(last - first, -1, self.size)
        values *= self._of_groups(self.scales, first, last)[:, :, None]
        values += self._of_groups(self.qzeros, first, last)[:, :, None]
        return values.reshape(last - first, columns)

    def _of_groups(self, view: TensorView, first: int, last: int) -> Array:
        """One number for each row and group: (last - first, groups)."""
        outputs, groups = self.shape[0], self.shape[1] // self.size
        strips = [floats(view.read(group * outputs + first, group * outputs + last)) for group in range(groups)]
        return np.stack(strips, axis=1)
