"""What kind of numbers a matrix holds: trained weights, or content that unrelated models share.

Analytic content (constants, identities, masks, ramps, sinusoids, windowed Fourier bases) is recognised from values
alone and set aside: it is no evidence of shared training.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

SLICE_SAMPLES: Final = 24
LATTICE_TILE: Final = 64
_PEAK_SHARE: Final = 0.97
_SLICES_SHARE: Final = 0.95
_MAX_BITS: Final = 8
_GRID_TOLERANCE: Final = 0.04
_AGREEMENT: Final = 0.7


def is_analytic(rows: Float32, columns: Float32) -> bool:
    """Whether sampled rows (m, n) and columns (l, k, as rows of the array) of a matrix follow a formula.

    True if every slice has at most three distinct values (masks, identities, signs), or nearly all slices of one
    direction are ramps or single windowed sinusoids.
    """
    if _few_values(rows) and _few_values(columns):
        return True
    return any(_smooth(slices) for slices in (rows, columns))


def _few_values(slices: Float32) -> bool:
    return len(slices) > 0 and all(np.unique(one).size <= 3 for one in slices)


def _smooth(slices: Float32) -> bool:
    length = slices.shape[1] if slices.ndim == 2 else 0
    if length < 32 or not len(slices):
        return False
    wide = slices.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    energy = np.sum(centred**2, axis=1)
    varying = energy > 1e-12 * max(float(energy.max()), 1e-300)
    if np.count_nonzero(varying) < 2:
        return False
    centred, energy = centred[varying], energy[varying]
    curvature = np.sum(np.diff(centred, n=2, axis=1) ** 2, axis=1)
    ramp = curvature < 1e-9 * energy
    return bool(np.mean(ramp | (_peak_share(centred) > _PEAK_SHARE)) >= _SLICES_SHARE)


def _peak_share(slices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each slice's energy within three bins of the highest peak of its windowed spectrum."""
    length = slices.shape[1]
    power = np.abs(np.fft.rfft(slices * np.hanning(length), axis=1)) ** 2
    total = power.sum(axis=1)
    peak = power.argmax(axis=1)
    bins = np.arange(power.shape[1])
    near = np.abs(bins[None, :] - peak[:, None]) <= 3
    if power.shape[1] < 24:
        return np.zeros(len(slices))
    share: NDArray[np.float64] = np.where(near, power, 0.0).sum(axis=1) / np.maximum(total, 1e-300)
    return share


def lattice_bits(tiles: list[Float32]) -> int:
    """Bits of the grid or code book that the values lie on within short runs; 0 if they lie on none.

    ``tiles`` are blocks cut at multiples of ``LATTICE_TILE`` from a matrix; runs of 16 and 32 along either axis are
    tried, since quantisation groups run along one of them. A run of a b-bit uniform grid holds integer multiples of
    one step (up to an offset); a code book holds at most 2**b distinct values in 64.
    """
    along_rows = [_tile_bits(tile) for tile in tiles]
    along_columns = [_tile_bits(tile.T) for tile in tiles]
    return max(_agreed(along_rows), _agreed(along_columns))


def _agreed(per_tile: list[int | None]) -> int:
    known = [bits for bits in per_tile if bits is not None]
    if not known or sum(bits > 0 for bits in known) < _AGREEMENT * len(known):
        return 0
    return int(np.median([bits for bits in known if bits > 0]))


def _tile_bits(tile: NDArray[Any]) -> int | None:
    """Bits of the grid of this tile's runs along its last axis; 0 for none, None if it is constant or too small."""
    rows, width = tile.shape
    if width < 16 or rows < 1:
        return None
    held = tile[:: max(1, rows // 8)].astype(np.float64)
    levels = _grid_levels(held[:, :32])
    distinct, present = _distinct(held)
    levels = np.where((levels == 0) & (present >= 32) & (distinct <= 16), distinct, levels)
    levels = levels[levels >= 0]
    if not levels.size:
        return None
    if np.mean(levels > 0) < _AGREEMENT:
        return 0
    return max(1, int(np.ceil(np.log2(np.median(levels[levels > 0])))))


def _distinct(runs: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many distinct numbers other than zero each run has, and how many numbers other than zero."""
    ordered = np.sort(np.where(runs != 0, runs, np.inf), axis=1)
    present = np.count_nonzero(runs, axis=1)
    with np.errstate(invalid="ignore"):
        steps = np.diff(ordered, axis=1) > 0
    first_zero = (present < runs.shape[1]) & (present > 0)  # the step from the last number to the infinite ones
    return steps.sum(axis=1) + (present > 0) - first_zero, present


def _grid_levels(runs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of levels that each run spans if it lies on a uniform grid; 0 if it does not; -1 if it is constant.

    A run that is no grid passes with probability about (2 x tolerance) to the number of gaps; zeros (pruning) make no
    gaps of their own.
    """
    levels = np.zeros(len(runs), np.int64)
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
        span = np.nanmax(ordered[tried], axis=1, initial=-np.inf) - ordered[tried, 0]
        least = gaps.min(axis=1, initial=np.inf)
        # Neighbouring levels may be absent from a short run: the smallest gap may be two or three steps.
        for steps in (1, 2, 3):
            step = least / steps
            ratio = np.where(np.isfinite(gaps), gaps, 0.0) / step[:, None]
            even = np.all(np.abs(ratio - np.rint(ratio)) < _GRID_TOLERANCE, axis=1)
            fits = even & (span <= step * (1 << _MAX_BITS)) & (levels[tried] == 0)
            levels[tried[fits]] = np.rint(span[fits] / step[fits]).astype(np.int64) + 1
    return levels
