"""Channels of convolutions in the space of the network's own input, where their order and scales do not show.

Channels may be put in any order and, between ReLUs, multiplied by positive numbers; a batch norm may be folded into the
convolution in front of it. What a chain of kernels composes to, ``W_l * ... * W_1``, shows nothing of that: its rows
are the units' coordinates, and what the next layer makes of a unit, without the unit's own share, stands opposite.
Nothing in such a network is odd, so there are no coins.
"""

from __future__ import annotations

from itertools import permutations, zip_longest
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from fingerprint.gauge.unit_rows import (
    MOST_COMPOSED,
    compose,
    composed_shape,
    natural_order,
    read_vector,
    read_whole,
    sample_of,
)
from fingerprint.vectors import row_norms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.parameters import Parameters
    from fingerprint.records import NeuronSample

    Float64 = NDArray[np.float64]

DEEPEST: Final = 5
"""Layers of a chain that are looked at, from the input: compositions of many kernels come to resemble each other."""
MOST_CHAINS: Final = 8
_LEAST: Final = 16
_MOST_INPUTS: Final = 16
_EPSILON: Final = 1e-5


class _Map(Struct, frozen=True):
    """A kernel as (out, in, height, width), with the factors of a batch norm behind it folded in; or a classifier."""

    position: int
    kernel: Float64


def convolutional_samples(
    tensors: Sequence[CanonicalTensor], usable: Sequence[int], count: int, parameters: Parameters
) -> Iterator[NeuronSample]:
    """Units of the first to the fifth layer of each chain of convolutions from the network's input."""
    kernels = {i: tensors[i].view.shape for i in usable if len(tensors[i].view.shape) in {3, 4}}
    if len(kernels) < 2:
        return
    ends = {i: tensors[i].view.shape for i in usable if len(tensors[i].view.shape) == 2}
    norms = _batch_norms(tensors)
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for chain in _chains(tensors, kernels):
        maps = [
            _map(tensors, position, norms, [after] if after is not None else ends)
            for position, after in zip_longest(chain, chain[1:])
        ]
        units, lengths = _unit(maps[0].kernel)
        for place in range(len(maps)):
            if place:
                if composed_shape(maps[place].kernel.shape, units.shape) is None:
                    break
                units, lengths = _unit(compose(maps[place].kernel * lengths[:, None, None], units))
            beginning = place, tuple(chain[: place + 2])
            if beginning in seen:  # chains that part later have it in common
                continue
            seen.add(beginning)
            following = _following(maps, place, units, lengths, tensors, ends)
            if len(units) < _LEAST or following is None:
                continue
            down, position = following
            yield sample_of(units, down, (maps[place].position, position), count, parameters)


def _unit(composed: Float64) -> tuple[Float64, Float64]:
    lengths = np.maximum(np.linalg.norm(composed.reshape(len(composed), -1), axis=1), 1e-30)
    return composed / lengths[:, None, None, None], lengths


def _following(
    maps: Sequence[_Map],
    place: int,
    units: Float64,
    lengths: Float64,
    tensors: Sequence[CanonicalTensor],
    ends: Mapping[int, tuple[int, ...]],
) -> tuple[Float64, int] | None:
    """What follows each unit, (units, anything): the next layer's composition, or the classifier's own numbers."""
    if place + 1 < len(maps):
        _, inputs, high, wide = maps[place + 1].kernel.shape
        composed = composed_shape(maps[place + 1].kernel.shape, units.shape)
        if composed is None or inputs * high * wide * prod(composed[1:]) > MOST_COMPOSED:
            return None
        return _opposite(maps[place + 1].kernel, units, lengths), maps[place + 1].position
    for position, shape in ends.items():
        if shape[1] % len(units) == 0 and shape[1] >= len(units) > shape[0]:
            matrix = read_whole(tensors[position])
            return matrix.reshape(shape[0], len(units), -1).transpose(1, 0, 2).reshape(len(units), -1), position
    return None


def _opposite(kernel: Float64, units: Float64, lengths: Float64) -> Float64:
    """For each unit and tap the next layer's compositions, weighted by how much they read of it, less its own share.

    Its own share would make any two networks agree that have similar units.
    """
    out, inputs, high, wide = kernel.shape
    scaled = kernel * lengths[:, None, None]
    whole = compose(scaled, units)
    size = np.maximum(np.linalg.norm(whole.reshape(out, -1), axis=1), 1e-30)
    scaled = scaled / np.maximum(np.linalg.norm(scaled.reshape(out, -1), axis=1), 1e-30)[:, None, None, None]
    weights = scaled.reshape(out, inputs, -1)
    unit = (whole / size[:, None, None, None]).reshape(out, -1)
    found: Float64 = np.tensordot(weights, unit, axes=(0, 0))  # (in, taps, numbers of a composition)
    ratio = lengths[None, :, None] * kernel.reshape(out, inputs, -1) / size[:, None, None]
    # How much of the unit, at each tap, is in its own sum: (in, taps, taps)
    own = weights.transpose(1, 2, 0) @ ratio.transpose(1, 0, 2)
    _, channels, a, b = units.shape
    shifted = np.zeros((inputs, high * wide, channels, a + high - 1, b + wide - 1))
    for tap in range(high * wide):
        row, column = divmod(tap, wide)
        shifted[:, tap, :, row : row + a, column : column + b] = units
    found -= own @ shifted.reshape(inputs, high * wide, -1)
    return found.reshape(inputs, -1)


