"""The table of a lineage benchmark, in Markdown and JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.lineage.score import FOUND, NAMED, NEVER, Outcome

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
    "model",
    "links",
    "relation",
    "layers",
    "mixture",
    "others",
    "s",
    "",
)


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


def to_markdown(outcomes: Sequence[Outcome], about: Mapping[str, Any]) -> str:
    """The result as a page."""
    lines = [f"# Lineage benchmark, family {about['family']}", ""]
    lines += [f"- {line}" for line in summary(outcomes)]
    lines += ["", f"The largest registry held {about['registered']} models.", ""]
    by_stem: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        by_stem[one.stem].append(one)
    for stem, members in by_stem.items():
        lines += [f"## {stem}", "", _row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
        lines += [_row(_cells(one)) for one in members]
        lines.append("")
    failed = [one for one in outcomes if not one.right]
    if failed:
        lines += ["## What failed", ""]
        lines += [f"- {one.stem} {one.case}: {'; '.join(one.problems)}" for one in failed]
        lines.append("")
    return "\n".join(lines)


def _cells(one: Outcome) -> list[str]:
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
        _mark(one.layers) if one.asked_layers or one.layers is None else f"({_mark(one.layers)})",
        _mark(one.mixture if one.mixture_layers is None else one.mixture_layers),
        ", ".join(one.others),
        f"{one.seconds:.1f}",
        "right" if one.right else "**wrong**",
    ]


def _mark(right: bool | None) -> str:
    return "" if right is None else "yes" if right else "no"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
