"""Marlin: symmetric 4-bit numbers in the order in which its kernel's threads take them.

Layout as in ``_get_perms`` and ``pack`` of IST-DASLab's marlin, which AutoGPTQ and AutoAWQ write too: matrices
(in, out) in tiles of 16 by 16, four neighbouring tiles shuffled together, eight numbers in a word, with scales
(groups, out) that are shuffled as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fingerprint.quant.rows import RowsView, floats, matrix, unpacked, words

if TYPE_CHECKING:
    from fingerprint.tensors import Array, TensorView

TILE = 16
_ZERO = 8
_EVEN_FIRST = (0, 2, 4, 6, 1, 3, 5, 7)


def _order() -> Array:
    """For each of 1,024 stored numbers, which one it is of four tiles laid out row after row."""
    thread, tile, half, part = np.meshgrid(*(np.arange(size) for size in (32, 4, 2, 4)), indexing="ij")
    row = 2 * (thread % 4) + part % 2 + 8 * (part // 2)
    taken: Array = (256 * tile + TILE * row + thread // 4 + 8 * half).reshape(-1, 8)[:, _EVEN_FIRST].reshape(-1)
    return taken


_ORDER = _order()
_SCALES = np.arange(64).reshape(8, 8).T.reshape(-1)
"""Which of 64 neighbouring outputs the stored scales belong to."""
_LONE_SCALES = np.add.outer(2 * np.arange(4), [0, 1, 8, 9, 16, 17, 24, 25]).reshape(-1)
"""The same of 32, where one scale stands for all inputs."""


class Marlin(RowsView, frozen=True):
    """``packed`` (in / 16, 2 * out) and ``scales`` (groups, out), for weights (in, out)."""

    packed: TensorView
    scales: TensorView

    def rows(self, first: int, last: int) -> Array:
        """See ``RowsView.rows``."""
        outputs = self.shape[1]
        low, high = first // TILE, -(-last // TILE)
        stored = unpacked(words(matrix(self.packed, low, high)), 4, TILE * outputs).reshape(-1, len(_ORDER))
        tiles = np.empty_like(stored)
        tiles[:, _ORDER] = stored
        numbers = tiles.reshape(high - low, outputs // TILE, TILE, TILE).swapaxes(1, 2).reshape(-1, outputs)
        values = numbers[first - low * TILE : last - low * TILE].astype(np.float32) - np.float32(_ZERO)
        size = self.shape[0] // self.scales.shape[0]
        begin, end = first // size, -(-last // size)
        order = _LONE_SCALES if self.scales.shape[0] == 1 else _SCALES
        shuffled = floats(matrix(self.scales, begin, end)).reshape(-1, len(order))
        scales = np.empty_like(shuffled)
        scales[:, order] = shuffled
        values *= scales.reshape(end - begin, outputs)[np.arange(first, last) // size - begin]
        return values
