"""The envelope of a signature file: preamble, header, table of typed sections, and their checks.

Layout, little-endian, without holes: preamble (64 bytes), header (canonical JSON), table (64 bytes a section),
sections in the order of the table. Byte by byte in docs/signature-format.md. What the sections mean is the codec's
business.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NoReturn

from msgspec import Struct

from fingerprint.errors import InputError, MalformedSignatureError, SignatureVersionError, UsageError
from fingerprint.readers.bounded_json import Json, JsonCursor
from fingerprint.threads import thread_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAGIC: Final = b"\x89FPSIG\r\n"
MAJOR: Final = 1
MINOR: Final = 0

MAX_FILE_BYTES: Final = 32 << 20
MAX_HEADER_BYTES: Final = 1 << 20
MAX_SECTIONS: Final = 256
MAX_RAW_BYTES: Final = 64 << 20
"""Most bytes that all sections together may have after decompression."""
MAX_EXPANSION: Final = 8
"""And never more than a mebibyte plus this many times the size of the file."""

COMPRESSED: Final = 1
ESSENTIAL: Final = 2
_KNOWN_FLAGS: Final = COMPRESSED | ESSENTIAL
_MIN_SAVING: Final = 0.05
_LEVEL: Final = 6
_LARGE: Final = 1 << 20
"""Bytes of all sections from which threads are worth their start."""

_PREAMBLE: Final = struct.Struct("<8sHHIIIq32s")
_ENTRY: Final = struct.Struct("<4sIQQQ32s")
_Entry = tuple[bytes, int, int, int, int, bytes]
_CHECKSUM: Final = struct.Struct("<I")
_CHECKSUM_AT: Final = 20
_TYPE: Final = re.compile(r"[A-Z][A-Z0-9]{3}")
_TOOL: Final = re.compile(r"[ -~]{0,32}")
_IDENTITY_PREFIX: Final = b"fpsig 1\n"
_CREATED_LIMIT: Final = 253402300800  # the year 10000, where datetime ends


class Section(Struct, frozen=True):
    """One typed part: ``kind`` is four ASCII capitals or digits, ``data`` the bytes before compression.

    ``essential`` says that a reader that does not know the kind must refuse the file instead of ignoring the part.
    """

    kind: str
    data: bytes
    essential: bool = False


class Envelope(Struct, frozen=True):
    """A signature file taken apart and checked; ``created`` is in seconds since 1970 (UTC)."""

    minor: int
    created: int
    tool: str
    header: dict[str, Json]
    sections: tuple[Section, ...]
    identity: str


def canonical_json(value: object) -> bytes:
    """ASCII JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def pack(header: Mapping[str, object], sections: Sequence[Section], *, created: int, tool: str) -> tuple[bytes, str]:
    """The bytes of a file and its identity.

    ``tool`` is at most 32 printable ASCII characters. Raises ``UsageError`` if a bound of the format is exceeded.
    """
    text = canonical_json(header)
    _require_packable(text, sections, created, tool)
    total = sum(len(section.data) for section in sections)
    data, digests = _assembled(text, sections, created, tool, compress=True)
    if total > _raw_limit(len(data)):  # a model of zeros, say: a reader could not tell it from a bomb
        data, digests = _assembled(text, sections, created, tool, compress=False)
    if len(data) > MAX_FILE_BYTES or total > _raw_limit(len(data)):
        raise UsageError(f"a signature of {len(data)} bytes is larger than the format allows")
    return data, _identity(text, sections, digests)


def identity_of(header: Mapping[str, object], sections: Sequence[Section]) -> str:
    """The identity of a file of these, even if it would exceed a bound of the format."""
    digests = [hashlib.sha256(section.data).digest() for section in sections]
    return _identity(canonical_json(header), sections, digests)


def unpack(data: bytes | memoryview, *, path: str = "signature") -> Envelope:
    """Take a file apart. Every length is checked before memory is asked for; nothing of ``data`` is kept.

    Raises ``MalformedSignatureError``, and ``SignatureVersionError`` for an unknown major version.
    """
    return _Unpacker(memoryview(data), path).run()


