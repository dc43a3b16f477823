"""One pass over one tensor: digest, statistics, sketches, and what is needed of single rows and columns."""

from __future__ import annotations

import math
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from fingerprint.blocks import Scratch, Slices, cut, look, project, projects, widened, without_nonfinite
from fingerprint.content import SLICE_SAMPLES
from fingerprint.device import chosen
from fingerprint.digest import TensorDigester
from fingerprint.dtypes import Kind
from fingerprint.moments import Moments, SliceNorms
from fingerprint.probe import Probe, Roughness
from fingerprint.readers.base import StoredTensor
from fingerprint.signs import Stream, sample_indices
from fingerprint.sketch import MatrixSketch, MatrixSketcher, column_signs
from fingerprint.slices import SliceCollector, StoredSlices, ceiling, ceiling_runs, clean, slice_digests, within
from fingerprint.tensors import Reshaped, RowSlice, Transposed, element_count, read_rows
from fingerprint.vectors import distinct
from fingerprint.vocabulary import Content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fingerprint.blocks import Piece
    from fingerprint.parameters import Parameters
    from fingerprint.records import TensorStatistics
    from fingerprint.tensors import TensorView

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
SliceDigests = tuple[bytes, dict[str, bytes]]

BLOCK_ELEMENTS: Final = 1 << 21
"""Elements per block of the pass, as they are stored: 4 MB in bf16."""
STORED_BLOCK_ELEMENTS: Final = 1 << 23
"""Larger where reading makes no copy: what is done once for a block takes as long as four million elements do."""
BLOCK_COLUMNS: Final = 1 << 20
"""Most columns of a block: each takes a row of signs."""
PIECE_ELEMENTS: Final = 1 << 18
"""Elements of a block that are in float32 at a time: 1 MB, so that they stay in the cache while they are used."""
PIECE_COLUMNS: Final = 1 << 11
BLOCK_ROWS: Final = 1 << 15
"""Most rows of a block, however few columns: each takes a row of signs."""
TRANSPOSED_BLOCK_ELEMENTS: Final = 1 << 24
"""Larger where every block has to gather columns of the whole source."""
MOST_PROJECTED: Final = 1 << 15
"""Columns of a matrix whose blocks are projected as they are looked at: 2 MB of signs, beside those that all share."""
MOST_EXACT: Final = 1 << 20
"""Elements of a vector, such as the gains of a norm, whose moments are told though they hardly differ."""
MOST_SKETCHED_AXIS: Final = 1 << 22
"""Longest axis of a matrix that gets a sketch: what is kept for each column and row stays small."""

_SMALL: Final = 1 << 16
"""Elements of a matrix that is read as a whole where a few parts of it are wanted."""
NO_WEIGHTS: Final = 1e-9
"""Share of a matrix's energy outside its row and column means below which only the rounding of the means is left."""
CASTS: Final = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""The narrower float types whose rounding of a tensor gets a digest of its own."""


class TensorMeasurement(Struct):
    """What one pass found out.

    ``sketch`` is None for anything but a matrix of weights; ``slices`` are the digests of its first rows and of its
    first columns, with those after rounding; the norms are there if they were asked for.
    """

    content: Content
    digest: bytes
    casts: dict[str, bytes]
    statistics: TensorStatistics
    sketch: MatrixSketch | None
    slices: tuple[SliceDigests, SliceDigests]
    row_norms: Float32 | None = None
    column_norms: Float32 | None = None


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a canonical tensor seen as a matrix: everything after the first axis is columns."""
    return (shape[0], math.prod(shape[1:])) if len(shape) >= 2 else (1, element_count(shape))


def has_long_axis(shape: tuple[int, ...]) -> bool:
    """Whether a matrix of that shape has too long an axis for a sketch."""
    rows, columns = matrix_shape(shape)
    return min(rows, columns) > 1 and max(rows, columns) > MOST_SKETCHED_AXIS


def measure_tensor(
    view: TensorView,
    parameters: Parameters,
    *,
    casts: bool,
    norms: bool = False,
    column_norms: bool = True,
    sampled: bool = True,
) -> TensorMeasurement:
    """Measure one canonical tensor in blocks, reading every element once.

    ``casts`` adds the digests after rounding to narrower types (wanted for registration), ``norms`` the Euclidean
    norms of all rows and, if ``column_norms``, of all columns; without ``sampled`` nothing is kept of single slices.
    Raises ``InputError`` if bytes cannot be read.
    """
    # Suspects hold what they like: values near the largest float32 overflow, and are then set aside.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return _measure(view, parameters, casts=casts, norms=norms, column_norms=column_norms, sampled=sampled)


