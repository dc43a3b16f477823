"""Everything that can be said about two fingerprints: matches, neurons, evidence, coverage."""

from __future__ import annotations

import math
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from fingerprint.comparing.align import Alignment, align_tensors, may_align
from fingerprint.comparing.coins import CoinToss, NeuronMatch, match_neurons, toss, usable_coins
from fingerprint.comparing.evidence import Evidence, Null, Test, bonferroni, looks
from fingerprint.comparing.gauge import MATCHERS, FrameMatch, Gauge, alike_circuits, gauge_of, match_own_frames
from fingerprint.comparing.matching import SketchCosines, TensorMatch, is_distinctive, match_tensors
from fingerprint.comparing.sampled import as_sampled, is_sampled, without_unseen
from fingerprint.comparing.tail import sketch_log10_p
from fingerprint.gauge.attention_samples import CHANNEL_LAYERS
from fingerprint.gauge.sample import MOST_MLPS
from fingerprint.memory import give_back
from fingerprint.neurons import UNNAMED
from fingerprint.threads import thread_count
from fingerprint.vectors import median
from fingerprint.vocabulary import ATTENTION_ROLES, NEURON_ROLES, Circuit, Content, Frame, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.records import Fingerprint, TensorRecord

DIGEST_BITS: Final = 256
_MATCHED_SCORE: Final = 0.5
_KEPT_SCORE: Final = 0.55
"""The same of units that lie on no residual stream and prefer each other. Of convolutions .68 to 1.00 of a layer's were
seen above it in relatives, half of the channels left out or half of the weights, .06 to .24 in networks trained apart
(means of six); of recurrent cells .18 to 1.00 trained on for as long again, .01 at most trained apart (ten pairs)."""
_STILL: Final = 0.1
"""Concordance in the fixed frame below which the residual stream is not where it was."""
_MANY: Final = 1 << 22
"""Pairs of sketches beyond which comparing them leaves much freed memory."""
_FEW_NEURONS: Final = 1 << 14
"""Sampled neurons of a suspect below which one thread compares as fast as several: 11,000 took .07 s in both ways."""
_MANY_SAMPLES: Final = 1 << 9
"""Samples of neurons beyond which comparing these does."""
_TOKENS: Final = frozenset({Role.TOKEN_EMBEDDING, Role.OUTPUT_HEAD})
_TABLES: Final[dict[str, Role]] = {
    Frame.ANCHORS: Role.TOKEN_EMBEDDING,
    Frame.POSITIONS: Role.POSITION_EMBEDDING,
}


class Comparison(Struct, frozen=True):
    """What was found between one registered fingerprint and one suspect.

    ``matches`` pair tensors, ``neurons`` pair MLPs in the fixed frame, ``gauge`` holds what was found in frames that
    move with the residual stream, and ``through_layers`` the shares of registered tensors, by position, that neurons,
    circuits and frames explain; ``evidence`` is corrected for all that was
    tried within this comparison, strongest first; the coverages are shares of the weight elements (matrices) of either
    side that the matches explain; ``similarity`` is their mean cosine, weighted by elements.
    ``covered`` are the shares of the suspect's tensors, by position, that matches and layers explain together, and
    ``registered_covered`` those of the registered tensors; ``untested`` are the roles that no test can match.
    ``sampled``: only what a quick look sees was compared, and ``registered`` and ``suspect`` are what it sees.
    """

    registered: Fingerprint
    suspect: Fingerprint
    matches: tuple[TensorMatch, ...]
    neurons: tuple[NeuronMatch, ...]
    evidence: tuple[Evidence, ...]
    similarity: float
    digest_coverage: float
    suspect_coverage: float = 0.0
    registered_coverage: float = 0.0
    gauge: Gauge = field(default_factory=Gauge)
    through_layers: Mapping[int, float] = field(default_factory=dict)
    covered: Mapping[int, float] = field(default_factory=dict)
    registered_covered: Mapping[int, float] = field(default_factory=dict)
    untested: frozenset[Role] = frozenset()
    sampled: bool = False

    @property
    def all_neurons(self) -> tuple[NeuronMatch, ...]:
        """MLPs matched in any frame."""
        return (*self.neurons, *(match for frame in self.gauge.frames for match in frame.matches))

    @property
    def log10_p(self) -> float:
        """The smallest corrected p-value of a test that may stand alone (not the linear sketch's)."""
        return min((one.log10_p for one in self.evidence if one.test is not Test.SKETCH), default=0.0)


