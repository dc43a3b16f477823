"""Command: deep comparisons of relatives after rewrites and damages, and of independent seeds; writes the page."""

from __future__ import annotations

import argparse
import re
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.undoing.cases import Beside, compared, suspects, wanted
from benchmarks.undoing.full_size import compare_all
from benchmarks.zoo.recipes import FAMILIES, STYLES, Spec, family
from benchmarks.zoo.store import build, load_weights
from fingerprint.undoing.result import Use

if TYPE_CHECKING:
    from benchmarks.undoing.full_size import Compared
    from fingerprint.undoing.result import Undoing

ROOT = Path(__file__).parents[2]
_CONFIGURED = ("A, laundered", "A, all", "A, all, 4bit")
"""Suspects that are compared with a configuration too."""
_BASE = re.compile(r".*-(llama|gpt2|gemma|bert)-\d+(?=-A$)")
_SEED = re.compile(r"(.*-pop-.*)-s\d\d")
HEAD = """# Deep comparisons

`fp compare --deep` on models of known descent (`make bench-undoing`): what is left of B after everything that
keeps the function was undone, as a share of its size. *Held out*: tensors from which nothing was estimated, neither the
rotation nor an order, sign or scale (down projections of every second layer, attention outputs). *Own order*: tensors
from which nothing but the order, signs and scales of their own neurons or heads was estimated. Tables of tokens and
positions are neither, and count only where there is nothing else. *Misplaced*: the same held-out tensors with every
row replaced by its neighbour's.
*Halves*: how many halves of attention blocks were compared, of two in a layer (query and key, value and output).
"Nameless" suspects have all names replaced and tensors in any order. Neither has a configuration.

What is left of fine-tuned models ("A-ftx", and "A-cont" on other data for as long as A) is the training; "A-sameinit"
is another training from A's initialisation, "B" one from another. Rewrites are those of [rewrites.md](rewrites.md).
"""
COLUMNS = ("held out", "own order", "misplaced", "halves", "recovered")


@dataclass(slots=True)
class Page:
    """The page as far as it is measured."""

    path: Path
    lines: list[str] = field(default_factory=lambda: [HEAD])

    def add(self, *lines: str) -> None:
        """Write the page anew with more lines, and say them."""
        self.lines += lines
        print(*lines, sep="\n", file=sys.stderr, flush=True)
        self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def table(*columns: str) -> tuple[str, str]:
    """The first two lines."""
    return "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"


def number(value: float) -> str:
    return f"{value:.1e}" if value < 0.01 else f"{value:.2f}"


def cells(found: Undoing) -> list[str]:
    """Those of ``COLUMNS``."""
    held, ordered = found.held_out, found.ordered
    return [
        "-" if held is None else number(held.residual),
        "-" if ordered is None else number(ordered.residual),
        "-" if held is None else number(held.control),
        str(found.attention),
        "yes" if found.recovered else "no",
    ]


def row(*values: str) -> str:
    return "| " + " | ".join(values) + " |"


def relatives(page: Page, zoo: Path, stem: str, specs: dict[str, Spec], folder: Path) -> list[str]:
    """The section of one model; rows of those that are compared with a configuration too come back."""
    shape = specs[f"{stem}-A"].shape
    page.add(
        f"## {stem}: {shape.layers} layers, {shape.width} channels, {shape.neurons} neurons\n",
        *table("B", *COLUMNS, f"nameless: {COLUMNS[0]}", *COLUMNS[1:]),
    )
    ours = load_weights(zoo, f"{stem}-A")
    configured = []
    for one in suspects(zoo, stem, specs):
        found = [compared(ours, one.weights, shape, folder, beside) for beside in (Beside.NAMES, Beside.NOTHING)]
        page.add(row(one.label, *cells(found[0]), *cells(found[1])))
        if one.label in _CONFIGURED:
            told = compared(ours, one.weights, shape, folder, Beside.CONFIGURATION)
            configured.append(row(stem, one.label, *cells(found[0]), *cells(told)))
    page.add("")
    return configured


