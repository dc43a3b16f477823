"""Whether a suspect goes on from a registered fine-tune or turned off at its base: angles between changes.

With ``B`` a base, ``R`` a registered model that was made of it and ``S`` a suspect near both: what is made of ``R``
keeps the change ``R - B`` and adds one of its own, so that ``S - R`` leans neither way along it. Another fine-tune of
``B`` lacks it, and ``S - R`` points back. So does what lies between ``R`` and another model, but ``R - S`` does not
point back along ``S - B`` then. Where both do, two fine-tunes are told apart though they have so much in common
(cosines above 1/2: young bases, one kind of data) that each is nearer to the other than to their base.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

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
KEPT: Final = 0.8
"""Share of the registered change from which a moved suspect has all of it. Rewritten suspects that were made of a
fine-tune, and tuned, rounded, sparsified or merged since, had .84 and more (one .76; trained on for as long as the base
.62), those made of another fine-tune .43 at most, of one on the same text or trained on .38 to .69. In layers' own
frames .81 and more beside copies, which are too near to be told (.71 to 1.01), and .08 to .43, on the same text .58 to
.80."""
_TOLD: Final = 25.0
"""How many times the registered change, squared, a suspect may differ from the registered model for that to be told."""
_IN_DOUBT: Final = -0.1
"""The same of the angle at the suspect in layers' own frames. One layer of a sibling, tuned on the text of the
registered fine-tune, came out at -.13; models between two others are at 0 and above."""
_NEAR: Final = 0.2
"""Share of the registered change, squared, that a suspect must differ by from the registered model: of two fine-tunes
with changes at a cosine of .79 it is .42."""
_FOUND: Final = 0.5
"""Share of the neurons of a layer that must find themselves in the other model for these to stand for all."""


class Changes(Struct, frozen=True):
    """Inner products of ``suspect`` = S - B and ``registered`` = R - B, in any one unit.

    ``units``: of hidden units, which tell how much of a change is kept; ``own``: in layers' own frames, which are
    turned to each other before they are compared.
    """

    suspect: float
    registered: float
    both: float
    units: bool = False
    own: bool = False

    @property
    def cosine(self) -> float:
        """Between both changes; 0 if either vanishes."""
        return _cosine(self.both, self.suspect, self.registered)

    @property
    def apart(self) -> float:
        """Squared, of suspect and registered model."""
        return self.suspect + self.registered - 2.0 * self.both

    @property
    def kept(self) -> float | None:
        """How much of the registered change the suspect has: about 1 if it was made of that model, the share that two
        fine-tunes have in common if not. None where it cannot be told, or noise would decide."""
        told = self.units and self.registered > 0.0 and not self.too_little
        return self.both / self.registered if told else None

    @property
    def too_little(self) -> bool:
        """Whether the registered change is too little beside what the suspect differs by for anything to be told."""
        return self.apart > _TOLD * self.registered

    @property
    def turned_off(self) -> bool:
        """Whether the suspect lacks what makes the registered model differ from the base, or some of it, and has what
        that lacks."""
        if self.apart < _NEAR * self.registered:  # what is left of noise would say where it points
            return False
        back = _cosine(self.both - self.registered, self.apart, self.registered)
        ahead = _cosine(self.both - self.suspect, self.apart, self.suspect)
        lacks = back < _BACK or (self.kept is not None and self.kept < KEPT)
        return lacks and ahead < (_IN_DOUBT if self.own else _BACK)


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

    Damage that leans no way adds the same to both distances of the suspect: it cancels in the product, and hides where
    the change between the two points. What is known of it is taken out.
    """
    if finding.frame is None or base.frame is None or finding.frame.frame != base.frame.frame:
        return None
    apart = _distance(finding.held, base.held)
    if apart is None:
        return None
    suspect, other = (max(0.0, 2.0 * (1.0 - one.score) - finding.lost) for one in (base, finding))
    own = finding.frame.frame == Frame.SELF
    return Changes(suspect, apart, (suspect + apart - other) / 2.0, units=True, own=own)


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
    # Neurons are sampled by their norms, which training changes a little.
    common, mine, its = np.intersect1d(one.indices, other.indices, assume_unique=True, return_indices=True)
    if common.size < _FOUND * max(one.indices.size, 1):
        return None
    pairs = [(one.gate, other.gate), (one.down, other.down)]
    if one.up is not None and other.up is not None:
        pairs.append((one.up, other.up))
    if any(left.shape[1] != right.shape[1] for left, right in pairs):
        return None
    cosines = [np.sum(unit_rows(left[mine]) * unit_rows(right[its]), axis=1) for left, right in pairs if left.any()]
    return float(np.mean(cosines)) if cosines else None
