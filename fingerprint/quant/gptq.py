"""GPTQ: numbers of 2 to 8 bits in 32-bit words, with a scale and a zero point for each group of inputs.

The layout is that of AutoGPTQ's linear modules, which keep (in, out), and so does the view here; the weights that were
quantised are its transpose.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fingerprint.quant.rows import RowsView, floats, group_indices, matrix, unpacked, words

if TYPE_CHECKING:
    from fingerprint.tensors import Array, TensorView


class Gptq(RowsView, frozen=True):
    """``qweight`` (in * bits / 32, out) packed along the inputs; ``qzeros`` (groups, out * bits / 32); ``scales``
    (groups, out); ``g_idx`` (in) the group of each input, or None where groups follow one another.

    ``zero_offset`` is 1 in the first version of the format, which keeps zero points less one.
    """

    bits: int
    qweight: TensorView
    qzeros: TensorView
    scales: TensorView
    g_idx: TensorView | None
    zero_offset: int

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        groups = self._groups(first, last)
        low, high = int(groups.min()), int(groups.max()) + 1
        zeros = unpacked(words(matrix(self.qzeros, low, high)), self.bits, self.shape[1])
        zeros = (zeros + np.uint8(self.zero_offset)) & np.uint8((1 << self.bits) - 1)
        values = self._numbers(first, last).astype(np.float32)
        values -= zeros.astype(np.float32)[groups - low]
        values *= floats(matrix(self.scales, low, high))[groups - low]
        return values

    def _numbers(self, first: int, last: int) -> Array:
        """Rows of the quantised numbers, which lie side by side in words along the inputs."""
        each = 32 // math.gcd(32, self.bits)
        low, high = first // each * each, min(-(-last // each) * each, self.shape[0])
        packed = words(matrix(self.qweight, low * self.bits // 32, -(-high * self.bits // 32)))
        if 32 % self.bits:
            found = unpacked(np.ascontiguousarray(packed.T), self.bits, high - low).T
        else:
            parts = np.empty((len(packed), each, self.shape[1]), np.uint8)
            for number in range(each):
                parts[:, number] = packed >> np.uint32(number * self.bits)
            np.bitwise_and(parts, np.uint8((1 << self.bits) - 1), out=parts)
            found = parts.reshape(-1, self.shape[1])
        return found[first - low : last - low]

    def _groups(self, first: int, last: int) -> Array:
        count = self.scales.shape[0]
        if self.g_idx is None:
            return np.arange(first, last) // -(-self.shape[0] // count)
        return group_indices(self.g_idx, first, last, count)
