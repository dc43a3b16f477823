"""OCDBT, the key-value database of TensorStore: a folder of files with a manifest, a tree of nodes, and values.

Format: "Storage format" in tensorstore/kvstore/ocdbt/index.rst (0.1.86). Only the newest version is read. Nodes are
bounded in number and size before they are unpacked, and data files lie below the folder; checksums are not computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from msgspec import Struct

from fingerprint.errors import LimitExceededError, MalformedFileError, UnsupportedFormatError, clipped
from fingerprint.readers.compressed import unpacked
from fingerprint.readers.index import is_plain_name
from fingerprint.readers.marks import OCDBT
from fingerprint.source import MemorySource, Section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fingerprint.readers.base import Catalogue
    from fingerprint.readers.opened import Opened
    from fingerprint.source import Source

MAX_NODE: Final = 16 << 20
"""Most bytes of a node, unpacked; the library writes 8 MiB at most unless it is told otherwise."""
MAX_NODES: Final = 1 << 13
MAX_NODE_BYTES: Final = 512 << 20
"""Most bytes of all nodes, unpacked."""
MAX_KEYS: Final = 1 << 19
MAX_KEY: Final = 4096
_MANIFEST_MAGIC: Final = 0x0CDB3A2A
_NODE_MAGIC: Final = 0x0CDB20DE
_MAX_FILES: Final = 1 << 16
_MAX_HEIGHT: Final = 32
_MAX_TEXT: Final = 64 << 20
"""Most bytes of the keys of one node, put together."""
_SINGLE: Final = 0
_CHECKSUM: Final = 4


class _Value(Struct, frozen=True):
    """Where a value is stored: in a data file, or as ``inline``."""

    file: str = ""
    offset: int = 0
    length: int = 0
    inline: bytes | None = None


class _Files(Struct, frozen=True):
    """A table of data files: their paths, and how much of each applies to the files that are named in them."""

    paths: tuple[str, ...]
    bases: tuple[int, ...]


class Database:
    """The newest version of a database; values are windows on its files."""

    def __init__(self, opened: Opened, catalogue: Catalogue) -> None:
        """Reads the manifest and all nodes. Raises ``InputError``."""
        self._opened = opened
        self._catalogue = catalogue
        self._values: dict[str, _Value] = {}
        self._nodes = 0
        self._bytes = 0
        source = opened.get(OCDBT)
        if source is None:
            raise MalformedFileError("no manifest of a database", path=opened.path)
        self._read(source)

    def names(self) -> list[str]:
        """All keys, sorted as bytes are."""
        return list(self._values)

    def get(self, key: str) -> Source | None:
        """The value under ``key``; None if there is none. Raises ``InputError``."""
        value = self._values.get(key)
        if value is None:
            return None
        if value.inline is not None:
            return MemorySource(value.inline, f"{self._opened.path}:{key}")
        return Section(self._file(value.file), value.offset, value.length)

    def ahead(self, keys: Iterable[str]) -> None:
        """Nothing to do: the values lie in few files, which are open."""

    def _file(self, path: str) -> Source:
        """A data file. Raises ``InputError``, also for a path that leads out of the folder."""
        if not all(map(is_plain_name, path.split("/"))):
            message = f"OCDBT: a data file must lie below the folder, not at {clipped(path)!r}"
            raise MalformedFileError(message, path=self._opened.path)
        source = self._opened.get(path)
        if source is None:
            raise MalformedFileError("a data file is not there", path=f"{self._opened.path}/{clipped(path)}")
        return source

    def _read(self, source: Source) -> None:
        body = _Body(_unwrapped(source, _MANIFEST_MAGIC), source.path)
        body.take(16)
        kind, _, _, _, method = body.varint(), body.varint(), body.varint(), body.byte(), body.varint()
        if kind != _SINGLE:
            raise UnsupportedFormatError("a database with numbered manifests", path=source.path)
        if method:
            body.take(4)
        files = body.files("")
        count = body.count(_MAX_FILES)
        body.column(count)
        heights, numbers = body.column(count), body.column(count)
        offsets, lengths = body.column(count), body.column(count)
        if count and heights[-1] <= _MAX_HEIGHT and lengths[-1] not in {0, 2**64 - 1}:
            self._node(files, numbers[-1], offsets[-1], lengths[-1], heights[-1], b"")
        elif count and lengths[-1] not in {0, 2**64 - 1}:
            body.fail("a tree that is too high")

    def _node(self, files: _Files, number: int, offset: int, length: int, height: int, prefix: bytes) -> None:
        """Reads the node at a place and all below it."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise LimitExceededError(f"more than {MAX_NODES} nodes", path=self._opened.path)
        if number >= len(files.paths):
            raise MalformedFileError("a node in a file that is not listed", path=self._opened.path)
        path = files.paths[number]
        source = self._file(path)
        data = _unwrapped(Section(source, offset, length), _NODE_MAGIC)
        self._bytes += len(data)
        if self._bytes > MAX_NODE_BYTES:
            raise LimitExceededError(f"nodes of more than {MAX_NODE_BYTES} bytes", path=self._opened.path)
        body = _Body(data, source.path)
        if body.byte() != height:
            body.fail("a node at another height than its parent says")
        inner = body.files(path[: files.bases[number]])
        count = body.count(MAX_KEYS)
        if height:
            self._children(body, inner, count, height, prefix)
        else:
            self._leaf(body, inner, count, prefix)

    def _children(self, body: _Body, files: _Files, count: int, height: int, prefix: bytes) -> None:
        shared, rest, common = body.column(max(count - 1, 0)), body.column(count), body.column(count)
        keys = body.keys(shared, rest)
        numbers, offsets, lengths = body.column(count), body.column(count), body.column(count)
        for place, key in enumerate(keys):
            below = prefix + key[: common[place]]
            self._node(files, numbers[place], offsets[place], lengths[place], height - 1, below)

    def _leaf(self, body: _Body, files: _Files, count: int, prefix: bytes) -> None:
        shared, rest = body.column(max(count - 1, 0)), body.column(count)
        keys = body.keys(shared, rest)
        lengths, kinds = body.column(count), body.column(count)
        if any(kind > 1 for kind in kinds):
            body.fail("a value of an unknown kind")
        outside = sum(kinds)
        numbers, offsets = iter(body.column(outside)), iter(body.column(outside))
        for key, length, kind in zip(keys, lengths, kinds, strict=True):
            name = (prefix + key).decode("utf-8", "replace")
            if len(self._values) == MAX_KEYS:
                raise LimitExceededError(f"more than {MAX_KEYS} keys", path=self._opened.path)
            self._catalogue.add_name(clipped(name, MAX_KEY), 200 + (0 if kind else length))
            if kind:
                number = next(numbers)
                if number >= len(files.paths):
                    body.fail("a value in a file that is not listed")
                self._values[name] = _Value(files.paths[number], next(offsets), length)
            else:
                self._values[name] = _Value(inline=body.take(length))


