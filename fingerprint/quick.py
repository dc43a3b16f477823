"""A quick look at a checkpoint: of every matrix a few rows as they are stored, of everything small all.

What is read does not grow with the lengths of the matrices' long axes, and hardly with their number. All of it is part
of what a full look reads and keeps, so that both can be compared (``comparing.sampled``).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from fingerprint.assemble import Measured, record_of
from fingerprint.blocks import Scratch, look
from fingerprint.canonical import lay_out
from fingerprint.content import LATTICE_TILE, is_analytic, lattice_bits
from fingerprint.dtypes import Kind
from fingerprint.measure import (
    NO_WEIGHTS,
    has_long_axis,
    matrix_shape,
    measure_tensor,
    narrower_types,
    roundings,
)
from fingerprint.moments import Moments
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.records import AxisSample, Fingerprint, TensorRecord, TensorStatistics
from fingerprint.signs import Stream, sample_indices, sign_block
from fingerprint.slices import (
    StoredSlices,
    ceiling,
    ceiling_runs,
    digested_indices,
    places_within,
    quick_indices,
    slice_digests,
    within,
)
from fingerprint.tensors import element_count
from fingerprint.threads import single_blas, thread_count
from fingerprint.units import first_of, unit_of
from fingerprint.vocabulary import Content, Depth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.checkpoint import Checkpoint
    from fingerprint.parameters import Parameters
    from fingerprint.tensors import Array
    from fingerprint.units import Unit

Float32 = NDArray[np.float32]

MOST_MATRICES: Final = 192
"""Matrices of a suspect of which slices are read, the first by the order of their units."""
MOST_REGISTERED: Final = 1 << 12
"""The same of a registered model: one shard of a suspect with thousands of experts is to meet some of them."""
MOST_WHOLE: Final = 1 << 12
"""Small tensors that are read whole, the first by the order of their units."""
WHOLE_ELEMENTS: Final = 1 << 14
"""A tensor of so many elements is small."""
MOST_BYTES: Final = 1 << 23
"""Bytes of the slices of one matrix: one with longer rows is not read."""
_TILES: Final = 4
_PIECE: Final = 1 << 16
_NOTHING: Final = TensorStatistics(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)


def quick_look(
    checkpoint: Checkpoint,
    *,
    parameters: Parameters = DEFAULT_PARAMETERS,
    casts: bool = True,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> Measured:
    """Measure a checkpoint at quick depth; the arguments are those of ``assemble.measure_checkpoint``.

    Raises ``InputError``.
    """
    layout = lay_out(checkpoint.tensors, checkpoint.metadata)
    tensors = layout.tensors
    small = first_of_small([one.view.shape for one in tensors], [unit_of(one.layer, one.expert) for one in tensors])
    matrices = first_matrices(
        [one.view.shape if one.view.dtype.kind is Kind.FLOAT else () for one in tensors],
        [unit_of(one.layer, one.expert) for one in tensors],
        MOST_REGISTERED if casts else MOST_MATRICES,
    )

    # Rows that lie elsewhere are waited for together; few matrices at a time are held in memory all the same. What lies
    # here is looked at by one thread: arrays are so small that several would wait for one another's turn.
    waiting = ThreadPoolExecutor(checkpoint.transfer.options.parallel) if checkpoint.transfer is not None else None
    together = map if waiting is None else waiting.map
    workers = workers or (1 if waiting is None else thread_count())

    def look(position: int) -> tuple[TensorRecord, int]:
        tensor = tensors[position]
        record, elements = _unread(tensor), 0
        if position in small:
            record = record_of(tensor, measure_tensor(tensor.view, parameters, casts=casts))
            elements = element_count(tensor.view.shape)
        elif position in matrices:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                record, elements = _sampled(tensor, parameters, casts=casts, together=together)
        stored = elements * tensor.view.dtype.bits // 8
        if progress is not None:
            progress(stored)
        return record, stored

    pool = ThreadPoolExecutor(workers) if workers > 1 else None
    with single_blas(), waiting or nullcontext(), pool or nullcontext():
        looked = list((map if pool is None else pool.map)(look, range(len(tensors))))
    records = tuple(record for record, _ in looked)
    made = Fingerprint(
        parameters=parameters,
        depth=Depth.QUICK,
        format=checkpoint.format,
        files=len(checkpoint.files),
        stored_bytes=checkpoint.bytes,
        bytes_read=sum(stored for _, stored in looked),
        dtypes=checkpoint.dtypes,
        complete=checkpoint.complete,
        tensors=records,
        neurons=(),
        findings=tuple((finding.code, finding.message) for finding in checkpoint.findings),
        claims=dict(checkpoint.metadata),
    )
    return Measured(made, tensors)


def first_of_small(shapes: Sequence[tuple[int, ...]], units: Sequence[Unit]) -> set[int]:
    """Positions of the tensors that a quick look reads whole."""
    return _first([i for i, shape in enumerate(shapes) if element_count(shape) <= WHOLE_ELEMENTS], units, MOST_WHOLE)


def first_matrices(shapes: Sequence[tuple[int, ...]], units: Sequence[Unit], most: int) -> set[int]:
    """Positions of the matrices of which a quick look reads slices, by the shapes alone (``()`` for no candidate)."""
    large = [i for i, shape in enumerate(shapes) if len(shape) > 1 and element_count(shape) > WHOLE_ELEMENTS]
    return _first([i for i in large if min(matrix_shape(shapes[i])) > 1], units, most)


def _first(positions: Sequence[int], units: Sequence[Unit], most: int) -> set[int]:
    return {positions[i] for i in first_of([units[position] for position in positions], most)}


def _unread(tensor: CanonicalTensor) -> TensorRecord:
    return TensorRecord(
        name=tensor.name,
        role=tensor.role,
        layer=tensor.layer,
        expert=tensor.expert,
        shape=tuple(tensor.view.shape),
        oriented=tensor.oriented,
        dtype=tensor.view.dtype.name,
        content=Content.UNREAD,
        digest=b"",
        casts={},
        statistics=_NOTHING,
        sketch=None,
        axes=(),
    )


def _sampled(
    tensor: CanonicalTensor,
    parameters: Parameters,
    *,
    casts: bool,
    together: Callable[[Callable[[int], Array], list[int]], Iterable[Array]],
) -> tuple[TensorRecord, int]:
    """The record of a matrix by some of its slices, which ``together`` reads, and the number of elements read."""
    view = tensor.view
    stored = StoredSlices.of(view)
    dimension, size, length = stored.dimension, stored.size, stored.length
    indices = quick_indices(size, parameters)
    record = _unread(tensor)
    if has_long_axis(view.shape) or indices.size * length * view.dtype.bits // 8 > MOST_BYTES:
        return record, 0
    native = np.stack(list(together(stored.read, indices.tolist())))
    moments, piece = Moments(), look(native, math.inf, Scratch())
    values = piece.numbers
    moments.add(piece)
    statistics = moments.finish(lattice_bits(_tiles(values, parameters), across=False))
    content = _content(values, indices, moments, square=size == length)
    if content is not Content.WEIGHTS:
        return replace(record, content=content, statistics=statistics), native.size
    row_of = {row: place for place, row in enumerate(indices.tolist())}
    limit = ceiling(native[row_of[row], first:last] for row, first, last in ceiling_runs(size, length, parameters))
    roundings_wanted = roundings(narrower_types(view)) if casts else {}
    first_slices = native[places_within(digested_indices(size, parameters), indices)]
    sample = AxisSample(
        tensor.axes[dimension],
        dimension,
        size,
        indices,
        _projected(within(values, limit), parameters),
        *slice_digests(first_slices, roundings_wanted, parameters.digest_block),
    )
    return replace(record, content=content, statistics=statistics, axes=(sample,)), native.size


def _content(values: Float32, indices: NDArray[np.int64], moments: Moments, *, square: bool) -> Content:
    """As ``measure`` has it, of slices in one direction alone."""
    if moments.nonfinite * 2 > values.size:
        return Content.NONFINITE
    if moments.constant:
        return Content.CONSTANT
    across, none = np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
    analytic = is_analytic(values, across, indices, none, square=square)
    varying = values - values.mean(axis=1, keepdims=True)
    varying -= varying.mean(axis=0)
    if analytic or not np.isfinite(varying).all() or float(np.sum(varying**2)) <= NO_WEIGHTS * moments.energy:
        return Content.ANALYTIC
    return Content.WEIGHTS


def _projected(values: Float32, parameters: Parameters) -> Float32:
    """Slices (m, n), each less its mean, times the signs of ``MatrixSketcher``: (m, axis_width)."""
    width = parameters.axis_width
    total = np.zeros((len(values), width), np.float64)
    centred = values - values.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    for start in range(0, values.shape[1], _PIECE):
        stop = min(start + _PIECE, values.shape[1])
        total += centred[:, start:stop] @ sign_block(parameters.seed, Stream.SLICE, start, stop, width)
    return (total / math.sqrt(width)).astype(np.float32)


def _tiles(values: Float32, parameters: Parameters) -> list[Float32]:
    """Pieces of the slices, cut where runs of a quantised layout begin."""
    number = max(values.shape[1] // LATTICE_TILE, 1)
    places = sample_indices(parameters.seed, Stream.PROBE, number, _TILES) * LATTICE_TILE
    return [values[:, place : place + LATTICE_TILE] for place in places.tolist()]
