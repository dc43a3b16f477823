"""What two fingerprints share beneath rewrites that keep a network's function: neurons and channels in moving frames.

Frames that move with the residual stream (``Frame``) show the same coordinates after it was rotated or permuted, norm
gains moved and neurons permuted. Neurons are matched in each frame by what does not see their coins; then two things
are asked: how many partners by gate and by the rest are the same (concordance, calibrated), and whether the coins agree
(exact). Channels of attention add coins of their own.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import force_setattr

from fingerprint.comparing.calibration import FLOOR, VERSION, concordance_log10_p
from fingerprint.comparing.channel_coins import ChannelMatch, match_channels, ungrouped_samples, usable_channels
from fingerprint.comparing.coins import CoinToss, NeuronMatch, match_neurons, toss
from fingerprint.comparing.evidence import Evidence, Null, Test, bonferroni, looks
from fingerprint.comparing.procrustes import match_self_frames
from fingerprint.vocabulary import ChannelKind, Circuit, Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fingerprint.records import Fingerprint, LayerGram

    Matcher = Callable[[Fingerprint, Fingerprint], "FrameMatch | ChannelMatches | None"]

AGREED: Final = 0.35
"""Concordance from which neurons are taken to be the same ones: .13 to .21 was seen of two trainings of one
initialisation, .48 and more of relatives, half of whose layers were left out."""
UNITS_AGREED: Final = 0.2
"""The same of hidden units that lie on no residual stream: .24 to .33 was seen of recurrent networks trained on for as
long again, .27 and more where half of the units were left out. Two trainings of one initialisation had .33 to .59:
no threshold tells them from descent."""
ALIKE: Final = 0.35
"""Cosine of two circuits from which attention counts as explained, where neurons agree."""
_NO_ACCIDENT: Final = -6.0
_CHANCE: Final = -3.0
NEURONS: Final = "neurons"
"""Kind of an exact test on the coins of MLP neurons; the others are those of ``ChannelKind``."""


def least_agreement(frame: str) -> float:
    """Agreement in a frame from which neurons are taken to be the same ones."""
    return UNITS_AGREED if frame == Frame.UNITS else AGREED


class FrameMatch(Struct, frozen=True):
    """All registered MLPs sampled in one frame, each with its best match in the suspect.

    ``theirs`` is the number of MLPs that the suspect has in this frame: where it is less than that of the registered
    ones, the others have no partner, and as many as can have one are looked at, those that match best.
    """

    frame: str
    matches: tuple[NeuronMatch, ...]
    gated: bool
    theirs: int

    @property
    def _best(self) -> list[NeuronMatch]:
        ordered = sorted(self.matches, key=lambda match: -match.concordance)
        return ordered[: max(1, min(self.theirs, len(ordered)))]

    @property
    def concordance(self) -> float:
        """Mean concordance over the registered MLPs that can have a partner."""
        return float(np.mean([match.concordance for match in self._best]))

    @property
    def agreement(self) -> float:
        """The same of the neurons that can have a partner; see ``NeuronMatch.agreement``."""
        return float(np.mean([match.agreement for match in self._best]))

    @property
    def agrees(self) -> bool:
        """Whether the neurons are taken to be the same ones."""
        return self.agreement >= least_agreement(self.frame)

    @property
    def held(self) -> tuple[NeuronMatch, ...]:
        """The MLPs whose neurons are."""
        return tuple(match for match in self.matches if match.agreement >= least_agreement(self.frame))

    @property
    def best_half(self) -> float:
        """Mean concordance over the better half of the registered MLPs."""
        ordered = sorted((match.concordance for match in self.matches), reverse=True)
        return float(np.mean(ordered[: -(-len(ordered) // 2)]))

    @property
    def neurons(self) -> int:
        """Number of registered neurons that concordance counts."""
        return sum(match.scores.size if match.counted is None else int(match.counted.sum()) for match in self._best)

    @property
    def log10_p(self) -> float:
        """Of ``concordance`` between unrelated models: calibrated, corrected for the choice of MLPs, not floored."""
        count, layers = self.concordance * self.neurons, len(self._best)
        single = concordance_log10_p(self.frame, count, self.neurons, gated=self.gated, layers=layers)
        return bonferroni(single, math.comb(len(self.matches), len(self._best)))


class ExactTest(Struct, frozen=True):
    """One test of coins: ``kind`` is ``NEURONS`` or a ``ChannelKind``; ``toss.log10_p`` is not corrected."""

    frame: str
    kind: str
    toss: CoinToss


class Gauge(Struct, frozen=True):
    """Everything found in frames that move with the residual stream."""

    frames: tuple[FrameMatch, ...] = ()
    tests: tuple[ExactTest, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    """Follows from the others."""

    def __post_init__(self) -> None:
        found = (_gauge_evidence(self), _even_evidence(self))
        force_setattr(self, "evidence", tuple(one for one in found if one is not None))

    def with_frame(self, frame: FrameMatch, usable: Sequence[NDArray[np.bool_]]) -> Gauge:
        """This and what was found in one more frame; ``usable`` are the ``usable_coins`` of the registered neurons."""
        test = _neuron_test(frame, usable)
        return Gauge((*self.frames, frame), self.tests if test is None else (*self.tests, test))

    @property
    def agrees(self) -> bool:
        """Whether the effect is one of descent: large in one frame, and no accident in each of the others.

        Signs can be forged in one frame for free. Tokens in another order leave nothing in the frame of tokens alone.
        """
        others = [
            one.log10_p <= _NO_ACCIDENT or (one.frame == Frame.ANCHORS and one.log10_p > _CHANCE)
            for one in self.frames
            if one is not self.best
        ]
        return self.best is not None and self.best.agrees and all(others)

    def frame(self, name: str) -> FrameMatch | None:
        """What was found in one frame."""
        return next((one for one in self.frames if one.frame == name), None)

    @property
    def concordance(self) -> float:
        """Of the frame in which it is largest; 0 without frames."""
        return max((one.concordance for one in self.frames), default=0.0)

    @property
    def best(self) -> FrameMatch | None:
        """The frame of the largest concordance."""
        return max(self.frames, key=lambda one: one.concordance, default=None)


class ChannelMatches(Struct, frozen=True):
    """Attention channels of one kind, matched in one frame."""

    frame: str
    kind: ChannelKind
    matches: tuple[ChannelMatch, ...]


def compare_gauge(
    registered: Fingerprint, suspect: Fingerprint, usable: Sequence[NDArray[np.bool_]], *, own_frames: bool = True
) -> Gauge:
    """Match the neurons frame by frame, then look at all coins. Everything before the coins is blind to them.

    ``usable`` are the ``usable_coins`` of the registered neurons. Without ``own_frames`` the layers' own frames, which
    have to be aligned pair by pair, are left out.
    """
    gauge = gauge_of(registered, [match(registered, suspect) for match in MATCHERS], usable)
    found = match_own_frames(registered, suspect) if own_frames else None
    return gauge if found is None else gauge.with_frame(found, usable)


def gauge_of(
    registered: Fingerprint, found: Sequence[FrameMatch | ChannelMatches | None], usable: Sequence[NDArray[np.bool_]]
) -> Gauge:
    """What the ``MATCHERS`` found, and its coins; see ``compare_gauge``."""
    channels = [one for one in found if isinstance(one, ChannelMatches)]
    alone = usable_channels(registered.channels) if channels else []
    gauge = Gauge((), tuple(test for one in channels if (test := _channel_test(one, alone)) is not None))
    for one in found:
        if isinstance(one, FrameMatch):
            gauge = gauge.with_frame(one, usable)
    return gauge


def _shared_frame(frame: Frame) -> Matcher:
    """A matcher for a frame in which coordinates of both sides can be compared as they are."""

    def match(registered: Fingerprint, suspect: Fingerprint) -> FrameMatch | None:
        matches = match_neurons(registered.neurons, suspect.neurons, frame)
        if not matches:
            return None
        gated = any(registered.neurons[one.registered].up is not None for one in matches)
        return FrameMatch(frame, tuple(matches), gated, _mlps(suspect, frame))

    return match


def match_own_frames(registered: Fingerprint, suspect: Fingerprint) -> FrameMatch | None:
    """Layers in their own frames, each pair aligned before it is compared; None if one side has none that fit."""
    matches = match_self_frames(registered.neurons, suspect.neurons)
    if not matches:
        return None
    gated = any(registered.neurons[one.registered].up is not None for one in matches)
    return FrameMatch(Frame.SELF, tuple(matches), gated, _mlps(suspect, Frame.SELF))


def _mlps(fingerprint: Fingerprint, frame: Frame) -> int:
    """Number of MLPs sampled in a frame, however often."""
    return len({frozenset(sample.tensors) for sample in fingerprint.neurons if sample.frame == frame})


def _channels(frame: Frame, kind: ChannelKind) -> Matcher:
    """A matcher of attention channels."""

    def match(registered: Fingerprint, suspect: Fingerprint) -> ChannelMatches | None:
        ungrouped = ungrouped_samples(suspect)
        found = match_channels(registered.channels, suspect.channels, frame, kind, ungrouped=ungrouped)
        return ChannelMatches(frame, kind, tuple(found)) if found else None

    return match


MATCHERS: Final[tuple[Matcher, ...]] = (
    *(_channels(frame, kind) for frame, kind in product((Frame.ANCHORS, Frame.POSITIONS), ChannelKind)),
    _shared_frame(Frame.ANCHORS),
    _shared_frame(Frame.POSITIONS),
    _shared_frame(Frame.UNITS),
)
"""What matches two fingerprints for ``gauge_of``: the neurons of each frame that both share, the channels of each frame
and kind. None needs another."""


def alike_circuits(
    registered: Sequence[LayerGram], suspect: Sequence[LayerGram], frame: str
) -> list[tuple[LayerGram, LayerGram]]:
    """For each registered circuit of attention the suspect's most similar one, if it is similar at all."""
    found = []
    for circuit in (Circuit.OUTPUT_VALUE, Circuit.QUERY_KEY):
        ours, theirs = (
            [one for one in side if (one.frame, one.circuit) == (frame, circuit)] for side in (registered, suspect)
        )
        if not ours or not theirs:
            continue
        cosines = np.stack([one.values for one in ours]) @ np.stack([one.values for one in theirs]).T
        best = cosines.argmax(axis=1)
        found += [
            (one, theirs[column])
            for one, column, row in zip(ours, best.tolist(), cosines, strict=True)
            if row[column] >= ALIKE
        ]
    return found


