"""What reading the hidden units of recurrent and of convolutional networks has in common."""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.dtypes import to_float32
from fingerprint.records import NeuronSample
from fingerprint.signs import Stream, sample_indices, sign_matrix
from fingerprint.vocabulary import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.parameters import Parameters

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

MOST_COMPOSED: Final = 1 << 23
"""Numbers that one composition of kernels may have: 64 MB."""
MOST_PRODUCTS: Final = 1 << 32
"""Products of numbers that it may take: a tenth of a second or two."""


def read_whole(tensor: CanonicalTensor) -> Float64:
    """All of a tensor over its largest magnitude, in float64. Raises ``InputError``."""
    values = to_float32(tensor.view.read(0, int(np.prod(tensor.view.shape)))).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(np.abs(values).max(initial=0.0))
    scaled: Float64 = (values / largest if largest > 0 else values).reshape(tensor.view.shape)
    return scaled


def read_vector(tensor: CanonicalTensor) -> Float64:
    """A vector in float64; what is not finite is 0. Raises ``InputError``."""
    values = to_float32(tensor.view.read(0, tensor.view.shape[0])).astype(np.float64)
    finite: Float64 = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return finite


def choose_units(size: int, count: int, parameters: Parameters) -> NDArray[np.int64]:
    """Numbers of the units that are kept, ascending: hashed."""
    if size <= count:
        return np.arange(size, dtype=np.int64)
    return sample_indices(parameters.seed, Stream.NEURON_SAMPLE, size, count).astype(np.int64)


def spread_directions(length: int, parameters: Parameters) -> Float64:
    """Random signs by which rows of ``length`` numbers are projected: (length, frame_width) float64."""
    signs = sign_matrix(parameters.seed, Stream.FRAME, length, parameters.frame_width).astype(np.float64)
    scaled: Float64 = signs / np.sqrt(signs.shape[1])
    return scaled


def projected(rows: Float64, parameters: Parameters) -> Float32:
    """Rows of length 1 less what all of them share, in random directions: (n, frame_width) float32."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    centred = unit - unit.mean(axis=0)
    found: Float32 = (centred @ spread_directions(rows.shape[1], parameters)).astype(np.float32)
    return found


def composed_shape(kernel: Sequence[int], units: Sequence[int]) -> tuple[int, int, int, int] | None:
    """The shape of what a kernel of one shape makes of units of another; None if that is beyond the bounds."""
    out, _, high, wide = kernel
    _, inputs, a, b = units
    shape = out, inputs, a + high - 1, b + wide - 1
    fits = prod(shape) <= MOST_COMPOSED and prod(kernel) * prod(shape[1:]) <= MOST_PRODUCTS
    return shape if fits else None


def compose(kernel: Float64, units: Float64) -> Float64:
    """What a kernel (out, in, h, w) makes of units (in, c, a, b) in front of it: (out, c, a + h - 1, b + w - 1)."""
    out, _, high, wide = kernel.shape
    _, inputs, a, b = units.shape
    found = np.zeros((out, inputs, a + high - 1, b + wide - 1))
    flat = units.reshape(len(units), -1)
    for row in range(high):
        for column in range(wide):
            found[:, :, row : row + a, column : column + b] += (kernel[:, :, row, column] @ flat).reshape(
                out, inputs, a, b
            )
    return found


def sample_of(
    gate: Float64, down: Float64, tensors: tuple[int, int], count: int, parameters: Parameters
) -> NeuronSample:
    """The sample of a space of channels, whose coordinates are the rows of ``gate`` and ``down`` (n, anything), made
    of the first of ``tensors`` and of the last."""
    size = len(gate)
    indices = choose_units(size, count, parameters)
    first, last = (projected(rows.reshape(size, -1), parameters)[indices] for rows in (gate, down))
    return NeuronSample(
        layer=None,
        expert=None,
        frame=Frame.UNITS,
        activation="",
        size=size,
        tensors=(tensors[0], -1, tensors[1]),
        indices=indices,
        gate=first,
        up=None,
        down=last,
    )


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """By what names are sorted so that 2 comes before 10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))
