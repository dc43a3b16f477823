"""Suspects made of trained models with every symmetry at once, checked to compute the same, damaged, without names."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from benchmarks.lineage.registries import stem_of
from benchmarks.retrieval.population import Kind
from benchmarks.rewrites.cases import damages, rewrites
from benchmarks.rewrites.make import Job, make_all, matches
from benchmarks.rewrites.parts import layer_patterns
from benchmarks.zoo.recipes import family

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.retrieval.population import Source
    from benchmarks.zoo.recipes import Spec

REWRITTEN = "rewritten"
_LAYER = ", one layer"
_LONG = "continued"
"""As long as the first training: a minute a suspect."""
_PIECES = ("intact", "fine-tuned", "4bit", "noise-5")
LAUNDERED = (
    *(f"{REWRITTEN}, {one.name}" for one in damages() if one.name != _LONG),
    *(f"{REWRITTEN}, {name}{_LAYER}" for name in _PIECES),
)
"""What is done to them; one layer alone has its second layer and no embeddings."""


def turns(population: Sequence[Source]) -> list[Source]:
    """The trained models, one of each recipe after the other, so that no recipe has most of the suspects."""
    by_stem: dict[str, list[Source]] = {}
    for one in population:
        if one.kind is Kind.TRAINED:
            by_stem.setdefault(one.shape, []).append(one)
    longest = max(map(len, by_stem.values()), default=0)
    return [members[turn % len(members)] for turn in range(longest) for members in by_stem.values()]


def laundered(source: Source, damage: str, number: int, seed: int, folder: Path) -> Path:
    """Write the suspect into an empty folder; returns its path. Raises ArithmeticError if it does not compute the same.

    ``number`` tells apart the suspects that are made of one model.
    """
    if source.path is None:
        raise ValueError(f"{source.name} is not of the zoo")
    family_name, quick = _family_of(source.name)
    specs = _specs(family_name, quick=quick)
    stem = stem_of(source.name)
    name = damage.removeprefix(f"{REWRITTEN}, ").removesuffix(_LAYER)
    spec = specs[source.name]
    job = Job(
        stem,
        source.name.removeprefix(f"{stem}-"),
        _base_of(spec, specs),
        next(one for one in rewrites(spec.shape.style) if one.name == "all"),
        next(one for one in damages() if one.name == name),
    )
    truth = make_all(source.path.parent, [job], folder, family_name=family_name, quick=quick, seed=seed + number)
    ((path, made),) = json.loads(truth.read_text())["suspects"].items()
    if not damage.endswith(_LAYER):
        return folder / path
    kept = {now: w for now, w in load_file(folder / path).items() if matches(made["tensors"][now], layer_patterns(1))}
    piece = folder / "piece.safetensors"
    save_file(kept, piece)
    return piece


def _base_of(spec: Spec, specs: dict[str, Spec]) -> Spec:
    """A fine-tune's schedule is short: damages state their lengths by that of the model's first training."""
    while spec.parent is not None:
        spec = specs[spec.parent]
    return spec


def _family_of(model: str) -> tuple[str, bool]:
    words = model.split("-")
    quick = words[0] == "quick"
    return words[1 if quick else 0], quick


@cache
def _specs(family_name: str, *, quick: bool) -> dict[str, Spec]:
    return {spec.id: spec for spec in family(family_name, quick=quick)}
