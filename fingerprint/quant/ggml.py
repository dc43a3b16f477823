"""Blocks of llama.cpp's quantised types, dequantised by the ``gguf`` package, only those that a range needs.

Sizes of blocks are those of ``gguf.constants.GGML_QUANT_SIZES`` (0.19); they are repeated here because the header of a
file is checked before, and also where, that package is not there.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from fingerprint.dtypes import DType, Kind
from fingerprint.errors import UnsupportedFormatError

if TYPE_CHECKING:
    from fingerprint.source import Source
    from fingerprint.tensors import Array

PIECE = 1 << 18
"""Elements dequantised at a time: the package makes several temporary arrays of them."""


class BlockType(Struct, frozen=True):
    """A type of block: its ``number`` in files, how many ``elements`` a block has and how many ``bytes`` it takes.

    ``halves`` are the offsets of the 16-bit floats in a block, which big-endian files hold swapped; None where nobody
    has said what a big-endian file of that type looks like.
    """

    number: int
    name: str
    elements: int
    bytes: int
    halves: tuple[int, ...] | None = None

    @property
    def dtype(self) -> DType:
        """The type of the elements as dequantised, under the name of the storage."""
        return DType(self.name, 32, Kind.FLOAT, np.dtype("<f4"))


BLOCK_TYPES = {
    one.number: one
    for one in (
        # Which fields are swapped: gguf_convert_endian.py of the package, which knows these types only.
        BlockType(2, "Q4_0", 32, 18, (0,)),
        BlockType(3, "Q4_1", 32, 20),
        BlockType(6, "Q5_0", 32, 22),
        BlockType(7, "Q5_1", 32, 24),
        BlockType(8, "Q8_0", 32, 34, (0,)),
        BlockType(10, "Q2_K", 256, 84),
        BlockType(11, "Q3_K", 256, 110),
        BlockType(12, "Q4_K", 256, 144, (0, 2)),
        BlockType(13, "Q5_K", 256, 176),
        BlockType(14, "Q6_K", 256, 210, (208,)),
        BlockType(16, "IQ2_XXS", 256, 66),
        BlockType(17, "IQ2_XS", 256, 74),
        BlockType(18, "IQ3_XXS", 256, 98),
        BlockType(19, "IQ1_S", 256, 50),
        BlockType(20, "IQ4_NL", 32, 18),
        BlockType(21, "IQ3_S", 256, 110),
        BlockType(22, "IQ2_S", 256, 82),
        BlockType(23, "IQ4_XS", 256, 136),
        BlockType(29, "IQ1_M", 256, 56),
        BlockType(34, "TQ1_0", 256, 54),
        BlockType(35, "TQ2_0", 256, 66),
        BlockType(39, "MXFP4", 32, 17, ()),
        BlockType(40, "NVFP4", 64, 36, ()),
    )
}


class BlockTensor(Struct, frozen=True):
    """A tensor stored as blocks along its last axis, row after row, at byte ``offset`` of ``source``."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    source: Source
    offset: int
    big_endian: bool = False

    @property
    def dtype(self) -> DType:
        """See ``BlockType.dtype``."""
        return self.type.dtype

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        total = math.prod(self.shape)
        if not 0 <= start <= stop <= total:
            raise IndexError(f"elements {start} to {stop} of a tensor of {total}")
        size = self.type.elements
        first, last = start // size, -(-stop // size)
        step = PIECE // size
        pieces = [self._blocks(at, min(at + step, last)) for at in range(first, last, step)]
        if not pieces:
            return np.empty(0, np.float32)
        flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return flat[start - first * size : stop - first * size]

    def _blocks(self, first: int, last: int) -> Array:
        size = self.type.bytes
        raw = np.frombuffer(self.source.read(self.offset + first * size, (last - first) * size), np.uint8)
        if self.big_endian and self.type.halves:
            raw = raw.copy()
            for half in self.type.halves:
                raw.reshape(-1, size)[:, half : half + 2] = raw.reshape(-1, size)[:, [half + 1, half]]
        dequantise, number = _package(self.source.path), self.type.number
        # A hostile scale overflows, or is no number at all.
        with np.errstate(all="ignore"):
            values: Array = dequantise(raw, number)
        return values


def require_package(path: str) -> None:
    """Raises ``UnsupportedFormatError`` where the ``gguf`` package is not installed."""
    _package(path)


def _package(path: str) -> Any:
    try:
        return _dequantise()
    except ImportError as error:
        hint = "pip install 'weightprint[gguf]'"
        raise UnsupportedFormatError("its blocks are dequantised by the gguf package", path=path, hint=hint) from error


@cache
def _dequantise() -> Any:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    def dequantise(raw: Array, number: int) -> Array:
        return np.asarray(dequantize(raw, GGMLQuantizationType(number)))

    return dequantise
