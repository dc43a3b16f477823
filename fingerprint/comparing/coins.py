"""Neuron coins: signs that initialisation tosses for every neuron of a gated MLP, and that descent keeps.

In ``down_i (act(gate_i x) * (up_i x))`` flipping up_i and down_i together changes nothing, and symmetric
initialisation, SGD, Adam and weight decay commute with the flip. The signs of a registered model's neurons are
therefore fair coins, independent of any suspect that does not descend from the same root. Neurons are matched by what
does not see the coin; then the coins are looked at. Negating all pairs is free, so the test is two-sided.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.comparing.evidence import LN10
from fingerprint.vectors import row_norms, unit_rows
from fingerprint.vocabulary import Frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fingerprint.records import NeuronSample

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

SYMMETRIC_ACTIVATIONS: Final = frozenset(
    {"silu", "swish", "gelu", "gelu_tanh", "gelu_new", "relu", "relu2", "sigmoid"}
) | {
    "lstm",
    "gru",
}
"""Activations of the gate under which up and down may be flipped together: up enters linearly. In recurrent cells it
enters through tanh, which is odd."""
WEIGHT_LEVELS: Final = 64
_EXACT_COINS: Final = 400
_LOG_T: Final = (-20.0, 8.0)
_GRID: Final = 141
_DUPLICATE_SCORE: Final = 1.5
_MOSTLY: Final = 0.5
_NO_SCORE: Final = 1e-6
_GLANCES: Final = ((12, 16), (48, 4))
"""Neurons of a registered MLP that are looked at, and MLPs of the suspect that are best by them and looked at further:
at first, at second glance. Those left are matched in full."""
_CLEARLY: Final = 0.75
"""Lead in the sum of two or three mean cosines with which the best MLP needs no other beside it: between unrelated
models the largest of 928 leads was .18."""
_AMONG: Final = 192
"""Neurons of each of the suspect's MLPs that are looked at."""
_DIGITS: Final = 6
_APART: Final = 0.5
"""Of units without coins: how much nearer partners are than all others, in the sum of two cosines."""
_NUMBERS_AT_ONCE: Final = 1 << 21
"""Cosines that are held at a time: 8 MB."""
_ROWS_AT_ONCE: Final = 1 << 10
"""Neurons that others are compared with at a time: what is between two products stays in the cache."""
UNKNOWN: Final = "unknown"
"""Activation of an MLP of which it is not known which matrix is the gate."""


class NeuronMatch(Struct, frozen=True):
    """Partners of one registered MLP's sampled neurons in one MLP of the suspect.

    ``registered`` and ``suspect`` are positions in the fingerprints' lists of neuron samples; ``partners`` (m,) index
    the suspect's sample; ``scores`` (m,) in [0, 1] do not see the coins; ``coins`` (m,) are in [-1, 1] (0 for ungated
    MLPs); ``concordant`` (m,) says whether the best partner by gate is also the best by up and down, and that of no
    other neuron, or of units of convolutions whether both prefer each other to all others by much; ``moved`` is the
    share of the well-matched neurons that are found under another index.
    """

    registered: int
    suspect: int
    partners: Int64
    scores: Float64
    coins: Float64
    concordant: NDArray[np.bool_]
    moved: float
    counted: NDArray[np.bool_] | None = None
    """(m,): the neurons that concordance counts, if not all: those that took no part in aligning the two sides."""
    attainable: float = 1.0
    """Share of the registered neurons that can have a partner at all; see ``attainable``."""
    mutual: NDArray[np.bool_] | None = None
    """(m,), of units that lie on no residual stream: see ``mutual_partners``."""

    @property
    def score(self) -> float:
        """Mean score: how well the two MLPs match, blind to the coins."""
        return float(self.scores.mean())

    @property
    def concordance(self) -> float:
        """Share of concordant neurons, of those that count."""
        return float(self.concordant[... if self.counted is None else self.counted].mean())

    @property
    def agreement(self) -> float:
        """Concordance of the neurons that can have a partner: an effect size, and no statistic of a test."""
        return min(1.0, self.concordance / self.attainable)


def attainable(registered: int, suspect: int) -> float:
    """Share of ``registered`` neurons that can have a partner among ``suspect`` ones, where half or more were kept.

    Never less than half: a few neurons that agree by chance would else be all that could.
    """
    return min(1.0, max(0.5, suspect / max(registered, 1)))


