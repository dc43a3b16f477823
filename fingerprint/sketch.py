"""Linear sketches of a matrix in one pass over its rows: the whole, sampled rows, sampled columns.

For a centred matrix W (rows x columns) and the sign matrix G of the generator, the sketch is ``G_rowsᵀ W G_columns``
(k x k numbers) divided by k, so that its squared Frobenius norm estimates that of W and inner products of sketches
estimate inner products of matrices (Charikar, Chen & Farach-Colton 2002; tensor form as in Pham & Pagh 2013). Rows and
columns draw from the same stream, so the sketch of the transpose is the transpose of the sketch. Centring removes
the mean of every row and of every column, and from square matrices the multiple of the identity; it is applied to the
sums afterwards, since everything is linear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fingerprint.signs import Stream, sample_indices, sign_matrix

if TYPE_CHECKING:
    from fingerprint.parameters import Parameters

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MatrixSketch:
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
    """Accumulates the sketch of a (rows, columns) matrix from blocks of consecutive rows, in float32 products and
    float64 sums."""

    def __init__(self, rows: int, columns: int, parameters: Parameters) -> None:
        seed = parameters.seed
        self._shape = (rows, columns)
        self._width = parameters.sketch_width
        self._axis_width = parameters.axis_width
        self._row_signs = sign_matrix(seed, Stream.SKETCH, rows, parameters.sketch_width)
        self._column_signs = sign_matrix(seed, Stream.SKETCH, columns, parameters.sketch_width)
        ones = np.ones((columns, 1), np.float32)
        self._right = np.concatenate([self._column_signs, ones], axis=1)
        self.row_indices = sample_indices(seed, Stream.AXIS_SAMPLE, rows, parameters.axis_samples)
        self.column_indices = sample_indices(seed, Stream.AXIS_SAMPLE, columns, parameters.axis_samples)
        # Slices get signs of their own, so that their errors are independent of those of the whole sketch.
        self._slice_signs_in = sign_matrix(seed, Stream.SLICE, columns, parameters.axis_width)
        self._slice_signs_out = sign_matrix(seed, Stream.SLICE, rows, parameters.axis_width)
        self._row_part = np.zeros((self.row_indices.size, self._axis_width), np.float64)
        self._products = np.empty((rows, self._width + 1), np.float32)
        self._column_part = np.zeros((self._axis_width, self.column_indices.size), np.float64)
        self._column_sums = np.zeros(columns, np.float64)
        self._trace = 0.0

    def update(self, start: int, block: Float32) -> None:
        """Add rows ``start`` onwards: ``block`` (b, columns) float32 without NaN or infinities."""
        stop = start + len(block)
        np.matmul(block, self._right, out=self._products[start:stop])
        sampled = block[:, self.column_indices]
        low, high = np.searchsorted(self.row_indices, (start, stop))
        self._row_part[low:high] = block[self.row_indices[low:high] - start] @ self._slice_signs_in
        left = self._slice_signs_out[start:stop]
        self._column_part += left.T @ sampled
        self._column_sums += block.sum(axis=0, dtype=np.float64)
        if self._shape[0] == self._shape[1]:
            self._trace += float(np.trace(block[:, start:stop], dtype=np.float64))

    def finish(self) -> MatrixSketch:
        """The centred sketches of everything added."""
        rows, columns = self._shape
        k = self._width
        products = self._products[:, :k].astype(np.float64)
        sums = self._products[:, k].astype(np.float64)
        left, right = self._row_signs.astype(np.float64), self._column_signs.astype(np.float64)
        row_means = sums / columns
        mean = float(row_means.mean())
        right_sum, left_sum = right.sum(axis=0), left.sum(axis=0)
        column_mean_part = products.mean(axis=0)  # the column means times the signs
        row_mean_part = left.T @ row_means

        whole = left.T @ products - np.outer(row_mean_part, right_sum) - np.outer(left_sum, column_mean_part)
        whole += mean * np.outer(left_sum, right_sum)
        signs_in, signs_out = self._slice_signs_in.astype(np.float64), self._slice_signs_out.astype(np.float64)
        in_sum, out_sum = signs_in.sum(axis=0), signs_out.sum(axis=0)
        column_means = self._column_sums / rows
        rows_part = self._row_part - np.outer(row_means[self.row_indices], in_sum)
        rows_part += mean * in_sum - column_means @ signs_in
        columns_part = self._column_part.T - np.outer(column_means[self.column_indices], out_sum)
        columns_part += mean * out_sum - row_means @ signs_out
        if rows == columns:
            # The centred identity I - 11'/n, in the amount that leaves no trace.
            amount = (self._trace - rows * mean) / max(rows - 1, 1)
            whole -= amount * (left.T @ right - np.outer(left_sum, right_sum) / rows)
            rows_part -= amount * (signs_in[self.row_indices] - in_sum / rows)
            columns_part -= amount * (signs_out[self.column_indices] - out_sum / rows)
        scale = 1.0 / np.sqrt(self._axis_width)
        return MatrixSketch(
            whole=(whole / k).astype(np.float32),
            rows=(rows_part * scale).astype(np.float32),
            columns=(columns_part * scale).astype(np.float32),
            row_indices=self.row_indices,
            column_indices=self.column_indices,
        )


def chance_spread(shape: tuple[int, ...], width: int) -> float:
    """Standard deviation of the cosine between sketches of unrelated matrices of ``shape`` with ``width`` signs a side.

    ``sqrt((1/k + 1/n) (1/k + 1/m))`` for independent entries: near 1/k for matrices that are large beside k.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    return math.sqrt((1.0 / width + 1.0 / rows) * (1.0 / width + 1.0 / columns))
