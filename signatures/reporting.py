"""The report of a suspect: what its comparisons with registered models amount to, in the words of the contract."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from fingerprint.claims import read_claims
from fingerprint.comparing.matching import layer_map
from fingerprint.readers.findings import FindingCode
from fingerprint.threads import single_blas
from fingerprint.vocabulary import Circuit, Content, Depth, Frame, Role
from signatures.claims import check_claims
from signatures.mixture import gather
from signatures.parts import parts_of
from signatures.relation import WHOLE, describe, matches_by_component
from signatures.report import (
    Component,
    Confidence,
    Coverage,
    EvidenceItem,
    Link,
    Match,
    Mixture,
    Power,
    RegistrySummary,
    Relation,
    Report,
    SuspectSummary,
    Verdict,
)
from signatures.verdict import Finding, decide_links

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fingerprint.records import Fingerprint, TensorRecord
    from signatures.mixture import Cover, Group
    from signatures.records import ModelRecord

_COMPONENTS: Final = 64


def build_report(
    suspect: Fingerprint,
    findings: Sequence[Finding],
    *,
    path: str,
    registry: RegistrySummary,
    seconds: float,
    second_look: bool = True,
    bases: Sequence[str] = (),
    top_k: int = 10,
    named: Callable[[str], Sequence[ModelRecord]] | None = None,
) -> Report:
    """The report of a suspect with the candidates that reached ``possible``.

    ``second_look`` is false where the suspect's weights could not be read again as comparisons asked for; ``bases`` are
    declared bases; ``named`` finds the registered models that a claim may mean, by name (``Registry.resembling``).
    """
    ordered = sorted(findings, key=_first_of_all)
    with single_blas():  # the last digits must not depend on how many processors there are
        cover = gather(ordered[0].comparison.suspect, [finding.comparison for finding in ordered]) if ordered else None
    decide_links(ordered, cover, bases)
    _unite_copies(ordered)
    merged = cover.models if cover is not None and len(cover.models) > 1 else set()
    declared = {name.lower() for name in bases}
    matches = [
        _match(finding, merged=index in merged, declared=finding.is_named(declared))
        for index, finding in enumerate(ordered)
    ]
    matches.sort(key=lambda match: (match.link is not Link.LINEAGE, -match.confidence.rank))
    verdict = _verdict(suspect, matches, registry)
    return Report(
        suspect=_summary(suspect, path),
        verdict=verdict,
        error=None,
        matches=tuple(matches[:top_k]),
        mixture=_mixture(cover, ordered),
        power=_power(suspect, second_look=second_look),
        notes=(*_notes(suspect, matches, registry), *_contradictions(ordered)),
        registry=registry,
        seconds=seconds,
        claims=check_claims(
            read_claims(suspect.claims),
            matches,
            named,
            verdict,
            adapter=_is_adapter(suspect),
            registered=bool(registry.digest),
        ),
        parts=parts_of(suspect, ordered),
    )


def _first_of_all(finding: Finding) -> tuple[int, float, float, bool, str]:
    """Orders findings: the surer, the nearer, more evidence, what was registered whole; then by name."""
    model = finding.model
    quick = model.depth == Depth.QUICK
    return -finding.confidence.rank, finding.distance, finding.log10_p, quick, model.name.casefold()


def _unite_copies(findings: Sequence[Finding]) -> None:
    """Say of a copy of a registration what is said of that: it is no sibling of itself.

    One model may be registered with a secret key and without. Equal digests count within one origin alone, as a
    stranger's signature may lie about everything else.
    """
    known = {finding.model.name: finding for finding in findings}
    for finding in findings:
        first = known.get(finding.explained_by or "")
        if first is not None and finding.model.weights is not None and _copied(first.model) == _copied(finding.model):
            finding.link, finding.explained_by, finding.note = first.link, first.explained_by, first.note


def _copied(model: ModelRecord) -> tuple[str | None, str]:
    return model.weights, model.registrations[0].origin


def _is_adapter(suspect: Fingerprint) -> bool:
    return any(code == FindingCode.ADAPTER for code, _ in suspect.findings)


def _verdict(suspect: Fingerprint, matches: Sequence[Match], registry: RegistrySummary) -> Verdict:
    accusing = [match for match in matches if match.link in {Link.LINEAGE, Link.SIBLING}]
    if any(match.confidence is not Confidence.POSSIBLE for match in accusing):
        return Verdict.MATCH
    if matches:
        return Verdict.POSSIBLE
    if not registry.models or not suspect.complete or not any(map(_is_comparable, suspect.tensors)):
        return Verdict.INCONCLUSIVE
    return Verdict.NO_MATCH


def _match(finding: Finding, *, merged: bool, declared: bool) -> Match:
    comparison, change = finding.comparison, finding.change
    description = describe(change, merged=merged)
    relation = description.relation
    if finding.link in {Link.SHARED_COMPONENT, Link.SAME_INITIALISATION}:
        relation = Relation.PARTIAL if finding.link is Link.SHARED_COMPONENT else Relation.UNCLEAR
    return Match(
        model=finding.model.name,
        signature=finding.model.identity,
        confidence=finding.confidence,
        log10_p=finding.log10_p,
        similarity=_cosine(comparison.similarity),
        link=finding.link,
        relation=relation,
        undone=description.undone,
        coverage=Coverage(comparison.suspect_coverage, comparison.registered_coverage),
        evidence=tuple(
            EvidenceItem(one.test.value, one.null.value, one.statistic, one.log10_p, one.trials, dict(one.detail))
            for one in finding.evidence
        ),
        components=_components(finding),
        layers=_layers(finding),
        aliases=finding.model.aliases,
        explained_by=finding.explained_by,
        declared_base=declared,
        note="declared as the base of the suspect" if declared else finding.note or _lineage_note(finding),
        measured=dict(description.measured),
    )


def _cosine(value: float) -> float:
    """A mean of cosines, which rounding can lift out of their range."""
    return min(1.0, max(-1.0, value))


def _lineage_note(finding: Finding) -> str:
    frame = finding.change.rewriting.frame
    if frame is not None and frame.frame == Frame.UNITS and finding.change.exact_share < WHOLE:
        return (
            "a common ancestor that is not registered is not excluded, nor another training of one initialisation: "
            "of networks of such units they look alike"
        )
    if finding.change.exact_share > WHOLE or finding.model.base is None:
        return "a common ancestor that is not registered is not excluded"
    return f"registered as derived from {finding.model.base}"


def _components(finding: Finding) -> tuple[Component, ...]:
    change = finding.change
    found = [
        Component(theirs, ours, _cosine(sum(match.cosine for match in matches) / len(matches)))
        for (theirs, ours), matches in matches_by_component(change).items()
    ]
    return tuple(found[:_COMPONENTS])


def _layers(finding: Finding) -> dict[str, int]:
    """Suspect layer → registered layer; where the suspect's layers have no numbers, each copy gets a label."""
    comparison = finding.comparison
    known = layer_map(comparison.matches, comparison.registered.tensors, comparison.suspect.tensors)
    known = known or finding.change.rewriting.layers
    if known:
        return {str(theirs): ours for theirs, ours in known.items()}
    copies: dict[int, list[int]] = defaultdict(list)
    for position, number in finding.change.copies.items():
        layer = comparison.registered.tensors[position].layer
        if layer is not None:
            copies[layer].append(number)
    labels: dict[str, int] = {}
    for layer, numbers in sorted(copies.items()):
        times = max(1, round(sum(numbers) / len(numbers)))
        labels |= {f"unnamed copy {i + 1} of {layer}" if times > 1 else f"unnamed {layer}": layer for i in range(times)}
    return labels


