"""Matrices times the directions of frames: every row, or every column, in coordinates of the residual stream.

Or some rows and columns alone, which are then taken out before they are converted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.blocks import Scratch, taken, widened, without_nonfinite
from fingerprint.device import product
from fingerprint.measure import matrix_shape
from fingerprint.slices import clean
from fingerprint.tensors import Transposed, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

    from fingerprint.tensors import TensorView

    Float32 = NDArray[np.float32]

_ROWS_AT_ONCE: Final = 1 << 18
"""Numbers of a block whose rows are projected: 1 MB, which stays in the cache."""
_COLUMNS_AT_ONCE: Final = 1 << 20
"""Numbers of a block whose columns are: each block adds to the coordinates of all columns."""
_scratch = Scratch()


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
    source, across = _turned(view, columns=columns)
    rows, width = matrix_shape(source.shape)
    number = width if across else rows
    frame, squares = np.ascontiguousarray(directions.T), np.ascontiguousarray(scales.T) ** 2
    coordinates = np.zeros((number, len(directions)), np.float32)
    energy = np.zeros((number, len(scales)), np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start, native in _blocks(source, rows, width, _COLUMNS_AT_ONCE if across else _ROWS_AT_ONCE):
            block = without_nonfinite(widened(native, _scratch))
            stop = start + len(block)
            if across:
                coordinates += product(block.T, frame[start:stop])
                if len(scales):
                    energy += (block**2).T @ squares[start:stop]
            else:
                coordinates[start:stop] = product(block, frame)
                if len(scales):
                    energy[start:stop] = block**2 @ squares
        norms = np.sqrt(energy)
    bad = ~(np.isfinite(coordinates).all(axis=1) & np.isfinite(norms).all(axis=1))
    coordinates[bad], norms[bad] = 0.0, 0.0
    return Projection(coordinates, norms)


@dataclass(frozen=True, slots=True)
class Survey:
    """Of all slices of a matrix: their norms (m, s) after scaling their entries, their products (m, d) with some
    directions, and their mean (length,): float32."""

    norms: Float32
    products: Float32
    mean: Float32


def survey(view: TensorView, scales: Float32, directions: Float32, *, columns: bool) -> Survey:
    """What is needed to choose among all rows (``columns``: columns) of a matrix; see ``project``."""
    source, across = _turned(view, columns=columns)
    rows, width = matrix_shape(source.shape)
    number, length = (width, rows) if across else (rows, width)
    squares, along = np.ascontiguousarray(scales.T) ** 2, np.ascontiguousarray(directions.T)
    energy = np.zeros((number, len(scales)), np.float32)
    products = np.zeros((number, len(directions)), np.float32)
    total = np.zeros(length, np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start, native in _blocks(source, rows, width, _ROWS_AT_ONCE):
            block = without_nonfinite(widened(native, _scratch))
            stop = start + len(block)
            if across:
                total[start:stop] = block @ np.ones(width, np.float32)
                if len(directions):
                    products += block.T @ along[start:stop]
                energy += np.square(block, out=block if _scratch.holds(block) else None).T @ squares[start:stop]
            else:
                total += np.ones(len(block), np.float32) @ block
                if len(directions):
                    products[start:stop] = block @ along
                energy[start:stop] = np.square(block, out=block if _scratch.holds(block) else None) @ squares
        norms = np.sqrt(energy)
        mean = (total / max(number, 1)).astype(np.float32)
    bad = ~(np.isfinite(norms).all(axis=1) & np.isfinite(products).all(axis=1))
    norms[bad], products[bad] = 0.0, 0.0
    return Survey(norms, products, np.nan_to_num(mean, nan=0.0, posinf=0.0, neginf=0.0))


def take_slices(view: TensorView, indices: NDArray[np.int64], *, columns: bool) -> Float32:
    """Rows (``columns``: columns) ``indices``, ascending, of a matrix: (m, length) float32.

    Values that are not finite count as 0. Raises ``InputError``.
    """
    source, across = _turned(view, columns=columns)
    rows, width = matrix_shape(source.shape)
    parts = []
    for start, native in _blocks(source, rows, width, _COLUMNS_AT_ONCE):
        if across:
            parts.append(taken(native, indices, 1))
            continue
        low, high = np.searchsorted(indices, (start, start + len(native)))
        if low < high:
            parts.append(taken(native, indices[low:high] - start, 0))
    if not parts:
        return np.zeros((indices.size, rows if across else width), np.float32)
    whole = np.concatenate(parts)
    return clean(whole.T if across else whole)


def coordinates_of(slices: Float32, directions: Float32) -> Float32:
    """Slices (m, length) times ``directions`` (w, length): (m, w) float32; those that leave float32 come out as 0."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = product(slices, directions.T)
    found[~np.isfinite(found).all(axis=1)] = 0.0
    return found


def _turned(view: TensorView, *, columns: bool) -> tuple[TensorView, bool]:
    """The matrix as it is stored, and whether its columns are wanted."""
    return (view.source, not columns) if isinstance(view, Transposed) else (view, columns)


def _blocks(source: TensorView, rows: int, width: int, numbers: int) -> Iterator[tuple[int, NDArray[Any]]]:
    step = max(1, numbers // max(width, 1))
    for start in range(0, rows, step):
        yield start, read_rows(source, start, min(start + step, rows))
