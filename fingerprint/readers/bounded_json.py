"""A JSON reader for hostile text: values are taken one at a time, and depth, length and number of them are bounded.

``json.loads`` builds everything before anybody can look at it: 100 MB of ``[],[],…`` become gigabytes of lists. This
cursor works on the mapped bytes and hands out one member at a time. It is stricter than ``json``: no duplicate keys,
no NaN, no lone surrogates, no integers beyond 64 bits, UTF-8 only.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn

from fingerprint.errors import LimitExceededError, MalformedFileError, clipped

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_SPACE = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"', re.DOTALL)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]{0,19})(?![0-9])(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?(?![0-9.eE+-])")
_WORDS: dict[bytes, Json] = {b"true": True, b"false": False, b"null": None}
_WORD = re.compile(rb"true|false|null")

SPACE = 0x20
MAX_DEPTH = 32
MAX_STRING = 1 << 16
"""Most bytes of a string, escapes included."""
MAX_VALUES = 1 << 14
MAX_VALUES_IN_ALL = 1 << 19
MAX_NUMBER = 2**64


class JsonCursor:
    """Reads one JSON text out of ``data``, front to back.

    ``path`` and ``base`` (the offset of ``data`` in the file) are for messages. ``max_string`` bounds the bytes of one
    string, ``MAX_VALUES`` the members of one value, and ``MAX_VALUES_IN_ALL`` those of all values ever taken.
    """

    def __init__(
        self,
        data: bytes | memoryview,
        *,
        path: str,
        what: str,
        base: int = 0,
        max_string: int = MAX_STRING,
    ) -> None:
        self.data = data
        self._size = len(data)
        self.path = path
        self.what = what
        self.base = base
        self.position = 0
        self.max_string = max_string
        self._values_left = MAX_VALUES_IN_ALL
        self._members_left = 0

    def fail(self, message: str) -> NoReturn:
        """Raises ``MalformedFileError`` for the present position."""
        raise MalformedFileError(f"{self.what}: {message}", path=self.path, offset=self.base + self.position)

    def limit(self, message: str) -> NoReturn:
        """Raises ``LimitExceededError`` for the present position."""
        raise LimitExceededError(f"{self.what}: {message}", path=self.path, offset=self.base + self.position)

    def peek(self) -> str:
        """The next character that is not white space, not consumed (only ASCII matters); empty at the end."""
        data, position = self.data, self.position
        if position < self._size and data[position] > SPACE:
            return chr(data[position])
        match = _SPACE.match(data, position)
        if match is not None:
            self.position = position = match.end()
        return chr(data[position]) if position < self._size else ""

    def take(self, mark: str) -> None:
        """Consumes the punctuation ``mark``."""
        if self.peek() != mark:
            self.fail(f"not JSON: {mark!r} is wanted")
        self.position += 1

    def end(self) -> None:
        """Checks that nothing but white space is left."""
        if self.peek():
            self.fail("something follows the end of the JSON text")

    def string(self) -> str:
        """Consumes a string."""
        self.peek()
        # The end is looked for no further than a string may reach: the search itself must not cost much either.
        end = self.position + self.max_string + 2
        match = _STRING.match(self.data, self.position, end)
        if match is None:
            if end < self._size:
                self.limit(f"not a string, or one of more than {self.max_string} bytes")
            self.fail("not JSON: a string is wanted")
        body = match.group(1)
        try:
            text = str(json.loads(match.group())) if b"\\" in body else body.decode()
            text.encode()
        except ValueError:
            self.fail("not JSON: a string with invalid characters")
        self.position = match.end()
        return text

    def members(self) -> Iterator[str]:
        """Walks an object: yields each key; the caller must consume the value before it asks for the next key."""
        self.take("{")
        if self.peek() == "}":
            self.position += 1
            return
        seen: set[str] = set()
        while True:
            key = self.string()
            if key in seen:
                self.fail(f"the key {clipped(key)!r} appears twice")
            seen.add(key)
            self.take(":")
            yield key
            mark = self.peek()
            if mark not in {",", "}"}:
                self.fail("not JSON: ',' or '}' is wanted")
            self.position += 1
            if mark == "}":
                return

    def value(self, depth: int = 0) -> Json:
        """Consumes and builds a value of any kind."""
        if depth == 0:
            self._members_left = MAX_VALUES
        self._members_left -= 1
        self._values_left -= 1
        if self._members_left < 0 or self._values_left < 0:
            self.limit("too many values")
        if depth > MAX_DEPTH:
            self.limit(f"nested deeper than {MAX_DEPTH} levels")
        mark = self.peek()
        if mark == "{":
            return {key: self.value(depth + 1) for key in self.members()}
        if mark == "[":
            return self._array(depth)
        if mark == '"':
            return self.string()
        if (word := _WORD.match(self.data, self.position)) is not None:
            self.position = word.end()
            return _WORDS[word.group()]
        return self._number()

    def _array(self, depth: int) -> list[Json]:
        self.take("[")
        items: list[Json] = []
        if self.peek() == "]":
            self.position += 1
            return items
        while True:
            items.append(self.value(depth + 1))
            mark = self.peek()
            if mark not in {",", "]"}:
                self.fail("not JSON: ',' or ']' is wanted")
            self.position += 1
            if mark == "]":
                return items

    def _number(self) -> int | float:
        match = _NUMBER.match(self.data, self.position)
        if match is None:
            self.fail("not JSON: a value is wanted, with numbers of at most 64 bits")
        self.position = match.end()
        if match.group(1) or match.group(2):
            return float(match.group())
        number = int(match.group())
        if abs(number) >= MAX_NUMBER:
            self.limit("a number is larger than 64 bits")
        return number
