"""Networks without a residual stream that share no training: populations, rewritten and damaged, and real weights."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from benchmarks.corpus import FACENET, SPLICEAI, fetch_into
from benchmarks.error_rates.comparisons import OTHER, one_recipe
from benchmarks.error_rates.population import Model, as_suspect, measure
from benchmarks.units.networks import CHANNELS, PICTURES, Kind
from benchmarks.units.rewrites import REWRITES, rewrite
from benchmarks.units.run import build, damages, write_disguised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fingerprint.records import Fingerprint

Pair = tuple[str, Model, Model]

INTACT = "intact"
OTHER_CELLS = "other cells"


@dataclass(frozen=True, slots=True)
class Population:
    """Trainings of one recipe: its seeds from ``first`` to before ``last``, what is done to them as suspects."""

    recipe: str
    kind: Kind
    first: int
    last: int
    rewrite: str
    damages: tuple[str, ...]
    channels: tuple[int, ...] = CHANNELS


@dataclass(frozen=True, slots=True)
class Member:
    """One network, and its fingerprints as a suspect by damage, all of them rewritten."""

    population: Population
    path: Path
    model: Model
    suspects: Mapping[str, Fingerprint]


_FOLDED = "permuted, rescaled, folded"
_DAMAGED = (INTACT, "4bit", "sparse-50", "units-halved")


def _convolutional(first: int, last: int, *channels: int, note: str = "") -> Population:
    recipe = f"CNN {'-'.join(map(str, channels))}{note}"
    return Population(recipe, Kind.CNN, first, last, _FOLDED, _DAMAGED, (3, *channels))


def _recurrent(kind: Kind, last: int) -> Population:
    return Population(kind.value.upper(), kind, 0, last, "permuted, rotated", (INTACT,))


POPULATIONS = (
    _convolutional(0, 12, *CHANNELS[1:], note=" (calibration)"),
    _convolutional(12, 24, *CHANNELS[1:]),
    _convolutional(0, 10, 16, 24, 32),
    _convolutional(0, 8, 24, 32, 40, 48),
    _convolutional(0, 4, 32, 48, 48, 64),
    _convolutional(0, 6, 64, 96, 128),
    Population("residual network", Kind.RESNET, 0, 10, _FOLDED, _DAMAGED),
    _recurrent(Kind.LSTM, 24),
    _recurrent(Kind.GRU, 16),
)
"""The first one is that of which, among others, the constants of ``even`` were read off."""


def quick(populations: Sequence[Population]) -> list[Population]:
    """Fewer: the first networks of the first population and of each cell, the suspects intact and halved alone."""
    chosen = [populations[0], *(one for one in populations if one.kind is not Kind.CNN)]
    counts = {Kind.CNN: 5, Kind.RESNET: 2, Kind.LSTM: 2, Kind.GRU: 2}
    return [
        replace(one, last=one.first + counts[one.kind], damages=one.damages[:: max(1, len(one.damages) - 1)])
        for one in chosen
    ]


def members(zoo: Path, populations: Sequence[Population]) -> list[Member]:
    """Train what is not there yet, rewrite, damage and measure it."""
    found = []
    for one in populations:
        for path in build(zoo, one.kind, one.last, channels=one.channels)[one.first :]:
            model = measure(path, path.stem, path.stem, one.recipe, "")
            found.append(Member(one, path, model, _suspects(path, one.kind, one.rewrite, one.damages)))
    return found


def _suspects(path: Path, kind: Kind, how: str, damaged: Sequence[str]) -> dict[str, Fingerprint]:
    key = f"null/{path.stem}/{how}"
    made, _ = rewrite(load_file(path), kind, REWRITES[kind][how], key)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "suspect.safetensors"
        for damage in damages():
            if damage.name in damaged:
                write_disguised(target, damage.apply(made, kind, key), damage.dtype, f"{key}/{damage.name}")
                found[damage.name] = as_suspect(target)
    return found


def strangers(found: Sequence[Member]) -> list[Pair]:
    """All ordered pairs (stratum, registered, suspect) within each population, then those of different recipes."""
    pairs = []
    for registered, suspect in permutations(found, 2):
        for damage, stratum in _strata(registered.population, suspect.population).items():
            its = replace(suspect.model, id=f"{suspect.model.id}, {damage}", suspect=suspect.suspects[damage])
            pairs.append((stratum, registered.model, its))
    return sorted(pairs, key=lambda pair: not one_recipe(pair[0]))


def _strata(registered: Population, suspect: Population) -> dict[str, str]:
    """The stratum of each damage of the suspect; of different recipes only intact suspects are taken."""
    if registered is suspect:
        several = len(suspect.damages) > 1
        return {one: f"one recipe, {suspect.recipe}{f': {one}' if several else ''}" for one in suspect.damages}
    pictures = [one.kind in PICTURES for one in (registered, suspect)]
    if all(pictures):
        alike = registered.kind is suspect.kind and registered.channels == suspect.channels
        return {} if alike else {INTACT: OTHER}
    return {} if any(pictures) else {INTACT: OTHER_CELLS}


def relatives(found: Sequence[Member], most: int) -> list[Pair]:
    """Of each recurrent recipe, networks with copies of themselves, permuted and rounded to 4 bits."""
    pairs = []
    for recipe in dict.fromkeys(one.population.recipe for one in found if one.population.kind not in PICTURES):
        for one in [one for one in found if one.population.recipe == recipe][:most]:
            its = _suspects(one.path, one.population.kind, "permuted", ("4bit",))["4bit"]
            pairs.append((recipe, one.model, replace(one.model, suspect=its)))
    return pairs


def real(corpus: Path) -> list[Pair]:
    """Real weights, all ordered pairs: five trainings of SpliceAI, and the three networks of MTCNN, as they are."""
    pairs = []
    for stratum, package in (("SpliceAI", SPLICEAI), ("MTCNN", FACENET)):
        models = [measure(path, name, name, stratum, "") for name, path in fetch_into(package, corpus).items()]
        pairs += [(stratum, *pair) for pair in permutations(models, 2)]
    return pairs
