"""FlatBuffers as hostile input: tables, vectors and numbers by offset, each checked against the file.

Format: https://flatbuffers.dev/internals/. Offsets of tables and vectors point forward, those of the layout of a table
(its vtable) either way; tables are never read beyond a fixed depth, so that no file can send the reader in a circle.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from msgspec import Struct

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError

if TYPE_CHECKING:
    from fingerprint.source import Source

MAX_STEPS = 1 << 23
"""Most numbers of one file that are looked at, long vectors aside."""
_SIZES = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8, "f": 4}


class Flat:
    """A file; ``what`` names its format in errors."""

    def __init__(self, source: Source, what: str) -> None:
        self.source = source
        self.what = what
        self._left = MAX_STEPS

    def number(self, offset: int, kind: str) -> int:
        """The number of ``struct``'s type ``kind`` at ``offset``. Raises ``InputError``."""
        self._left -= 1
        if self._left < 0:
            raise LimitExceededError(f"{self.what}: too many fields", path=self.source.path)
        value: int = struct.unpack("<" + kind, self.source.read(offset, _SIZES[kind]))[0]
        return value

    def root(self) -> Table:
        """The table that the file begins with."""
        return self.table(0)

    def table(self, offset: int) -> Table:
        """The table that the offset at ``offset`` points to. Raises ``InputError``."""
        start = offset + self.number(offset, "I")
        layout = start - self.number(start, "i")
        if layout < 0:
            raise self.error("the layout of a table lies before the file", start)
        size = self.number(layout, "H")
        if size < 4 or size % 2:
            raise self.error(f"the layout of a table has {size} bytes", layout)
        return Table(self, start, layout, size)

    def error(self, message: str, offset: int) -> InputError:
        """A ``MalformedFileError`` about the byte at ``offset``."""
        return MalformedFileError(f"{self.what}: {message}", path=self.source.path, offset=offset)


class Vector(Struct, frozen=True):
    """``count`` items from byte ``start`` on."""

    flat: Flat
    start: int
    count: int

    def table(self, index: int) -> Table:
        """Item ``index`` of a vector of tables."""
        return self.flat.table(self.start + 4 * index)

    def numbers(self, kind: str, most: int) -> list[int]:
        """The items as numbers; at most ``most`` may be there. Raises ``InputError``."""
        if self.count > most:
            message = f"{self.flat.what}: {self.count} numbers, where {most} are allowed"
            raise LimitExceededError(message, path=self.flat.source.path, offset=self.start)
        raw = self.flat.source.read(self.start, self.count * _SIZES[kind])
        return list(struct.unpack(f"<{self.count}{kind}", raw))


class Table(Struct, frozen=True):
    """A table at ``start`` whose fields are laid out as the ``size`` bytes at ``layout`` say."""

    flat: Flat
    start: int
    layout: int
    size: int

    def number(self, field: int, kind: str, default: int = 0) -> int:
        """A number; ``default`` where it is left out."""
        place = self._place(field)
        return default if place is None else self.flat.number(place, kind)

    def sub(self, field: int) -> Table | None:
        """A table, if it is there."""
        place = self._place(field)
        return None if place is None else self.flat.table(place)

    def vector(self, field: int, width: int, most: int) -> Vector:
        """A vector of items of ``width`` bytes, of which at most ``most`` may be there; empty if it is left out."""
        place = self._place(field)
        if place is None:
            return Vector(self.flat, 0, 0)
        start = place + self.flat.number(place, "I")
        count = self.flat.number(start, "I")
        if count > most:
            message = f"{self.flat.what}: {count} items, where {most} are allowed"
            raise LimitExceededError(message, path=self.flat.source.path, offset=start)
        if start + 4 + count * width > self.flat.source.size:
            raise self.flat.error(f"{count} items of {width} bytes reach beyond the file", start)
        return Vector(self.flat, start + 4, count)

    def text(self, field: int, most: int) -> str:
        """A text of at most ``most`` bytes; what is no UTF-8 is replaced."""
        vector = self.vector(field, 1, most)
        return bytes(self.flat.source.read(vector.start, vector.count)).decode("utf-8", "replace")

    def _place(self, field: int) -> int | None:
        at = 4 + 2 * field
        if at + 2 > self.size:
            return None
        offset = self.flat.number(self.layout + at, "H")
        return self.start + offset if offset else None