def _mixture(cover: Cover | None, findings: Sequence[Finding]) -> Mixture | None:
    if cover is None or not cover.coefficients:
        return None
    name = {index: finding.model.name for index, finding in enumerate(findings)}
    return Mixture(
        coefficients={name[index]: weight for index, weight in cover.coefficients.items()},
        residual=cover.residual,
        layers={
            _label(group, name): {name[index]: weight for index, weight in weights.items()}
            for group, weights in cover.groups.items()
        },
    )


def _label(group: Group, name: Mapping[int, str]) -> str:
    if group.layer is None:
        return "outside layers"
    return str(group.layer) if group.candidate is None else f"unnamed {group.layer} of {name[group.candidate]}"


def _summary(suspect: Fingerprint, path: str) -> SuspectSummary:
    return SuspectSummary(
        path=path,
        format=suspect.format,
        files=suspect.files,
        bytes=suspect.stored_bytes,
        bytes_read=suspect.bytes_read,
        tensors=len(suspect.tensors),
        parameters=suspect.elements,
        dtypes=dict(suspect.dtypes),
        depth=suspect.depth,
        complete=suspect.complete,
    )


def _is_comparable(tensor: TensorRecord) -> bool:
    return tensor.sketch is not None or bool(tensor.axes)


def in_own_frames(suspect: Fingerprint) -> bool:
    """Whether its layers were written down in their own frames."""
    return any(sample.frame == Frame.SELF for sample in suspect.neurons)