def compare_fingerprints(registered: Fingerprint, suspect: Fingerprint, *, own_frames: bool = True) -> Comparison:
    """Run every test that both fingerprints support; without ``own_frames`` all but that of layers in their own frames,
    which takes longer than the others together. Raises ``IncompatibleParametersError``.

    If one of them is of quick depth, both are compared as a quick look sees them, and held so in the result.

    The two cannot change places: p-values are exact because the registered model is independent of an unrelated
    suspect.
    """
    registered.parameters.require_equal(suspect.parameters)
    sampled = is_sampled(registered, suspect)
    if sampled:
        registered, suspect = as_sampled(registered, suspect)
    cosines = SketchCosines.of(registered.tensors, suspect.tensors)
    matches = match_tensors(registered.tensors, suspect.tensors, cosines)
    if cosines.pairs >= _MANY:
        give_back()
    with ThreadPoolExecutor(1 if _is_small(suspect) else thread_count()) as pool:
        coins = pool.submit(usable_coins, registered.neurons if suspect.neurons else (), own_frames=False)
        matched = pool.submit(match_neurons, registered.neurons, suspect.neurons)
        found = [pool.submit(match, registered, suspect) for match in MATCHERS]
    usable, neurons = coins.result(), matched.result()
    gauge = gauge_of(registered, [one.result() for one in found], usable)
    evidence = [
        _digest_evidence(registered, suspect, matches),
        _align_evidence(registered.tensors, suspect.tensors, cosines),
        _coin_evidence(neurons, usable),
        # Calibrated on sketches of whole matrices.
        None if sampled else _sketch_evidence(cosines),
        *gauge.evidence,
    ]
    if sampled:
        held = without_unseen(registered, suspect, {match.registered for match in matches})
        suspect = without_unseen(suspect, registered, {match.suspect for match in matches})
        registered = held
    weights = np.array([suspect.tensors[match.suspect].elements for match in matches], np.float64)
    values = np.array([abs(match.cosine) for match in matches])
    comparison = Comparison(
        registered=registered,
        suspect=suspect,
        matches=tuple(matches),
        neurons=tuple(neurons),
        evidence=_strongest_first(one for one in evidence if one is not None),
        similarity=float(np.sum(weights * values) / np.sum(weights)) if weights.size else 0.0,
        digest_coverage=_share(suspect.tensors, {match.suspect: 1.0 for match in matches if match.digest}),
        sampled=sampled,
    )
    comparison = _explained(comparison, gauge)
    return with_own_frames(comparison) if own_frames else comparison


def with_own_frames(comparison: Comparison) -> Comparison:
    """A comparison without that of layers in their own frames, and what this finds, if both sides have such."""
    registered, suspect = comparison.registered, comparison.suspect
    found = match_own_frames(registered, suspect)
    if len(registered.neurons) + len(suspect.neurons) >= _MANY_SAMPLES:
        give_back()
    if found is None:
        return comparison
    gauge = comparison.gauge.with_frame(found, usable_coins(registered.neurons))
    others = [one for one in comparison.evidence if one.test not in {Test.GAUGE, Test.EVEN}]
    return _explained(replace(comparison, evidence=_strongest_first([*others, *gauge.evidence])), gauge)


def _strongest_first(evidence: Iterable[Evidence]) -> tuple[Evidence, ...]:
    return tuple(sorted(evidence, key=lambda one: one.log10_p))


def _explained(comparison: Comparison, gauge: Gauge) -> Comparison:
    """The comparison with what its matches, its neurons and the frames of ``gauge`` explain."""
    registered, suspect = comparison.registered, comparison.suspect
    ours, theirs = _through_layers(registered, suspect, comparison.neurons, gauge)
    suspect_cover = theirs | {match.suspect: 1.0 for match in comparison.matches}
    registered_cover = ours | {match.registered: 1.0 for match in comparison.matches}
    untested = _untested(registered, suspect, comparison.neurons, gauge)
    suspect_coverage, registered_coverage = _shares(
        registered, suspect, comparison.matches, suspect_cover, registered_cover, untested
    )
    return replace(
        comparison,
        gauge=gauge,
        suspect_coverage=suspect_coverage,
        registered_coverage=registered_coverage,
        through_layers=ours,
        covered=suspect_cover,
        registered_covered=registered_cover,
        untested=untested,
    )


def _is_small(suspect: Fingerprint) -> bool:
    """Whether comparing takes so many short calls that threads would wait for one another's turn."""
    return sum(sample.indices.size for sample in suspect.neurons) < _FEW_NEURONS


