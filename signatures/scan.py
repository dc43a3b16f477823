"""Scan a suspect: fingerprint, candidates, comparisons, verdict, report."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from threadpoolctl import threadpool_limits

from fingerprint.claims import read_claims
from fingerprint.comparing.comparison import compare_fingerprints
from fingerprint.comparing.matching import layer_map
from fingerprint.errors import InputError, RegistryError, SignatureError, UsageError, described
from fingerprint.readers.findings import FindingCode
from fingerprint.vocabulary import Circuit, Content, Depth, Frame, Role
from signatures.claims import check_claims, may_name
from signatures.disclosure import with_tests_lost
from signatures.mixture import gather
from signatures.parts import parts_of
from signatures.records import anonymous_model
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
from signatures.search import find_candidates
from signatures.suspect import AUTO, open_suspect
from signatures.verdict import HALF, Finding, assess, decide_links

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import Fingerprint, TensorRecord
    from signatures.mixture import Cover, Group
    from signatures.records import ModelRecord
    from signatures.registry import Registry
    from signatures.suspect import Suspect

_log = logging.getLogger(__name__)
LEAST_CANDIDATES: Final = 20
DEPTHS: Final = (AUTO, *(one.value for one in Depth))
_COMPONENTS: Final = 64
_SECOND_LOOKS: Final = 8
_EXPLAINS: Final = -12.0
_IN_OWN_FRAMES: Final = 5
"""Candidates whose layers are aligned in their own frames: half a second each, and retrieval has ranked them."""


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """How to scan. ``base`` names models that are declared to be the suspect's base; ``include`` and ``exclude`` are
    globs over stored tensor names; ``top_k`` bounds the matches in the report, not what is compared."""

    top_k: int = 10
    base: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    depth: str = AUTO

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"at least one match must be allowed in the report, not {self.top_k}")
        if self.depth not in DEPTHS:
            raise UsageError(f"depth {self.depth!r} is not one of {', '.join(DEPTHS)}")


def scan_path(
    registry: Registry,
    path: str | os.PathLike[str],
    *,
    options: ScanOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Scan a checkpoint or a signature file. A suspect that cannot be read, or takes more memory than there is, gives
    a report with verdict ``error``; only a registry that cannot be used raises (``RegistryError``)."""
    started = time.perf_counter()
    options = options or ScanOptions()
    try:
        with open_suspect(path, include=options.include, exclude=options.exclude, progress=progress) as opened:
            report = _at_first_that_explains(
                opened.depths(options.depth),
                lambda depth: scan_suspect(registry, opened.at(depth), path=str(path), options=options),
            )
    except (InputError, SignatureError) as error:
        _log.info("%s cannot be scanned", path, exc_info=error)
        return _error_report(registry, str(path), str(error), time.perf_counter() - started)
    except MemoryError as error:
        _log.info("%s cannot be scanned", path, exc_info=error)
        message = f"{path}: there is not enough memory to scan it ({described(error)})"
        return _error_report(registry, str(path), message, time.perf_counter() - started)
    return replace(report, seconds=time.perf_counter() - started)


def _at_first_that_explains(depths: Sequence[Depth], scan: Callable[[Depth], Report]) -> Report:
    """The report at the first of the depths that explains the suspect, or at the last; the one before, if it accuses
    and the next one fails, whatever the reason."""
    report = scan(depths[0])
    for depth in depths[1:]:
        if any(match.link in {Link.LINEAGE, Link.SIBLING} and _explains(match) for match in report.matches):
            break
        try:
            report = scan(depth)
        except RegistryError:
            raise
        except Exception as error:  # noqa: BLE001 - for want of memory, or in a library: it does not hide what was found
            _log.info("a look at %s depth failed", depth.value, exc_info=error)
            return report.despite(error, f"looking at it at {depth.value} depth")
    return report


def _explains(match: Match) -> bool:
    return match.confidence is Confidence.CERTAIN and match.coverage.suspect >= HALF


def _error_report(registry: Registry, path: str, error: str, seconds: float) -> Report:
    return Report(
        suspect=SuspectSummary(path=path),
        verdict=Verdict.ERROR,
        error=error,
        matches=(),
        mixture=None,
        power=Power((), ("everything: the suspect could not be read",), "nothing"),
        notes=(),
        registry=RegistrySummary(registry.count(), registry.digest),
        seconds=seconds,
    )


