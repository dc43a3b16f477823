"""ZIP archives as hostile input: a bounded parser of the central directory, and entries as bytes by range.

Format: PKWARE APPNOTE 6.3.10. Stored entries are windows on the file; deflated ones are unpacked as they are read. The
central directory decides, as it does in torch's reader; local headers only say where the data begin. What a scanner
could stumble over and torch's reader does not mind (encryption flags, other names in local headers, wrong checksums) is
a finding, so that it hides nothing.
"""

from __future__ import annotations

import struct
import threading
import zlib
from dataclasses import dataclass

from fingerprint.errors import LimitExceededError, MalformedFileError, UnsupportedFormatError
from fingerprint.readers.base import MAX_NAME, Finding, some
from fingerprint.source import Source, check_range

MAX_ENTRIES = 2**17
MAX_DIRECTORY = 12 << 20
"""Most bytes of a central directory."""
MAX_INFLATED = 1 << 30
"""Most bytes that a deflated entry may unpack to; torch stores without compression."""
MAX_INFLATED_IN_ALL = 8 << 30
MAX_RATIO = 1040
"""Deflate makes at most 1032 bytes of one (zlib's technical details)."""

_LOCAL = struct.Struct("<4s5HIII2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in an archive: ``packed`` and unpacked ``size`` in bytes, and where its local header lies."""

    name: str
    method: int
    encrypted: bool
    crc: int
    packed: int
    size: int
    header: int


def is_zip(source: Source) -> bool:
    """True where the file begins with an entry, which torch's loader demands as well."""
    return source.size >= _END.size + _LOCAL.size and bytes(source.read(0, 4)) == b"PK\x03\x04"


class ZipArchive:
    """The entries of an archive by name in lower case: torch's reader does not tell capitals from small letters."""

    def __init__(self, source: Source) -> None:
        """Reads the central directory. Raises ``InputError``."""
        self.source = source
        self.findings: list[Finding] = []
        self._inflated = 0
        self._directory, size, count = find_directory(source)
        self.entries = self._read_directory(size, count)
        self._starts = self._check_layout()

    def locate(self, name: str) -> tuple[Source, int, int]:
        """Where an entry's bytes are: a source, the offset in it, and how many there are. Raises ``InputError``."""
        entry = self.entries.get(name.lower())
        if entry is None:
            raise MalformedFileError(f"the archive has no entry {name!r}", path=self.source.path)
        start = self._starts[name.lower()]
        if entry.method == _STORED:
            return self.source, start, entry.size
        if entry.method != _DEFLATED:
            message = f"{entry.name!r} is compressed by method {entry.method}"
            raise UnsupportedFormatError(message, path=self.source.path, hint="stored and deflated can be read")
        self._inflated += entry.size
        if entry.size > MAX_INFLATED or self._inflated > MAX_INFLATED_IN_ALL:
            message = f"{entry.name!r} unpacks to {entry.size} bytes; {MAX_INFLATED} are allowed"
            hint = f"and {MAX_INFLATED_IN_ALL} in all; save it without compression"
            raise LimitExceededError(message, path=self.source.path, hint=hint)
        return InflatedSource(self.source, start, entry), 0, entry.size

    def check_crc(self, name: str, entry: Source) -> None:
        """Notes a finding where the bytes of an entry do not have the checksum of the directory."""
        checksum = 0
        for start in range(0, entry.size, _PIECE):
            checksum = zlib.crc32(entry.read(start, min(_PIECE, entry.size - start)), checksum)
        if checksum != self.entries[name.lower()].crc:
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
            if name.lower() in entries:
                raise MalformedFileError(f"two entries are called {name!r}", path=source.path)
            entries[name.lower()] = Entry(name, method, bool(flags & _ENCRYPTED), crc, packed, unpacked, header)
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
            if entry.size > entry.packed * MAX_RATIO:
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
    tail_start = max(source.size - _END.size - 0xFFFF, 0)
    tail = bytes(source.read(tail_start, source.size - tail_start))
    position = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
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


class InflatedSource:
    """A deflated entry, unpacked from front to back as it is read; a step back begins anew."""

    def __init__(self, source: Source, start: int, entry: Entry) -> None:
        self.path = source.path
        self.size = entry.size
        self._source = source
        self._start = start
        self._entry = entry
        self._lock = threading.Lock()
        self._rewind()

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        with self._lock:
            if offset < self._position:
                self._rewind()
            while self._position < offset:
                self._unpack(min(offset - self._position, _PIECE))
            pieces = []
            while length:
                pieces.append(self._unpack(min(length, _PIECE)))
                length -= len(pieces[-1])
        return memoryview(b"".join(pieces))

    def close(self) -> None:
        """Nothing to give up: the archive's source is closed by its owner."""

    def _rewind(self) -> None:
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._fed = 0
        self._position = 0

    def _unpack(self, length: int) -> bytes:
        """Between 1 and ``length`` further bytes."""
        while True:
            packed = self._inflate.unconsumed_tail
            if not packed:
                step = min(_PIECE, self._entry.packed - self._fed)
                packed = bytes(self._source.read(self._start + self._fed, step))
                self._fed += step
            try:
                piece = self._inflate.decompress(packed, length)
            except zlib.error as error:
                message = f"{self._entry.name!r} cannot be unpacked: {error}"
                raise MalformedFileError(message, path=self.path) from error
            if piece:
                self._position += len(piece)
                return piece
            if self._inflate.eof or not packed:
                raise MalformedFileError(f"{self._entry.name!r} unpacks to less than it claims", path=self.path)


_PIECE = 1 << 20
