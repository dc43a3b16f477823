"""Command: train vision transformers, rewrite and damage them, scan them end to end, write ``vit.md`` to OUT.

Of the seeds the first two are registered. Suspects of the first one, with every rewrite alone and with all of them and
damage, must be found; those of other seeds, and of tensors that were drawn or shuffled, must not be. A fine-tune of the
first is registered beside it for suspects of another fine-tune, which must be found as the first one's and not as
descendants of that sibling. Exit status 1 if one is not as it must be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from benchmarks.lineage import derive_ops as ops
from benchmarks.retrieval.report import machine
from benchmarks.rewrites.cases import every_second_layer, largest_neurons, rewrites
from benchmarks.units.run import BASE, SIBLING, score, write_disguised
from benchmarks.vit.model import SHAPE, STEPS, difference, published, train
from benchmarks.zoo.models import Style, generator
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from signatures.registry import Registry
from signatures.scan import scan_path
from signatures.signature import sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.zoo.models import Weights

    Damage = Callable[[Weights, str], Weights]

ROOT = Path(__file__).parents[2]
SEEDS = 5
TUNING = 60
TUNING_RATE = 3e-4
TOLERANCE = 1e-4
ALL = "all-but-vocabulary"
"""Numbers of a patch are in their places, as pictures are: there is no vocabulary to permute."""


def _merged(weights: Weights, key: str, *, steps: int) -> Weights:
    return ops.linear((weights, train(f"{key}/other", weights, steps=steps, rate=TUNING_RATE)), (0.5, 0.5))


def damages(steps: int = STEPS) -> dict[str, Damage]:
    """What is done after a rewrite; ``steps`` are those of the first training."""
    tuning = min(TUNING, steps)
    return {
        "intact": lambda w, _: w,
        "fine-tuned": lambda w, key: train(key, w, steps=tuning, rate=TUNING_RATE),
        "continued": lambda w, key: train(key, w, steps=steps, noise=1.0),
        "bf16": lambda w, _: {name: value.bfloat16().float() for name, value in w.items()},
        "8bit": lambda w, _: ops.quantise(w, Style.GPT2, 8, 32, symmetric=False),
        "4bit": lambda w, _: ops.quantise(w, Style.GPT2, 4, 32, symmetric=False),
        "noise-5": lambda w, key: ops.add_noise(w, 0.05, generator(key)),
        "sparse-50": lambda w, _: ops.prune_small(w, 0.5),
        "merged": partial(_merged, steps=tuning),
        "layers-dropped": lambda w, _: every_second_layer(w, Style.GPT2),
        "neurons-halved": lambda w, _: largest_neurons(w, SHAPE, 0.5),
    }


def rewritten(weights: Weights, name: str, key: str) -> tuple[Weights, float]:
    """The model rewritten, float32, and how far its logits went. Raises ArithmeticError if too far."""
    case = next(one for one in rewrites(Style.GPT2) if one.name == name)
    out = {tensor: w.double() for tensor, w in weights.items()}
    for number, step in enumerate(case.steps):
        out = step(out, SHAPE, generator(f"{key}/{number}"))
    made = {tensor: w.float().contiguous() for tensor, w in out.items()}
    error = difference(weights, made)
    if not error <= TOLERANCE:
        raise ArithmeticError(f"{name}: the logits differ by {error:.3g} of their deviation")
    return made, error


def suspects(
    seeds: Sequence[Weights], tune: Weights, steps: int
) -> Iterator[tuple[str, str, str, str, Weights, float]]:
    """Part, source, rewrite, damage, weights and error of each."""
    alone = [one.name for one in rewrites(Style.GPT2) if not one.tokens]
    drawn, shuffled = (change(seeds[0], generator("vit/stand-in")) for change in (ops.random_like, ops.shuffle))
    others = {"A-drawn": drawn, "A-shuffled": shuffled, **{f"seed{n}": w for n, w in enumerate(seeds) if n > 1}}
    for part, source, weights in (
        ("descends", "A", seeds[0]),
        ("sibling", "A-fty", tune),
        *(("look-alike", source, weights) for source, weights in others.items()),
    ):
        for name in alone if part != "look-alike" else ["none", ALL]:
            made, error = rewritten(weights, name, f"vit/{source}/{name}")
            # Look-alikes that are trained: the first one is damaged too.
            whole = name == ALL and source not in {f"seed{n}" for n in range(3, len(seeds))}
            for damage, apply in damages(steps).items():
                if damage == "intact" or whole:
                    key = f"vit/{source}/{name}/{damage}"
                    yield part, source, name, damage, apply(made, key), error


def run(zoo: Path, report: Callable[[str], None], *, seeds: int = SEEDS, steps: int = STEPS) -> list[dict[str, Any]]:
    """All rows; models that are not in ``zoo`` yet are trained."""
    zoo.mkdir(parents=True, exist_ok=True)

    def model(name: str, make: Callable[[], Weights]) -> Weights:
        path = zoo / f"vit-{name}.safetensors"
        if not path.exists():
            save_file(make(), path)
        return load_file(path)

    tuning = min(TUNING, steps)
    trained = [model(f"{n}", partial(train, f"vit/seed{n}", steps=steps)) for n in range(seeds)]
    one, other = (
        model(f"0-{name}", partial(train, f"vit/{name}", trained[0], steps=tuning, rate=TUNING_RATE, noise=noise))
        for name, noise in (("ftx", 0.4), ("fty", 1.0))
    )
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Registry.open(Path(folder) / "registry", create=True) as registry,
        Registry.open(Path(folder) / "relatives", create=True) as relatives,
    ):
        path = Path(folder) / "model.safetensors"
        for where, name, weights in (
            (registry, BASE, trained[0]),
            (registry, "other", trained[1]),
            (relatives, BASE, trained[0]),
            (relatives, SIBLING, one),
        ):
            save_file(published(weights), path)
            with open_checkpoint(path) as checkpoint:
                signature = sign(fingerprint(checkpoint, workers=1))
            where.register(signature, name=name, base=BASE if name == SIBLING else None)
        for part, source, rewrite, damage, weights, error in suspects(trained, other, steps):
            write_disguised(path, published(weights), torch.float32, f"{source}/{rewrite}/{damage}")
            found = score(scan_path(registry if part == "descends" else relatives, path), part)
            rows.append({"part": part, "source": source, "rewrite": rewrite, "damage": damage, "error": error} | found)
            report(f"{part} {source} {rewrite}/{damage}: {_said(rows[-1])}{'' if found['found'] else '   <<<'}")
    return rows


def _said(row: dict[str, Any]) -> str:
    if not row["first"]:
        return str(row["verdict"])
    agreed = f", {row['concordance']:.2f}" if row["concordance"] else ""
    return f"{row['confidence']}: {row['first']}, {row['test']} 10^{row['log10_p']:.1f}{agreed}"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page in Markdown."""
    lines = [
        "# Vision transformers",
        "",
        f"Made by `make bench-vit`; {machine()}. ViTs of {SHAPE.layers} layers, {SHAPE.width} channels and "
        f"{SHAPE.neurons} neurons, {SHAPE.positions} positions, trained on drawn pictures. Every rewrite is checked to "
        "compute the same; suspects have random names in random order. Suspects of the first seed are scanned against "
        "the first two; those of a fine-tune of it (on pictures with more noise) against it and another fine-tune "
        "(with less); look-alikes (other seeds, random and shuffled tensors) against the same. The only frames are "
        "those of positions and of the layers themselves. What is not as it must be is in bold.",
        "",
    ]
    for part, title in (
        ("descends", "Relatives"),
        ("sibling", "Siblings"),
        ("look-alike", "Look-alikes: not matched"),
    ):
        chosen = [row for row in rows if row["part"] == part]
        right = sum(row["found"] for row in chosen)
        lines += [f"## {title}", "", "| of | rewrite | then | said |", "|---|---|---|---|"]
        for row in chosen:
            said = _said(row) if row["found"] else f"**{_said(row)}**"
            lines.append(f"| {row['source']} | {row['rewrite']} | {row['damage']} | {said} |")
        lines += ["", f"{right} of {len(chosen)} as they must be.", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vit", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=ROOT / ".cache" / "units")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = run(options.zoo, lambda line: print(line, file=sys.stderr, flush=True))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "vit.md").write_text(page(rows), encoding="utf-8")
    return 0 if all(row["found"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
