"""Rows of float32 numbers as int8 with one scale a row: how samples are stored in signatures.

The scale is the largest absolute value of the row over 127, cut to 16 significant bits. ``number * scale`` is then
exact in float32, so that every platform reads the same values, and quantising what was read changes nothing. An element
is off by at most half a scale: 1/254 of the row's largest absolute value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS: Final = 127
_SMALLEST: Final = np.float32(2.0**-100)
_KEPT_BITS: Final = np.uint32(0xFFFFFF00)


def quantised(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scales (m,) float32 and numbers (m, w) int8 of finite ``rows`` (m, w) float32.

    A row whose largest absolute value is below 2**-100 becomes zeros. |row - number * scale| <= scale / 2.
    """
    largest = np.max(np.abs(rows), axis=1, initial=0.0).astype(np.float32)
    largest[largest < _SMALLEST] = 0.0
    scales = (largest / np.float32(STEPS)).view(np.uint32) & _KEPT_BITS
    scale = scales.view(np.float32)
    divisor = np.where(scale > 0, scale, np.float32(1)).astype(np.float64)
    numbers = np.rint(rows.astype(np.float64) / divisor[:, None])
    numbers[scale == 0] = 0
    return scale, np.clip(numbers, -STEPS, STEPS).astype(np.int8)


def restored(scales: NDArray[np.float32], numbers: NDArray[np.int8]) -> NDArray[np.float32]:
    """Rows (m, w) float32 from scales (m,) and numbers (m, w) int8: exact products."""
    return numbers.astype(np.float32) * scales[:, None]


def are_scales(scales: NDArray[np.float32]) -> bool:
    """Whether ``scales``, read from a file, are ones that ``quantised`` can have written."""
    bits = np.ascontiguousarray(scales, dtype=np.float32).view(np.uint32)
    limit = np.float32(np.finfo(np.float32).max / STEPS)
    return bool(np.all((bits & ~_KEPT_BITS) == 0) and np.all(np.isfinite(scales) & (scales >= 0) & (scales <= limit)))
