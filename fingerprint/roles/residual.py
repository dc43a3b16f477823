"""What is wired to the residual stream without names: gains and what reads them, tables of tokens and of positions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.dtypes import to_float32
from fingerprint.roles.grams import read_run, units
from fingerprint.roles.wiring import Gain, Place
from fingerprint.signs import Stream, sample_indices
from fingerprint.tensors import read_rows
from fingerprint.vectors import median
from fingerprint.vocabulary import Axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fingerprint.roles.layout import CanonicalTensor
    from fingerprint.tensors import TensorView

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

MOST_VECTORS: Final = 2048
MOST_READERS: Final = 4096
MOST_WIDTH: Final = 1 << 18
MOST_PRODUCTS: Final = 1 << 34
_READS: Final = -0.5
_CLOSELY: Final = -0.9
_TIE: Final = 1e-3
_USUAL: Final = 4.0
_LEFT: Final = 0.5
_SLOPES: Final = (-1.5, -0.7)
_ONE_SIDED: Final = 0.9
_CHANCE: Final = 5.0
_FLOOR: Final = 1e-6
_TOKENS: Final = 256
_SMALLEST_VOCABULARY: Final = 256
_ROWS: Final = 128
_LEAST_ROWS: Final = 16
_MOST_TABLES: Final = 4096
_SMOOTH: Final = 0.1
_RATIO: Final = 1.5
_NO_CHANCE: Final = 5.0


class SliceNorms(Struct, frozen=True):
    """Euclidean norms of the rows and of the columns of one matrix."""

    rows: Float32
    columns: Float32


def find_gains(
    tensors: Sequence[CanonicalTensor], norms: Mapping[int, SliceNorms], vectors: Iterable[int], width: int
) -> dict[int, Gain]:
    """The gains that were scrambled against the matrices behind them, by the position of the matrix.

    Whoever replaces a gain has to divide the columns behind it by the same numbers, so that their norms turn against
    it: the ranks of gains and norms correlate at -1 (sparse columns spoil logarithms), where two that have nothing to
    do with each other correlate by chance, and gains as trained mostly the other way: those are left alone. Both
    ``gain`` and ``1 + gain`` are tried; by rank they may be the same, and logarithms decide. Raises ``InputError``.
    """
    chosen = [position for position in vectors if tensors[position].view.shape == (width,)][:MOST_VECTORS]
    readers = sorted(norms)[:MOST_READERS]
    if not chosen or not readers or width > MOST_WIDTH or len(chosen) * len(readers) * width > MOST_PRODUCTS:
        return {}
    gains = np.stack([_vector(tensors[position].view) for position in chosen])
    both = np.concatenate([gains, gains + 1.0])
    ranks, logs = _standard_ranks(both), _standard_logs(both)
    # A bias has both signs. A gain has one, unless somebody scrambled those too, but then it fits closely.
    one_sided = np.abs(np.sign(both).mean(axis=1)) >= _ONE_SIDED
    limits = np.where(one_sided, min(_READS, -_CHANCE / np.sqrt(width)), _CLOSELY)
    found: dict[int, Gain] = {}
    for position in readers:
        sides = [
            (ranks @ _standard_ranks(one[None])[0] + _TIE * (logs @ _standard_logs(one[None])[0]), axis)
            for axis, one in ((0, norms[position].rows), (1, norms[position].columns))
            if one.size == width
        ]
        if not sides:
            continue
        correlations, axis = min(sides, key=lambda side: float(side[0].min()))
        best = int(correlations.argmin())
        lengths = norms[position].columns if axis else norms[position].rows
        if correlations[best] < limits[best] and _explains(both[best], lengths):
            found[position] = Gain(chosen[best % len(chosen)], float(best >= len(chosen)), axis)
    return found


def _explains(gain: Float64, lengths: Float32) -> bool:
    """Whether the lengths go as the inverse of the gain, and differ much less once it is folded in.

    Channels of trained models differ, and some vectors go against some matrices by that alone: in SmolLM2-135M and a
    BERT no such pair lost half of its spread; of scrambled gains every one did.
    """
    with np.errstate(divide="ignore"):
        first, second = (np.log(np.abs(values.astype(np.float64))) for values in (gain, lengths))
    first, second = (values - median(values[np.isfinite(values)]) for values in (first, second))
    usual = (np.abs(first) < _USUAL) & (np.abs(second) < _USUAL)
    first, second = (values[usual] - values[usual].mean() for values in (first, second))
    energy = float(first @ first)
    if energy <= 0:
        return False
    left = float(np.std(first + second)) / max(float(np.std(second)), 1e-12)
    return bool(left < _LEFT and _SLOPES[0] < float(first @ second) / energy < _SLOPES[1])


def gain_values(tensors: Sequence[CanonicalTensor], gain: Gain) -> Float32:
    """The factors along the residual axis, (width,). Raises ``InputError``."""
    values: Float32 = (_vector(tensors[gain.position].view) + gain.offset).astype(np.float32)
    return values


def _vector(view: TensorView) -> Float64:
    with np.errstate(invalid="ignore"):
        values = to_float32(view.read(0, view.shape[0])).astype(np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _standard_ranks(values: NDArray[np.floating]) -> Float64:
    """Ranks of magnitudes, less their mean, of length 1; 0 for constants. Rows of (n, width)."""
    magnitudes = np.abs(values)
    ranks = magnitudes.argsort(axis=1).argsort(axis=1).astype(np.float64)
    ranks -= ranks.mean(axis=1, keepdims=True)
    ranks[magnitudes.max(axis=1) == magnitudes.min(axis=1)] = 0.0
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    standard: Float64 = np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0)
    return standard


def _standard_logs(values: NDArray[np.floating]) -> Float64:
    """Logarithms of magnitudes, less their mean, of length 1; 0 for constants. Rows of (n, width)."""
    with np.errstate(over="ignore"):
        magnitudes = np.nan_to_num(np.abs(values.astype(np.float64)), posinf=0.0)
    largest = magnitudes.max(axis=1, keepdims=True)
    logs = np.log(np.maximum(magnitudes, np.maximum(largest * _FLOOR, 1e-300)))
    logs -= logs.mean(axis=1, keepdims=True)
    length = np.linalg.norm(logs, axis=1, keepdims=True)
    standard: Float64 = np.divide(logs, length, out=np.zeros_like(logs), where=length > 1e-9)
    return standard


def find_tables(tensors: Sequence[CanonicalTensor], candidates: Iterable[int], width: int) -> list[Place]:
    """Tables with a row for each token: one or two of them. Reads no values."""
    places = [
        Place(position, tensors[position].view.shape[1] != width)
        for position in candidates
        if min(tensors[position].view.shape) >= 2
    ]
    tokens = [place for place in places if Axis.TOKEN in tensors[place.position].axes]
    return (tokens or _largest(tensors, places, width))[:2]


def rank_tables(
    tensors: Sequence[CanonicalTensor], places: Iterable[Place], gains: Mapping[int, Gain], seed: int
) -> tuple[Place, ...]:
    """The likeliest input embedding first.

    A table that a gain was turned against is the head. Otherwise rows of a head have more in common: what all tokens
    share moves no probability, and untrained ones are all pushed the same way. Raises ``InputError``.
    """
    return tuple(
        sorted(places, key=lambda one: (one.position in gains, _common(tensors[one.position].view, one, seed), one))
    )


def table_norms(view: TensorView, place: Place, seed: int) -> SliceNorms:
    """Norms along the residual axis of a table of tokens, without what all rows share. Raises ``InputError``."""
    rows = _token_rows(view, place, seed)
    spread = np.sqrt(np.mean((rows - rows.mean(axis=0)) ** 2, axis=0)).astype(np.float32)
    none = np.zeros(0, np.float32)
    return SliceNorms(spread, none) if place.transposed else SliceNorms(none, spread)


def _largest(tensors: Sequence[CanonicalTensor], places: Sequence[Place], width: int) -> list[Place]:
    """Without an axis that must be tokens: the one or two tables of the largest size, if nothing leads back from it."""
    sizes = Counter(_size(tensors, place, width) for place in places)
    largest = max(sizes, default=0)
    if largest < max(2 * width, _SMALLEST_VOCABULARY) or sizes[largest] > 2:
        return []
    chosen = [place for place in places if _size(tensors, place, width) == largest]
    neurons = {axis for place in chosen for axis in tensors[place.position].axes} & {Axis.NEURON, Axis.UNIT}
    return [] if neurons or len({place.transposed for place in chosen}) > 1 else chosen


def _size(tensors: Sequence[CanonicalTensor], place: Place, width: int) -> int:
    rows, columns = tensors[place.position].view.shape
    return columns if rows == width else rows


def _common(view: TensorView, place: Place, seed: int) -> float:
    """Share of the mean row in the squares of all rows."""
    rows = _token_rows(view, place, seed)
    rows -= rows.mean(axis=1, keepdims=True)
    total = float(np.mean(np.sum(rows**2, axis=1)))
    return float(np.sum(rows.mean(axis=0) ** 2)) / total if total > 0 else 0.0


def _token_rows(view: TensorView, place: Place, seed: int) -> Float64:
    """Rows of hashed tokens, (n, width), by the largest magnitude in them."""
    size = view.shape[1] if place.transposed else view.shape[0]
    if place.transposed:
        return read_run(view, 0, min(size, _TOKENS), columns=True).astype(np.float64)
    chosen = sample_indices(seed, Stream.AXIS_SAMPLE, size, _TOKENS).tolist()
    with np.errstate(over="ignore", invalid="ignore"):
        read = to_float32(np.concatenate([read_rows(view, i, i + 1) for i in chosen]))
    rows = np.nan_to_num(read.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return rows / max(float(np.abs(rows).max(initial=0.0)), 1e-300)


def find_positions(tensors: Sequence[CanonicalTensor], candidates: Iterable[int], width: int) -> Place | None:
    """The table of learned positions: neighbouring rows resemble each other, as in no other matrix. ``InputError``."""
    shapes = Counter(tensors[position].view.shape for position in candidates)
    places = [
        position
        for position in candidates
        if tensors[position].view.shape[1] == width
        and tensors[position].view.shape[0] >= _LEAST_ROWS
        and (shapes[tensors[position].view.shape] == 1 or tensors[position].view.shape[0] == width)
        and Axis.TOKEN not in tensors[position].axes
    ]
    if not places or len(places) > _MOST_TABLES or width > MOST_WIDTH:
        return None
    ranked = sorted(((*_neighbours(tensors[position].view), position) for position in places), reverse=True)
    runner_up = ranked[1][0] if len(ranked) > 1 else 0.0
    best, apart, position = ranked[0]
    clear = best >= max(_SMOOTH, _RATIO * runner_up) and apart >= _NO_CHANCE
    return Place(position, transposed=False) if clear else None


def _neighbours(view: TensorView) -> tuple[float, float]:
    """Mean cosine of neighbouring rows, without what all rows share; and how far it lies from that of other pairs, in
    standard deviations of such a mean."""
    unit = units(read_run(view, 0, min(view.shape[0], _ROWS), columns=False))
    own = units(unit - unit.mean(axis=0))
    gram = (own @ own.T).astype(np.float64)
    others = gram[np.triu_indices(len(gram), 2)]
    near = float(np.mean(np.diagonal(gram, 1)))
    spread = max(float(others.std()), 1e-12) / np.sqrt(len(gram) - 1)
    return near, (near - float(others.mean())) / spread
