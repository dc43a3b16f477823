"""ZIP archives as hostile input: a bounded parser of the central directory, and entries as bytes by range.

Format: PKWARE APPNOTE 6.3.10. Stored entries are windows on the file; deflated ones are unpacked as they are read. The
central directory decides, as it does in torch's reader; local headers only say where the data begin. What a scanner
could stumble over and torch's reader does not mind (encryption flags, other names in local headers, wrong checksums) is
a finding, so that it hides nothing. An archive that was cut off has no directory: then the local headers decide.
"""

from __future__ import annotations

import stat
import struct
import zlib
from typing import TYPE_CHECKING

from msgspec import Struct

from fingerprint.errors import LimitExceededError, MalformedFileError, UnsupportedFormatError
from fingerprint.readers.base import MAX_NAME, Finding, some
from fingerprint.readers.scratch import MAX_SCRATCH, Scratch, UnpackedSource
from fingerprint.source import Source, check_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_ENTRIES = 2**17
MAX_DIRECTORY = 12 << 20
"""Most bytes of a central directory."""
MAX_UNSUSPICIOUS = 64 << 20
"""Bytes that an entry may unpack to at any ratio."""
MAX_RATIO = 64
"""Most bytes that one byte of a longer entry may unpack to; weights shrink to nine tenths, sparse ones to a tenth."""
IMPOSSIBLE_RATIO = 1040
"""Deflate makes at most 1032 bytes of one (zlib's technical details)."""

