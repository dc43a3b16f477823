"""Models for a large registry: the trained zoo, siblings and look-alikes of its models, invented families."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from safetensors.numpy import load_file

from benchmarks.lineage.registries import stem_of
from benchmarks.retrieval.invented import drawn, shape_of, shuffled, stream, synthetic, tuned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.random import Generator

    from benchmarks.retrieval.invented import Arrays

SIBLINGS = 4
"""Models of each invented family: a base and its fine-tunes."""
LOOKALIKES = 2
"""Of each kind, of every trained model."""


class Kind(StrEnum):
    """Where the weights of a model come from: training, or this benchmark."""

    TRAINED = "trained"
    SIBLING = "siblings of trained"
    DRAWN = "look-alikes, drawn"
    SHUFFLED = "look-alikes, shuffled"
    INVENTED = "invented"


@dataclass(frozen=True, slots=True)
class Source:
    """A model of the registry whose weights can be had again.

    ``family``: models that share weights have one family. ``shape``: models with the same tensors have one shape.
    ``path`` is that of the trained model that it is or is made from; an invented one is made from its family's number,
    and its own in the family.
    """

    name: str
    family: str
    shape: str
    kind: Kind
    path: Path | None = None
    number: int = 0
    member: int = 0

    def weights(self) -> Arrays:
        """Its tensors, float32."""
        random = stream(self.name)
        if self.path is None:
            base = synthetic(shape_of(self.number), [1, self.number])
            return tuned(base, _amount(random), random) if self.member else base
        held = load_file(self.path)
        match self.kind:
            case Kind.SIBLING:
                return tuned(held, _amount(random), random)
            case Kind.DRAWN:
                return drawn(held, random)
            case Kind.SHUFFLED:
                return shuffled(held, random)
            case _:
                return held


def sources(zoo: Path | None, count: int, families: Sequence[str] = ("a",)) -> list[Source]:
    """``count`` models: all trained ones of ``families`` that are there (bases first), what is made of them, invented.

    Every model of a population has siblings beside it, every trained model look-alikes.
    """
    found: list[Source] = []
    if zoo is not None:
        paths = [path for one in families for path in zoo.glob(f"{one}-*.safetensors")]
        paths.sort(key=lambda path: (path.stem.count("-"), path.stem))
        trained = [Source(path.stem, _root_of(path.stem), stem_of(path.stem), Kind.TRAINED, path) for path in paths]
        found = [*trained, *(made for one in trained for made in _beside(one))]
    found = found[:count]
    for number in range(count - len(found)):
        base, member = divmod(number, SIBLINGS)
        name = f"invented-{base}"
        shape = f"invented {shape_of(base)}"
        found.append(Source(f"{name}-{member}", name, shape, Kind.INVENTED, None, base, member))
    return found


def _beside(one: Source) -> Iterator[Source]:
    """Siblings, of the bases of populations: others have trained ones. Look-alikes: they descend from nothing."""
    if one.name == one.family and "-pop-" in one.name:
        for member in range(1, SIBLINGS):
            yield Source(f"{one.name}-sibling{member}", one.family, one.shape, Kind.SIBLING, one.path)
    for kind, word in ((Kind.DRAWN, "drawn"), (Kind.SHUFFLED, "shuffled")):
        for member in range(LOOKALIKES):
            name = f"{one.name}-{word}{member}"
            yield Source(name, name, one.shape, kind, one.path)


def _root_of(model: str) -> str:
    """The zoo's ids begin with shape and seed: ``a-llama-192-A-ftx`` descends from ``a-llama-192-A``."""
    words = model.split("-")
    seed = next(i for i, word in enumerate(words) if word in {"A", "B"} or (word[0] == "s" and word[1:].isdigit()))
    return "-".join(words[: seed + 1])


def _amount(random: Generator) -> float:
    return float(10 ** random.uniform(-1.5, -0.5))
