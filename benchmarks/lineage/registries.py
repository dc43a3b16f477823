"""Registries for the scans: what each suspect asks for, and every model of another shape as a look-alike."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.lineage.derive import kits
from benchmarks.lineage.derive_table import all_cases
from benchmarks.zoo.recipes import Spec, family
from benchmarks.zoo.store import weights_path
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from signatures.registry import Registry
from signatures.signature import Signature, sign

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_STEM = re.compile(r"(.+?-\d+)-")


@dataclass(slots=True)
class Plan:
    """One registry and who is scanned against it.

    ``registered``: ids of the models that the truth names, ancestors first. ``lookalikes``: stems of which every model
    is registered too. ``suspects``: paths below the folder of the derived suspects.
    """

    registered: tuple[str, ...]
    lookalikes: tuple[str, ...]
    suspects: list[str] = field(default_factory=list)


def stem_of(model: str) -> str:
    """What the ids of all models of one shape begin with, such as ``a-llama-192``."""
    found = _STEM.match(model)
    if found is None:
        raise ValueError(f"{model!r} is no id of the zoo")
    return found[1]


def plan(truth: Mapping[str, Any], zoo: Path) -> list[Plan]:
    """Group the suspects of a truth file by what must be registered for them and what must not.

    A model of the suspect's own shape is registered only where the truth says so, and none of a shape that the suspect
    was made from: such models are no look-alikes.
    """
    specs = family(truth["family"], quick=truth["quick"])
    order = {spec.id: number for number, spec in enumerate(specs)}
    present = sorted({stem_of(spec.id) for spec in specs if weights_path(zoo, spec.id).exists()})
    made_from = _made_from(zoo, specs)
    plans: dict[tuple[tuple[str, ...], tuple[str, ...]], Plan] = {}
    for path, suspect in truth["suspects"].items():
        registered = tuple(sorted(suspect["registered"], key=lambda model: order.get(model, len(order))))
        related = {suspect["stem"]} | made_from[suspect["stem"], suspect["case"]]
        lookalikes = tuple(stem for stem in present if stem not in related)
        plans.setdefault((registered, lookalikes), Plan(registered, lookalikes)).suspects.append(path)
    return list(plans.values())


def _made_from(zoo: Path, specs: Sequence[Spec]) -> dict[tuple[str, str], set[str]]:
    """Stems of the models that each case of each shape reads, by stem and case."""
    return {
        (kit.stem, case.name): {stem_of(model) for model in case.models(kit)}
        for kit in kits(zoo, specs, "")
        for case in all_cases()
        if case.is_for(kit)
    }


class Builder:
    """Makes the registries of plans in ``folder``, every model measured once."""

    def __init__(self, zoo: Path, derived: Path, folder: Path, specs: Sequence[Spec]) -> None:
        self._zoo = zoo
        self._derived = derived
        self._folder = folder
        self._models: dict[str, list[str]] = {}
        for spec in specs:
            if weights_path(zoo, spec.id).exists():
                self._models.setdefault(stem_of(spec.id), []).append(spec.id)
        self._bundles: dict[str, Path] = {}
        self._imported: dict[tuple[str, ...], Path] = {}
        self._signatures: dict[str, Signature] = {}

    def build(self, plans: Sequence[Plan], report: Callable[[str], None] = lambda _: None) -> list[Path]:
        """One registry folder for each plan."""
        made = []
        for number, one in enumerate(plans):
            target = self._folder / f"registry-{number:03d}"
            _copy_registry(self._with_lookalikes(one.lookalikes, report), target)
            with Registry.open(target) as registry:
                for model in one.registered:
                    registry.register(self._signature(model), name=model)
            made.append(target)
        return made

    def _with_lookalikes(self, stems: tuple[str, ...], report: Callable[[str], None]) -> Path:
        """A registry with all models of these stems, imported: the suspects' own models are registered after them."""
        if stems not in self._imported:
            target = self._folder / f"lookalikes-{len(self._imported)}"
            with Registry.open(target) as registry:
                for stem in stems:
                    registry.import_(self._bundle(stem, report), stem)
            self._imported[stems] = target
        return self._imported[stems]

    def _bundle(self, stem: str, report: Callable[[str], None]) -> Path:
        if stem not in self._bundles:
            report(f"registering {len(self._models[stem])} models {stem}-*")
            path = self._folder / f"{stem}.fpbundle"
            with Registry.open(self._folder / f"source-{stem}") as registry:
                for model in self._models[stem]:
                    registry.register(self._signature(model), name=model)
                registry.export(None, path)
            self._bundles[stem] = path
        return self._bundles[stem]

    def _signature(self, model: str) -> Signature:
        if model not in self._signatures:
            path = weights_path(self._zoo, model)
            if not path.exists():
                path = self._derived / "references" / f"{model}.safetensors"
            with open_checkpoint(path) as checkpoint:
                self._signatures[model] = sign(fingerprint(checkpoint))
        return self._signatures[model]


def _copy_registry(source: Path, target: Path) -> None:
    """A copy in which the signatures, files that are never changed, are links."""

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("signatures"))
    if (source / "signatures").is_dir():
        shutil.copytree(source / "signatures", target / "signatures", copy_function=link)
