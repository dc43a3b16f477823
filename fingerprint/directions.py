"""Products of blocks of a matrix with the directions of a frame.

bf16 is multiplied as it is stored where the processor can do that (``_directions.c``), and the directions are exact in
bf16: in a third of the time that making it float32 first and a product of BLAS take. Else by numpy, or the device.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from fingerprint.blocks import Scratch, compiled, taken, widened, without_nonfinite
from fingerprint.device import chosen, product

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Float32 = NDArray[np.float32]
    Int64 = NDArray[np.int64]


def _built() -> ModuleType | None:
    found = compiled("_directions")
    return found if found is not None and found.is_built() else None


_loops = _built()
_BF16: Final = np.dtype(ml_dtypes.bfloat16)
_LANES: Final = 16
"""The loops take directions in multiples of so many."""
_STRIP: Final = 32
"""Columns whose products ``of_columns`` of the loops writes beside one another."""
_EVERY: Final = np.zeros(0, np.int64)
_scratch = Scratch()


def rounded(directions: Float32) -> Float32:
    """The nearest directions that are exact in bf16."""
    return directions.astype(_BF16).astype(np.float32)


class Directions:
    """Directions (w, length) float32 that rows or columns of ``length`` entries are multiplied with."""

    def __init__(self, directions: Float32) -> None:
        self.directions = directions

    def of_rows(self, native: Array, places: Int64 = _EVERY) -> Float32:
        """Rows of a block (b, length) of any float type, at some places or all: (k, w) float32.

        Values that are not finite count as 0.
        """
        words = _words(native)
        if words is not None and self._pairs is not None and _loops is not None:
            room = np.zeros((places.size or len(native), self._pairs.shape[1]), np.float32)
            _loops.of_rows(words, self._pairs, places, room)
            if _is_finite(room):
                return room[:, : len(self.directions)]
        chosen_rows = taken(native, places, 0) if places.size else native
        return product(without_nonfinite(widened(chosen_rows, _scratch)), self._columns)

    def of_columns(self, native: Array, start: int = 0) -> Float32:
        """All columns of a block (b, c), whose rows are entries ``start`` onwards of the slices: (c, w) float32.

        Values that are not finite count as 0.
        """
        stop = start + len(native)
        words = _words(native)
        if words is not None and start % 2 == 0 and self._pairs is not None and _loops is not None:
            pairs, columns = self._pairs[start // 2 : (stop + 1) // 2], native.shape[1]
            room = np.zeros((-(-columns // _STRIP), pairs.shape[1], _STRIP), np.float32)
            _loops.of_columns(words, pairs, room)
            if _is_finite(room):
                return room.transpose(0, 2, 1).reshape(-1, pairs.shape[1])[:columns, : len(self.directions)]
        return product(without_nonfinite(widened(native, _scratch)).T, self._columns[start:stop])

    @cached_property
    def _columns(self) -> Float32:
        """(length, w), for BLAS."""
        return np.ascontiguousarray(self.directions.T)

    @cached_property
    def _pairs(self) -> NDArray[np.uint16] | None:
        """As the loops take them: (length / 2 rounded up, w rounded up, 2); None where they are not exact in bf16."""
        bits = np.ascontiguousarray(self.directions).view(np.uint32)
        if _loops is None or not self.directions.size or np.any(bits & np.uint32(0xFFFF)):
            return None
        width, length = bits.shape
        words = np.zeros(((length + 1) // 2, -(-width // _LANES) * _LANES, 2), np.uint16)
        halves = (bits >> np.uint32(16)).astype(np.uint16).T
        words[:, :width, 0], words[: length // 2, :width, 1] = halves[::2], halves[1::2]
        return words


def energies(native: Array, weights: Float32) -> tuple[Float32, Float32]:
    """Sums of squares of the rows of a block (b, c) times ``weights`` (c,): (b,); and the sums of its columns: (c,).

    Values that are not finite count as 0.
    """
    words = _words(native)
    if words is not None and _loops is not None:
        of_rows, totals = np.empty(len(native), np.float32), np.zeros(native.shape[1], np.float32)
        _loops.energies(words, weights, of_rows, totals)
        if _is_finite(of_rows) and _is_finite(totals):
            return of_rows, totals
    block = without_nonfinite(widened(native, _scratch))
    totals = np.ones(len(block), np.float32) @ block
    return np.square(block, out=block if _scratch.holds(block) else None) @ weights, totals


def column_energies(native: Array, weights: Float32) -> tuple[Float32, Float32]:
    """Sums of squares of the columns of a block (b, c) times each of ``weights`` (s, b): (c, s); and the sums of its
    rows: (b,). Values that are not finite count as 0."""
    block = without_nonfinite(widened(native, _scratch))
    totals = block @ np.ones(block.shape[1], np.float32)
    return np.square(block, out=block if _scratch.holds(block) else None).T @ weights.T, totals


def are_multiplied_as_stored(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of that type are multiplied without being made float32."""
    return dtype == _BF16 and _loops is not None and chosen() is None


def _words(native: Array) -> NDArray[np.uint16] | None:
    """A block as the loops take it; None where they do not."""
    if not native.size or not are_multiplied_as_stored(native.dtype):
        return None
    words = native.view(np.uint16)
    return words if words.flags.aligned and words.strides[1] == words.itemsize else None


def _is_finite(numbers: Float32) -> bool:
    flat = numbers.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(np.dot(flat, flat))) or bool(np.isfinite(flat).all())