def _measure(  # noqa: PLR0915 - one pass, step by step
    view: TensorView, parameters: Parameters, *, casts: bool, norms: bool, column_norms: bool, sampled: bool
) -> TensorMeasurement:
    rows, columns = matrix_shape(view.shape)
    is_float = view.dtype.kind is Kind.FLOAT
    wants_sketch = is_float and len(view.shape) >= 2 and min(rows, columns) > 1
    wants_sketch = wants_sketch and rows * columns >= parameters.minimum_elements
    wants_sketch = wants_sketch and not has_long_axis(view.shape)
    narrower = narrower_types(view) if casts and is_float else {}
    hashes = _Hashes(narrower, parameters.digest_block)
    sketcher = MatrixSketcher(rows, columns, parameters) if wants_sketch else None
    moments = Moments()
    probe = Probe(rows, columns, parameters) if wants_sketch else None
    slice_norms = SliceNorms(rows, columns if column_norms else 0) if norms and wants_sketch else None
    roughness = Roughness()
    slices = SliceCollector(rows, columns, parameters) if wants_sketch and sampled else None
    limit = _ceiling(view, parameters) if wants_sketch else math.inf
    wants_squares = slice_norms is not None and column_norms
    exact = not wants_sketch and rows * columns <= MOST_EXACT
    places = _places(columns, parameters)
    projected_by = parameters if wants_sketch and columns <= MOST_PROJECTED and _can_project(parameters) else None

    for start, first, native in row_blocks(view):
        hashes.begin(native)
        if not is_float:
            moments.add_integers(native.reshape(-1))
            hashes.finish(normal=False)
            continue
        normal, single = True, Slices(native)
        for row, column, piece in _looked_at(native, limit, projected_by, first, places, hashes, squares=wants_squares):
            normal = normal and piece.normal
            moments.add(piece, native[row : row + piece.shape[0], column : column + piece.shape[1]] if exact else None)
            if slice_norms is not None:
                slice_norms.add(start + row, first + column, piece)
            if sketcher is None:
                roughness.add(piece.numbers.reshape(-1))
            elif piece.projected is None:
                sketcher.add(start + row, piece.numbers, piece.rows, piece.columns, first + column)
            else:
                single = Slices(native, places, piece.taken)
                sketcher.add_projected(start, piece.shape, piece.projected, piece.rows, piece.columns, first)
                corner = sketcher.corner(start, first, piece.shape)
                if corner is not None:
                    sketcher.add_diagonal(within(clean(np.diagonal(native[corner])), limit))
        hashes.finish(normal=normal)
        if slices is not None:
            slices.add(start, first, native, single)
        if sketcher is not None and probe is not None:
            probe.add(start, first, native, single)
            sketcher.add_slices(start, first, native.shape, partial(_along, single, limit))

    statistics = moments.finish(probe.lattice_bits() if probe else 0)
    content = _content(view, statistics, probe, moments.constant, wants_sketch)
    sketch = sketcher.finish() if sketcher is not None and content is Content.WEIGHTS else None
    if sketch is not None:
        content = _content_of_sketch(sketch, min(moments.energy, rows * columns * limit**2))
        sketch = sketch if content is Content.WEIGHTS else None
        sketch = sketch if sampled or sketch is None else replace(sketch, rows=None, columns=None)
    if content is Content.VECTOR and roughness.is_smooth(statistics.deviation):
        content = Content.ANALYTIC
    return TensorMeasurement(
        content=content,
        digest=hashes.digest(),
        casts=hashes.casts(),
        statistics=statistics,
        sketch=sketch,
        slices=_slice_digests(slices if sketch is not None else None, narrower, parameters),
        row_norms=slice_norms.rows if slice_norms is not None else None,
        column_norms=slice_norms.columns if slice_norms is not None and column_norms else None,
    )


_scratch = Scratch()
_scratch_of_slices = Scratch()


