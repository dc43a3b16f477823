"""Exact nulls by force: the registered model's own coins flipped at random, its hidden axes permuted at random.

A flip of up and down together, one of both sides of an attention channel, or a permutation of a hidden axis leaves the
function of the registered model as it is. So after one drawn at random even a true relative carries no information in
its coins (its alignment): whatever the suspect, each replicate is a draw from the null, and the share of p <= alpha
must be at most alpha.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from benchmarks.error_rates.comparisons import ALIGN, COIN, FISHER, Samples, same_place
from benchmarks.error_rates.moving import CHANNELS, GAUGE, channels_p
from benchmarks.error_rates.population import UPCYCLED
from benchmarks.error_rates.rates import Sample
from fingerprint.vocabulary import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from benchmarks.error_rates.population import Model
    from benchmarks.error_rates.procedures import Procedures
    from fingerprint.records import AxisSample, Fingerprint, NeuronSample

FLIPPED = "coins flipped"
PERMUTED = "axis permuted"


def replicate(
    pairs: Sequence[tuple[str, Model, Model]], procedures: Procedures, *, flips: int, permutations: int
) -> Samples:
    """``flips`` and ``permutations`` replicates of each pair (label, registered, suspect), by test and stratum."""
    samples: Samples = {}
    for number, (label, registered, suspect) in enumerate(pairs):
        rng = np.random.default_rng([4, number])
        # Which coins are usable is decided blind to the flips: once for all replicates.
        masks = procedures.usable(registered.registered.neurons)
        singles, together = _sample(samples, COIN, FLIPPED, label), _sample(samples, FISHER, FLIPPED, label)
        moving = _sample(samples, GAUGE, FLIPPED, label)
        for _ in range(flips if any(mask.any() for mask in masks) else 0):
            flipped = flip(registered.registered.neurons, rng, together=registered.kind == UPCYCLED)
            matches = procedures.match(flipped, suspect.suspect.neurons)
            tosses = [procedures.toss([match], masks) for match in matches]
            found = np.array([one.log10_p for one in tosses if one.coins])
            singles.add(registered.id, suspect.id, found)
            together.add(registered.id, suspect.id, np.array([procedures.toss(matches, masks).log10_p]))
            if matches := procedures.match(flipped, suspect.suspect.neurons, Frame.ANCHORS):
                moving.add(registered.id, suspect.id, np.array([procedures.toss(matches, masks).log10_p]))
        attention = _sample(samples, CHANNELS, FLIPPED, label)
        for _ in range(flips if registered.registered.channels else 0):
            found = channels_p(flip_channels(registered.registered, rng), suspect.suspect, procedures)
            attention.add(registered.id, suspect.id, found)
        landed = _sample(samples, ALIGN, PERMUTED, label)
        axes = _axes(registered, suspect, procedures)
        for _ in range(permutations):
            found = np.array([procedures.align(permute(ours, rng), theirs).log10_p for ours, theirs in axes])
            landed.add(registered.id, suspect.id, found)
    return samples


def _sample(samples: Samples, test: str, how: str, label: str) -> Sample:
    return samples.setdefault((test, f"{how}, {label}"), Sample(replicates=True))


def flip(samples: Sequence[NeuronSample], rng: np.random.Generator, *, together: bool) -> list[NeuronSample]:
    """The samples of the model whose neurons' up and down were negated together, each with probability 1/2.

    ``together``: the MLPs are copies of one, and copies of a neuron are flipped alike, as in its one initialisation.
    """
    flipped = []
    signs = np.zeros((0, 1), np.float32)
    for sample in samples:
        if sample.up is None:
            flipped.append(sample)
            continue
        if not together or not signs.size:
            signs = rng.choice(np.array([-1, 1], np.float32), (len(sample.indices), 1))
        flipped.append(replace(sample, up=sample.up * signs, down=sample.down * signs))
    return flipped


def flip_channels(registered: Fingerprint, rng: np.random.Generator) -> Fingerprint:
    """The fingerprint of the model whose attention channels were negated on both sides, each with probability 1/2.

    A channel is negated in every frame that it is sampled in.
    """
    signs: dict[tuple[tuple[int, int], str], NDArray[np.float32]] = {}
    flipped = []
    for sample in registered.channels:
        drawn = signs.setdefault((sample.tensors, sample.kind), rng.choice(np.array([-1, 1], np.float32), sample.size))
        flipped.append(replace(sample, parts=sample.parts * drawn[sample.indices][:, None]))
    return replace(registered, channels=tuple(flipped))


def permute(sample: AxisSample, rng: np.random.Generator) -> AxisSample:
    """The sample of the model whose sampled slices were permuted among themselves."""
    return replace(sample, values=rng.permutation(sample.values))


def _axes(registered: Model, suspect: Model, procedures: Procedures) -> list[tuple[AxisSample, AxisSample]]:
    return [
        (ours, theirs)
        for one, other in same_place(registered.registered.tensors, suspect.suspect.tensors)
        for ours in one.axes
        for theirs in other.axes
        if ours.axis in procedures.hidden and ours.dimension == theirs.dimension and ours.values.shape[1] > 1
    ]