def match_neurons(
    registered: Sequence[NeuronSample], suspect: Sequence[NeuronSample], frame: str = Frame.FIXED
) -> list[NeuronMatch]:
    """For every registered MLP the suspect's MLP with the best mean score; all choices are blind to the coins.

    Only samples in ``frame`` take part. The suspect's MLPs are taken in turn, so that the unit rows of one of them are
    in memory, however many there are.
    """
    chosen = [index for index, sample in enumerate(suspect) if sample.frame == frame and sample.indices.size]
    read = [(index, reading) for index in chosen for reading in _readings(suspect[index])]
    readings = [reading for _, reading in read]
    positions = [at for at, ours in enumerate(registered) if ours.frame == frame and ours.indices.size]
    mine = {at: _Reading(registered[at].gate, registered[at].up, registered[at].down) for at in positions}
    rows = {at: reading.rows() for at, reading in mine.items()}
    followed = _followed(mine, readings)
    matches: dict[tuple[int, int], NeuronMatch] = {}
    for number, (index, reading) in enumerate(read):
        wanted = [at for at in positions if number in followed[at]]
        if wanted:
            its = reading.rows()
            for at in wanted:
                matches[at, number] = _joined(at, registered[at], index, suspect[index], rows[at], its)

    def rank(match: NeuronMatch) -> tuple[float, int]:
        # Of readings that fit alike, such as split neurons and what they were split from, the one of fewer neurons.
        return round(match.score, _DIGITS), -suspect[match.suspect].size

    return [max((matches[at, number] for number in followed[at]), key=rank) for at in positions if followed[at]]


def _followed(mine: Mapping[int, _Reading], readings: Sequence[_Reading]) -> dict[int, list[int]]:
    """For each registered MLP, by its position, the numbers of the readings of a suspect that may match it best, those
    first that look like it; none where no reading has as many matrices."""
    found: dict[int, list[int]] = {at: [] for at in mine}
    for gated in (False, True):
        ours = {at: one for at, one in mine.items() if (one.up is not None) == gated}
        numbers = [number for number, one in enumerate(readings) if (one.up is not None) == gated]
        if numbers:
            glances = _Glances.of(numbers, [readings[number].largest(_AMONG) for number in numbers])
            found |= zip(ours, glances.followed(list(ours.values())), strict=True)
    return found


class _Reading:
    """The rows of one sample in one of the orders of its matrices."""

    def __init__(self, gate: Float32, up: Float32 | None, down: Float32) -> None:
        self.gate, self.up, self.down = gate, up, down

    def rows(self) -> _Rows:
        """All of them."""
        return _Rows.of(self.gate, self.up, self.down)

    def largest(self, number: int) -> _Rows:
        """Those of largest gates, the largest first."""
        first = np.argsort(-row_norms(self.gate), kind="stable")[:number]
        return _Rows.of(self.gate[first], None if self.up is None else self.up[first], self.down[first])


class _Rows(NamedTuple):
    """Unit rows (n, w) of an MLP's neurons; ``up`` is None if it is not gated."""

    gate: Float32
    up: Float32 | None
    down: Float32

    @classmethod
    def of(cls, gate: Float32, up: Float32 | None, down: Float32) -> Self:
        """The rows of any length as unit rows."""
        return cls(unit_rows(gate), None if up is None else unit_rows(up), unit_rows(down))

    @classmethod
    def joined(cls, parts: Sequence[_Rows]) -> Self:
        """The rows of some, all gated or none of them, one after the other."""
        ups = [part.up for part in parts if part.up is not None]
        gate, down = (np.concatenate([getattr(part, name) for part in parts]) for name in ("gate", "down"))
        return cls(gate, np.concatenate(ups) if ups else None, down)

    def taken(self, rows: Int64) -> _Rows:
        """Some of the rows."""
        return _Rows(self.gate[rows], None if self.up is None else self.up[rows], self.down[rows])

    def products(self, other: _Rows) -> tuple[Float32, Float32]:
        """Cosines by gate, and summed ones by the rest: (m, n) each."""
        rest = self.down @ other.down.T
        if self.up is not None and other.up is not None:
            rest += self.up @ other.up.T
        return self.gate @ other.gate.T, rest

    def likeness(self, other: _Rows) -> Float32:
        """Sums of these cosines, blind to the coins: (m, n)."""
        by_gate, rest = self.products(other)
        if self.up is not None:
            np.abs(rest, out=rest)
        rest += by_gate
        return rest


