"""What one block of a tensor's elements is, told from its bits, and the float32 numbers of it in memory that is reused.

Fresh memory costs as much as the arithmetic on a block, and integer reductions of 16-bit numbers take a quarter of the
time that those of the same numbers in float32 take. One compiled loop does all of it where it was built
(``_kernels.c``); numpy does where it was not, and with what is rare: NaN, infinities, numbers at the ends of float32.
"""

from __future__ import annotations

import importlib
import math
import struct
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import ml_dtypes
import numpy as np
from msgspec import Struct

from fingerprint.dtypes import to_float32


def compiled(name: str) -> ModuleType | None:
    """The compiled loops of that name; None where there was no compiler."""
    try:
        return importlib.import_module(f"fingerprint.{name}")
    except ImportError:
        return None


_kernels = compiled("_kernels")

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Float32 = NDArray[np.float32]
    Int64 = NDArray[np.int64]

_BF16 = np.dtype(ml_dtypes.bfloat16)
_INFINITY: Final = {_BF16: 0x7F80, np.dtype(np.float16): 0x7C00, np.dtype(np.float32): 0x7F800000}
"""The bits of infinity; those of a NaN without its sign are larger."""
_SINGLE: Final = struct.Struct("<f")
_SMALLEST: Final = 2.0**-30
_LARGEST: Final = 2.0**26
"""Magnitudes whose fourth powers, and sums of them over a block, are normal numbers of float32."""
_SIGNS: Final = 32
_TILE: Final = 6
"""Rows that the loop multiplies at a time."""
_ROWS_TOGETHER: Final = 1 << 18
"""Numbers of the rows that ``project`` looks at before it says so: 512 KB of bf16."""
_PLUS, _MINUS = 0x3F80, 0xBF80
"""The bits of 1 and -1 in bf16."""


class Piece(Struct, frozen=True):
    """Some rows of some columns of a matrix, as the sketch sees them, and what they were before.

    ``block`` (b, c) float32, without NaN and infinities, cut to magnitudes up to a limit, or None where its product
    with signs is all that is wanted of it, ``projected`` (b, width); ``rows`` (b,) and ``columns`` (c,) its sums,
    float32; ``taken`` (k, b) the columns that were asked for, as they are stored, where the loop took them. Of what was
    there before the cut: ``normal`` (no -0 among it, and nothing that is not finite), how much is
    not finite, how many zeros, its smallest and largest finite values, the sums of its first four ``powers``, and the
    sums of squares of its rows and (empty unless asked for) columns.
    """

    shape: tuple[int, int]
    block: Float32 | None
    projected: Float32 | None
    rows: Float32
    columns: Float32
    normal: bool
    nonfinite: int
    zeros: int
    low: float
    high: float
    powers: tuple[float, float, float, float]
    row_squares: NDArray[np.floating[Any]]
    column_squares: NDArray[np.floating[Any]]
    taken: Array | None = None

    @property
    def numbers(self) -> Float32:
        """``block``, where it is there."""
        if self.block is None:
            raise ValueError("of a piece that was projected the numbers are not kept")
        return self.block


class Bits(Struct, frozen=True):
    """Facts about a block of 16- or 32-bit floats, exact. ``low`` and ``high`` are its smallest and largest values.

    ``finite``: neither NaN nor infinities; only then the others mean anything. ``normal``: no -0 either.
    """

    finite: bool
    normal: bool
    low: float
    high: float
    zeros: int

    def and_those(self, others: Bits) -> Bits:
        """The facts about both, if both are finite."""
        low, high = min(self.low, others.low), max(self.high, others.high)
        return Bits(True, self.normal and others.normal, low, high, self.zeros + others.zeros)


def bits_of(flat: Array) -> Bits | None:
    """The facts about a block (1-D, contiguous, not empty) of bf16, f16 or f32; None for other types."""
    if flat.dtype not in _INFINITY or not flat.size:
        return None
    size = flat.dtype.itemsize
    word, signed = flat.view(f"u{size}"), flat.view(f"i{size}")
    top = 1 << (8 * size - 1)
    least, most, largest = int(signed.min()), int(signed.max()), int(word.max())
    zeros = flat.size - int(np.count_nonzero(word))
    if least == -top:
        zeros += int(np.count_nonzero(word == top))
    return _bits(flat.dtype, least, most, largest, zeros)


def _bits(dtype: np.dtype[Any], least: int, most: int, largest: int, zeros: int) -> Bits:
    """From the least and most of the words as signed numbers, and the largest as an unsigned one.

    As signed numbers the floats of either sign are apart, the negative ones (-0 the first) in the order of their
    magnitudes; as unsigned ones the negative ones are the largest.
    """
    infinity, top = _INFINITY[dtype], 1 << (8 * dtype.itemsize - 1)
    if most >= infinity or largest >= top + infinity:
        return Bits(finite=False, normal=False, low=0.0, high=0.0, zeros=0)
    low = largest if largest >= top else least
    high = most if most >= 0 else least + 2 * top
    return Bits(True, least != -top, _value(low, dtype), _value(high, dtype), zeros)


