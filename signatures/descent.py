"""Whether a suspect goes on from a registered fine-tune or turned off at its base: angles between changes.

With ``B`` a base, ``R`` a registered model that was made of it and ``S`` a suspect near both: what is made of ``R``
keeps the change ``R - B`` and adds one of its own, so that ``S - R`` leans neither way along it. Another fine-tune of
``B`` lacks it, and ``S - R`` points back. So does what lies between ``R`` and another model, but ``R - S`` does not
point back along ``S - B`` then. Where both do, two fine-tunes are told apart though they have so much in common
(cosines above 1/2: young bases, one kind of data) that each is nearer to the other than to their base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.comparing.procrustes import match_self_frames
from fingerprint.vectors import unit_rows
from fingerprint.vocabulary import LAYERLESS_ROLES, NEURON_ROLES, Frame

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import NeuronSample, TensorRecord
    from signatures.rewriting import Rewriting

_BACK: Final = -0.25
"""Cosine below which a difference points back along a change. What was tuned further came out at -.01 and more,
independent fine-tunes of equal length, with changes at cosines of .3 to .79, at -.59 to -.32."""
_FOUND: Final = 0.5
"""Share of the neurons of a layer that must find themselves in the other model for these to stand for all."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Inner products of ``suspect`` = S - B and ``registered`` = R - B, in any one unit."""

    suspect: float
    registered: float
    both: float

    @property
    def cosine(self) -> float:
        """Between both changes; 0 if either vanishes."""
        return _cosine(self.both, self.suspect, self.registered)

    @property
    def turned_off(self) -> bool:
        """Whether the suspect lacks what makes the registered model differ from the base, and has what that lacks."""
        apart = self.suspect + self.registered - 2.0 * self.both
        back = _cosine(self.both - self.registered, apart, self.registered)
        ahead = _cosine(self.both - self.suspect, apart, self.suspect)
        return max(back, ahead) < _BACK


def _cosine(product: float, left: float, right: float) -> float:
    return product / math.sqrt(left * right) if left > 0.0 and right > 0.0 else 0.0


def changes_in_place(finding: Comparison, base: Comparison) -> Changes:
    """From the sketches of the tensors that are matched with both models where they lie.

    Where MLPs are not among these tensors, since their neurons were permuted, embeddings are left out: they change
    alike in all fine-tunes, and would outweigh the rest.
    """
    base_of = {match.suspect: match for match in base.matches}
    roles = {finding.registered.tensors[match.registered].role for match in finding.matches}
    silent = frozenset() if roles & NEURON_ROLES or not roles - LAYERLESS_ROLES else LAYERLESS_ROLES
    products, left, right = 0.0, 0.0, 0.0
    for match in finding.matches:
        other = base_of.get(match.suspect)
        if other is None or finding.registered.tensors[match.registered].role in silent:
            continue
        suspect = _sketch(finding.suspect.tensors[match.suspect], transposed=False)
        registered = _sketch(finding.registered.tensors[match.registered], transposed=match.transposed)
        origin = _sketch(base.registered.tensors[other.registered], transposed=other.transposed)
        if suspect is None or registered is None or origin is None:
            continue
        if not suspect.shape == registered.shape == origin.shape:  # one is of a quick look
            continue
        a, b = suspect - origin, registered - origin
        products += float(np.sum(a * b))
        left += float(np.sum(a * a))
        right += float(np.sum(b * b))
    return Changes(left, right, products)


def _sketch(record: TensorRecord, *, transposed: bool) -> NDArray[np.float64] | None:
    if record.sketch is None:
        return None
    wide = record.sketch.astype(np.float64)
    return wide.T if transposed else wide


def changes_of_neurons(finding: Rewriting, base: Rewriting) -> Changes | None:
    """From the distances of hidden units, of a suspect whose weights were moved; None where they do not tell.

    Damage that leans no way adds the same to both distances of the suspect, and cancels.
    """
    if finding.frame is None or base.frame is None or finding.frame.frame != base.frame.frame:
        return None
    apart = _distance(finding.held, base.held)
    if apart is None:
        return None
    suspect, other = 2.0 * (1.0 - base.score), 2.0 * (1.0 - finding.score)
    return Changes(suspect, apart, (suspect + apart - other) / 2.0)


def _distance(ours: Mapping[str, NeuronSample], others: Mapping[str, NeuronSample]) -> float | None:
    """Mean squared distance of the units of equal names of two registered models, as vectors of length one."""
    found = [
        _mean_cosine(one, other)
        for name, one in ours.items()
        if (other := others.get(name)) is not None and (one.up is None) == (other.up is None)
    ]
    known = [cosine for cosine in found if cosine is not None]
    return 2.0 * (1.0 - float(np.mean(known))) if known else None


def _mean_cosine(one: NeuronSample, other: NeuronSample) -> float | None:
    """Of the same units of two models; None if they cannot be found."""
    if one.frame == Frame.SELF:
        # Own frames of two models are not each other's, and their samples not the same neurons.
        for match in match_self_frames([one], [other]):
            same = one.indices == other.indices[match.partners]
            if float(same.mean()) >= _FOUND:
                return float(match.scores[same].mean())
        return None
    pairs = [(one.gate, other.gate), (one.down, other.down)]
    if one.up is not None and other.up is not None:
        pairs.append((one.up, other.up))
    if not np.array_equal(one.indices, other.indices) or any(mine.shape != its.shape for mine, its in pairs):
        return None
    cosines = [np.sum(unit_rows(mine) * unit_rows(its), axis=1) for mine, its in pairs if mine.any()]
    return float(np.mean(cosines)) if cosines else None
