"""Command: the page of the benchmark of rewrites, from the rows that ``run`` and ``benchmarks.units.run`` wrote."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rewrites.parts import DEGREES, INTACT, is_right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Row = dict[str, Any]

_HEAD = """# Rewrites that keep the function

Made by `make bench-rewrites`; x86_64, 2 cores. Every suspect is checked to compute the same before it is damaged. Its
file has random names in random order, no configuration and no tokenizer. *Found* means: verdict `match` at `likely` or
better, the right model first, no other model listed; what is not as it must be is in bold.

Cells say the confidence, the strongest test with its corrected p-value, and the concordance of neurons where there is
one. `A` and `B` are seeds of one recipe, `A-ftx` and `A-fty` fine-tunes of `A` on different texts. Suspects of `A` are
scanned against `A` and `B`. Siblings are suspects of `A-fty`, scanned against `A` and `A-ftx`: `A` must come first, and
`A-ftx` may be listed beside it, as anything but `lineage`; what it is listed as comes last in the cell. Look-alikes are
scanned against `A` and `A-ftx` too, and must not be matched, at `possible` or above: `B`, random tensors of the means
and deviations of `A`'s, and `A`'s with the elements of each shuffled; cells say how many were, of how many.
`tuned-alike` is a fine-tune of `A-fty` on the text that `A-ftx` was made of, which moves its weights towards `A-ftx`.
Descendants are suspects of `A-ftx`, scanned against `A` and `A-ftx`: `A-ftx` must come first, as `lineage`. No suspect
of a sibling may be called one; where the two cannot be told apart, a suspect is called a sibling of `A-ftx`, and a
descendant of their base.
"""
_TITLES = {
    "each alone": "Each rewrite alone, and all together",
    "damaged": "All together, and then damaged",
    "siblings": "Siblings: a fine-tune of a registered base beside another one",
    "descendants": "Descendants of a fine-tune that is registered beside its base",
    "look-alikes": "Look-alikes",
    "one layer": "One layer alone, without embeddings, permuted, rescaled, folded and rotated",
    "one layer, trained on": "One layer alone, of a model that was trained on as long as before, and then rewritten",
    "one layer of a sibling": "One layer alone, of a sibling",
    "one layer of a descendant": "One layer alone, of a descendant of a fine-tune",
    "one layer of a look-alike": "One layer alone, of a look-alike",
    "limits": "How much damage one layer alone bears",
    "one MLP": "The MLP of one layer alone",
    "one MLP, trained on": "The MLP of one layer alone, of a model that was trained on as long as before",
    "one MLP of a sibling": "The MLP of one layer alone, of a sibling",
    "one MLP of a descendant": "The MLP of one layer alone, of a descendant of a fine-tune",
    "one MLP of a look-alike": "The MLP of one layer alone, of a look-alike",
}
_TRAINED_ON = "limits, trained on"
_KINDS = {
    "cnn": "Convolutions with batch norm",
    "cnn-deeper": "Convolutions with batch norm, one of them as wide as what it reads",
    "resnet": "Residual network: two stages of two blocks, batch norm, a shortcut between the stages",
    "lstm": "LSTM of two levels",
    "gru": "GRU of two levels",
}
_OF_UNITS = """## Networks without a residual stream

