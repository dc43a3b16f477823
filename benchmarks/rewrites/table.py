"""Command: the page of the benchmark of rewrites, from the rows that ``run`` and ``benchmarks.units.run`` wrote."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Row = dict[str, Any]

_TITLES = {
    "each alone": "Each rewrite alone, and all together",
    "damaged": "All together, and then damaged",
    "siblings": "Siblings: a fine-tune of a registered base beside another one",
    "one layer": "One layer alone, without embeddings, permuted, rescaled, folded and rotated",
    "one layer, trained on": "One layer alone, of a model that was trained on as long as before, and then rewritten",
    "one layer of a look-alike": "One layer alone, of a look-alike",
    "one MLP": "The MLP of one layer alone",
    "one MLP, trained on": "The MLP of one layer alone, of a model that was trained on as long as before",
    "one MLP of a look-alike": "The MLP of one layer alone, of a look-alike",
    "look-alikes": "Look-alikes: the same recipe with another seed",
}


def page(rows: Sequence[Row], units: Sequence[Row]) -> str:
    """The page in Markdown."""
    lines = [
        "# Rewrites that keep the function",
        "",
        "Made by `make bench-rewrites`; x86_64, 2 cores. Every suspect is checked to compute the same before it is",
        "damaged. Its file has random names in random order, no configuration and no tokenizer. *Found* means: verdict",
        "`match` at `likely` or better, the right model first, no other model listed.",
        "",
    ]
    for part, title in _TITLES.items():
        chosen = [row for row in rows if row["part"] == part]
        if chosen:
            lines += [f"## {title}", "", *_table(chosen, positive="look-alike" not in part), ""]
    for kind in dict.fromkeys(row["kind"] for row in units):
        chosen = [row for row in units if row["kind"] == kind]
        lines += [f"## {_KINDS[kind]}", "", *_of_units(chosen), ""]
    return "\n".join(lines)


_KINDS = {
    "cnn": "Convolutions with batch norm",
    "lstm": "LSTM of two levels",
    "gru": "GRU of two levels",
}


def _table(rows: Sequence[Row], *, positive: bool) -> list[str]:
    stems = list(dict.fromkeys(row["stem"] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        cells[row["rewrite"], row["damage"]][row["stem"]] = _cell(row, positive=positive)
    right = sum(_is_right(row) for row in rows)
    head = ["| rewrite | damage | " + " | ".join(stems) + " |", "|---|---|" + "---|" * len(stems)]
    body = [
        f"| {rewrite} | {damage} | " + " | ".join(found.get(stem, "") for stem in stems) + " |"
        for (rewrite, damage), found in cells.items()
    ]
    wanted = "found" if positive else "not matched, at `possible` or above"
    return [*head, *body, "", f"{right} of {len(rows)} {wanted}."]


def _is_right(row: Row) -> bool:
    return bool(row["found"] and not row["strangers"] and not row["accused"])


def _cell(row: Row, *, positive: bool) -> str:
    if not positive:
        return "no match" if _is_right(row) else f"**{row['verdict']}**"
    said = f"{row['confidence'] or row['verdict']}, {row['test']} 10^{row['log10_p']:.0f}"
    best = max(row["concordance"].values(), default=0.0)
    said += f", {best:.2f}" if best else ""
    return said if _is_right(row) else f"**{said}**"


def _of_units(rows: Sequence[Row]) -> list[str]:
    lines = ["| rewrite | damage | said | concordance |", "|---|---|---|---|"]
    descends = [row for row in rows if row["part"] == "descends"]
    for row in descends:
        said = (
            f"{row['confidence'] or row['verdict']}, {row['test']} 10^{row['log10_p']:.0f}"
            if row["test"]
            else "nothing"
        )
        said = said if row["found"] else f"**{said}**"
        lines.append(f"| {row['rewrite']} | {row['damage']} | {said} | {row['concordance']:.2f} |")
    others = [row for row in rows if row["part"] != "descends"]
    lines += ["", f"{_count(descends)} found; of networks trained apart, {_count(others)} not matched."]
    return lines


def _count(rows: Iterable[Row]) -> str:
    listed = list(rows)
    return f"{sum(bool(row['found']) for row in listed)} of {len(listed)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewrites.table", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--units", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the page")
    options = parser.parse_args(arguments)
    latest: dict[tuple[str, ...], Row] = {}
    for line in options.rows.read_text("utf-8").splitlines():
        row = json.loads(line)
        latest[row["part"], row["stem"], row["rewrite"], row["damage"]] = row
    units = json.loads(options.units.read_text("utf-8"))
    options.out.write_text(page(list(latest.values()), units) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
