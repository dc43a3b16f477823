"""Linear sketches of a matrix in one pass over its rows: the whole, sampled rows, sampled columns.

For a centred matrix W (rows x columns) and the sign matrix G of the generator, the sketch is ``G_rowsᵀ W G_columns``
(k x k numbers) divided by k, so that its squared Frobenius norm estimates that of W and inner products of sketches
estimate inner products of matrices (Charikar, Chen & Farach-Colton 2002; tensor form as in Pham & Pagh 2013). Rows and
columns draw from the same stream, so the sketch of the transpose is the transpose of the sketch. Centring removes
the mean of every row and of every column, and from square matrices the multiple of the identity (from their slices only
where it stands out); it is applied to the sums afterwards, since everything is linear.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.blocks import Signs, Slices
from fingerprint.device import product
from fingerprint.signs import Stream, among, sample_indices, sign_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fingerprint.parameters import Parameters

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_PIECE = 1 << 16
_ROWS = 64
_TRACE_OUT_OF_CHANCE = 8.0
"""In standard deviations of the trace of independent entries: the matrix's norm over the root of its size."""


class MatrixSketch(Struct, frozen=True):
    """Sketches of one matrix, all doubly centred, in the units of its values.

    ``whole`` (k, k); ``rows`` (m, w) of the rows ``row_indices``; ``columns`` (l, w) of the columns
    ``column_indices``, with w signs of their own and divided by the root of w, so that their squared norms estimate the
    slices'.
    """

    whole: Float32
    rows: Float32 | None
    columns: Float32 | None
    row_indices: NDArray[np.int64]
    column_indices: NDArray[np.int64]


