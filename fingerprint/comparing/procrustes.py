"""Matching two layers in their own frames: descriptors start it, orthogonal Procrustes and joint matching finish it.

Two self frames agree only up to an orthogonal matrix. Descriptors that no rotation changes propose partners, for each
neuron many of them, by their likeness; the matrix that carries those onto each other is the polar factor of their
products (Schoenemann 1966); in the common frame the joint score of gate, up and down proposes better partners, at each
step fewer; and so on, until each has one (softassign with deterministic annealing: Gold and Rangarajan 1996). One
partner each from the start found two of the four layers of a Llama trained on for as long again (concordance of the
others .00 and .02, where 14 and 7 of 256 neurons had their partner's descriptors nearest); this finds them at .98 and
.77.

All of it is blind to the coins: descriptors are, and where up and down enter the matrix, each pair is given the sign
that they have in common, so that flipping neurons of the registered model changes no step. Half of the neurons are
fitted; what is measured of the others owes nothing to the fit.
"""

from __future__ import annotations

import heapq
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fingerprint.comparing.coins import NeuronMatch, attainable, concordant_partners
from fingerprint.threads import thread_count
from fingerprint.vectors import unit_rows
from fingerprint.vocabulary import Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fingerprint.records import NeuronSample

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
_Placed = tuple[int, "NeuronSample"]
"""A sample and its position in the list of a fingerprint's."""

_SOFT: Final = (4.0, 60.0)
"""Factors of scores before they are compared as logarithms of probabilities: at the first step, at the last."""
_SOFT_STEPS: Final = 10
_DESCRIBED: Final = 2.0
"""Factor of the mean squared difference of descriptors, at first; none at the end."""
_MOST_STEPS: Final = 30
_BEGUN: Final = 8
"""Layers of the suspect that take soft steps for each registered one: those best after the first rotation. Of 38 layers
of SmolLM2 that were found in the end, among 30 to 60 (half or three quarters of the neurons left out, noise of up to
the weights' deviation), 34 were the best already, one was second, two third and one sixth."""
_FOLLOWED: Final = 4
"""Of these, layers that are followed to the end: those best after the soft steps."""
_FEWEST: Final = 32
"""Neurons below which two layers are not aligned: a frame has 48 directions, which few neurons would fit anyhow."""


def match_self_frames(registered: Sequence[NeuronSample], suspect: Sequence[NeuronSample]) -> list[NeuronMatch]:
    """For every registered MLP in the self frame the suspect's MLP with the best score; blind to the coins.

    Concordance counts the neurons that were held out of the fit.
    """
    ours = [(at, sample) for at, sample in enumerate(registered) if sample.frame == Frame.SELF]
    theirs = [(at, sample) for at, sample in enumerate(suspect) if sample.frame == Frame.SELF]
    with ThreadPoolExecutor(thread_count()) as pool:
        found = list(pool.map(lambda one: _match(one, theirs), ours))
    return [match for match in found if match is not None]


def _match(registered: _Placed, theirs: Sequence[_Placed]) -> NeuronMatch | None:
    """Of one registered MLP; None if none of the suspect's can be aligned with it."""
    at, sample = registered
    ours = _Layer(sample)
    climbs = _best((_Climb(ours, _Layer(other), where) for where, other in theirs if _fit(sample, other)), _BEGUN)
    for climb in climbs:
        climb.soften()
    climbs = _best(climbs, _FOLLOWED)
    for climb in climbs:
        climb.finish()
    return next((best.match(at) for best in _best(climbs, 1)), None)


def _best(climbs: Iterable[_Climb], number: int) -> list[_Climb]:
    """The ``number`` of largest score, the first of equal ones first; no others are kept, as each holds megabytes."""
    return heapq.nlargest(number, climbs, key=lambda climb: climb.score)


def _fit(one: NeuronSample, other: NeuronSample) -> bool:
    """Whether two layers can be aligned at all."""
    return (
        (one.up is None) == (other.up is None)
        and one.descriptors is not None
        and other.descriptors is not None
        and one.descriptors.shape[1] == other.descriptors.shape[1] > 0
        and one.gate.shape[1] == other.gate.shape[1]
        and min(len(one.gate), len(other.gate)) >= _FEWEST
    )


class _Layer:
    """One sample's unit rows and descriptors."""

    def __init__(self, sample: NeuronSample) -> None:
        self.sample = sample
        self.gate, self.down = unit_rows(sample.gate), unit_rows(sample.down)
        self.up = None if sample.up is None else unit_rows(sample.up)
        described = sample.descriptors
        self.descriptors = np.zeros((len(self.gate), 0), np.float32) if described is None else described


