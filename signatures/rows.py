"""Lists of indices and rows of numbers, as several sections hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fingerprint.errors import UsageError
from signatures.columns import column
from signatures.quantise import are_halves, are_scales, halved, quantised, restored, unhalved

if TYPE_CHECKING:
    from collections.abc import Iterable

    from signatures.columns import ColumnReader

Float32 = NDArray[np.float32]


class IndexLists:
    """Distinct lists of indices: samples of axes of one length share theirs."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def number(self, indices: NDArray[np.int64]) -> int:
        """The number of a list; raises ``UsageError`` if it does not ascend."""
        if len(indices) and (not ascending(indices) or int(indices[0]) < 0 or int(indices[-1]) >= 1 << 32):
            raise UsageError("indices of a sample must ascend, from 0 to 2**32 - 1")
        return self._numbers.setdefault(indices.astype("<u4").tobytes(), len(self._numbers))

    def columns(self) -> bytes:
        """Number of lists, their lengths, all indices."""
        lengths = [len(raw) // 4 for raw in self._numbers]
        return column("<u4", [len(lengths), *lengths], what="the number of lists is") + b"".join(self._numbers)


def read_lists(reader: ColumnReader) -> list[NDArray[np.int64]]:
    """Inverse of ``IndexLists.columns``."""
    lengths = reader.array("<u4", reader.number()).tolist()
    lists = [reader.array("<u4", length).astype(np.int64) for length in lengths]
    if not all(ascending(indices) for indices in lists):
        reader.fail("indices do not ascend")
    return lists


def pick(reader: ColumnReader, lists: list[NDArray[np.int64]], count: int) -> list[NDArray[np.int64]]:
    """The lists that ``count`` numbers refer to."""
    numbers = reader.array("<u4", count)
    if count and int(numbers.max()) >= len(lists):
        reader.fail("a list of indices is absent")
    return [lists[number] for number in numbers.tolist()]


def require_inside(reader: ColumnReader, lists: Iterable[NDArray[np.int64]], sizes: Iterable[int]) -> None:
    """Check that every index lies within its axis."""
    if any(len(indices) and int(indices[-1]) >= size for indices, size in zip(lists, sizes, strict=True)):
        reader.fail("an index lies outside of its axis")


def ascending(values: NDArray[Any]) -> bool:
    """Whether every value is above the one before."""
    return bool(np.all(values[1:] > values[:-1]))


def halved_columns(rows: list[Float32], width: int) -> bytes:
    """Rows of ``width`` numbers as float16, with an exponent each."""
    joined = np.concatenate(rows) if rows else np.zeros((0, width), np.float32)
    exponents, numbers = halved(joined)
    return exponents.astype("<i2").tobytes() + numbers.astype("<f2").tobytes()


def read_halved(reader: ColumnReader, rows: int, width: int) -> Float32:
    """Inverse of ``halved_columns``."""
    exponents = reader.array("<i2", rows).astype(np.int16)
    numbers = reader.array("<f2", rows * width).reshape(rows, width).astype(np.float16)
    if not are_halves(exponents, numbers):
        reader.fail("an exponent or number is not one that is written")
    return unhalved(exponents, numbers)


def quantised_columns(rows: list[Float32], width: int) -> bytes:
    """Rows of ``width`` numbers as int8, with a scale each."""
    joined = np.concatenate(rows) if rows else np.zeros((0, width), np.float32)
    scales, numbers = quantised(joined)
    return scales.astype("<f4").tobytes() + numbers.tobytes()


def read_quantised(reader: ColumnReader, rows: int, width: int) -> Float32:
    """Inverse of ``quantised_columns``."""
    scales = reader.array("<f4", rows).astype(np.float32)
    numbers = reader.array("i1", rows * width).reshape(rows, width)
    if not are_scales(scales) or (numbers.size and int(numbers.min()) == -128):
        reader.fail("a scale or number is not one of the quantisation")
    return restored(scales, numbers)


def checked_rows(values: Float32, count: int, width: int, what: str) -> Float32:
    """``values`` if they are (count, width) and finite; raises ``UsageError``."""
    return checked(values, (count, width), what)


def checked(values: Float32 | None, shape: tuple[int, ...], what: str) -> Float32:
    """``values`` if they are of ``shape`` and finite; raises ``UsageError``."""
    if values is None or values.shape != shape or not np.isfinite(values).all():
        got = None if values is None else values.shape
        raise UsageError(f"{what} of shape {got} cannot be written: finite values of shape {shape} are wanted")
    return values


def numbered(values: Iterable[int | None], what: str) -> bytes:
    """A column of signed numbers of 32 bits, -1 standing for none."""
    return column("<i4", (-1 if value is None else value for value in values), what=what)
