"""Columns of numbers, one after the other: writing them, and taking them out of hostile bytes."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from fingerprint.errors import MalformedSignatureError, SignatureVersionError, UsageError, clipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Array = NDArray[Any]
Word = TypeVar("Word", bound=StrEnum)

MAX_WORDS: Final = 255


class Words:
    """The distinct words of a column, sorted: the column holds their numbers, the header the list."""

    def __init__(self, what: str, words: Iterable[str]) -> None:
        self.words = sorted(set(words))
        if len(self.words) > MAX_WORDS:
            raise UsageError(f"a signature holds at most {MAX_WORDS} different {what}")
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def column(self, words: Iterable[str]) -> bytes:
        """The numbers of ``words``, one byte each."""
        return bytes(self._numbers[word] for word in words)


def column(kind: str, values: Iterable[int | float], *, what: str) -> bytes:
    """``values`` as an array of the numpy type ``kind``; raises ``UsageError`` if one does not fit."""
    try:
        return np.array(list(values), dtype=kind).tobytes()
    except OverflowError:
        raise UsageError(f"{what} out of the range that a signature can hold") from None


class ColumnReader:
    """Takes columns off the front of a section; every size is compared with what is left first."""

    def __init__(self, data: bytes, *, path: str, kind: str) -> None:
        self._data = data
        self._path = path
        self._kind = kind
        self._position = 0

    def fail(self, message: str) -> NoReturn:
        """Raises ``MalformedSignatureError``."""
        raise MalformedSignatureError(f"{self._path}: section {self._kind}: {message}")

    def array(self, kind: str, count: int) -> Array:
        """``count`` numbers of the numpy type ``kind``, as a read-only window."""
        size = np.dtype(kind).itemsize * count
        if size > len(self._data) - self._position:
            self.fail("ends too early")
        values = np.frombuffer(self._data, dtype=kind, count=count, offset=self._position)
        self._position += size
        return values

    def number(self) -> int:
        """One unsigned number of 32 bits."""
        return int(self.array("<u4", 1)[0])

    def flags(self, count: int) -> NDArray[np.bool_]:
        """``count`` bytes that are 0 or 1."""
        values = self.array("u1", count)
        if count and int(values.max()) > 1:
            self.fail("a flag is neither 0 nor 1")
        return values.astype(np.bool_)

    def words(self, count: int, words: Sequence[str]) -> list[str]:
        """``count`` numbers of ``words``."""
        numbers = self.array("u1", count)
        if count and int(numbers.max()) >= len(words):
            self.fail("a word is not in the header's list")
        return [words[number] for number in numbers.tolist()]

    def optional(self, count: int) -> list[int | None]:
        """``count`` signed numbers of 32 bits, -1 standing for none."""
        values = self.array("<i4", count)
        if count and int(values.min()) < -1:
            self.fail("a layer or expert is negative")
        return [None if value < 0 else value for value in values.tolist()]

    def rest(self) -> bytes:
        """Everything that is left."""
        position, self._position = self._position, len(self._data)
        return self._data[position:]

    def end(self) -> None:
        """Checks that nothing is left."""
        if self._position != len(self._data):
            self.fail("is longer than its contents")


def members_of(kind: type[Word], words: Sequence[str], *, path: str) -> list[Word]:
    """``words`` as members of the closed set ``kind``; raises ``SignatureVersionError`` for one that is unknown."""
    try:
        return [kind(word) for word in words]
    except ValueError:
        unknown = next(word for word in words if word not in set(kind))
        raise SignatureVersionError(
            f"{path}: the {kind.__name__.lower()} {clipped(unknown)!r} is not one that this program knows; "
            "use a newer release of weightprint"
        ) from None
