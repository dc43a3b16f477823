"""A tensor that is stored in boxes, on a grid or not, put together as it is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from fingerprint.dtypes import DType
    from fingerprint.tensors import Array, TensorView


class Chunk(Struct, frozen=True):
    """Part of a tensor: ``view`` is the box that begins at ``offsets``; what of it lies outside does not count."""

    offsets: tuple[int, ...]
    view: TensorView


class Chunked(Struct, frozen=True):
    """A tensor in boxes that do not overlap and together make it up.

    ``blank`` is a 1-D array of one element, which stands where there is no box; None: they leave nothing out. A box
    that reaches out of the tensor along an axis has its beginning inside, and is as wide as the tensor or begins at
    a multiple of its own size, as the boxes of a regular grid do.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    stored: DType | None = None
    blank: Array | None = None

    @property
    def dtype(self) -> DType:
        """Element type of the chunks, or what is said where there is none."""
        return self.stored if self.stored is not None else self.chunks[0].view.dtype

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        total = math.prod(self.shape)
        if not 0 <= start <= stop <= total:
            raise IndexError(f"elements {start} to {stop} of a tensor of {total}")
        length = stop - start
        out = np.empty(length, self.dtype.numpy) if self.blank is None else self.blank.repeat(length)
        if total:
            for chunk in self.chunks:
                self._fill(out, start, stop, chunk, 0, 0, 0)
        return out

    def _fill(self, out: Array, start: int, stop: int, chunk: Chunk, axis: int, base: int, inner: int) -> None:
        """Copies what elements ``start`` to ``stop`` share with the part of ``chunk`` at one index of its first axes.

        ``base`` is the flat place of that part in the tensor, ``inner`` the one in the chunk.
        """
        shape, sizes = self.shape[axis:], chunk.view.shape[axis:]
        width, held = math.prod(shape[1:]), math.prod(sizes[1:])
        begin = chunk.offsets[axis] if shape else 0
        inside = min(sizes[0], shape[0] - begin) if shape else 1
        if not shape or sizes[1:] == shape[1:]:  # one run in the tensor as in the chunk
            first = base + begin * width
            low, high = max(first, start), min(first + inside * width, stop)
            if low < high:
                out[low - start : high - start] = chunk.view.read(inner + low - first, inner + high - first)
            return
        top = max((start - base) // width - begin, 0)
        bottom = min(-(-(stop - base) // width) - begin, inside)
        for row in range(top, bottom):
            self._fill(out, start, stop, chunk, axis + 1, base + (begin + row) * width, inner + row * held)
