"""MLPs put together without names: gate, up and down by the likeness of their neurons, whatever was rescaled.

The statistic is that of ``roles.grams``: neurons i and j that are alike in one projection are alike in the others. It
needs neither embeddings nor gains, and it tells the projections apart: up and down change sign together, so that the
signs of their Gram matrices agree, while a gate's signs agree with the magnitudes in down.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.roles.grams import common_share, pair_features, read_run, units
from fingerprint.roles.wiring import NeuronMatrices, Place
from fingerprint.vectors import median, row_norms
from fingerprint.vocabulary import Axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fingerprint.roles.layout import CanonicalTensor

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

NEURONS: Final = 512
"""Neurons of each matrix that are compared."""
LEAST_NEURONS: Final = 24
MOST_READ: Final = 1 << 30
"""Elements that are read a second time, at most: fewer neurons are compared where there are very many matrices."""
MOST_HELD: Final = 1 << 25
"""Numbers that are held at a time: 128 MB."""
MOST_PAIRS: Final = 1 << 22
_ACCEPT: Final = 4.0
_LEFT_OVER: Final = 1.5
_ALONE: Final = 6.0
_BESIDE: Final = 0.2
_STRAY: Final = 3.0
_DECIDED: Final = 3.0
_CHANCE: Final = 1.0
_SHARES_APART: Final = 0.7
_IDLE: Final = 1e-2
_LARGE: Final = 0.9
"""Neurons that are shorter than ``_IDLE`` of this quantile of all lengths count as zeros: what was added to be idle."""


class _Group(Struct, frozen=True):
    """Matrices on one number of neurons: ``firsts`` are at least as many as ``seconds``, which are turned to them."""

    size: int
    firsts: list[Place]
    seconds: list[Place]
    certain: bool

    @property
    def gated(self) -> bool:
        return len(self.firsts) > len(self.seconds)

    @property
    def few(self) -> bool:
        """Whether there are far from two firsts for each second: a table may happen to have the size of an MLP."""
        return 2 * len(self.firsts) <= 3 * len(self.seconds)


class _Scores(Struct, frozen=True):
    """Of every first with every second, (firsts, seconds): signs with signs, signs with magnitudes, magnitudes.

    ``first_share`` and ``second_share``: what the neurons of each matrix have in common.
    """

    signs: Float64
    mixed: Float64
    magnitudes: Float64
    first_share: Float64
    second_share: Float64

    @property
    def total(self) -> Float64:
        return self.magnitudes + np.maximum(np.maximum(self.signs, self.mixed), 0.0)


def pair_mlps(
    tensors: Sequence[CanonicalTensor],
    candidates: Iterable[int],
    width: int,
    gains: Mapping[int, Float32] | None = None,
    flow: int = 0,
) -> tuple[list[NeuronMatrices], list[str]]:
    """MLPs among the matrices at the positions ``candidates``, and notes on what was not tried.

    ``width`` is that of the residual stream; ``gains`` are factors along it to be folded into the matrices at these
    positions; ``flow`` is 1 where matrices are known to be stored as (out, in), -1 where as (in, out). Reads a run of
    at most ``NEURONS`` neurons of each matrix. Raises ``InputError``.
    """
    found: list[NeuronMatrices] = []
    notes: list[str] = []
    for group in _groups(tensors, candidates, width):
        count = _neurons(group, width)
        if count < LEAST_NEURONS or len(group.firsts) * len(group.seconds) > MOST_PAIRS:
            notes.append(f"MLPs of {group.size} neurons: too many matrices to be put together without names")
            continue
        found += _pair(tensors, group, count, gains or {}, flow)
    return found, notes


def _groups(tensors: Sequence[CanonicalTensor], candidates: Iterable[int], width: int) -> list[_Group]:
    stored: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    certain: set[int] = set()
    for position in candidates:
        tensor = tensors[position]
        rows, columns = tensor.view.shape
        if (rows == width) == (columns == width) or Axis.TOKEN in tensor.axes:
            continue
        size = columns if rows == width else rows
        stored[size][rows == width].append(position)
        if Axis.NEURON in tensor.axes:
            certain.add(size)
    groups = []
    for size, (tall, wide) in sorted(stored.items()):
        if not tall or not wide or (certain and size not in certain):
            continue
        flipped = len(wide) > len(tall)
        first, second = (wide, tall) if flipped else (tall, wide)
        groups.append(
            _Group(size, [Place(i, flipped) for i in first], [Place(i, flipped) for i in second], size in certain)
        )
    return groups


def _neurons(group: _Group, width: int) -> int:
    """Neurons to compare: what is held of all seconds, and what is read of all, stays bounded."""
    matrices = len(group.firsts) + len(group.seconds)
    held = int(np.sqrt(MOST_HELD / max(len(group.seconds), 1)))
    return min(group.size, NEURONS, held, MOST_READ // max(matrices * width, 1))


def _pair(
    tensors: Sequence[CanonicalTensor], group: _Group, count: int, gains: Mapping[int, Float32], flow: int
) -> list[NeuronMatrices]:
    scores = _scores(tensors, group, count, gains)
    total = scores.total
    gated = group.gated and (not group.few or _has_gates(total))
    per_second = 2 if gated else 1
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-np.repeat(total, per_second, axis=1))
    seconds = columns // per_second
    taken = np.zeros(total.shape, bool)
    taken[rows, seconds] = True
    if not group.certain and not _stands_out(total, taken):
        return []
    scores_of = total[rows, seconds]
    members: dict[int, list[int]] = defaultdict(list)
    # What is left to a single one cannot belong elsewhere.
    least = _LEFT_OVER if group.certain and len(set(seconds[scores_of < _ACCEPT].tolist())) == 1 else _ACCEPT
    for row, second, score in zip(rows.tolist(), seconds.tolist(), scores_of.tolist(), strict=True):
        if score >= least:
            members[second].append(row)
    if not gated:
        return _ungated(group, scores, {second: rows[0] for second, rows in members.items()}, gains, flow)
    return [_gated(group, scores, second, rows) for second, rows in sorted(members.items()) if len(rows) == per_second]


def _has_gates(total: Float64) -> bool:
    """Whether some second has two firsts.

    The weaker of gate and up had .6 or more of the other's score with their down; what is best beside the partner of an
    MLP without a gate .06 or less.
    """
    second, best = np.sort(total, axis=0)[-2:]
    return bool(((second >= _ACCEPT) & (second >= _BESIDE * best)).any())


def _stands_out(total: Float64, taken: NDArray[np.bool_]) -> bool:
    """Whether the pairs are told by their own neurons, and not by what all matrices of that shape have in common.

    Queries and outputs of attention are alike too, head by head, but in all layers.
    """
    others = total[~taken]
    if not others.size:
        return bool(total[taken].max(initial=0.0) >= _ALONE)
    return bool(median(others) < _STRAY and median(total[taken]) > max(_ALONE, others.max()))


def _gated(group: _Group, scores: _Scores, second: int, rows: list[int]) -> NeuronMatrices:
    shares = np.log(scores.first_share[rows] + _CHANCE)
    leaning = scores.mixed[rows, second] - scores.signs[rows, second] + _DECIDED * shares
    decided = abs(leaning[0] - leaning[1]) >= _DECIDED
    gate, up = (rows[0], rows[1]) if leaning[0] >= leaning[1] else (rows[1], rows[0])
    score = float(scores.total[rows, second].min())
    return NeuronMatrices(group.firsts[gate], group.firsts[up], group.seconds[second], score, bool(decided))


def _ungated(
    group: _Group, scores: _Scores, members: Mapping[int, int], gains: Mapping[int, Float32], flow: int
) -> list[NeuronMatrices]:
    """Which side comes first is the same in all layers.

    The one that reads a gain does, or the one that lies as the other matrices say; else the one whose neurons have more
    in common.
    """
    leaning = _reading(group, members, gains) or flow * (-1 if group.firsts[0].transposed else 1)
    decided = bool(leaning)
    if not decided and members:
        firsts, seconds = scores.first_share[list(members.values())], scores.second_share[list(members)]
        apart = median(np.log(firsts + _CHANCE) - np.log(seconds + _CHANCE))
        leaning, decided = (-1 if apart < 0 else 1), abs(apart) >= _SHARES_APART
    found = []
    for second, first in members.items():
        one, other = group.firsts[first], group.seconds[second]
        if leaning < 0:
            one, other = (Place(place.position, not place.transposed) for place in (other, one))
        found.append(NeuronMatrices(one, None, other, float(scores.total[first, second]), decided))
    return found


def _reading(group: _Group, members: Mapping[int, int], gains: Mapping[int, Float32]) -> int:
    firsts = sum(group.firsts[first].position in gains for first in members.values())
    seconds = sum(group.seconds[second].position in gains for second in members)
    return (firsts > seconds) - (firsts < seconds)


def _scores(tensors: Sequence[CanonicalTensor], group: _Group, count: int, gains: Mapping[int, Float32]) -> _Scores:
    """Features of the seconds are held; the firsts go by one at a time."""

    def features(place: Place, *, down: bool) -> tuple[Float32, Float32, float]:
        run = read_run(tensors[place.position].view, 0, count, columns=place.transposed != down)
        unit = units(run * gains[place.position] if place.position in gains else run)
        lengths = row_norms(run)
        unit[lengths < _IDLE * np.quantile(lengths, _LARGE)] = 0.0
        signed, magnitudes = pair_features(unit @ unit.T)
        return signed, magnitudes, common_share(unit)

    seconds = [features(place, down=True) for place in group.seconds]
    signed = np.stack([one[0] for one in seconds])
    magnitudes = np.stack([one[1] for one in seconds])
    shape = (len(group.firsts), len(seconds))
    found = _Scores(
        signs=np.zeros(shape),
        mixed=np.zeros(shape),
        magnitudes=np.zeros(shape),
        first_share=np.zeros(shape[0]),
        second_share=np.array([one[2] for one in seconds]),
    )
    scale = np.sqrt(signed.shape[1])
    for row, place in enumerate(group.firsts):
        own_signed, own_magnitudes, found.first_share[row] = features(place, down=False)
        found.signs[row] = signed @ own_signed * scale
        found.mixed[row] = magnitudes @ own_signed * scale
        found.magnitudes[row] = magnitudes @ own_magnitudes * scale
    return found
