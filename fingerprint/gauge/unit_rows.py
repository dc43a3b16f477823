"""What reading the hidden units of recurrent and of convolutional networks has in common."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from fingerprint.dtypes import to_float32
from fingerprint.signs import Stream, sample_indices, sign_matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.parameters import Parameters

    Float64 = NDArray[np.float64]


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


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """By what names are sorted so that 2 comes before 10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))
