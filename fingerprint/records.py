"""What a fingerprint holds: one record per canonical tensor, one per MLP, and the totals."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.parameters import Parameters
    from fingerprint.vocabulary import Axis, ChannelKind, Circuit, Content, Role

Float32 = NDArray[np.float32]


class TensorStatistics(Struct, frozen=True):
    """Moments and marks of one tensor, in the units of its values; over finite elements.

    ``mean``, ``deviation`` (standard deviation), ``largest`` (of absolute values), ``kurtosis`` (3 for a Gaussian),
    ``zeros`` (share of exact zeros), ``nonfinite`` (number of NaN and infinities), ``lattice_bits`` (bits of the
    uniform grid or code book that the values lie on within short runs; 0 if they lie on none).
    """

    mean: float
    deviation: float
    largest: float
    kurtosis: float
    zeros: float
    nonfinite: int
    lattice_bits: int


class AxisSample(Struct, frozen=True):
    """Sketches of sampled slices along one axis of a matrix.

    ``dimension`` 0 samples rows, 1 samples columns; ``size`` is the length of that axis; ``indices`` (m,) int64,
    ascending, are a function of ``size`` and the parameters alone; ``values`` (m, axis_width) float32 are the
    doubly centred slices times random signs. ``digest`` is that of the values of the first ``DIGESTED_SLICES`` of them,
    ``casts`` those after rounding to narrower float types; empty where nothing was hashed.

    At quick depth the slices are only less their own means: what is the same in all of them is left in. Compare after
    taking the mean over the slices away.
    """

    axis: Axis
    dimension: int
    size: int
    indices: NDArray[np.int64]
    values: Float32
    digest: bytes = b""
    casts: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))


class TensorRecord(Struct, frozen=True):
    """One canonical tensor.

    ``shape`` is canonical, (out, in, ...); ``oriented`` says whether that orientation is known or only as stored;
    ``digest`` is the 32-byte content digest (empty where the tensor was not read whole), ``casts`` the digests that the
    tensor has after rounding to narrower
    float types, by type name; ``sketch`` is the doubly centred linear sketch (k, k) in the units of the values (its
    squared Frobenius norm estimates that of the centred matrix), absent for vectors, common content and tensors left
    out by the budget; ``turned_digest`` is that of the transpose, known only of a suspect's matrix that was seen to
    resemble the transpose of a registered one, or of a suspect's kernel with height and width exchanged.
    """

    name: str
    role: Role
    layer: int | None
    expert: int | None
    shape: tuple[int, ...]
    oriented: bool
    dtype: str
    content: Content
    digest: bytes
    casts: Mapping[str, bytes]
    statistics: TensorStatistics
    sketch: Float32 | None
    axes: tuple[AxisSample, ...]
    turned_digest: bytes = b""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class NeuronSample(Struct, frozen=True):
    """Coordinates of sampled hidden neurons of one MLP in a frame of the residual stream.

    ``size`` is the number of neurons of the MLP; ``indices`` (m,) int64 those sampled, ascending; ``gate`` (rows of
    the gate projection, or of fc-in when ``up`` is absent), ``up`` and ``down`` (columns of the down projection) are
    (m, w) float32, w being the parameters' ``frame_width`` but for the frame "self". ``tensors`` are the positions of
    gate, up (-1 if absent) and down in the fingerprint's list of tensors. ``activation`` is the activation's name where
    the family is known ("" otherwise). ``descriptors`` (m, d) float32 do not change when the residual stream is
    rotated; only samples in the frame "self" have them.
    """

    layer: int | None
    expert: int | None
    frame: str
    activation: str
    size: int
    tensors: tuple[int, int, int]
    indices: NDArray[np.int64]
    gate: Float32
    up: Float32 | None
    down: Float32
    descriptors: Float32 | None = None


class ChannelSample(Struct, frozen=True):
    """Coordinates of sampled attention channels of one layer in a frame of the residual stream.

    ``size`` is the number of channels (of frequency pairs, if rotary) of all key/value heads, ``head`` that of one
    head; ``indices`` (m,) int64 those sampled, ascending: channel c of head h is h * head + c. ``parts`` are
    (p, m, frame_width) float32, p and their meaning depending on ``kind``. ``tensors`` are the positions of value and
    attention output, or of key and query, in the fingerprint's list of tensors.
    """

    layer: int | None
    frame: str
    kind: ChannelKind
    size: int
    head: int
    tensors: tuple[int, int]
    indices: NDArray[np.int64]
    parts: Float32


class LayerGram(Struct, frozen=True):
    """A unit vector (index_width**2,) float32 of one circuit of a layer, by which it is looked up: never evidence.

    The circuit is a product of two matrices in ``frame``, which no rewrite of the layer changes; ``tensors`` are their
    positions in the fingerprint's list of tensors.
    """

    layer: int | None
    frame: str
    circuit: Circuit
    tensors: tuple[int, int]
    values: Float32


class Fingerprint(Struct, frozen=True):
    """Everything measured about one checkpoint, at one depth, with one set of parameters.

    ``tensors`` are in the order of the checkpoint after splitting; ``stored_bytes`` is the size of its files,
    ``bytes_read`` what was read of them; ``findings`` are (code, message) pairs of what was noticed while reading;
    ``claims`` are labels found beside the weights, which decide nothing; ``complete`` is false if parts were absent.
    """

    parameters: Parameters
    depth: str
    format: str
    files: int
    stored_bytes: int
    bytes_read: int
    dtypes: Mapping[str, int]
    complete: bool
    tensors: tuple[TensorRecord, ...]
    neurons: tuple[NeuronSample, ...]
    findings: tuple[tuple[str, str], ...]
    claims: Mapping[str, str]
    channels: tuple[ChannelSample, ...] = ()
    grams: tuple[LayerGram, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements of all tensors (the model's parameters and buffers)."""
        return sum(record.elements for record in self.tensors)
