"""The sections about tensors: names, table, digests, casts, statistics, sketches, axis samples; and those about MLPs.

Each part has a function that writes its columns and one that reads them back. A reader is given the number of tensors
from the header, and trusts nothing else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from fingerprint.errors import UsageError
from fingerprint.records import AxisSample, NeuronSample, TensorRecord, TensorStatistics
from fingerprint.vocabulary import Axis, Content, Role
from signatures.columns import ColumnReader, Words, column, members_of
from signatures.rows import (
    IndexLists,
    ascending,
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fingerprint.parameters import Parameters
    from fingerprint.records import Fingerprint

DIGEST_BYTES: Final = 32
MAX_TENSORS: Final = 1 << 17
MAX_CASTS: Final = 8
MAX_RANK: Final = 16
MAX_ELEMENTS: Final = 1 << 62
_FLOATS: Final = ("mean", "deviation", "largest", "kurtosis", "zeros")

Float32 = NDArray[np.float32]


class Vocabulary(Struct, frozen=True):
    """The words that the columns of one signature use; the header holds the lists."""

    activations: Words
    axes: Words
    casts: Words
    contents: Words
    dtypes: Words
    frames: Words
    roles: Words

    @classmethod
    def of(cls, fingerprint: Fingerprint) -> Vocabulary:
        """The words of a fingerprint's records."""
        tensors, neurons = fingerprint.tensors, fingerprint.neurons
        frames = [part.frame for kind in (neurons, fingerprint.channels, fingerprint.grams) for part in kind]
        return cls(
            activations=Words("activations", (sample.activation for sample in neurons)),
            axes=Words("axes", (sample.axis for record in tensors for sample in record.axes)),
            casts=Words("casts", _casts(tensors)),
            contents=Words("contents", (record.content for record in tensors)),
            dtypes=Words("dtypes", (record.dtype for record in tensors)),
            frames=Words("frames", frames),
            roles=Words("roles", (record.role for record in tensors)),
        )

    def to_mapping(self) -> dict[str, list[str]]:
        """The lists, as stored in the header."""
        return {name: getattr(self, name).words for name in VOCABULARY_LISTS}


def _casts(tensors: Sequence[TensorRecord]) -> Iterator[str]:
    for record in tensors:
        yield from record.casts
        for sample in record.axes:
            yield from sample.casts


VOCABULARY_LISTS: Final = ("activations", "axes", "casts", "contents", "dtypes", "frames", "roles")


def names_section(tensors: Sequence[TensorRecord]) -> bytes:
    """NAME: lengths, then all names in UTF-8; what UTF-8 cannot hold (lone surrogates) is written as an escape."""
    names = [record.name.encode("utf-8", "backslashreplace") for record in tensors]
    return column("<u4", map(len, names), what="the length of a name is") + b"".join(names)


def table_section(tensors: Sequence[TensorRecord], words: Vocabulary) -> bytes:
    """TENS: role, content, dtype, oriented, has a digest, rank, layer, expert; then all dimensions."""
    for record in tensors:
        if len(record.shape) > MAX_RANK or record.elements > MAX_ELEMENTS:
            raise UsageError(f"a tensor of shape {record.shape} does not fit into a signature")
        if len(record.digest) not in {0, DIGEST_BYTES}:
            raise UsageError(f"a digest has {DIGEST_BYTES} bytes, not {len(record.digest)}")
    return b"".join(
        [
            words.roles.column(record.role for record in tensors),
            words.contents.column(record.content for record in tensors),
            words.dtypes.column(record.dtype for record in tensors),
            column("u1", (record.oriented for record in tensors), what="a flag is"),
            column("u1", (bool(record.digest) for record in tensors), what="a flag is"),
            column("u1", (len(record.shape) for record in tensors), what="a rank is"),
            numbered((record.layer for record in tensors), "a layer is"),
            numbered((record.expert for record in tensors), "an expert is"),
            column("<u8", (size for record in tensors for size in record.shape), what="a dimension is"),
        ]
    )


def digests_section(tensors: Sequence[TensorRecord]) -> bytes:
    """DIGS: the digests of the tensors that have one."""
    return b"".join(record.digest for record in tensors)


