"""The linear algebra of undoing: orthogonal Procrustes, partners by assignment, invertible maps within heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr, svd
from scipy.optimize import linear_sum_assignment

from fingerprint.vectors import unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

MOST_ASSIGNED: Final = 4096
"""Rows that no mutual choice joins and that are then assigned all together; beyond it the strongest pairs go first."""
MOST_DIRECTIONS: Final = 512
"""Random directions in which rows of a wider stream are compared when partners are looked for."""
_BLOCK: Final = 1 << 24


def rotation_between(pairs: Iterable[tuple[Float32, Float32]], width: int) -> Float32:
    """The orthogonal R (width, width) float32 that minimises the sum of ``|theirs - ours R|²`` (Schoenemann 1966).

    ``pairs`` are (ours, theirs), (n, width) each. Directions in which neither has anything are turned arbitrarily.
    """
    product = np.zeros((width, width), np.float64)
    for ours, theirs in pairs:
        product += (ours.T @ theirs).astype(np.float64)
    return polar(product).astype(np.float32)


def polar(matrix: Float64) -> Float64:
    """The orthogonal factor of a square matrix."""
    left, _, right = svd(matrix, full_matrices=False, lapack_driver="gesdd")
    factor: Float64 = left @ right
    return factor


def directions(width: int, seed: int) -> Float32 | None:
    """Random directions (width, MOST_DIRECTIONS) of a stream that is wider than that."""
    if width <= MOST_DIRECTIONS:
        return None
    return np.random.default_rng(seed).standard_normal((width, MOST_DIRECTIONS), dtype=np.float32)


def partners(ours: list[Float32], theirs: list[Float32], *, fixed: tuple[bool, ...]) -> tuple[Int64, Float32]:
    """For each of their rows one of ours: indices (n,) int64, -1 for none, and mean cosines (n,) float32.

    Each side is a list of row matrices of the same neurons (gate; or gate, up, down); cosines are added, and those of
    all that are not ``fixed`` (up and down) first to each other, to count whatever their common sign is. Mutual first
    choices are kept; the rest is assigned optimally up to ``MOST_ASSIGNED`` rows, beyond that greedily.
    """
    first, second = [unit_rows(one) for one in ours], [unit_rows(one) for one in theirs]
    n, m = len(first[0]), len(second[0])

    def scores(rows: Int64 | slice) -> Float32:
        plain = np.zeros(
            (m if isinstance(rows, slice) and rows == slice(None) else len(second[0][rows]), n), np.float32
        )
        free = np.zeros_like(plain)
        for one, other, as_is in zip(first, second, fixed, strict=True):
            if as_is:
                plain += other[rows] @ one.T
            else:
                free += other[rows] @ one.T
        total: Float32 = (plain + np.abs(free)) / np.float32(len(first))
        return total

    step = max(1, _BLOCK // max(n, 1))
    best, value = np.zeros(m, np.int64), np.zeros(m, np.float32)
    back, back_value = np.zeros(n, np.int64), np.full(n, -np.inf, np.float32)
    for start in range(0, m, step):
        block = scores(slice(start, min(start + step, m)))
        best[start : start + step], value[start : start + step] = block.argmax(axis=1), block.max(axis=1)
        rows, highest = block.argmax(axis=0), block.max(axis=0)
        better = highest > back_value
        back[better], back_value[better] = rows[better] + start, highest[better]
    chosen = np.full(m, -1, np.int64)
    mutual = back[best] == np.arange(m)
    chosen[mutual] = best[mutual]
    left, free = np.flatnonzero(~mutual), np.setdiff1d(np.arange(n), chosen[mutual])
    if left.size and free.size:
        if max(left.size, free.size) <= MOST_ASSIGNED:
            block = scores(left)[:, free]
            rows, columns = linear_sum_assignment(-block)
            chosen[left[rows]], value[left[rows]] = free[columns], block[rows, columns]
        else:
            _greedily(chosen, value, left, set(free.tolist()), best)
    value[chosen < 0] = 0.0
    return chosen, value


def _greedily(chosen: Int64, value: Float32, left: Int64, free: set[int], best: Int64) -> None:
    """First choices that are still free, the strongest first; the others in any order."""
    rest = []
    for row in left[np.argsort(-value[left], kind="stable")].tolist():
        if int(best[row]) in free:
            chosen[row] = best[row]
            free.discard(int(best[row]))
        else:
            rest.append(row)
    for row, column in zip(rest, sorted(free), strict=False):
        chosen[row], value[row] = column, 0.0


def orthonormal_heads(rows: Float32, size: int) -> tuple[Float64, Float64]:
    """Of each head's rows (heads * size, width): an orthonormal basis (heads, size, width), and L (heads, size, size)
    with rows = L basis."""
    heads = rows.reshape(-1, size, rows.shape[1]).astype(np.float64)
    bases, factors = np.zeros_like(heads), np.zeros((len(heads), size, size))
    for number, head in enumerate(heads):
        basis, factor = qr(head.T, mode="economic")
        bases[number], factors[number] = basis.T, factor.T
    return bases, factors


def subspace_likeness(ours: Float64, theirs: Float64) -> Float64:
    """Mean squared canonical correlation of all pairs of heads, less chance: (heads of theirs, heads of ours)."""
    size, width = ours.shape[1:]
    products = theirs.reshape(-1, width) @ ours.reshape(-1, width).T
    squares = products.reshape(len(theirs), size, len(ours), size) ** 2
    chance = size / width
    likeness: Float64 = (squares.sum(axis=(1, 3)) / size - chance) / max(1.0 - chance, 1e-9)
    return likeness


def relative(error: float, size: float) -> float:
    """The root of error over size: 0 where there is nothing at all."""
    return float(np.sqrt(error / size)) if size > 0 else 0.0
