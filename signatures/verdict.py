"""From comparisons to a verdict: confidence after correction, the link to every candidate, and which one is nearest."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from fingerprint.comparing.evidence import Null, Test
from fingerprint.vocabulary import Content, Role
from signatures.change import Change
from signatures.contradiction import contradiction
from signatures.descent import KEPT, changes_in_place, changes_of_neurons
from signatures.report import HALF, Confidence, Link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.comparing.evidence import Evidence
    from signatures.mixture import Cover
    from signatures.records import ModelRecord
    from signatures.rewriting import Rewriting

CERTAIN: Final = -12.0
LIKELY: Final = -6.0
POSSIBLE: Final = -3.0
LEAST_COSINE: Final = 0.1
LEAST_CONCORDANCE: Final = 0.1
"""Effect sizes below which a small p-value is not believed: signs and sketches are cheap to forge, these are not.
Below half of it a result counts for nothing: unrelated models stay under a third."""
_EFFECTS: Final = {Test.ALIGN: ("cosine", LEAST_COSINE), Test.ROWS: ("concordance", LEAST_CONCORDANCE)}
TRAINED_SCALE: Final = 0.75
TRAINED_SIMILARITY: Final = 0.75
"""Two trainings of one initialisation keep less of each other than this (.46 and .54 measured on small models), while
continued training keeps the registered weights in full (1.03 to 1.05, .80 to .82)."""
_IN_MOVING_FRAMES: Final = frozenset({Test.GAUGE, Test.EVEN})
_SPARSE: Final = 0.15
_ENOUGH_MATRICES: Final = 4
_KEPT: Final = 0.1
"""Share of equal contents that no two trainings have in common."""
_WHOLE_MODEL: Final = 0.9
_FEW_MATRICES: Final = 1 / 3
_NEURONS_AGREE: Final = 0.35
_NOISE: Final = 0.88
"""Whiteness of what is left beside the registered weights from which it is noise: two trainings of one initialisation
came out at up to .79, noise of any size at .93 or more."""
_SAME_WEIGHTS: Final = 0.995
"""Share of equal contents from which the suspect is the registered model, not a sibling of it."""
_RELATED_DELTA: Final = 0.6
_NOTHING_ELSE: Final = "beyond what both share with that model, they have nothing in common that was measured"
_TURNED_OFF: Final = "the suspect lacks what sets this model apart from that one, and has changes of its own"
_TOO_LITTLE: Final = "what sets this model apart from that one is too little to be told in the suspect"
_AS_MUCH: Final = 0.6
"""Share of what a model explains of a suspect from which its base, that explains as much, may be all there is to it,
even if it is less than half: of two numbers about a half one may lie above it and one below."""
_UNDECIDED: Final = 0.1
"""Share by which one MLP of a moved suspect may be nearer to one model than to another without telling: siblings were
up to .065 nearer to each other than to their base, in one layer of four; what was tuned from one was .126 and more."""


class Finding(Struct, dict=True):
    """One candidate that reached ``possible``, on its way to a match of the report."""

    model: ModelRecord
    comparison: Comparison
    evidence: tuple[Evidence, ...]
    confidence: Confidence
    link: Link = Link.LINEAGE
    explained_by: str | None = None
    note: str = ""
    contradiction: str = ""
    """Why its own tests contradict each other, if they do; see ``contradiction``."""

    @cached_property
    def change(self) -> Change:
        """What differs within the comparison."""
        return Change(self.comparison)

    @property
    def log10_p(self) -> float:
        """Smallest corrected p-value; of the sketch only where no other test reached ``possible``."""
        others = min((one.log10_p for one in self.evidence if one.test is not Test.SKETCH), default=0.0)
        return others if others <= POSSIBLE else min(one.log10_p for one in self.evidence)

    def is_named(self, names: set[str]) -> bool:
        """Whether one of the model's names is among ``names`` (in lower case)."""
        return any(entry.name.lower() in names for entry in self.model.registrations)

    @property
    def distance(self) -> float:
        """How far the suspect is from the registered weights: what they leave where matched, everything where not."""
        return self.distance_at(self._residual)

    def distance_at(self, residual: float) -> float:
        """The same, if the registered weights leave that share of what is matched."""
        coverage = self.comparison.suspect_coverage
        return residual * coverage + 2.0 * (1.0 - coverage)

    def undecided(self, rewriting: Rewriting) -> float:
        """By how much another model may be farther and still be as near: in moved weights, few MLPs tell little."""
        if not rewriting.moved:
            return 0.0
        return _UNDECIDED * rewriting.residual * self.comparison.suspect_coverage / math.sqrt(max(rewriting.mlps, 1))

    @property
    def _residual(self) -> float:
        """Of matrices that lie where they were, by their sketches; of others, by the neurons that explain them.

        Without the latter, embeddings and attention would decide alone where neurons were permuted, and in these two
        fine-tunes of one base resemble each other.
        """
        rewriting = self.change.rewriting
        if rewriting.moved:
            return rewriting.residual
        placed = {match.suspect: float(match.difference.residual) for match in self.change.matrices}
        found: list[tuple[float, float]] = []
        for position, tensor in enumerate(self.comparison.suspect.tensors):
            if position in placed:
                found.append((tensor.elements, placed[position]))
            elif tensor.content is Content.WEIGHTS and rewriting.score > 0.0:
                found.append((tensor.elements * self.comparison.covered.get(position, 0.0), rewriting.residual))
        total = sum(elements for elements, _ in found)
        return math.sqrt(sum(elements * residual**2 for elements, residual in found) / total) if total else 0.0


