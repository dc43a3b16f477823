"""One pass over one tensor: digest, statistics, sketches, and what is needed of single rows and columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fingerprint.content import LATTICE_TILE, SLICE_SAMPLES, is_analytic, lattice_bits
from fingerprint.digest import TensorDigester
from fingerprint.dtypes import Kind, to_float32
from fingerprint.records import TensorStatistics
from fingerprint.signs import Stream, sample_indices
from fingerprint.sketch import MatrixSketch, MatrixSketcher
from fingerprint.tensors import Transposed, element_count, read_rows
from fingerprint.vocabulary import Content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.parameters import Parameters
    from fingerprint.tensors import TensorView

Array = NDArray[Any]
Float32 = NDArray[np.float32]

BLOCK_ELEMENTS: Final = 1 << 18
"""Elements per block of the pass: 1 MB in float32, so that a block stays in the cache while it is used."""
TRANSPOSED_BLOCK_ELEMENTS: Final = 1 << 24
"""Larger where every block has to gather columns of the whole source."""

_SMOOTH: Final = 0.05

CASTS: Final = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""The narrower float types whose rounding of a tensor gets a digest of its own."""


@dataclass(slots=True)
class TensorMeasurement:
    """What one pass found out.

    ``sketch`` is None for anything but a matrix of weights; the norms are there if they were asked for.
    """

    content: Content
    digest: bytes
    casts: dict[str, bytes]
    statistics: TensorStatistics
    sketch: MatrixSketch | None
    row_norms: Float32 | None = None
    column_norms: Float32 | None = None


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a canonical tensor seen as a matrix: everything after the first axis is columns."""
    return (shape[0], math.prod(shape[1:])) if len(shape) >= 2 else (1, element_count(shape))


def measure_tensor(view: TensorView, parameters: Parameters, *, casts: bool, norms: bool = False) -> TensorMeasurement:
    """Measure one canonical tensor in blocks, reading every element once.

    ``casts`` adds the digests after rounding to narrower types (wanted for registration), ``norms`` the Euclidean
    norms of all rows and columns. Raises ``InputError`` if bytes cannot be read.
    """
    rows, columns = matrix_shape(view.shape)
    is_float = view.dtype.kind is Kind.FLOAT
    wants_sketch = is_float and len(view.shape) >= 2 and min(rows, columns) > 1
    wants_sketch = wants_sketch and rows * columns >= parameters.minimum_elements
    digester = TensorDigester(parameters.digest_block)
    narrower = _narrower_types(view) if casts and is_float else {}
    cast_digesters = {name: TensorDigester(parameters.digest_block) for name in narrower}
    sketcher = MatrixSketcher(rows, columns, parameters) if wants_sketch else None
    moments = _Moments()
    probe = _Probe(rows, columns, parameters) if wants_sketch else None
    slice_norms = _SliceNorms(rows, columns) if norms and wants_sketch else None
    roughness = _Roughness()

    for start, native in row_blocks(view):
        flat = native.reshape(-1)
        digester.update(flat)
        if not is_float:
            moments.add_integers(flat)
            continue
        block = to_float32(native)
        with np.errstate(over="ignore", invalid="ignore"):
            for name, dtype in narrower.items():
                cast_digesters[name].update(flat.astype(dtype))
        block = moments.add(block)
        if sketcher is not None and probe is not None:
            sketcher.update(start, block)
            probe.add(start, block)
        if slice_norms is not None:
            slice_norms.add(start, block)
        if not wants_sketch:
            roughness.add(block.reshape(-1))

    statistics = moments.finish(probe.lattice_bits() if probe else 0)
    content = _content(view, statistics, probe, moments.constant, wants_sketch)
    if content is Content.VECTOR and roughness.is_smooth(statistics.deviation):
        content = Content.ANALYTIC
    return TensorMeasurement(
        content=content,
        digest=digester.digest(),
        casts={name: one.digest() for name, one in cast_digesters.items()},
        statistics=statistics,
        sketch=sketcher.finish() if sketcher is not None and content is Content.WEIGHTS else None,
        row_norms=slice_norms.rows if slice_norms is not None else None,
        column_norms=slice_norms.columns if slice_norms is not None else None,
    )


def measure_digest(view: TensorView, parameters: Parameters) -> bytes:
    """The content digest alone. Raises ``InputError`` if bytes cannot be read."""
    digester = TensorDigester(parameters.digest_block)
    for _, native in row_blocks(view):
        digester.update(native.reshape(-1))
    return digester.digest()


def row_blocks(view: TensorView) -> Iterator[tuple[int, Array]]:
    """The tensor as blocks of consecutive rows: (first row, (b, columns) array of the stored type)."""
    if len(view.shape) < 2:
        count = element_count(view.shape)
        for start in range(0, count, BLOCK_ELEMENTS):
            yield 0, view.read(start, min(start + BLOCK_ELEMENTS, count)).reshape(1, -1)
        return
    rows, columns = matrix_shape(view.shape)
    if not rows * columns:
        return
    budget = TRANSPOSED_BLOCK_ELEMENTS if isinstance(view, Transposed) else BLOCK_ELEMENTS
    step = max(1, budget // columns)
    for start in range(0, rows, step):
        yield start, read_rows(view, start, min(start + step, rows))


def gather_rows(view: TensorView, indices: NDArray[np.int64]) -> Float32:
    """The given rows of a matrix view as float32: (m, columns), non-finite values as 0."""
    if isinstance(view, Transposed):
        parts = [to_float32(native[:, indices]) for _, native in row_blocks(view.source)]
        rows = np.concatenate(parts).T
    else:
        rows = np.concatenate([to_float32(read_rows(view, int(i), int(i) + 1)) for i in indices])
    return np.nan_to_num(np.ascontiguousarray(rows), nan=0.0, posinf=0.0, neginf=0.0)


def gather_columns(view: TensorView, indices: NDArray[np.int64]) -> Float32:
    """The given columns of a matrix view as float32, as rows of the result: (m, rows), non-finite values as 0."""
    if isinstance(view, Transposed):
        return gather_rows(view.source, indices)
    parts = [to_float32(native[:, indices]) for _, native in row_blocks(view)]
    return np.nan_to_num(np.ascontiguousarray(np.concatenate(parts).T), nan=0.0, posinf=0.0, neginf=0.0)


def _narrower_types(view: TensorView) -> dict[str, np.dtype[Any]]:
    return {
        name: dtype
        for name, dtype in CASTS.items()
        if name != view.dtype.name and dtype.itemsize * 8 <= view.dtype.bits
    }


def _content(
    view: TensorView, statistics: TensorStatistics, probe: _Probe | None, constant: bool, matrix: bool
) -> Content:
    if element_count(view.shape) == 0:
        return Content.EMPTY
    if view.dtype.kind is not Kind.FLOAT:
        return Content.INTEGER
    if statistics.nonfinite * 2 > element_count(view.shape):
        return Content.NONFINITE
    if constant:
        return Content.CONSTANT
    if len([size for size in view.shape if size != 1]) < 2:
        return Content.VECTOR
    if not matrix or probe is None:
        return Content.SMALL
    return Content.ANALYTIC if probe.is_analytic() else Content.WEIGHTS


@dataclass(slots=True)
class _Moments:
    """Sums of powers over the finite elements, block by block."""

    count: int = 0
    nonfinite: int = 0
    zeros: int = 0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    low: float = math.inf
    high: float = -math.inf
    _shift: float | None = None

    def add(self, block: Float32) -> Float32:
        """Add a float32 block; returns it with NaN and infinities as 0."""
        if not block.size:
            return block
        flat = block.reshape(-1)
        square_sum = float(np.dot(flat, flat))
        if not math.isfinite(square_sum):
            finite = np.isfinite(flat)
            self.nonfinite += int(flat.size - np.count_nonzero(finite))
            flat = np.where(finite, flat, np.float32(0))
            block = flat.reshape(block.shape)
            square_sum = float(np.dot(flat.astype(np.float64), flat.astype(np.float64)))
        squares = flat * flat
        self.count += flat.size
        self.zeros += flat.size - int(np.count_nonzero(flat))
        cube_sum, fourth_sum = float(np.dot(squares, flat)), float(np.dot(squares, squares))
        self.sums += (float(flat.sum(dtype=np.float64)), square_sum, cube_sum, fourth_sum)
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        return block

    def add_integers(self, flat: Array) -> None:
        """Count an integer, boolean or complex block; nothing else is measured of it."""
        self.count += flat.size

    @property
    def constant(self) -> bool:
        """Whether all values are the same."""
        return self.low >= self.high

    def finish(self, bits: int) -> TensorStatistics:
        """The statistics of everything added; moments that overflow are given as 0."""
        count = max(self.count - self.nonfinite, 1)
        first, second, third, fourth = (float(value) / count for value in self.sums)
        variance = max(second - first**2, 0.0)
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        kurtosis = central / variance**2 if variance > 0 else 0.0
        largest = max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0
        return TensorStatistics(
            mean=_finite(first),
            deviation=_finite(math.sqrt(variance)) if math.isfinite(variance) else 0.0,
            largest=_finite(largest),
            kurtosis=_finite(kurtosis),
            zeros=(self.zeros - self.nonfinite) / max(self.count, 1),
            nonfinite=self.nonfinite,
            lattice_bits=bits,
        )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


class _SliceNorms:
    """Euclidean norms of rows and columns of a matrix, block by block."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = np.zeros(rows, np.float32)
        self._squares = np.zeros(columns, np.float64)

    def add(self, start: int, block: Float32) -> None:
        """Add rows ``start`` onwards."""
        self.rows[start : start + len(block)] = np.sqrt(np.einsum("ij,ij->i", block, block))
        self._squares += np.einsum("ij,ij->j", block, block)

    @property
    def columns(self) -> Float32:
        """Norms of the columns, once all rows were added."""
        return np.sqrt(self._squares).astype(np.float32)


