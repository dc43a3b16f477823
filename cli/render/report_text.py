"""A report for people: the verdict first, then why, how sure, what it is not, the evidence, and what was not tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cli.render.layer_text import layer_lines, layer_mixture_lines
from cli.render.layout import INDENT, fields, table
from cli.render.part_text import part_lines, parts_of_match
from cli.render.undoing_text import undoing_lines
from cli.text import clipped_middle, counted, duration, file_size, magnitude, odds, percent, printable, probability
from fingerprint.vocabulary import Depth
from signatures.report import Confidence, Link, Relation, Verdict

if TYPE_CHECKING:
    from cli.console import Look
    from signatures.report import Match, Mixture, Report

_WORDS: Final = {
    Verdict.MATCH: ("MATCH", "■", "[!]"),
    Verdict.POSSIBLE: ("POSSIBLE", "▲", "[~]"),
    Verdict.NO_MATCH: ("NO MATCH", "✓", "[ok]"),
    Verdict.INCONCLUSIVE: ("INCONCLUSIVE", "?", "[?]"),
    Verdict.ERROR: ("ERROR", "✗", "[x]"),
}
_LOOKS_LIKE: Final = {
    Relation.IDENTICAL: "nothing differs",
    Relation.REFORMATTED: "the same values, stored differently",
    Relation.DTYPE_CAST: "the same values, rounded to another number type",
    Relation.QUANTISED: "the same values, quantised",
    Relation.FINE_TUNED: "a small change, as fine-tuning makes",
    Relation.CONTINUED_TRAINING: "a large change, as long further training makes",
    Relation.PRUNED: "weights, neurons or layers are missing",
    Relation.DEPTH_UPSCALED: "layers are repeated",
    Relation.UPCYCLED: "layers are copied into a mixture of experts",
    Relation.MERGED: "merged, or put together from several parts",
    Relation.NOISED: "noise was added",
    Relation.EXTENDED: "vocabulary or heads were added",
    Relation.REWRITTEN: "rewritten without changing what it computes (permuted, rescaled, rotated)",
    Relation.PARTIAL: "only a part of it",
    Relation.UNCLEAR: "what was done is not clear",
}
_SHORT_LINK: Final = {
    Link.LINEAGE: "",
    Link.SIBLING: "sibling (no accusation)",
    Link.SHARED_COMPONENT: "only a shared component",
    Link.SAME_INITIALISATION: "only the same initialisation",
}
_HELD_BACK: Final = {
    Link.LINEAGE: "what it rests on covers too little, or is too cheap to forge",
    Link.SIBLING: "what it rests on covers too little, or is too cheap to forge",
    Link.SHARED_COMPONENT: "a shared component is never more than possible",
    Link.SAME_INITIALISATION: "a common initialisation is never more than possible",
}
_TEST_WORDS: Final = {
    "digest": "equal contents",
    "align": "rows in place",
    "rows": "neuron signs",
    "sketch": "a lead only",
    "gauge": "signs, undone",
    "even": "concordance",
}
_CERTAIN_P: Final = -12.0
_LIKELY_P: Final = -6.0
_ROUNDING: Final = 1e-6
_LINE: Final = 80
_NAME_WIDTH: Final = 60
_SHOWN_COMPONENTS: Final = 5
_SHOWN_PARTS: Final = 8


def report_text(report: Report, look: Look, against: str | None = None) -> str:
    """The whole report, ending in a line break; ``against`` is what a comparison without a registry compared with.

    What is wrong with a suspect is not in it: that is said on standard error.
    """
    lines = [look.styled(printable(report.suspect.path), bold=True), _headline(report, look)]
    if report.verdict is Verdict.ERROR:
        lines += fields(_notes(report), look)
        return "\n".join(lines) + "\n"
    lines.append("")
    if report.matches:
        lines += _match_lines(report.matches[0], report, look)
        lines += _other_matches(report, look)
        lines += part_lines(report, look)
    else:
        lines += fields([("Why", _why_not(report, against))], look)
        lines += fields([("Would be found", report.power.detectable)], look)
    lines += _mixture_lines(report.mixture, look)
    lines += _claim_lines(report, look)
    lines += undoing_lines(report.undoing, look)
    lines += fields(_keyed(report), look)
    lines += fields([*(("Not tested", one) for one in report.power.not_tested), *_notes(report)], look)
    lines += fields([("Scanned", _scanned(report, against))], look)
    return "\n".join(_one_empty_line(lines)) + "\n"


def _headline(report: Report, look: Look) -> str:
    word, symbol, plain = _WORDS[report.verdict]
    words = f"{symbol if look.symbols else plain} {word}"
    head = look.styled(words, fg=_colour(report), bold=True)
    if not report.matches:
        return head
    best = report.matches[0]
    what = _SHORT_LINK[best.link] or best.relation.value
    sure = "" if best.confidence.value == report.verdict.value else f", {best.confidence.value}"
    room = _LINE - len(f"{words}  : {what}{sure}")
    return f"{head}  {clipped_middle(printable(best.model), min(room, _NAME_WIDTH))}: {what}{sure}"


def _colour(report: Report) -> str:
    if report.verdict is Verdict.NO_MATCH:
        return "green"
    if report.verdict is Verdict.ERROR:
        return "red"
    accusing = report.strongest_accusation
    return "red" if accusing is not None and accusing is not Confidence.POSSIBLE else "yellow"


def _match_lines(match: Match, report: Report, look: Look) -> list[str]:
    lines = fields(
        [
            ("Why", _why(match, report)),
            ("How sure", _how_sure(match)),
            ("What it is not", _what_it_is_not(match)),
            ("Also named", ", ".join(match.aliases)),
            ("Undone", ", ".join(_with_share(one, match) for one in match.undone)),
        ],
        look,
    )
    lines += ["", *_evidence_lines(match, look), ""]
    lines += fields([("Layers", one) for one in layer_lines(match.layers, look)], look)
    return lines + _component_lines(match, report, look)


def _with_share(entry: str, match: Match) -> str:
    """An entry of what was undone, with the share that shows it where that was measured."""
    share = match.measured.get(entry)
    return entry if share is None else f"{entry} ({percent(share)})"


def _how_sure(match: Match) -> str:
    sure = (
        f"{match.confidence.value}: the chance of such agreement by accident is {odds(match.log10_p)} "
        f"(p = {probability(match.log10_p)}, corrected for everything tried); similarity {_cosine(match.similarity)}"
    )
    if match.confidence is not Confidence.CERTAIN and match.log10_p <= _CERTAIN_P:
        sure += f". Not certain in spite of that p: {_HELD_BACK[match.link]}"
    return f"{sure}."


def _cosine(value: float) -> str:
    """Three decimals, and no 1.000 for what differs by more than rounding."""
    return ">0.999" if 0.9995 <= value < 1.0 - _ROUNDING else f"{value:.3f}"


def _short(model: str) -> str:
    """A name that leaves room for something beside it: in comparisons, names are paths."""
    return clipped_middle(printable(model), _NAME_WIDTH)


def _why(match: Match, report: Report) -> str:
    suspect, registered = percent(match.coverage.suspect), percent(match.coverage.registered)
    verb = "correspond" if match.log10_p <= _LIKELY_P else "may correspond"
    share = f"{suspect} of the suspect's weights {verb} to {registered} of those of {_short(match.model)}"
    share += ", as far as a sample of both tells" if report.suspect.depth == Depth.QUICK else ""
    parts = parts_of_match(match, report)
    share += f" ({printable(parts)})" if parts else ""
    if match.link is Link.LINEAGE:
        return f"{share}: {_LOOKS_LIKE[match.relation]}."
    if match.link is Link.SIBLING:
        return f"{share}, and {match.explained_by or 'a common base'} explains that."
    return f"{share}."


def _what_it_is_not(match: Match) -> str:
    note = match.note.rstrip(".")
    named = note.startswith((match.model, *match.aliases, match.explained_by or match.model))
    if note.split(" ")[0].isalpha() and not named:  # names of models and tensors are written as they are
        note = note[:1].upper() + note[1:]
    sentence = f"{note}. " if note else ""
    if match.link is Link.SIBLING or match.declared_base:
        return f"No accusation. {sentence}".strip()
    if match.link is Link.SHARED_COMPONENT:
        return f"No copy of the whole model. {sentence}".strip()
    if match.link is Link.SAME_INITIALISATION:
        return f"No sign of copied training: two labs can use one seed. {sentence}".strip()
    return f"{sentence}Weights alone do not say which of the two came first."


def _evidence_lines(match: Match, look: Look) -> list[str]:
    rows = [
        [
            f"{item.test} ({_TEST_WORDS[item.test]})" if item.test in _TEST_WORDS else item.test,
            item.null,
            f"{item.statistic:.4g}",
            probability(item.log10_p),
            f"{item.trials:,}",
        ]
        for item in match.evidence
    ]
    lines = table(["Evidence", "null", "statistic", "p", "tried"], rows, look, right=(2, 3, 4), indent=INDENT)
    if look.details:
        for item in match.evidence:
            text = ", ".join(f"{name} {_number(value)}" for name, value in item.detail.items())
            lines += fields([(item.test, text)], look)
    return lines


def _number(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _component_lines(match: Match, report: Report, look: Look) -> list[str]:
    if not match.components or not (look.details or match.link is Link.SHARED_COMPONENT):
        return []
    shown = match.components if look.details else match.components[:_SHOWN_COMPONENTS]
    rows = [[one.suspect, one.registered, _cosine(one.similarity)] for one in shown]
    lines = ["", *table(["Part of suspect", "registered part", "similarity"], rows, look, right=(2,), indent=INDENT)]
    if len(shown) < len(match.components):
        lines += fields([("", f"{len(match.components) - len(shown)} more with -v")], look)
    return [*lines, ""]


def _other_matches(report: Report, look: Look) -> list[str]:
    if len(report.matches) < 2:
        return []
    rows = [
        [
            match.model,
            match.relation.value if match.link is Link.LINEAGE else match.link.value,
            match.confidence.value,
            probability(match.log10_p),
            _cosine(match.similarity),
        ]
        for match in report.matches[1:]
    ]
    header = ["Also", "what", "confidence", "p", "similar"]
    lines = ["", *table(header, rows, look, right=(3, 4), whole=(0,), indent=INDENT), ""]
    if look.details:
        for match in report.matches[1:]:
            name = look.styled(f"  {printable(match.model)}", bold=True)
            lines += [name, *_match_lines(match, report, look), ""]
    return lines


def _mixture_lines(mixture: Mixture | None, look: Look) -> list[str]:
    if mixture is None or (len(mixture.coefficients) < 2 and len(_models_in_layers(mixture)) < 2):
        return []
    parts = sorted(mixture.coefficients.items(), key=lambda item: -item[1])
    text = " + ".join(f"{weight:.2f} {model}" for model, weight in parts[:_SHOWN_PARTS])
    if len(parts) > _SHOWN_PARTS:
        text += f" + {len(parts) - _SHOWN_PARTS} more"
    pairs = [("Mixture", f"{text}; {percent(mixture.residual)} is left unexplained")]
    pairs += [("By layer", one) for one in layer_mixture_lines(mixture.layers, look)]
    return fields(pairs, look)


def _models_in_layers(mixture: Mixture) -> set[str]:
    return {model for weights in mixture.layers.values() for model in weights}


def _claim_lines(report: Report, look: Look) -> list[str]:
    """What the suspect says about itself; with details also what says no more than what it is."""
    if report.claims is None:
        return []
    said = list(report.claims.statements)
    if look.details:
        said += [f'calls itself "{one.value}" ({one.source})' for one in report.claims.checked if not one.says]
        said += [f"architecture {one} (config.json)" for one in report.claims.architectures]
        said += [f"quantised as {report.claims.quantisation}"] if report.claims.quantisation else []
    shown = said if look.details else said[:_SHOWN_PARTS]
    shown += [f"{len(said) - len(shown)} more with -v"] if len(shown) < len(said) else []
    return fields([("Claims", one) for one in shown], look)


def _why_not(report: Report, against: str | None) -> str:
    if against is not None:
        if report.verdict is Verdict.NO_MATCH:
            return f"no weights are shared with {_short(against)}, as far as these tests see."
        return f"nothing matched {_short(against)}, but that clears nothing: see the notes."
    models = report.registry.models
    if report.verdict is Verdict.NO_MATCH:
        return (
            f"no weights are shared with {_registered(models)}, as far as these tests see; models that are not "
            "registered were not looked for."
        )
    if not models:
        return "the registry is empty: nothing was compared. Register models with `fp register`, then scan again."
    return f"nothing matched {_registered(models)}, but that clears nothing: see the notes."


def _registered(models: int) -> str:
    return "the one registered model" if models == 1 else f"any of the {models:,} registered models"


def _keyed(report: Report) -> list[tuple[str, str]]:
    """What the secret key says of each model, those that matched first; of the others only what it finds."""
    found = []
    for check in report.keyed or ():
        said = f"{_short(check.model)} under key {check.key}: "
        if check.confirmed:
            said += f"confirmed, p = {probability(check.log10_p)} ({check.test})"
            said += "" if check.matched else "; the public tests did not find it: the suspect may be made to evade them"
        elif check.matched:
            said += (
                f"NOT confirmed (p = {probability(check.log10_p)}): the match may be forged against the public "
                "signature, or rest on parts that the keyed sketch does not sample"
            )
        else:
            continue
        found.append(("Secret key", said))
    return found


def _notes(report: Report) -> list[tuple[str, str]]:
    return [("Note", note) for note in report.notes]


def _scanned(report: Report, against: str | None) -> str:
    suspect = report.suspect
    parts = [
        suspect.format,
        counted(suspect.files, "file"),
        file_size(suspect.bytes),
        counted(suspect.tensors, "tensor"),
        f"{magnitude(suspect.parameters)} parameters",
        "+".join(suspect.dtypes),
    ]
    if suspect.depth:
        parts.append(f"depth {suspect.depth}")
    text = ", ".join(part for part in parts if part)
    others = counted(report.registry.models, "model") if against is None else _short(against)
    return f"{text}; against {others} in {duration(report.seconds)}"


def _one_empty_line(lines: list[str]) -> list[str]:
    """Join runs of empty lines."""
    return [line for number, line in enumerate(lines) if line.strip() or (number and lines[number - 1].strip())]
