"""What a scan says, as data: one report a suspect, one match a registered model, in the words of the JSON contract."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - reports are put together from JSON by these
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace

from fingerprint.claims import ClaimKind  # noqa: TC001 - likewise
from fingerprint.errors import described
from fingerprint.undoing.result import Undoing  # noqa: TC001 - likewise

SCAN_SCHEMA: Final = "fp.scan/1"
COMPARE_SCHEMA: Final = "fp.compare/1"
HALF: Final = 0.5
"""Share of a suspect that has to correspond for a match to explain it."""


class Verdict(StrEnum):
    """The answer for one suspect."""

    MATCH = "match"
    POSSIBLE = "possible"
    NO_MATCH = "no-match"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


class Confidence(StrEnum):
    """How sure a match is, after correction for everything tried: log10 p at most -12, -6, -3."""

    CERTAIN = "certain"
    LIKELY = "likely"
    POSSIBLE = "possible"

    @property
    def rank(self) -> int:
        """0 for possible, 1 for likely, 2 for certain."""
        return {"possible": 0, "likely": 1, "certain": 2}[self.value]


class Link(StrEnum):
    """What the evidence supports about the relation of two sets of weights."""

    LINEAGE = "lineage"
    SIBLING = "sibling"
    SHARED_COMPONENT = "shared-component"
    SAME_INITIALISATION = "same-initialisation"


class Relation(StrEnum):
    """What was done, strongest first where several apply."""

    IDENTICAL = "identical"
    REFORMATTED = "reformatted"
    DTYPE_CAST = "dtype-cast"
    QUANTISED = "quantised"
    FINE_TUNED = "fine-tuned"
    CONTINUED_TRAINING = "continued-training"
    PRUNED = "pruned"
    DEPTH_UPSCALED = "depth-upscaled"
    UPCYCLED = "upcycled"
    MERGED = "merged"
    NOISED = "noised"
    EXTENDED = "extended"
    REWRITTEN = "rewritten"
    PARTIAL = "partial"
    UNCLEAR = "unclear"


class Coverage(Struct, frozen=True):
    """Shares (0 to 1) of the weight elements of either side that the match explains."""

    suspect: float
    registered: float


class EvidenceItem(Struct, frozen=True):
    """One test: statistic, log10 of the p-value corrected for ``trials``, and the kind of its null hypothesis."""

    test: str
    null: str
    statistic: float
    log10_p: float
    trials: int
    detail: Mapping[str, float | int | str]


class Component(Struct, frozen=True):
    """A part of the suspect (a layer's MLP, the embeddings) and the registered part that it corresponds to."""

    suspect: str
    registered: str
    similarity: float


class Match(Struct, frozen=True):
    """One registered model at ``possible`` or above.

    ``aliases`` are other names of the same registered weights; ``layers`` maps layers of the suspect to registered
    layers where both are known; ``explained_by`` is the registered base that makes it a sibling; ``declared_base`` if
    the user named this model as the suspect's base; ``note`` explains the link in a sentence. ``measured`` is, for
    entries of ``undone`` that were measured on matched pieces, the share (0 to 1) of these that shows it.
    """

    model: str
    signature: str
    confidence: Confidence
    log10_p: float
    similarity: float
    link: Link
    relation: Relation
    undone: tuple[str, ...]
    coverage: Coverage
    evidence: tuple[EvidenceItem, ...]
    components: tuple[Component, ...]
    layers: Mapping[str, int]
    aliases: tuple[str, ...]
    explained_by: str | None
    declared_base: bool
    note: str
    measured: Mapping[str, float] = field(default_factory=dict)


class Mixture(Struct, frozen=True):
    """Coefficients of registered models that add up to the suspect, and the relative residual (0 to 1) left.

    ``layers`` gives the coefficients of each layer of the suspect where layers are known.
    """

    coefficients: Mapping[str, float]
    residual: float
    layers: Mapping[str, Mapping[str, float]]


class PartMatch(Struct, frozen=True):
    """What a registered model explains of a component of the suspect.

    ``registered`` is the component of it that this corresponds to, empty where its names tell none apart; ``coverage``
    the share of the component's weights (0 to 1), and ``similarity`` the mean cosine where they correspond as they are
    stored, or None where they had to be rearranged. ``identical``: its contents are equal.
    """

    model: str
    registered: str
    coverage: float
    similarity: float | None
    identical: bool


class Part(Struct, frozen=True):
    """A component of a composite suspect, told by its names.

    ``name`` is what the names of its tensors have in common, and empty for the rest, which no known word stands for and
    whose names begin with ``words``; ``kind`` what that word usually means. ``share`` (0 to 1) is its part in the
    weights of the suspect. ``matches``: the models that explain most of it come first.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    tensors: int
    parameters: int
    share: float
    matches: tuple[PartMatch, ...]


class Power(Struct, frozen=True):
    """Which tests ran, which could not and why, and what would have been found."""

    tested: tuple[str, ...]
    not_tested: tuple[str, ...]
    detectable: str


class KeyedCheck(Struct, frozen=True):
    """One registered model under its owner's secret key.

    ``key`` is the key's identity; ``log10_p`` that of the strongest ``test`` under the key, corrected for all models
    that were checked; ``matched``: whether the public tests match it.
    """

    model: str
    signature: str
    key: str
    confirmed: bool
    log10_p: float
    test: str
    matched: bool


class SuspectSummary(Struct, frozen=True):
    """What was scanned; ``complete`` is false if tensors were absent, unreadable or left out."""

    path: str
    format: str = ""
    files: int = 0
    bytes: int = 0
    bytes_read: int = 0
    tensors: int = 0
    parameters: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    depth: str = ""
    complete: bool = True


class RegistrySummary(Struct, frozen=True):
    """What it was compared with: the number of registered models and a digest of their identities."""

    models: int
    digest: str


class Standing(StrEnum):
    """How a claim stands to the weights.

    ``CONFIRMED``: they are shared with the model that is named, at ``likely`` or better. ``PARTLY``: only a part of
    them, a common initialisation, or the evidence is weak. ``SIBLING``: both come from another registered model, and
    nothing beyond that is shared. ``CONTRADICTED``: said to be trained without a base, and shares weights.
    ``UNSUPPORTED``: the named model is registered, and no shared weights were found. ``UNREGISTERED``: nobody
    registered a model of that name. ``UNCHECKED``: this scan cannot tell.
    """

    CONFIRMED = "confirmed"
    PARTLY = "partly"
    SIBLING = "sibling"
    CONTRADICTED = "contradicted"
    UNSUPPORTED = "unsupported"
    UNREGISTERED = "unregistered"
    UNCHECKED = "unchecked"


class CheckedClaim(Struct, frozen=True):
    """A claim (see ``fingerprint.claims.Claim``), the registered model of that name, if any, and how it stands.

    ``says`` is a sentence without a full stop.
    """

    kind: ClaimKind
    value: str
    source: str
    relation: str
    part: str
    registered: str | None
    standing: Standing
    says: str


class ClaimsReport(Struct, frozen=True):
    """The claims of a suspect beside what its weights say; never a part of the evidence.

    ``unnamed`` are models whose weights the suspect shares, which no claim names and no claimed model is registered as
    derived from. ``statements`` say what claims and weights make of one another.
    """

    checked: tuple[CheckedClaim, ...] = ()
    unnamed: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    quantisation: str = ""
    statements: tuple[str, ...] = ()


class Report(Struct, frozen=True):
    """The result of scanning one suspect. ``error`` is one line, or None.

    ``claims`` is what the suspect says about itself beside what its weights say, and no part of the evidence; None if
    it could not be read. ``parts`` are the components of the suspect and what explains each; none where its names tell
    no components apart. ``undoing`` comes of a deep comparison; ``keyed`` is there where a secret key was used.
    """

    suspect: SuspectSummary
    verdict: Verdict
    error: str | None
    matches: tuple[Match, ...]
    mixture: Mixture | None
    power: Power
    notes: tuple[str, ...]
    registry: RegistrySummary
    seconds: float
    claims: ClaimsReport | None = None
    parts: tuple[Part, ...] = ()
    undoing: Undoing | None = None
    keyed: tuple[KeyedCheck, ...] | None = None

    @property
    def strongest_accusation(self) -> Confidence | None:
        """The highest confidence among matches that accuse: lineage, but not from the declared base."""
        ranks = [one.confidence for one in self.matches if one.link is Link.LINEAGE and not one.declared_base]
        return max(ranks, key=lambda one: one.rank) if ranks else None

    def despite(self, error: Exception, what: str) -> Report:
        """This report, if it accuses, with a note that ``what`` went further and failed; else raises ``error``.

        An error never hides a match; the suspect then counts as not scanned whole.
        """
        if self.strongest_accusation is None:
            raise error
        note = f"{what} failed, and this is what was found before: {described(error)}"
        return replace(self, suspect=replace(self.suspect, complete=False), notes=(*self.notes, note))

    def to_json(self, schema: str = SCAN_SCHEMA) -> dict[str, Any]:
        """The object of the JSON contract; only finite numbers."""
        found = {"schema": schema, **to_builtins(self, enc_hook=float)}
        for optional in ("undoing", "keyed"):
            if found[optional] is None:
                del found[optional]
        return found
