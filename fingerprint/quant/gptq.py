"""GPTQ and AWQ: numbers of 2 to 8 bits in 32-bit words, with a scale and a zero point for each group of inputs.

Layouts as in AutoGPTQ's and AutoAWQ's linear modules. Both keep (in, out); the views are (out, in) like the weights
that were quantised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fingerprint.quant.rows import RowsView, floats, group_indices, strip, unpacked, words

if TYPE_CHECKING:
    from fingerprint.tensors import Array, TensorView

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of eight neighbouring outputs, the one that is in the lowest four bits, in the next four, and so on."""


@dataclass(frozen=True, slots=True)
class Gptq(RowsView):
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
        inputs = self.shape[1]
        packed = np.ascontiguousarray(words(strip(self.qweight, first, last)).T)
        numbers = unpacked(packed, self.bits, inputs).astype(np.float32)
        groups = self._groups(inputs)
        # Words of the zero points hold whole outputs, except for 3 bits, where 32 outputs share three words.
        each = 32 // math.gcd(32, self.bits)
        low, high = first // each * each, -(-last // each) * each
        packed = words(strip(self.qzeros, low * self.bits // 32, min(-(-high * self.bits // 32), self.qzeros.shape[1])))
        zeros = unpacked(packed, self.bits, high - low)[:, first - low : last - low]
        zeros = (zeros + np.uint8(self.zero_offset)) & np.uint8((1 << self.bits) - 1)
        scales = floats(strip(self.scales, first, last))
        return (numbers - zeros.T.astype(np.float32)[:, groups]) * scales.T[:, groups]

    def _groups(self, inputs: int) -> Array:
        count = self.scales.shape[0]
        if self.g_idx is None:
            return np.arange(inputs) // -(-inputs // count)
        return group_indices(self, self.g_idx, count)


@dataclass(frozen=True, slots=True)
class Awq(RowsView):
    """``qweight`` (in, out / 8) packed along the outputs in ``AWQ_ORDER``, ``qzeros`` (groups, out / 8) likewise,
    ``scales`` (groups, out); groups of inputs follow one another."""

    qweight: TensorView
    qzeros: TensorView
    scales: TensorView

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        inputs = self.shape[1]
        low, high = first // 8, -(-last // 8)
        numbers, zeros = (self._unpacked(view, low, high) for view in (self.qweight, self.qzeros))
        part = slice(first - low * 8, last - low * 8)
        groups = np.arange(inputs) // (inputs // self.scales.shape[0])
        scales = floats(strip(self.scales, first, last))
        return (numbers[:, part] - zeros[groups][:, part]).T * scales.T[:, groups]

    @staticmethod
    def _unpacked(view: TensorView, low: int, high: int) -> Array:
        stored = unpacked(words(strip(view, low, high)), 4, (high - low) * 8).reshape(-1, high - low, 8)
        ordered = np.empty_like(stored)
        ordered[:, :, AWQ_ORDER] = stored
        return ordered.reshape(len(stored), -1).astype(np.float32)
