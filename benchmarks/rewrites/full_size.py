"""Command: a real model of full size, rewritten, quantised and nameless, looked for in a registry of 1,000 models.

The model is SmolLM2-135M, as the ``gguf`` package dequantises a published file of it. Beside its signature the registry
holds trained and synthetic models, and look-alikes whose tensors have its shapes, means and deviations. Writes
``full-size.md`` to OUT. Exit status 1 if a suspect is missed, or a look-alike matched.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from benchmarks.containers.smollm2 import HEADS, KEY_HEADS, LAYERS, dequantised
from benchmarks.corpus import SMOLLM2, fetch
from benchmarks.lineage import derive_ops as ops
from benchmarks.lineage.derive_cases import Names
from benchmarks.lineage.derive_write import disguise, write_file
from benchmarks.retrieval.measure import signatures_of
from benchmarks.retrieval.population import Kind, sources
from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.rewrites.forward import Constants
from benchmarks.rewrites.full_size_page import Row, is_right, page
from benchmarks.zoo.models import Shape, Style, generator
from benchmarks.zoo.recipes import FAMILIES
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.vocabulary import Depth
from signatures.identify import LEAST_CANDIDATES
from signatures.registry import Registry
from signatures.scan import scan_path
from signatures.search import find_candidates
from signatures.signature import decode, encode, sign
from signatures.suspect import open_suspect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Generator

    from benchmarks.zoo.models import Weights

ROOT = Path(__file__).parents[2]
MODELS = 1000
TOGETHER = 100
TOLERANCE = 1e-4
"""Of logits after thirty layers: rounding a rewritten look-alike of random weights to float32 left 1.2e-5."""
LOOK_ALIKES = ("random-1", "random-2", "shuffled-1")
"""Registered beside the model: random tensors of equal means and deviations, and its own elements shuffled."""


@dataclass(frozen=True, slots=True)
class Model:
    """The model that is looked for, its weights float32 under the names of Hugging Face."""

    name: str
    weights: Weights
    shape: Shape
    constants: Constants


@dataclass(frozen=True, slots=True)
class Damage:
    """What is done after a rewrite, and the element type of the file."""

    done: str
    dtype: torch.dtype
    apply: Callable[[Weights, Generator], Weights]


def _rounded(weights: Weights, _: Generator) -> Weights:
    return ops.quantise(weights, Style.LLAMA, 4, 32, symmetric=False)


DAMAGES = {
    "none": Damage("nothing", torch.float32, lambda w, _: w),
    "bf16": Damage("cast to bf16", torch.bfloat16, lambda w, _: w),
    "4bit": Damage("layers rounded to 4 bits in groups of 32, stored in half precision", torch.float16, _rounded),
    "4bit-all": Damage(
        "embeddings and output head rounded to 4 bits too, stored in bf16",
        torch.bfloat16,
        lambda w, _: ops.quantise(w, Style.LLAMA, 4, 32, symmetric=False, only_layers=False),
    ),
    "4bit-noise": Damage(
        "layers rounded to 4 bits, then noise of 5% of each tensor's deviation, stored in bf16",
        torch.bfloat16,
        lambda w, r: ops.add_noise(_rounded(w, r), 0.05, r),
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A suspect to be made. of: a look-alike, or "" for the model itself; rewrite and damage by name."""

    of: str
    rewrite: str
    damage: str


CASES = (
    *(Case("", "laundered", damage) for damage in DAMAGES),
    Case("", "all-but-vocabulary", "4bit"),
    Case("random-3", "laundered", "4bit"),
    Case("shuffled-2", "laundered", "4bit"),
)
"""The look-alikes among them are not registered."""


def smollm2(cache: Path, work: Path) -> Model:
    """SmolLM2-135M-Instruct; its constants are those that the GGUF file states."""
    weights = load_file(dequantised(fetch(SMOLLM2, cache)["smollm2"], work))
    vocabulary, width = weights["model.embed_tokens.weight"].shape
    neurons = len(weights["model.layers.0.mlp.up_proj.weight"])
    shape = Shape(Style.LLAMA, width, LAYERS, HEADS, KEY_HEADS, neurons, vocabulary, positions=8192, tied=True)
    return Model("smollm2-135m", weights, shape, Constants(rotary_base=1e5, epsilon=1e-5))


def look_alike(weights: Weights, name: str) -> Weights:
    """``random-N``: normal tensors of each one's mean and deviation; ``shuffled-N``: each one's elements shuffled."""
    change = ops.random_like if name.startswith("random") else ops.shuffle
    return change(weights, generator(f"full-size/{name}"))


