"""The table of a lineage benchmark, in Markdown and JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.lineage.score import FOUND, NAMED, NEVER, Outcome
from fingerprint.vocabulary import Depth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = "lineage-result/1"
_COLUMNS = (
    "case",
    "verdict",
    "first match",
    "link",
    "relation",
    "confidence",
    "log10 p",
    "similarity",
    "model right",
    "links right",
    "relation right",
    "layer map",
    "mixture",
    "layers of mixture",
    "others",
    "s",
    "case right",
)
_LEGEND = """\
*Verdict* to *similarity* are of the report: of its first match, where it has any. *Model right*: the first match is a
parent. *Links right*: every registered relative is matched with the link that is true (for an ancestor's ancestor:
lineage). *Layer map*: exact; unordered (the registered layers, each as often as is true, but not where, since the
suspect's names do not say); wrong. In brackets where the case does not ask for it. *Mixture*: every coefficient within
0.02 of least squares on the full weights (and how far off the worst is). *Others*: models that share nothing with the
suspect and are at possible or above: there must be none. *s*: seconds of the scan. A case is right if all that is asked
of it is.
"""
_ABOUT_SCORES = """\
Of every suspect with the models that its truth names, and with a few drawn from the look-alikes. The similarity is
that of the tensors that correspond at all: of a non-relative, equal gains and tables (1.0), or one pair alike by
chance.
"""


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """One line for each group of cases, and one for false accusations."""
    lines = []
    for group in (FOUND, NAMED, NEVER):
        members = [one for one in outcomes if one.group == group]
        if members:
            lines.append(f"{group}: {sum(one.right for one in members)} of {len(members)} right")
    others = sum(bool(one.others) for one in outcomes)
    lines.append(f"Suspects with an unrelated model at possible or above: {others} of {len(outcomes)}")
    return lines


def to_json(outcomes: Sequence[Outcome], about: Mapping[str, Any]) -> str:
    """The whole result as JSON."""
    result = {
        "schema": SCHEMA,
        **about,
        "summary": _counts(outcomes),
        "cases": [{**asdict(one), "right": one.right} for one in outcomes],
    }
    return json.dumps(result, indent=1, allow_nan=False) + "\n"


def _counts(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for group in (FOUND, NAMED, NEVER):
        members = [one for one in outcomes if one.group == group]
        if members:
            counts[group] = {"right": sum(one.right for one in members), "of": len(members)}
    return counts


def _depth(about: Mapping[str, Any]) -> str:
    return "" if about["depth"] == Depth.DEEP else f", scanned at {about['depth']} depth"


def to_markdown(outcomes: Sequence[Outcome], about: Mapping[str, Any], plot: str) -> str:
    """The result as a page; ``plot`` is the file name of the plot beside it."""
    tiny = ", tiny models" if about["quick"] else ""
    lines = [f"# Lineage benchmark, family {about['family']}{tiny}{_depth(about)}", ""]
    lines += [f"- {line}" for line in summary(outcomes)]
    lines += ["", f"{_about_rules(about)} {_about_run(about)}", ""]
    lines += ["## Scores", "", _ABOUT_SCORES, *_scores(about["scores"]), ""]
    lines += [f"![Distributions of the scores]({plot})", ""]
    failed = [one for one in outcomes if not one.right]
    if failed:
        lines += ["## What failed", ""]
        lines += [f"- {one.stem} {one.case}: {'; '.join(one.problems)}" for one in failed]
        lines.append("")
    lines += ["## Cases", "", _LEGEND]
    by_stem: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        by_stem[one.stem].append(one)
    for stem, members in by_stem.items():
        lines += [f"### {stem}", "", _row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
        lines += [_row(_cells(one)) for one in members]
        lines.append("")
    lines += ["## What was done", "", *_what_was_done(outcomes), ""]
    return "\n".join(lines)


def _about_rules(about: Mapping[str, Any]) -> str:
    if about["frozen"] is None:
        return f"Run on {about['date']}; the rules are not frozen yet."
    if about["changed"]:
        changed = ", ".join(f"`{name}`" for name in about["changed"])
        return f"Run on {about['date']}. **Rules changed since they were frozen** ({about['frozen']}): {changed}."
    return f"Run on {about['date']} with the rules as they were frozen on {about['frozen']}."


def _about_run(about: Mapping[str, Any]) -> str:
    return (
        f"The largest registry held {about['registered']} models. A scan took {about['seconds']} s (median; "
        f"{about['machine']})."
    )


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [_row(("statistic", "of", "pairs", "least", "5%", "median", "95%", "most")), _row(["---"] * 8)]
    for row in rows:
        quantiles = [f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}" for value in row["quantiles"]]
        lines.append(_row((row["title"], row["kin"], str(row["pairs"]), *quantiles)))
    return lines


def _what_was_done(outcomes: Sequence[Outcome]) -> list[str]:
    done = {one.case: one for one in outcomes}
    return [_row(("case", "group", "the suspect")), _row(["---"] * 3)] + [
        _row((one.case, one.group, one.done)) for one in done.values()
    ]


def _cells(one: Outcome) -> list[str]:
    layers = "" if one.layers is None else one.layers.value if one.asked_layers else f"({one.layers.value})"
    return [
        one.case,
        one.verdict,
        one.first.removeprefix(f"{one.stem}-"),
        one.link,
        one.relation_said,
        one.confidence,
        "" if one.log10_p is None else f"{one.log10_p:.0f}",
        "" if one.similarity is None else f"{one.similarity:.3f}",
        _mark(one.model),
        _mark(one.links),
        _mark(one.relation),
        layers,
        "" if one.mixture_error is None else f"{_mark(one.mixture)} ({one.mixture_error:.3f})",
        _mark(one.mixture_layers),
        ", ".join(one.others),
        f"{one.seconds:.1f}",
        "yes" if one.right else "**no**",
    ]


def _mark(right: bool | None) -> str:
    return "" if right is None else "yes" if right else "no"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