class _Glances(Struct, frozen=True):
    """A few neurons of each of a suspect's readings, those of largest gates, one reading after the other.

    ``numbers`` (r,) are those of the readings, ``starts`` (r + 1,) where the rows of each begin and the last ones end.
    """

    numbers: Int64
    starts: Int64
    rows: _Rows

    @classmethod
    def of(cls, numbers: Sequence[int], parts: Sequence[_Rows]) -> Self:
        """Of the readings ``numbers``, one or more, the neurons that are looked at."""
        starts = np.cumsum([0, *(len(part.gate) for part in parts)])
        return cls(np.array(numbers, np.int64), starts, _Rows.joined(parts))

    def followed(self, mine: Sequence[_Reading]) -> list[list[int]]:
        """For each registered MLP the numbers of the readings that may match it best, those first that look like it."""
        first, second = _GLANCES
        found = []
        for one, places in zip(mine, self._best(mine, *first), strict=True):
            among = self._taken(places)
            found.append(among.numbers[among._best([one], *second)[0]].tolist())
        return found

    def _best(self, mine: Sequence[_Reading], glanced: int, many: int) -> list[Int64]:
        """For each of ``mine`` the places of the ``many`` readings that look most like it, or of all of fewer ones; of
        one that looks much more like it than all others, that one alone.

        By about the mean scores of the best partners of some of its neurons.
        """
        if len(self.numbers) == 1:
            return [np.arange(1)] * len(mine)
        found = []
        step = max(1, _NUMBERS_AT_ONCE // (glanced * len(self.rows.gate)))
        for start in range(0, len(mine), step):
            parts = [one.largest(glanced) for one in mine[start : start + step]]
            best = np.maximum.reduceat(_Rows.joined(parts).likeness(self.rows), self.starts[:-1], axis=1)
            ends = np.cumsum([len(part.gate) for part in parts])
            for one in np.split(best, ends[:-1]):
                scores = one.mean(axis=0)
                order = np.argsort(-scores, kind="stable")
                clear = scores[order[0]] - scores[order[1]] >= _CLEARLY
                found.append(order[: 1 if clear else many])
        return found

    def _taken(self, places: Int64) -> _Glances:
        """Some of the readings, in that order."""
        sizes = np.diff(self.starts)[places]
        rows = np.concatenate([np.arange(self.starts[place], self.starts[place + 1]) for place in places])
        return _Glances(self.numbers[places], np.cumsum([0, *sizes]), self.rows.taken(rows))


def _readings(sample: NeuronSample) -> list[_Reading]:
    found = [_Reading(sample.gate, sample.up, sample.down)]
    if sample.activation == UNKNOWN:
        swapped = (sample.down, None, sample.gate) if sample.up is None else (sample.up, sample.gate, sample.down)
        found.append(_Reading(*swapped))
    return found


def _joined(
    position: int,
    ours: NeuronSample,
    index: int,
    theirs: NeuronSample,
    mine: _Rows,
    its: _Rows,
) -> NeuronMatch:
    by_gate, by_rest = mine.products(its)
    signed = mine.up is not None
    rest = np.abs(by_rest) if signed else by_rest
    total = by_gate + rest
    partners = total.argmax(axis=1)
    rows = np.arange(len(total))
    # Units of recurrent cells write nothing that is sampled.
    scale = float(sum(part is not None and bool(part.any()) for part in (ours.gate, ours.up, ours.down)))
    scores = np.clip(total[rows, partners].astype(np.float64) / max(scale, 1.0), 0.0, 1.0)
    mutual = mutual_partners(total) if ours.frame == Frame.UNITS else None
    if mutual is None or signed:
        concordant = concordant_partners(by_gate, rest, scores)
    else:
        concordant = mutual & _stand_apart(total)
    good = scores > 0.5
    moved = ours.indices[good] != theirs.indices[partners[good]]
    return NeuronMatch(
        registered=position,
        suspect=index,
        partners=partners.astype(np.int64),
        scores=scores,
        coins=np.sign(by_rest[rows, partners]).astype(np.float64) if signed else np.zeros(len(total)),
        concordant=concordant,
        moved=float(moved.mean()) if good.any() else 0.0,
        attainable=attainable(ours.size, theirs.size),
        mutual=mutual,
    )


def concordant_partners(by_gate: Float32, rest: Float32, scores: Float64) -> NDArray[np.bool_]:
    """Whether the best partner by gate is the best by the rest, and of no other neuron that fits better.

    Where many neurons find one partner they do so because of what it is (a giant, or zeros), not of what they are.
    """
    first, second = by_gate.argmax(axis=1), rest.argmax(axis=1)
    rows = np.arange(len(first))
    alike = (first == second) & (by_gate[rows, first] > 0) & (rest[rows, second] > 0)
    best = np.full(by_gate.shape[1], -1, np.int64)
    for row in np.argsort(scores, kind="stable").tolist():
        if alike[row]:
            best[first[row]] = row
    concordant: NDArray[np.bool_] = alike & (best[first] == rows)
    return concordant


def mutual_partners(total: Float32) -> NDArray[np.bool_]:
    """Whether a unit's best partner has it as its own best one: (m,) of the sums of cosines (m, n)."""
    mutual: NDArray[np.bool_] = total.argmax(axis=0)[total.argmax(axis=1)] == np.arange(len(total))
    return mutual


def _stand_apart(total: Float32) -> NDArray[np.bool_]:
    """Whether a unit and its best partner are nearer to each other than to all others, by ``_APART`` each: (m,).

    For convolutions, where half of the channels may have been left out: what their compositions were made of went with
    them, so that gate and rest alone no longer find one partner; and where independent networks learn the same filters,
    of which one is as good a partner as the next.
    """
    if min(total.shape) < 2:  # nothing to stand apart from
        return np.zeros(len(total), np.bool_)
    of_rows, of_columns = (_lead(total, axis) for axis in (1, 0))
    apart: NDArray[np.bool_] = np.minimum(of_rows, of_columns[total.argmax(axis=1)]) >= _APART
    return apart


def _lead(total: Float32, axis: int) -> Float32:
    """How much larger the largest number along an axis is than the next."""
    largest = np.sort(total, axis=axis)
    lead: Float32 = np.take(largest, -1, axis) - np.take(largest, -2, axis)
    return lead


def usable_coins(registered: Sequence[NeuronSample], *, own_frames: bool = True) -> list[NDArray[np.bool_]]:
    """Which neurons of each registered MLP have a coin of their own: (m,) masks; without ``own_frames`` none of those
    in layers' own frames.

    MLPs that are not gated or whose activation is not known to allow the flip have none; of near-copies (upcycled
    experts, repeated layers) only the first counts, in each frame. Similarity is measured blind to the coins.
    """
    wanted = [sample.up is not None and (own_frames or sample.frame != Frame.SELF) for sample in registered]
    masks = [
        np.full(sample.indices.size, here and sample.activation in SYMMETRIC_ACTIVATIONS)
        for sample, here in zip(registered, wanted, strict=True)
    ]
    earlier: dict[str, list[_Rows]] = {}
    for at, sample in enumerate(registered):
        mask = masks[at]
        if not wanted[at] or not sample.indices.size:
            continue
        rows = _Rows.of(sample.gate, sample.up, sample.down)
        known = earlier.setdefault(sample.frame, [])
        for others in known:
            mask &= rows.likeness(others).max(axis=1) < _DUPLICATE_SCORE
        alike = np.where(np.tri(mask.size, k=-1, dtype=np.bool_) & mask, rows.likeness(rows), -1.0)
        mask &= alike.max(axis=1) < _DUPLICATE_SCORE
        if mask.any():
            _add(known, rows.taken(np.flatnonzero(mask)))
    return [_without_copies(registered, masks, at) for at in range(len(masks))]


def _add(known: list[_Rows], rows: _Rows) -> None:
    """Add rows to the last of some, or begin another where that would be too long."""
    if known and len(known[-1].gate) + len(rows.gate) <= _ROWS_AT_ONCE:
        known[-1] = _Rows.joined([known[-1], rows])
    else:
        known.append(rows)


def _without_copies(
    registered: Sequence[NeuronSample], masks: Sequence[NDArray[np.bool_]], at: int
) -> NDArray[np.bool_]:
    """The mask of one sample; empty in the self frame of an MLP that other frames show to be a copy.

    Two layers' own frames cannot be compared, so that a copied layer does not show there.
    """
    sample = registered[at]
    others = [
        mask
        for other, mask in zip(registered, masks, strict=True)
        if other.frame != Frame.SELF and other.tensors == sample.tensors and mask.size
    ]
    copied = sample.frame == Frame.SELF and any(float(mask.mean()) < _MOSTLY for mask in others)
    return np.zeros_like(masks[at]) if copied else masks[at]


class Matched(Protocol):
    """Partners of the neurons or channels of one registered sample; see ``NeuronMatch``."""

    @property
    def registered(self) -> int:
        """Position of the registered sample."""

    @property
    def scores(self) -> Float64:
        """(m,), blind to the coins."""

    @property
    def coins(self) -> Float64:
        """(m,) signs."""


class CoinToss(Struct, frozen=True):
    """The coins of all MLPs together.

    ``coins`` were tossed in ``groups`` MLPs; ``agreement`` is the mean over MLPs of the absolute weighted mean coin (1
    if every coin of an MLP agrees or every one disagrees); ``largest`` the largest standardised sum of one MLP;
    ``log10_p`` is two-sided in every MLP, combined by Fisher's method, and not corrected for anything else.
    """

    coins: int
    groups: int
    agreement: float
    largest: float
    log10_p: float


def toss(matches: Sequence[Matched], usable: Sequence[NDArray[np.bool_]]) -> CoinToss:
    """Look at all usable coins of the matched MLPs; a coin's weight is the fourth power of its score over the largest.

    MLPs have disjoint coins, so their p-values are independent and Fisher's method is valid; each is two-sided, since
    negating all pairs of one MLP is free for a launderer.
    """
    logs: list[float] = []
    agreements: list[float] = []
    largest = 0.0
    number = 0
    for match in matches:
        mask = usable[match.registered]
        scores = match.scores[mask]
        # Relative to the best of the MLP: unrelated ones match badly throughout, and would have no coins to look at.
        levels = np.rint((scores / max(float(scores.max(initial=0.0)), _NO_SCORE)) ** 4 * WEIGHT_LEVELS).astype(
            np.int64
        )
        coin = np.where(match.coins[mask] < 0, -1, 1)[levels > 0]
        levels = levels[levels > 0]
        if not levels.size:
            continue
        total = abs(int(np.sum(levels * coin)))
        number += levels.size
        logs.append(log10_p_signed_sum(total, levels))
        agreements.append(total / float(levels.sum()))
        largest = max(largest, total / math.sqrt(float(np.sum(levels.astype(np.float64) ** 2))))
    if not logs:
        return CoinToss(0, 0, 0.0, 0.0, 0.0)
    return CoinToss(number, len(logs), float(np.mean(agreements)), largest, fisher(logs))


def fisher(logs: Sequence[float]) -> float:
    """log10 of the combined p-value of independent tests, from the log10 of theirs (Fisher's method).

    The upper tail of a chi-squared variable with 2n degrees of freedom at 2x is ``exp(-x) sum_{j<n} x**j / j!``,
    summed here in log space.
    """
    x = -LN10 * float(sum(logs))
    if x <= 0.0:
        return 0.0
    terms = np.array([j * math.log(x) - math.lgamma(j + 1) for j in range(len(logs))])
    return min(0.0, (float(np.logaddexp.reduce(terms)) - x) / LN10)


def log10_p_signed_sum(total: int, weights: Int64) -> float:
    """log10 of P(|sum of w_i s_i| >= total) for fair signs s_i and positive integer weights.

    By exact convolution for up to 400 coins, by the Chernoff bound ``2 min_t exp(-t total) prod cosh(t w_i)`` for more.
    """
    if total <= 0:
        return 0.0
    if weights.size <= _EXACT_COINS:
        reach = int(weights.sum())
        law = np.zeros(reach + 1)  # number of ways to a sum of the weights with sign +1
        law[0] = 1.0
        high = 0
        for weight in sorted(weights.tolist()):  # the shortest laws first
            law[weight : high + weight + 1] += law[: high + 1].copy()
            high += weight
        least = -(-(total + reach) // 2)  # sum = 2 positive - reach
        tail = float(law[least:].sum())
        if tail > 0:
            return min(0.0, math.log10(tail) + (1 - weights.size) * math.log10(2.0))
    numbers = np.bincount(weights)
    values = np.flatnonzero(numbers)
    numbers = numbers[values]

    def exponents(t: Float64) -> Float64:
        scaled = np.multiply.outer(t, values.astype(np.float64))
        found: Float64 = (np.logaddexp(scaled, -scaled) - math.log(2.0)) @ numbers - t * total
        return found

    # The bound holds for every t: the best of a grid, and of a finer one around it.
    coarse = np.exp(np.linspace(*_LOG_T, _GRID))
    best = int(exponents(coarse).argmin())
    fine = np.linspace(coarse[max(best - 1, 0)], coarse[min(best + 1, _GRID - 1)], _GRID)
    return min(0.0, (float(exponents(fine).min()) + math.log(2.0)) / LN10)