def assess(model: ModelRecord, comparison: Comparison, models: int) -> Finding | None:
    """A finding if the comparison reaches ``possible`` after correction for the number of registered ``models``."""
    evidence = tuple(one.corrected(max(models, 1)) for one in comparison.evidence)
    levels = [level for one in evidence if (level := _level(one, comparison)) is not None]
    if not levels:
        return None
    against = contradiction(comparison, evidence)
    confidence = Confidence.POSSIBLE if against else max(levels, key=lambda level: level.rank)
    return Finding(model, comparison, evidence, confidence, contradiction=against)


def _level(one: Evidence, comparison: Comparison) -> Confidence | None:
    """The confidence that this evidence alone supports."""
    if one.log10_p > POSSIBLE:
        return None
    level = Confidence.POSSIBLE
    if one.log10_p <= CERTAIN and one.null is not Null.CALIBRATED:
        level = Confidence.CERTAIN
    elif one.log10_p <= LIKELY:
        level = Confidence.LIKELY
    if one.test is Test.SKETCH:
        return Confidence.POSSIBLE
    if one.test is Test.DIGEST and comparison.digest_coverage < HALF:
        return Confidence.LIKELY
    if one.test in _IN_MOVING_FRAMES and not comparison.gauge.agrees:
        return Confidence.POSSIBLE if comparison.gauge.concordance >= LEAST_CONCORDANCE / 2 else None
    name, least = _EFFECTS.get(one.test, ("", 0.0))
    effect = float(one.detail.get(name, 0.0))
    if effect < least / 2:
        return None
    return Confidence.POSSIBLE if effect < least else level


def decide_links(findings: Sequence[Finding], cover: Cover | None, bases: Sequence[str]) -> None:
    """Set the link of every finding, and what explains it. ``cover`` indexes ``findings``; ``bases`` are declared."""
    needed = cover.models if cover is not None and len(cover.models) > 1 else set()
    together = _joint_coverage([finding for index, finding in enumerate(findings) if index in needed])
    for index, finding in enumerate(findings):
        in_merge = index in needed and together >= HALF
        if in_merge:
            continue
        if _is_component(finding):
            _set(finding, Link.SHARED_COMPONENT, f"{_shared_part(finding)} is shared; the rest is not")
        elif _same_initialisation(finding):
            _set(finding, Link.SAME_INITIALISATION, "alike as two trainings from one initialisation are")
    for finding in findings:
        if finding.link is Link.LINEAGE and not needed and finding.change.exact_share < _SAME_WEIGHTS:
            base, why = _base_that_explains(finding, findings, bases)
            if base is not None:
                finding.link, finding.explained_by = Link.SIBLING, base.model.name
                finding.note = f"{base.model.name} explains it: {why}"


def _is_component(finding: Finding) -> bool:
    """Less than half of the suspect, or only few of its many matrices; and not all of the registered model."""
    comparison = finding.comparison
    of_suspect, of_registered = finding.change.counts
    if min(comparison.registered_coverage, of_registered) >= _WHOLE_MODEL:
        return False
    through_neurons = any(match.agreement >= _NEURONS_AGREE for match in comparison.all_neurons)
    return comparison.suspect_coverage < HALF or (of_suspect < _FEW_MATRICES and not through_neurons)


