"""Whole matrices times the directions of frames: every row, or every column, in coordinates of the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.dtypes import to_float32
from fingerprint.measure import matrix_shape
from fingerprint.slices import clean
from fingerprint.tensors import Transposed, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fingerprint.tensors import TensorView

    Float32 = NDArray[np.float32]

_BLOCK_NUMBERS: Final = 1 << 21


@dataclass(frozen=True, slots=True)
class Projection:
    """Coordinates (m, w) float32 of the slices of a matrix, and their norms (m, s) after scaling their entries."""

    coordinates: Float32
    norms: Float32


def project(view: TensorView, directions: Float32, scales: Float32, *, columns: bool) -> Projection:
    """All rows (``columns``: columns) of a matrix times ``directions`` (w, length), all of its elements read once.

    ``norms`` are those of the slices multiplied by each of ``scales`` (s, length). Values that are not finite count as
    0; slices whose coordinates or norms leave float32 come out as 0. Raises ``InputError``.
    """
    source, across = (view.source, not columns) if isinstance(view, Transposed) else (view, columns)
    rows, width = matrix_shape(source.shape)
    number = width if across else rows
    frame, squares = np.ascontiguousarray(directions.T), np.ascontiguousarray(scales.T) ** 2
    coordinates = np.zeros((number, len(directions)), np.float32)
    energy = np.zeros((number, len(scales)), np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start, block in _blocks(source, rows, width):
            stop = start + len(block)
            if across:
                coordinates += block.T @ frame[start:stop]
                energy += (block**2).T @ squares[start:stop]
            else:
                coordinates[start:stop] = block @ frame
                energy[start:stop] = block**2 @ squares
        norms = np.sqrt(energy)
    bad = ~(np.isfinite(coordinates).all(axis=1) & np.isfinite(norms).all(axis=1))
    coordinates[bad], norms[bad] = 0.0, 0.0
    return Projection(coordinates, norms)


def take_slices(view: TensorView, indices: NDArray[np.int64], *, columns: bool) -> Float32:
    """Rows (``columns``: columns) ``indices``, ascending, of a matrix: (m, length) float32.

    Values that are not finite count as 0. Raises ``InputError``.
    """
    source, across = (view.source, not columns) if isinstance(view, Transposed) else (view, columns)
    rows, width = matrix_shape(source.shape)
    if not across:
        taken = np.zeros((indices.size, width), np.float32)
        for place, row in enumerate(indices.tolist()):
            taken[place] = to_float32(read_rows(source, row, row + 1))[0]
        return np.nan_to_num(taken, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    taken = np.zeros((indices.size, rows), np.float32)
    for start, block in _blocks(source, rows, width):
        taken[:, start : start + len(block)] = block[:, indices].T
    return taken


def _blocks(source: TensorView, rows: int, width: int) -> Iterator[tuple[int, Float32]]:
    step = max(1, _BLOCK_NUMBERS // max(width, 1))
    for start in range(0, rows, step):
        yield start, clean(read_rows(source, start, min(start + step, rows)))
