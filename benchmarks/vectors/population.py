"""Unit vectors of a registry of any size: families of bases and fine-tunes, each model's to be had again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]
    Int64 = NDArray[np.int64]

WIDTH = 256
TENSORS = (30, 60, 100, 130, 180)
"""Vectors of a model, in turn: 100 on average."""
FAMILIES = (1, 1, 1, 1, 2, 2, 3, 4, 6, 10, 20, 49)
"""Members of a family, in turn: 100 in twelve families. Most models have a relative, and half one of the two large."""
COUSINS = (0.95, 0.97, 0.99, 0.995)
"""Cosines of fine-tunes to their base, in turn."""
SHARED = 0.3
"""Cosine between vectors of unrelated models, of the quarter of vectors that are products of circuits."""
DIRECTIONS = 3


@dataclass(frozen=True, slots=True)
class Model:
    """One model: ``number`` is its id; ``member`` 0 of a family is the base."""

    number: int
    family: int
    member: int
    rows: int


class Population:
    """``vectors`` rows at least, in whole models."""

    def __init__(self, vectors: int, seed: int = 1) -> None:
        self.vectors = vectors
        self.seed = seed

    @cached_property
    def models(self) -> list[Model]:
        found: list[Model] = []
        rows, family = 0, 0
        while rows < self.vectors:
            size = TENSORS[family % len(TENSORS)]
            for member in range(FAMILIES[family % len(FAMILIES)]):
                if rows < self.vectors:
                    found.append(Model(len(found) + 1, family, member, size))
                    rows += size
            family += 1
        return found

    @cached_property
    def _directions(self) -> Float32:
        return unit(np.random.default_rng([self.seed, 0]).standard_normal((DIRECTIONS, WIDTH), np.float32))

    def base(self, family: int, rows: int) -> Float32:
        """The base of a family."""
        random = np.random.default_rng([self.seed, 1, family])
        vectors = unit(random.standard_normal((rows, WIDTH), np.float32))
        circuits = np.arange(0, rows, 4)
        toward = self._directions[circuits % DIRECTIONS]
        vectors[circuits] = near(toward, np.float32(np.sqrt(SHARED)), vectors[circuits])
        return vectors

    def of(self, model: Model, base: Float32 | None = None) -> Float32:
        """The vectors (rows, 256) of a model."""
        base = self.base(model.family, model.rows) if base is None else base
        if not model.member:
            return base
        random = np.random.default_rng([self.seed, 2, model.number])
        other = random.standard_normal(base.shape, np.float32)
        return near(base, np.float32(COUSINS[model.member % len(COUSINS)]), unit(other))

    def __iter__(self) -> Iterator[tuple[int, tuple[Int64, Float32]]]:
        base: tuple[int, Float32] | None = None
        for model in self.models:
            if base is None or base[0] != model.family:
                base = model.family, self.base(model.family, model.rows)
            yield model.number, (np.arange(model.rows), self.of(model, base[1]))


def near(vectors: Float32, cosine: np.float32, other: Float32) -> Float32:
    """Unit vectors at about that cosine to ``vectors``, in the direction of ``other``."""
    return unit(cosine * vectors + np.sqrt(1 - cosine**2) * other)


def unit(vectors: Float32) -> Float32:
    found: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found.astype(np.float32)
