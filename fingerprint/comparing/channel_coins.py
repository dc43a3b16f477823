"""Coins of attention channels: values with outputs, frequency pairs, keys with queries (``gauge.channels``).

Heads are matched by what does not see the coins, channels within heads too, except frequency pairs, whose place in a
head is their frequency; then the coins are looked at. Layers and heads are chosen by the mean of absolute scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.vectors import distinct, unit_rows
from fingerprint.vocabulary import ChannelKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fingerprint.records import ChannelSample, Fingerprint

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

_DUPLICATE_SCORE: Final = 0.6
_FOLLOWED: Final = 4
"""Samples of the suspect whose heads are matched one by one for each registered one: those that look most alike."""
_CLEARLY: Final = 0.3
"""Lead in likeness with which the best of them needs no other beside it: of unrelated models .13 at most (120)."""
_LEAST_SHARED: Final = 4
"""Frequencies that two heads' samples must share to be compared."""


class ChannelMatch(Struct, frozen=True):
    """Partners of one registered sample's channels in one sample of the suspect.

    ``registered`` and ``suspect`` are positions in the fingerprints' lists of channel samples; ``partners`` (m,) index
    the suspect's sample; ``scores`` (m,) in [0, 1] do not see the coins; ``coins`` (m,) are -1, 0 or 1; ``concordant``
    (m,) says whether the best partner by the one side (value, key) is also the best by the other; ``moved`` is the
    share of the well-matched channels that are found in a head of another number.
    """

    registered: int
    suspect: int
    partners: Int64
    scores: Float64
    coins: Float64
    concordant: Bools
    moved: float

    @property
    def score(self) -> float:
        """Mean score, blind to the coins."""
        return float(self.scores.mean())

    @property
    def concordance(self) -> float:
        """Share of concordant channels."""
        return float(self.concordant.mean())


def match_channels(
    registered: Sequence[ChannelSample],
    suspect: Sequence[ChannelSample],
    frame: str,
    kind: ChannelKind,
    *,
    ungrouped: Collection[int] = (),
) -> list[ChannelMatch]:
    """For every registered sample of ``kind`` in ``frame`` the suspect's with the best mean score.

    ``ungrouped`` are positions of the suspect's samples whose channels do not depend on the size of heads: each value
    is read by one output column. They are taken to have heads of the registered size.
    """
    theirs = [(at, _Heads(one)) for at, one in enumerate(suspect) if (one.frame, one.kind) == (frame, kind)]
    found = []
    for at, sample in enumerate(registered):
        if (sample.frame, sample.kind) != (frame, kind) or not sample.indices.size:
            continue
        ours = _Heads(sample)
        recut = {where: _Heads(suspect[where], sample.head) if where in ungrouped else one for where, one in theirs}
        alike = [(ours.likeness(other), where, other) for where, other in recut.items() if ours.fits(other)]
        alike.sort(key=lambda one: -one[0])
        clear = len(alike) > 1 and alike[0][0] - alike[1][0] >= _CLEARLY
        options = [
            match
            for _, where, other in alike[: 1 if clear else _FOLLOWED]
            if (match := _match(at, ours, where, other)) is not None
        ]
        if options:
            found.append(max(options, key=lambda one: one.score))
    return found


def ungrouped_samples(fingerprint: Fingerprint) -> set[int]:
    """Positions of the samples of single channels whose heads are not shared, as the shapes of their tensors tell."""
    found = set()
    for at, sample in enumerate(fingerprint.channels):
        if sample.kind is ChannelKind.ROTARY or min(sample.tensors) < 0:
            continue
        narrow, wide = (fingerprint.tensors[position].shape for position in sample.tensors)
        read = wide[-1] if sample.kind is ChannelKind.VALUE_OUTPUT else wide[0]
        if len(narrow) == len(wide) == 2 and narrow[0] == read:
            found.add(at)
    return found


def usable_channels(registered: Sequence[ChannelSample]) -> list[Bools]:
    """Which channels of each registered sample have a coin of their own: (m,) masks; near-copies count once."""
    masks = [np.ones(sample.indices.size, np.bool_) for sample in registered]
    heads = [_Heads(sample) for sample in registered]
    for later, theirs in enumerate(heads):
        for earlier in range(later + 1):
            ours = heads[earlier]
            like = (theirs.sample.frame, theirs.sample.kind) == (ours.sample.frame, ours.sample.kind)
            if not like or theirs.parts.shape[2] != ours.parts.shape[2]:
                continue
            alike = np.abs(_agreement(theirs.parts, ours.parts))
            alike[:, ~masks[earlier]] = 0.0
            if earlier == later:
                alike[np.triu_indices(len(alike))] = 0.0
            masks[later] &= alike.max(axis=1, initial=0.0) < _DUPLICATE_SCORE
    return masks