def _neuron_test(frame: FrameMatch, usable: Sequence[NDArray[np.bool_]]) -> ExactTest | None:
    result = toss(frame.matches, usable)
    return ExactTest(frame.frame, NEURONS, result) if result.coins else None


def _channel_test(channels: ChannelMatches, usable: Sequence[NDArray[np.bool_]]) -> ExactTest | None:
    result = toss(channels.matches, usable)
    return ExactTest(channels.frame, channels.kind, result) if result.coins else None


def _gauge_evidence(gauge: Gauge) -> Evidence | None:
    """The best of the exact tests, corrected for their number and for all other tests."""
    best = min(gauge.tests, key=lambda test: test.toss.log10_p, default=None)
    if best is None:
        return None
    frame = gauge.frame(best.frame)
    trials = len(gauge.tests) * looks(Test.GAUGE)
    detail: dict[str, float | int | str] = {
        "frame": best.frame,
        "kind": best.kind,
        "coins": best.toss.coins,
        "layers": best.toss.groups,
        "agreement": best.toss.agreement,
        "concordance": gauge.concordance if frame is None else frame.concordance,
    }
    return Evidence(
        test=Test.GAUGE,
        null=Null.EXACT,
        statistic=best.toss.largest,
        log10_p=bonferroni(best.toss.log10_p, trials),
        trials=trials,
        detail=detail,
    )


def _even_evidence(gauge: Gauge) -> Evidence | None:
    """The best of the frames' concordances, corrected for their number and for all other tests."""
    best = min(gauge.frames, key=lambda frame: (frame.log10_p, -frame.concordance), default=None)
    if best is None:
        return None
    detail: dict[str, float | int | str] = {
        "frame": best.frame,
        "mlps": len(best.matches),
        "neurons": best.neurons,
        "best_half": best.best_half,
        "calibration": VERSION,
    }
    detail |= {f"concordance-{one.frame}": one.concordance for one in gauge.frames}
    trials = len(gauge.frames) * looks(Test.EVEN)
    log10_p = max(FLOOR, bonferroni(best.log10_p, trials))
    return Evidence(Test.EVEN, Null.CALIBRATED, best.concordance, log10_p, trials, detail)
