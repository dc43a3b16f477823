"""The zoo's folder: one safetensors file and one JSON manifest a model; what is there already is not trained again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from benchmarks.zoo.recipes import Spec, recipe_digest
from benchmarks.zoo.text import bigram_loss, text_digest, tokenizer
from benchmarks.zoo.train import train, validation_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.zoo.models import Weights


def weights_path(folder: Path, model: str) -> Path:
    return folder / f"{model}.safetensors"


def manifest_path(folder: Path, model: str) -> Path:
    return folder / f"{model}.json"


def load_weights(folder: Path, model: str) -> Weights:
    """Load a model's weights by id, float32; raises FileNotFoundError."""
    return load_file(weights_path(folder, model))


def load_manifest(folder: Path, model: str) -> dict[str, object]:
    """Load a model's manifest by id; raises FileNotFoundError."""
    manifest: dict[str, object] = json.loads(manifest_path(folder, model).read_text())
    return manifest


def is_cached(folder: Path, spec: Spec, by_id: dict[str, Spec]) -> bool:
    """Tell whether the model is there and was made by the very recipe that `spec` states."""
    if not (weights_path(folder, spec.id).exists() and manifest_path(folder, spec.id).exists()):
        return False
    return load_manifest(folder, spec.id).get("recipe_digest") == recipe_digest(spec, by_id)


def build(folder: Path, specs: Sequence[Spec], wanted: Sequence[str], report: Callable[[str], None]) -> None:
    """Train the wanted models that are not there yet, and the parents that they need.

    specs: a whole family, parents before children. wanted: ids. report: receives progress, a line at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_id = {spec.id: spec for spec in specs}
    needed = set(wanted)
    for spec in reversed(specs):
        if spec.id in needed:
            needed.update(spec.parents)
    done: set[str] = set()
    for spec in specs:
        if spec.id not in needed or spec.id in done:
            continue
        # A group's members are always trained together: a batched product may round in another way alone.
        group = [s for s in specs if s.group == spec.group] if spec.group else [spec]
        if not all(is_cached(folder, s, by_id) for s in group):
            _make(folder, group, by_id, report)
        done.update(s.id for s in group)


def _make(folder: Path, group: Sequence[Spec], by_id: dict[str, Spec], report: Callable[[str], None]) -> None:
    parents = {p: load_weights(folder, p) for spec in group for p in spec.parents}
    encoder = tokenizer(group[0].shape.vocabulary)
    _write(folder / f"tokenizer-{encoder.size}.json", encoder.to_json())
    for spec, weights in zip(group, train(group, parents, report), strict=True):
        loss = validation_loss(spec, weights)
        manifest = {
            "id": spec.id,
            "style": spec.shape.style.value,
            "family": spec.family,
            "kind": spec.kind,
            "shape": spec.shape.to_dict(),
            "schedule": asdict(spec.schedule),
            "seed": {"init": spec.init, "order": spec.order},
            "data": spec.data,
            "text_digest": text_digest(),
            "parents": list(spec.parents),
            "frozen": list(spec.frozen),
            "steps": spec.schedule.steps,
            "validation_loss": loss,
            "bigram_loss": bigram_loss(spec.data, spec.shape.vocabulary),
            "recipe_digest": recipe_digest(spec, by_id),
        }
        # The manifest goes last, so that a model without one is one that was interrupted.
        target = weights_path(folder, spec.id)
        partial = target.with_suffix(f".part{os.getpid()}")
        save_file(weights, partial, metadata={"format": "pt"})
        partial.replace(target)
        _write(manifest_path(folder, spec.id), json.dumps(manifest, indent=1))
        report(f"{spec.id} saved, validation loss {loss:.3f}, bigram {manifest['bigram_loss']:.3f}")


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(f".part{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
