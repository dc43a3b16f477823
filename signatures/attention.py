"""What a rewrite did to attention: its circuits are as they were, its heads and channels are not."""

from __future__ import annotations

from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fingerprint.comparing.channel_coins import match_channels, ungrouped_samples
from fingerprint.comparing.gauge import alike_circuits
from fingerprint.vocabulary import ATTENTION_ROLES, ChannelKind, Circuit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fingerprint.comparing.channel_coins import ChannelMatch
    from fingerprint.comparing.comparison import Comparison
    from fingerprint.comparing.matching import TensorMatch
    from fingerprint.records import LayerGram

_KEPT: Final = 0.9
"""Cosine from which a circuit is taken to be what it was: .95 to .98 was seen of small fine-tunes, and .98 of rewrites
of which the mean over a narrow stream was taken out."""
_MIXED: Final = 0.8
"""Mean score of channels below which they are not the registered ones: .42 to .67 was seen where they were mixed, .98
after fine-tuning."""
_MOVED: Final = 0.3
_RESCALED: Final = 0.05
"""Change of a matrix' deviation (logarithm) from which its channels, which point as they did, were rescaled."""
_TINY: Final = 1e-30
_LEAST_HEAD: Final = 4
"""Channels, or frequency pairs, that have to move together to count as heads."""


class CircuitMatch(Struct, frozen=True):
    """A registered circuit of attention that is as it was, and the suspect's one; ``cosine`` of the two.

    ``placed``: both of its matrices are where they were, with no more change than the circuit. ``channels`` match those
    that were sampled of the two, None where none can be compared, or where they are in place; ``sampled`` is their
    number.
    """

    circuit: Circuit
    ours: tuple[int, int]
    theirs: tuple[int, int]
    cosine: float
    placed: bool
    channels: ChannelMatch | None
    sampled: int

    @property
    def compared(self) -> bool:
        """Whether it is known where its channels are."""
        return self.channels is not None or (self.placed and self.sampled > 0)


