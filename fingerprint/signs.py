"""The counter-based generator: signs and sample positions as pure functions of (seed, stream, index).

Position i of stream s yields the 64 bits of SplitMix64's finaliser (Steele, Lea & Flood 2014) at
``seed + (s << 48) + (i + 1) * golden``. Integer arithmetic modulo 2**64: equal on every platform, and a longer axis
keeps the prefix of a shorter one.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """Independent streams of the generator."""

    SKETCH = 0
    FRAME = 1
    AXIS_SAMPLE = 2
    NEURON_SAMPLE = 3
    PROBE = 4
    SHUFFLE = 5
    SLICE = 6
    TENSOR_SAMPLE = 7


def bits(seed: int, stream: Stream, start: int, stop: int) -> NDArray[np.uint64]:
    """64 random bits for each index from ``start`` to ``stop``: (stop - start,) uint64."""
    index = np.arange(start + 1, stop + 1, dtype=np.uint64)
    origin = np.uint64((seed + (int(stream) << 48)) % (1 << 64))
    word = index * _GOLDEN + origin
    word = (word ^ (word >> np.uint64(30))) * _MIX_1
    word = (word ^ (word >> np.uint64(27))) * _MIX_2
    return word ^ (word >> np.uint64(31))


def signs(seed: int, stream: Stream, start: int, stop: int, width: int) -> Float32:
    """Random signs of indices ``start`` to ``stop``: (stop - start, width) float32 of -1 and +1, width up to 64."""
    if not 0 < width <= 64:
        raise ValueError(f"a word of the generator has 64 signs, not {width}")
    word = bits(seed, stream, start, stop)
    columns = np.arange(width, dtype=np.uint64)
    bit = ((word[:, None] >> columns) & np.uint64(1)).astype(np.float32)
    out: Float32 = bit * np.float32(2.0) - np.float32(1.0)
    out.setflags(write=False)
    return out


@lru_cache(maxsize=64)
def sign_matrix(seed: int, stream: Stream, size: int, width: int) -> Float32:
    """Signs of indices 0 to ``size``, cached for the axis lengths of one checkpoint; read-only (size, width)."""
    return signs(seed, stream, 0, size, width)


@lru_cache(maxsize=256)
def sample_indices(seed: int, stream: Stream, size: int, count: int) -> NDArray[np.int64]:
    """The ``count`` indices below ``size`` with the smallest random words, ascending: (min(count, size),) int64.

    A bottom-k sample: the samples of a shorter and a longer axis overlap as far as they can.
    """
    if size <= count:
        chosen = np.arange(size, dtype=np.int64)
    else:
        chosen = np.sort(np.argpartition(bits(seed, stream, 0, size), count)[:count]).astype(np.int64)
    chosen.setflags(write=False)
    return chosen
