"""The counter-based generator: signs and sample positions as pure functions of (seed, stream, index).

Position i of stream s yields the 64 bits of SplitMix64's finaliser (Steele, Lea & Flood 2014) at
``seed + (s << 48) + (i + 1) * golden``. Integer arithmetic modulo 2**64: equal on every platform, and a longer axis
keeps the prefix of a shorter one.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Float32 = NDArray[np.float32]

MOST_KEPT: Final = 1 << 18
"""Longest axis whose signs are kept: 32 MB at 32 signs an index."""
_MOST_PREFIXES: Final = 8
_PIECE: Final = 1 << 20
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
    ANCHOR_TOKEN = 8
    ANCHOR_POSITION = 9
    GRAM = 10
    LAYER = 11


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
    octets = bits(seed, stream, start, stop).astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    needed = np.ascontiguousarray(octets[:, : -(-width // 8)])
    out: Float32 = np.unpackbits(needed, axis=1, count=width, bitorder="little").astype(np.float32)
    out *= np.float32(2.0)
    out -= np.float32(1.0)
    out.setflags(write=False)
    return out


_prefixes: dict[tuple[int, Stream, int], Float32] = {}
_prefixes_lock = threading.Lock()


def sign_matrix(seed: int, stream: Stream, size: int, width: int) -> Float32:
    """Signs of indices 0 to ``size``: read-only (size, width) float32.

    Up to ``MOST_KEPT`` they are a window on one matrix that all axes of a stream share, since a longer axis keeps the
    prefix of a shorter one: a checkpoint of many different axis lengths costs no more memory than its longest.
    """
    return sign_block(seed, stream, 0, size, width)


def sign_block(seed: int, stream: Stream, start: int, stop: int, width: int) -> Float32:
    """Signs of indices ``start`` to ``stop``: read-only (stop - start, width) float32; kept up to ``MOST_KEPT``."""
    if stop > MOST_KEPT:
        return signs(seed, stream, start, stop, width)
    key = (seed, stream, width)
    kept = _prefixes.get(key)
    if kept is None or len(kept) < stop:
        with _prefixes_lock:
            kept = _prefixes.get(key)
            if kept is None or len(kept) < stop:
                if len(_prefixes) >= _MOST_PREFIXES:
                    _prefixes.clear()
                kept = signs(seed, stream, 0, min(MOST_KEPT, max(1024, 1 << (stop - 1).bit_length())), width)
                _prefixes[key] = kept
    return kept[start:stop]


@lru_cache(maxsize=256)
def sample_indices(seed: int, stream: Stream, size: int, count: int) -> NDArray[np.int64]:
    """The ``count`` indices below ``size`` with the smallest random words, ascending: (min(count, size),) int64.

    A bottom-k sample: the samples of a shorter and a longer axis overlap as far as they can. In pieces of bounded
    size, whatever ``size`` is.
    """
    if size <= count:
        chosen = np.arange(size, dtype=np.int64)
    else:
        chosen = np.zeros(0, np.int64)
        words = np.zeros(0, np.uint64)
        for start in range(0, size, _PIECE):
            stop = min(start + _PIECE, size)
            words = np.concatenate([words, bits(seed, stream, start, stop)])
            chosen = np.concatenate([chosen, np.arange(start, stop, dtype=np.int64)])
            if len(words) > count:
                least = np.argpartition(words, count)[:count]
                words, chosen = words[least], chosen[least]
        chosen = np.sort(chosen)
    chosen.setflags(write=False)
    return chosen


def among(numbers: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """Which of the ascending ``numbers`` lie from ``start`` to ``stop``, as (first, last): faster than
    ``searchsorted``."""
    return bisect_left(numbers, start), bisect_left(numbers, stop)
