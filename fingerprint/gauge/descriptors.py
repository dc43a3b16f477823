"""Descriptors of an MLP's neurons that rotating the residual stream, rescaling and negating neurons do not change.

Norms, cosines within a neuron, and quantiles of its cosines with the other neurons; in absolute value wherever up or
down of a gated MLP enters, so that they do not see the neuron's coin. They start the matching of two layers whose
frames have nothing in common (``comparing.procrustes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fingerprint.vectors import magnitude, median, row_norms, unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

QUANTILES: Final = np.linspace(0.03, 0.97, 9)
GATED_DESCRIPTORS: Final = 5 + 7 * QUANTILES.size
UNGATED_DESCRIPTORS: Final = 3 + 4 * QUANTILES.size
NORMS: Final = 2
_LEAST_NORM: Final = 1e-3
"""Norms are taken as at least this share of their median: a dead neuron's logarithm is finite."""
_NONE: Final = 1e-12
"""Norms, as shares of the largest entry of all, from which a neuron has a direction."""


class Descriptors(NamedTuple):
    """Descriptors of the neurons of a layer: ``standard`` (n, d) float32, whose columns have mean 0 and deviation 1, or
    are 0; ``means`` and ``spreads`` (d,) float64 of the columns before that. The first ``NORMS`` columns are logarithms
    of norms, whose means say only how the matrices were scaled. Columns from ``kept`` on are the same after every
    rewrite of the layer."""

    standard: Float32
    means: Float64
    spreads: Float64
    kept: int


def neuron_descriptors(gate: Float32, up: Float32 | None, down: Float32) -> Descriptors:
    """Descriptors of all neurons given: 68 for a gated MLP, 39 for an ungated one.

    ``gate`` (fc-in where ``up`` is None), ``up`` and ``down`` are (n, width), folded and finite, of largest entries
    near one.
    """
    last = _Matrix(down)
    if up is None:
        # Where the activation is ReLU a neuron's two norms can be traded for each other, which moves the mean neuron.
        directions = unit_rows(gate)
        first = _Matrix(directions - directions.mean(axis=0))
        reads, writes = _log(row_norms(gate)), _log(last.norms)
        scalars = [reads - writes, reads + writes, first.own(last)]
        blocks = _ungated(first, last)
    else:
        first = _Matrix(gate - gate.mean(axis=0))
        second = _Matrix(up)
        scalars = [
            _log(first.norms),
            _log(second.norms * last.norms),
            np.abs(first.own(second)),
            np.abs(first.own(last)),
            second.own(last),
        ]
        blocks = _gated(first, second, last)
    columns = np.concatenate([np.stack(scalars, axis=1), *blocks], axis=1).astype(np.float64)
    means = columns.mean(axis=0)
    columns -= means
    spreads = columns.std(axis=0)
    standard: Float64 = np.divide(columns, spreads, out=np.zeros_like(columns), where=spreads > 1e-9)
    return Descriptors(standard.astype(np.float32), means, spreads, kept=1 if up is None else 0)


class _Matrix:
    """Rows (n, width) whose cosines are asked for: no copy as unit rows, which would be as large."""

    def __init__(self, rows: Float32) -> None:
        self.rows, self.norms = rows, row_norms(rows)
        largest = magnitude(rows) or 1.0
        self._scale = np.zeros(len(rows), np.float32)
        np.divide(1.0 / largest, self.norms, out=self._scale, where=self.norms > _NONE, casting="same_kind")

    def cosines(self, other: _Matrix) -> Float32:
        """Of all rows with all of the other's: (n, n), 0 of rows that are 0."""
        found: Float32 = self.rows @ other.rows.T
        found *= self._scale[:, None]
        found *= other._scale
        return found

    def own(self, other: _Matrix) -> Float64:
        """Of every row with the one in the same place: (n,)."""
        sums: Float64 = np.einsum("ij,ij->i", self.rows, other.rows, dtype=np.float64)
        return sums * self._scale * other._scale


def _gated(gate: _Matrix, up: _Matrix, down: _Matrix) -> Iterator[Float32]:
    yield _quantiles(gate.cosines(gate))
    yield _quantiles(_magnitudes(up.cosines(up)))
    yield _quantiles(_magnitudes(down.cosines(down)))
    for other in (up, down):
        yield _quantiles(_magnitudes(gate.cosines(other)))
    yield from _both_ways(_magnitudes(up.cosines(down)))


def _ungated(first: _Matrix, last: _Matrix) -> Iterator[Float32]:
    for one in (first, last):
        yield _quantiles(one.cosines(one))
    yield from _both_ways(first.cosines(last))


def _both_ways(cosines: Float32) -> Iterator[Float32]:
    """Quantiles of the rows, and of the columns."""
    turned = cosines.T.copy()  # sorting the rows spoils them
    yield _quantiles(cosines)
    yield _quantiles(turned)


def _magnitudes(cosines: Float32) -> Float32:
    """In place."""
    return np.abs(cosines, out=cosines)


def _quantiles(cosines: Float32) -> Float32:
    """Quantiles of every row: (n, 9). Sorts the rows, which takes a tenth of the time that ``partition`` takes."""
    places = (QUANTILES * (cosines.shape[1] - 1)).astype(np.int64)
    cosines.sort(axis=1)
    found: Float32 = cosines[:, places]
    return found


def _log(norms: Float64) -> Float64:
    floor = max(_LEAST_NORM * median(norms), np.finfo(np.float64).tiny)
    logs: Float64 = np.log(np.maximum(norms, floor))
    return logs
