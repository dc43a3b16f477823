"""Attention undone: which head is which, the invertible map inside of each; what is left, and of its circuits."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from fingerprint.undoing.algebra import orthonormal_heads, polar, subspace_likeness
from fingerprint.undoing.result import Use

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.undoing.anatomy import AttentionParts, Part
    from fingerprint.undoing.scores import Tally
    from fingerprint.undoing.stream import Stream

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

HEAD_SIZES: Final = (256, 192, 160, 128, 96, 80, 64, 48, 40, 32, 24, 16, 12, 8)
MOST_HEADS: Final = 512
_CLEARLY: Final = 0.02
_MOST: Final = 0.95
_SAME: Final = 0.1


class Mixing(StrEnum):
    """What was done to the channels inside of the heads, in growing order of generality."""

    NONE = "as-it-was"
    SCALED = "rescaled"
    PAIRS = "pairs-turned"
    MIXED = "mixed"


class UndoneHeads(Struct, frozen=True):
    """One half of a block: ``inner`` are their keys or values, ``outer`` their queries or outputs.

    ``order`` (their key/value heads,) are ours; ``maps`` (heads, size, size): their rows are these times ours.
    ``group`` (their outer heads,) gives ours for these.
    """

    kind: str
    ours: int | None
    theirs: int | None
    size: int
    order: Int64
    group: Int64
    maps: Float64
    mixing: Mixing

    @property
    def moved(self) -> float:
        """Share of heads under another number."""
        return float(np.mean(self.group != np.arange(self.group.size)))


def undo_attention(
    ours: AttentionParts, theirs: AttentionParts, stream: Stream, tally: Tally, *, centred: bool
) -> list[UndoneHeads]:
    """Undo query and key, then value and output; add to the tally. Raises ``InputError``.

    Heads are told by the subspaces of their keys (and values), the map inside of each fitted on these alone. Where
    several query heads share a key their order within the group is chosen by the queries; outputs then follow it, and
    are held out. The size of heads, where it is not known, is the one among usual sizes at which the outer matrices
    agree best; and so is chosen which of two matrices is the query, where that is not known.
    """
    found: list[UndoneHeads] = []
    group: Int64 | None = None
    for kind, inner, outer in (("query-key", "key", "query"), ("value-output", "value", "output")):
        sides = [(getattr(one, inner), getattr(one, outer)) for one in (ours, theirs)]
        (mine_in, mine_out), (its_in, its_out) = sides
        if mine_in is None or mine_out is None or its_in is None or its_out is None:
            continue
        exchange = kind == "query-key" and not (ours.ordered and theirs.ordered)
        options = [(its_in, its_out), (its_out, its_in)][: 1 + exchange]
        half = _undo(kind, (mine_in, mine_out), options, ours, theirs, stream, tally, group, centred=centred)
        if half is not None:
            found.append(half)
            group = half.group
    return found


class _Attempt(Struct, frozen=True):
    """Heads put together at one size. ``inner`` and ``outer`` (heads, size, width) are what theirs should be."""

    size: int
    order: Int64
    group: Int64
    maps: Float64
    ours_in: Float64
    ours_out: Float64
    inner: Float64
    outer: Float64
    score: float


def _undo(
    kind: str,
    mine: tuple[Part, Part],
    options: list[tuple[Part, Part]],
    ours: AttentionParts,
    theirs: AttentionParts,
    stream: Stream,
    tally: Tally,
    known: Int64 | None,
    *,
    centred: bool,
) -> UndoneHeads | None:
    writes = kind == "value-output"
    first, last = (stream.turned(part.rows(centred=centred), writes=writes and at == 1) for at, part in enumerate(mine))
    found: tuple[_Attempt, tuple[Part, Part], Float32, Float32] | None = None
    for its in options:
        inner, outer = (part.rows(centred=centred) for part in its)
        for size in _sizes(first, last, inner, outer, (*ours.head_sizes, *theirs.head_sizes)):
            attempt = _attempt(first, last, inner, outer, size, known)
            if found is None or attempt.score > found[0].score + _CLEARLY:
                found = attempt, its, inner, outer
    if found is None:
        return None
    best, its, inner, outer = found
    size, many = best.size, len(best.outer) // len(best.inner)
    tally.add(mine[0].role.value, Use.ORDERED, inner, best.inner.reshape(inner.shape))
    chosen = many > 1 and known is None
    tally.add(mine[1].role.value, Use.ORDERED if chosen else Use.HELD_OUT, outer, best.outer.reshape(outer.shape))
    their_in, their_out = (rows.reshape(-1, size, rows.shape[1]).astype(np.float64) for rows in (inner, outer))
    _circuits(f"{kind} circuit", tally, their_in, their_out, best.ours_in, best.ours_out, many)
    mixing = _mixing(best.maps)
    return UndoneHeads(kind, ours.layer, theirs.layer, size, best.order, best.group, best.maps, mixing)


def _attempt(first: Float32, last: Float32, inner: Float32, outer: Float32, size: int, known: Int64 | None) -> _Attempt:
    bases, factors = orthonormal_heads(first, size)
    their_bases, their_factors = orthonormal_heads(inner, size)
    likeness = subspace_likeness(bases, their_bases)
    rows, columns = linear_sum_assignment(-likeness)
    order = likeness.argmax(axis=1)
    order[rows] = columns
    turns = np.stack([polar(their_bases[i] @ bases[j].T) for i, j in enumerate(order)])
    # inner = L' basis' with basis' = turn basis; first = L basis: inner = (L' turn L⁻¹) first.
    maps = np.stack([their_factors[i] @ turns[i] @ np.linalg.pinv(factors[j]) for i, j in enumerate(order)])
    back = np.stack([np.linalg.pinv(their_factors[i]).T @ turns[i] @ factors[j].T for i, j in enumerate(order)])
    predicted = np.stack([their_factors[i] @ turns[i] @ bases[j] for i, j in enumerate(order)])
    ours_in, heads, their_heads = (
        side.reshape(-1, size, side.shape[1]).astype(np.float64) for side in (first, last, outer)
    )
    group = _grouped(order, back, heads, their_heads, known)
    many = len(their_heads) // len(order)
    through = np.stack([back[i // many] @ heads[j] for i, j in enumerate(group)])
    lengths = float(np.linalg.norm(through)) * float(np.linalg.norm(their_heads))
    score = float(np.sum(through * their_heads)) / max(lengths, 1e-30)
    return _Attempt(size, order, group, maps, ours_in[order], heads[group], predicted, through, score)


def _sizes(first: Float32, last: Float32, inner: Float32, outer: Float32, claimed: Sequence[int]) -> list[int]:
    """Sizes that heads may have, the largest first."""
    width = inner.shape[1]
    return [
        size
        for size in sorted(set(claimed) or HEAD_SIZES, reverse=True)
        if 0 < size < width
        and not any(len(rows) % size for rows in (first, last, inner, outer))
        and max(len(inner), len(first)) // size <= MOST_HEADS
        and len(outer) % len(inner) == 0 == len(last) % len(first)
    ]


def _grouped(order: Int64, back: Float64, heads: Float64, their_heads: Float64, known: Int64 | None) -> Int64:
    """Our query (or output) head for each of theirs: within the group of its key (or value) head."""
    many, ours_many = len(their_heads) // len(order), len(heads) // (int(order.max(initial=0)) + 1)
    group = np.zeros(len(their_heads), np.int64)
    for i, j in enumerate(order.tolist()):
        if many == 1:
            group[i] = j
            continue
        if known is not None and known.size == group.size:
            continue
        ours = heads[j * ours_many : (j + 1) * ours_many]
        theirs = their_heads[i * many : (i + 1) * many]
        through = np.stack([back[i] @ head for head in ours])
        scores = np.einsum("ahw,bhw->ab", theirs, through)
        rows, columns = linear_sum_assignment(-scores)
        inside = scores.argmax(axis=1)
        inside[rows] = columns
        group[i * many : (i + 1) * many] = inside + j * ours_many
    return known if known is not None and known.size == group.size and many > 1 else group


def _circuits(
    kind: str, tally: Tally, inner: Float64, outer: Float64, ours_in: Float64, ours_out: Float64, many: int
) -> None:
    """Residuals of ``outerᵀ inner`` of every outer head, (width, width), from products inside of heads alone."""
    error = control = total = 0.0
    count = len(outer)
    for i in range(count):
        j = (i + 1) % count
        size = _product(outer[i], inner[i // many], outer[i], inner[i // many])
        for at, number in ((0, i), (1, j)):
            one, two = ours_out[number], ours_in[number // many]
            squares = size + _product(one, two, one, two) - 2 * _product(outer[i], inner[i // many], one, two)
            if at == 0:
                error += max(squares, 0.0)
            else:
                control += max(squares, 0.0)
        total += size
    tally.add_squares(kind, Use.ORDERED, error, control, total, count * inner.shape[2] ** 2)


def _product(a: Float64, b: Float64, c: Float64, d: Float64) -> float:
    """``<aᵀ b, cᵀ d>`` of (size, width) matrices."""
    return float(np.sum((a @ c.T) * (b @ d.T)))


def _mixing(maps: Float64) -> Mixing:
    """The least general kind that the maps are, nearly."""
    squares = maps**2
    total = float(squares.sum())
    if total <= 0:
        return Mixing.MIXED
    diagonal = np.einsum("hii->hi", maps)
    if float((diagonal**2).sum()) > _MOST * total:
        return Mixing.NONE if float(np.abs(diagonal - 1).mean()) < _SAME else Mixing.SCALED
    size = maps.shape[1]
    half = np.arange(size) % max(size // 2, 1)
    neighbours = np.arange(size) // 2
    for pairs in (half, neighbours):
        inside = pairs[:, None] == pairs[None, :]
        if float(squares[:, inside].sum()) > _MOST * total:
            return Mixing.PAIRS
    return Mixing.MIXED
