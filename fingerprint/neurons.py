"""Coordinates of sampled MLP neurons in a frame of the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.gauge.project import project_centred
from fingerprint.measure import matrix_shape
from fingerprint.records import NeuronSample
from fingerprint.signs import Stream, sample_indices, sign_matrix
from fingerprint.vocabulary import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.parameters import Parameters

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

UNNAMED: Final = "unknown"
"""Activation of an MLP that was put together without names: which projection is which is not known."""
MOST_NEURONS: Final = 1 << 16
"""Neurons that are sampled of one checkpoint, all MLPs together: 50 MB of coordinates."""
MOST_MLPS: Final = 512
"""MLPs whose neurons are sampled: a hashed part of a mixture of experts that has more."""
MOST_WIDTH: Final = 1 << 18
"""Widest residual stream whose neurons are sampled."""


class Projections(Struct, frozen=True):
    """Positions of an MLP's matrices among the canonical tensors, and which of them are stored transposed.

    Each of ``gate``, ``up`` and ``down`` is (position, transposed): a neuron is a row of gate and up and a column of
    down, the other way round where ``transposed``.
    """

    layer: int | None
    expert: int | None
    gate: tuple[int, bool]
    up: tuple[int, bool] | None
    down: tuple[int, bool]
    activation: str


def sample_neurons(
    tensors: Sequence[CanonicalTensor], mlp: Projections, gate_norms: Float32, count: int, parameters: Parameters
) -> NeuronSample:
    """Coordinates of ``count`` neurons of one MLP in the fixed frame of random signs.

    Half are those of largest gate norm, so that two samples overlap after a permutation; the rest are hashed by
    index. Each neuron's mean along the residual axis is removed.
    """
    size = gate_norms.size
    indices = choose_neurons(gate_norms, count, parameters)
    width = matrix_shape(tensors[mlp.gate[0]].view.shape)[0 if mlp.gate[1] else 1]
    frame = sign_matrix(parameters.seed, Stream.FRAME, width, parameters.frame_width).T

    def coordinates(part: tuple[int, bool], *, down: bool = False) -> Float32:
        scale = np.float32(1.0 / np.sqrt(len(frame)))
        return project_centred(tensors[part[0]].view, indices, frame, columns=part[1] != down) * scale

    return NeuronSample(
        layer=mlp.layer,
        expert=mlp.expert,
        frame=Frame.FIXED,
        activation=mlp.activation,
        size=size,
        tensors=(mlp.gate[0], -1 if mlp.up is None else mlp.up[0], mlp.down[0]),
        indices=indices,
        gate=coordinates(mlp.gate),
        up=None if mlp.up is None else coordinates(mlp.up),
        down=coordinates(mlp.down, down=True),
    )


def choose_neurons(gate_norms: Float32, count: int, parameters: Parameters) -> NDArray[np.int64]:
    """Indices of the sampled neurons, ascending: half by largest norm, the rest by hash."""
    size = gate_norms.size
    if size <= count:
        return np.arange(size, dtype=np.int64)
    largest = np.argsort(-gate_norms, kind="stable")[: count // 2]
    hashed = sample_indices(parameters.seed, Stream.NEURON_SAMPLE, size, count)
    rest = hashed[~np.isin(hashed, largest)]
    return np.sort(np.concatenate([largest, rest[: count - largest.size]])).astype(np.int64)
