"""The tests as the benchmark calls them: the product's own functions, and deliberately broken variants of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace
from scipy.optimize import linear_sum_assignment

from fingerprint.comparing.align import Alignment, align_samples, log10_p_landed
from fingerprint.comparing.coins import NeuronMatch, match_neurons, toss, usable_coins
from fingerprint.comparing.gauge import Gauge, compare_gauge
from fingerprint.comparing.tail import sketch_log10_p
from fingerprint.vocabulary import Axis, Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fingerprint.comparing.coins import CoinToss
    from fingerprint.records import AxisSample, Fingerprint, NeuronSample

HIDDEN = frozenset(axis for axis in Axis if axis.exchangeable)


@dataclass(frozen=True, slots=True)
class Procedures:
    """What is called for each test; ``hidden`` are the axes along which ``align`` is tried."""

    align: Callable[[AxisSample, AxisSample], Alignment] = align_samples
    hidden: frozenset[Axis] = HIDDEN
    match: Callable[..., list[NeuronMatch]] = match_neurons
    usable: Callable[[Sequence[NeuronSample]], list[Any]] = usable_coins
    toss: Callable[[Sequence[NeuronMatch], Sequence[Any]], CoinToss] = toss
    sketch: Callable[[float, int], float] = sketch_log10_p
    gauge: Callable[..., Gauge] = compare_gauge


TRUE = Procedures()


def _align_in_order(registered: AxisSample, suspect: AxisSample) -> Alignment:
    """``align_samples`` without the shuffle: the solver's walk decides ties, along the diagonal."""
    _, ours, theirs = np.intersect1d(registered.indices, suspect.indices, assume_unique=True, return_indices=True)
    a, b = (_units(side.values[rows]) for side, rows in ((registered, ours), (suspect, theirs)))
    if len(a) < 2:
        return Alignment(0, len(a), 0.0, 0.0, registered.dimension)
    cosines = a @ b.T
    rows, columns = linear_sum_assignment(-np.round(cosines, 6))
    landed = int(np.count_nonzero(rows == columns))
    return Alignment(landed, len(a), float(np.diagonal(cosines).mean()), log10_p_landed(landed), registered.dimension)


def _match_seeing_coins(
    registered: Sequence[NeuronSample], suspect: Sequence[NeuronSample], frame: str = Frame.FIXED
) -> list[NeuronMatch]:
    """Matches whose score sees the coin: agreeing pairs weigh more."""
    return [
        replace(one, scores=np.clip(one.scores * (1 + 0.5 * one.coins), 0.0, 1.0))
        for one in match_neurons(registered, suspect, frame)
    ]


def _usable_all(registered: Sequence[NeuronSample]) -> list[Any]:
    """Every neuron has a coin, near-copies too."""
    return [np.full(sample.indices.size, sample.up is not None) for sample in registered]


def _third(value: float) -> float:
    return value - math.log10(3.0)


def _toss_one_sided(matches: Sequence[NeuronMatch], usable: Sequence[Any]) -> CoinToss:
    """The p-value of one side for a sum whose sign was not fixed beforehand: half of what it should be, per MLP."""
    result = toss(matches, usable)
    return replace(result, log10_p=result.log10_p - result.groups * np.log10(2.0))


def _toss_third(matches: Sequence[NeuronMatch], usable: Sequence[Any]) -> CoinToss:
    result = toss(matches, usable)
    return replace(result, log10_p=_third(result.log10_p))


def _align_third(registered: AxisSample, suspect: AxisSample) -> Alignment:
    result = align_samples(registered, suspect)
    return replace(result, log10_p=_third(result.log10_p))


def _gauge_third(registered: Fingerprint, suspect: Fingerprint, usable: Sequence[Any], *, own_frames: bool) -> Gauge:
    found = compare_gauge(registered, suspect, usable, own_frames=own_frames)
    tosses = (replace(one.toss, log10_p=_third(one.toss.log10_p)) for one in found.tests)
    return replace(found, tests=tuple(replace(one, toss=t) for one, t in zip(found.tests, tosses, strict=True)))


def _units(rows: Any) -> Any:
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)


def _gaussian(largest: float, trials: int) -> float:
    """The naive null of the sketch: a Gaussian of the nominal spread."""
    from scipy.stats import norm

    return min(0.0, float((norm.logsf(largest) + np.log(2.0 * max(trials, 1))) / np.log(10.0)))


BROKEN: Mapping[str, Procedures] = {
    "align-unshuffled": dataclasses.replace(TRUE, align=_align_in_order),
    "coins-weights": dataclasses.replace(TRUE, match=_match_seeing_coins),
    "coins-duplicates": dataclasses.replace(TRUE, usable=_usable_all),
    "coins-one-sided": dataclasses.replace(TRUE, toss=_toss_one_sided),
    "sketch-gaussian": dataclasses.replace(TRUE, sketch=_gaussian),
    "third": dataclasses.replace(
        TRUE,
        align=_align_third,
        toss=_toss_third,
        sketch=lambda largest, trials: _third(sketch_log10_p(largest, trials)),
        gauge=_gauge_third,
    ),
}
"""By name: what ``--break`` runs instead of the product's functions. Each must make the command fail."""
