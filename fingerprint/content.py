"""What kind of numbers a matrix holds: trained weights, or content that unrelated models share.

Analytic content (constants, identities, masks, ramps, sinusoids, filter banks, grids) is recognised from values alone
(``patterns``) and set aside: it is no evidence of shared training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fingerprint.blocks import compiled
from fingerprint.patterns import are_curves, are_grid, have_moving_peak, is_mask_of_few_values
from fingerprint.vectors import median

if TYPE_CHECKING:
    from collections.abc import Sequence

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_loops = compiled("_patterns")
SLICE_SAMPLES: Final = 24
LATTICE_TILE: Final = 64
_MAX_BITS: Final = 8
_GRID_TOLERANCE: Final = 0.04
_AGREEMENT: Final = 0.7
_RUN: Final = 32
"""Numbers of a run that are tried as a grid, where it has as many."""
_FEWEST_IN_BOOK: Final = 32
_MOST_IN_BOOK: Final = 16
_STEPS_OF_A_GAP: Final = np.array([1.0, 2.0, 3.0])


def is_analytic(rows: Float32, columns: Float32, row_numbers: Int64, column_numbers: Int64, *, square: bool) -> bool:
    """Whether a matrix follows a formula, by sampled rows (m, n) and columns (l, k, as rows of the array).

    True if it has a pattern of few values (masks, identities, signs), or if in one direction the slices are curves,
    coordinates of a grid, or peaks that move with the slice's number. ``square`` if the matrix is.
    """
    if is_mask_of_few_values(rows, columns):
        return True
    sides = ((rows, row_numbers), (columns, column_numbers))
    return any(
        have_moving_peak(slices, numbers, square=square) or are_curves(slices) or are_grid(slices)
        for slices, numbers in sides
    )


def lattice_bits(tiles: list[Float32], *, across: bool = True) -> int:
    """Bits of the grid or code book that the values lie on within short runs; 0 if they lie on none.

    ``tiles`` are blocks of one shape, cut at multiples of ``LATTICE_TILE`` from a matrix; runs of 16 and 32 along
    either axis are tried, since quantisation groups run along one of them. A run of a b-bit uniform grid holds integer
    multiples of one step (up to an offset); a code book holds at most 2**b distinct values in 64. Without ``across``
    runs are tried along the last axis alone: where rows are not neighbours.
    """
    sides = [tiles, [tile.T for tile in tiles]] if across else [tiles]
    sides = [side for side in sides if side[0].shape[1] >= 16 and len(side[0])]
    return max((_agreed(bits) for bits in _bits_of_sides(sides)), default=0)


def _agreed(found: list[int | None]) -> int:
    """Bits on which most tiles agree that tell anything."""
    known = [bits for bits in found if bits is not None]
    on_grid = [bits for bits in known if bits > 0]
    return int(median(on_grid)) if known and len(on_grid) >= _AGREEMENT * len(known) else 0


def _bits_of_sides(sides: Sequence[Sequence[NDArray[Any]]]) -> list[list[int | None]]:
    """For each side, tiles of one shape, the bits of the grids of their runs along the last axis: 0 for none, None for
    a tile that is constant."""
    held = [np.concatenate([tile[:: max(1, len(tile) // 8)] for tile in side]).astype(np.float64) for side in sides]
    if not held:
        return []
    beginnings = [runs[:, :_RUN] for runs in held]
    if len({one.shape[1] for one in beginnings}) == 1:  # in one go: calls of numpy cost more than what they do here
        ends = np.cumsum([len(one) for one in beginnings])
        parts = np.split(_grid_levels(np.concatenate(beginnings)), ends[:-1])
    else:
        parts = [_grid_levels(one) for one in beginnings]
    found: list[list[int | None]] = []
    for side, runs, levels in zip(sides, held, parts, strict=True):
        told = np.where(levels == 0, _book_size(runs), levels).reshape(len(side), -1)
        largest = told.max(axis=1).tolist()  # at once, since hardly any tile lies on a grid
        found.append([_bits_of(part, most) for part, most in zip(told, largest, strict=True)])
    return found


def _bits_of(levels: NDArray[np.int64], most: int) -> int | None:
    """From the levels of runs, the largest of which is ``most``."""
    if most <= 0:
        return None if most < 0 else 0
    levels = levels[levels >= 0]
    if np.mean(levels > 0) < _AGREEMENT:
        return 0
    return max(1, int(np.ceil(np.log2(median(levels[levels > 0])))))


def _book_size(runs: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many distinct numbers other than zero each run has: 0 where they are too many for a code book, or where too
    few numbers are other than zero."""
    if _loops is not None and runs.shape[1] <= LATTICE_TILE:
        distinct = np.empty(len(runs), np.int64)
        _loops.different(np.ascontiguousarray(runs), distinct, _FEWEST_IN_BOOK, _MOST_IN_BOOK)
    else:
        ordered = np.sort(np.where(runs != 0, runs, np.inf), axis=1)
        present = np.count_nonzero(runs, axis=1)
        with np.errstate(invalid="ignore"):
            steps = np.diff(ordered, axis=1) > 0
        first_zero = (present < runs.shape[1]) & (present > 0)  # the step from the last number to the infinite ones
        distinct = np.where(present >= _FEWEST_IN_BOOK, steps.sum(axis=1) + 1 - first_zero, 0)
    return np.where((distinct > 0) & (distinct <= _MOST_IN_BOOK), distinct, 0)


def _grid_levels(runs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of levels that each run spans if it lies on a uniform grid; 0 if it does not; -1 if it is constant.

    A run that is no grid passes with probability about (2 x tolerance) to the number of gaps; zeros (pruning) make no
    gaps of their own.
    """
    levels = np.zeros(len(runs), np.int64)
    if _loops is not None:
        _loops.levels(np.ascontiguousarray(runs), levels)
        return levels
    for length in (runs.shape[1], 16):
        part = runs[:, :length]
        ordered = np.sort(np.where(part != 0, part, np.nan), axis=1)  # zeros last
        with np.errstate(invalid="ignore"):
            gaps = np.diff(ordered, axis=1)
        gaps[~(gaps > 0)] = np.inf
        number = np.count_nonzero(np.isfinite(gaps), axis=1)
        levels[(levels == 0) & (number < 1)] = -1
        collisions = np.count_nonzero(part, axis=1) >= 2 * (number + 1)
        tried = np.flatnonzero((levels == 0) & ((number >= 7) | collisions))
        gaps = gaps[tried]
        least = gaps.min(axis=1, initial=np.inf)
        # Neighbouring levels may be absent from a short run: the smallest gap may be two or three steps.
        ratios = np.where(np.isfinite(gaps), gaps, 0.0) / least[:, None] * _STEPS_OF_A_GAP[:, None, None]
        even = np.all(np.abs(ratios - np.rint(ratios)) < _GRID_TOLERANCE, axis=2)
        if not even.any():
            continue
        span = np.nanmax(ordered[tried], axis=1, initial=-np.inf) - ordered[tried, 0]
        for steps, on_grid in zip(_STEPS_OF_A_GAP, even, strict=True):
            step = least / steps
            fits = on_grid & (span <= step * (1 << _MAX_BITS)) & (levels[tried] == 0)
            levels[tried[fits]] = np.rint(span[fits] / step[fits]).astype(np.int64) + 1
    return levels
