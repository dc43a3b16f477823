"""Command: rewrite models of the zoo so that they compute the same, damage them, and write them without labels.

OUT/suspects holds safetensors files with random names in random order and nothing else; OUT/truth/truth.json what
is true of each. A scanner is shown the first folder only.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.lineage import derive_ops as ops
from benchmarks.lineage.derive_cases import Names
from benchmarks.lineage.derive_write import disguise, write_file
from benchmarks.rewrites.cases import Damage, Rewrite, Site, damages, further, rewrite, rewrites
from benchmarks.rewrites.tune import fine_tune
from benchmarks.zoo.models import Shape, Style, generator
from benchmarks.zoo.recipes import FAMILIES, QUICK, SIZES, STYLES, family
from benchmarks.zoo.store import load_weights, weights_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.zoo.models import Weights
    from benchmarks.zoo.recipes import Spec

SCHEMA = "rewrites-truth/1"
TUNING_STEPS = 60
QUICK_TUNING_STEPS = 5
SIBLING = "A-fty"
"""What ``A`` is merged with; every other source is merged with a fine-tune that is made of what it became."""
STAND_INS = {"A-drawn": ops.random_like, "A-shuffled": ops.shuffle}
"""Look-alikes of ``A`` that no training made: random tensors of equal means and deviations, and shuffled elements."""


@dataclass(frozen=True, slots=True)
class Job:
    """One suspect to be made: of the model ``stem-source`` or the stand-in for A of that name, rewritten, damaged."""

    stem: str
    source: str
    spec: Spec
    rewrite: Rewrite
    damage: Damage

    @property
    def shape(self) -> Shape:
        return self.spec.shape

    @property
    def key(self) -> str:
        return f"{self.stem}/{self.source}/{self.rewrite.name}/{self.damage.name}"

    @property
    def origin(self) -> str:
        """Id of the model whose weights it starts from."""
        return f"{self.stem}-{'A' if self.source in STAND_INS else self.source}"

    @property
    def needs(self) -> list[str]:
        """Ids of the models that it is made from."""
        merged = self.damage.uses_sibling and self.source == "A"
        return [self.origin, *([f"{self.stem}-{SIBLING}"] if merged else [])]


def plan(
    family_name: str,
    *,
    quick: bool,
    models: Sequence[str],
    sources: Sequence[str],
    only: Sequence[str],
    after: Sequence[str],
) -> list[Job]:
    """List the suspects whose shape, rewrite and damage match the globs ``models``, ``only`` and ``after``."""
    specs = {spec.id: spec for spec in family(family_name, quick=quick)}
    stems = {
        spec.id.removesuffix("-A"): spec for spec in specs.values() if spec.kind == "base" and spec.id[-2:] == "-A"
    }
    jobs = [
        Job(stem, source, spec, one, damage)
        for stem, spec in stems.items()
        if matches(stem, models)
        for source in sources
        for one in rewrites(spec.shape.style)
        if matches(one.name, only)
        for damage in (*damages(), *further())
        if matches(damage.name, after)
    ]
    return [job for job in jobs if all(model in specs for model in job.needs)]


def make_all(
    zoo: Path,
    jobs: Sequence[Job],
    out: Path,
    *,
    family_name: str,
    quick: bool = False,
    seed: int = 1,
    names: Names = Names.SCRAMBLED,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Make and write the suspects; returns the path of the truth.

    OUT must not hold suspects yet. Raises FileExistsError, FileNotFoundError (a model is not in the zoo), ValueError
    (nothing to do), ArithmeticError (a rewrite does not compute the same).
    """
    if not jobs:
        raise ValueError("no suspect is named like that")
    absent = sorted({model for job in jobs for model in job.needs if not weights_path(zoo, model).exists()})
    if absent:
        raise FileNotFoundError(f"{zoo} lacks {', '.join(absent)}: train them with python -m benchmarks.zoo")
    for part in ("suspects", "truth"):
        (out / part).mkdir(parents=True, exist_ok=False)
    suspects: dict[str, object] = {}
    for job in jobs:
        path, truth = _make(zoo, job, out, family_name, quick=quick, seed=seed, names=names)
        suspects[path] = truth
        report(f"{job.key} logits differ by {truth['logit_error']:.1e}")
    target = out / "truth" / "truth.json"
    content = {"schema": SCHEMA, "family": family_name, "quick": quick, "seed": seed, "suspects": suspects}
    target.write_text(json.dumps(content, indent=1))
    return target