def scan_suspect(registry: Registry, suspect: Suspect, *, path: str, options: ScanOptions | None = None) -> Report:
    """Match a suspect against every registered model. Raises ``RegistryError``, and ``InputError`` if the suspect's
    weights cannot be read a second time."""
    started = time.perf_counter()
    options = options or ScanOptions()
    models = registry.count()
    declared = [registry.get(name).name for name in options.base]
    candidates = find_candidates(registry, suspect.fingerprint, max(LEAST_CANDIDATES, 2 * options.top_k))
    known = [(one.model, registry.load_signature(one.model).fingerprint) for one in candidates]
    comparisons = compare_all(suspect, [ours for _, ours in known])
    findings = [
        finding
        for (model, _), comparison in zip(known, comparisons, strict=True)
        if (finding := assess(model, comparison, models)) is not None
    ]
    report = build_report(
        suspect.fingerprint,
        findings,
        path=path,
        second_look=suspect.measured is not None,
        bases=declared,
        top_k=options.top_k,
        registry=RegistrySummary(models, registry.digest),
        seconds=time.perf_counter() - started,
        named=registry.resembling,
    )
    return with_tests_lost(report, [(model.name, ours) for model, ours in known])


def compare_all(suspect: Suspect, registered: Sequence[Fingerprint]) -> list[Comparison]:
    """Compare a suspect with registered fingerprints, the best candidates first; again, if a comparison asks for it."""
    # The matrices are small: threads inside BLAS would only wait for each other.
    with threadpool_limits(1, "blas"):
        comparisons = _compared(suspect, registered, own_frames=False)
        for _ in range(_SECOND_LOOKS):
            if not suspect.look_again(comparisons):
                break
            comparisons = _compared(suspect, registered, own_frames=False)
        # What explains half of the suspect leaves nothing to look for in its layers' own frames.
        if _in_own_frames(suspect.fingerprint) and not any(
            one.log10_p <= _EXPLAINS and one.suspect_coverage >= HALF for one in comparisons
        ):
            comparisons[:_IN_OWN_FRAMES] = _compared(suspect, registered[:_IN_OWN_FRAMES], own_frames=True)
    return comparisons


def _in_own_frames(suspect: Fingerprint) -> bool:
    return any(sample.frame == Frame.SELF for sample in suspect.neurons)


def _compared(suspect: Suspect, registered: Sequence[Fingerprint], *, own_frames: bool) -> list[Comparison]:
    return [compare_fingerprints(ours, suspect.fingerprint, own_frames=own_frames) for ours in registered]


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
    with threadpool_limits(1, "blas"):  # the last digits must not depend on how many processors there are
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
    if suspect.neurons and not _in_own_frames(suspect):
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


def compare_paths(
    registered: str | os.PathLike[str],
    suspect: str | os.PathLike[str],
    *,
    options: ScanOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Compare two checkpoints or signature files; ``registered`` takes the place of the registered model.

    Raises ``InputError``, ``SignatureError``, ``IncompatibleParametersError``.
    """
    started = time.perf_counter()
    options = options or ScanOptions()
    include, exclude = options.include, options.exclude
    with (
        open_suspect(suspect, include=include, exclude=exclude, progress=progress) as theirs,
        open_suspect(registered, include=include, exclude=exclude, registered=True, progress=progress) as ours,
    ):

        def compare(depth: Depth) -> Report:
            second = theirs.at(depth)
            first = ours.at(depth).fingerprint
            (comparison,) = compare_all(second, [first])
            model = anonymous_model(str(registered))
            finding = assess(model, comparison, 1)
            report = build_report(
                second.fingerprint,
                [finding] if finding is not None else [],
                path=str(suspect),
                second_look=second.measured is not None,
                registry=RegistrySummary(1, ""),
                seconds=0.0,
                named=lambda name: [model] if may_name(name, model) else [],
            )
            return with_tests_lost(report, [(str(registered), first)])

        depths = theirs.depths(options.depth)
        if ours.depths(options.depth) == (Depth.QUICK,):  # it lies elsewhere, and is large
            depths = (Depth.QUICK,)
        report = _at_first_that_explains(depths, compare)
    return replace(report, seconds=time.perf_counter() - started)
