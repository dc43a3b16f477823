"""What two fingerprints have in common if one is of quick depth: the same few slices of every matrix.

Both are brought to what a quick look sees: of each matrix its first slices along one axis, less what all of them share,
in place of sketch and samples; the digest of those slices in place of that of the whole. Every test that needs no more
then works as it is. Neurons, channels and circuits are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from fingerprint.measure import matrix_shape
from fingerprint.quick import MOST_REGISTERED, WHOLE_ELEMENTS, first_matrices
from fingerprint.signs import Stream, sample_indices
from fingerprint.slices import DIGESTED_SLICES, digested_indices, places_within, quick_indices
from fingerprint.units import unit_of
from fingerprint.vectors import unit_rows
from fingerprint.vocabulary import Content, Depth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fingerprint.parameters import Parameters
    from fingerprint.records import AxisSample, Fingerprint, TensorRecord

Float32 = NDArray[np.float32]
Shape = tuple[int, int]


def is_sampled(*fingerprints: Fingerprint) -> bool:
    """Whether one of them is of quick depth, so that only what a quick look sees can be compared."""
    return any(one.depth == Depth.QUICK for one in fingerprints)


def as_sampled(registered: Fingerprint, suspect: Fingerprint) -> tuple[Fingerprint, Fingerprint]:
    """Both as a quick look sees them; positions of tensors stay.

    A quick look reads slices along one axis, that of the rows as they are stored. The other side shows the same axis:
    of its matrices of the same shape, or else the other axis of those of the transposed shape.
    """
    if suspect.depth == Depth.QUICK:
        dimensions, turned = _correspondence(suspect, registered)
        return _seen(registered, dimensions, set()), _seen(suspect, {}, {shape[::-1] for shape in turned})
    dimensions, turned = _correspondence(registered, suspect)
    return _seen(registered, {}, set()), _seen(suspect, dimensions, turned)


def _correspondence(quick: Fingerprint, other: Fingerprint) -> tuple[dict[Shape, int], set[Shape]]:
    """By shape of the other side's matrices which of their axes to show, and which shapes are those of transposes.

    Square matrices go the way of most others.
    """
    known = {matrix_shape(tensor.shape) for tensor in other.tensors if tensor.axes}
    straight: Counter[tuple[Shape, int]] = Counter()
    turned: Counter[tuple[Shape, int]] = Counter()
    square: Counter[tuple[Shape, int]] = Counter()
    for tensor in quick.tensors:
        if not tensor.axes:
            continue
        shape, dimension = matrix_shape(tensor.shape), tensor.axes[0].dimension
        if shape[0] == shape[1]:
            square[shape, dimension] += 1
        elif shape in known:
            straight[shape, dimension] += 1
        else:
            turned[shape[::-1], 1 - dimension] += 1
    if turned.total() > straight.total():
        turned += Counter({(shape, 1 - dimension): number for (shape, dimension), number in square.items()})
    else:
        straight += square
    found: dict[Shape, int] = {}
    for votes in (turned, straight):  # the same shape has the last word, and of one shape the majority
        found |= {shape: dimension for (shape, dimension), _ in reversed(votes.most_common())}
    return found, {shape for shape, _ in turned} - {shape for shape, _ in straight}


def without_unseen(fingerprint: Fingerprint, other: Fingerprint, matched: set[int]) -> Fingerprint:
    """``fingerprint`` without what is known of matrices that are not ``matched`` (positions) and that ``other`` has in
    the same place and did not look at: that they match nothing says nothing, so they count neither way.

    One side may have looked at more of a very large model than the other, or hold another part of it.
    """
    unseen: set[object] = set()
    seen: set[object] = set()
    for tensor in other.tensors:
        (unseen if tensor.content is Content.UNREAD else seen).add(_place(tensor))
    unseen -= seen
    tensors = tuple(
        tensor
        if position in matched or tensor.elements <= WHOLE_ELEMENTS or _place(tensor) not in unseen
        else _hidden(tensor)
        for position, tensor in enumerate(fingerprint.tensors)
    )
    return replace(fingerprint, tensors=tensors)


def _place(tensor: TensorRecord) -> tuple[object, ...]:
    return tensor.role, tensor.layer, tensor.expert, tensor.shape


def _seen(fingerprint: Fingerprint, dimensions: dict[Shape, int], turned: set[Shape]) -> Fingerprint:
    tensors = fingerprint.tensors
    looked_at = first_matrices(
        [one.shape if one.content is not Content.INTEGER else () for one in tensors],
        [unit_of(one.layer, one.expert) for one in tensors],
        MOST_REGISTERED,
    )
    seen = [
        _seen_record(tensor, dimensions, turned, fingerprint.parameters)
        if tensor.elements <= WHOLE_ELEMENTS or position in looked_at
        else _hidden(tensor)
        for position, tensor in enumerate(tensors)
    ]
    return replace(fingerprint, tensors=tuple(seen), neurons=(), channels=(), grams=())


def _seen_record(
    tensor: TensorRecord, dimensions: dict[Shape, int], turned: set[Shape], parameters: Parameters
) -> TensorRecord:
    if tensor.content is not Content.WEIGHTS:
        return tensor
    wanted = dimensions.get(matrix_shape(tensor.shape), tensor.axes[0].dimension if tensor.axes else 0)
    sample = next((one for one in tensor.axes if one.dimension == wanted), None)
    if sample is None:
        return _hidden(tensor)
    shown = first_slices(sample, quick_indices(sample.size, parameters))
    if tensor.elements <= WHOLE_ELEMENTS:
        return replace(tensor, sketch=_sketch(sample, parameters), axes=(shown,))
    is_turned = matrix_shape(tensor.shape) in turned
    return replace(
        tensor,
        digest=b"" if is_turned else sample.digest,
        casts=sample.casts,
        turned_digest=sample.digest if is_turned else b"",
        sketch=_sketch(sample, parameters),
        axes=(shown,),
    )


def _hidden(tensor: TensorRecord) -> TensorRecord:
    if tensor.content is not Content.WEIGHTS:
        return tensor
    return replace(tensor, content=Content.UNREAD, digest=b"", casts={}, turned_digest=b"", sketch=None, axes=())


def first_slices(sample: AxisSample, wanted: NDArray[np.int64]) -> AxisSample:
    """Those slices of a sample whose numbers are ``wanted``, less their mean."""
    places = places_within(wanted, sample.indices)
    values = sample.values[places]
    centred = values - values.mean(axis=0, dtype=np.float64).astype(np.float32) if len(values) else values
    return replace(sample, indices=sample.indices[places], values=centred)


def _sketch(sample: AxisSample, parameters: Parameters) -> Float32:
    """Slices in place of a sketch: (k, k), k being the numbers that each has; their axis is where the matrix has it."""
    width = parameters.axis_width
    shown = first_slices(sample, sample_indices(parameters.seed, Stream.AXIS_SAMPLE, sample.size, width))
    square = np.zeros((width, width), np.float32)
    square[: len(shown.values)] = shown.values * math.sqrt(sample.size / max(len(shown.values), 1))
    return square if sample.dimension == 0 else square.T


def slice_vectors(
    axes: Mapping[int, Sequence[AxisSample]], parameters: Parameters
) -> tuple[NDArray[np.int64], Float32]:
    """By what matrices are retrieved of which only slices are known: the first few, less their mean, as unit vectors.

    ``axes`` are samples by position of the tensor. Positions (m,) are twice that of the tensor, plus the dimension;
    vectors (m, DIGESTED_SLICES * axis_width) float32. Axes with fewer slices have none.
    """
    positions, vectors = [], []
    for position, samples in axes.items():
        for sample in samples:
            shown = first_slices(sample, digested_indices(sample.size, parameters)).values
            if shown.shape == (DIGESTED_SLICES, parameters.axis_width) and np.any(shown):
                positions.append(2 * position + sample.dimension)
                vectors.append(shown.reshape(1, -1))
    width = DIGESTED_SLICES * parameters.axis_width
    return np.array(positions, np.int64), unit_rows(np.concatenate([np.zeros((0, width), np.float32), *vectors]))