class MatrixSketcher:
    """Accumulates the sketch of a (rows, columns) matrix from blocks in row-major order, in float32 products and
    float64 sums.

    Memory is bounded by 8 bytes for each column and the signs of one block: whatever is linear in the number of rows
    is folded into k x k numbers at once.
    """

    def __init__(self, rows: int, columns: int, parameters: Parameters) -> None:
        self._seed = parameters.seed
        self._shape = (rows, columns)
        self._width = parameters.sketch_width
        self._axis_width = parameters.axis_width
        self.row_indices = sample_indices(self._seed, Stream.AXIS_SAMPLE, rows, parameters.axis_samples)
        self.column_indices = sample_indices(self._seed, Stream.AXIS_SAMPLE, columns, parameters.axis_samples)
        self._row_numbers, self._column_numbers = self.row_indices.tolist(), self.column_indices.tolist()
        # The last column holds sums of rows, beside their products with signs.
        self._whole = np.zeros((self._width, self._width + 1), np.float64)
        self._column_mean_part = np.zeros(self._width + 1, np.float64)
        # Slices get signs of their own, so that their errors are independent of those of the whole sketch.
        self._row_part = np.zeros((self.row_indices.size, self._axis_width + 1), np.float64)
        self._column_part = np.zeros((self._axis_width, self.column_indices.size), np.float64)
        self._row_sums_part = np.zeros(self._axis_width, np.float64)
        self._column_sums = np.zeros(columns, np.float64)
        self._trace = 0.0
        self._kept: dict[Stream, Float32] = {}

    def update(self, start: int, block: Float32, first: int = 0) -> None:
        """Add rows ``start`` onwards, columns ``first`` onwards: ``block`` (b, c) float32 without NaN or infinities.

        Values near the largest float32 may overflow; the sketch then has entries that are not finite.
        """
        rows, columns = block.shape
        self.add(start, block, block @ np.ones(columns, np.float32), np.ones(rows, np.float32) @ block, first)
        self.add_slices(start, first, block.shape, Slices(block).along)

    def add(self, start: int, block: Float32, row_sums: Float32, column_sums: Float32, first: int = 0) -> None:
        """Add a block to all but the sketches of single slices; its sums are (b,) and (c,). See ``update``."""
        projected = product(block, self._inner(Stream.SKETCH, first, first + block.shape[1], self._width))
        self.add_projected(start, block.shape, projected, row_sums, column_sums, first)
        corner = self.corner(start, first, block.shape)
        if corner is not None:
            self.add_diagonal(np.diagonal(block[corner]))

    def add_projected(
        self,
        start: int,
        shape: tuple[int, ...],
        projected: Float32,
        row_sums: Float32,
        column_sums: Float32,
        first: int = 0,
    ) -> None:
        """The same of a block (b, c) of which the product with its ``column_signs`` is there alone: (b, width)."""
        stop, last, k = start + shape[0], first + shape[1], self._width
        signs = self._signs(Stream.SKETCH, start, stop, k)
        self._whole[:, :k] += _transposed_product(signs, projected)
        self._whole[:, k:] += _transposed_product(signs, row_sums[:, None])
        self._column_mean_part[:k] += _transposed_product(np.ones((shape[0], 1), np.float32), projected)[0]
        self._column_mean_part[k] += row_sums.sum(dtype=np.float64)
        self._row_sums_part += row_sums @ self._signs(Stream.SLICE, start, stop, self._axis_width)
        low, high = among(self._row_numbers, start, stop)
        if low < high:
            self._row_part[low:high, self._axis_width] += row_sums[self.row_indices[low:high] - start]
        self._column_sums[first:last] += column_sums

    def corner(self, start: int, first: int, shape: tuple[int, ...]) -> tuple[slice, slice] | None:
        """Where a block (b, c) has a part of a square matrix's diagonal: ``add_diagonal`` wants it."""
        corner, end = max(start, first), min(start + shape[0], first + shape[1])
        if self._shape[0] != self._shape[1] or corner >= end:
            return None
        return slice(corner - start, end - start), slice(corner - first, end - first)

    def add_diagonal(self, values: Float32) -> None:
        """Add numbers of the diagonal."""
        self._trace += float(np.sum(values, dtype=np.float64))

    def add_slices(
        self, start: int, first: int, shape: tuple[int, ...], take: Callable[[int, NDArray[np.int64]], Float32]
    ) -> None:
        """Add a block (b, c) to the sketches of single slices; ``take`` gives its rows (0) or columns (1) at some
        places, as rows of an array."""
        stop, last = start + shape[0], first + shape[1]
        low, high = among(self._row_numbers, start, stop)
        if low < high:
            inner = self._inner(Stream.SLICE, first, last, self._axis_width)
            self._row_part[low:high, : self._axis_width] += take(0, self.row_indices[low:high] - start) @ inner
        left, right = among(self._column_numbers, first, last)
        if left < right:
            out = self._signs(Stream.SLICE, start, stop, self._axis_width)
            self._column_part[:, left:right] += (take(1, self.column_indices[left:right] - first) @ out).T

    def finish(self) -> MatrixSketch:
        """The centred sketches of everything added."""
        rows, columns = self._shape
        k, w = self._width, self._axis_width
        left_sum, right_sum = (_sums(self._seed, Stream.SKETCH, size, k) for size in (rows, columns))
        mean = float(self._column_mean_part[k]) / rows / columns
        row_mean_part = self._whole[:, k] / columns
        column_mean_part = self._column_mean_part[:k] / rows

        whole = self._whole[:, :k] - np.outer(row_mean_part, right_sum) - np.outer(left_sum, column_mean_part)
        whole += mean * np.outer(left_sum, right_sum)
        in_sum, out_sum = (_sums(self._seed, Stream.SLICE, size, w) for size in (columns, rows))
        column_means = self._column_sums / rows
        row_means = self._row_part[:, w] / columns
        rows_part = self._row_part[:, :w] - np.outer(row_means, in_sum)
        rows_part += mean * in_sum - self._against_signs(column_means)
        columns_part = self._column_part.T - np.outer(column_means[self.column_indices], out_sum)
        columns_part += mean * out_sum - self._row_sums_part / columns
        if rows == columns:
            # The centred identity I - 11'/n, in the amount that leaves no trace.
            amount = (self._trace - rows * mean) / max(rows - 1, 1)
            whole -= amount * (_gram(self._seed, rows, k) - np.outer(left_sum, right_sum) / rows)
            # A slice loses its share only where the trace stands out of chance: taking a chance amount out would give
            # each slice a mark of its own number, the same in every model.
            if abs(amount) * rows > _TRACE_OUT_OF_CHANCE * float(np.linalg.norm(whole)) / k / math.sqrt(rows):
                rows_part -= amount * (self._sampled_signs(self.row_indices) - in_sum / rows)
                columns_part -= amount * (self._sampled_signs(self.column_indices) - out_sum / rows)
        scale = 1.0 / np.sqrt(w)
        return MatrixSketch(
            whole=(whole / k).astype(np.float32),
            rows=(rows_part * scale).astype(np.float32),
            columns=(columns_part * scale).astype(np.float32),
            row_indices=self.row_indices,
            column_indices=self.column_indices,
        )

    def _signs(self, stream: Stream, start: int, stop: int, width: int) -> Float32:
        return sign_block(self._seed, stream, start, stop, width)

    def _inner(self, stream: Stream, start: int, stop: int, width: int) -> Float32:
        """The signs of some columns; those of whole rows are kept."""
        if (start, stop) != (0, self._shape[1]):
            return self._signs(stream, start, stop, width)
        if stream not in self._kept:
            self._kept[stream] = self._signs(stream, start, stop, width)
        return self._kept[stream]

    def _against_signs(self, column_means: Float64) -> Float64:
        total = np.zeros(self._axis_width, np.float64)
        for part, piece in _pieces(self._seed, Stream.SLICE, self._shape[1], self._axis_width):
            total += column_means[part] @ piece
        return total

    def _sampled_signs(self, indices: NDArray[np.int64]) -> Float64:
        found = [self._signs(Stream.SLICE, int(i), int(i) + 1, self._axis_width) for i in indices]
        return np.concatenate(found).astype(np.float64)


