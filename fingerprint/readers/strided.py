"""Tensors whose elements lie apart: transposed and sliced views, read in row-major order piece by piece."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from fingerprint.dtypes import DType
    from fingerprint.readers.base import StoredTensor
    from fingerprint.tensors import Array


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True where the elements lie one after the other in row-major order. Strides count elements."""
    if 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The number of elements from the first one to the last one in storage, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class StridedTensor(Struct, frozen=True):
    """A view of ``storage`` (1-D, from the view's first element on) with the given ``strides`` in elements.

    Whole bytes an element only. Reads at most the part of the storage between the first and the last element that is
    asked for.
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: StoredTensor

    @property
    def dtype(self) -> DType:
        """Element type of the storage."""
        return self.storage.dtype

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        total = math.prod(self.shape)
        if not 0 <= start <= stop <= total:
            raise IndexError(f"elements {start} to {stop} of a tensor of {total}")
        pieces = self._pieces(0, 0, start, stop) if stop > start else []
        if not pieces:
            return self.storage.read(0, 0)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _pieces(self, axis: int, base: int, start: int, stop: int) -> list[Array]:
        """Elements ``start`` to ``stop`` of the part from ``axis`` on that begins at storage element ``base``."""
        shape, strides = self.shape[axis:], self.strides[axis:]
        width = math.prod(shape[1:])
        if not shape or (start == 0 and stop == width * shape[0]):
            return [self._whole(shape, strides, base)]
        first, last = start // width, (stop - 1) // width
        if first == last:
            below = first * width
            return self._pieces(axis + 1, base + first * strides[0], start - below, stop - below)
        pieces: list[Array] = []
        if start % width:
            pieces += self._pieces(axis + 1, base + first * strides[0], start % width, width)
            first += 1
        whole = stop // width
        if whole > first:
            pieces.append(self._whole((whole - first, *shape[1:]), strides, base + first * strides[0]))
        if stop % width:
            pieces += self._pieces(axis + 1, base + whole * strides[0], 0, stop % width)
        return pieces

    def _whole(self, shape: tuple[int, ...], strides: tuple[int, ...], base: int) -> Array:
        window = self.storage.read(base, base + extent(shape, strides))
        steps = tuple(stride * window.itemsize for stride in strides)
        view = np.lib.stride_tricks.as_strided(window, shape, steps, writeable=False)
        return view.reshape(-1)
