"""The self frame: an MLP's neurons in the leading directions of its own gate matrix, needing no embeddings.

Rotating the residual stream turns these directions with it, and training mixes them among themselves, so that two such
frames agree only up to an orthogonal matrix, which ``comparing.procrustes`` finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.gauge.descriptors import NORMS, Descriptors, neuron_descriptors
from fingerprint.signs import Stream, sign_block
from fingerprint.vectors import magnitude, unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.parameters import Parameters

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SELF_WIDTH: Final = 48
"""Directions that are kept."""
_SIGNS: Final = 64
"""Signs that the generator has for one number."""
_MOST_PAIRS: Final = 1 << 12
_WEIGHT: Final = 8.0
"""Of a mean or deviation beside a correlation: with 0 two of 154 rewritten relatives of one recipe's models were not
among the first ten, with 8 all were."""
SELF_NEURONS: Final = 256
"""Neurons of a layer that are kept of a registered model: those of largest gate norm."""
SELF_REFERENCE: Final = 1024
"""Neurons of a layer, those of largest gate norm, that the frame and the descriptors are computed from."""
_LARGE: Final = 512
"""Size of a matrix from which a few eigenvectors are asked for alone: of 1,024 rows that takes 74 ms, all of them
196 ms."""
_AT_ONCE: Final = 512


class SelfCoordinates(Struct, frozen=True):
    """Neurons of one MLP in its self frame: ``gate``, ``up`` (None if ungated) and ``down`` are (n, width) unit rows.

    All float32.
    """

    gate: Float32
    up: Float32 | None
    down: Float32
    descriptors: Descriptors


def self_coordinates(gate: Float32, up: Float32 | None, down: Float32, *, width: int = SELF_WIDTH) -> SelfCoordinates:
    """Coordinates of all neurons given in the ``width`` leading right singular directions of the centred gate.

    ``gate``, ``up`` and ``down`` (n, residual width) are folded and finite. Directions that the rank does not reach are
    0. The mean neuron is taken out of the gate: all neurons of a layer, and all models, may share it.
    """
    gate, down = _scaled(gate), _scaled(down)
    up = None if up is None else _scaled(up)
    centred = gate - gate.mean(axis=0)
    frame = _leading(centred, width)
    coordinates = unit_rows(centred @ frame)
    del centred  # as large as the matrix, and what follows makes another one of that size
    return SelfCoordinates(
        gate=coordinates,
        up=None if up is None else unit_rows(up @ frame),
        down=unit_rows(down @ frame),
        descriptors=neuron_descriptors(gate, up, down),
    )


def _leading(rows: Float32, width: int) -> Float32:
    """The leading right singular directions: (columns, width), orthonormal or 0. In float64, a part at a time."""
    count, size = rows.shape
    turned = count < size
    tall = rows.T if turned else rows
    gram = np.zeros((min(count, size),) * 2)
    for part in _parts(len(tall)):
        block = tall[part].astype(np.float64)
        gram += block.T @ block
    values, directions = _largest_eigenpairs(gram, width)
    reached = values > 1e-9 * max(float(values.max(initial=0.0)), 0.0)
    values, directions = values[reached], directions[:, reached]
    frame = np.zeros((size, width), np.float32)
    if not turned:
        frame[:, : values.size] = directions
        return frame
    for part in _parts(size):
        frame[part, : values.size] = tall[part].astype(np.float64) @ (directions / np.sqrt(values))
    return frame


def _largest_eigenpairs(gram: Float64, number: int) -> tuple[Float64, Float64]:
    """The largest eigenvalues of a symmetric matrix (n, n), up to ``number``, the largest first, and their vectors."""
    if len(gram) < _LARGE:
        values, vectors = np.linalg.eigh(gram)
    else:
        from scipy.linalg import eigh  # takes a tenth of a second to import

        values, vectors = eigh(gram, subset_by_index=(len(gram) - number, len(gram) - 1), check_finite=False)
    return values[::-1][:number], vectors[:, ::-1][:, :number]


def _parts(number: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, number, _AT_ONCE))


def _scaled(rows: Float32) -> Float32:
    """The matrix over its largest entry, if that is not about one: then as it is, and no copy."""
    largest = np.float32(magnitude(rows))
    return rows if largest == 0 or 0.5 <= largest <= 2.0 else rows / largest


def layer_vector(descriptors: Descriptors, parameters: Parameters) -> Float32 | None:
    """The unit vector (index_width**2,) by which a layer is looked up: of correlations, means and deviations of
    descriptors.

    ``descriptors`` are those of all reference neurons. Layers of one recipe have most of it in common (cosines of .94
    between small models, .98 after rounding to 4 bits), so only how much nearer the nearest is means anything.
    None if nothing varies.
    """
    columns = descriptors.standard[:, descriptors.kept :].astype(np.float64)
    correlations = columns.T @ columns / max(len(columns), 1)
    upper = correlations[np.triu_indices(len(correlations), 1)]
    if not upper.any():
        return None
    values = np.concatenate([upper, _WEIGHT * descriptors.means[NORMS:], _WEIGHT * descriptors.spreads[NORMS:]])
    length = parameters.index_width**2
    found = np.zeros(length)
    for place, first in enumerate(range(0, length, _SIGNS)):
        start = place * _MOST_PAIRS
        signs = sign_block(parameters.seed, Stream.LAYER, start, start + values.size, min(_SIGNS, length - first))
        found[first : first + _SIGNS] = values @ signs
    size = float(np.linalg.norm(found))
    return (found / size).astype(np.float32) if size > 0.0 else None