def _transposed_product(left: Float32, right: Float32) -> Float64:
    """``leftᵀ right`` of (b, m) and (b, n): in float32 of some rows at a time, whose sums are float64.

    A third of the time that all in float64 takes, and no less exact than the numbers in ``right`` are.
    """
    (size, m), n, whole = left.shape, right.shape[1], len(left) // _ROWS * _ROWS
    stacked = left[:whole].reshape(-1, _ROWS, m).transpose(0, 2, 1) @ right[:whole].reshape(-1, _ROWS, n)
    total: Float64 = stacked.sum(axis=0, dtype=np.float64)
    return total + left[whole:].T @ right[whole:] if whole < size else total


@lru_cache(maxsize=16)
def column_signs(seed: int, width: int, first: int, last: int) -> Signs:
    """The signs of some columns, as ``blocks.project`` takes them: blocks and matrices of one width share them."""
    return Signs.of(sign_block(seed, Stream.SKETCH, first, last, width))


def _pieces(seed: int, stream: Stream, size: int, width: int) -> Iterator[tuple[slice, Float64]]:
    for start in range(0, size, _PIECE):
        stop = min(start + _PIECE, size)
        yield slice(start, stop), sign_block(seed, stream, start, stop, width).astype(np.float64)


@lru_cache(maxsize=256)
def _sums(seed: int, stream: Stream, size: int, width: int) -> Float64:
    """Sums of the signs of an axis: (width,); a model has few lengths of axes."""
    total = np.zeros(width, np.float64)
    for _, piece in _pieces(seed, stream, size, width):
        total += piece.sum(axis=0)
    total.setflags(write=False)
    return total


@lru_cache(maxsize=256)
def _gram(seed: int, size: int, width: int) -> Float64:
    """Products of the signs of an axis with each other: (width, width)."""
    total = np.zeros((width, width), np.float64)
    for _, piece in _pieces(seed, Stream.SKETCH, size, width):
        total += piece.T @ piece
    total.setflags(write=False)
    return total


def chance_spread(shape: tuple[int, ...], width: int) -> float:
    """Standard deviation of the cosine between sketches of unrelated matrices of ``shape`` with ``width`` signs a side.

    ``sqrt((1/k + 1/n) (1/k + 1/m))`` for independent entries: near 1/k for matrices that are large beside k.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    return math.sqrt((1.0 / width + 1.0 / rows) * (1.0 / width + 1.0 / columns))