def has_magic(front: bytes) -> bool:
    """Whether ``front``, the first bytes of a file, are those of a signature."""
    return front.startswith(MAGIC)


class _Unpacker:
    def __init__(self, data: memoryview, path: str) -> None:
        self._data = data
        self._path = path

    def run(self) -> Envelope:
        data = self._data
        if not has_magic(bytes(data[: len(MAGIC)])):
            self._fail("this is not a signature file")
        if len(data) < _PREAMBLE.size:
            self._fail("the file ends inside its preamble")
        _, major, minor, header_length, count, checksum, created, tool = _PREAMBLE.unpack_from(data)
        if major != MAJOR:
            raise SignatureVersionError(
                f"{self._path}: version {major} of the signature format is not one that this program reads "
                f"(it reads version {MAJOR}); use a newer release of weightprint"
            )
        if len(data) > MAX_FILE_BYTES or header_length > MAX_HEADER_BYTES or count > MAX_SECTIONS:
            self._fail("the file, its header or its number of sections is larger than the format allows")
        body = _PREAMBLE.size + header_length + _ENTRY.size * count
        if body > len(data):
            self._fail("the file ends inside its header or its table of sections")
        self._require_checksum(body, checksum)
        text = bytes(data[_PREAMBLE.size : _PREAMBLE.size + header_length])
        sections, digests = self._sections(_PREAMBLE.size + header_length, count, body)
        return Envelope(
            minor=minor,
            created=self._created(created),
            tool=self._tool(tool),
            header=self._header(text),
            sections=sections,
            identity=_identity(text, sections, digests),
        )

    def _require_checksum(self, end: int, checksum: int) -> None:
        blank = bytearray(self._data[: _PREAMBLE.size])
        _CHECKSUM.pack_into(blank, _CHECKSUM_AT, 0)
        if zlib.crc32(self._data[_PREAMBLE.size : end], zlib.crc32(blank)) != checksum:
            self._fail("the checksum of the header does not agree: the file is damaged")

    def _sections(self, table: int, count: int, body: int) -> tuple[tuple[Section, ...], list[bytes]]:
        entries = [_ENTRY.unpack_from(self._data, table + _ENTRY.size * number) for number in range(count)]
        position, total = body, 0
        for _, flags, offset, stored, raw, _ in entries:
            if offset != position or (raw != stored and not flags & COMPRESSED):
                self._fail("the sections do not follow each other as the table says")
            position += stored
            total += raw
        if position != len(self._data):
            self._fail("the file does not end where its last section ends")
        if total > _raw_limit(len(self._data)):
            self._fail("the sections are larger after decompression than the format allows")
        names = [entry[0].decode("latin-1") for entry in entries]
        unknown = any(entry[1] & ~_KNOWN_FLAGS for entry in entries)
        if unknown or len(set(names)) < len(names) or not all(map(_TYPE.fullmatch, names)):
            self._fail("the table of sections has an entry that the format does not allow")
        if total < _LARGE:
            contents = list(map(self._checked, names, entries))
        else:  # zlib and hashlib release the interpreter's lock, and half of reading a large signature is theirs
            with ThreadPoolExecutor(thread_count()) as pool:
                contents = list(pool.map(self._checked, names, entries))
        sections = (
            Section(name, content, essential=bool(entry[1] & ESSENTIAL))
            for name, entry, content in zip(names, entries, contents, strict=True)
        )
        return tuple(sections), [entry[-1] for entry in entries]

    def _checked(self, name: str, entry: _Entry) -> bytes:
        """The content of a section, which has the digest that the table gives."""
        _, flags, offset, stored, raw, digest = entry
        content = self._content(name, flags, self._data[offset : offset + stored], raw)
        if hashlib.sha256(content).digest() != digest:
            self._fail(f"section {name} does not have the digest that the table gives: the file is damaged")
        return content

    def _content(self, name: str, flags: int, stored: memoryview, raw: int) -> bytes:
        if not flags & COMPRESSED:
            return bytes(stored)
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(stored, raw + 1)
        except zlib.error:
            self._fail(f"section {name} cannot be decompressed: the file is damaged")
        if len(content) != raw or not inflater.eof or inflater.unused_data:
            self._fail(f"section {name} has another size than the table gives: the file is damaged")
        return content

    def _header(self, text: bytes) -> dict[str, Json]:
        return parse_object(text, path=self._path, what="header")

    def _created(self, created: int) -> int:
        if not 0 <= created < _CREATED_LIMIT:
            self._fail("the time of creation is not a date")
        return created

    def _tool(self, raw: bytes) -> str:
        tool = raw.rstrip(b"\0").decode("latin-1")
        if not _TOOL.fullmatch(tool):
            self._fail("the name of the program that made the file is not printable")
        return tool

    def _fail(self, message: str) -> NoReturn:
        raise MalformedSignatureError(f"{self._path}: {message}")