def null(zoo: Path, stem: str, ids: list[str], specs: dict[str, Spec], folder: Path) -> str:
    held, control, ordered, recovered = [], [], [], 0
    kinds: dict[str, list[tuple[float, str]]] = {Use.HELD_OUT: [], Use.TABLES: []}
    for one, other in permutations(ids, 2):
        weights = [load_weights(zoo, name) for name in (one, other)]
        found = compared(weights[0], weights[1], specs[one].shape, folder, Beside.NAMES)
        if found.held_out is None or found.ordered is None:
            continue
        held.append(found.held_out.residual)
        control.append(found.held_out.control)
        ordered.append(found.ordered.residual)
        recovered += found.recovered
        for left in found.residuals:
            if left.use in kinds and not left.kind.endswith("circuit"):
                told = f"{left.kind} {left.residual:.2f} of {left.control:.2f}"
                kinds[left.use].append((left.residual / left.control, told))
    ratio = np.array(held) / np.array(control)
    values = [np.min(held), np.median(held), np.max(held), np.min(ordered), np.median(ordered), np.min(ratio)]
    nearest = (min(found)[1] if found else "-" for found in kinds.values())
    return row(stem, str(len(held)), *(f"{value:.2f}" for value in values), str(recovered), *nearest)


def full_size_row(one: Compared) -> str:
    return row(one.done, *cells(one.found), f"{one.seconds:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.undoing", description=__doc__)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache", help="where downloads and trained models are")
    parser.add_argument("--family", choices=FAMILIES, default="a", help="of which the narrow Llama is compared")
    parser.add_argument("--quick", action="store_true", help="tiny models, trained in seconds, and none of full size")
    parser.add_argument("--seeds", type=int, default=5, help="independent seeds of one recipe, all ordered pairs")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "benchmarks" / "undoing.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started, zoo = time.process_time(), options.cache / "zoo"
    stems, populations, specs = [], {}, {}
    for name in (STYLES, options.family):
        listed = {spec.id: spec for spec in family(name, quick=options.quick)}
        bases = [match[0] for one in listed if (match := _BASE.match(one))]
        narrow = min(listed[f"{stem}-A"].shape.width for stem in bases)
        kept = [stem for stem in bases if name == STYLES or stem.endswith(f"llama-{narrow}")]
        found: dict[str, list[str]] = {}
        for one in listed:
            if match := _SEED.fullmatch(one):
                found.setdefault(match[1], []).append(one)
        found = {stem: ids[: options.seeds] for stem, ids in found.items()}
        models = [one for stem in kept for one in wanted(stem, listed)]
        models += [one for ids in found.values() for one in ids]
        build(zoo, list(listed.values()), models, lambda line: print(line, file=sys.stderr))
        stems += kept
        populations |= found
        specs |= listed
    page = Page(options.out)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        configured = [one for stem in stems for one in relatives(page, zoo, stem, specs, folder)]
        page.add(
            "## With a configuration\n",
            "Named suspects again, now with a `config.json` beside both models. It tells how many heads there are, "
            "which is\notherwise looked for among usual sizes of heads, and whether gains are stored less one.\n",
            *table("A", "B", *COLUMNS, f"configured: {COLUMNS[0]}", *COLUMNS[1:]),
            *configured,
            "",
        )
        page.add(
            "## Independent seeds of one recipe\n",
            "Every ordered pair, nothing rewritten. *Ratio*: held out over misplaced; recovered is said below 0.8.\n"
            "*Nearest*: the kind of held-out tensor, and the table, with the least ratio in any pair. Tables of\n"
            "tokens are alike after a rotation even where nothing is shared but the text.\n",
            *table("population", "pairs", "least held out", "median", "largest", "least own order", "median",
                   "least ratio", "recovered", "nearest", "nearest table"),
        )  # fmt: skip
        for stem, ids in populations.items():
            page.add(null(zoo, stem, ids, specs, folder))
        page.add("")
        if not options.quick:
            page.add(
                "## A model of full size\n",
                "SmolLM2-135M against itself rewritten: 30 layers, 576 channels, 1,536 neurons. CPU time of one core, "
                "with writing\nand reading the two files.\n",
                *table("B", *COLUMNS, "time"),
            )
            for one in compare_all(options.cache, folder):
                page.add(full_size_row(one))
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            page.add(f"\nMost memory: {most:.1f} GB, of which most is the rewrite's, computed in float64.\n")
    page.add(f"{time.process_time() - started:.0f} s of CPU time, x86_64, 2 cores.")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
