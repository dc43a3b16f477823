"""Attention put together without names: value with output, query with key, by the likeness of their channels.

As for neurons (``roles.grams``): channels of a head that are alike in one matrix are alike in its partner, or, as
training has it, the less so; all layers else are at chance. Where the values (or queries and keys) of a head were mixed
by a matrix M, one side's Gram matrix is M K Mᵀ and the other's the inverse of such a product, so that the inverse of
the one resembles the other, head by head.

Which is which follows from where the channels lie: on the outputs of query, key and value, on the inputs of the output.
The other side of every matrix lies on the residual stream, whose channels resemble each other alike in all matrices; so
that of a square matrix, whose shape does not tell, is found by comparing with matrices whose shape does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from fingerprint.roles.grams import as_correlations, block_features, block_inverse, pair_features, read_run, units
from fingerprint.roles.wiring import Attention, Place, layer_of
from fingerprint.vectors import median
from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fingerprint.roles.layout import CanonicalTensor

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

CHANNELS: Final = 256
"""Key/value channels of a matrix that are compared, at most."""
MOST_ROWS: Final = 1024
"""Channels of queries or outputs that are read for them: those of all heads that share keys and values."""
MOST_GROUP: Final = 64
MOST_MATRICES: Final = 1024
MOST_SIZES: Final = 6
MOST_REFERENCES: Final = 8
MOST_HEAD_SIZES: Final = 6
MOST_HEADS: Final = 256
MOST_HELD: Final = 1 << 26
HEAD_SIZES: Final = (256, 192, 160, 128, 120, 112, 104, 96, 88, 80, 72, 64, 56, 48, 40, 32, 24, 16, 12, 8)
_LEAST: Final = 16
_ACCEPT: Final = 4.5
_CLEARLY: Final = 2.0
_SAME: Final = 0.95
_LESS: Final = 0.92


class _Side(Struct, frozen=True):
    """Channels that a matrix may have: on its rows, or where ``on_columns`` on its columns, as it is stored.

    ``reads`` tells whether these are then the outputs of a matrix that reads the residual stream (None: not known).
    """

    position: int
    on_columns: bool
    size: int
    reads: bool | None


class _Join(Struct, frozen=True):
    """Two sides that may belong together, the narrower one first; ``head`` is the head size that shows it best."""

    narrow: _Side
    broad: _Side
    score: float
    head: int


class _Sample(Struct, frozen=True):
    """How channels are compared at one head size: ``heads`` key/value heads and ``group`` query heads of each."""

    size: int
    heads: int
    group: int
    used: int

    @property
    def rows(self) -> int:
        """Channels of the broad side that are needed."""
        return ((self.heads - 1) * self.group + self.used) * self.size


def pair_attention(
    tensors: Sequence[CanonicalTensor],
    candidates: Iterable[int],
    width: int,
    gains: Mapping[int, tuple[int, Float32]] | None = None,
    flow: int = 0,
    references: Sequence[int] = (),
) -> tuple[list[Attention], list[str]]:
    """Attention blocks, or halves of them, among the matrices at ``candidates``, and notes on what was not tried.

    ``gains`` are, by position, the residual axis and factors along it; ``flow`` as for ``pairing.pair_mlps``;
    ``references`` are other matrices on the stream that are not square. Reads a run of channels of each matrix. Raises
    ``InputError``.
    """
    sides = _sides(tensors, candidates, width, flow)
    if len({side.position for side in sides}) > MOST_MATRICES:
        return [], ["attention: too many matrices to be put together without names"]
    sides = _without_stream(tensors, sides, references, width)
    chosen: list[_Join] = []
    shared: set[int] = set()
    common = {size for size, _ in Counter(side.size for side in sides).most_common(MOST_SIZES)}
    # Keys and values that several heads share first: what they leave may be attention where none are shared.
    for narrow, broad in sorted(combinations_with_replacement(sorted(common), 2), key=lambda pair: pair[0] == pair[1]):
        if broad % narrow or broad // narrow > MOST_GROUP or (narrow == broad and narrow in shared):
            continue
        taken = {side.position for join in chosen for side in (join.narrow, join.broad)}
        left = [side for side in sides if side.position not in taken]
        joins = _joins(tensors, left, narrow, broad, gains or {})
        # Stored the wrong way round, queries and keys would both be outputs.
        options = [_matching(joins, one) for one in ([flow] if flow else [1, -1])]
        best = max(options, key=lambda option: sum(join.score for join in option))
        if narrow != broad and best:
            shared |= {narrow, broad}
        chosen += best
    return _blocks(tensors, chosen), []


def _sides(tensors: Sequence[CanonicalTensor], candidates: Iterable[int], width: int, flow: int) -> list[_Side]:
    """Both sides of every matrix that may be attention's; where blocks were split, their values and the outputs."""
    found = []
    chosen = list(candidates)
    split = any(tensors[position].role is Role.VALUE for position in chosen)
    for position in chosen:
        tensor = tensors[position]
        rows, columns = tensor.view.shape
        if Axis.TOKEN in tensor.axes or tensor.role in {Role.QUERY, Role.KEY}:
            continue
        if tensor.role is Role.VALUE:
            found.append(_Side(position, on_columns=False, size=rows, reads=True))
            continue
        for on_columns, size, other in ((False, rows, columns), (True, columns, rows)):
            if other == width and size >= _LEAST:
                reads = None if not flow else on_columns == (flow < 0)
                if not (split and reads):
                    found.append(_Side(position, on_columns, size, False if split else reads))
    return found