def _set(finding: Finding, link: Link, note: str) -> None:
    finding.link, finding.note = link, note
    finding.confidence = Confidence.POSSIBLE


def _joint_coverage(findings: Sequence[Finding]) -> float:
    """Share of the suspect's matched-or-not weights that at least one of the findings explains."""
    if not findings:
        return 0.0
    tensors = findings[0].comparison.suspect.tensors
    covered = {match.suspect for finding in findings for match in finding.change.matrices}
    total = sum(tensor.elements for tensor in tensors if tensor.sketch is not None)
    return sum(tensors[i].elements for i in covered) / total if total else 0.0


def _shared_part(finding: Finding) -> str:
    roles: dict[Role, int] = {}
    for match in finding.change.matrices:
        record = finding.comparison.registered.tensors[match.registered]
        roles[record.role] = roles.get(record.role, 0) + record.elements
    named = [role.value.replace("-", " ") for role in sorted(roles, key=lambda r: -roles[r]) if role is not Role.OTHER]
    share = f"{finding.comparison.suspect_coverage:.0%} of the suspect's weights"
    return f"{share} ({', '.join(named[:3])})" if named else share


def _same_initialisation(finding: Finding) -> bool:
    """Alike in bulk, but little of the registered weights is kept, and nothing else accounts for the loss."""
    change = finding.change
    if change.exact_share + change.cast_share > _KEPT or change.added_zeros >= _SPARSE or change.rewriting.moved:
        return False
    if not change.matrices:
        neurons = finding.comparison.all_neurons
        return bool(neurons) and all(match.agreement < _NEURONS_AGREE for match in neurons)
    if change.residual_whiteness >= _NOISE and change.changed >= _ENOUGH_MATRICES:
        return False
    return finding.comparison.similarity < TRAINED_SIMILARITY and abs(change.scale) < TRAINED_SCALE


def _base_that_explains(
    finding: Finding, findings: Sequence[Finding], declared: Sequence[str]
) -> tuple[Finding | None, str]:
    """A registered base beyond which suspect and registered model share nothing, and why: one that is at least as near,
    or one at which the suspect turned off, or may have (see ``descent``).

    A base is a model that was registered earlier, or that the finding's model names as its base, or that the user
    declares. Independent fine-tunes of one parent have related differences too (cosines of .26 to .51 were measured),
    so the nearest explanation wins.
    """
    explaining = [
        (other, why)
        for other in findings
        if other is not finding
        and other.link in {Link.LINEAGE, Link.SHARED_COMPONENT}
        and other.comparison.suspect_coverage >= min(HALF, _AS_MUCH * finding.comparison.suspect_coverage)
        and _can_be_base(other, finding, declared)
        and (why := _why_explained(finding, other))
    ]
    return min(explaining, key=lambda one: one[0].distance, default=(None, ""))


def _why_explained(finding: Finding, base: Finding) -> str:
    theirs, of_base = finding.change.rewriting, base.change.rewriting
    to_registered, to_base = finding.distance, base.distance
    if theirs.moved and of_base.moved and (both := theirs.beside(of_base)) is not None:
        theirs, of_base = both  # distances in two frames, or over other layers, cannot be compared
        to_registered, to_base = finding.distance_at(theirs.residual), base.distance_at(of_base.residual)
    if theirs.moved or of_base.moved:
        changes = changes_of_neurons(theirs, of_base)
    else:
        changes = changes_in_place(finding.comparison, base.comparison)
    if to_base > to_registered + finding.undecided(theirs):
        if changes is not None and changes.units and changes.too_little:
            return _TOO_LITTLE
        return _TURNED_OFF if changes is not None and changes.turned_off else ""
    if changes is not None and changes.kept is not None and changes.kept >= KEPT:
        return ""  # damage may hide by how much it is nearer to what it was made of
    in_place = changes_in_place(finding.comparison, base.comparison)
    return _NOTHING_ELSE if in_place.cosine < _RELATED_DELTA else ""


def _can_be_base(base: Finding, of: Finding, declared: Sequence[str]) -> bool:
    if base.is_named({name.lower() for name in (of.model.base or "", *declared)}):
        return True
    return base.model.registered < of.model.registered or (
        base.model.registered == of.model.registered and base.model.id < of.model.id
    )
