"""Channels of attention in a frame of the residual stream: what one sign of one channel may flip.

A value row and the output columns that read it may be negated together, as may a key row and its query row where no
rotary positions come between them; with rotary positions the two channels of a frequency pair turn together. Each is a
coin of the registered model, as a neuron of a gated MLP is (``comparing.coins``). Under grouped heads all query heads
of a group share the coin of their key/value head; their coordinates are summed, so that the order of heads in a group
does not show.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fingerprint.signs import Stream, sample_indices
from fingerprint.vectors import unit_rows

if TYPE_CHECKING:
    from fingerprint.parameters import Parameters

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

SAMPLED_HEADS: Final = 4
SAMPLED_CHANNELS: Final = 64
"""Channels of a layer that are kept of a registered model, of at most ``SAMPLED_HEADS`` key/value heads together."""
SAMPLED_PAIRS: Final = 32


class Rotary(StrEnum):
    """Which channels of a head are a frequency pair: the two halves side by side, neighbours, or none."""

    HALVES = "halves"
    NEIGHBOURS = "neighbours"
    NONE = "none"


def value_output(values: Float32, outputs: Float32, head: int) -> Float32:
    """Value rows and the output columns that read them, unit rows: (2, v, w) from (v, w) and (q, w).

    q is a multiple of v, and v of ``head``, the size of one head.
    """
    return np.stack([unit_rows(values), unit_rows(_summed(outputs, len(values), head))])


def query_key(keys: Float32, queries: Float32, head: int) -> Float32:
    """Key rows and the query rows that meet them, unit rows: (2, k, w) from (k, w) and (q, w)."""
    return np.stack([unit_rows(keys), unit_rows(_summed(queries, len(keys), head))])


def rotary_pairs(keys: Float32, queries: Float32, head: int, rotary: Rotary) -> Float32:
    """Frequency pairs of keys and of queries: (4, k / 2, w), real and imaginary parts of the one and of the other.

    Each pair of keys, and of queries, has length 1. ``head`` is even.
    """
    parts = []
    for rows in (keys, _summed(queries, len(keys), head)):
        heads = rows.reshape(-1, head, rows.shape[1])
        if rotary is Rotary.HALVES:
            real, imaginary = heads[:, : head // 2], heads[:, head // 2 :]
        else:
            real, imaginary = heads[:, ::2], heads[:, 1::2]
        both = unit_rows(np.concatenate([real, imaginary], axis=2)).reshape(-1, 2, rows.shape[1])
        parts += [both[:, 0], both[:, 1]]
    return np.stack(parts)


def _summed(rows: Float32, channels: int, head: int) -> Float32:
    """Rows of the query heads of each group, added: (channels, w)."""
    heads = channels // head
    grouped: Float32 = rows.reshape(heads, -1, head, rows.shape[1]).sum(axis=1, dtype=np.float32)
    return grouped.reshape(channels, rows.shape[1])


def choose_channels(size: int, head: int, count: int, parameters: Parameters) -> Int64:
    """Indices of ``count`` of ``size`` channels, ascending, of at most four heads, the same of each."""
    heads = sample_indices(parameters.seed, Stream.NEURON_SAMPLE, size // head, SAMPLED_HEADS)
    inner = sample_indices(parameters.seed, Stream.NEURON_SAMPLE, head, max(count // heads.size, 1))
    return (heads[:, None] * head + inner).reshape(-1).astype(np.int64)