def _can_project(parameters: Parameters) -> bool:
    """Whether blocks are projected as they are looked at: with compiled loops, and no other device to do it."""
    return projects(parameters.sketch_width) and chosen() is None


class _Hashes:
    """The digests of a tensor, of its blocks one after the other; of those after rounding to ``narrower`` types too.

    Of a block what was looked at already can be hashed at once, as long as it is in the nearer cache.
    """

    def __init__(self, narrower: Mapping[str, np.dtype[Any]], block: int) -> None:
        self._narrower = narrower
        self._digester = TensorDigester(block)
        self._casts = {name: TensorDigester(block) for name in narrower}
        self._flat: Array = np.zeros(0, np.float32)
        self._columns = self._hashed = 0

    def begin(self, native: Array) -> None:
        """The next block (b, c), contiguous."""
        self._flat, self._columns, self._hashed = native.reshape(-1), native.shape[1], 0

    def looked_at(self, rows: int, normal: bool) -> None:
        """Of the block the first ``rows``: hash what they fill of blocks of the digest. See ``finish``."""
        self._hash(self._digester.whole(rows * self._columns - self._hashed), normal=normal)

    def finish(self, *, normal: bool) -> None:
        """Hash the rest of the block; ``normal``: see ``TensorDigester.update``."""
        self._hash(self._flat.size - self._hashed, normal=normal)

    def digest(self) -> bytes:
        """Of the values."""
        return self._digester.digest()

    def casts(self) -> dict[str, bytes]:
        """Of the values after rounding, by type."""
        return {name: one.digest() for name, one in self._casts.items()}

    def _hash(self, count: int, *, normal: bool) -> None:
        part = self._flat[self._hashed : self._hashed + count]
        self._hashed += count
        self._digester.update(part, normal=normal)
        for name, dtype in self._narrower.items():
            self._casts[name].update(_rounded(part, dtype))


def _looked_at(
    native: Array,
    limit: float,
    projected_by: Parameters | None,
    first: int,
    places: Int64,
    hashes: _Hashes,
    *,
    squares: bool,
) -> Iterator[tuple[int, int, Piece]]:
    """A block, projected as a whole where that can be done, else in pieces; each with its first row and column."""
    if projected_by is not None:
        signs = column_signs(projected_by.seed, projected_by.sketch_width, first, first + native.shape[1])
        piece = project(native, limit, signs, _scratch, places, column_squares=squares, done=hashes.looked_at)
        if piece is not None:
            yield 0, 0, piece
            return
    for row, column, part in _pieces(native):
        yield row, column, look(part, limit, _scratch, column_squares=squares)


