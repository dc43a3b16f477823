"""What a case is: its suspect's making, and what a right scanner says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import torch

from benchmarks.zoo.models import generator
from benchmarks.zoo.store import load_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Generator

    from benchmarks.zoo.models import Shape, Weights


class Verdict(StrEnum):
    """What the whole scan should end in. NO_MATCH: nothing at `possible` or above; `inconclusive` is right too."""

    MATCH = "match"
    SIBLING = "sibling"
    SHARED_COMPONENT = "shared-component"
    SAME_INITIALISATION = "same-initialisation"
    NO_MATCH = "no-match"


class Link(StrEnum):
    """What is true of a suspect and one registered model. ANCESTOR: a parent's parent; every link but NONE is right."""

    LINEAGE = "lineage"
    ANCESTOR = "ancestor"
    SIBLING = "sibling"
    SHARED_COMPONENT = "shared-component"
    SAME_INITIALISATION = "same-initialisation"
    NONE = "none"


class Names(StrEnum):
    """KEPT: as they were. STRUCTURED: random, with the layer numbers left in. SCRAMBLED: random."""

    KEPT = "kept"
    STRUCTURED = "structured"
    SCRAMBLED = "scrambled"


@dataclass(frozen=True, slots=True)
class Kit:
    """The models of one shape. stem: what their ids begin with, such as `a-llama-192`.

    available: ids of the zoo's plan. strangers: ids of models of another shape, by what is other about it.
    key: of all random streams.
    """

    folder: Path
    stem: str
    shape: Shape
    available: frozenset[str]
    strangers: Mapping[str, str]
    key: str

    def id(self, model: str) -> str:
        """Return the zoo's id of a model of this shape, or of a stranger; it need not be in the zoo's plan."""
        return self.strangers.get(model, f"{self.stem}-{model}")

    def model(self, model: str) -> Weights:
        return load_weights(self.folder, self.id(model))

    def random(self, name: str) -> Generator:
        return generator(f"{self.key}/{self.stem}/{name}")


LayerMap = tuple[tuple[int, str, int], ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A suspect's tensors. layers: (suspect's layer, model's id, its layer); None where the parent's order holds."""

    tensors: Weights
    layers: LayerMap | None = None


Build = Callable[[Kit, "Generator"], Made]


@dataclass(frozen=True, slots=True)
class Case:
    """One case. Models are named by what follows the stem: A, B, A-ftx, ...

    parents: the nearest ancestors in the registry. registered: what the registry holds; nothing else may be in it
    but strangers. uses: models that it is made from, beyond these. relations: the right one, and others as right.
    links: of the registered models, where not `lineage` for parents and `none` for the others.
    bases: sets of models over which the mixture is solved. reference: makes one more model to be registered.
    shards: files; only_shard: the one that is kept. sorted_names: in the order of names, else in a random one.
    """

    name: str
    verdict: Verdict
    relations: tuple[str, ...]
    parents: tuple[str, ...]
    registered: tuple[str, ...]
    build: Build
    done: str
    names: Names = Names.SCRAMBLED
    uses: tuple[str, ...] = ()
    links: Mapping[str, Link] = field(default_factory=dict)
    bases: tuple[tuple[str, ...], ...] = ()
    dtype: torch.dtype = torch.float32
    shards: int = 1
    only_shard: int | None = None
    sorted_names: bool = False
    reference: Callable[[Kit], Weights] | None = None
    applies: Callable[[Kit], bool] = lambda _: True

    def models(self, kit: Kit) -> list[str]:
        """List the ids of the models that the case reads or that must be registered for it."""
        return [kit.id(model) for model in (*self.parents, *self.registered, *self.uses)]

    def is_for(self, kit: Kit) -> bool:
        """Tell whether the case makes sense for this shape, and the zoo's plan has the models that it needs."""
        return set(self.models(kit)) <= kit.available and self.applies(kit)