class Attention(Struct, frozen=True, dict=True):
    """Measured on circuits that agree in a moving frame in which neurons agree; nothing is said without.

    ``reordered`` are registered matrices whose values are found in another order; ``still``: the residual stream and
    the gains in front of attention are as they were, so that lengths can be compared.
    """

    comparison: Comparison
    reordered: Mapping[int, int]
    still: bool

    @cached_property
    def circuits(self) -> tuple[CircuitMatch, ...]:
        """The registered circuits that are as they were, each once."""
        found: dict[tuple[int, int], CircuitMatch] = {}
        for frame in self.comparison.gauge.frames:
            if not frame.agrees:
                continue
            registered, suspect = self.comparison.registered.grams, self.comparison.suspect.grams
            for mine, its in alike_circuits(registered, suspect, frame.frame):
                cosine = float(mine.values @ its.values)
                if cosine >= _KEPT and (mine.tensors not in found or cosine > found[mine.tensors].cosine):
                    found[mine.tensors] = self._match(mine, its, cosine)
        return tuple(found.values())

    @cached_property
    def measured(self) -> dict[str, float]:
        """Entries of what was undone, and the share of what was compared that shows it."""
        compared = [one for one in self.circuits if one.compared]
        values = [one for one in compared if one.circuit is Circuit.OUTPUT_VALUE]
        keys = [one for one in compared if one.circuit is Circuit.QUERY_KEY]
        moved, together = self._moved
        found = (
            ("heads-permuted" if together else "channels-permuted", moved),
            ("attention-permuted", self._permuted if self.still and moved <= _MOVED else 0.0),
            ("values-mixed", _share(map(_is_mixed, values))),
            ("values-rescaled", _share(map(self._is_rescaled, values))),
            ("keys-changed", _share(_is_mixed(one) or self._is_rescaled(one) for one in keys)),
        )
        return {name: share for name, share in found if share > _MOVED}

    @cached_property
    def explained(self) -> dict[int, float]:
        """For each registered matrix that is not in place and part of a circuit that is what it was: its cosine."""
        return {place: one.cosine for one in self.circuits if not one.placed for place in one.ours}

    @property
    def _permuted(self) -> float:
        """Share, by elements, of the registered matrices of attention whose values are found in another order."""
        tensors = self.comparison.registered.tensors
        sizes = {place: one.elements for place, one in enumerate(tensors) if one.role in ATTENTION_ROLES}
        total = sum(sizes.values())
        return sum(sizes.get(place, 0) for place in self.reordered) / total if total else 0.0

    @property
    def _moved(self) -> tuple[float, bool]:
        """Share of well-matched channels found under another number, and whether they moved in whole heads."""
        offsets = [_offsets(self.comparison, one) for one in self._sure]
        offsets += [np.zeros(one.sampled, np.int64) for one in self.circuits if one.placed]
        together = all(gcd(*map(abs, one.tolist())) >= _LEAST_HEAD for one in offsets if one.any())
        every = np.concatenate(offsets) if offsets else np.zeros(1, np.int64)
        return float(np.mean(every != 0)), together

    @property
    def _sure(self) -> list[ChannelMatch]:
        return [one.channels for one in self.circuits if one.channels is not None and not _is_mixed(one)]

    def _is_rescaled(self, one: CircuitMatch) -> bool:
        """Whether the channels point as they did, and the matrices have other lengths: not told of a moved stream."""
        if not self.still or one.placed or one.channels is None or _is_mixed(one):
            return False
        ours, theirs = (
            np.array([max(side.tensors[place].statistics.deviation, _TINY) for place in places])
            for side, places in ((self.comparison.registered, one.ours), (self.comparison.suspect, one.theirs))
        )
        return bool(np.abs(np.log(theirs / ours)).max() > _RESCALED)

    @cached_property
    def _placed(self) -> dict[int, TensorMatch]:
        """Registered matrices that the suspect has in place, by position."""
        return {one.registered: one for one in self.comparison.matches}

    @cached_property
    def _ungrouped(self) -> set[int]:
        return ungrouped_samples(self.comparison.suspect)

    def _match(self, mine: LayerGram, its: LayerGram, cosine: float) -> CircuitMatch:
        change = np.sqrt(max(0.0, 1.0 - cosine**2))
        stays = [
            (match := self._placed.get(ours)) is not None
            and match.suspect == theirs
            and (bool(match.digest) or match.change <= 2 * change)
            for ours, theirs in zip(mine.tensors, its.tensors, strict=True)
        ]
        sampled = self._sampled(mine)
        size = max((self.comparison.registered.channels[at].indices.size for at in sampled), default=0)
        channels = None if all(stays) else self._channels(sampled, its)
        return CircuitMatch(mine.circuit, mine.tensors, its.tensors, cosine, all(stays), channels, size)

    def _sampled(self, mine: LayerGram) -> list[int]:
        """Positions of the registered samples of channels of a circuit."""
        kinds = (
            {ChannelKind.VALUE_OUTPUT}
            if mine.circuit is Circuit.OUTPUT_VALUE
            else {ChannelKind.ROTARY, ChannelKind.QUERY_KEY}
        )
        wanted = mine.tensors[::-1], mine.frame
        every = enumerate(self.comparison.registered.channels)
        return [at for at, one in every if (one.tensors, one.frame) == wanted and one.kind in kinds]

    def _channels(self, sampled: Iterable[int], its: LayerGram) -> ChannelMatch | None:
        """The match of the channels of two circuits that scores best; None if they were not sampled alike."""
        registered, suspect = self.comparison.registered, self.comparison.suspect
        found = []
        for at in sampled:
            ours = registered.channels[at]
            for where, theirs in enumerate(suspect.channels):
                if theirs.tensors == its.tensors[::-1] and (theirs.frame, theirs.kind) == (ours.frame, ours.kind):
                    free = {0} if where in self._ungrouped else set()
                    matches = match_channels([ours], [theirs], ours.frame, ours.kind, ungrouped=free)
                    found += [replace(match, registered=at, suspect=where) for match in matches]
        return max(found, key=lambda one: one.score, default=None)


def _is_mixed(one: CircuitMatch) -> bool:
    return not one.placed and one.channels is not None and one.channels.score < _MIXED


def _share(found: Iterable[bool]) -> float:
    values = list(found)
    return sum(values) / len(values) if values else 0.0


def _offsets(comparison: Comparison, match: ChannelMatch) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """By how much the numbers of well-matched channels changed."""
    ours, theirs = comparison.registered.channels[match.registered], comparison.suspect.channels[match.suspect]
    good = match.scores > _MIXED
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]] = theirs.indices[match.partners[good]] - ours.indices[good]
    return offsets