def _power(suspect: Fingerprint, *, second_look: bool) -> Power:
    matrices = list(filter(_is_comparable, suspect.tensors))
    if suspect.depth == Depth.QUICK:
        return _power_of_quick(matrices)
    tested, missing = ["digest"], []
    if matrices:
        tested += ["align", "sketch"]
    else:
        missing += ["align: no weight matrix large enough", "sketch: no weight matrix large enough"]
    if any(sample.up is not None for sample in suspect.neurons):
        tested.append("rows")
    elif suspect.neurons:
        missing.append("rows: MLPs without a gate have no coins")
    else:
        missing.append("rows: no MLP was recognised")
    if not second_look:
        missing.append("digests of transposed matrices: only a signature is at hand")
        missing.append("rows of neurons that the signature does not sample")
    if suspect.neurons and not in_own_frames(suspect):
        missing.append("layers in their own frames, which need no embeddings: at deep depth")
    moving = {sample.frame for sample in suspect.neurons} - {Frame.FIXED}
    if moving:
        tested += ["gauge", "even"]
        if _has_attention(suspect) and not any(gram.circuit is not Circuit.DOWN_UP for gram in suspect.grams):
            missing.append("attention that was moved: the size of its heads was not found")
    else:
        missing.append(f"gauge and even: {_why_not_moving(suspect)}")
    detectable = (
        f"{_a_registered_model(matrices)}, if they kept a cosine of .5 or more to it in one matrix along an axis of "
        f"hidden units (.8 for the few tensors of tokens or features alone){_IF_MOVED if moving else _IF_STILL}"
        if matrices
        else "exact copies of single tensors only"
    )
    return Power(tuple(tested), tuple(missing), detectable)


def _has_attention(suspect: Fingerprint) -> bool:
    return any(one.role is Role.ATTENTION_OUTPUT and one.content is Content.WEIGHTS for one in suspect.tensors)


def _power_of_quick(matrices: Sequence[TensorRecord]) -> Power:
    missing = ["sketch, rows, gauge and even: not at quick depth"]
    if not matrices:
        return Power(("digest",), (*missing, "align: no weight matrix large enough"), "exact copies of single tensors")
    detectable = (
        f"{_a_registered_model(matrices)}, if they kept a cosine of .8 or more to it and their rows and columns their "
        "places: quantised, fine-tuned and continued copies, not rewritten or rearranged ones"
    )
    return Power(("digest", "align"), tuple(missing), detectable)


def _a_registered_model(matrices: Sequence[TensorRecord]) -> str:
    smallest = min(tensor.elements for tensor in matrices)
    return f"a registered model whose matrices are among the {len(matrices)} here (smallest: {smallest:,} elements)"


_IF_STILL: Final = ", and its residual stream was neither permuted nor rotated"
_IF_MOVED: Final = (
    "; if its residual stream was permuted or rotated, as long as its MLPs kept a third of their neurons recognisable"
)


def _why_not_moving(suspect: Fingerprint) -> str:
    return dict(suspect.findings).get("gauge-missing", "the signature has no samples in moving frames")


def _notes(suspect: Fingerprint, matches: Sequence[Match], registry: RegistrySummary) -> tuple[str, ...]:
    notes = [message for code, message in suspect.findings if code != "gauge-missing"]
    aside: dict[Content, int] = defaultdict(int)
    for tensor in suspect.tensors:
        if tensor.content in {Content.ANALYTIC, Content.CONSTANT, Content.NONFINITE}:
            aside[tensor.content] += 1
    notes += [
        f"{number} {content} {'tensor was' if number == 1 else 'tensors were'} set aside: no evidence"
        for content, number in aside.items()
    ]
    if not registry.models:
        notes.append("the registry is empty: there was nothing to compare with")
    if not suspect.complete:
        notes.append("the suspect was not read whole")
    if suspect.depth == Depth.QUICK:
        share = suspect.bytes_read / max(suspect.stored_bytes, 1)
        notes.append(f"a quick look: {share:.2%} of the bytes were read; what is said of the rest is an inference")
        if any(_on_public_samples(match) for match in matches):
            notes.append(
                "a quick look compares what a signature shows of rows, not neurons: --depth full before accusing"
            )
    if len({match.model for match in matches if match.link is Link.LINEAGE}) > 1:
        notes.append("several registered models share these weights; the first is the nearest")
    return tuple(notes)


def _on_public_samples(match: Match) -> bool:
    """Whether a match rests on rows alone, which can be written into other weights, and not on equal contents."""
    return match.confidence is not Confidence.POSSIBLE and all(item.test != "digest" for item in match.evidence)


def _contradictions(findings: Sequence[Finding]) -> list[str]:
    return [f"{finding.model.name}: {finding.contradiction}" for finding in findings if finding.contradiction]