def _map(
    tensors: Sequence[CanonicalTensor], position: int, norms: Mapping[str, tuple[int, int]], readers: Iterable[int]
) -> _Map:
    kernel = read_whole(tensors[position])
    kernel = kernel[:, :, None] if kernel.ndim == 3 else kernel
    return _Map(position, kernel * _factors(tensors, position, kernel, norms, readers)[:, None, None, None])


def _factors(
    tensors: Sequence[CanonicalTensor],
    position: int,
    kernel: Float64,
    norms: Mapping[str, tuple[int, int]],
    readers: Iterable[int],
) -> Float64:
    """What a batch norm multiplies each output by: by name, or where its four vectors are the only ones so long."""
    size = len(kernel)
    pair = next((norms[stem] for stem in _norm_stems(tensors[position].name) if stem in norms), None)
    if pair is not None and all(tensors[one].view.shape == (size,) for one in pair):
        gain, variance = (read_vector(tensors[one]) for one in pair)
        return gain / np.sqrt(np.maximum(variance, 0.0) + _EPSILON)
    vectors = [one for one in tensors if one.view.shape == (size,)]
    if norms or len(vectors) != 4:
        return np.ones(size)
    positive = [values for one in vectors if (values := read_vector(one)).min(initial=1.0) > 0]
    if len(positive) != 2:
        return np.ones(size)
    # A channel's part in the function, its row behind the norm times the column that reads it, differs least if
    # variance and gain are not taken for one another: true of 65 of the norms of 66 small layers, and of 66 rescaled.
    rows = row_norms(kernel.reshape(size, -1).astype(np.float32))
    columns = next((_column_norms(tensors[one], size) for one in readers if _reads(tensors[one], size)), np.ones(size))
    parts = np.maximum(rows * columns, 1e-30)
    tried = [gain / np.sqrt(variance + _EPSILON) for gain, variance in permutations(positive)]
    return min(tried, key=lambda factors: float(np.log(parts * factors).std()))


def _reads(tensor: CanonicalTensor, size: int) -> bool:
    """Whether a kernel, or a classifier of pooled or flattened channels, reads as many."""
    shape = tensor.view.shape
    return shape[1] == size or (len(shape) == 2 and shape[1] % size == 0)


def _column_norms(tensor: CanonicalTensor, size: int) -> Float64:
    matrix = read_whole(tensor)
    columns: Float64 = np.sqrt(np.einsum("oij,oij->i", *[matrix.reshape(len(matrix), size, -1)] * 2))
    return columns


def _batch_norms(tensors: Sequence[CanonicalTensor]) -> dict[str, tuple[int, int]]:
    """Positions of gain and variance of the batch norms that have names, by module."""
    names = {tensor.name: position for position, tensor in enumerate(tensors) if len(tensor.view.shape) == 1}
    found = {}
    for name, position in names.items():
        for variance, gain in (("running_var", "weight"), ("moving_variance", "gamma")):
            stem = name.removesuffix(f".{variance}")
            if stem != name and f"{stem}.{gain}" in names:
                found[stem] = (names[f"{stem}.{gain}"], position)
    return found


def _norm_stems(name: str) -> Iterator[str]:
    """Names that the norm behind a convolution of that name usually has: ``bn1`` behind ``conv1``, 1 behind 0."""
    stem = name.removesuffix(".weight").removesuffix(".kernel")
    head, _, last = stem.rpartition(".")
    prefix = f"{head}." if head else ""
    for old, new in (("conv", "bn"), ("conv", "norm"), ("conv", "batch_norm"), ("conv", "batchnorm")):
        if old in last:
            yield prefix + last.replace(old, new)
    if last.isdigit():
        yield f"{prefix}{int(last) + 1}"
    yield f"{stem}.bn"
    yield f"{prefix}bn"


def _chains(tensors: Sequence[CanonicalTensor], kernels: Mapping[int, tuple[int, ...]]) -> list[list[int]]:
    """Chains of convolutions from the network's input, each reading as many channels as the last one puts out.

    In the order of their names where these have numbers; all that shapes allow, up to a bound, where they do not. Where
    there is one input, a kernel that puts out as many channels as it reads is not left out: what goes past it would be
    a chain that is none, and look like the network without that layer.
    """
    order = sorted(kernels, key=lambda position: natural_order(tensors[position].name))
    produced = {shape[0] for shape in kernels.values()}
    starts = [i for i in order if kernels[i][1] <= _MOST_INPUTS and kernels[i][1] not in produced]
    found: list[list[int]] = []

    def extend(chain: list[int]) -> None:
        if len(found) >= MOST_CHAINS:
            return
        following = [i for i in order if i not in chain and kernels[i][1] == kernels[chain[-1]][0]]
        if len(starts) == 1:
            following = [i for i in following if kernels[i][0] == kernels[i][1]] or following
        if not following or len(chain) > DEEPEST:
            found.append(chain)
            return
        for one in following[:MOST_CHAINS]:
            extend([*chain, one])

    for start in starts[:2]:
        extend([start])
    return [chain for chain in found if len(chain) > 1]
