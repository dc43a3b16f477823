"""The suspects of deep comparisons, and one comparison of two models in memory."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from benchmarks.rewrites.cases import Site, damages, rewrite, rewrites
from benchmarks.zoo.models import Style, generator
from benchmarks.zoo.store import load_weights
from fingerprint.checkpoint import open_checkpoint
from fingerprint.undoing.undo import undo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from benchmarks.zoo.models import Shape, Weights
    from benchmarks.zoo.recipes import Spec
    from fingerprint.undoing.result import Undoing

KEY = "undoing"
"""Of the random streams of rewrites."""
_RELATIVES = ("A-ftx", "A-cont", "A-sameinit", "B")
_STEPS = 15
_ACTIVATIONS = {Style.LLAMA: "silu", Style.GEMMA: "gelu_pytorch_tanh", Style.GPT2: "gelu_new", Style.BERT: "gelu"}


class Beside(StrEnum):
    """What a suspect comes with: its names, a configuration too (A has one then, as well), or neither."""

    NAMES = "names"
    CONFIGURATION = "configuration"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A model that is compared with A. label: what was done."""

    label: str
    weights: Weights


def compared(ours: Weights, theirs: Weights, shape: Shape, folder: Path, beside: Beside) -> Undoing:
    """Write both models to files and compare these. Without names tensors come in any order."""
    paths = []
    if beside is Beside.NOTHING:
        names = sorted(theirs)
        random.Random(KEY).shuffle(names)
        theirs = {f"t{number}": theirs[name] for number, name in enumerate(names)}
    for label, weights in (("a", ours), ("b", theirs)):
        place = folder / label
        place.mkdir(exist_ok=True)
        save_file({name: w.contiguous() for name, w in weights.items()}, place / "model.safetensors")
        if beside is Beside.CONFIGURATION:
            (place / "config.json").write_text(json.dumps(configuration(shape)))
        paths.append(place if beside is Beside.CONFIGURATION else place / "model.safetensors")
    with open_checkpoint(paths[0]) as a, open_checkpoint(paths[1]) as b:
        found = undo(a, b)[0]
    for place in folder.glob("?/config.json"):
        place.unlink()
    return found


def configuration(shape: Shape) -> dict[str, object]:
    """What a ``config.json`` of the style says of a model."""
    return {
        "model_type": shape.style.value,
        "hidden_size": shape.width,
        "intermediate_size": shape.neurons,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "hidden_act": _ACTIVATIONS[shape.style],
    }


def suspects(zoo: Path, stem: str, specs: Mapping[str, Spec]) -> Iterator[Suspect]:
    """A after every rewrite, damages after all of them, and relatives as they are and rewritten."""
    first = specs[f"{stem}-A"]
    shape, data = first.shape, first.data
    ours = load_weights(zoo, first.id)
    cases = {one.name: one for one in rewrites(shape.style)}
    for name, case in cases.items():
        if name != "none":
            yield Suspect(f"A, {name}", rewrite(ours, shape, case, KEY).tensors)
    made = rewrite(ours, shape, cases["all"], KEY)
    tuned = data.replace("-pre", "-x")
    for damage in damages():
        if not damage.uses_sibling and damage.name not in {"intact", "continued"}:
            site = Site(shape, generator(damage.name), made.order, dict, tuned, tuned, _STEPS, first.schedule)
            done = {name: w.to(damage.dtype) for name, w in damage.apply(made.tensors, site).items()}
            yield Suspect(f"A, all, {damage.name}", done)
    for model in _RELATIVES:
        if f"{stem}-{model}" in specs:
            weights = load_weights(zoo, f"{stem}-{model}")
            yield Suspect(model, weights)
            yield Suspect(f"{model}, all", rewrite(weights, shape, cases["all"], KEY).tensors)


def wanted(stem: str, specs: Mapping[str, Spec]) -> list[str]:
    """Ids of the models that the suspects are made from."""
    return [name for model in ("A", *_RELATIVES) if (name := f"{stem}-{model}") in specs]
