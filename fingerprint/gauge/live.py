"""Neurons as the function sees them: those of one gate as one, and those that add nothing left out.

Whoever copies a model may widen its MLPs for nothing: split neurons, give each a part of what the first one reads and
writes, add ones that write nothing. All neurons of one gate g together add ``act(g x) Σ (up_j x) down_j``, so that the
leading singular pair of ``Σ up_j ⊗ down_j`` is the neuron that they were split from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from fingerprint.neurons import UNNAMED
from fingerprint.vectors import distinct, row_norms, unit_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fingerprint.records import NeuronSample

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]
    Int64 = NDArray[np.int64]

_ONE_GATE: Final = 0.99
"""Cosine from which two neurons have one gate."""
_NOTHING: Final = 1e-4
"""Share of an MLP's energy that the smallest neurons, which are left out, have together: a hundredth of its length."""
_NEIGHBOURS: Final = 32
"""Neurons of nearest projection, at least, among which one of the same gate is looked for."""
_AT_ONCE: Final = 64
_STEPS: Final = 4
_NEARLY_ALL: Final = 0.9
"""Share of the neurons that is as good as all of them."""


class Neurons(NamedTuple):
    """``rows`` (m,), ascending, of the neurons given that are left, with their ``gate``, ``up`` and ``down`` (m, w)."""

    rows: Int64
    gate: Float32
    up: Float32 | None
    down: Float32


def live_samples(samples: Sequence[NeuronSample]) -> tuple[NeuronSample, ...]:
    """Of a suspect's MLPs what is left of their neurons, where that is not all: to be kept beside the samples.

    Beside and not instead: which neurons never fire cannot be seen, and a few large ones would make all others small.
    """
    return tuple(live for one in samples if (live := _live_sample(one)) is not None)


def _live_sample(sample: NeuronSample) -> NeuronSample | None:
    """The sample of what is left of its neurons; None if nearly all of them are, or none.

    Those that are left have numbers of their own. ``size`` is how many would be left of the whole MLP if the neurons
    that were not sampled are like the others.
    """
    found = live_neurons(sample.gate, sample.up, sample.down, named=sample.activation != UNNAMED)
    if is_nearly_all(found.rows.size, sample.indices.size) or not found.rows.size:
        return None
    return replace(
        sample,
        size=max(found.rows.size, round(sample.size * found.rows.size / sample.indices.size)),
        indices=np.arange(found.rows.size, dtype=np.int64),
        gate=found.gate,
        up=found.up,
        down=found.down,
    )


def is_nearly_all(left: int, of: int) -> bool:
    """Whether what is left of so many neurons is not worth looking at beside them."""
    return left >= _NEARLY_ALL * of


def live_neurons(gate: Float32, up: Float32 | None, down: Float32, *, named: bool) -> Neurons:
    """What is left of neurons with rows (n, w) of gate, up and down.

    Without names (``named``) the gate may be any of the matrices that neurons are split in: both are tried.
    """
    found = _merged(Neurons(np.arange(len(gate)), gate, up, down))
    if not named and up is None:
        rows, first, _, last = _merged(Neurons(found.rows, found.down, None, found.gate))
        found = Neurons(rows, last, None, first)
    elif not named and found.up is not None:
        by_up = _merged(Neurons(found.rows, found.up, found.gate, found.down))
        if by_up.up is not None:
            found = Neurons(by_up.rows, by_up.up, by_up.gate, by_up.down)
    lengths = row_norms(found.gate) * row_norms(found.down)
    return _taken(found, contributing(lengths if found.up is None else lengths * row_norms(found.up)))


def _taken(neurons: Neurons, kept: Int64) -> Neurons:
    rows, gate, up, down = neurons
    if kept.size == rows.size:
        return neurons
    return Neurons(rows[kept], gate[kept], None if up is None else up[kept], down[kept])