def _value(word: int, dtype: np.dtype[Any]) -> float:
    if dtype == np.float16:
        return float(np.array(word, np.uint16).view(dtype))
    single: float = _SINGLE.unpack((word << (32 - 8 * dtype.itemsize)).to_bytes(4, "little"))[0]  # a tenth of the time
    return single


def look(native: Array, limit: float, scratch: Scratch, *, column_squares: bool = False) -> Piece:
    """Take a piece (b, c) of any float type apart. Its ``block`` may lie in ``scratch``, whose last one is lost.

    ``limit`` may be infinite. -0 counts as 0.
    """
    if not native.size:
        rows, columns = native.shape
        none = np.zeros(0, np.float32)
        nothing = np.zeros(rows, np.float32), np.zeros(columns, np.float32)
        block = np.zeros((rows, columns), np.float32)
        return Piece(
            (rows, columns), block, None, *nothing, True, 0, 0, math.inf, -math.inf, (0.0,) * 4, nothing[0], none
        )
    piece = None
    if _kernels is not None:
        piece = _looked(_kernels, native, limit, scratch, column_squares=column_squares)
    return _interpreted(native, limit, scratch, column_squares=column_squares) if piece is None else piece


class Signs(Struct, frozen=True):
    """Signs of the columns of a block, as the compiled product takes them: (c, 32) float32 of -1 and +1, and the same
    as bf16, those of two columns beside each other."""

    single: Float32
    pairs: NDArray[np.uint16]

    @classmethod
    def of(cls, signs: Float32) -> Signs:
        """Of signs (c, 32)."""
        columns, width = signs.shape
        words = np.where(signs > 0, np.uint16(_PLUS), np.uint16(_MINUS))
        words = np.concatenate([words, np.zeros((columns % 2, width), np.uint16)])
        return cls(signs, np.ascontiguousarray(words.reshape(-1, 2, width).transpose(0, 2, 1)))


def projects(width: int) -> bool:
    """Whether ``project`` takes products with ``width`` signs faster than BLAS: where it was built, with AVX-512."""
    return width == _SIGNS and _kernels is not None and _kernels.sketch_level() > 0