class _Heads:
    """The channels of one sample as unit vectors, by head."""

    def __init__(self, sample: ChannelSample, head: int | None = None) -> None:
        self.sample = sample
        self.head = max(sample.head if head is None else head, 1)
        parts = sample.parts
        if sample.kind is ChannelKind.ROTARY:
            keys = unit_rows(np.concatenate([parts[0], parts[1]], axis=1))
            queries = unit_rows(np.concatenate([parts[2], parts[3]], axis=1))
            parts = np.stack([keys, queries])
        else:
            parts = unit_rows(parts)
        self.parts = parts
        self.heads = sample.indices // self.head
        self.inner = sample.indices % self.head

    def fits(self, other: _Heads) -> bool:
        """Whether channels of the two samples can be compared."""
        return (
            self.head == other.head and self.parts.shape[2] == other.parts.shape[2] and bool(other.sample.indices.size)
        )

    def likeness(self, other: _Heads) -> float:
        """Mean score of the best partners, whatever their heads."""
        scores = np.abs(_agreement(self.parts, other.parts))
        if self.sample.kind is ChannelKind.ROTARY:
            scores[self.inner[:, None] != other.inner] = 0.0
        return float(scores.max(axis=1).mean())

    def by_head(self) -> list[tuple[int, Int64]]:
        """Number of each head that is sampled, and the positions of its channels in the sample."""
        return [(int(head), np.flatnonzero(self.heads == head)) for head in distinct(self.heads)]


def _agreement(ours: Float32, theirs: Float32) -> Float32:
    """Mean cosine of two channels' sides, one sign for both: (m, n), in [-1, 1].

    Of frequency pairs the real part of the complex product: as concatenated vectors they have that as their product.
    """
    return _mean(*_by_side(ours, theirs))


def _by_side(ours: Float32, theirs: Float32) -> tuple[Float32, Float32]:
    """Cosines of either side: (m, n) each."""
    return ours[0] @ theirs[0].T, ours[1] @ theirs[1].T


def _mean(first: Float32, last: Float32) -> Float32:
    both: Float32 = (first + last) / np.float32(2.0)
    return both


def _match(at: int, ours: _Heads, where: int, theirs: _Heads) -> ChannelMatch | None:
    first, last = _by_side(ours.parts, theirs.parts)
    cosines = _mean(first, last)
    options = [_partners(ours, theirs, columns, cosines) for _, columns in theirs.by_head()]
    partners = np.zeros(len(ours.heads), np.int64)
    signed = np.zeros(len(ours.heads), np.float64)
    concordant = np.zeros(len(ours.heads), np.bool_)
    seen = np.zeros(len(ours.heads), np.bool_)
    for _, rows in ours.by_head():
        best: tuple[float, Int64, Int64, Float32] | None = None
        for among in options:
            chosen, kept = among[rows], rows
            if chosen.min(initial=0) < 0:
                kept = rows[chosen >= 0]
                chosen = among[kept]
            if kept.size < min(_LEAST_SHARED, rows.size):
                continue
            found = cosines[kept, chosen]
            score = float(np.add.reduce(np.abs(found)) / found.size)
            if best is None or score > best[0]:
                best = (score, kept, chosen, found)
        if best is None:
            continue
        _, kept, chosen, found = best
        columns = np.flatnonzero(theirs.heads == theirs.heads[chosen[0]])
        seen[kept] = True
        partners[kept], signed[kept] = chosen, found
        one, other = np.abs(first[np.ix_(kept, columns)]), np.abs(last[np.ix_(kept, columns)])
        concordant[kept] = one.argmax(axis=1) == other.argmax(axis=1)
    if not seen.any():
        return None
    scores = np.clip(np.abs(signed), 0.0, 1.0)
    good = scores > 0.5
    moved = ours.heads[good] != theirs.heads[partners[good]]
    return ChannelMatch(
        registered=at,
        suspect=where,
        partners=partners,
        scores=scores,
        coins=np.sign(signed),
        concordant=concordant,
        moved=float(moved.mean()) if good.any() else 0.0,
    )


def _partners(ours: _Heads, theirs: _Heads, columns: Int64, cosines: Float32) -> Int64:
    """The partner that each channel of ``ours`` has among ``columns``, those of one head; -1 where it has none."""
    if ours.sample.kind is not ChannelKind.ROTARY:
        nearest: Int64 = columns[np.abs(cosines[:, columns]).argmax(axis=1)]
        return nearest
    place = dict(zip(theirs.inner[columns].tolist(), columns.tolist(), strict=True))
    return np.array([place.get(inner, -1) for inner in ours.inner.tolist()], np.int64)
