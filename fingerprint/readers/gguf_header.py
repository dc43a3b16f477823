"""The header of a GGUF file, as hostile bytes: a cursor over it, and the metadata as claims.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 1 (32-bit counts) to 3 (big-endian too).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NoReturn

from fingerprint.errors import LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import MAX_NAME, Catalogue, Finding

if TYPE_CHECKING:
    from fingerprint.source import Source

MAX_HEADER = 128 << 20
"""Most bytes of metadata and tensor entries together."""
MAX_ITEMS = 2**21
"""Most strings and arrays inside arrays; vocabularies with their merges have up to about 800,000."""
MAX_ENTRIES = 2**16
"""Most entries of the metadata."""
MAX_CLAIMS = 256
MAX_CLAIM = 4096
"""Most characters of a claim that are kept."""
MAX_LISTED = 1024
"""Most numbers of an array that is kept: one for each layer."""
MAX_DEPTH = 4
"""Most levels of arrays in arrays."""
_WINDOW = 1 << 18

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES = {number: struct.calcsize(f"<{code}") for number, code in _SCALARS.items()}
_PER_LAYER = (".attention.head_count", ".attention.head_count_kv")


class HeaderCursor:
    """Reads a header front to back through a window of bounded size."""

    def __init__(self, source: Source, catalogue: Catalogue, position: int, *, big_endian: bool, version: int) -> None:
        self.source = source
        self.position = position
        self.order = ">" if big_endian else "<"
        self.count_code = "I" if version == 1 else "Q"
        self._count = struct.Struct(self.order + self.count_code)
        self.catalogue = catalogue
        self._items_left = MAX_ITEMS
        self._window = memoryview(b"")
        self._start = position

    def fail(self, message: str) -> NoReturn:
        """Raises ``MalformedFileError`` for the present position."""
        raise MalformedFileError(message, path=self.source.path, offset=self.position)

    def take(self, length: int) -> memoryview:
        """The next ``length`` bytes."""
        offset = self.position - self._start
        if offset + length > len(self._window):
            self._refill(length)
            offset = 0
        self.position += length
        return self._window[offset : offset + length]

    def skip(self, length: int) -> None:
        """Passes over ``length`` bytes without reading them."""
        if length > self.source.size - self.position:
            self.fail(f"{length} bytes are claimed where the file has {self.source.size - self.position} left")
        if self.position + length - self._start > len(self._window):
            self._window, self._start = memoryview(b""), self.position + length
        self.position += length
        self._check_size()

    def number(self, code: str) -> int:
        """The next number, in ``struct``'s code."""
        value: int = struct.unpack(self.order + code, self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def count(self) -> int:
        """The next count or length."""
        return int(self._count.unpack(self.take(self._count.size))[0])

    def string(self, limit: int, what: str) -> str:
        """The next string, of at most ``limit`` bytes."""
        length = self.count()
        if length > limit:
            raise LimitExceededError(
                f"{what} of {length} bytes; {limit} are allowed", path=self.source.path, offset=self.position
            )
        try:
            return bytes(self.take(length)).decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def skip_strings(self, number: int) -> None:
        """Passes over ``number`` strings: a vocabulary."""
        self.count_items(number)
        for _ in range(number):
            self.skip(self.count())

    def count_items(self, number: int) -> None:
        """Counts strings or arrays inside an array. Raises ``LimitExceededError``."""
        self._items_left -= number
        if self._items_left < 0:
            raise LimitExceededError(f"arrays of more than {MAX_ITEMS} items", path=self.source.path)

    def _refill(self, length: int) -> None:
        left = self.source.size - self.position
        if length > left:
            raise MalformedFileError(
                f"the header ends after {left} of {length} bytes",
                path=self.source.path,
                offset=self.position,
                hint="is the file truncated?",
            )
        self._window = self.source.read(self.position, min(max(length, _WINDOW), left))
        self._start = self.position
        self._check_size(length)

    def _check_size(self, more: int = 0) -> None:
        if self.position + more > MAX_HEADER:
            raise LimitExceededError(f"a header of more than {MAX_HEADER} bytes", path=self.source.path)


def read_metadata(cursor: HeaderCursor, entries: int) -> tuple[dict[str, str], list[Finding]]:
    """The scalar claims of ``entries`` key-value pairs, and findings about what was left out.

    Vocabularies (``tokenizer.``) are passed over; of arrays only the numbers of heads by layer are kept, joined with
    commas, and short lists of words.
    """
    if entries > MAX_ENTRIES:
        raise LimitExceededError(f"{entries} entries of metadata; {MAX_ENTRIES} are allowed", path=cursor.source.path)
    claims: dict[str, str] = {}
    seen: set[str] = set()
    cut = 0
    for _ in range(entries):
        key = cursor.string(MAX_NAME, "a key")
        if key in seen:
            cursor.fail(f"the key {clipped(key)!r} appears twice")
        seen.add(key)
        cursor.catalogue.add_name(key)
        value = _value(cursor, key, cursor.number("I"))
        if value is None or key.startswith("tokenizer."):
            continue
        if len(claims) < MAX_CLAIMS:
            claims[key] = clipped(value, MAX_CLAIM)
            cut += len(value) > MAX_CLAIM
        else:
            cut += 1
    findings = [Finding("metadata-clipped", f"{cut} entries of the metadata were shortened or left out")] if cut else []
    return claims, findings


def _value(cursor: HeaderCursor, key: str, kind: int) -> str | None:
    if kind == _STRING:
        length = cursor.count()
        kept = bytes(cursor.take(min(length, 4 * (MAX_CLAIM + 1)))).decode(errors="replace")
        cursor.skip(max(0, length - 4 * (MAX_CLAIM + 1)))
        return kept
    if kind == _ARRAY:
        return _array(cursor, key, 1)
    return _scalar(cursor, kind)


def _scalar(cursor: HeaderCursor, kind: int) -> str:
    code = _SCALARS.get(kind)
    if code is None:
        cursor.fail(f"a value of the unknown type {kind}")
    return str(struct.unpack(cursor.order + code, cursor.take(_SIZES[kind]))[0])


def _array(cursor: HeaderCursor, key: str, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        raise LimitExceededError(f"arrays nested deeper than {MAX_DEPTH} levels", path=cursor.source.path)
    kind, number = cursor.number("I"), cursor.count()
    if kind == _ARRAY:
        cursor.count_items(number)
        for _ in range(number):
            _array(cursor, key, depth + 1)
        return None
    if kind == _STRING:
        _check_number(cursor, number, struct.calcsize(f"<{cursor.count_code}"))
        cursor.skip_strings(number)
        return None
    if kind not in _SCALARS:
        cursor.fail(f"an array of the unknown type {kind}")
    _check_number(cursor, number, _SIZES[kind])
    if number <= MAX_LISTED and key.endswith(_PER_LAYER):
        return ",".join(_scalar(cursor, kind) for _ in range(number))
    cursor.skip(number * _SIZES[kind])
    return None


def _check_number(cursor: HeaderCursor, number: int, size: int) -> None:
    if number * size > cursor.source.size - cursor.position:
        cursor.fail(f"an array claims {number} elements, more than the file has bytes for")
