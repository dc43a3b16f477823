"""tar archives as hostile input: a bounded walk over the headers; members are windows on the file.

Format: POSIX.1-2017 pax and ustar, and GNU's long names and large sizes. Nothing is unpacked, so names and links lead
nowhere; sparse members are not read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct, field

from fingerprint.errors import LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import MAX_NAME

if TYPE_CHECKING:
    from fingerprint.source import Source

MAX_MEMBERS = 2**17
MAX_EXTENDED = 1 << 20
"""Most bytes of a header that says more about the next member."""
_BLOCK = 512
_REGULAR = frozenset(b"0\x007")
_LINKS = frozenset(b"12")
_SPARSE = re.compile(rb" GNU\.sparse\.")


class Member(Struct, frozen=True):
    """A file in an archive: ``size`` bytes at ``offset``, or a link to the member ``target``."""

    name: str
    offset: int
    size: int
    target: str | None = None
    hard: bool = False


class Tar(Struct):
    """The files and links of an archive; ``truncated`` where its end is not there, ``sparse`` members are not read."""

    members: list[Member] = field(default_factory=list)
    sparse: list[str] = field(default_factory=list)
    truncated: bool = False


def is_tar(source: Source) -> bool:
    """True where the first block is a header with a right checksum."""
    return source.size >= _BLOCK and _checksum_fits(bytes(source.read(0, _BLOCK)))


def read_tar(source: Source) -> Tar:
    """The members of an archive, in order. Raises ``InputError``."""
    found = Tar()
    position = count = 0
    said: dict[str, str | int] = {}
    while True:
        if position + _BLOCK > source.size:
            # A tar ends with two blocks of zeros; one is enough for everybody.
            found.truncated = True
            return found
        block = bytes(source.read(position, _BLOCK))
        if not any(block):
            return found
        if not _checksum_fits(block):
            raise MalformedFileError("no header of a member, where one is wanted", path=source.path, offset=position)
        count += 1
        if count > MAX_MEMBERS:
            raise LimitExceededError(f"more than {MAX_MEMBERS} members", path=source.path)
        kind, size, start = block[156], _number(block[124:136], source, position), position + _BLOCK
        if kind in b"xgLK":
            text = _extended(source, start, size)
            if kind in b"LK":
                said["path" if kind == ord("L") else "linkpath"] = _text(text)
            elif kind == ord("x"):
                said |= _pax(text, source, start)
        else:
            size = said["size"] if isinstance(said.get("size"), int) else size  # type: ignore[assignment] # told just now
            name = str(said.get("path") or _short_name(block))
            _add(found, kind, name, start, size, str(said.get("linkpath") or _text(block[157:257])), "sparse" in said)
            said = {}
            if kind not in _REGULAR and kind != ord("S"):
                size = 0 if kind in b"123456" else size
            if start + size > source.size:
                found.truncated = True
                return found
        position = start + -(-size // _BLOCK) * _BLOCK


def _add(found: Tar, kind: int, name: str, start: int, size: int, target: str, sparse: bool) -> None:
    if kind == ord("S") or sparse:
        found.sparse.append(name)
    elif kind in _LINKS:
        found.members.append(Member(name, start, 0, target, kind == ord("1")))
    elif kind in _REGULAR and not name.endswith("/"):
        found.members.append(Member(name, start, size))


def _checksum_fits(block: bytes) -> bool:
    stored = block[148:156].strip(b" \x00")
    if not stored or any(digit not in b"01234567" for digit in stored):
        return False
    return int(stored, 8) == sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


def _number(raw: bytes, source: Source, position: int) -> int:
    if raw[0] == 0x80:  # GNU's way to write what eleven digits cannot hold
        value = int.from_bytes(raw[1:], "big")
    else:
        digits = raw.strip(b" \x00") or b"0"
        if any(digit not in b"01234567" for digit in digits):
            raise MalformedFileError("a size that is no number", path=source.path, offset=position)
        value = int(digits, 8)
    if value >= 2**62:
        raise MalformedFileError(f"a size of {value}", path=source.path, offset=position)
    return value


def _extended(source: Source, start: int, size: int) -> bytes:
    if size > MAX_EXTENDED:
        message = f"a header of {size} bytes; {MAX_EXTENDED} are allowed"
        raise LimitExceededError(message, path=source.path, offset=start)
    return bytes(source.read(start, min(size, max(source.size - start, 0))))


def _pax(text: bytes, source: Source, offset: int) -> dict[str, str | int]:
    """What a pax header says about path, target and size of the next member."""
    said: dict[str, str | int] = {}
    position = 0
    while position < len(text):
        length, _, _ = text[position : position + 10].partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(text) - position:
            raise MalformedFileError("a pax header that cannot be understood", path=source.path, offset=offset)
        record = text[position : position + int(length)]
        key, _, value = record.partition(b" ")[2].rstrip(b"\n").partition(b"=")
        if key in {b"path", b"linkpath"}:
            said[key.decode()] = _text(value)
        elif key == b"size" and value.isdigit() and len(value) < 19:
            said["size"] = int(value)
        elif _SPARSE.search(b" " + key):
            said["sparse"] = 1
        position += int(length)
    return said


def _short_name(block: bytes) -> str:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\x00" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(raw: bytes) -> str:
    return clipped(raw.partition(b"\x00")[0].decode("utf-8", "replace"), MAX_NAME)
