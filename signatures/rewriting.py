"""What a rewrite that keeps a network's function did to the registered weights, as far as it was measured."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fingerprint.comparing.evidence import Test
from fingerprint.comparing.gauge import AGREED, NEURONS
from fingerprint.neurons import UNNAMED
from fingerprint.vectors import median
from fingerprint.vocabulary import LAYERLESS_ROLES, Axis, Content, Frame, Role
from signatures.attention import Attention
from signatures.gains import gains_changed, gains_folded
from signatures.reordered import reordered
from signatures.tables import OF_TOKENS, PERMUTED, changed_table, mixed_table, token_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.comparing.coins import NeuronMatch
    from fingerprint.comparing.comparison import Comparison
    from fingerprint.comparing.gauge import FrameMatch
    from fingerprint.records import NeuronSample

_BEHIND_GAINS: Final = frozenset({Role.QUERY, Role.KEY, Role.VALUE, Role.OUTPUT_HEAD})
_STILL: Final = 0.1
"""Concordance in the fixed frame below which the residual stream is not where it was."""
_MOVED: Final = 0.3
_FAIR: Final = -3.0
_FAIR_AGREEMENT: Final = 0.5
_SPREAD: Final = 0.2
"""Standard deviation of the logarithm of the neurons' scales from which they were rescaled."""
_OF_SCALE: Final = 0.1
"""Change of a matrix in place from which it is not rounding."""
_UNCHANGED: Final = 0.999
_NEARLY_ALL: Final = 0.9
_LOST_WITH_LAYER_NORM: Final = 0.125
_TINY: Final = 1e-30
_LOST_IN_CIRCUITS: Final = 4.0
"""How many times as much of a circuit is lost with the mean over the stream as of neurons: .039 and .009 were seen."""
_MOSTLY: Final = 0.5
_ALIKE: Final = 0.9
"""Mean score of neurons from which gains that are others were replaced, and not trained on."""
_ALIGNED: Final = -6.0
_RESEMBLES: Final = 0.15
"""Agreement from which a layer is not absent: .101 was the largest between unrelated models."""


