"""The best linear reconstruction of a matrix from equations about it: ridge regression.

With ``leftᵀ W right = values`` for all sections, entries that are independent with one variance around what was known
before, and noise in the values, the best predictor is ``prior + Σ left core rightᵀ``; the cores solve a system with as
many unknowns as there are numbers, by conjugate gradients, and need the matrix nowhere. The reconstruction is computed
some rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.disclosure.sections import LENGTHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.disclosure.sections import Section

Float64 = NDArray[np.float64]
STEPS = 1500
PRECISION = 1e-4
_RANK = 1e-6
_TRACES = 2.0
"""How large the multiple of the identity may be that was taken out of a square matrix, by chance alone being 1."""
_NUMBERS_AT_ONCE = 1 << 22
_SMALL = 1 << 16


class Prior(Protocol):
    """What is known of a matrix beforehand."""

    @property
    def centred(self) -> bool:
        """Whether what there is beyond it has no means of rows and columns."""

    def rows(self, start: int, stop: int) -> Float64:
        """Some rows of it."""

    def seen(self, left: Float64, right: Float64) -> Float64:
        """``leftᵀ P right``."""


@dataclass(frozen=True, slots=True)
class Means:
    """The trivial predictor: the means of rows (n,) and of columns (m,), given for free."""

    of_rows: Float64
    of_columns: Float64
    centred: bool = True

    @classmethod
    def of(cls, shape: tuple[int, int], rows: Callable[[int, int], Float64]) -> Means:
        """Those of a matrix that is read some rows at a time."""
        of_rows, total = np.zeros(shape[0]), np.zeros(shape[1])
        for start, stop in row_blocks(shape):
            block = rows(start, stop)
            of_rows[start:stop] = block.mean(axis=1)
            total += block.sum(axis=0)
        return cls(of_rows, total / shape[0])

    def rows(self, start: int, stop: int) -> Float64:
        """See ``Prior``."""
        found: Float64 = self.of_rows[start:stop, None] + self.of_columns - self.of_columns.mean()
        return found

    def seen(self, left: Float64, right: Float64) -> Float64:
        """See ``Prior``."""
        own = left.T @ (self.of_rows - self.of_rows.mean())
        return np.outer(own, right.sum(axis=0)) + np.outer(left.sum(axis=0), self.of_columns @ right)


@dataclass(frozen=True, slots=True)
class Sibling:
    """A public relative."""

    matrix: Float64
    centred: bool = False

    def rows(self, start: int, stop: int) -> Float64:
        """See ``Prior``."""
        return self.matrix[start:stop]

    def seen(self, left: Float64, right: Float64) -> Float64:
        """See ``Prior``."""
        found: Float64 = left.T @ self.matrix @ right
        return found


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """The reconstructed matrix: a prior, and a sum of ``left @ core @ rightᵀ``."""

    prior: Prior
    parts: Sequence[tuple[Float64, Float64, Float64]]

    def rows(self, start: int, stop: int) -> Float64:
        """Some rows of it."""
        found = self.prior.rows(start, stop).copy()
        for left, core, right in self.parts:
            found += (left[start:stop] @ core) @ right.T
        return found


def row_blocks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """First and last row of blocks of bounded size."""
    step = max(1, _NUMBERS_AT_ONCE // shape[1])
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def reconstruct(sections: Sequence[Section], prior: Prior) -> Reconstruction:
    """The best predictor from these equations; the first of ``sections`` tells how far off the prior is."""
    if not sections:
        return Reconstruction(prior, ())
    first = sections[0]
    left, right = (_less_means(side, prior) for side in (first.left, first.right))
    beyond = first.values - prior.seen(first.left, first.right)
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    variance = max(float(np.linalg.norm(beyond)) / max(scale, 1e-30), 1e-30) ** 2
    equations = [_whitened(one, prior, variance) for one in sections]
    cores = _solved(equations, variance)
    return Reconstruction(prior, [(one.left, core, one.right) for one, core in zip(equations, cores, strict=True)])


def explained(shape: tuple[int, int], rows: Callable[[int, int], Float64], found: Reconstruction) -> float:
    """Share of the squares left by the prior that the reconstruction explains, over all entries; below 0: worse."""
    left = trivial = 0.0
    for start, stop in row_blocks(shape):
        truth = rows(start, stop)
        left += float(np.sum((truth - found.rows(start, stop)) ** 2))
        trivial += float(np.sum((truth - found.prior.rows(start, stop)) ** 2))
    return 1.0 - left / max(trivial, 1e-30)


@dataclass(frozen=True, slots=True)
class _Equations:
    """Of orthonormal directions, with the variance of the noise of each value.

    Where only directions of rows (columns) of the section's values are known, the noise lies along them too: ``along``
    are its deviations (a, b), ``turns`` what takes values of the section to values here, from the left and the right.
    ``lost`` are the values of what was taken out of the matrix before it was sketched, in the amount to be expected: of
    square matrices a multiple of the identity.
    """

    left: Float64
    right: Float64
    values: Float64
    noise: Float64
    turns: tuple[Float64, Float64]
    along: Float64
    unit: int
    lost: Float64 | None = None

    def noisy(self, core: Float64) -> Float64:
        """The covariance of the noise times ``core``."""
        found = self.noise * core
        if self.lost is not None:
            found += self.lost * np.sum(self.lost * core)
        if self.unit >= 0:
            left, right = self.turns
            back = left.T @ core @ right.T
            found += left @ (self.along * np.sum(self.along * back, axis=self.unit, keepdims=True)) @ right
        return found

    def variances(self) -> Float64:
        """About how large the noise of each value is."""
        if self.lost is not None:
            return self.noise + self.lost**2
        if self.unit < 0:
            return self.noise
        left, right = self.turns
        found: Float64 = self.noise + float(np.mean(self.along**2)) * np.outer(
            np.sum(left**2, axis=1), np.sum(right**2, axis=0)
        )
        return found


def _less_means(side: Float64, prior: Prior) -> Float64:
    """What there is beyond a prior that knows the means has none."""
    return side - side.mean(axis=0) if prior.centred else side


def _whitened(one: Section, prior: Prior, variance: float) -> _Equations:
    left, left_size, left_turn = _basis(_less_means(one.left, prior))
    right, right_size, right_turn = _basis(_less_means(one.right, prior))
    turns = left_turn / left_size[:, None], right_turn.T / right_size
    beyond, along = one.values - prior.seen(one.left, one.right), np.zeros_like(one.values)
    if one.unit >= 0:
        beyond, along = _of_guessed_lengths(one, beyond, variance)
    noise = (one.noise / np.outer(left_size, right_size)) ** 2
    lost = None
    if len(one.left) == len(one.right) and one.kind in {"sketch", "slices"}:
        lost = turns[0] @ (one.left.T @ one.right) @ turns[1] * (_TRACES * np.sqrt(variance / len(one.left)))
    return _Equations(left, right, turns[0] @ beyond @ turns[1], noise, turns, along, one.unit, lost)


def _of_guessed_lengths(one: Section, beyond: Float64, variance: float) -> tuple[Float64, Float64]:
    """The values beyond a prior, and the deviations of the noise along the directions that are known alone.

    Entries of variance v pull what is seen along a direction to 0, though its length is known to be about t, with
    deviation s. So it is given the precision 1/s² - 1/v, and stretched so that without other evidence t comes out.
    """
    length = np.linalg.norm(one.values, axis=one.unit, keepdims=True)
    unit = one.values / np.maximum(length, 1e-30)
    across, inner = (one.left, one.right) if one.unit == 1 else (one.right, one.left)
    rows = unit if one.unit == 1 else unit.T
    pulled = variance * np.sum(across**2, axis=0) * np.sum((rows @ inner.T) ** 2, axis=1)
    pulled = pulled[:, None] if one.unit == 1 else pulled[None]
    wanted = np.maximum(np.minimum((LENGTHS * length) ** 2, 0.5 * pulled), 1e-30)
    precision = 1.0 / wanted - 1.0 / np.maximum(pulled, 1e-30)
    precision = np.maximum(precision, 0.5 / wanted)
    stretch = 1.0 / (wanted * precision) - 1.0
    found: Float64 = beyond + stretch * np.sum(beyond * unit, axis=one.unit, keepdims=True) * unit
    return found, unit / np.sqrt(precision)


def _basis(side: Float64) -> tuple[Float64, Float64, Float64]:
    u, s, vt = np.linalg.svd(side, full_matrices=False)
    kept = s > _RANK * max(float(s.max(initial=0.0)), 1e-30)
    return u[:, kept], s[kept], vt[kept]


def _is_small(equations: Sequence[_Equations]) -> bool:
    return len(equations[0].left) * len(equations[0].right) <= _SMALL


def _through_matrix(equations: Sequence[_Equations]) -> Callable[[list[Float64]], list[Float64]]:
    """``A Aᵀ`` by way of the matrix: for small ones."""

    def seen(cores: list[Float64]) -> list[Float64]:
        matrix = sum(one.left @ core @ one.right.T for one, core in zip(equations, cores, strict=True))
        return [one.left.T @ matrix @ one.right for one in equations]

    return seen


def _between_sections(equations: Sequence[_Equations]) -> Callable[[list[Float64]], list[Float64]]:
    """``A Aᵀ`` without anything as large as the matrix."""
    lefts = [[one.left.T @ other.left for other in equations] for one in equations]
    rights = [[other.right.T @ one.right for other in equations] for one in equations]

    def seen(cores: list[Float64]) -> list[Float64]:
        return [
            np.sum([lefts[i][j] @ core @ rights[i][j] for j, core in enumerate(cores)], axis=0)
            for i in range(len(cores))
        ]

    return seen


def _solved(equations: Sequence[_Equations], variance: float) -> list[Float64]:
    """``(A Aᵀ + N / variance)⁻¹ values``, where A takes a matrix to its values under all equations."""
    ridge = [one.variances() / variance for one in equations]
    seen = _through_matrix(equations) if _is_small(equations) else _between_sections(equations)

    def image_of(cores: list[Float64]) -> list[Float64]:
        images = zip(equations, cores, seen(cores), strict=True)
        return [image + one.noisy(core) / variance for one, core, image in images]

    def dot(some: list[Float64], others: list[Float64]) -> float:
        return sum(float(np.vdot(one, other)) for one, other in zip(some, others, strict=True))

    found = [np.zeros_like(one.values) for one in equations]
    rest = [one.values.copy() for one in equations]
    scaled = [one / (1.0 + by) for one, by in zip(rest, ridge, strict=True)]
    step, size = scaled, dot(rest, scaled)
    goal = PRECISION**2 * size
    for _ in range(STEPS):
        if size <= goal or size == 0.0:
            break
        image = image_of(step)
        length = size / dot(step, image)
        found = [one + length * by for one, by in zip(found, step, strict=True)]
        rest = [one - length * by for one, by in zip(rest, image, strict=True)]
        scaled = [one / (1.0 + by) for one, by in zip(rest, ridge, strict=True)]
        before, size = size, dot(rest, scaled)
        step = [one + size / before * by for one, by in zip(scaled, step, strict=True)]
    return found
