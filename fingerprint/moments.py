"""Moments of a tensor, and norms of the slices of a matrix, from its blocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct, field

from fingerprint.dtypes import to_float32
from fingerprint.records import TensorStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fingerprint.blocks import Piece

    Array = NDArray[Any]
    Float32 = NDArray[np.float32]


class Moments(Struct):
    """Sums of the first four powers over the finite elements, piece by piece.

    Of the distances from a ``pivot`` among them, where the numbers may lie close together: their own powers would then
    leave nothing of how they differ.
    """

    count: int = 0
    nonfinite: int = 0
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf
    pivot: float | None = None
    _sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))

    def add(self, piece: Piece, numbers: Array | None = None) -> None:
        """Add what is known of some elements; ``numbers`` are these elements themselves, of all pieces or of none."""
        self.count += math.prod(piece.shape)
        self.nonfinite += piece.nonfinite
        self.zeros += piece.zeros
        self.low, self.high = min(self.low, piece.low), max(self.high, piece.high)
        self._sums += piece.powers if numbers is None else self._powers(numbers)

    def _powers(self, numbers: Array) -> NDArray[np.float64]:
        """Of the distances of those that are finite from the first of all."""
        wide = to_float32(numbers).astype(np.float64).reshape(-1)
        wide = wide[np.isfinite(wide)]
        if self.pivot is None and wide.size:
            self.pivot = float(wide[0])
        wide -= self.pivot or 0.0
        square = wide * wide
        return np.array([wide.sum(), square.sum(), (square * wide).sum(), (square * square).sum()])

    def add_integers(self, flat: Array) -> None:
        """Count an integer, boolean or complex block; nothing else is measured of it."""
        self.count += flat.size

    @property
    def constant(self) -> bool:
        """Whether all values are the same."""
        return self.low >= self.high

    @property
    def energy(self) -> float:
        """Sum of the squares of the finite elements, of which there is no pivot."""
        return float(self._sums[1])

    def finish(self, bits: int) -> TensorStatistics:
        """The statistics of everything added; moments that overflow are given as 0."""
        count = max(self.count - self.nonfinite, 1)
        first, second, third, fourth = (float(value) / count for value in self._sums)
        variance = 0.0 if self.constant else max(second - first**2, 0.0)
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        largest = max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0
        return TensorStatistics(
            mean=_finite(first + (self.pivot or 0.0)),
            deviation=_finite(math.sqrt(variance)) if math.isfinite(variance) else 0.0,
            largest=_finite(largest),
            kurtosis=_finite(central / variance**2) if variance > 0.0 and math.isfinite(variance) else 0.0,
            zeros=self.zeros / max(self.count, 1),
            nonfinite=self.nonfinite,
            lattice_bits=bits,
        )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


class SliceNorms:
    """Euclidean norms of rows and columns of a matrix, block by block; of none of the columns if there are 0."""

    def __init__(self, rows: int, columns: int) -> None:
        self._row_squares = np.zeros(rows, np.float64)
        self._column_squares = np.zeros(columns, np.float64)

    def add(self, start: int, first: int, piece: Piece) -> None:
        """Add rows ``start`` onwards, columns ``first`` onwards."""
        rows, columns = piece.shape
        self._row_squares[start : start + rows] += piece.row_squares
        if self._column_squares.size:
            self._column_squares[first : first + columns] += piece.column_squares

    @property
    def rows(self) -> Float32:
        """Norms of the rows, once everything was added."""
        return np.sqrt(self._row_squares).astype(np.float32)

    @property
    def columns(self) -> Float32:
        """Norms of the columns, once everything was added."""
        return np.sqrt(self._column_squares).astype(np.float32)