def _digest_evidence(registered: Fingerprint, suspect: Fingerprint, matches: Sequence[TensorMatch]) -> Evidence | None:
    equal = [match for match in matches if match.digest]
    has_matrices = any(tensor.content is Content.WEIGHTS for tensor in suspect.tensors)
    if not any(suspect.tensors[match.suspect].content is Content.WEIGHTS or not has_matrices for match in equal):
        # Equal gains and biases beside matrices that differ are common content: training may leave them as they began.
        return None
    elements = sum(suspect.tensors[match.suspect].elements for match in equal)
    pairs = sum(map(is_distinctive, registered.tensors)) * sum(map(is_distinctive, suspect.tensors))
    trials = pairs * looks(Test.DIGEST)
    casts = sorted({match.digest for match in equal})
    return Evidence(
        test=Test.DIGEST,
        null=Null.CRYPTOGRAPHIC,
        statistic=float(len(equal)),
        log10_p=bonferroni(-DIGEST_BITS * math.log10(2.0), trials),
        trials=trials,
        detail={"tensors": len(equal), "elements": elements, "kinds": ",".join(casts)},
    )


def _align_evidence(
    registered: Sequence[TensorRecord], suspect: Sequence[TensorRecord], cosines: SketchCosines
) -> Evidence | None:
    """The best alignment among all pairs of tensors, orientations, signs and axes (at most two of each pair).

    Only the leads of the sketches are computed, and of these what could be better than chance; the correction counts
    every pair that could have been one.
    """
    trials = 4 * cosines.pairs * looks(Test.ALIGN)
    if not trials:
        return None
    best: tuple[Alignment, int, int] | None = None
    # The likeliest first: where one of them settles it, the others are not computed.
    for row, column in cosines.pairs_by_score:
        ours, theirs = int(cosines.registered.positions[column]), int(cosines.suspect.positions[row])
        least = -math.log10(trials) if best is None else best[0].log10_p
        if not may_align(registered[ours], suspect[theirs], better_than=least):
            continue
        like = cosines.at(row, column)
        for found in align_tensors(
            registered[ours], suspect[theirs], transposed=like.transposed, negated=like.negated, better_than=least
        ):
            if found.log10_p < least:
                best, least = (found, ours, theirs), found.log10_p
    if best is None:
        return Evidence(Test.ALIGN, Null.EXACT, 0.0, 0.0, trials)
    found, ours, theirs = best
    return Evidence(
        test=Test.ALIGN,
        null=Null.EXACT,
        statistic=float(found.landed),
        log10_p=bonferroni(found.log10_p, trials),
        trials=trials,
        detail={
            "landed": found.landed,
            "compared": found.compared,
            "cosine": found.cosine,
            "suspect_tensor": suspect[theirs].name,
            "registered_tensor": registered[ours].name,
        },
    )


def _coin_evidence(neurons: Sequence[NeuronMatch], usable: Sequence[NDArray[np.bool_]]) -> Evidence | None:
    if not neurons:
        return None
    result: CoinToss = toss(neurons, usable)
    if not result.coins:
        return None
    concordance = float(np.mean([match.concordance for match in neurons]))
    return Evidence(
        test=Test.ROWS,
        null=Null.EXACT,
        statistic=result.largest,
        log10_p=bonferroni(result.log10_p, looks(Test.ROWS)),
        trials=looks(Test.ROWS),
        detail={
            "coins": result.coins,
            "mlps": result.groups,
            "agreement": result.agreement,
            "concordance": concordance,
            "moved": float(np.mean([match.moved for match in neurons])),
        },
    )


def _sketch_evidence(cosines: SketchCosines) -> Evidence | None:
    if not cosines.pairs:
        return None
    largest = cosines.largest
    trials = 2 * cosines.pairs * looks(Test.SKETCH)
    return Evidence(
        test=Test.SKETCH,
        null=Null.CALIBRATED,
        statistic=largest,
        log10_p=sketch_log10_p(largest, trials),
        trials=trials,
    )


