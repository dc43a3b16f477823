"""Tells from sampled slices of a matrix whether its values follow from row and column numbers, as those of tables do.

Every recogniser asks which share of a slice's *energy* a formula explains, never how many entries: zeros put around
trained weights carry none, so that padding hides no copy. The thresholds lie between what trained matrices and what
tables show; docs/method.md has both.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fingerprint.blocks import compiled
from fingerprint.vectors import distinct

if TYPE_CHECKING:
    from collections.abc import Callable

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_loops = compiled("_patterns")
_TRIED_FIRST: Final = 6
"""Slices that are looked at before all are: nearly every matrix of trained weights is through with these."""
_RUNS: Final = 0.1
_WINDOW: Final = 256
_LONGEST: Final = 1024
_SPREAD: Final = 6.0
"""Entries over which a slice's energy must spread (its participation ratio) before jumps are forgiven: a slice of a
pruned matrix would be nothing but jumps."""
_JUMPS: Final = 3
_CURVE: Final = 0.03
_ROUGH: Final = 0.3
_COMMON: Final = 3.0
_MOST: Final = 0.6
_GOOD_PART: Final = 0.4
_FAINT: Final = 0.02
_REPEAT: Final = 0.85
_AS_GOOD: Final = 0.03
_ONE_DISTANCE: Final = 0.8
_FOLDED: Final = 24
_FEWEST_PEAKS: Final = 10
_FEWEST_STRIDES: Final = 6
_ORDERED: Final = 0.98
_NARROW: Final = 0.05
_NEAR: Final = 0.6
_DOMINANT: Final = 0.2
_PARTS: Final = 20
_NEIGHBOURING: Final = 6
_STRIDES: Final = 64
_LEAST_WAY: Final = 4.0
"""In entries."""


def is_mask_of_few_values(rows: Float32, columns: Float32) -> bool:
    """Whether a matrix has at most three values in every row and column, and these make a pattern.

    Patterns are masks of two values, long runs, and orthogonal signs. Trained weights that were rounded to signs, or
    to signs and zeros, are none of these.
    """
    if not all(_has_few_values(slices[:2, :64]) and _has_few_values(slices) for slices in (rows, columns)):
        return False
    values = np.unique(rows)
    if values.size == 2 and values[0] != -values[1]:
        return True
    both = (rows, columns)
    return all(_has_long_runs(slices) for slices in both) or any(_are_orthogonal_signs(slices) for slices in both)


def _has_few_values(slices: Float32) -> bool:
    return slices.size > 0 and bool((np.count_nonzero(np.diff(np.sort(slices, axis=1), axis=1), axis=1) <= 2).all())


def _has_long_runs(slices: Float32) -> bool:
    """Whether neighbours differ far less often than they would in random order. Zeros around are left out."""
    held = slices[:, (slices != slices[0]).any(axis=0)]
    held = held[(held != 0).any(axis=1)]
    if held.shape[0] < 2 or held.shape[1] < 16:
        return False
    equal = sum(np.square(np.mean(held == value, axis=1)) for value in np.unique(held))
    return bool(np.mean(held[:, 1:] != held[:, :-1]) < _RUNS * np.mean(1.0 - equal))


def _are_orthogonal_signs(slices: Float32) -> bool:
    """Whether all entries have one magnitude, and the slices are orthogonal, as in a Hadamard matrix."""
    magnitude = np.abs(slices[0, 0])
    if len(slices) < 8 or not magnitude or (np.abs(slices) != magnitude).any():
        return False
    signs = np.sign(slices)
    return bool(np.count_nonzero(signs @ signs.T) == len(signs))


def are_curves(slices: Float32) -> bool:
    """Whether most of the slices (m, n) are smooth or narrow-band curves.

    An entry then follows from the few before it by one linear recurrence for the whole slice (ramps, polynomials,
    Gaussians, sinusoids, windowed and damped ones), but for a few jumps and some percent of noise. What all slices
    have in common is no part of the sketches: beside it they must not be noise.
    """
    if not _may_be_curves(slices):
        return False
    centred = _centred(slices)
    if not _are_mostly(centred, _is_curve):
        return False
    common = centred.mean(axis=0)
    if len(centred) < 8 or len(centred) ** 2 * np.sum(common**2) < _COMMON * np.sum(centred**2):
        return True
    return _are_mostly(_centred(centred - common), lambda part: unexplained(part) < _ROUGH)


def _may_be_curves(slices: Float32) -> bool:
    """``_may_be`` for curves, of which no more is looked at than their windows: long slices are only read."""
    tried = slices[_evenly(len(slices), _TRIED_FIRST)]
    if tried.shape[1] <= _WINDOW:
        return _may_be(slices, _is_curve)
    means = tried.mean(axis=1, dtype=np.float64, keepdims=True)
    starts = _most_energetic(tried - means.astype(np.float32))
    windows = np.take_along_axis(tried, starts[:, None] + np.arange(_WINDOW), axis=1) - means
    return _two_pass(windows[windows.any(axis=1)], _is_curve)


def _is_curve(slices: Float64) -> NDArray[np.bool_]:
    return unexplained(slices) < _CURVE


def _may_be(slices: Float32, are: Callable[[Float64], NDArray[np.bool_]]) -> bool:
    """Whether two of a few slices, evenly spread, pass: hardly any do in matrices of trained weights."""
    return _two_pass(_centred(slices[_evenly(len(slices), _TRIED_FIRST)]), are)


def _two_pass(tried: Float64, are: Callable[[Float64], NDArray[np.bool_]]) -> bool:
    """Whether two of some slices pass, or the only one."""
    return len(tried) > 0 and int(np.count_nonzero(are(tried))) >= min(2, len(tried))


@cache
def _evenly(number: int, count: int) -> Int64:
    """Up to ``count`` of the numbers below ``number``, spread evenly: ascending."""
    chosen: Int64 = distinct(np.linspace(0, number - 1, min(count, number)).astype(np.int64))
    chosen.setflags(write=False)
    return chosen


def _are_mostly(slices: Float64, are: Callable[[Float64], NDArray[np.bool_]]) -> bool:
    """Whether most slices pass, less those that vanish beside the others, and a good part of all."""
    if len(slices) < 2:
        return False
    passed = are(slices)
    energy = np.einsum("ij,ij->i", slices, slices)
    counted = energy > _FAINT * energy.mean()
    return bool(np.mean(passed) >= _GOOD_PART and np.mean(passed[counted]) >= _MOST)


def _centred(slices: NDArray[np.floating]) -> Float64:
    """Slices less their means; those that are constant are left out."""
    wide = slices.astype(np.float64)
    energy = np.einsum("ij,ij->i", wide, wide)
    wide -= wide.mean(axis=1, keepdims=True)
    varying = np.einsum("ij,ij->i", wide, wide) > 1e-12 * max(float(energy.max(initial=0.0)), 1e-300)
    return wide if varying.all() else wide[varying]


def unexplained(slices: Float64) -> Float64:
    """Share of each slice's energy that the best linear recurrence leaves unexplained: (m,); 1 for short slices.

    Of long slices only a part is looked at, that with the most energy.
    """
    count, length = slices.shape
    if length < 16:
        return np.ones(count)
    if length > _WINDOW:
        place = _most_energetic(slices)[:, None] + np.arange(_WINDOW)
        slices = np.take_along_axis(slices, place, axis=1)
    share = np.empty(count)
    if _loops is not None:
        _loops.unexplained(np.ascontiguousarray(slices), share)
        return share
    order = 4 if length >= 20 else 2
    squares = np.square(slices)
    energy = squares.sum(axis=1)
    lagged = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(slices, order + 1, axis=1))
    products = lagged.transpose(0, 2, 1) @ lagged
    floor = (1e-10 * energy + 1e-300)[:, None, None] * np.eye(order)
    weights = np.linalg.solve(products[:, :order, :order] + floor, products[:, :order, order:])
    errors = np.square(lagged[:, :, order] - (lagged[:, :, :order] @ weights)[:, :, 0])
    smaller = np.partition(errors, -_JUMPS, axis=1)[:, :-_JUMPS].sum(axis=1)
    spread = energy**2 >= _SPREAD * np.sum(squares**2, axis=1)
    np.divide(np.where(spread, smaller, errors.sum(axis=1)), np.maximum(products[:, order, order], 1e-300), out=share)
    return share


def _most_energetic(slices: Float32 | Float64) -> Int64:
    """Where the windows of most energy begin, among those at every half of a window and the last: (m,)."""
    length, half = slices.shape[1], _WINDOW // 2
    squares = np.square(slices)
    number = length // half
    halves = squares[:, : number * half].reshape(len(slices), number, half).sum(axis=2)
    held = np.concatenate([halves[:, :-1] + halves[:, 1:], squares[:, -_WINDOW:].sum(axis=1)[:, None]], axis=1)
    starts: Int64 = np.append(np.arange(number - 1) * half, length - _WINDOW)[held.argmax(axis=1)]
    return starts


def are_grid(slices: Float32) -> bool:
    """Whether slices repeat: at two distances or more, as coordinates of a grid and functions of them do, or at one
    with a curve in between.

    Rows that were copied as a whole (key heads, tiled weights) repeat at one distance, and have no curve in between.
    """
    slices = slices[:, :_LONGEST]
    if slices.shape[1] < 32 or not _may_be(slices, _repeats):
        return False
    centred = _centred(slices)
    if not _are_mostly(centred, _repeats):
        return False
    best, distance = repetition(centred)
    numbers = np.bincount(distance[best >= _REPEAT])
    period = int(numbers.argmax())
    if numbers[period] <= _ONE_DISTANCE * numbers.sum():
        return True
    periods = centred.shape[1] // period
    if period < 16 or periods < 2:
        return False
    folded = centred[:, : periods * period].reshape(-1, period)
    folded = folded[_evenly(len(folded), _FOLDED)]
    return _are_mostly(_centred(folded), _is_curve)


def _repeats(slices: Float64) -> NDArray[np.bool_]:
    return repetition(slices)[0] >= _REPEAT


def repetition(slices: Float64) -> tuple[Float64, Int64]:
    """The largest correlation of each slice with itself moved by up to half its length, and by how much: (m,) each.

    The smallest distance that is as good as the best. 0 for slices of too few entries.
    """
    count, length = slices.shape
    if _loops is not None:
        best, distance = np.empty(count), np.empty(count, np.int64)
        _loops.repetition(np.ascontiguousarray(slices), best, distance)
        return best, distance
    most = length // 2
    squares = slices**2
    before = np.cumsum(squares, axis=1)
    energy = before[:, -1:]
    size = 1 << (length + most - 1).bit_length()
    largest = np.maximum(np.abs(slices).max(axis=1, keepdims=True, initial=0.0), 1e-300)
    spectrum = np.fft.rfft((slices / largest).astype(np.float32), size, axis=1)
    products = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size, axis=1)[:, 1 : most + 1] * largest**2
    behind = before[:, length - 2 - np.arange(most)]
    ahead = energy - before[:, :most]
    correlation = products / np.maximum(np.maximum(np.sqrt(behind * ahead), 0.5 * energy), 1e-300)
    best = correlation.max(axis=1)
    distance = (correlation >= best[:, None] - _AS_GOOD).argmax(axis=1) + 1
    spread = energy[:, 0] ** 2 >= _SPREAD * np.sum(squares**2, axis=1)
    return np.where(spread, best, 0.0), distance


def have_moving_peak(slices: Float32, numbers: Int64, *, square: bool) -> bool:
    """Whether slices ``numbers`` have most of their energy at one place, which moves steadily from slice to slice.

    So do bands, filter banks, resampling kernels, and identities that are rectangular, strided or inside a
    convolution. Of ``square`` matrices the multiple of the identity is taken out first, as from the sketches.
    """
    if slices.shape[1] < 8 or len(slices) < _FEWEST_STRIDES:
        return False
    if square:
        alive = np.flatnonzero(slices.any(axis=1))  # not of zeros put around, where it would be all that there is
        diagonal = slices[alive, numbers[alive]]
        slices = slices.copy()
        slices[alive, numbers[alive]] -= diagonal.mean() if diagonal.size else 0.0
    tried = slices[_evenly(len(slices), _FEWEST_PEAKS)]
    if not _may_be_steep(tried) or np.count_nonzero(_are_steep(tried)[1]) < 2:
        return False
    held = slices[:, slices.any(axis=0)]
    centre, steep = _are_steep(held)
    centre = centre[steep]
    if len(centre) < _FEWEST_STRIDES or np.ptp(centre) * held.shape[1] < _LEAST_WAY:
        return False
    if len(centre) >= _FEWEST_PEAKS and abs(_rank_correlation(centre)) >= _ORDERED:
        return True
    return _are_strided(slices[steep], numbers[steep])


def _may_be_steep(slices: Float32) -> bool:
    """False where no slice can be steep: none has half of its energy in a fifth of its length, or much in one entry.

    What is narrow has three quarters of its energy within two deviations of its centre, what is near its peak more than
    half; either fits into ``_NEIGHBOURING`` parts of the length.
    """
    length = slices.shape[1]
    if length < _PARTS * 8:
        return True
    if _loops is not None:
        return bool(_loops.any_steep(np.ascontiguousarray(slices)))
    largest = np.maximum(slices.max(axis=1), -slices.min(axis=1))
    squares = slices / np.maximum(largest, np.float32(1e-38))[:, None]
    np.square(squares, out=squares)
    parts = np.add.reduceat(squares, np.arange(_PARTS) * length // _PARTS, axis=1)
    total = parts.sum(axis=1)
    together = np.lib.stride_tricks.sliding_window_view(parts, _NEIGHBOURING, axis=1).sum(axis=2).max(axis=1)
    return bool(np.any((together >= 0.5 * total) | (total * _DOMINANT <= 1.0)))


def _are_steep(slices: Float32) -> tuple[Float32, NDArray[np.bool_]]:
    """Where each slice has its peak, as a share of its length, and whether most of its energy is at one place."""
    largest = np.maximum(np.abs(slices).max(axis=1), np.float32(1e-38))
    squares = np.square(slices / largest[:, None])
    place = np.linspace(0.0, 1.0, slices.shape[1], dtype=np.float32)
    powers = np.stack([np.ones_like(place), place, place * place], axis=1)
    total, first, second = np.maximum(squares @ powers, np.float32(1e-30)).T
    # Fourth powers: noise beside the peak moves the centre of squares.
    higher = np.square(squares) @ powers[:, :2]
    centre: Float32 = higher[:, 1] / np.maximum(higher[:, 0], np.float32(1e-30))
    narrow = second / total - (first / total) ** 2 <= _NARROW**2
    near = np.einsum("ij,ij->i", squares, np.abs(place - centre[:, None]) <= _NARROW)
    return centre, (total > 0.5) & (narrow | (near >= _NEAR * total) | (total * _DOMINANT <= 1.0))


def _rank_correlation(values: Float32) -> float:
    """Spearman's, of values with their places."""
    ranks = values.argsort(kind="stable").argsort()
    size = len(values)
    return float(1.0 - 6.0 * np.sum((ranks - np.arange(size)) ** 2) / (size * (size * size - 1.0)))


def _are_strided(slices: Float32, numbers: Int64) -> bool:
    """Whether the largest entries step by one distance from slice to slice, around the end: tiled identities."""
    length = slices.shape[1]
    largest = np.abs(slices).argmax(axis=1)
    steps = np.arange(1, min(_STRIDES, length // 4) + 1)
    rest = np.sort((largest - np.multiply.outer(steps, numbers)) % length, axis=1)
    few = len(largest) // 10
    return bool((rest[:, few] == rest[:, -1 - few]).any())