def fill(registry: Registry, model: Model, zoo: Path | None, family: str, models: int, work: Path) -> int:
    """Register the model, its look-alikes and others, ``models`` in all, but for those that are there already.

    Returns how many of the others are trained ones.
    """
    population = sources(zoo, models - 1 - len(LOOK_ALIKES), [family])
    held = {record.name for record in registry.models()}
    wanted = [source for source in population if source.name not in held]
    made = signatures_of(wanted, work)
    for start in range(0, len(wanted), TOGETHER):
        with registry.together():
            for source in wanted[start : start + TOGETHER]:
                registry.register(decode(next(made)), name=source.name)
    for name in (model.name, *LOOK_ALIKES):
        if name not in held:
            path = work / "registered.safetensors"
            save_file(model.weights if name == model.name else look_alike(model.weights, name), path)
            with open_checkpoint(path) as checkpoint:
                registry.register(sign(fingerprint(checkpoint, workers=1)), name=name)
            path.unlink()
    return sum(source.kind is Kind.TRAINED for source in population)


def scan_all(registry: Registry, model: Model, cases: Sequence[Case], work: Path) -> Iterator[Row]:
    """Make and scan the suspects, one at a time. Raises ArithmeticError if a rewrite does not compute the same."""
    known = {one.name: one for one in rewrites(model.shape.style)}
    for (of, name), group in groupby(cases, lambda case: (case.of, case.rewrite)):
        weights = look_alike(model.weights, of) if of else model.weights
        made = rewrite(weights, model.shape, known[name], f"full-size/{of}/{name}", model.constants, TOLERANCE)
        for case in group:
            damage = DAMAGES[case.damage]
            path = _write(made.tensors, case, damage, work)
            yield _scanned(registry, model, case, path, known[name].done, made.error)
            path.unlink()


def _write(rewritten: Weights, case: Case, damage: Damage, work: Path) -> Path:
    """The damaged model under random names, in random order and nothing else beside it."""
    key = f"full-size/{case.of}/{case.rewrite}/{case.damage}"
    tensors = {name: w.to(damage.dtype) for name, w in damage.apply(rewritten, generator(key)).items()}
    shuffler = random.Random(key)
    items = disguise(tensors, Names.SCRAMBLED, shuffler)
    shuffler.shuffle(items)
    path = work / f"{shuffler.getrandbits(48):012x}.safetensors"
    write_file(path, items)
    return path


def _scanned(registry: Registry, model: Model, case: Case, path: Path, rewritten: str, error: float) -> Row:
    worked = time.process_time()
    report = scan_path(registry, path)
    worked = time.process_time() - worked
    # The search step once more, alone, at the depth where the scan ended.
    with open_suspect(path) as opened:
        theirs = opened.at(Depth(report.suspect.depth)).fingerprint
    started = time.perf_counter()
    names = [one.model.name for one in find_candidates(registry, theirs, LEAST_CANDIDATES)]
    return Row(
        of=case.of,
        expected="" if case.of else model.name,
        rewrite=case.rewrite,
        rewritten=rewritten,
        damage=case.damage,
        damaged=DAMAGES[case.damage].done,
        error=error,
        report=report,
        work=worked,
        search=time.perf_counter() - started,
        place=names.index(model.name) if model.name in names else None,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewrites.full_size", description=__doc__)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache", help="where downloads are kept")
    parser.add_argument("--zoo", type=Path, default=ROOT / ".cache" / "zoo", help="trained models, where there are any")
    parser.add_argument("--family", choices=FAMILIES, default="a", help="which of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the page")
    parser.add_argument("--registry", type=Path, help="where to build the registry, or to go on with building it")
    parser.add_argument("--models", type=int, default=MODELS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:7.1f}s {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        work = Path(folder)
        model = smollm2(options.cache, work)
        with Registry.open(options.registry or work / "registry") as registry:
            trained = fill(registry, model, options.zoo, options.family, options.models, work)
            kept = len(encode(registry.load_signature(model.name)))
            say(f"{registry.count()} models are registered")
            options.out.mkdir(parents=True, exist_ok=True)
            rows = []
            for row in scan_all(registry, model, CASES, work):
                rows.append(row)
                say(row.line())
                text = page(rows, model.shape, trained=trained, look_alikes=len(LOOK_ALIKES), kept=kept)
                (options.out / "full-size.md").write_text(text, encoding="utf-8")
    return 0 if all(map(is_right, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
