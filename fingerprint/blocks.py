"""What one block of a tensor's elements is, told from its bits, and the float32 numbers of it in memory that is reused.

Fresh memory costs as much as the arithmetic on a block, and integer reductions of 16-bit numbers take a quarter of the
time that those of the same numbers in float32 take.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from fingerprint.dtypes import to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Float32 = NDArray[np.float32]

_BF16 = np.dtype(ml_dtypes.bfloat16)
_INFINITY: Final = {_BF16: 0x7F80, np.dtype(np.float16): 0x7C00, np.dtype(np.float32): 0x7F800000}
"""The bits of infinity; those of a NaN without its sign are larger."""


@dataclass(frozen=True, slots=True)
class Bits:
    """Facts about a block of 16- or 32-bit floats, exact. ``low`` and ``high`` are its smallest and largest values.

    ``finite``: neither NaN nor infinities; only then the others mean anything. ``normal``: no -0 either.
    """

    finite: bool
    normal: bool
    low: float
    high: float
    zeros: int


def bits_of(flat: Array) -> Bits | None:
    """The facts about a block (1-D, contiguous, not empty) of bf16, f16 or f32; None for other types."""
    infinity = _INFINITY.get(flat.dtype)
    if infinity is None or not flat.size:
        return None
    size = flat.dtype.itemsize
    word, signed = flat.view(f"u{size}"), flat.view(f"i{size}")
    top = 1 << (8 * size - 1)
    # As signed numbers the floats of either sign are apart, the negative ones (-0 the first) in the order of their
    # magnitudes; as unsigned ones the negative ones are the largest.
    least, most, largest = int(signed.min()), int(signed.max()), int(word.max())
    if most >= infinity or largest >= top + infinity:
        return Bits(finite=False, normal=False, low=0.0, high=0.0, zeros=0)
    normal = least != -top
    low = largest if largest >= top else least
    high = most if most >= 0 else least + 2 * top
    zeros = flat.size - int(np.count_nonzero(word))
    if not normal:
        zeros += int(np.count_nonzero(word == top))
    return Bits(True, normal, _value(low, flat.dtype), _value(high, flat.dtype), zeros)


def _value(word: int, dtype: np.dtype[Any]) -> float:
    return float(np.array(word, f"u{dtype.itemsize}").view(dtype))


class Scratch(threading.local):
    """Float32 memory of this thread for one block at a time."""

    def __init__(self) -> None:
        self._memory = np.zeros(0, np.float32)

    def floats(self, size: int) -> Float32:
        """``size`` numbers; those of the last call are lost."""
        if self._memory.size < size:
            self._memory = np.zeros(size, np.float32)
        return self._memory[:size]

    def holds(self, block: Float32) -> bool:
        """Whether ``block`` lies in this memory."""
        return block.base is self._memory


def widened(native: Array, scratch: Scratch) -> Float32:
    """``native`` as float32, in memory that the next call reuses; see ``dtypes.to_float32``."""
    if native.dtype == _BF16:
        block = scratch.floats(native.size).reshape(native.shape)
        word = block.view(np.uint32)
        np.copyto(word, native.view(np.uint16))
        np.left_shift(word, 16, out=word)
        return block
    if native.dtype == np.float16:
        block = scratch.floats(native.size).reshape(native.shape)
        with np.errstate(invalid="ignore"):
            np.copyto(block, native)
        return block
    return to_float32(native)


def cut(block: Float32, limit: float, scratch: Scratch) -> Float32:
    """``block`` cut to magnitudes up to ``limit``: in place where it lies in ``scratch``."""
    if not math.isfinite(limit):
        return block
    most = np.float32(limit)
    out = block if scratch.holds(block) else scratch.floats(block.size).reshape(block.shape)
    return np.clip(block, -most, most, out=out)


def without_nonfinite(block: Float32) -> Float32:
    """``block``, or a copy with NaN and infinities as 0 if there are any."""
    flat = block.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        energy = float(np.dot(flat, flat))
    if math.isfinite(energy):  # a sum of squares is not, if one of them is not
        return block
    return np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)


def taken(native: Array, indices: NDArray[np.int64], axis: int) -> Array:
    """``native`` (2-D) at some places of an axis, moved as integers: numpy is slow with types that are not its own."""
    if native.dtype.kind not in "fV":
        return native.take(indices, axis=axis)
    return native.view(f"u{native.dtype.itemsize}").take(indices, axis=axis).view(native.dtype)