def _through_layers(
    registered: Fingerprint, suspect: Fingerprint, neurons: Sequence[NeuronMatch], gauge: Gauge
) -> tuple[dict[int, float], dict[int, float]]:
    """Shares of registered and of the suspect's tensors, by position, that do not need to be in place to be explained.

    MLPs by their neurons; where these agree in a moving frame, attention by its circuits, and the table that the frame
    is made of.
    """
    ours: dict[int, float] = defaultdict(float)
    theirs: dict[int, float] = defaultdict(float)
    # What follows a convolution may have units of its own, which say whether it is the same.
    first = [{one.tensors[0] for one in side.neurons if one.frame == Frame.UNITS} for side in (registered, suspect)]
    for match in (*neurons, *(one for frame in gauge.frames for one in frame.matches)):
        if match.score <= _MATCHED_SCORE / 2:
            continue
        sample, other = registered.neurons[match.registered], suspect.neurons[match.suspect]
        found = _recognised(match)
        share = min(1.0, found * sample.size / other.size)
        for covered, places, leading, value in (
            (ours, sample.tensors, first[0], found),
            (theirs, other.tensors, first[1], share),
        ):
            for position in places:
                if position >= 0 and (match.mutual is None or position == places[0] or position not in leading):
                    covered[position] = max(covered[position], value)
    for frame in gauge.frames:
        if not frame.agrees:
            continue
        for mine, its in alike_circuits(registered.grams, suspect.grams, frame.frame):
            ours.update(dict.fromkeys(mine.tensors, 1.0))
            theirs.update(dict.fromkeys(its.tensors, 1.0))
        tables = [_tables(side.tensors, frame.frame) for side in (registered, suspect)]
        if all(tables):
            ours.update(dict.fromkeys(tables[0], frame.best_half))
            theirs.update(dict.fromkeys(tables[1], min(1.0, frame.best_half * _narrowing(registered, suspect, frame))))
    _between_samples(registered, suspect, gauge, ours, theirs)
    for frame in gauge.frames:
        if frame.agrees:
            _beyond_samples(registered, suspect, frame.frame, ours, theirs)
    return dict(ours), dict(theirs)


def _recognised(match: NeuronMatch) -> float:
    """Share of the registered neurons that are found again."""
    found = (match.scores > _MATCHED_SCORE) & match.concordant
    if match.mutual is not None:
        found |= (match.scores > _KEPT_SCORE) & match.mutual
    return float(found.mean())


def _narrowing(registered: Fingerprint, suspect: Fingerprint, frame: FrameMatch) -> float:
    """How many times as many neurons the registered MLPs of a frame have as their partners, at least 1.

    Of neurons that were left out no partner can be found, which says nothing of the table that the frame is made of.
    """
    ratios = [registered.neurons[one.registered].size / suspect.neurons[one.suspect].size for one in frame.held]
    return max(1.0, median(ratios)) if ratios else 1.0


def _between_samples(
    registered: Fingerprint, suspect: Fingerprint, gauge: Gauge, ours: dict[int, float], theirs: dict[int, float]
) -> None:
    """Let the layers that are sampled in the self frame stand for those between them, where they agree."""
    frame = gauge.frame(Frame.SELF)
    if frame is None or not frame.agrees:
        return
    mine, its = (
        {sample.tensors for sample in side.neurons if sample.activation != UNNAMED} for side in (registered, suspect)
    )
    sampled = {sample.tensors for sample in registered.neurons if sample.frame == Frame.SELF}
    if mine == sampled or not its:
        return
    for covered, mlps, share in (
        (ours, mine - sampled, frame.concordance),
        (theirs, its, frame.concordance * min(1.0, len(mine) / len(its))),
    ):
        for position in {position for mlp in mlps for position in mlp if position >= 0}:
            covered[position] = max(covered[position], share)


def _beyond_samples(
    registered: Fingerprint, suspect: Fingerprint, frame: str, ours: dict[int, float], theirs: dict[int, float]
) -> None:
    """Let the attention and the MLPs that were projected stand for those that were not, since there are too many.

    Where only a share of one side was projected, no more of the other can have met its partner. The numbers are those
    of matrices, of which each has two at least.
    """
    for roles, least in ((ATTENTION_ROLES, 2 * CHANNEL_LAYERS), (NEURON_ROLES, 2 * MOST_MLPS)):
        one, other = (_Projected.of(side, frame, roles) for side in (registered, suspect))
        if not (one.sampled and other.sampled) or not (one.is_part(least) or other.is_part(least)):
            continue
        for covered, mine, its in ((ours, one, other), (theirs, other, one)):
            found = float(np.mean([covered.get(position, 0.0) for position in mine.sampled]))
            for position in mine.every if its.is_part(least) else mine.every - mine.sampled:
                covered[position] = max(covered[position], min(1.0, found / its.share))


class _Projected(Struct, frozen=True):
    """Positions of one side's matrices of some roles that were projected in a frame, and of all that are like them."""

    sampled: frozenset[int]
    every: frozenset[int]

    @property
    def share(self) -> float:
        """Of those that are like them, how many were projected."""
        return len(self.sampled) / max(len(self.every), 1)

    def is_part(self, least: int) -> bool:
        """Whether these are a part of what there is, chosen because there were more than ``least``."""
        return len(self.sampled) >= least and self.share < 1.0

    @classmethod
    def of(cls, fingerprint: Fingerprint, frame: str, roles: frozenset[Role]) -> Self:
        """Of one side."""
        tensors = fingerprint.tensors
        places = {place for one in fingerprint.grams if one.frame == frame for place in one.tensors}
        places |= {place for one in fingerprint.neurons if one.frame == frame for place in one.tensors}
        sampled = {place for place in places if place >= 0 and tensors[place].role in roles}
        shapes = {(tensors[place].role, tensors[place].shape) for place in sampled}
        every = {
            place
            for place, one in enumerate(tensors)
            if one.content is Content.WEIGHTS and (one.role, one.shape) in shapes
        }
        return cls(frozenset(sampled), frozenset(every | sampled))


