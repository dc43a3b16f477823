"""Norms and unit rows that neither overflow nor vanish, whatever the scale of the numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

Number = TypeVar("Number", bound=np.generic)

_NUMBERS_AT_ONCE = 1 << 16
_LEAST_ENERGY, _MOST_ENERGY = 1e-20, 1e30
"""Between them no square that matters has vanished, and none has overflowed."""


def distinct(*numbers: NDArray[Number]) -> NDArray[Number]:
    """Each number of some arrays once, ascending. ``numpy.unique`` imports masked arrays for that, at every start."""
    ordered = np.sort(np.concatenate([one.reshape(-1) for one in numbers]))
    first = np.ones(ordered.size, np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def median(numbers: Iterable[float] | NDArray[Any]) -> float:
    """The middle one of some numbers, of an even number the mean of the two in the middle; NaN if one of them is, or if
    there are none. ``numpy.median`` imports masked arrays too."""
    ordered = np.sort(numbers if isinstance(numbers, np.ndarray) else np.fromiter(numbers, np.float64), axis=None)
    if not ordered.size or np.isnan(ordered[-1]):
        return math.nan
    return float(ordered[(ordered.size - 1) // 2]) / 2.0 + float(ordered[ordered.size // 2]) / 2.0


def magnitude(rows: NDArray[np.floating[Any]]) -> float:
    """The largest magnitude of all entries, 0 without any; absolute values would be a copy."""
    return max(float(rows.max(initial=0.0)), -float(rows.min(initial=0.0)))


def unit_rows(rows: Float32) -> Float32:
    """Unit rows, 0 for those that are 0; by their largest entries first where squares would overflow or vanish."""
    with np.errstate(over="ignore", invalid="ignore"):
        energies = np.einsum("...i,...i->...", rows, rows)[..., None]
    if energies.min(initial=1.0) > _LEAST_ENERGY and energies.max(initial=1.0) < _MOST_ENERGY:
        plain: Float32 = rows / np.sqrt(energies)
        return plain
    # Not of absolute values, which would be a copy.
    largest = np.maximum(rows.max(axis=-1, keepdims=True, initial=0.0), -rows.min(axis=-1, keepdims=True, initial=0.0))
    scaled = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    norms = np.linalg.norm(scaled, axis=-1, keepdims=True)
    units: Float32 = np.divide(scaled, norms, out=scaled, where=norms > 0)
    return units


def row_norms(rows: Float32) -> Float64:
    """Euclidean norms of the rows (n, w) as shares of the largest entry of all: (n,), 0 if all are 0."""
    largest = magnitude(rows) or 1.0
    norms = np.zeros(len(rows), np.float64)
    step = max(1, _NUMBERS_AT_ONCE // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        norms[part] = np.linalg.norm(rows[part].astype(np.float64) / largest, axis=-1)
    return norms
