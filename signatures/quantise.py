"""Rows of float32 numbers in fewer bytes: how samples are stored in signatures.

Neurons are kept as int8 with one scale a row; slices, whose small differences between relatives count, as float16 with
one power of two a row. The scale of int8 is the largest absolute value of the row over 127, cut to 16 significant bits.
``number * scale`` is then exact in float32, so that every platform reads the same values, and quantising what was read
changes nothing. An element is off by at most half a scale: 1/254 of the row's largest absolute value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS: Final = 127
_SMALLEST: Final = np.float32(2.0**-100)
_LARGEST_HALVED: Final = (1.0 - 2.0**-11) * 2.0**128
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


def halved(rows: NDArray[np.float32]) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
    """Exponents (m,) int16 and numbers (m, w) float16 of finite ``rows`` (m, w) float32; ``unhalved`` restores them.

    A row is divided by the least power of two that no element of the result exceeds, so that an element is off by at
    most 1/2048 of itself or 2**-25 of that power. A row whose largest absolute value is below 2**-100 becomes zeros.
    """
    wide = np.clip(rows.astype(np.float64), -_LARGEST_HALVED, _LARGEST_HALVED)
    wide[np.max(np.abs(wide), axis=1, initial=0.0) < _SMALLEST] = 0.0
    exponents = np.zeros(len(rows), np.int64)
    # Rounding can bring the largest down to a power of two: a second turn finds the exponent of what is stored.
    for _ in range(2):
        largest = np.max(np.abs(wide), axis=1, initial=0.0)
        fractions, powers = np.frexp(largest)
        exponents = np.where(largest > 0, powers - (fractions == 0.5), 0)
        wide = np.ldexp(np.ldexp(wide, -exponents[:, None]).astype(np.float16).astype(np.float64), exponents[:, None])
    return exponents.astype(np.int16), np.ldexp(wide, -exponents[:, None]).astype(np.float16)


def unhalved(exponents: NDArray[np.int16], numbers: NDArray[np.float16]) -> NDArray[np.float32]:
    """Rows (m, w) float32 from exponents (m,) and numbers (m, w): exact."""
    rows = numbers.astype(np.float32)
    return np.ldexp(rows, exponents[:, None].astype(np.int32), out=rows)


def are_halves(exponents: NDArray[np.int16], numbers: NDArray[np.float16]) -> bool:
    """Whether these, read from a file, are ones that ``halved`` can have written."""
    if not np.isfinite(numbers).all():
        return False
    largest = np.max(np.abs(numbers), axis=1, initial=0.0)
    whole = (largest > 0.5) & (largest <= np.where(exponents < 128, 1.0, 1.0 - 2.0**-11))
    whole &= (exponents >= -100) & (exponents <= 128)
    return bool(np.all(whole | ((largest == 0) & (exponents == 0))))


def are_scales(scales: NDArray[np.float32]) -> bool:
    """Whether ``scales``, read from a file, are ones that ``quantised`` can have written."""
    bits = np.ascontiguousarray(scales, dtype=np.float32).view(np.uint32)
    limit = np.float32(np.finfo(np.float32).max / STEPS)
    return bool(np.all((bits & ~_KEPT_BITS) == 0) and np.all(np.isfinite(scales) & (scales >= 0) & (scales <= limit)))