def parse_object(text: bytes, *, path: str, what: str) -> dict[str, Json]:
    """A JSON object out of a signature; raises ``MalformedSignatureError``."""
    try:
        cursor = JsonCursor(text, path=path, what=what)
        value = cursor.value()
        cursor.end()
    except InputError as error:
        raise MalformedSignatureError(str(error)) from None
    if not isinstance(value, dict):
        raise MalformedSignatureError(f"{path}: the {what} is not a JSON object")
    return value


def _assembled(
    text: bytes, sections: Sequence[Section], created: int, tool: str, *, compress: bool
) -> tuple[bytes, list[bytes]]:
    """The file, and SHA-256 of the contents of each section."""
    stored = [_deflated(section.data) if compress else (0, section.data) for section in sections]
    offset = _PREAMBLE.size + len(text) + _ENTRY.size * len(sections)
    table = bytearray()
    digests: list[bytes] = []
    for section, (compressed, body) in zip(sections, stored, strict=True):
        digest = hashlib.sha256(section.data).digest()
        flags = compressed | (ESSENTIAL if section.essential else 0)
        table += _ENTRY.pack(section.kind.encode(), flags, offset, len(body), len(section.data), digest)
        digests.append(digest)
        offset += len(body)
    fields = (MAGIC, MAJOR, MINOR, len(text), len(sections))
    blank = _PREAMBLE.pack(*fields, 0, created, tool.encode())
    checksum = zlib.crc32(table, zlib.crc32(text, zlib.crc32(blank)))
    front = _PREAMBLE.pack(*fields, checksum, created, tool.encode())
    return b"".join([front, text, bytes(table), *(body for _, body in stored)]), digests


def _identity(text: bytes, sections: Sequence[Section], digests: Sequence[bytes]) -> str:
    """SHA-256 over header and uncompressed sections: neither the time, the tool nor zlib's version takes part."""
    total = hashlib.sha256(_IDENTITY_PREFIX + hashlib.sha256(text).digest())
    for section, digest in zip(sections, digests, strict=True):
        total.update(section.kind.encode() + digest)
    return f"sha256:{total.hexdigest()}"


def _deflated(data: bytes) -> tuple[int, bytes]:
    packed = zlib.compress(data, _LEVEL)
    return (COMPRESSED, packed) if len(packed) <= (1 - _MIN_SAVING) * len(data) else (0, data)


def _raw_limit(file_bytes: int) -> int:
    return min(MAX_RAW_BYTES, (1 << 20) + MAX_EXPANSION * file_bytes)


def _require_packable(text: bytes, sections: Sequence[Section], created: int, tool: str) -> None:
    if len(text) > MAX_HEADER_BYTES or len(sections) > MAX_SECTIONS:
        raise UsageError("the header of the signature, or its number of sections, is larger than the format allows")
    kinds = [section.kind for section in sections]
    if len(set(kinds)) != len(kinds) or not all(_TYPE.fullmatch(kind) for kind in kinds):
        raise UsageError(f"sections {kinds} are not distinct names of four capitals or digits")
    if not 0 <= created < _CREATED_LIMIT or not _TOOL.fullmatch(tool):
        raise UsageError("the time of creation or the name of the program cannot be written into a signature")