_LOCAL = struct.Struct("<4s5HIII2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1


class Entry(Struct, frozen=True):
    """A file in an archive: ``packed`` and unpacked ``size`` in bytes, and where its local header lies."""

    name: str
    method: int
    encrypted: bool
    crc: int
    packed: int
    size: int
    header: int
    link: bool = False


def is_zip(source: Source) -> bool:
    """True where the file begins with an entry, which torch's loader demands as well."""
    return source.size >= _END.size + _LOCAL.size and bytes(source.read(0, 4)) == b"PK\x03\x04"


class ZipArchive:
    """The entries of an archive by name in lower case: torch's reader does not tell capitals from small letters.

    ``truncated`` where the file was cut off; ``cut`` is then the entry, if any, of which only the beginning is there.
    """

    def __init__(self, source: Source, *, exact: bool = False) -> None:
        """Reads the central directory; ``exact`` keeps the case of names. Raises ``InputError``."""
        self.source = source
        self._key = str if exact else str.lower
        self.findings: list[Finding] = []
        self.cut: str | None = None
        self._scratch = Scratch(source.path)
        self.truncated = not has_directory(source)
        if self.truncated:
            self.entries, self._starts, self.cut = _recovered(source, self._key)
            return
        self._directory, size, count = find_directory(source)
        self.entries = self._read_directory(size, count)
        self._starts = self._check_layout()

    def locate(self, name: str) -> tuple[Source, int, int]:
        """Where an entry's bytes are: a source, the offset in it, and how many there are. Raises ``InputError``."""
        entry = self.entries.get(self._key(name))
        if entry is None:
            raise MalformedFileError(f"the archive has no entry {name!r}", path=self.source.path)
        start = self._starts[self._key(name)]
        if entry.method == _STORED:
            return self.source, start, entry.size
        if entry.method != _DEFLATED:
            message = f"{entry.name!r} is compressed by method {entry.method}"
            raise UnsupportedFormatError(message, path=self.source.path, hint="stored and deflated can be read")
        if entry.size > max(MAX_UNSUSPICIOUS, entry.packed * MAX_RATIO) or entry.size > MAX_SCRATCH:
            message = f"{entry.name!r} unpacks from {entry.packed} to {entry.size} bytes"
            hint = f"at most {MAX_RATIO} times its size is unpacked"
            raise LimitExceededError(message, path=self.source.path, hint=hint)
        pieces = _inflated(self.source, start, entry)
        return UnpackedSource(self.source.path, entry.size, pieces, self._scratch), 0, entry.size

    def check_crc(self, name: str, entry: Source) -> None:
        """Notes a finding where the bytes of an entry do not have the checksum of the directory."""
        checksum = 0
        for start in range(0, entry.size, _PIECE):
            checksum = zlib.crc32(entry.read(start, min(_PIECE, entry.size - start)), checksum)
        if checksum != self.entries[self._key(name)].crc:
            self.findings.append(Finding("crc-mismatch", f"the checksum of {name!r} is wrong"))

    def _read_directory(self, size: int, count: int) -> dict[str, Entry]:
        source = self.source
        raw = bytes(source.read(self._directory, size))
        entries: dict[str, Entry] = {}
        position = 0
        for _ in range(count):
            if position + _CENTRAL.size > size:
                raise MalformedFileError("the central directory ends too early", path=source.path)
            fields = _CENTRAL.unpack_from(raw, position)
            magic, _, _, flags, method, _, _, crc, packed, unpacked, name_size, extra_size, comment_size = fields[:13]
            if magic != b"PK\x01\x02":
                message = "no entry of the central directory, where one is wanted"
                raise MalformedFileError(message, path=source.path, offset=self._directory + position)
            name_start = position + _CENTRAL.size
            extra_start = name_start + name_size
            position = extra_start + extra_size + comment_size
            if position > size or name_size > MAX_NAME:
                raise MalformedFileError("the central directory ends too early", path=source.path)
            name = raw[name_start:extra_start].decode("utf-8", "replace")
            extra = raw[extra_start : extra_start + extra_size]
            unpacked, packed, header = _widened(extra, unpacked, packed, fields[16])
            if self._key(name) in entries:
                raise MalformedFileError(f"two entries are called {name!r}", path=source.path)
            link = stat.S_ISLNK(fields[15] >> 16)
            encrypted = bool(flags & _ENCRYPTED)
            entries[self._key(name)] = Entry(name, method, encrypted, crc, packed, unpacked, header, link)
        return entries

    def _check_layout(self) -> dict[str, int]:
        """Where the data of each entry begin. Entries lie before the directory and overlap nowhere."""
        source, end = self.source, 0
        starts: dict[str, int] = {}
        renamed: list[str] = []
        for key, entry in sorted(self.entries.items(), key=lambda item: item[1].header):
            if entry.header < end:
                message = f"{entry.name!r} overlaps with another entry"
                raise MalformedFileError(message, path=source.path, offset=entry.header)
            if entry.header + _LOCAL.size > self._directory:
                raise MalformedFileError(f"{entry.name!r} lies outside the archive", path=source.path)
            fields = _LOCAL.unpack(source.read(entry.header, _LOCAL.size))
            if fields[0] != b"PK\x03\x04":
                message = f"{entry.name!r} has no local header"
                raise MalformedFileError(message, path=source.path, offset=entry.header)
            start = entry.header + _LOCAL.size + fields[9] + fields[10]
            end = start + entry.packed
            if end > self._directory:
                raise MalformedFileError(f"{entry.name!r} reaches beyond the archive's entries", path=source.path)
            if entry.method == _STORED and entry.packed != entry.size:
                raise MalformedFileError(f"{entry.name!r} is stored, but in another size", path=source.path)
            if entry.size > entry.packed * IMPOSSIBLE_RATIO:
                raise MalformedFileError(f"{entry.name!r} claims an impossible compression", path=source.path)
            local = bytes(source.read(entry.header + _LOCAL.size, fields[9])).decode("utf-8", "replace")
            if local != entry.name:
                renamed.append(entry.name)
            starts[key] = start
        if renamed:
            text = f"{len(renamed)} entries have another name in their local header: {some(renamed)}"
            self.findings.append(Finding("zip-names", text))
        if encrypted := [entry.name for entry in self.entries.values() if entry.encrypted]:
            text = f"{len(encrypted)} entries are marked as encrypted and were read as they are: {some(encrypted)}"
            self.findings.append(Finding("zip-encrypted", text))
        return starts


def find_directory(source: Source) -> tuple[int, int, int]:
    """Offset and size in bytes of the central directory, and its number of entries. Raises ``InputError``."""
    tail_start, tail, position = _end(source)
    if position < 0:
        raise MalformedFileError("a ZIP archive without its end", path=source.path, hint="is the file truncated?")
    _, disk, first_disk, here, count, size, offset, _ = _END.unpack_from(tail, position)
    end = tail_start + position
    locator = end - _LOCATOR64.size
    if locator >= 0 and bytes(source.read(locator, 4)) == b"PK\x06\x07":
        _, _, end, _ = _LOCATOR64.unpack(source.read(locator, _LOCATOR64.size))
        check_range(source, end, _END64.size)
        magic, _, _, _, disk, first_disk, here, count, size, offset = _END64.unpack(source.read(end, _END64.size))
        if magic != b"PK\x06\x06":
            raise MalformedFileError("the ZIP64 end of the archive is not there", path=source.path, offset=end)
    if disk or first_disk or here != count:
        raise MalformedFileError("a ZIP archive of several volumes", path=source.path)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        message = f"{count} entries in a directory of {size} bytes; {MAX_ENTRIES} in {MAX_DIRECTORY} are allowed"
        raise LimitExceededError(message, path=source.path)
    if offset + size > end or count * _CENTRAL.size > size:
        raise MalformedFileError("the central directory does not fit into the file", path=source.path, offset=end)
    return offset, size, count


def _widened(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three numbers of an entry, with those that need 64 bits taken from the ZIP64 extra field."""
    numbers = [size, packed, header]
    position = 0
    while position + 4 <= len(extra) and 0xFFFFFFFF in numbers:
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1:
            field = extra[position : position + length]
            for index, number in enumerate(numbers):
                if number == 0xFFFFFFFF and len(field) >= 8:
                    numbers[index] = int.from_bytes(field[:8], "little")
                    field = field[8:]
            break
        position += length
    return numbers[0], numbers[1], numbers[2]


def has_directory(source: Source) -> bool:
    """False where the end of an archive is not there, as after a download that was broken off."""
    return _end(source)[2] >= 0


def _end(source: Source) -> tuple[int, bytes, int]:
    """Where the tail that may hold the end of the archive begins, the tail, and where in it that end is, or -1."""
    start = max(source.size - _END.size - 0xFFFF, 0)
    tail = bytes(source.read(start, source.size - start))
    # A negative place would count from behind.
    return start, tail, tail.rfind(b"PK\x05\x06", 0, max(len(tail) - _END.size + 4, 0))


def first_name(source: Source) -> str:
    """The name of the entry that an archive begins with."""
    fields = _LOCAL.unpack(source.read(0, _LOCAL.size))
    length = min(fields[9], source.size - _LOCAL.size)
    return bytes(source.read(_LOCAL.size, length)).decode("utf-8", "replace")


def _inflated(source: Source, start: int, entry: Entry) -> Iterator[bytes]:
    """The bytes of a deflated entry, in pieces."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    fed = 0
    while not inflate.eof:
        packed = inflate.unconsumed_tail
        if not packed:
            step = min(_PIECE, entry.packed - fed)
            packed = bytes(source.read(start + fed, step))
            fed += step
        try:
            piece = inflate.decompress(packed, _PIECE)
        except zlib.error as error:
            raise MalformedFileError(f"{entry.name!r} cannot be unpacked: {error}", path=source.path) from error
        if piece:
            yield piece
        elif not packed:
            return


def _recovered(source: Source, fold: Callable[[str], str]) -> tuple[dict[str, Entry], dict[str, int], str | None]:
    """The entries of an archive that was cut off, where their data begin, and the one that is not whole."""
    entries: dict[str, Entry] = {}
    starts: dict[str, int] = {}
    position = 0
    while position + _LOCAL.size <= source.size and len(entries) < MAX_ENTRIES:
        fields = _LOCAL.unpack(source.read(position, _LOCAL.size))
        start = position + _LOCAL.size + fields[9] + fields[10]
        if fields[0] != b"PK\x03\x04" or fields[9] > MAX_NAME or start > source.size:
            break
        name = bytes(source.read(position + _LOCAL.size, fields[9])).decode("utf-8", "replace")
        extra = bytes(source.read(start - fields[10], fields[10]))
        size, packed, _ = _widened(extra, fields[8], fields[7], 0)
        method, end = fields[3], start + packed
        if fields[2] & _DESCRIBED and not packed:
            if method != _STORED:
                break  # where it ends would be known after unpacking it
            size, end = _described_end(source, start)
            packed = size
        key = fold(name)
        whole = end <= source.size
        size = size if whole or method != _STORED else source.size - start
        if key in entries or size > packed * (IMPOSSIBLE_RATIO if method == _DEFLATED else 1):
            break
        entries[key] = Entry(name, method, bool(fields[2] & _ENCRYPTED), fields[6], packed, size, position)
        starts[key] = start
        if not whole:
            return entries, starts, key
        position = end
    if not entries:
        raise MalformedFileError("a ZIP archive without its end", path=source.path, hint="is the file truncated?")
    return entries, starts, None


def _described_end(source: Source, start: int) -> tuple[int, int]:
    """The size of a stored entry whose size stands behind it, and where the next entry begins; behind the end if cut.

    torch writes such entries. The description is found by its mark, and by its size being right.
    """
    position = start
    while position + 16 <= source.size:
        piece = bytes(source.read(position, min(4 * _PIECE, source.size - position)))
        found = piece.find(b"PK\x07\x08")
        while found >= 0:
            size = position + found - start
            after = piece[found : found + 24]
            if len(after) < 24:  # it goes on in the next piece
                after = bytes(source.read(position + found, min(24, source.size - position - found)))
            for width in (8, 4):
                if after[8 : 8 + 2 * width] == size.to_bytes(8, "little")[:width] * 2:
                    return size, position + found + 8 + 2 * width
            found = piece.find(b"PK\x07\x08", found + 4)
        position += max(len(piece) - 3, 1)
    return source.size - start, source.size + 1


_PIECE = 1 << 20
_DESCRIBED = 8