def casts_section(tensors: Sequence[TensorRecord], words: Vocabulary) -> bytes:
    """CAST: for each type of the header's list, one flag a tensor, then the digests."""
    if len(words.casts.words) > MAX_CASTS:
        raise UsageError(f"a signature holds digests after rounding to at most {MAX_CASTS} types")
    parts: list[bytes] = []
    for word in words.casts.words:
        digests = [record.casts.get(word, b"") for record in tensors]
        if any(len(digest) not in {0, DIGEST_BYTES} for digest in digests):
            raise UsageError(f"the digest of a cast to {word} does not have {DIGEST_BYTES} bytes")
        parts += [column("u1", map(bool, digests), what="a flag is"), *digests]
    return b"".join(parts)


def statistics_section(tensors: Sequence[TensorRecord]) -> bytes:
    """STAT: five columns of float64, the number of elements that are not finite, the bits of the lattice."""
    parts = [
        column("<f8", (getattr(record.statistics, name) for record in tensors), what=f"{name} is") for name in _FLOATS
    ]
    for record in tensors:
        if not all(math.isfinite(getattr(record.statistics, name)) for name in _FLOATS):
            raise UsageError(f"the statistics of tensor {record.name!r} are not finite: {record.statistics}")
    parts.append(column("<u8", (record.statistics.nonfinite for record in tensors), what="a count is"))
    parts.append(column("u1", (record.statistics.lattice_bits for record in tensors), what="the lattice is"))
    return b"".join(parts)


def sketches_section(tensors: Sequence[TensorRecord], parameters: Parameters) -> bytes:
    """SKET: number of sketches, positions of their tensors, then (k, k) float32 each."""
    chosen = [(position, record.sketch) for position, record in enumerate(tensors) if record.sketch is not None]
    shape = (parameters.sketch_width, parameters.sketch_width)
    values = [checked(sketch, shape, "sketch").astype("<f4").tobytes() for _, sketch in chosen]
    positions = [position for position, _ in chosen]
    return b"".join([column("<u4", [len(positions), *positions], what="a position is"), *values])


def axes_section(tensors: Sequence[TensorRecord], words: Vocabulary, parameters: Parameters) -> bytes:
    """AXIS: the distinct lists of indices; a row for each sample; then the slices as float16 with an exponent each."""
    samples = [(position, sample) for position, record in enumerate(tensors) for sample in record.axes]
    lists = IndexLists()
    numbers = [lists.number(sample.indices) for _, sample in samples]
    slices = [
        checked_rows(sample.values, len(sample.indices), parameters.axis_width, "slices") for _, sample in samples
    ]
    return b"".join(
        [
            lists.columns(),
            column("<u4", [len(samples)], what="the number of samples is"),
            column("<u4", (position for position, _ in samples), what="a position is"),
            column("<u4", numbers, what="a list is"),
            column("<u8", (sample.size for _, sample in samples), what="a size is"),
            words.axes.column(sample.axis for _, sample in samples),
            column("u1", (sample.dimension for _, sample in samples), what="a dimension is"),
            halved_columns(slices, parameters.axis_width),
        ]
    )


def slices_section(tensors: Sequence[TensorRecord], words: Vocabulary) -> bytes:
    """SLIC: of the samples in AXIS one flag each, then their digests; then the same for each type of casts."""
    samples = [sample for record in tensors for sample in record.axes]
    columns = [[sample.digest for sample in samples]]
    columns += [[sample.casts.get(word, b"") for sample in samples] for word in words.casts.words]
    if any(len(digest) not in {0, DIGEST_BYTES} for digests in columns for digest in digests):
        raise UsageError(f"a digest of slices has {DIGEST_BYTES} bytes")
    return b"".join(
        part for digests in columns for part in (column("u1", map(bool, digests), what="a flag is"), *digests)
    )


def neurons_section(neurons: Sequence[NeuronSample], words: Vocabulary, width: int) -> bytes:
    """NEUR: lists of indices; a row for each MLP; then gate, up if present and down as int8 with a scale a row."""
    lists = IndexLists()
    numbers = [lists.number(sample.indices) for sample in neurons]
    rows = [
        checked_rows(part, len(sample.indices), width, "neurons")
        for sample in neurons
        for part in (sample.gate, sample.up, sample.down)
        if part is not None
    ]
    return b"".join(
        [
            lists.columns(),
            column("<u4", numbers, what="a list is"),
            column("<u8", (sample.size for sample in neurons), what="a size is"),
            numbered((sample.layer for sample in neurons), "a layer is"),
            numbered((sample.expert for sample in neurons), "an expert is"),
            column("<i4", (position for sample in neurons for position in sample.tensors), what="a position is"),
            words.frames.column(sample.frame for sample in neurons),
            words.activations.column(sample.activation for sample in neurons),
            column("u1", (sample.up is not None for sample in neurons), what="a flag is"),
            quantised_columns(rows, width),
        ]
    )


