"""Made-up results of every kind, with hostile names, for the tests of the renderers."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from fingerprint.claims import ClaimKind
from signatures.indexes import IndexCheck, IndexStatus
from signatures.records import ModelRecord, Registration
from signatures.report import (
    CheckedClaim,
    ClaimsReport,
    Component,
    Confidence,
    Coverage,
    EvidenceItem,
    Link,
    Match,
    Mixture,
    Part,
    PartMatch,
    Power,
    RegistrySummary,
    Relation,
    Report,
    Standing,
    SuspectSummary,
    Verdict,
)

HOSTILE = "=cmd|' /C calc'!A0\x1b[2J\n\u202ename\udcff,\"quoted\""
IDENTITY = "sha256:" + "0f" * 32
NOW = datetime(2026, 11, 24, 0, 10, 5, tzinfo=UTC)


def match(
    link: Link = Link.LINEAGE,
    confidence: Confidence = Confidence.CERTAIN,
    *,
    model: str = "acme/base-7b",
    relation: Relation = Relation.FINE_TUNED,
    log10_p: float = -312.4,
) -> Match:
    return Match(
        model=model,
        signature=IDENTITY,
        confidence=confidence,
        log10_p=log10_p,
        similarity=0.9972,
        link=link,
        relation=relation,
        undone=("renamed", "neurons-permuted"),
        coverage=Coverage(1.0, 0.4 if link is Link.SHARED_COMPONENT else 0.997),
        evidence=(
            EvidenceItem("align", "exact", 64.0, log10_p, 4056, {"cosine": 0.99, "axis": "neuron"}),
            EvidenceItem("sketch", "calibrated", 87.2, -9.0, 6084, {}),
        ),
        components=tuple(Component(f"layer {i} mlp", f"layer {i} mlp", 0.99) for i in range(7)),
        layers={str(layer): layer for layer in range(6)} | {"6": 4, "7": 5},
        aliases=("acme/alias",),
        explained_by="public/base" if link is Link.SIBLING else None,
        declared_base=False,
        note="public/base explains it: beyond what both share with that model, they have nothing in common"
        if link is Link.SIBLING
        else "a common ancestor that is not registered is not excluded",
    )


def report(
    *matches: Match, verdict: Verdict | None = None, path: str = "uploads/model.safetensors", models: int = 12
) -> Report:
    found = verdict or (Verdict.MATCH if matches else Verdict.NO_MATCH)
    mixture = Mixture(
        {"acme/base-7b": 0.7, "other/model": 0.3},
        0.012,
        {f"layer {i}": {"acme/base-7b": 1.0} if i < 4 else {"other/model": 1.0} for i in range(8)},
    )
    return Report(
        suspect=SuspectSummary(
            path, "safetensors", 1, 90_864_192, 90_864_192, 103, 22_713_216, {"F32": 22_713_216}, "full"
        ),
        verdict=found,
        error="it is broken" if found is Verdict.ERROR else None,
        matches=matches,
        mixture=mixture if len(matches) > 1 else None,
        power=Power(
            ("digest", "align", "sketch"),
            ("rows: no MLP was recognised", "gauge: rotated residual streams are not undone at this depth"),
            "an unrotated copy of any registered matrix with a cosine of about .4 or more",
        ),
        notes=("3 constant tensors were set aside: no evidence",),
        registry=RegistrySummary(models, IDENTITY),
        seconds=3.25,
    )


REPORTS = {
    "lineage": report(match()),
    "likely": report(match(confidence=Confidence.LIKELY, log10_p=-73.0)),
    "possible": report(match(confidence=Confidence.POSSIBLE, log10_p=-4.1), verdict=Verdict.POSSIBLE),
    "sibling": report(match(Link.SIBLING)),
    "shared": report(match(Link.SHARED_COMPONENT, Confidence.POSSIBLE), verdict=Verdict.POSSIBLE),
    "seed": report(match(Link.SAME_INITIALISATION, Confidence.POSSIBLE), verdict=Verdict.POSSIBLE),
    "merge": report(
        match(relation=Relation.MERGED), match(model="other/model", relation=Relation.MERGED), match(Link.SIBLING)
    ),
    "none": report(),
    "nothing-registered": report(verdict=Verdict.INCONCLUSIVE, models=0),
    "inconclusive": report(verdict=Verdict.INCONCLUSIVE),
    "error": report(verdict=Verdict.ERROR),
    "hostile": report(match(model=HOSTILE), path=HOSTILE),
}

CLAIMS = ClaimsReport(
    checked=(
        CheckedClaim(
            ClaimKind.BASE, HOSTILE, "README.md: base_model", HOSTILE, HOSTILE, None, Standing.UNREGISTERED, HOSTILE
        ),
        CheckedClaim(ClaimKind.NAME, HOSTILE, "GGUF: general.name", "", "", "acme/base-7b", Standing.CONFIRMED, ""),
    ),
    unnamed=("acme/base-7b",),
    architectures=(HOSTILE,),
    quantisation=HOSTILE,
    statements=(HOSTILE, f"names no base, but shares weights with {HOSTILE}", *(f"claim {n}" for n in range(12))),
)
PARTS = (
    Part(
        "vision_tower", "vision tower", (), 12, 52_000, 0.15, (PartMatch("acme/base-7b", "", 1.0, 1.0, identical=True),)
    ),
    Part(
        HOSTILE,
        "language model",
        (),
        30,
        283_000,
        0.75,
        (
            PartMatch(HOSTILE, HOSTILE, 0.62, 0.98, identical=False),
            PartMatch("other/m", "", 0.5, None, identical=False),
        ),
    ),
    Part("", "", (HOSTILE, "mlp1"), 3, 7_000, 0.1, ()),
    Part("head", "head", (), 1, 10, 0.0, ()),
)
REPORTS["claims"] = replace(report(match()), claims=CLAIMS, parts=PARTS)
REPORTS["parts"] = replace(
    report(match(Link.SHARED_COMPONENT, Confidence.POSSIBLE), verdict=Verdict.POSSIBLE),
    parts=PARTS,
    claims=ClaimsReport(),
)

RECORD = ModelRecord(
    id=1,
    identity=IDENTITY,
    depth="full",
    parameters=22_713_216,
    tensors=104,
    weights=None,
    key=None,
    registrations=(
        Registration("acme/base", HOSTILE, "apache-2.0", "v1", "public/base", "a\nnote", "local", NOW, None),
        Registration("acme/alias", None, None, None, None, None, "file:partner", NOW, NOW),
    ),
)
STATUS = IndexStatus(3, 2, 80, 1, 123_456, (3,), (), 23_456, {"sketches": "inverted lists", "slices": "flat"})
CHECKED = IndexCheck(STATUS, 200, ("a problem",), 0.985, 0.912, 0.9)