def contributing(lengths: Float64) -> Int64:
    """Positions, ascending, of all but the smallest of ``lengths``, which have ``_NOTHING`` of the energy together."""
    order = np.argsort(lengths, kind="stable")
    energy = np.cumsum(lengths[order] ** 2)
    kept: Int64 = np.sort(order[energy > _NOTHING * energy[-1]]) if energy.size else order
    return kept


def _merged(neurons: Neurons) -> Neurons:
    """Each group of neurons of one gate as one, in the place of that of the largest gate."""
    groups = _groups(neurons.gate)
    sizes = np.bincount(groups)
    if sizes.size == groups.size:
        return neurons
    lengths = row_norms(neurons.gate)
    up, down = None if neurons.up is None else neurons.up.copy(), neurons.down.copy()
    gone = np.zeros(groups.size, np.bool_)
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.cumsum(sizes)[:-1]):
        if members.size < 2 or not lengths[members].any():
            continue
        first = members[lengths[members].argmax()]
        weights = (lengths[members] / lengths[first])[:, None]
        gone[members[members != first]] = True
        last = weights * neurons.down[members].astype(np.float64)
        if up is None or neurons.up is None:
            down[first] = _narrowed(last.sum(axis=0))
        else:
            up[first], down[first] = map(_narrowed, _joined(neurons.up[members].astype(np.float64), last))
    return _taken(Neurons(neurons.rows, neurons.gate, up, down), np.flatnonzero(~gone))


def _joined(ups: Float64, downs: Float64) -> tuple[Float64, Float64]:
    """The leading pair of ``Σ up_j ⊗ down_j``, up as long as the first of ``ups`` and of its sign.

    By steps of the power method: what was split has one pair and rounding beside it.
    """
    largest, other = (float(np.abs(rows).max()) or 1.0 for rows in (ups, downs))
    ups, downs = ups / largest, downs / other
    up, down = ups[0], (ups @ ups[0]) @ downs
    for _ in range(_STEPS):
        up = ups.T @ (downs @ down)
        length = float(np.linalg.norm(up))
        up = up / length if length > 0.0 else up
        down = (ups @ up) @ downs
    length = float(np.linalg.norm(ups[0])) * (1.0 if float(up @ ups[0]) >= 0.0 else -1.0)
    return up * (length * largest), down * (other / (length or 1.0))


def _narrowed(row: Float64) -> Float32:
    """In float32; zeros if it leaves that."""
    with np.errstate(over="ignore"):
        found = row.astype(np.float32)
    return found if np.isfinite(found).all() else np.zeros_like(found)


def _groups(gate: Float32) -> Int64:
    """The number of each neuron's group: of the same gate, and near one another along one direction."""
    units = unit_rows(gate)
    order = np.argsort(units @ np.cos(np.arange(gate.shape[1], dtype=np.float32)), kind="stable")
    units = units[order]
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(order), _AT_ONCE):
        near = units[start : start + _AT_ONCE] @ units[start : start + _AT_ONCE + _NEIGHBOURS].T >= _ONE_GATE
        if np.count_nonzero(near) > np.count_nonzero(np.diagonal(near)):  # a neuron is hardly ever near another
            pairs.append(np.argwhere(np.triu(near, 1)) + start)
    left, right = order[np.concatenate(pairs)].T
    return _joined_by(left, right, len(order))


def _joined_by(left: Int64, right: Int64, number: int) -> Int64:
    """For each of ``number`` things the number of its group, where ``left`` and ``right`` (k,) are in one group each.

    Everything takes the least label of what it is joined with, and then that label's own, until nothing changes.
    ``scipy.sparse.csgraph`` does the same, but takes .27 s of every process to import.
    """
    labels = np.arange(number)
    while True:
        least = np.minimum(labels[left], labels[right])
        found = labels.copy()
        for side in (left, right):
            np.minimum.at(found, side, least)
        found = found[found]
        if np.array_equal(found, labels):
            numbered: Int64 = np.searchsorted(distinct(labels), labels)
            return numbered
        labels = found
