"""What a rewrite that keeps a network's function did to the registered weights, as far as it was measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.comparing.evidence import Test
from fingerprint.comparing.gauge import AGREED, NEURONS
from fingerprint.vocabulary import Axis, Content, Frame, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.comparing.coins import NeuronMatch
    from fingerprint.comparing.comparison import Comparison
    from fingerprint.comparing.gauge import FrameMatch
    from fingerprint.records import NeuronSample, TensorRecord

_STILL: Final = 0.1
"""Concordance in the fixed frame below which the residual stream is not where it was."""
_MOVED: Final = 0.3
_FAIR: Final = -3.0
_FAIR_AGREEMENT: Final = 0.5
_SPREAD: Final = 0.2
"""Standard deviation of the logarithm of the neurons' scales from which they were rescaled."""
_UNEVEN: Final = 0.01
_UNCHANGED: Final = 0.999
_NEARLY_ALL: Final = 0.9
_SAME_ENERGY: Final = 0.05
_ALIGNED: Final = -6.0
_RESEMBLES: Final = 0.15
"""Agreement from which a layer is not absent: .073 was the largest between unrelated models."""


@dataclass(frozen=True)
class Rewriting:
    """Everything here is measured on neurons that agree in a frame that moves with the residual stream.

    ``frame`` is None, and nothing is said, where they do not.
    """

    comparison: Comparison

    @cached_property
    def frame(self) -> FrameMatch | None:
        """The moving frame in which neurons agree best, if they agree at all."""
        best = self.comparison.gauge.best
        return best if best is not None and best.agrees else None

    @cached_property
    def still(self) -> bool:
        """Whether neurons agree in the fixed frame."""
        return _mean([match.agreement for match in self.comparison.neurons]) >= AGREED

    @cached_property
    def rotated(self) -> bool:
        """Whether neurons agree in a moving frame but not in the fixed one, and nothing else is in its place."""
        moved = _mean([match.concordance for match in self.comparison.neurons]) < _STILL
        return self._on_stream and moved and not self._in_place

    @cached_property
    def moved(self) -> bool:
        """Whether weights cannot be compared where they lie: the stream was rotated, or hidden units were matched."""
        return self.rotated or (self.frame is not None and not self._on_stream)

    @property
    def _on_stream(self) -> bool:
        """Whether what agrees are neurons on a residual stream, which can be rotated and has gains in front."""
        return self.frame is not None and self.frame.frame != Frame.UNITS

    @property
    def _in_place(self) -> bool:
        return any(one.test is Test.ALIGN and one.log10_p <= _ALIGNED for one in self.comparison.evidence)

    @cached_property
    def undone(self) -> tuple[str, ...]:
        """The entries of a report's list, in a fixed order."""
        found = (
            ("residual-rotated", self.rotated),
            (self._vocabulary, bool(self._vocabulary)),
            ("gains-folded", self._on_stream and self._gains_folded),
            ("neurons-permuted", self._moved > _MOVED),
            ("neurons-rescaled", self._rescaled),
            ("signs-scrambled", self._signs_scrambled),
            ("signs-negated", self._negated),
        )
        return tuple(name for name, applies in found if applies)

    @cached_property
    def score(self) -> float:
        """Mean score of neurons in MLPs that agree; 0 without any.

        Where the suspect's sample is a part of an MLP, those count that found their partner: another one's may not be
        among the sampled.
        """
        return _mean([self._score(one) for one in self._held])

    def _score(self, match: NeuronMatch) -> float:
        _, theirs = self._samples(match)
        sampled_whole = theirs.indices.size >= theirs.size
        return match.score if sampled_whole else float(match.scores[match.concordant].mean())

    @cached_property
    def residual(self) -> float:
        """What the registered neurons leave of the suspect's, as the change of weights at that mean cosine would."""
        return float(np.sqrt(max(0.0, 1.0 - self.score**2)))

    @cached_property
    def pure(self) -> bool:
        """Whether something was undone, and neurons then agree to within the rounding of the signature."""
        return bool(self.undone) and self.score >= _UNCHANGED

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Positions of registered and of the suspect's matrices of MLPs that agree."""
        return [
            (mine, other)
            for one in self._held
            for ours, theirs in [self._samples(one)]
            for mine, other in zip(ours.tensors, theirs.tensors, strict=True)
            if mine >= 0 and other >= 0
        ]

    @cached_property
    def narrowed(self) -> float:
        """Share of neurons that matched MLPs of the suspect have fewer than the registered ones; 0 if not fewer."""
        shares = [
            1.0 - theirs.size / ours.size for one in self._held for ours, theirs in [self._samples(one)] if ours.size
        ]
        return max(float(np.mean(shares)), 0.0) if shares else 0.0

    @cached_property
    def layers(self) -> dict[int, int]:
        """For each layer of the suspect that has a matching MLP, the registered layer that it matches best."""
        best: dict[int, tuple[float, int]] = {}
        for one in self._held:
            ours, theirs = self._samples(one)
            if ours.layer is not None and theirs.layer is not None:
                best[theirs.layer] = max(best.get(theirs.layer, (0.0, 0)), (one.concordance, ours.layer))
        return {theirs: ours for theirs, (_, ours) in sorted(best.items())}

    @cached_property
    def absent_layers(self) -> set[int]:
        """Registered layers whose MLP no MLP of the suspect resembles.

        Where only a part of its neurons was sampled, damage leaves a layer that is there little to agree with.
        """
        if self.frame is None:
            return set()
        ours = self.comparison.registered.neurons
        found = {ours[one.registered].layer for one in self.frame.matches if one.agreement >= _RESEMBLES}
        sampled = {ours[one.registered].layer for one in self.frame.matches}
        return {layer for layer in sampled - found if layer is not None}

    @cached_property
    def _held(self) -> tuple[NeuronMatch, ...]:
        """MLPs that agree; of several registered ones with one partner the best (the others have none)."""
        return () if self.frame is None else self.frame.held

    def _samples(self, match: NeuronMatch) -> tuple[NeuronSample, NeuronSample]:
        comparison = self.comparison
        return comparison.registered.neurons[match.registered], comparison.suspect.neurons[match.suspect]

    @cached_property
    def _moved(self) -> float:
        return _mean([one.moved for one in self._held])

    @property
    def _vocabulary(self) -> str:
        """What happened to the tokens where neurons agree in another frame, but not in theirs; "" for nothing."""
        anchors = self.comparison.gauge.frame(Frame.ANCHORS)
        elsewhere = self.still or (self.frame is not None and self.frame is not anchors)
        if anchors is None or anchors.concordance >= _STILL or not elsewhere:
            return ""
        energies = [_energy(side.tensors) for side in (self.comparison.registered, self.comparison.suspect)]
        same = abs(energies[0] - energies[1]) <= _SAME_ENERGY * max(energies)
        return "vocabulary-permuted" if same else "vocabulary-replaced"

    @property
    def _negated(self) -> bool:
        """Whether nearly all coins of most MLPs are the other way up."""
        means = [float(np.average(one.coins, weights=one.scores + 1e-9)) for one in self._held]
        return bool(means) and float(np.median(means)) < -_NEARLY_ALL

    @property
    def _signs_scrambled(self) -> bool:
        """Whether the coins of neurons that all agree are as fair as those of a stranger."""
        found = [test for test in self.comparison.gauge.tests if self.frame and test.frame == self.frame.frame]
        return any(
            test.kind == NEURONS and test.toss.log10_p > _FAIR and test.toss.agreement < _FAIR_AGREEMENT
            for test in found
        )

    @cached_property
    def _rescaled(self) -> bool:
        """Whether the lengths of matched neurons' up rows changed by factors that differ from neuron to neuron."""
        spreads = []
        for one in self._held:
            ours, theirs = self._samples(one)
            if ours.up is None or theirs.up is None:
                continue
            good = one.concordant & (one.scores > AGREED)
            mine = np.linalg.norm(ours.up[good].astype(np.float64), axis=1)
            other = np.linalg.norm(theirs.up[one.partners[good]].astype(np.float64), axis=1)
            kept = (mine > 0) & (other > 0)
            if int(kept.sum()) >= 2:
                spreads.append(float(np.std(np.log(other[kept] / mine[kept]))))
        return bool(spreads) and float(np.median(spreads)) > _SPREAD

    @property
    def _gains_folded(self) -> bool:
        """Whether the registered model's gains differ along the stream, and none of the suspect's do."""
        ours = _gains(self.comparison.registered.tensors)
        usual = ours[0].elements if ours else -1
        return _are_uneven(ours) and not _are_uneven(_gains(self.comparison.suspect.tensors, usual))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _energy(tensors: Sequence[TensorRecord]) -> float:
    """Mean square of the elements of the largest table of tokens, which no order of them changes."""
    tables = [one for one in tensors if one.role is Role.TOKEN_EMBEDDING and one.content is Content.WEIGHTS]
    if not tables:
        return 0.0
    found = max(tables, key=lambda one: one.elements).statistics
    return found.mean**2 + found.deviation**2


def _are_uneven(gains: Sequence[TensorRecord]) -> bool:
    """Whether most vectors of gains differ along the stream by more than one in a hundred."""
    uneven = [one.statistics.deviation > _UNEVEN * abs(one.statistics.mean) for one in gains]
    return bool(uneven) and float(np.mean(uneven)) >= 0.5


def _gains(tensors: Sequence[TensorRecord], usual: int = -1) -> list[TensorRecord]:
    """The vectors that may be gains of norms. Where neither names nor axes tell their length, it is ``usual``."""
    named = [one for one in tensors if one.role is Role.NORM_GAIN]
    if named:
        return named
    widths = Counter(sample.size for one in tensors for sample in one.axes if sample.axis is Axis.RESIDUAL)
    width = widths.most_common(1)[0][0] if widths else usual
    return [one for one in tensors if one.shape == (width,) and one.content in {Content.VECTOR, Content.CONSTANT}]