class Rewriting(Struct, frozen=True, dict=True):
    """Everything here is measured on neurons that agree in a frame that moves with the residual stream.

    ``frame`` is None, and nothing is said, where they do not.
    """

    comparison: Comparison
    wanted: Frame | None = None
    """The frame to measure in; None for the one in which neurons agree best."""
    among: frozenset[str] | None = None
    """Names of the gates of the only registered MLPs that count; None for all."""

    @cached_property
    def frame(self) -> FrameMatch | None:
        """The moving frame that is wanted, if neurons agree in it at all."""
        gauge = self.comparison.gauge
        found = gauge.best if self.wanted is None else gauge.frame(self.wanted)
        return found if found is not None and found.agrees else None

    def beside(self, other: Rewriting) -> tuple[Rewriting, Rewriting] | None:
        """Both in one frame, and of the MLPs that agree with either registered model; None if there is no such."""
        for one in (self, other):
            if one.frame is None:
                continue
            mine, its = (replace(each, wanted=Frame(one.frame.frame)) for each in (self, other))
            if common := frozenset(mine.held.keys() & its.held.keys()):
                return replace(mine, among=common), replace(its, among=common)
        return None

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

    @property
    def undone(self) -> tuple[str, ...]:
        """The entries of a report's list, in a fixed order."""
        return tuple(self.measured)

    @cached_property
    def measured(self) -> dict[str, float]:
        """The same, each with the share (0 to 1) of what was compared that shows it: see docs/relations.md."""
        agreement = self._agreement
        found = (
            (self._stream, agreement if self.rotated else 0.0),
            (self._vocabulary, agreement if self._vocabulary else 0.0),
            ("gains-folded", agreement if self._folded else 0.0),
            ("gains-changed", self._regained),
            ("neurons-permuted", self._moved if self._moved > _MOVED else 0.0),
            ("neurons-rescaled", agreement if self._rescaled or self._units_rescaled else 0.0),
            ("signs-scrambled", agreement if self._signs_scrambled else 0.0),
            ("signs-negated", agreement if self._negated else 0.0),
            *self.attention.measured.items(),
        )
        return {name: share for name, share in found if share > 0.0}

    @cached_property
    def reordered(self) -> dict[int, int]:
        """Registered matrices whose values the suspect has in another order, and its ones, by position."""
        return reordered(self.comparison)

    @cached_property
    def attention(self) -> Attention:
        """What was done to attention."""
        return Attention(self.comparison, self.reordered, not (self.rotated or self._folded or self._regained))

    @cached_property
    def explained(self) -> dict[int, float]:
        """What neurons, circuits and the values themselves say of registered matrices that need not be in place.

        By position, how much they changed: 0 where that is no more than rounding, and the mean over the stream if it
        was taken out, leave. Nothing where nothing was undone.
        """
        if not self.measured:
            return {}
        cosines: dict[int, float] = {}
        for one in (*self._held, *(match for match in self.comparison.neurons if match.agreement >= AGREED)):
            for place in self._samples(one)[0].tensors:
                cosines[place] = max(cosines.get(place, 0.0), self._score(one))
        found = {place: _change(cosine, self._floor) for place, cosine in cosines.items() if place >= 0}
        if self.attention.measured or not self.attention.still:
            floor = 1.0 - _LOST_IN_CIRCUITS * (1.0 - self._floor)
            found |= {place: _change(cosine, floor) for place, cosine in self.attention.explained.items()}
        return found | dict.fromkeys(self.reordered, 0.0)

    @cached_property
    def uncompared(self) -> frozenset[Role]:
        """Roles of matrices that cannot be compared in place, since the gains in front of them changed."""
        return _BEHIND_GAINS if self._folded or self._regained else frozenset()

    @cached_property
    def _floor(self) -> float:
        """Mean score above which neurons are the same to rounding.

        Of a suspect without names the mean over the stream is taken out, which costs norms that do not subtract it
        about half a direction of all: scores of .992 at width 64, .996 at 152.
        """
        if not self._width:
            return _UNCHANGED
        lost = _LOST_WITH_LAYER_NORM if self._subtracts_mean else 1.0
        return min(_UNCHANGED, 1.0 - lost / self._width)

    @cached_property
    def _width(self) -> int:
        """Channels of the registered model's stream, 0 if that is not known."""
        tensors = self.comparison.registered.tensors
        return max((sample.size for one in tensors for sample in one.axes if sample.axis is Axis.RESIDUAL), default=0)

    @cached_property
    def _subtracts_mean(self) -> bool:
        return any(one.role is Role.NORM_BIAS for one in self.comparison.registered.tensors)

    @property
    def lost(self) -> float:
        """What the mean over the stream, which is taken out of a suspect without names alone, adds to the squared
        distance of its neurons (as vectors of length one): half a direction of all, twice."""
        nameless = any(self._samples(one)[1].activation in {"", UNNAMED} for one in self._held)
        return 1.0 / self._width if nameless and self._width and not self._subtracts_mean else 0.0

    @property
    def same(self) -> bool:
        """Whether neurons agree to rounding, and the table has an energy that moving it would have left it."""
        told = self._vocabulary or self._stream == "residual-permuted"
        return self.score >= self._floor and bool(told or not changed_table(self.comparison))

    @property
    def _agreement(self) -> float:
        if self.frame is not None:
            return self.frame.agreement
        return _mean([match.agreement for match in self.comparison.neurons]) if self.still else 0.0

    @property
    def _stream(self) -> str:
        """How the residual stream was moved, as far as that can be told.

        Values that are there in another order say that it was permuted, which rotating it would have mixed. It was not
        if neurons agree to rounding and no table is there in any order; where the suspect was changed beside, the shape
        of the distribution of a table's values says so too.
        """
        tensors = self.comparison.registered.tensors
        if any(tensors[place].role in LAYERLESS_ROLES for place in self.reordered) or (
            sum(tensors[place].elements for place in self.reordered)
            > _MOVED * sum(one.elements for one in tensors if one.content is Content.WEIGHTS)
        ):
            return "residual-permuted"
        # Values that could be there in another order: a table that is not another one, or MLPs that cannot be rescaled.
        told = self._vocabulary in {"", PERMUTED} or all(self._samples(one)[0].up is None for one in self._held)
        exact = self.score >= _UNCHANGED and not self.comparison.sampled and told
        return "residual-rotated" if exact or mixed_table(self.comparison) else "residual-moved"

    @cached_property
    def _readers_changed(self) -> bool:
        """Whether a matrix behind gains has other values than it had: gates of MLPs that agree."""
        equal = {match.registered for match in self.comparison.matches if match.digest} | self.reordered.keys()
        return any(self._samples(one)[0].tensors[0] not in equal for one in self._held)

    @cached_property
    def _folded(self) -> bool:
        return self._on_stream and self._readers_changed and gains_folded(self.comparison)

    @cached_property
    def _regained(self) -> float:
        """Share of gains that changed, if neurons agree with the gains in front of them, and if most of them did."""
        behind = self._on_stream and self._readers_changed and not self._folded
        share = gains_changed(self.comparison) if behind else 0.0
        return share if share >= _MOSTLY and self.score >= _ALIKE else 0.0

    @property
    def held(self) -> dict[str, NeuronSample]:
        """Samples of the registered MLPs that agree, by the names of their gates."""
        return {self._gate(one): self._samples(one)[0] for one in self._held}

    @property
    def mlps(self) -> int:
        """Number of registered MLPs that agree."""
        return len(self._held)

    @cached_property
    def score(self) -> float:
        """Mean score of neurons in MLPs that agree; 0 without any.

        Where the suspect's sample is a part of an MLP, the median of those counts that found their partner: another
        one's may not be among the sampled, and a few then find a neuron that only resembles it.
        """
        return _mean([self._score(one) for one in self._held])

    def _score(self, match: NeuronMatch) -> float:
        _, theirs = self._samples(match)
        sampled_whole = theirs.indices.size >= theirs.size
        return match.score if sampled_whole else median(match.scores[match.concordant])

    @cached_property
    def residual(self) -> float:
        """What the registered neurons leave of the suspect's, as the change of weights at that mean cosine would."""
        return float(np.sqrt(max(0.0, 1.0 - self.score**2)))

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
        held = () if self.frame is None else self.frame.held
        return held if self.among is None else tuple(one for one in held if self._gate(one) in self.among)

    def _gate(self, match: NeuronMatch) -> str:
        return self.comparison.registered.tensors[self._samples(match)[0].tensors[0]].name

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
        return PERMUTED if any(self._is_tokens(place) for place in self.reordered) else token_table(self.comparison)

    def _is_tokens(self, place: int) -> bool:
        return self.comparison.registered.tensors[place].role in OF_TOKENS

    @property
    def _negated(self) -> bool:
        """Whether nearly all coins of most MLPs are the other way up."""
        means = [float(np.average(one.coins, weights=one.scores + 1e-9)) for one in self._held]
        return bool(means) and median(means) < -_NEARLY_ALL

    @property
    def _signs_scrambled(self) -> bool:
        """Whether the coins of neurons that all agree are as fair as those of a stranger, or nearly, of few neurons."""
        found = [test for test in self.comparison.gauge.tests if self.frame and test.frame == self.frame.frame]
        return any(
            test.kind == NEURONS
            and test.toss.agreement < _FAIR_AGREEMENT
            and (test.toss.log10_p > _FAIR or self.score >= _ALIKE)
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
            if ours.frame == Frame.SELF:  # which keeps no lengths
                spreads.append(self._longer(ours, theirs))
                continue
            good = one.concordant & (one.scores > AGREED)
            mine = np.linalg.norm(ours.up[good].astype(np.float64), axis=1)
            other = np.linalg.norm(theirs.up[one.partners[good]].astype(np.float64), axis=1)
            kept = (mine > 0) & (other > 0)
            if int(kept.sum()) >= 2:
                spreads.append(float(np.std(np.log(other[kept] / mine[kept]))))
        return median(spreads) > _SPREAD if spreads else False

    @property
    def _units_rescaled(self) -> bool:
        """Whether the directions of hidden units that lie in place changed much less than the matrices that hold them.

        Units that are written down without a stream keep no lengths to be compared.
        """
        if self.frame is None or self._on_stream or self.score < _ALIKE:
            return False
        places = {place for one in self._held for place in self._samples(one)[0].tensors}
        changes = [match.change for match in self.comparison.matches if match.registered in places]
        left = _change(self.score, math.inf)
        return bool(changes) and median(changes) > max(_OF_SCALE, 2.0 * left)

    def _longer(self, ours: NeuronSample, theirs: NeuronSample) -> float:
        """By how much (logarithm) up, beside its gate, or down of an MLP became longer or shorter."""
        logs = [
            np.log([max(side.tensors[place].statistics.deviation, _TINY) for place in sample.tensors])
            for side, sample in ((self.comparison.registered, ours), (self.comparison.suspect, theirs))
        ]
        gate, up, down = (logs[1] - logs[0]).tolist()
        return float(max(abs(up - gate), abs(down))) if self.score >= _ALIKE else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _change(cosine: float, floor: float) -> float:
    """The change of weights at a cosine; 0 above ``floor``."""
    return 0.0 if cosine >= floor else float(np.sqrt(2.0 * (1.0 - cosine)))
