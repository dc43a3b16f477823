"""How the channels of one matrix resemble each other: what two projections that share a hidden axis have in common.

Neurons whose gate rows are alike have down columns that are alike, and so have channels of values and of the output
behind them, whatever was permuted, rescaled, rotated or folded. So the correlation of two Gram matrices over pairs of
channels tells whether two matrices belong together (the statistic of Mantel 1967; representational similarity,
Kriegeskorte et al. 2008). Between matrices of different layers the numbering of channels is arbitrary, which makes the
correlation zero up to chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fingerprint.dtypes import to_float32
from fingerprint.tensors import Transposed, read_rows

if TYPE_CHECKING:
    from fingerprint.tensors import TensorView

Float32 = NDArray[np.float32]

_BLOCK: Final = 1 << 20
_RIDGE: Final = 1e-3
_TINY: Final = 1e-30
_OUTLIER: Final = 4.0


def read_run(view: TensorView, start: int, stop: int, *, columns: bool) -> Float32:
    """Rows (``columns``: columns) ``start`` to ``stop`` of a matrix as the rows of a float32 array.

    Values that are not finite count as 0, and all are divided by the largest magnitude, so that no product of two
    overflows. Reads no more of the matrix than is asked for where a run of columns is short against a row. Raises
    ``InputError``.
    """
    source, across = (view.source, not columns) if isinstance(view, Transposed) else (view, columns)
    rows, width = source.shape[0], source.shape[1]
    if not across:
        return _scaled(read_rows(source, start, stop))
    # A read for each row costs about as much as some hundred values.
    if width <= max(4 * (stop - start), 256):
        step = max(1, _BLOCK // width)
        pieces = [read_rows(source, row, min(row + step, rows))[:, start:stop] for row in range(0, rows, step)]
        return _scaled(np.concatenate(pieces).T)
    run = np.empty((rows, stop - start), source.dtype.numpy)
    for row in range(rows):
        run[row] = source.read(row * width + start, row * width + stop)
    return _scaled(run.T)


def _scaled(native: NDArray[np.generic]) -> Float32:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = np.nan_to_num(to_float32(native), nan=0.0, posinf=0.0, neginf=0.0)
        largest = float(np.abs(values).max(initial=0.0))
        scaled: Float32 = values / np.float32(largest) if largest > _TINY else np.zeros_like(values)
    return np.ascontiguousarray(scaled)


def units(rows: Float32) -> Float32:
    """Rows less their means, of length 1; 0 where nothing is left."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: Float32 = np.divide(centred, length, out=np.zeros_like(centred), where=length > 1e-12)
    return unit


def common_share(unit: Float32) -> float:
    """How much unit rows have in common beyond chance: squared length of their mean, times their number; 1 if none.

    Rows of a gate, or of the first layer of an ungated MLP, share a direction, since what follows them is not odd; of
    up rows and down columns it is gone or small.
    """
    mean = unit.mean(axis=0, dtype=np.float64)
    return float(len(unit) * (mean @ mean))


def pair_features(gram: Float32) -> tuple[Float32, Float32]:
    """A Gram matrix of unit vectors (n, n) as two vectors over pairs: (n (n - 1) / 2,) signed, and of magnitudes.

    What a channel has in common with all others is taken out, and the vectors have mean 0 and length 1 (or are 0): the
    product of two, times the square root of their size, is about standard normal between matrices that have nothing to
    do with each other.
    """
    return _over_pairs(gram), _over_pairs(np.abs(gram))


def _over_pairs(gram: Float32) -> Float32:
    size = len(gram)
    upper = np.triu_indices(size, 1)
    if size < 4:
        return np.zeros(upper[0].size, np.float32)
    sums = (gram.sum(axis=1, dtype=np.float64) - np.diagonal(gram)) / (size - 2)
    return standardised(gram[upper] - sums[upper[0]] - sums[upper[1]])


def standardised(values: NDArray[np.floating]) -> Float32:
    """Less the mean, of length 1; 0 where nothing is left. Of outliers only so much that no few of them decide."""
    if not values.size:
        return values.astype(np.float32)
    centred = values - values.mean(dtype=np.float64)
    spread = float(np.sqrt(np.mean(centred * centred, dtype=np.float64)))
    if not spread > 1e-12:
        return np.zeros(values.shape, np.float32)
    clipped = np.clip(centred, -_OUTLIER * spread, _OUTLIER * spread)
    clipped -= clipped.mean(dtype=np.float64)
    made: Float32 = (clipped / np.linalg.norm(clipped)).astype(np.float32)
    return made


def as_correlations(gram: NDArray[np.floating]) -> Float32:
    """A Gram matrix divided by the lengths of its vectors."""
    lengths = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > _TINY)
    correlations: Float32 = (gram * scale[:, None] * scale[None, :]).astype(np.float32)
    return correlations


def block_inverse(gram: NDArray[np.floating], size: int) -> NDArray[np.float64]:
    """Inverses of the diagonal blocks of ``size`` of a Gram matrix, slightly damped: (n / size, size, size)."""
    count = len(gram) // size
    blocks = np.stack([gram[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)]).astype(float)
    damping = _RIDGE * np.trace(blocks, axis1=1, axis2=2)[:, None, None] / size + _TINY
    inverse: NDArray[np.float64] = np.linalg.inv(blocks + damping * np.eye(size))
    return inverse


def block_features(blocks: NDArray[np.floating]) -> Float32:
    """Off-diagonal correlations within blocks (count, size, size) as one vector of mean 0 and length 1."""
    size = blocks.shape[-1]
    upper = np.triu_indices(size, 1)
    return standardised(np.concatenate([as_correlations(block)[upper] for block in blocks]))