def project(
    native: Array,
    limit: float,
    signs: Signs,
    scratch: Scratch,
    places: Int64,
    *,
    column_squares: bool = False,
    done: Callable[[int, bool], None] = lambda _, __: None,
) -> Piece | None:
    """``look`` at a piece, project it, and take the columns at ``places``; None where the loop is not made for these
    numbers.

    ``done`` is told after some rows each how many were looked at, and whether all of them are ``normal``: they are in
    the nearer cache then.
    """
    dtype = native.dtype
    if _kernels is None or dtype not in _INFINITY:
        return None
    rows, columns = native.shape
    sums = _Sums.of(rows, columns, column_squares=column_squares)
    projected = np.empty((rows, _SIGNS), np.float32)
    taken_columns: list[Array] = []
    bits: Bits | None = None
    powers = np.zeros(4)
    step = max(1, _ROWS_TOGETHER // max(columns, 1) // _TILE) * _TILE
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        words = _words(native[part], scratch)
        if words is None:
            return None
        columns_taken = np.empty((places.size, part.stop - start), words.dtype)
        told = _kernels.sketch(
            words,
            limit,
            signs.single,
            signs.pairs,
            places,
            projected[part],
            *sums.of_rows(part),
            columns_taken,
        )
        found = _told(told, words.dtype)
        if found is None:
            return None
        bits = found if bits is None else bits.and_those(found)
        powers += told[4:]
        taken_columns.append(columns_taken)
        done(part.stop, bits.normal)
    if bits is None:
        return None
    taken_whole = taken_columns[0] if len(taken_columns) == 1 else np.concatenate(taken_columns, axis=1)
    stored = taken_whole.view(dtype) if taken_whole.itemsize == dtype.itemsize else None
    return sums.piece((rows, columns), None, projected, bits, powers, stored)


def _looked(
    kernels: ModuleType, native: Array, limit: float, scratch: Scratch, *, column_squares: bool
) -> Piece | None:
    """See ``look``; None where the loop is not made for these numbers."""
    if native.dtype not in _INFINITY:
        return None
    words = _words(native, scratch)
    if words is None:
        return None
    rows, columns = native.shape
    sums = _Sums.of(rows, columns, column_squares=column_squares)
    block = scratch.floats(native.size).reshape(native.shape)
    told = kernels.look(words, limit, block, *sums.of_rows(slice(0, rows)))
    bits = _told(told, words.dtype)
    return None if bits is None else sums.piece((rows, columns), block, None, bits, np.array(told[4:]), None)


def _words(native: Array, scratch: Scratch) -> Array | None:
    """Rows as the loops take them, f16 made float32; None where they do not."""
    if native.dtype == np.float16:
        native = widened(native, scratch)
    if native.strides[1] != native.itemsize:
        return None
    words: Array = native.view(f"u{native.itemsize}")
    return words if words.flags.aligned else None


def _told(told: tuple[Any, ...], words: np.dtype[Any]) -> Bits | None:
    """The facts that a loop told; None where what else it told means nothing."""
    bits = _bits(_BF16 if words.itemsize == _BF16.itemsize else np.dtype(np.float32), *told[:4])
    largest = max(abs(bits.low), abs(bits.high))
    return bits if bits.finite and (is_plain(largest) or not largest) else None


class _Sums(NamedTuple):
    """Room for the sums of a block's rows and columns, and of their squares (of columns empty unless asked for)."""

    rows: Float32
    columns: Float32
    row_squares: Float32
    column_squares: Float32

    @classmethod
    def of(cls, rows: int, columns: int, *, column_squares: bool) -> _Sums:
        """Zeros."""
        room = np.zeros(2 * (rows + columns), np.float32)
        of_rows, row_squares, of_columns, squares = np.split(room, [rows, 2 * rows, 2 * rows + columns])
        return cls(of_rows, of_columns, row_squares, squares if column_squares else squares[:0])

    def of_rows(self, part: slice) -> _Sums:
        """The room for some of the rows."""
        return self._replace(rows=self.rows[part], row_squares=self.row_squares[part])

    def piece(
        self,
        shape: tuple[int, int],
        block: Float32 | None,
        projected: Float32 | None,
        bits: Bits,
        powers: NDArray[np.float64],
        taken: Array | None,
    ) -> Piece:
        """All that a loop found."""
        first, second, third, fourth = powers.tolist()
        return Piece(
            shape,
            block,
            projected,
            self.rows,
            self.columns,
            bits.normal,
            0,
            bits.zeros,
            bits.low,
            bits.high,
            (first, second, third, fourth),
            self.row_squares,
            self.column_squares,
            taken,
        )


def _interpreted(native: Array, limit: float, scratch: Scratch, *, column_squares: bool) -> Piece:
    """See ``look``."""
    bits = bits_of(np.ascontiguousarray(native).reshape(-1))
    normal, bad = bits is not None and bits.normal, 0
    block = widened(native, scratch)
    if bits is None or not bits.finite:
        bad = block.size - int(np.count_nonzero(np.isfinite(block)))
        block = np.ascontiguousarray(without_nonfinite(block))
        bits = bits_of(block.reshape(-1))
        if bits is None:
            raise TypeError(f"a block of {block.dtype}, not of float32")
    plain = is_plain(max(abs(bits.low), abs(bits.high)))
    wide = block if plain else block.astype(np.float64)
    row_squares = np.einsum("ij,ij->i", wide, wide)
    squares = np.einsum("ij,ij->j", wide, wide) if column_squares else np.zeros(0, np.float32)
    total = float((wide @ np.ones(block.shape[1], wide.dtype)).sum(dtype=np.float64))
    energy = float(row_squares.sum(dtype=np.float64))
    square = wide * wide
    cubes, fourths = (float(np.einsum("ij,ij->i", square, one).sum(dtype=np.float64)) for one in (wide, square))
    block = cut(block, limit, scratch)
    rows, columns = block @ np.ones(block.shape[1], np.float32), np.ones(len(block), np.float32) @ block
    return Piece(
        native.shape,
        block,
        None,
        rows,
        columns,
        normal,
        bad,
        bits.zeros - bad,
        bits.low,
        bits.high,
        (total, energy, cubes, fourths),
        row_squares,
        squares,
    )


def is_plain(magnitude: float) -> bool:
    """Whether fourth powers of numbers up to ``magnitude``, and sums of them over a block, fit float32."""
    return _SMALLEST < magnitude < _LARGEST


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


class Slices:
    """Single rows and columns of a block (b, c), as they are stored."""

    def __init__(self, native: Array, places: Int64 | None = None, columns: Array | None = None) -> None:
        """``columns`` (k, b) are those at ``places`` (k,), ascending, where they were taken already."""
        self._native, self._places, self._columns = native, places, columns

    def rows(self, places: Int64) -> Array:
        """Rows at some places: (m, c)."""
        return taken(self._native, places, 0)

    def columns(self, places: Int64) -> Array:
        """Columns at some places, of those that were taken if there are such: (m, b)."""
        if self._places is None or self._columns is None:
            return taken(self._native, places, 1).T
        return self._columns[np.searchsorted(self._places, places)]

    def along(self, axis: int, places: Int64) -> Array:
        """Rows (0) or columns (1) at some places, a row of the array each."""
        return self.columns(places) if axis else self.rows(places)


def taken(native: Array, indices: NDArray[np.int64], axis: int) -> Array:
    """``native`` (2-D) at some places of an axis, moved as integers: numpy is slow with types that are not its own."""
    if native.dtype.kind not in "fV":
        return native.take(indices, axis=axis)
    return native.view(f"u{native.dtype.itemsize}").take(indices, axis=axis).view(native.dtype)