class _Climb:
    """One attempt to align two layers: by descriptors when it is made, then in soft steps, then in hard ones.

    ``where`` is the position of the suspect's among its samples.
    """

    def __init__(self, registered: _Layer, suspect: _Layer, where: int) -> None:
        self.registered, self.suspect, self.where = registered, suspect, where
        rows = np.arange(len(registered.gate))
        self._fit, self._held = rows % 2 == 0, rows % 2 == 1
        self.rotation = self._rotation(_soft(-self._apart()), None)

    def _apart(self) -> Float32:
        """How far the descriptors of the neurons that are fitted are from all of the suspect's."""
        return _DESCRIBED * _distances(self.registered.descriptors[self._fit], self.suspect.descriptors)

    def soften(self) -> None:
        """Take the soft steps."""
        apart = self._apart()
        for left in np.linspace(1.0, 0.0, _SOFT_STEPS):
            by_gate, by_rest = self._cosines(self._fit)
            factor = np.float32(_SOFT[0] ** left * _SOFT[1] ** (1.0 - left))
            pairs = _soft(factor * self._joined(by_gate, by_rest) - np.float32(left) * apart)
            self.rotation = self._rotation(pairs, by_rest)

    def finish(self) -> None:
        """Take hard steps until nothing changes any more."""
        partners: Int64 | None = None
        for _ in range(_MOST_STEPS):
            by_gate, by_rest = self._cosines(self._fit)
            scores = self._joined(by_gate, by_rest)
            before, partners = partners, scores.argmax(axis=1)
            if before is not None and np.array_equal(partners, before):
                return
            rows = np.arange(len(partners))
            weights = np.clip(scores[rows, partners], 0.0, None) ** 2
            weights[scores.argmax(axis=0)[partners] != rows] = 0.0  # only pairs that prefer each other
            pairs = np.zeros_like(scores)
            pairs[rows, partners] = weights
            self.rotation = self._rotation(pairs, by_rest)

    def _rotation(self, pairs: Float32, rest: Float32 | None) -> Float32:
        """The orthogonal matrix that carries the suspect's neurons onto the fitted ones, pair by weighted pair (m, n).

        Without ``rest``, the cosines by up and down, by gate alone where up and down have signs of their own.
        """
        ours, theirs = self.registered, self.suspect
        product = (pairs @ theirs.gate).T @ ours.gate[self._fit]
        if ours.up is None or theirs.up is None:
            product = product + (pairs @ theirs.down).T @ ours.down[self._fit]
        elif rest is not None:
            signed = pairs * np.sign(rest)
            product = product + (signed @ theirs.up).T @ ours.up[self._fit]
            product = product + (signed @ theirs.down).T @ ours.down[self._fit]
        left, _, right = np.linalg.svd(product.astype(np.float64))
        turn: Float32 = (left @ right).astype(np.float32)
        return turn

    def _cosines(self, rows: Bools) -> tuple[Float32, Float32]:
        """Of the registered neurons ``rows`` with all of the suspect's: by gate, and by up and down together."""
        ours, theirs = self.registered, self.suspect
        by_gate = ours.gate[rows] @ (theirs.gate @ self.rotation).T
        by_rest = ours.down[rows] @ (theirs.down @ self.rotation).T
        if ours.up is not None and theirs.up is not None:
            by_rest += ours.up[rows] @ (theirs.up @ self.rotation).T
        return by_gate, by_rest

    def _joined(self, by_gate: Float32, by_rest: Float32) -> Float32:
        """Scores of pairs, at most 1."""
        if self.registered.up is None:
            return (by_gate + by_rest) / np.float32(2.0)
        return (by_gate + np.abs(by_rest)) / np.float32(3.0)

    @property
    def score(self) -> float:
        """Mean score of the neurons held out, with their best partners."""
        return float(self._joined(*self._cosines(self._held)).max(axis=1).mean())

    def match(self, registered: int) -> NeuronMatch:
        """The outcome; ``registered`` is the position of that side among its samples."""
        by_gate, by_rest = self._cosines(self._fit | self._held)
        gated = self.registered.up is not None
        total = self._joined(by_gate, by_rest)
        partners = total.argmax(axis=1)
        rows = np.arange(len(total))
        best = np.abs(by_rest) if gated else by_rest
        scores = np.clip(total[rows, partners].astype(np.float64), 0.0, 1.0)
        good = scores > 0.5
        moved = self.registered.sample.indices[good] != self.suspect.sample.indices[partners[good]]
        return NeuronMatch(
            registered=registered,
            suspect=self.where,
            partners=partners.astype(np.int64),
            scores=scores,
            coins=np.sign(by_rest[rows, partners]).astype(np.float64) if gated else np.zeros(len(rows)),
            concordant=concordant_partners(by_gate, best, scores),
            moved=float(moved.mean()) if good.any() else 0.0,
            counted=self._held,
            attainable=attainable(self.registered.sample.size, self.suspect.sample.size),
        )


def _soft(logarithms: Float32) -> Float32:
    """Weights of pairs (m, n): the geometric mean of what either side prefers among all of the other's."""
    weights = np.ones_like(logarithms)
    for axis in (0, 1):
        shares = np.exp(logarithms - logarithms.max(axis=axis, keepdims=True))
        weights *= shares / shares.sum(axis=axis, keepdims=True)
    return np.sqrt(weights, out=weights)


def _distances(ours: Float32, theirs: Float32) -> Float32:
    """Mean squared differences of descriptors: (m, n)."""
    squares = np.einsum("ij,ij->i", ours, ours)[:, None] + np.einsum("ij,ij->i", theirs, theirs)
    distances: Float32 = np.maximum(squares - 2.0 * (ours @ theirs.T), 0.0) / np.float32(ours.shape[1])
    return distances
