"""Norms and unit rows that neither overflow nor vanish, whatever the scale of the numbers."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

Number = TypeVar("Number", bound=np.generic)

_ROWS_AT_ONCE = 64


def distinct(*numbers: NDArray[Number]) -> NDArray[Number]:
    """Each number of some arrays once, ascending. ``numpy.unique`` imports masked arrays for that, at every start."""
    ordered = np.sort(np.concatenate([one.reshape(-1) for one in numbers]))
    first = np.ones(ordered.size, np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def magnitude(rows: NDArray[np.floating[Any]]) -> float:
    """The largest magnitude of all entries, 0 without any; absolute values would be a copy."""
    return max(float(rows.max(initial=0.0)), -float(rows.min(initial=0.0)))


def unit_rows(rows: Float32) -> Float32:
    """Unit rows, 0 for those that are 0; by their largest entries first, so that no square overflows or vanishes."""
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
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        norms[part] = np.linalg.norm(rows[part].astype(np.float64) / largest, axis=-1)
    return norms