The first two seeds of each are registered for suspects of the first one; for suspects of another fine-tune of it, and
for look-alikes, the first one and a fine-tune of it. Look-alikes are other seeds, random tensors of the first one's
means and deviations, and its own with the elements of each shuffled. *Left out* is a layer that puts out as much as it
reads: no convolution of the first network is such a one, the third of the deeper one is, the first block of a residual
network and the last level of cells. Of residual networks the half of the channels inside blocks is left out.
Two fine-tunes are nearer to each other than to their base where the changes that made them, if equally large, have a
cosine above 1/2.
"""


def page(rows: Sequence[Row], units: Sequence[Row]) -> str:
    """The page in Markdown."""
    lines = [_HEAD]
    for part, title in _TITLES.items():
        chosen = [row for row in rows if row["part"] == part]
        if not chosen:
            continue
        if part == "limits":
            body = _limits(chosen, [row for row in rows if row["part"] == _TRAINED_ON])
        elif part == "each alone":
            body = _of_each(chosen)
        else:
            body = _table(chosen)
        lines += [f"## {title}", "", *body, ""]
    lines += [_OF_UNITS] if units else []
    for kind in dict.fromkeys(row["kind"] for row in units):
        chosen = [row for row in units if row["kind"] == kind]
        lines += [f"### {_KINDS[kind]}", "", *_of_units(chosen), ""]
    return "\n".join(lines)


def _grid(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in body)]


def _of_each(rows: Sequence[Row]) -> list[str]:
    """A row for each rewrite of each model: also what the report takes the suspect for, and what was undone."""
    body = [
        (row["rewrite"], row["stem"], _said(row), row["relation"], ", ".join(row["undone"]))
        for row in sorted(rows, key=_order_of("rewrite", rows))
    ]
    return [*_grid(("rewrite", "model", "said", "relation", "undone"), body), "", f"{_count(rows)} found."]


def _order_of(key: str, rows: Sequence[Row]) -> Callable[[Row], int]:
    """Sorts by ``key`` in the order in which its values first come."""
    places = {value: place for place, value in enumerate(dict.fromkeys(row[key] for row in rows))}
    return lambda row: places[row[key]]


def _table(rows: Sequence[Row]) -> list[str]:
    """A row for each rewrite and damage, a column for each model."""
    stems = list(dict.fromkeys(row["stem"] for row in rows))
    groups: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["rewrite"], row["damage"]][row["stem"]].append(row)
    part = rows[0]["part"]
    beside = "sibling" in part or "descendant" in part
    cell = _of_look_alikes if "look-alike" in part else _beside if beside else _of_relative
    body = [
        (rewrite, damage, *(cell(found[stem]) if found[stem] else "" for stem in stems))
        for (rewrite, damage), found in groups.items()
    ]
    wanted = "not matched" if "look-alike" in part else "found"
    lines = [*_grid(("rewrite", "damage", *stems), body), "", f"{_count(rows)} {wanted}."]
    return [*lines, *_called(rows, part)] if beside else lines


def _called(rows: Sequence[Row], part: str) -> list[str]:
    links = Counter(_link(row) for row in rows)
    listed = ", ".join(f"{link} {count}" for link, count in links.most_common())
    if "descendant" in part:
        return ["", f"`A-ftx`, of which they were made, was listed as: {listed}."]
    accused = sum(bool(row["accused"]) for row in rows)
    return ["", f"Called a descendant of its sibling: {accused} of {len(rows)}. The sibling was listed as: {listed}."]


def _link(row: Row) -> str:
    return str(row["links"].get("A-ftx", "not listed"))


def _said(row: Row) -> str:
    said = row["confidence"] or row["verdict"]
    if row["test"]:
        said += f", {row['test']} 10^{row['log10_p']:.0f}"
    best = max(row["concordance"].values(), default=0.0)
    said += f", {best:.2f}" if best else ""
    return said if is_right(row) else f"**{said}**"


def _of_relative(rows: Sequence[Row]) -> str:
    return "; ".join(map(_said, rows))


def _beside(rows: Sequence[Row]) -> str:
    return "; ".join(f"{_said(row)}; {'**lineage**' if row['accused'] else _link(row)}" for row in rows)


def _of_look_alikes(rows: Sequence[Row]) -> str:
    wrong = [f"**{row['source']}: {row['verdict']}**" for row in rows if not _is_right(row)]
    return "; ".join(wrong) or (f"none of {len(rows)}" if rows else "")


def _limits(rows: Sequence[Row], trained_on: Sequence[Row]) -> list[str]:
    """A row for each degree of each damage: how many of the layers of each model are found."""
    stems = list(dict.fromkeys(row["stem"] for row in rows))
    columns = [(stem, chosen) for stem in stems for chosen in (rows, trained_on)]
    head = [f"{stem}{', trained on' if chosen is trained_on else ''}" for stem, chosen in columns]
    body = []
    for damage in (*INTACT, *(name for names in DEGREES.values() for name in names)):
        found = [[row for row in chosen if (row["stem"], row["damage"]) == (stem, damage)] for stem, chosen in columns]
        body.append((damage, *(_count(one) if one else "" for one in found)))
    return [
        "Layers found, each scanned alone, of all layers of both seeds, and of those of a model that was trained on as",
        "long as before; all permuted, rescaled, folded and rotated. `sparse-N`: the smallest N% of each matrix are",
        "zero; `neurons-N`: the N% of the neurons of largest norms are kept (halved: 50%); `noise-N`: N% of a tensor's",
        "deviation.",
        "",
        *_grid(("damage", *head), body),
    ]


def _of_units(rows: Sequence[Row]) -> list[str]:
    """A row for each rewrite and damage of relatives and siblings; then one for each damage of look-alikes."""
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts[row["part"]].append(row)
    siblings = {(row["rewrite"], row["damage"]): row for row in parts["sibling"]}
    body = []
    for row in parts["descends"]:
        other = siblings.get((row["rewrite"], row["damage"]))
        of_other = "" if other is None else f"{_said_of_unit(other)}; {_unit_link(other)}"
        undone = ", ".join(row["undone"])
        body.append((row["rewrite"], row["damage"], _said_of_unit(row), row["relation"], undone, of_other))
    lines = _grid(("rewrite", "damage", "said", "relation", "undone", "of a sibling; which is called"), body)
    lines += ["", f"{_count(parts['descends'])} found; of the sibling {_count(parts['sibling'])}, and called its"]
    accused = sum(row["accused"] for row in parts["sibling"])
    lines += [
        f"descendant {accused} of {len(parts['sibling'])}: what made the two fine-tunes of their base has a cosine of"
    ]
    lines += [f"{rows[0]['alike']:.2f}.", ""]
    damages = dict.fromkeys(row["damage"] for row in parts["look-alike"])
    several = {"A-drawn": "drawn", "A-shuffled": "shuffled"}
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in parts["look-alike"]:
        groups[row["damage"], several.get(row["source"], "other seeds")].append(row)
    columns = ("other seeds", *several.values())
    lines += _grid(
        ("damage", *columns), ((one, *(_of_look_alikes(groups[one, column]) for column in columns)) for one in damages)
    )
    return [*lines, "", f"{_count(parts['look-alike'])} not matched."]


def _unit_link(row: Row) -> str:
    link = row["links"].get("sibling", "not listed")
    return f"**{link}**" if row["accused"] else str(link)


def _said_of_unit(row: Row) -> str:
    said = row["confidence"] or row["verdict"]
    if row["test"]:
        said += f", {row['test']} 10^{row['log10_p']:.0f}, {row['concordance']:.2f}"
    return said if row["found"] else f"**{said}**"


def _is_right(row: Row) -> bool:
    return bool(row["found"]) if "kind" in row else is_right(row)


def _count(rows: Sequence[Row]) -> str:
    return f"{sum(map(_is_right, rows))} of {len(rows)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewrites.table", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--units", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the page")
    options = parser.parse_args(arguments)
    latest: dict[tuple[str | int, ...], Row] = {}
    for line in options.rows.read_text("utf-8").splitlines():
        row = json.loads(line)
        latest[tuple(row[key] for key in ("part", "stem", "source", "layer", "rewrite", "damage"))] = row
    units = json.loads(options.units.read_text("utf-8"))
    options.out.write_text(page(list(latest.values()), units) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
