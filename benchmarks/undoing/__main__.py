"""Command: deep comparisons of relatives after rewrites and damages, and of independent seeds; writes the page."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.rewrites.cases import Site, damages, rewrite, rewrites
from benchmarks.zoo.models import generator
from benchmarks.zoo.recipes import Spec, family
from benchmarks.zoo.store import build, load_weights
from fingerprint.checkpoint import open_checkpoint
from fingerprint.undoing.undo import undo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.zoo.models import Weights
    from fingerprint.undoing.result import Undoing

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "undoing.md"
HEAD = """# Deep comparisons

`fp compare --deep` on small models of known descent (`make bench-undoing`): what is left of B after everything that
keeps the function was undone, as a share of its size. *Held out*: tensors from which nothing was estimated, neither the
rotation nor an order, sign or scale (down projections of every second layer, attention outputs, an untied output head
where the tokens kept their numbers). *Own order*: tensors from which nothing but the order, signs and scales of their
own neurons or heads was estimated. *Misplaced*: the same held-out tensors with every row replaced by its neighbour's.
"Nameless" suspects have all names replaced, tensors in any order and no configuration.
"""


def compared(ours: Weights, theirs: Weights, folder: Path, *, nameless: bool) -> Undoing:
    paths = []
    if nameless:
        theirs = {f"t{i}": theirs[name] for i, name in enumerate(sorted(theirs, key=lambda n: n[::-1]))}
    for label, weights in (("a", ours), ("b", theirs)):
        paths.append(folder / f"{label}.safetensors")
        save_file({name: w.contiguous() for name, w in weights.items()}, paths[-1])
    with open_checkpoint(paths[0]) as a, open_checkpoint(paths[1]) as b:
        return undo(a, b)[0]


def suspects(zoo: Path, stem: str, specs: Mapping[str, Spec], *, quick: bool) -> Iterator[tuple[str, Weights]]:
    """Relatives as they are, A after every rewrite, and damages after all of them."""
    shape = specs[f"{stem}-A"].shape
    ours = load_weights(zoo, f"{stem}-A")
    cases = {one.name: one for one in rewrites(shape.style)}
    for name, case in cases.items():
        if name != "none":
            yield f"A, {name}", rewrite(ours, shape, case, "undoing").tensors
    made = rewrite(ours, shape, cases["all"], "undoing")
    for damage in damages():
        if not damage.uses_sibling and damage.name != "intact":
            site = Site(shape, generator(damage.name), made.order, dict, f"a-x{'-small' if quick else ''}", 15)
            done = {name: w.to(damage.dtype) for name, w in damage.apply(made.tensors, site).items()}
            yield f"A, all, {damage.name}", done
    for model in ("A-ftx", "A-cont", "A-sameinit", "B"):
        weights = load_weights(zoo, f"{stem}-{model}")
        yield model, weights
        yield f"{model}, all", rewrite(weights, shape, cases["all"], "undoing").tensors


def number(value: float) -> str:
    return f"{value:.1e}" if value < 0.01 else f"{value:.2f}"


def row(name: str, found: list[Undoing]) -> str:
    cells = [name]
    for one in found:
        held, ordered = one.held_out, one.ordered
        cells += [
            "-" if held is None else number(held.residual),
            "-" if ordered is None else number(ordered.residual),
            "-" if held is None else number(held.control),
            "yes" if one.recovered else "no",
        ]
    return "| " + " | ".join(cells) + " |"


def null(zoo: Path, stem: str, ids: list[str], folder: Path) -> str:
    held, control, ordered, recovered = [], [], [], 0
    for one, other in permutations(ids, 2):
        found = compared(load_weights(zoo, one), load_weights(zoo, other), folder, nameless=False)
        if found.held_out is None or found.ordered is None:
            continue
        held.append(found.held_out.residual)
        control.append(found.held_out.control)
        ordered.append(found.ordered.residual)
        recovered += found.recovered
    ratio = np.array(held) / np.array(control)
    values = [np.min(held), np.median(held), np.max(held), np.min(ordered), np.median(ordered), np.min(ratio)]
    return f"| {stem} | {len(held)} | " + " | ".join(f"{value:.2f}" for value in values) + f" | {recovered} |"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.undoing", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / ".cache" / "zoo")
    parser.add_argument("--quick", action="store_true", help="of the tiny models of the quick zoo, trained if absent")
    parser.add_argument("--seeds", type=int, default=8, help="independent seeds of one recipe, all ordered pairs")
    parser.add_argument("-o", "--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.process_time()
    specs = {spec.id: spec for spec in family("a", quick=options.quick)}
    stems = sorted({name[:-2] for name in specs if re.search(r"a-(llama|gpt2)-\d+-A$", name)})
    populations: dict[str, list[str]] = {}
    for name in specs:
        if match := re.fullmatch(r"(.*pop-.*)-s\d\d", name):
            populations.setdefault(match[1], []).append(name)
    populations = {stem: ids[: options.seeds] for stem, ids in populations.items()}
    models = ("A", "B", "A-ftx", "A-cont", "A-sameinit")
    wanted = [f"{stem}-{model}" for stem in stems for model in models]
    wanted += [name for ids in populations.values() for name in ids]
    build(options.zoo, list(specs.values()), wanted, lambda line: print(line, file=sys.stderr))
    lines = [HEAD]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stem in stems:
            shape = specs[f"{stem}-A"].shape
            lines += [
                f"## {stem}: {shape.layers} layers, {shape.width} channels, {shape.neurons} neurons\n",
                "| B | held out | own order | misplaced | recovered | nameless: held out | own order | misplaced | "
                "recovered |",
                "|---|---|---|---|---|---|---|---|---|",
            ]
            ours = load_weights(options.zoo, f"{stem}-A")
            for label, weights in suspects(options.zoo, stem, specs, quick=options.quick):
                found = [compared(ours, weights, folder, nameless=nameless) for nameless in (False, True)]
                lines.append(row(label, found))
                print(lines[-1], file=sys.stderr, flush=True)
            lines.append("")
        lines += [
            "## Independent seeds of one recipe\n",
            "Every ordered pair, nothing rewritten. *Ratio*: held out over misplaced; recovered is said below 0.75.\n",
            "| population | pairs | least held out | median | largest | least own order | median | least ratio | "
            "recovered |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [null(options.zoo, stem, ids, folder) for stem, ids in populations.items()]
    lines.append(f"\n{time.process_time() - started:.0f} s of CPU time, x86_64, 2 cores.")
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