def _untested(
    registered: Fingerprint, suspect: Fingerprint, neurons: Sequence[NeuronMatch], gauge: Gauge
) -> frozenset[Role]:
    """Roles of tensors that no test can match.

    Tokens in another order, attention without a frame, or none of whose circuits could be put together on both sides
    (the number of heads was not found), and an output head on a stream that was moved.
    """
    agreed = {frame.frame for frame in gauge.frames if frame.agrees}
    if not agreed:
        return frozenset()
    moved = not neurons or float(np.mean([match.concordance for match in neurons])) < _STILL
    roles = {Role.OUTPUT_HEAD} if moved else set()
    if Frame.ANCHORS not in agreed:
        roles |= _TOKENS
    if moved and not _circuits(registered, agreed) & _circuits(suspect, agreed):
        roles |= ATTENTION_ROLES
    return frozenset(roles)


def _circuits(fingerprint: Fingerprint, frames: Collection[str]) -> set[tuple[str, Circuit]]:
    """The circuits of attention that were sketched in some frames."""
    return {
        (gram.frame, gram.circuit)
        for gram in fingerprint.grams
        if gram.frame in frames and gram.circuit in {Circuit.OUTPUT_VALUE, Circuit.QUERY_KEY}
    }


def _tables(tensors: Sequence[TensorRecord], frame: str) -> list[int]:
    """Positions of the tables that a frame may be made of."""
    role = _TABLES.get(frame)
    return [i for i, one in enumerate(tensors) if one.role is role and one.content is Content.WEIGHTS]


def _shares(
    registered: Fingerprint,
    suspect: Fingerprint,
    matches: Sequence[TensorMatch],
    theirs: dict[int, float],
    ours: dict[int, float],
    untested: frozenset[Role],
) -> tuple[float, float]:
    """Covered shares of suspect and registered model, without tensors of ``untested`` roles that nothing explains.

    A signature of a very large model keeps digests of all tensors but sketches of a sample. Matches by sketch then
    stand for the tensors that could not match, in proportion.
    """
    by_digest = {match.registered for match in matches if match.digest}
    testable = {
        i
        for i, tensor in enumerate(registered.tensors)
        if tensor.content is not Content.WEIGHTS or tensor.sketch is not None or i in by_digest or ours.get(i)
    }
    registered_coverage = _share(
        registered.tensors, ours, testable - _of_roles(registered.tensors, untested).difference(ours)
    )
    left_out = sum(tensor.elements for i, tensor in enumerate(registered.tensors) if i not in testable)
    among = set(range(len(suspect.tensors))) - _of_roles(suspect.tensors, untested).difference(theirs)
    if not left_out:
        return _share(suspect.tensors, theirs, among), registered_coverage
    exact = {match.suspect for match in matches if match.digest}
    certain = _share(suspect.tensors, {i: theirs[i] for i in exact}, among)
    sampled = _share(suspect.tensors, {i: share for i, share in theirs.items() if i not in exact}, among)
    sketched = sum(
        registered.tensors[i].elements for i in testable - by_digest if registered.tensors[i].sketch is not None
    )
    return min(1.0, certain + sampled * (1.0 + left_out / max(sketched, 1))), registered_coverage


def _of_roles(tensors: Sequence[TensorRecord], roles: frozenset[Role]) -> set[int]:
    """Positions of the weights of some roles."""
    return {i for i, one in enumerate(tensors) if one.role in roles and one.content is Content.WEIGHTS}


def _share(tensors: Sequence[TensorRecord], covered: dict[int, float], among: set[int] | None = None) -> float:
    """Share of the elements of weight matrices (of all tensors, where there is no matrix) that is covered."""
    matrices = [i for i, tensor in enumerate(tensors) if tensor.content is Content.WEIGHTS]
    counted = [i for i in matrices or range(len(tensors)) if among is None or i in among]
    total = sum(tensors[i].elements for i in counted)
    return sum(tensors[i].elements * covered.get(i, 0.0) for i in counted) / total if total else 0.0
