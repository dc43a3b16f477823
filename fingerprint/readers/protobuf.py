"""Protocol buffers as hostile input: fields of a message by range, without copying what is long.

Format: https://protobuf.dev/programming-guides/encoding/. Nothing is kept but what the caller asks for; a field of two
gigabytes is stepped over. Every length is checked against the message around it before anything is done with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.source import Source
    from fingerprint.tensors import Array

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MOST_OF_A_VARINT = 10
_WINDOW = 1 << 16
_PIECE = 1 << 20
MAX_FIELDS = 1 << 21
"""Most fields of one file that are looked at."""


class Field(NamedTuple):
    """A field: its ``number``, how it is stored (``wire``), and the ``value`` of a number.

    Of a field of bytes, ``start`` and ``stop`` are where they lie in the file.
    """

    number: int
    wire: int
    value: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of bytes of a field of bytes."""
        return self.stop - self.start


class Wire:
    """Reads messages out of ``source``; ``what`` names the format in errors."""

    def __init__(self, source: Source, what: str) -> None:
        self.source = source
        self.what = what
        self._window = memoryview(b"")
        self._base = 0
        self._left = MAX_FIELDS

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message in bytes ``start`` to ``stop``, one by one. Raises ``InputError``."""
        position = start
        while position < stop:
            self._left -= 1
            if self._left < 0:
                raise LimitExceededError(f"{self.what}: more than {MAX_FIELDS} fields", path=self.source.path)
            offset = position - self._base
            if 0 <= offset < len(self._window) and (tag := self._window[offset]) < 128:  # without a call: most are
                after = position + 1
            else:
                tag, after = self._varint(position, stop)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                raise self.error(f"no field has the number {number}", position)
            if wire == VARINT:
                value, end = self._varint(after, stop)
                yield Field(number, wire, value, after, end)
            elif wire == BYTES:
                size, begin = self._varint(after, stop)
                end = begin + size
                if end > stop:
                    message = f"a field of {size} bytes, where {stop - begin} are left"
                    raise self.error(message, position, hint="is the file truncated?")
                yield Field(number, wire, 0, begin, end)
            elif wire in {FIXED32, FIXED64}:
                end = after + (4 if wire == FIXED32 else 8)
                if end > stop:
                    raise self.error("a number is cut off", position)
                yield Field(number, wire, int.from_bytes(self._peek(after, end - after), "little"), after, end)
            else:
                raise self.error(f"unknown wire type {wire}", position)
            position = end

    def text(self, field: Field, most: int) -> str:
        """A field of text of at most ``most`` bytes; what is no UTF-8 is replaced. Raises ``InputError``."""
        return self.raw(field, most).decode("utf-8", "replace")

    def raw(self, field: Field, most: int) -> bytes:
        """A field of at most ``most`` bytes. Raises ``InputError``."""
        if field.wire != BYTES:
            raise self.error(f"field {field.number} is no text", field.start)
        if field.size > most:
            message = f"{self.what}: field {field.number} has {field.size} bytes; {most} are allowed"
            raise LimitExceededError(message, path=self.source.path, offset=field.start)
        return bytes(self._peek(field.start, field.size))

    def message(self, field: Field) -> Iterator[Field]:
        """The fields of the message that ``field`` is. Raises ``InputError``."""
        if field.wire != BYTES:
            raise self.error(f"field {field.number} is no message", field.start)
        return self.fields(field.start, field.stop)

    def numbers(self, field: Field, most: int) -> list[int]:
        """The numbers of a repeated integer field, packed or not; signed. Raises ``InputError``."""
        if field.wire == VARINT:
            return [signed(field.value)]
        if field.wire != BYTES:
            raise self.error(f"field {field.number} is no number", field.start)
        if field.size > most * _MOST_OF_A_VARINT:
            message = f"{self.what}: more than {most} numbers in field {field.number}"
            raise LimitExceededError(message, path=self.source.path, offset=field.start)
        values: list[int] = []
        position = field.start
        while position < field.stop:
            if len(values) == most:
                message = f"{self.what}: more than {most} numbers in field {field.number}"
                raise LimitExceededError(message, path=self.source.path, offset=field.start)
            value, position = self._varint(position, field.stop)
            values.append(signed(value))
        return values

    def error(self, message: str, offset: int, hint: str | None = None) -> InputError:
        """A ``MalformedFileError`` about the byte at ``offset``."""
        return MalformedFileError(f"{self.what}: {message}", path=self.source.path, offset=offset, hint=hint)

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        """The number at ``position``, and where it ends."""
        offset = position - self._base
        if position < stop and 0 <= offset < len(self._window) and (byte := self._window[offset]) < 128:
            return byte, position + 1  # as nearly all are
        size = min(_MOST_OF_A_VARINT, stop - position)
        raw = self._peek(position, size)
        value = 0
        for index in range(size):
            byte = raw[index]
            value |= (byte & 127) << (7 * index)
            if byte < 128:
                return value & (2**64 - 1), position + index + 1
        raise self.error("a number has no end", position)

    def _peek(self, position: int, size: int) -> memoryview:
        offset = position - self._base
        if offset < 0 or offset + size > len(self._window):
            if size >= _WINDOW:
                return self.source.read(position, size)
            self._base, offset = position, 0
            self._window = self.source.read(position, min(_WINDOW, self.source.size - position))
            if len(self._window) < size:
                raise self.error(f"{size} bytes are wanted where {len(self._window)} are left", position)
        return self._window[offset : offset + size]


def signed(value: int) -> int:
    """A varint read as a signed number of 64 bits."""
    return value - 2**64 if value >= 2**63 else value


class Varints:
    """``count`` packed numbers in bytes ``start`` to ``stop`` of a source, read by range.

    Where an element begins is only known after those before it were read, so the first pass notes a position every
    so often and later ones start from there.
    """

    def __init__(self, source: Source, start: int, stop: int, count: int) -> None:
        self._source = source
        self._stop = stop
        self._marks = [(0, start)]
        self.count = count

    def read(self, start: int, stop: int) -> Array:
        """Numbers ``start`` to ``stop`` as int64. Raises ``MalformedFileError`` if there are not so many."""
        mark = self._mark_before(start)
        index, position = self._marks[mark]
        pieces: list[Array] = []
        while index < stop:
            values, end = self._decode(position)
            low, high = max(start - index, 0), min(stop - index, values.size)
            if low < high:
                pieces.append(values[low:high])
            index, position, mark = index + values.size, end, mark + 1
            if mark == len(self._marks):
                self._marks.append((index, position))
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _mark_before(self, index: int) -> int:
        low, high = 0, len(self._marks)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._marks[middle][0] <= index else (low, middle)
        return low

    def _decode(self, position: int) -> tuple[Array, int]:
        """The numbers of the next megabyte, and where they end."""
        path = self._source.path
        size = min(_PIECE, self._stop - position)
        raw = np.frombuffer(self._source.read(position, size), np.uint8)
        ends = np.flatnonzero(raw < 128)
        if not ends.size:
            raise MalformedFileError("fewer numbers than the shape asks for", path=path, offset=position)
        starts = np.empty_like(ends)
        starts[0], starts[1:] = 0, ends[:-1] + 1
        lengths = ends - starts + 1
        longest = int(lengths.max())
        if longest > _MOST_OF_A_VARINT:
            raise MalformedFileError("a number has no end", path=path, offset=position)
        values = np.zeros(ends.size, np.uint64)
        for index in range(longest):
            there = lengths > index
            bits = (raw[starts[there] + index] & 127).astype(np.uint64)
            values[there] |= bits << np.uint64(7 * index)
        return values.view(np.int64), position + int(ends[-1]) + 1
