"""Zarr arrays (versions 2 and 3) of a folder or database: chunks on a grid, put together as they are read.

What is compressed is unpacked chunk by chunk as it is read: small ones in memory, of which a few are kept, large ones
into a bounded temporary file.
"""

from __future__ import annotations

import itertools
import math
import struct
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, UnsupportedFormatError, clipped
from fingerprint.readers.base import About, Catalogue, Contents, FileRecord, Finding, StoredTensor, bounded
from fingerprint.readers.chunked import Chunk, Chunked
from fingerprint.readers.compressed import pieces
from fingerprint.readers.marks import ZARR, ZARR_2, ZARR_3
from fingerprint.readers.opened import Opened
from fingerprint.readers.packed import Permuted
from fingerprint.readers.scratch import Scratch, UnpackedSource
from fingerprint.readers.zarr_array import LeftError, layout_of, parsed
from fingerprint.readers.zips import MAX_RATIO, MAX_UNSUSPICIOUS
from fingerprint.source import Section, check_range
from fingerprint.tensors import renamed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fingerprint.readers.places import Folder
    from fingerprint.readers.zarr_array import ArrayLayout, Codecs, Sharding
    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

FORMAT: Final = "zarr"
MAX_CHUNKS: Final = 1 << 17
"""Most chunks of a checkpoint, those that are not there included."""
MAX_LEVELS: Final = 16
"""Most groups inside one another."""
MAX_BLOSC: Final = 256 << 20
"""Most bytes of a chunk that Blosc packed, which is unpacked as a whole."""
_MAX_FOLDERS: Final = 1 << 15
_SMALL: Final = 4 << 20
"""Chunks of at most this many bytes are unpacked in memory."""
_KEPT: Final = 64 << 20
"""Bytes of unpacked small chunks that are kept for a checkpoint."""
ABOUT: Final = About(
    "Zarr, versions 2 and 3",
    "a folder with `.zgroup`, `.zmetadata`, `.zarray` or `zarr.json`",
    "arrays of all groups, in any grid of chunks and both orders; zlib, gzip, zstd, blosc, transposed axes, "
    "shards; a chunk that is not there is full of the fill value, as zarr has it",
    "lz4 and other compressions; filters; records; consolidated metadata without the arrays' own",
    "zarr",
)


class Store(Protocol):
    """Values by key."""

    def get(self, key: str) -> Source | None:
        """The value; None if there is none. Raises ``InputError``."""

    def ahead(self, keys: Iterable[str]) -> None:
        """Says which values are asked for next. Raises ``InputError``."""