def _pieces(native: Array) -> Iterator[tuple[int, int, Array]]:
    """A block in pieces, each with the numbers of its first row and column."""
    rows, columns = native.shape
    most = PIECE_ELEMENTS if rows == 1 else PIECE_COLUMNS
    wide = -(-columns // -(-columns // most))
    step = max(1, PIECE_ELEMENTS // wide)
    for row in range(0, rows, step):
        for column in range(0, columns, wide):
            yield row, column, native[row : row + step, column : column + wide]


def _along(slices: Slices, limit: float, axis: int, indices: Int64) -> Float32:
    """Some rows or columns of a block, as the sketches see them: there until the next ones are asked for."""
    return cut(without_nonfinite(widened(slices.along(axis, indices), _scratch_of_slices)), limit, _scratch_of_slices)


@lru_cache(maxsize=256)
def _places(columns: int, parameters: Parameters) -> Int64:
    """Numbers of all columns that are sampled of a matrix, each once, ascending."""
    sampled = sample_indices(parameters.seed, Stream.AXIS_SAMPLE, columns, parameters.axis_samples)
    places = distinct(sampled, sample_indices(parameters.seed, Stream.PROBE, columns, SLICE_SAMPLES))
    places.setflags(write=False)
    return places


def _ceiling(view: TensorView, parameters: Parameters) -> float:
    """See ``slices.ceiling``."""
    stored = StoredSlices.of(view)
    runs = ceiling_runs(stored.size, stored.length, parameters)
    mapped = isinstance(stored.source, StoredTensor) and stored.source.is_mapped
    if stored.is_whole and (mapped or stored.size * stored.length <= _SMALL):
        whole = read_rows(stored.source, 0, stored.size)
        return ceiling(whole[row, first:last] for row, first, last in runs)
    return ceiling(stored.read(row)[first:last] for row, first, last in runs)


def measure_digest(view: TensorView, parameters: Parameters) -> bytes:
    """The content digest alone. Raises ``InputError`` if bytes cannot be read."""
    digester = TensorDigester(parameters.digest_block)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for _, _, native in row_blocks(view):
            digester.update(native.reshape(-1))
    return digester.digest()


def row_blocks(view: TensorView) -> Iterator[tuple[int, int, Array]]:
    """The tensor in row-major blocks: (first row, first column, (b, c) array of the stored type).

    Whole rows where they fit into a block, else pieces of one row. Of a transposed matrix larger pieces are read, and
    cut into blocks.
    """
    rows, columns = matrix_shape(view.shape)
    if not rows * columns:
        return
    block = STORED_BLOCK_ELEMENTS if _lies_together(view) else BLOCK_ELEMENTS
    budget, widest = block, BLOCK_COLUMNS
    if isinstance(view, Transposed):
        budget = widest = TRANSPOSED_BLOCK_ELEMENTS
    if columns > widest:
        for row in range(rows):
            for first in range(0, columns, widest):
                last = min(first + widest, columns)
                yield row, first, view.read(row * columns + first, row * columns + last).reshape(1, -1)
        return
    step = budget // columns
    part = max(1, min(block // columns, BLOCK_ROWS))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        held = view.read(start * columns, stop * columns).reshape(-1, columns)
        for row in range(0, len(held), part):
            for first in range(0, columns, BLOCK_COLUMNS):
                yield start + row, first, held[row : row + part, first : first + BLOCK_COLUMNS]


def _lies_together(view: TensorView) -> bool:
    """Whether the elements lie in a source as they are read."""
    while isinstance(view, (RowSlice, Reshaped)):
        view = view.source
    return isinstance(view, StoredTensor)


def _slice_digests(
    slices: SliceCollector | None, narrower: Mapping[str, np.dtype[Any]], parameters: Parameters
) -> tuple[SliceDigests, SliceDigests]:
    if slices is None:
        return (b"", {}), (b"", {})
    casts = roundings(narrower)
    rows, columns = (slice_digests(slices.slices(dimension), casts, parameters.digest_block) for dimension in (0, 1))
    return rows, columns


def roundings(narrower: Mapping[str, np.dtype[Any]]) -> dict[str, Callable[[Array], Array]]:
    """The functions that round to some float types, by name."""
    return {name: partial(_rounded, dtype=dtype) for name, dtype in narrower.items()}


def _rounded(flat: Array, dtype: np.dtype[Any]) -> Array:
    """``flat`` rounded to a narrower float type; looked up where there are only 65536 values to round."""
    if flat.dtype.itemsize != 2:
        return flat.astype(dtype)
    return _roundings(flat.dtype, dtype).take(flat.view(np.uint16), mode="clip").view(dtype)


@cache
def _roundings(source: np.dtype[Any], target: np.dtype[Any]) -> Array:
    """The bits of every 16-bit float of type ``source`` after rounding to ``target``.

    Looking 2**18 bfloat16 up takes 0.5 ms where rounding them to F8 takes 30 ms; float16, 2 ms.
    """
    every = np.arange(1 << 16, dtype=np.uint16).view(source)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return every.astype(target).view(f"u{target.itemsize}")


def narrower_types(view: TensorView) -> dict[str, np.dtype[Any]]:
    """The types of ``CASTS`` that are narrower than the tensor's own."""
    return {
        name: dtype
        for name, dtype in CASTS.items()
        if name != view.dtype.name and dtype.itemsize * 8 <= view.dtype.bits
    }


def _content(
    view: TensorView, statistics: TensorStatistics, probe: Probe | None, constant: bool, matrix: bool
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


def _content_of_sketch(sketch: MatrixSketch, energy: float) -> Content:
    """What a matrix of weights turns out to be by its sketch: nothing but means, or too large for float32."""
    whole = sketch.whole.astype(np.float64)
    if not all(np.isfinite(part).all() for part in (whole, sketch.rows, sketch.columns) if part is not None):
        return Content.NONFINITE
    return Content.WEIGHTS if float(np.sum(whole**2)) > NO_WEIGHTS * energy else Content.ANALYTIC