class TensorRow(Struct, frozen=True):
    """What the table says of one tensor."""

    role: Role
    content: Content
    dtype: str
    oriented: bool
    has_digest: bool
    layer: int | None
    expert: int | None
    shape: tuple[int, ...]


def read_names(data: bytes, count: int, path: str) -> list[str]:
    """Inverse of ``names_section``."""
    reader = ColumnReader(data, path=path, kind="NAME")
    ends = np.cumsum(reader.array("<u4", count), dtype=np.int64).tolist()
    text = reader.rest()
    if len(text) != (ends[-1] if ends else 0):
        reader.fail("the lengths of the names do not add up")
    try:
        return [text[start:stop].decode() for start, stop in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
    except UnicodeDecodeError:
        reader.fail("a name is not UTF-8")


def read_table(data: bytes, count: int, words: Mapping[str, Sequence[str]], path: str) -> list[TensorRow]:
    """Inverse of ``table_section``."""
    reader = ColumnReader(data, path=path, kind="TENS")
    roles = _members(reader, count, members_of(Role, words["roles"], path=path))
    contents = _members(reader, count, members_of(Content, words["contents"], path=path))
    dtypes = reader.words(count, words["dtypes"])
    oriented, digests = reader.flags(count).tolist(), reader.flags(count).tolist()
    ranks = reader.array("u1", count)
    if count and int(ranks.max()) > MAX_RANK:
        reader.fail("a tensor has too many dimensions")
    layers, experts = reader.optional(count), reader.optional(count)
    sizes = reader.array("<u8", int(ranks.sum(dtype=np.int64))).tolist()
    reader.end()
    rows: list[TensorRow] = []
    position = 0
    for number, rank in enumerate(ranks.tolist()):
        shape = tuple(sizes[position : position + rank])
        position += rank
        if math.prod(shape) > MAX_ELEMENTS or max(shape, default=0) > MAX_ELEMENTS:
            reader.fail("a tensor is larger than any can be")
        rows.append(
            TensorRow(
                role=roles[number],
                content=contents[number],
                dtype=dtypes[number],
                oriented=oriented[number],
                has_digest=digests[number],
                layer=layers[number],
                expert=experts[number],
                shape=shape,
            )
        )
    return rows


def read_digests(data: bytes, rows: Sequence[TensorRow], path: str) -> list[bytes]:
    """Inverse of ``digests_section``: one for each row, empty where there is none."""
    reader = ColumnReader(data, path=path, kind="DIGS")
    digests = _spread(reader, [row.has_digest for row in rows])
    reader.end()
    return digests


def read_casts(data: bytes, count: int, words: Sequence[str], path: str) -> list[dict[str, bytes]]:
    """Inverse of ``casts_section``."""
    reader = ColumnReader(data, path=path, kind="CAST")
    if len(words) > MAX_CASTS:
        reader.fail("there are too many types")
    casts: list[dict[str, bytes]] = [{} for _ in range(count)]
    for word in words:
        for cast, digest in zip(casts, _spread(reader, reader.flags(count).tolist()), strict=True):
            if digest:
                cast[word] = digest
    reader.end()
    return casts


def read_statistics(data: bytes, count: int, path: str) -> list[TensorStatistics]:
    """Inverse of ``statistics_section``."""
    reader = ColumnReader(data, path=path, kind="STAT")
    floats = [reader.array("<f8", count) for _ in _FLOATS]
    if not all(np.isfinite(values).all() for values in floats):
        reader.fail("a statistic is not finite")
    nonfinite = reader.array("<u8", count).tolist()
    lattice = reader.array("u1", count).tolist()
    reader.end()
    return [
        TensorStatistics(*row) for row in zip(*(values.tolist() for values in floats), nonfinite, lattice, strict=True)
    ]


def read_sketches(data: bytes, count: int, parameters: Parameters, path: str) -> dict[int, Float32]:
    """Inverse of ``sketches_section``: sketches by position of the tensor."""
    reader = ColumnReader(data, path=path, kind="SKET")
    number, width = reader.number(), parameters.sketch_width
    positions = reader.array("<u4", number)
    values = reader.array("<f4", number * width * width).reshape(number, width, width)
    reader.end()
    if number and (not ascending(positions) or int(positions[-1]) >= count):
        reader.fail("the positions of the sketches are not those of tensors, in order")
    if not np.isfinite(values).all():
        reader.fail("a sketch is not finite")
    return dict(zip(positions.tolist(), values.astype(np.float32), strict=True))


def read_axes(
    data: bytes, count: int, words: Sequence[str], parameters: Parameters, path: str
) -> dict[int, tuple[AxisSample, ...]]:
    """Inverse of ``axes_section``: samples by position of the tensor."""
    reader = ColumnReader(data, path=path, kind="AXIS")
    lists = read_lists(reader)
    number = reader.number()
    positions = reader.array("<u4", number).tolist()
    chosen = pick(reader, lists, number)
    sizes = reader.array("<u8", number).tolist()
    axes = _members(reader, number, members_of(Axis, words, path=path))
    dimensions = reader.array("u1", number).tolist()
    require_inside(reader, chosen, sizes)
    values = read_halved(reader, sum(map(len, chosen)), parameters.axis_width)
    reader.end()
    if any(position >= count for position in positions) or positions != sorted(positions):
        reader.fail("the positions of the samples are not those of tensors, in order")
    if max(dimensions, default=0) > 1:
        reader.fail("a sample is neither of rows nor of columns")
    samples: dict[int, list[AxisSample]] = {}
    start = 0
    for position, indices, size, axis, dimension in zip(positions, chosen, sizes, axes, dimensions, strict=True):
        sample = AxisSample(axis, dimension, size, indices, values[start : start + len(indices)])
        samples.setdefault(position, []).append(sample)
        start += len(indices)
    return {position: tuple(found) for position, found in samples.items()}


def with_slice_digests(
    data: bytes, axes: Mapping[int, tuple[AxisSample, ...]], words: Sequence[str], path: str
) -> dict[int, tuple[AxisSample, ...]]:
    """Inverse of ``slices_section``: the samples of AXIS, by position of the tensor, with their digests."""
    reader = ColumnReader(data, path=path, kind="SLIC")
    number = sum(map(len, axes.values()))
    digests = _spread(reader, reader.flags(number).tolist())
    casts = {word: _spread(reader, reader.flags(number).tolist()) for word in words}
    reader.end()
    places = iter(range(number))
    return {
        position: tuple(
            replace(sample, digest=digests[at], casts={word: found[at] for word, found in casts.items() if found[at]})
            for sample, at in zip(samples, places, strict=False)
        )
        for position, samples in axes.items()
    }


def read_neurons(
    reader: ColumnReader, counts: tuple[int, int], words: Mapping[str, Sequence[str]], width: int
) -> tuple[NeuronSample, ...]:
    """Inverse of ``neurons_section``; ``counts`` are the numbers of MLPs and of tensors."""
    number, count = counts
    lists = read_lists(reader)
    chosen = pick(reader, lists, number)
    sizes = reader.array("<u8", number).tolist()
    layers, experts = reader.optional(number), reader.optional(number)
    tensors = reader.array("<i4", 3 * number).reshape(number, 3)
    frames = reader.words(number, words["frames"])
    activations = reader.words(number, words["activations"])
    gated = reader.flags(number).tolist()
    require_inside(reader, chosen, sizes)
    if number and not (int(tensors.min()) >= -1 and int(tensors.max()) < count):
        reader.fail("an MLP is not made of tensors of this signature")
    parts = [3 if up else 2 for up in gated]
    total = sum(len(indices) * part for indices, part in zip(chosen, parts, strict=True))
    values = read_quantised(reader, total, width)
    samples: list[NeuronSample] = []
    start = 0
    for i, (indices, part) in enumerate(zip(chosen, parts, strict=True)):
        block = values[start : start + part * len(indices)].reshape(part, len(indices), width)
        start += part * len(indices)
        gate, up, down = tensors[i].tolist()
        samples.append(
            NeuronSample(
                layer=layers[i],
                expert=experts[i],
                frame=frames[i],
                activation=activations[i],
                size=sizes[i],
                tensors=(gate, up, down),
                indices=indices,
                gate=block[0],
                up=block[1] if gated[i] else None,
                down=block[-1],
            )
        )
    return tuple(samples)


def _members(reader: ColumnReader, count: int, words: Sequence[Any]) -> list[Any]:
    return reader.words(count, words)


def _spread(reader: ColumnReader, present: Sequence[bool]) -> list[bytes]:
    joined = reader.array("u1", DIGEST_BYTES * sum(present)).tobytes()
    taken = iter(range(0, len(joined), DIGEST_BYTES))
    return [joined[(at := next(taken)) : at + DIGEST_BYTES] if has else b"" for has in present]