class _Body:
    """The body of a manifest or node, read from front to back."""

    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def fail(self, message: str) -> NoReturn:
        raise MalformedFileError(f"OCDBT: {message}", path=self._path)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            self.fail("it ends too early")
        self._at += size
        return piece

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        """An unsigned number of at most 64 bits, seven bits a byte, the lowest first."""
        value = shift = 0
        byte = 128
        while byte > 127:
            if shift > 63:
                self.fail("a number of more than 64 bits")
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
        return value & (2**64 - 1)

    def count(self, most: int) -> int:
        """How many entries follow, of a byte at least each."""
        count = self.varint()
        if count > min(most, len(self._data) - self._at):
            self.fail(f"{count} entries are said to follow in {len(self._data) - self._at} bytes")
        return count

    def column(self, count: int) -> list[int]:
        return [self.varint() for _ in range(count)]

    def keys(self, shared: list[int], rest: list[int]) -> list[bytes]:
        """Strings that have their beginnings in common with the one before."""
        keys: list[bytes] = []
        key, total = b"", 0
        for common, length in zip([0, *shared], rest, strict=False):
            total += common + length
            if common > len(key) or common + length > MAX_KEY or total > _MAX_TEXT:
                self.fail("a key that cannot be put together")
            key = key[:common] + self.take(length)
            keys.append(key)
        return keys

    def files(self, above: str) -> _Files:
        """A table of data files, whose paths go on from ``above``."""
        count = self.count(_MAX_FILES)
        shared, rest, bases = self.column(max(count - 1, 0)), self.column(count), self.column(count)
        paths: list[str] = []
        for path in self.keys(shared, rest):
            full = above + path.decode("utf-8", "replace")
            if len(full) > MAX_KEY:
                self.fail("a path that is too long")
            paths.append(full)  # one that nothing lies in, as in a database without a key, may be empty
        return _Files(tuple(paths), tuple(len(above) + base for base in bases))


def _unwrapped(source: Source, magic: int) -> bytes:
    """The body of a manifest or node, unpacked."""
    if not 14 + _CHECKSUM <= source.size <= MAX_NODE:
        raise MalformedFileError(f"OCDBT: a node of {source.size} bytes", path=source.path)
    head = _Body(bytes(source.read(0, 16)), source.path)
    if int.from_bytes(head.take(4), "big") != magic:
        head.fail("the mark of its beginning is another")
    length, version, compression = int.from_bytes(head.take(8), "little"), head.byte(), head.byte()
    if length != source.size:
        head.fail(f"{source.size} bytes that say to be {length}; is it cut off?")
    if version or compression > 1:
        raise UnsupportedFormatError("a newer version of OCDBT", path=source.path)
    packed = Section(source, 14, source.size - 14 - _CHECKSUM)
    if not compression:
        return bytes(packed.read(0, packed.size))
    return unpacked(packed, "zst", MAX_NODE)