class _Roughness:
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


class _Probe:
    """A few rows, columns and square tiles of a matrix, kept as they are to judge its content."""

    def __init__(self, rows: int, columns: int, parameters: Parameters) -> None:
        seed = parameters.seed
        self._row_indices = sample_indices(seed, Stream.PROBE, rows, SLICE_SAMPLES)
        self._column_indices = sample_indices(seed, Stream.PROBE, columns, SLICE_SAMPLES)
        self._rows = np.zeros((self._row_indices.size, columns), np.float32)
        self._columns = np.zeros((self._column_indices.size, rows), np.float32)
        tile_rows, tile_columns = max(rows // LATTICE_TILE, 1), max(columns // LATTICE_TILE, 1)
        number = tile_rows * tile_columns
        self._tiles = {
            (int(i) // tile_columns * LATTICE_TILE, int(i) % tile_columns * LATTICE_TILE): np.zeros(
                (min(rows, LATTICE_TILE), min(columns, LATTICE_TILE)), np.float32
            )
            for i in sample_indices(seed, Stream.PROBE, number, 4)
        }

    def add(self, start: int, block: Float32) -> None:
        """Keep what is wanted of rows ``start`` onwards."""
        stop = start + len(block)
        low, high = np.searchsorted(self._row_indices, (start, stop))
        self._rows[low:high] = block[self._row_indices[low:high] - start]
        self._columns[:, start:stop] = block[:, self._column_indices].T
        for (row, column), tile in self._tiles.items():
            first, last = max(row, start), min(row + len(tile), stop)
            if first < last:
                tile[first - row : last - row] = block[first - start : last - start, column : column + tile.shape[1]]

    def is_analytic(self) -> bool:
        """See ``content.is_analytic``."""
        return is_analytic(self._rows, self._columns)

    def lattice_bits(self) -> int:
        """See ``content.lattice_bits``."""
        return lattice_bits(list(self._tiles.values()))
