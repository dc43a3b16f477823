"""The sections about what moves with the residual stream: SELF, CHAN, GRAM; absent where there is nothing in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from fingerprint.errors import UsageError
from fingerprint.gauge.descriptors import UNGATED_DESCRIPTORS
from fingerprint.records import ChannelSample, LayerGram
from fingerprint.vocabulary import ChannelKind, Circuit
from signatures.columns import ColumnReader, column
from signatures.rows import (
    IndexLists,
    checked,
    checked_rows,
    halved_columns,
    numbered,
    pick,
    quantised_columns,
    read_halved,
    read_lists,
    read_quantised,
    require_inside,
)
from signatures.sections import neurons_section, read_neurons

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fingerprint.parameters import Parameters
    from fingerprint.records import NeuronSample
    from signatures.sections import Vocabulary

CIRCUITS: Final = (Circuit.DOWN_UP, Circuit.OUTPUT_VALUE, Circuit.QUERY_KEY)
"""Circuits by their number in a file."""
KINDS: Final = (ChannelKind.VALUE_OUTPUT, ChannelKind.ROTARY, ChannelKind.QUERY_KEY)
"""Kinds of channels by their number in a file."""
MAX_SAMPLES: Final = 1 << 17
MAX_SELF_WIDTH: Final = 4096


def own_section(samples: Sequence[NeuronSample], words: Vocabulary) -> bytes:
    """SELF: number of samples, their width, that of the descriptors; then as in NEUR; then the descriptors.

    MLPs without a gate have fewer descriptors: where there are both, their rows end in zeros.
    """
    described = [_descriptors(sample) for sample in samples]
    width, more = samples[0].gate.shape[1], max(one.shape[1] for one in described)
    described = [
        np.pad(one, ((0, 0), (0, more - UNGATED_DESCRIPTORS)))
        if one.shape[1] == UNGATED_DESCRIPTORS and sample.up is None
        else one
        for one, sample in zip(described, samples, strict=True)
    ]
    if not 0 < width <= MAX_SELF_WIDTH or not 0 < more <= MAX_SELF_WIDTH:
        raise UsageError(f"samples of {width} numbers with {more} descriptors do not fit into a signature")
    rows = [
        checked_rows(one, len(sample.indices), more, "descriptors")
        for one, sample in zip(described, samples, strict=True)
    ]
    return b"".join(
        [
            column("<u4", [len(samples), width, more], what="a width is"),
            neurons_section(samples, words, width),
            quantised_columns(rows, more),
        ]
    )


def read_own(data: bytes, count: int, words: Mapping[str, Sequence[str]], path: str) -> tuple[NeuronSample, ...]:
    """Inverse of ``own_section``; ``count`` is the number of tensors."""
    reader = ColumnReader(data, path=path, kind="SELF")
    number, width, more = reader.number(), reader.number(), reader.number()
    if not 0 < number <= MAX_SAMPLES or not 0 < width <= MAX_SELF_WIDTH or not 0 < more <= MAX_SELF_WIDTH:
        reader.fail("a number is out of its range")
    samples = read_neurons(reader, (number, count), words, width)
    rows = read_quantised(reader, sum(len(sample.indices) for sample in samples), more)
    reader.end()
    ends = np.cumsum([len(sample.indices) for sample in samples])[:-1]
    gated = any(sample.up is not None for sample in samples)
    return tuple(
        replace(sample, descriptors=part[:, :UNGATED_DESCRIPTORS] if gated and sample.up is None else part)
        for sample, part in zip(samples, np.split(rows, ends), strict=True)
    )


def channels_section(samples: Sequence[ChannelSample], words: Vocabulary, parameters: Parameters) -> bytes:
    """CHAN: lists of indices; a row for each sample; then its parts one after the other, int8 with a scale a row."""
    lists = IndexLists()
    numbers = [lists.number(sample.indices) for sample in samples]
    rows = []
    for sample in samples:
        shape = (sample.kind.parts, len(sample.indices), parameters.frame_width)
        rows.append(checked(sample.parts, shape, "channels").reshape(-1, parameters.frame_width))
    return b"".join(
        [
            lists.columns(),
            column("<u4", [len(samples)], what="the number of samples is"),
            column("<u4", numbers, what="a list is"),
            column("<u8", (sample.size for sample in samples), what="a size is"),
            column("<u8", (sample.head for sample in samples), what="a size is"),
            numbered((sample.layer for sample in samples), "a layer is"),
            column("<i4", (position for sample in samples for position in sample.tensors), what="a position is"),
            words.frames.column(sample.frame for sample in samples),
            column("u1", (KINDS.index(sample.kind) for sample in samples), what="a kind is"),
            quantised_columns(rows, parameters.frame_width),
        ]
    )


def read_channels(
    data: bytes, count: int, words: Mapping[str, Sequence[str]], parameters: Parameters, path: str
) -> tuple[ChannelSample, ...]:
    """Inverse of ``channels_section``; ``count`` is the number of tensors."""
    reader = ColumnReader(data, path=path, kind="CHAN")
    lists = read_lists(reader)
    number, width = reader.number(), parameters.frame_width
    chosen = pick(reader, lists, number)
    sizes, heads = reader.array("<u8", number).tolist(), reader.array("<u8", number).tolist()
    layers = reader.optional(number)
    tensors = reader.array("<i4", 2 * number).reshape(number, 2)
    frames = reader.words(number, words["frames"])
    kinds = reader.array("u1", number).tolist()
    require_inside(reader, chosen, sizes)
    if number and not (int(tensors.min()) >= 0 and int(tensors.max()) < count):
        reader.fail("channels are not of tensors of this signature")
    if max(kinds, default=0) >= len(KINDS) or any(
        not 0 < head <= size or size % head for head, size in zip(heads, sizes, strict=True)
    ):
        reader.fail("channels of an unknown kind, or heads that do not divide them")
    totals = [KINDS[kind].parts * len(indices) for kind, indices in zip(kinds, chosen, strict=True)]
    values = read_quantised(reader, sum(totals), width)
    reader.end()
    samples = []
    start = 0
    for i, total in enumerate(totals):
        kind = KINDS[kinds[i]]
        parts = values[start : start + total].reshape(kind.parts, len(chosen[i]), width)
        start += total
        first, second = tensors[i].tolist()
        samples.append(ChannelSample(layers[i], frames[i], kind, sizes[i], heads[i], (first, second), chosen[i], parts))
    return tuple(samples)


def grams_section(grams: Sequence[LayerGram], words: Vocabulary, parameters: Parameters) -> bytes:
    """GRAM: number of vectors, a row for each; then the vectors as float16 with an exponent a row."""
    width = parameters.index_width**2
    rows = [checked(gram.values, (width,), "vector")[None] for gram in grams]
    return b"".join(
        [
            column("<u4", [len(grams)], what="the number of vectors is"),
            numbered((gram.layer for gram in grams), "a layer is"),
            column("<i4", (position for gram in grams for position in gram.tensors), what="a position is"),
            words.frames.column(gram.frame for gram in grams),
            column("u1", (CIRCUITS.index(gram.circuit) for gram in grams), what="a circuit is"),
            halved_columns(rows, width),
        ]
    )


def read_grams(
    data: bytes, count: int, words: Mapping[str, Sequence[str]], parameters: Parameters, path: str
) -> tuple[LayerGram, ...]:
    """Inverse of ``grams_section``; ``count`` is the number of tensors."""
    reader = ColumnReader(data, path=path, kind="GRAM")
    number = reader.number()
    layers = reader.optional(number)
    tensors = reader.array("<i4", 2 * number).reshape(number, 2)
    frames = reader.words(number, words["frames"])
    circuits = reader.array("u1", number).tolist()
    if number > MAX_SAMPLES or max(circuits, default=0) >= len(CIRCUITS):
        reader.fail("there are too many vectors, or one of an unknown circuit")
    if number and not (int(tensors.min()) >= 0 and int(tensors.max()) < count):
        reader.fail("a vector is not of tensors of this signature")
    rows = read_halved(reader, number, parameters.index_width**2)
    reader.end()
    return tuple(
        LayerGram(layer, frame, CIRCUITS[circuit], (pair[0], pair[1]), row)
        for layer, frame, circuit, pair, row in zip(layers, frames, circuits, tensors.tolist(), rows, strict=True)
    )


def _descriptors(sample: NeuronSample) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if sample.descriptors is None or sample.descriptors.ndim != 2:
        raise UsageError("a sample in a frame of its own needs descriptors")
    return sample.descriptors