def _without_stream(
    tensors: Sequence[CanonicalTensor], sides: Sequence[_Side], references: Sequence[int], width: int
) -> list[_Side]:
    """The sides that do not lie on the residual stream, as far as can be told."""
    count = min(width, CHANNELS)
    squares = {side.position for side in sides if side.size == width and tensors[side.position].role is not Role.VALUE}
    if not squares or not references:
        return list(sides)

    def likeness(position: int, axis: int) -> Float32:
        run = units(read_run(tensors[position].view, 0, count, columns=axis == 1))
        return pair_features(run @ run.T)[0]

    stream = np.zeros(count * (count - 1) // 2, np.float32)
    for position in references[:: max(1, len(references) // MOST_REFERENCES)][:MOST_REFERENCES]:
        stream += likeness(position, tensors[position].view.shape.index(width))
    stream /= max(float(np.linalg.norm(stream)), 1e-12)
    gone: dict[int, bool] = {}
    for position in squares:
        rows, columns = (abs(float(likeness(position, axis) @ stream)) * np.sqrt(stream.size) for axis in (0, 1))
        if max(rows, columns) >= max(_ACCEPT, _CLEARLY * min(rows, columns)):
            gone[position] = bool(columns > rows)
    return [side for side in sides if gone.get(side.position) != side.on_columns]


def _samples(narrow: int, broad: int, count: int) -> list[_Sample]:
    """Head sizes to try for so many key/value and query channels."""
    group = broad // narrow
    found = []
    for size in _head_sizes(narrow):
        heads = max(1, min(narrow // size, count // size, MOST_ROWS // (group * size)))
        used = group if group * size * heads <= MOST_ROWS else max(1, MOST_ROWS // size)
        found.append(_Sample(size, heads, group, min(used, group)))
    return found


def _head_sizes(narrow: int) -> list[int]:
    """Sizes that so many channels may be cut into, largest first: common ones, and others as far as there is room."""
    fits = [size for size in range(min(narrow, CHANNELS), 7, -1) if narrow % size == 0 and narrow // size <= MOST_HEADS]
    known = [size for size in fits if size in HEAD_SIZES][:MOST_HEAD_SIZES]
    others = [size for size in fits if size not in HEAD_SIZES and size % 2 == 0]
    return sorted({*known, *others[: MOST_HEAD_SIZES - len(known)]}, reverse=True)


def _joins(
    tensors: Sequence[CanonicalTensor],
    sides: Sequence[_Side],
    narrow: int,
    broad: int,
    gains: Mapping[int, tuple[int, Float32]],
) -> list[_Join]:
    """All pairs of a side of ``narrow`` channels and one of ``broad``, scored at the head size that suits them best."""
    firsts, seconds = ([side for side in sides if side.size == size] for size in (narrow, broad))
    fields = (len(firsts) + len(seconds)) * MOST_HEAD_SIZES
    samples = _samples(narrow, broad, min(CHANNELS, int(np.sqrt(MOST_HELD / max(fields, 1)))))
    if not firsts or not seconds or not samples:
        return []
    near, far = (
        [_features(tensors, side, samples, gains, broad=is_broad) for side in chosen]
        for chosen, is_broad in ((firsts, False), (seconds, True))
    )
    scores, shares = [], []
    for index in range(len(samples)):
        score, share = _scores([one[index] for one in near], [one[index] for one in far])
        scores.append(score)
        shares.append(share)
    best, head = _head_size(samples, scores, shares)
    return [
        _Join(first, second, float(scores[best][row, column]), head)
        for row, first in enumerate(firsts)
        for column, second in enumerate(seconds)
        if first.position != second.position
        and (narrow != broad or first.position < second.position)
        and scores[best][row, column] >= _ACCEPT
    ]


def _features(
    tensors: Sequence[CanonicalTensor],
    side: _Side,
    samples: Sequence[_Sample],
    gains: Mapping[int, tuple[int, Float32]],
    *,
    broad: bool,
) -> list[tuple[Float16, Float16, Float16]]:
    """For each head size: all pairs of channels; those within heads; those within heads of the inverse."""
    rows = max(sample.rows if broad else sample.heads * sample.size for sample in samples)
    run = read_run(tensors[side.position].view, 0, min(rows, side.size), columns=side.on_columns)
    axis, factors = gains.get(side.position, (-1, np.ones(0, np.float32)))
    if axis == (0 if side.on_columns else 1):
        run *= factors
    run -= run.mean(axis=1, keepdims=True)
    # Equal lengths of whole runs: the scale of a matrix says nothing, and that of its channels is used within groups.
    run /= max(float(np.sqrt(np.mean(run.astype(np.float64) ** 2))), 1e-12)
    gram = run @ run.T
    found = []
    for sample in samples:
        one = _over_groups(gram, sample) if broad else gram[: sample.heads * sample.size, : sample.heads * sample.size]
        blocks = np.stack(
            [one[start : start + sample.size, start : start + sample.size] for start in range(0, len(one), sample.size)]
        )
        parts = (
            pair_features(as_correlations(one))[0],
            block_features(blocks),
            block_features(block_inverse(one, sample.size)),
        )
        found.append((_narrowed(parts[0]), _narrowed(parts[1]), _narrowed(parts[2])))
    return found


def _narrowed(feature: Float32) -> Float16:
    return (feature * np.float32(np.sqrt(max(feature.size, 1)))).astype(np.float16)


def _over_groups(gram: Float32, sample: _Sample) -> Float32:
    """The Gram matrix summed over the query heads that share a key/value head."""
    starts = np.arange(sample.heads) * sample.group * sample.size
    total = np.zeros((sample.heads * sample.size,) * 2, np.float32)
    for turn in range(sample.used):
        index = (starts[:, None] + turn * sample.size + np.arange(sample.size)).reshape(-1)
        total += gram[np.ix_(index, index)]
    return total


def _scores(
    near: Sequence[tuple[Float16, Float16, Float16]], far: Sequence[tuple[Float16, Float16, Float16]]
) -> tuple[Float64, Float64]:
    """Largest magnitude of the standardised correlations of every pair, and of the correlations within heads."""
    scores = shares = np.zeros((len(near), len(far)))
    for here, there in ((0, 0), (1, 1), (1, 2)):
        first = np.stack([one[here] for one in near]).astype(np.float32)
        size = max(first.shape[1], 1)
        products = np.abs(np.stack([first @ one[there].astype(np.float32) for one in far], axis=1)) / size
        scores = np.maximum(scores, products * np.sqrt(size))
        shares = np.maximum(shares, products) if here else shares
    return scores, shares


def _head_size(samples: Sequence[_Sample], scores: Sequence[Float64], shares: Sequence[Float64]) -> tuple[int, int]:
    """The index of the head size that shows most, and the head size if it can be told.

    Where several query heads share a key, a wrong size compares channels of different heads, and the scores tell.
    Else every size compares the right channels, and the largest one is told that does not mix heads, whose pairs
    correlate less, if there is a larger one that does.
    """
    totals = [float(np.sort(one.max(axis=1))[-max(1, len(one) // 2) :].sum()) for one in scores]
    best = int(np.argmax(totals))
    if samples[best].group > 1:
        return best, samples[best].size
    top = [median(np.sort(one.max(axis=1))[-max(1, len(one) // 2) :]) for one in shares]
    whole = [i for i, share in enumerate(top) if share >= _SAME * max(top)]
    if not whole or whole[0] == 0 or top[whole[0] - 1] > _LESS * top[whole[0]]:
        return best, 0
    return best, samples[whole[0]].size


def _matching(joins: Sequence[_Join], flow: int) -> list[_Join]:
    """Joins without a matrix in common, strongest first, as matrices stored as ``flow`` says allow it."""
    taken: set[int] = set()
    found = []
    for join in sorted(joins, key=lambda one: -one.score):
        one, other = (
            side if side.reads is not None else replace(side, reads=side.on_columns == (flow < 0))
            for side in (join.narrow, join.broad)
        )
        if {one.position, other.position} & taken or not (one.reads or other.reads):
            continue
        if one.size < other.size and not one.reads:
            continue
        taken |= {one.position, other.position}
        found.append(replace(join, narrow=one, broad=other))
    return found


def _place(side: _Side) -> Place:
    return Place(side.position, side.on_columns == bool(side.reads))


def _blocks(tensors: Sequence[CanonicalTensor], joins: Sequence[_Join]) -> list[Attention]:
    """Blocks in the order of the checkpoint; those whose parts were stored in one tensor get their query and key."""
    fused: dict[str, dict[Role, int]] = defaultdict(dict)
    for position, tensor in enumerate(tensors):
        if tensor.role in {Role.QUERY, Role.KEY, Role.VALUE} and tensor.name.endswith(f"[{tensor.role}]"):
            fused[tensor.name.rpartition("[")[0]][tensor.role] = position
    outputs: dict[int, _Join] = {}
    found = []
    for join in joins:
        narrow, broad = (
            Place(side.position, side.on_columns == bool(side.reads)) for side in (join.narrow, join.broad)
        )
        if join.narrow.reads and join.broad.reads:
            layer = layer_of(tensors, (broad, narrow))
            ordered = join.narrow.size != join.broad.size
            found.append(Attention(layer, broad, narrow, None, None, join.head, ordered))
            continue
        value, output = (narrow, broad) if join.narrow.reads else (broad, narrow)
        outputs[value.position] = join
        if tensors[value.position].role is not Role.VALUE:
            found.append(Attention(layer_of(tensors, (value, output)), None, None, value, output, join.head, True))
    for parts in fused.values():
        if len(parts) < 3:
            continue
        query, key, value = (Place(parts[role], False) for role in (Role.QUERY, Role.KEY, Role.VALUE))
        join_ = outputs.get(value.position)
        output_ = None
        if join_ is not None:
            side = join_.broad if join_.narrow.position == value.position else join_.narrow
            output_ = _place(side)
        head = 0 if join_ is None else join_.head
        found.append(Attention(layer_of(tensors, (query, output_)), query, key, value, output_, head, True))
    return sorted(found, key=lambda one: min(p.position for p in (one.query, one.value) if p is not None))