class Kept:
    """Unpacked chunks, the ones used last, up to a number of bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0
        self._numbers = itertools.count()

    def number(self) -> int:
        """A number that no other chunk has."""
        return next(self._numbers)

    def get(self, source: UnpackedChunk) -> bytes:
        """The bytes of ``source``, unpacked now or before. Raises ``InputError``."""
        with self._lock:
            found = self._chunks.get(source.number)
            if found is not None:
                self._chunks.move_to_end(source.number)
                return found
        data = source.unpack()
        with self._lock:
            if source.number not in self._chunks:
                self._chunks[source.number] = data
                self._bytes += len(data)
            while self._bytes > _KEPT:
                _, oldest = self._chunks.popitem(last=False)
                self._bytes -= len(oldest)
        return data


class UnpackedChunk:
    """A compressed chunk of known size, unpacked when it is first read."""

    def __init__(self, packed: Source, kinds: tuple[str, ...], size: int, kept: Kept, scratch: Scratch) -> None:
        """``kinds``: compressions, the outermost first."""
        self.path = packed.path
        self.size = size
        self.number = kept.number()
        self._packed = packed
        self._kinds = kinds
        self._kept = kept
        self._scratch = scratch
        self._lock = threading.Lock()
        self._large: UnpackedSource | None = None

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        if self.size <= _SMALL:
            return memoryview(self._kept.get(self))[offset : offset + length]
        with self._lock:
            if self._large is None:
                self._large = UnpackedSource(self.path, self.size, self._pieces(), self._scratch)
        return self._large.read(offset, length)

    def close(self) -> None:
        """Nothing to give up: the file is closed by its owner."""

    def unpack(self) -> bytes:
        """All of it. Raises ``InputError``."""
        data = b"".join(self._pieces())
        if len(data) != self.size:
            raise MalformedFileError(f"a chunk of {self.size} bytes unpacks to {len(data)}", path=self.path)
        return data

    def _pieces(self) -> Iterator[bytes]:
        """What it unpacks to, no more than it should be and a piece."""
        (kind,) = self._kinds
        done = 0
        for piece in [_of_blosc(self._packed, self.size)] if kind == "blosc" else pieces(self._packed, kind):
            done += len(piece)
            if done > self.size:
                raise MalformedFileError(f"a chunk unpacks to more than {self.size} bytes", path=self.path)
            yield piece


def _of_blosc(packed: Source, size: int) -> bytes:
    """What a frame of Blosc 1 unpacks to, which must be ``size`` bytes. Raises ``InputError``.

    The frame says how long it is, packed and unpacked: the library is given none that says something else.
    """
    try:
        from numcodecs import blosc
    except ImportError as error:
        hint = "pip install 'weightprint[zarr]'"
        raise UnsupportedFormatError("Blosc needs a package that is not there", path=packed.path, hint=hint) from error
    raw = bytes(packed.read(0, packed.size))
    if len(raw) < _BLOSC.size or _BLOSC.unpack(raw[: _BLOSC.size])[4::2] != (size, len(raw)):
        raise MalformedFileError(f"Blosc: no frame of {size} bytes", path=packed.path)
    try:
        return bytes(blosc.decompress(raw))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise MalformedFileError(f"Blosc: {error}", path=packed.path) from error


class Arrays:
    """The arrays of a store while they are opened.

    ``strict``: a chunk that is not there is a fault, not one full of the fill value.
    """

    def __init__(self, store: Store, catalogue: Catalogue, path: str, *, strict: bool) -> None:
        self.findings: list[Finding] = []
        self.complete = True
        self._store = store
        self._catalogue = catalogue
        self._path = path
        self._strict = strict
        self._kept = Kept()
        self._scratch = Scratch(path)
        self._chunks = 0
        self._claimed = 0
        self._stored = 0

    def open(self, key: str, name: str) -> TensorView | None:
        """The array whose metadata are at ``key``, called ``name``; None for one that is left out, with a finding."""
        try:
            source = self._store.get(key)
            if source is None:
                return None
            layout = layout_of(parsed(source), source.path)
            self._catalogue.add(name, layout.shape)
            return self._view(layout, key[: -len(key.rpartition("/")[2])], name)
        except LeftError as reason:
            self.left(name, str(reason))
            return None
        except LimitExceededError as error:
            error.tensor = name
            raise
        except InputError as error:
            self.left(name, clipped(str(error), 300))
            return None

    def left(self, name: str, reason: str) -> None:
        """Notes an array that is not read."""
        self._catalogue.add_name(name)
        self.findings.append(Finding("unread-tensor", f"a tensor cannot be read: {reason}", name))
        self.complete = False

    def check(self) -> None:
        """Raises ``LimitExceededError`` where the arrays claim implausibly much for what is stored."""
        if self._claimed > max(MAX_UNSUSPICIOUS, MAX_RATIO * self._stored):
            message = f"the tensors claim {self._claimed} bytes, more than {MAX_RATIO} times what is stored"
            raise LimitExceededError(message, path=self._path)

    def _view(self, layout: ArrayLayout, folder: str, name: str) -> TensorView | None:
        grid = [-(-size // part) for size, part in zip(layout.shape, layout.chunk, strict=True)]
        self._count(math.prod(grid))
        chunks: list[Chunk] = []
        absent = 0
        self._store.ahead(folder + layout.key(index) for index in itertools.product(*map(range, grid)))
        for index in itertools.product(*map(range, grid)):
            source = self._store.get(folder + layout.key(index))
            offsets = tuple(at * part for at, part in zip(index, layout.chunk, strict=True))
            if source is None:
                absent += 1
            elif layout.sharding is None:
                self._stored += source.size
                chunks.append(Chunk(offsets, self._box(source, layout, layout.chunk, layout.codecs)))
            else:
                self._stored += source.size
                found, missing = self._shard(source, layout, layout.sharding, offsets)
                chunks += found
                absent += missing
        if absent and (self._strict or layout.blank is None):
            text = f"{absent} chunks of a tensor are not there"
            self.findings.append(Finding("absent-shard", text, name))
            self.complete = False
            return None
        self._claimed += math.prod(layout.shape) * layout.dtype.bits // 8
        if len(chunks) == 1 and chunks[0].view.shape == layout.shape:
            return renamed(chunks[0].view, name)
        return Chunked(name, layout.shape, tuple(chunks), layout.dtype, layout.blank if absent else None)

    def _count(self, chunks: int) -> None:
        self._chunks += chunks
        if self._chunks > MAX_CHUNKS:
            raise LimitExceededError(f"more than {MAX_CHUNKS} chunks", path=self._path)
        self._catalogue.take(400 * chunks)

    def _box(self, source: Source, layout: ArrayLayout, shape: tuple[int, ...], codecs: Codecs) -> TensorView:
        """A chunk of ``shape``, however it is packed."""
        size = math.prod(shape) * layout.dtype.bits // 8
        kinds = list(reversed(codecs.packed))
        while kinds and kinds[0] == "crc32c":
            if source.size < _CHECKSUM:
                raise LeftError("a chunk without its checksum")
            source = Section(source, 0, source.size - _CHECKSUM)
            kinds.pop(0)
        if len(kinds) > 1:
            raise LeftError("chunks that are packed several times")
        if kinds:
            if kinds == ["blosc"] and size > MAX_BLOSC:
                raise LeftError(f"a chunk of Blosc has more than {MAX_BLOSC} bytes")
            if size > max(MAX_UNSUSPICIOUS, MAX_RATIO * source.size):
                raise LeftError(f"a chunk unpacks to more than {MAX_RATIO} times its size")
            source = UnpackedChunk(source, tuple(kinds), size, self._kept, self._scratch)
        elif source.size != size:
            raise LeftError(f"a chunk of {size} bytes has {source.size}; is it cut off?")
        if codecs.order is None:
            return StoredTensor("", layout.dtype, shape, source, 0, codecs.big_endian)
        stored = StoredTensor(
            "", layout.dtype, tuple(shape[axis] for axis in codecs.order), source, 0, codecs.big_endian
        )
        inverse = tuple(codecs.order.index(axis) for axis in range(len(shape)))
        return Permuted(stored, "", inverse)

    def _shard(
        self, source: Source, layout: ArrayLayout, sharding: Sharding, offsets: tuple[int, ...]
    ) -> tuple[list[Chunk], int]:
        """The chunks of a shard that begin inside the array, and how many of them are not there."""
        grid = [whole // part for whole, part in zip(layout.chunk, sharding.chunk, strict=True)]
        count = math.prod(grid)
        self._count(count)
        if layout.codecs.packed:
            source = self._unpacked_shard(source, layout)
        size = 16 * count + _CHECKSUM * sharding.index_checked
        if source.size < size:
            raise LeftError("a shard that is too short for its index")
        raw = source.read(source.size - size if sharding.at_end else 0, 16 * count)
        places = np.frombuffer(raw, ">u8" if sharding.index_big_endian else "<u8").reshape(count, 2)
        chunks: list[Chunk] = []
        absent = 0
        for number, index in enumerate(itertools.product(*map(range, grid))):
            begin = tuple(at + step * part for at, step, part in zip(offsets, index, sharding.chunk, strict=True))
            if any(at >= whole for at, whole in zip(begin, layout.shape, strict=True)):
                continue
            offset, length = int(places[number, 0]), int(places[number, 1])
            if (offset, length) == _NOWHERE:
                absent += 1
                continue
            part = Section(source, offset, length)
            chunks.append(Chunk(begin, self._box(part, layout, sharding.chunk, sharding.codecs)))
        return chunks, absent

    def _unpacked_shard(self, source: Source, layout: ArrayLayout) -> Source:
        """A shard behind a checksum. Compressed as a whole it is left out: its parts could not be read alone."""
        if any(kind != "crc32c" for kind in layout.codecs.packed) or source.size < _CHECKSUM:
            raise LeftError("shards that are packed as a whole")
        return Section(source, 0, source.size - _CHECKSUM * len(layout.codecs.packed))


_BLOSC: Final = struct.Struct("<4B3I")
_CHECKSUM: Final = 4
_NOWHERE: Final = (2**64 - 1, 2**64 - 1)


def is_zarr(names: list[str]) -> bool:
    """True for the files of a folder that is a group or an array of zarr."""
    return any(name in names for name in ZARR)


def open_zarr(place: Folder, catalogue: Catalogue) -> tuple[Contents, tuple[FileRecord, ...]]:
    """The arrays of all groups of a folder, called by their paths with dots, and its files. Raises ``InputError``."""
    opened = Opened(place, catalogue)
    try:
        arrays = Arrays(opened, catalogue, place.path, strict=False)
        tensors = [view for key in array_keys(opened) if (view := arrays.open(key, named(key) or "array")) is not None]
        arrays.check()
        contents = Contents(
            tuple(tensors), bounded(arrays.findings), complete=arrays.complete, sources=opened.sources()
        )
    except BaseException:
        opened.close()
        raise
    return contents, opened.records()


def named(key: str) -> str:
    """The path of the array whose metadata are at ``key``, with dots."""
    return key.rpartition("/")[0].replace("/", ".")


def array_keys(opened: Opened) -> list[str]:
    """Keys of the metadata of all arrays below a folder. Raises ``InputError``."""
    found: list[str] = []
    waiting = [("", 0)]
    seen = 0
    while waiting:
        path, level = waiting.pop()
        seen += 1
        if level > MAX_LEVELS or seen > _MAX_FOLDERS:
            limit = f"more than {MAX_LEVELS} groups inside one another" if level > MAX_LEVELS else "too many folders"
            raise LimitExceededError(limit, path=opened.path)
        folder = opened.folder(path)
        names = folder.file_names()
        above = f"{path}/" if path else ""
        if ZARR_2 in names:
            found.append(f"{above}{ZARR_2}")
        elif ZARR_3 in names and _is_array(opened, f"{above}{ZARR_3}"):
            found.append(f"{above}{ZARR_3}")
        else:
            waiting += [(f"{above}{name}", level + 1) for name in reversed(folder.folder_names())]
    return found


def _is_array(opened: Opened, key: str) -> bool:
    """False for the metadata of a group."""
    source = opened.get(key)
    if source is None:
        return False
    value = parsed(source)
    return not isinstance(value, dict) or value.get("node_type") != "group"
