"""What the pass keeps of a tensor to judge what it holds: some rows, columns and tiles, or how rough a vector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fingerprint.content import LATTICE_TILE, SLICE_SAMPLES, is_analytic, lattice_bits
from fingerprint.signs import Stream, among, sample_indices
from fingerprint.slices import clean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fingerprint.blocks import Slices
    from fingerprint.parameters import Parameters

    Array = NDArray[Any]
    Float32 = NDArray[np.float32]

_SMOOTH: Final = 0.05
_TILES: Final = 4
_PROBED: Final = 1 << 16


class Roughness:
    """How much neighbouring elements of a vector differ."""

    def __init__(self) -> None:
        self._steps = 0.0
        self._size = 0

    def add(self, flat: Float32) -> None:
        """Add the next elements."""
        self._size += flat.size
        self._steps += float(np.sum(np.diff(flat.astype(np.float64)) ** 2))

    def is_smooth(self, deviation: float) -> bool:
        """Whether neighbours are nearly equal, as in ramps, frequencies and windows: trained vectors are rough.

        The mean squared step is twice the variance for unrelated neighbours.
        """
        return self._size >= 8 and self._steps < _SMOOTH * 2.0 * deviation**2 * self._size


class Probe:
    """A few rows, columns and square tiles of a matrix, kept as they are to judge its content.

    Of very long rows and columns only the beginning is kept.
    """

    def __init__(self, rows: int, columns: int, parameters: Parameters) -> None:
        seed = parameters.seed
        self._square = rows == columns <= _PROBED
        self.row_indices = sample_indices(seed, Stream.PROBE, rows, SLICE_SAMPLES)
        self.column_indices = sample_indices(seed, Stream.PROBE, columns, SLICE_SAMPLES)
        self._numbers = (self.row_indices.tolist(), self.column_indices.tolist())
        self._rows = np.zeros((self.row_indices.size, min(columns, _PROBED)), np.float32)
        self._columns = np.zeros((self.column_indices.size, min(rows, _PROBED)), np.float32)
        tile_rows, tile_columns = max(rows // LATTICE_TILE, 1), max(columns // LATTICE_TILE, 1)
        number = tile_rows * tile_columns
        self._tiles = {
            (int(i) // tile_columns * LATTICE_TILE, int(i) % tile_columns * LATTICE_TILE): np.zeros(
                (min(rows, LATTICE_TILE), min(columns, LATTICE_TILE)), np.float32
            )
            for i in sample_indices(seed, Stream.PROBE, number, _TILES)
        }

    def add(self, start: int, first: int, block: Array, slices: Slices) -> None:
        """Keep what is wanted of rows ``start`` onwards, columns ``first`` onwards, of any float type."""
        stop, last = start + len(block), first + block.shape[1]
        low, high = among(self._numbers[0], start, stop)
        end = min(last, self._rows.shape[1])
        if low < high and first < end:
            wanted = slices.rows(self.row_indices[low:high] - start)
            self._rows[low:high, first:end] = clean(wanted[:, : end - first])
        left, right = among(self._numbers[1], first, last)
        end = min(stop, self._columns.shape[1])
        if left < right and start < end:
            wanted = slices.columns(self.column_indices[left:right] - first)
            self._columns[left:right, start:end] = clean(wanted[:, : end - start])
        for (row, column), tile in self._tiles.items():
            top, bottom = max(row, start), min(row + tile.shape[0], stop)
            near, far = max(column, first), min(column + tile.shape[1], last)
            if top < bottom and near < far:
                part = block[top - start : bottom - start, near - first : far - first]
                tile[top - row : bottom - row, near - column : far - column] = clean(part)

    def is_analytic(self) -> bool:
        """See ``content.is_analytic``."""
        return is_analytic(self._rows, self._columns, self.row_indices, self.column_indices, square=self._square)

    def lattice_bits(self) -> int:
        """See ``content.lattice_bits``."""
        return lattice_bits(list(self._tiles.values()))