def _make(
    zoo: Path, job: Job, out: Path, family_name: str, *, quick: bool, seed: int, names: Names
) -> tuple[str, dict[str, object]]:
    # One key for all damages and sources: the sibling of a merge has to be rewritten alike.
    key = f"rewrite/{seed}/{job.stem}/{job.rewrite.name}"
    made = rewrite(_source(zoo, job, seed), job.shape, job.rewrite, key)
    steps = QUICK_TUNING_STEPS if quick else TUNING_STEPS

    def sibling() -> Weights:
        if job.source == "A":
            return rewrite(load_weights(zoo, f"{job.stem}-{SIBLING}"), job.shape, job.rewrite, key).tensors
        stream = generator(f"sibling/{seed}/{job.key}")
        return fine_tune(made.tensors, job.shape, made.order, _data(family_name, "y", quick=quick), steps, stream)

    site = Site(
        shape=job.shape,
        random=generator(f"damage/{seed}/{job.key}"),
        order=made.order,
        sibling=sibling,
        # A fine-tune on the data of A-ftx of what was a sibling of A-ftx is a damage of its own.
        data=_data(family_name, "y" if job.source == SIBLING else "x", quick=quick),
        other=_data(family_name, "other", quick=quick),
        first=job.spec.schedule,
        steps=steps,
        shared=_data(family_name, "x", quick=quick),
    )
    tensors = job.damage.apply(made.tensors, site)
    shuffler = random.Random(f"names/{seed}/{job.key}")
    items = disguise({name: w.contiguous().to(job.damage.dtype) for name, w in tensors.items()}, names, shuffler)
    shuffler.shuffle(items)
    target = out / "suspects" / f"{shuffler.getrandbits(48):012x}.safetensors"
    if target.exists():
        raise FileExistsError(f"two suspects are both named {target.name}")
    write_file(target, items)
    truth: dict[str, object] = {
        "stem": job.stem,
        "source": job.source,
        "style": job.shape.style.value,
        "rewrite": job.rewrite.name,
        "rewritten": job.rewrite.done,
        "damage": job.damage.name,
        "damaged": job.damage.done,
        "names": names.value,
        "logit_error": made.error,
        "tensors": {item.name: item.was for item in items},
    }
    return str(target.relative_to(out)), truth


def _source(zoo: Path, job: Job, seed: int) -> Weights:
    weights = load_weights(zoo, job.origin)
    if job.source not in STAND_INS:
        return weights
    return STAND_INS[job.source](weights, generator(f"stand-in/{seed}/{job.stem}/{job.source}"))


def _data(family_name: str, part: str, *, quick: bool) -> str:
    return (QUICK if quick else SIZES).data(family_name, part)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the name is like one of the globs."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewrites", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / ".cache" / "zoo")
    parser.add_argument("--family", choices=(*FAMILIES, STYLES), default="a")
    parser.add_argument("--out", type=Path, help="a folder without suspects in it")
    parser.add_argument("--models", action="append", metavar="GLOB", help="shapes, such as 'a-llama-*'")
    parser.add_argument("--source", action="append", metavar="MODEL", help="what is rewritten: A, B, A-ftx, A-cont ...")
    parser.add_argument("--only", action="append", metavar="GLOB", help="rewrites")
    parser.add_argument("--damage", action="append", metavar="GLOB", help="damages; 'intact' is none")
    parser.add_argument("--names", choices=[one.value for one in Names], default=Names.SCRAMBLED.value)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="of the tiny models of the quick zoo")
    parser.add_argument("--list", action="store_true", help="list rewrites and damages")
    options = parser.parse_args(arguments)
    if options.list:
        for style in Style:
            for one in rewrites(style):
                print(f"{style.value}\t{one.name}\t{one.done}")
        for damage in (*damages(), *further()):
            print(f"damage\t{damage.name}\t{damage.done}")
        return 0
    if options.out is None:
        parser.error("--out is needed")
    torch.set_num_threads(1)
    try:
        jobs = plan(
            options.family,
            quick=options.quick,
            models=options.models or ["*"],
            sources=options.source or ["A"],
            only=options.only or ["*"],
            after=options.damage or [one.name for one in damages()],
        )
        truth = make_all(
            options.zoo,
            jobs,
            options.out,
            family_name=options.family,
            quick=options.quick,
            seed=options.seed,
            names=Names(options.names),
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (ArithmeticError, FileExistsError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(truth)
    return 0
