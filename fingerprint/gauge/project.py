"""Matrices times the directions of frames: every row, or every column, in coordinates of the residual stream.

Or some rows and columns alone, which are then taken out before they are converted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from fingerprint.blocks import taken
from fingerprint.directions import Directions, are_multiplied_as_stored, column_energies, energies
from fingerprint.measure import matrix_shape
from fingerprint.slices import clean
from fingerprint.tensors import Transposed, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

    from fingerprint.tensors import TensorView

    Array = NDArray[Any]
    Float32 = NDArray[np.float32]
    Int64 = NDArray[np.int64]

_NUMBERS_AT_ONCE: Final = 1 << 20
"""Numbers of a block: 4 MB where they have to be made float32."""
_STORED_AT_ONCE: Final = 1 << 22
"""Where they are multiplied as they are stored: columns take room for all of their coordinates for each block."""


class Projection(Struct, frozen=True):
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
    along = Directions(directions)
    coordinates = np.zeros((number, len(directions)), np.float32)
    energy = np.zeros((number, len(scales)), np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.square(scales)
        for start, native in _blocks(source, rows, width):
            stop = start + len(native)
            if across:
                coordinates += along.of_columns(native, start)
                if len(scales):
                    energy += column_energies(native, squares[:, start:stop])[0]
            else:
                coordinates[start:stop] = along.of_rows(native)
                for at, weights in enumerate(squares):
                    energy[start:stop, at], _ = energies(native, weights)
        norms = np.sqrt(energy)
    bad = ~(np.isfinite(coordinates).all(axis=1) & np.isfinite(norms).all(axis=1))
    coordinates[bad], norms[bad] = 0.0, 0.0
    return Projection(coordinates, norms)


class Survey(Struct, frozen=True):
    """Of all slices of a matrix: their norms (m, s) after scaling their entries, their products (m, d) with some
    directions, and their mean (length,): float32."""

    norms: Float32
    products: Float32
    mean: Float32


def survey(view: TensorView, scales: Float32, directions: Float32, *, columns: bool) -> Survey:
    """What is needed to choose among all rows (``columns``: columns) of a matrix by ``scales``, one or more; see
    ``project``."""
    source, across = _turned(view, columns=columns)
    rows, width = matrix_shape(source.shape)
    number, length = (width, rows) if across else (rows, width)
    along = Directions(directions)
    energy = np.zeros((number, len(scales)), np.float32)
    products = np.zeros((number, len(directions)), np.float32)
    total = np.zeros(length, np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.square(scales)
        for start, native in _blocks(source, rows, width):
            stop = start + len(native)
            if across:
                added, total[start:stop] = column_energies(native, squares[:, start:stop])
                energy += added
                if len(directions):
                    products += along.of_columns(native, start)
                continue
            for at, weights in enumerate(squares):
                energy[start:stop, at], totals = energies(native, weights)
            total += totals
            if len(directions):
                products[start:stop] = along.of_rows(native)
        norms = np.sqrt(energy)
        mean = (total / max(number, 1)).astype(np.float32)
    bad = ~(np.isfinite(norms).all(axis=1) & np.isfinite(products).all(axis=1))
    norms[bad], products[bad] = 0.0, 0.0
    return Survey(norms, products, np.nan_to_num(mean, nan=0.0, posinf=0.0, neginf=0.0))


def project_some(view: TensorView, indices: Int64, directions: Float32, *, columns: bool) -> Float32:
    """Rows (``columns``: columns) ``indices``, ascending, of a matrix times ``directions`` (w, length): (m, w) float32.

    See ``project``; what is not asked for is not converted.
    """
    source, across = _turned(view, columns=columns)
    rows, width = matrix_shape(source.shape)
    along = Directions(directions)
    coordinates = np.zeros((indices.size, len(directions)), np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start, native in _blocks(source, rows, width):
            if across:
                coordinates += along.of_columns(taken(native, indices, 1), start)
                continue
            low, high = np.searchsorted(indices, (start, start + len(native)))
            if low < high:
                coordinates[low:high] = along.of_rows(native, indices[low:high] - start)
    coordinates[~np.isfinite(coordinates).all(axis=1)] = 0.0
    return coordinates


def project_centred(view: TensorView, indices: Int64, directions: Float32, *, columns: bool) -> Float32:
    """``project_some`` of the slices less their means."""
    length = directions.shape[1]
    found = project_some(view, indices, np.concatenate([directions, np.ones((1, length), np.float32)]), columns=columns)
    sums = found[:, -1:].astype(np.float64) / max(length, 1) * directions.sum(axis=1, dtype=np.float64)
    with np.errstate(over="ignore"):
        centred: Float32 = (found[:, :-1] - sums).astype(np.float32)
    centred[~np.isfinite(centred).all(axis=1)] = 0.0
    return centred


def take_slices(view: TensorView, indices: Int64, *, columns: bool) -> Float32:
    """Rows (``columns``: columns) ``indices``, ascending, of a matrix: (m, length) float32.

    Values that are not finite count as 0. Raises ``InputError``.
    """
    source, across = _turned(view, columns=columns)
    rows, width = matrix_shape(source.shape)
    parts = []
    for start, native in _blocks(source, rows, width):
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


def _turned(view: TensorView, *, columns: bool) -> tuple[TensorView, bool]:
    """The matrix as it is stored, and whether its columns are wanted."""
    return (view.source, not columns) if isinstance(view, Transposed) else (view, columns)


def _blocks(source: TensorView, rows: int, width: int) -> Iterator[tuple[int, Array]]:
    """Runs of rows, an even number of them (but for the last): first row, and (b, width) as they are stored."""
    numbers = _STORED_AT_ONCE if are_multiplied_as_stored(source.dtype.numpy) else _NUMBERS_AT_ONCE
    step = max(2, numbers // max(width, 1) // 2 * 2)
    for start in range(0, rows, step):
        yield start, read_rows(source, start, min(start + step, rows))
