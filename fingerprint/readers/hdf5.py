"""HDF5 files as hostile input: h5py tells where the data are, and this module reads them.

Only hard links are followed, each object is visited once, and data outside the file (external and virtual datasets)
are refused. Contiguous data are windows on the file; chunks are unpacked here, within bounds.
"""

from __future__ import annotations

import io
import math
import threading
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct, field

from fingerprint import dtypes
from fingerprint.dtypes import DTYPES, DType
from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, UnsupportedFormatError, clipped
from fingerprint.readers.base import MAX_NAME, MAX_RANK, Catalogue, StoredTensor, checked_count
from fingerprint.source import MemorySource, Source, check_range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.tensors import Array, TensorView

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_DEPTH = 32
MAX_OBJECTS = 1 << 17
"""Most groups and datasets of a file."""
MAX_CHUNK = 64 << 20
"""Most bytes that a chunk unpacks to."""
MAX_CHUNKS = 1 << 17
_KEPT_CHUNKS = 4
_MAX_COMPACT = 1 << 16
_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3


class Dataset(Struct, frozen=True):
    """A dataset: the words of its path, the tensor, or ``reason`` why that cannot be read."""

    path: tuple[str, ...]
    view: TensorView | None
    reason: str = ""


def is_hdf5(source: Source) -> bool:
    """True where the file begins with HDF5's signature."""
    return source.size > 16 and bytes(source.read(0, 8)) == SIGNATURE


def read_datasets(source: Source, catalogue: Catalogue) -> Iterator[Dataset]:
    """All datasets of the file, in the order of their names. Raises ``InputError``."""
    try:
        import h5py
    except ImportError as error:
        hint = "pip install 'weightprint[keras]'"
        raise UnsupportedFormatError("HDF5 needs the package h5py", path=source.path, hint=hint) from error
    if not is_hdf5(source):
        raise MalformedFileError("no HDF5 file: it does not begin as one", path=source.path, offset=0)
    try:
        with h5py.File(_Stream(source), "r") as file:
            walk = _Walk(source, catalogue, h5py)
            walk.seen.add(h5py.h5o.get_info(file["/"].id).addr)
            yield from walk.group(file, (), 0)
    except InputError:
        raise
    # h5py raises whatever the library or numpy came upon.
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, NotImplementedError, OverflowError) as error:
        message = f"HDF5: {clipped(' '.join(str(error).split()))}"
        raise MalformedFileError(message, path=source.path, hint="is the file damaged?") from error


class _Stream(io.RawIOBase):
    """A source as a file object, for h5py: it opens nothing by itself."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        window = memoryview(buffer).cast("B")
        size = max(min(len(window), self._source.size - self._position), 0)
        window[:size] = self._source.read(self._position, size) if size else b""
        self._position += size
        return size


class _Walk:
    def __init__(self, source: Source, catalogue: Catalogue, h5py: Any) -> None:
        self._source = source
        self._catalogue = catalogue
        self._h5py = h5py
        self.seen: set[int] = set()

    def group(self, group: Any, path: tuple[str, ...], depth: int) -> Iterator[Dataset]:
        if depth > MAX_DEPTH:
            raise LimitExceededError(f"groups nested more than {MAX_DEPTH} deep", path=self._source.path)
        h5py = self._h5py
        for name in group:
            self._catalogue.add_name(name, 200)
            here = (*path, name)
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield Dataset(here, None, "it is a link to something else")
                continue
            item = group.get(name)
            if item is None:
                continue
            address = h5py.h5o.get_info(item.id).addr
            if address in self.seen:
                continue
            self.seen.add(address)
            if len(self.seen) > MAX_OBJECTS:
                raise LimitExceededError(f"more than {MAX_OBJECTS} groups and datasets", path=self._source.path)
            if isinstance(item, h5py.Group):
                yield from self.group(item, here, depth + 1)
            elif isinstance(item, h5py.Dataset) and item.dtype.kind not in "OSU":  # texts are no weights
                yield self._dataset(item, here)

    def _dataset(self, item: Any, path: tuple[str, ...]) -> Dataset:
        name = "/".join(path)[-MAX_NAME:]
        if item.shape is None:
            return Dataset(path, None, "it is empty")
        if len(item.shape) > MAX_RANK:
            raise LimitExceededError(f"more than {MAX_RANK} axes", path=self._source.path, tensor=name)
        checked_count(item.shape, self._source.path)
        dtype, big_endian = _dtype(item)
        if dtype is None:
            return Dataset(path, None, f"its elements are {clipped(str(item.dtype))}")
        if item.external or item.is_virtual:
            return Dataset(path, None, "its data lie outside the file")
        shape = tuple(int(size) for size in item.shape)
        if item.chunks is not None:
            view, reason = self._chunked(item, name, dtype, shape, big_endian=big_endian)
            return Dataset(path, view, reason)
        offset = item.id.get_offset()
        size = math.prod(shape) * dtype.bits // 8
        if offset is None:
            if size > _MAX_COMPACT:
                return Dataset(path, None, "its data were never written")
            raw = MemorySource(np.ascontiguousarray(item[()]).tobytes(), self._source.path)
            return Dataset(path, StoredTensor(name, dtype, shape, raw, 0, big_endian))
        try:
            check_range(self._source, offset, size)
        except InputError as error:
            error.tensor = name
            raise
        return Dataset(path, StoredTensor(name, dtype, shape, self._source, offset, big_endian))

    def _chunked(
        self, item: Any, name: str, dtype: DType, shape: tuple[int, ...], *, big_endian: bool
    ) -> tuple[TensorView | None, str]:
        filters = []
        properties = item.id.get_create_plist()
        for number in range(properties.get_nfilters()):
            code = properties.get_filter(number)[0]
            if code not in {_DEFLATE, _SHUFFLE, _FLETCHER}:
                return None, f"it is compressed by filter {code}"
            filters.append(code)
        chunk = tuple(int(size) for size in item.chunks)
        if math.prod(chunk) * dtype.bits // 8 > MAX_CHUNK:
            return None, f"its chunks have more than {MAX_CHUNK} bytes"
        count = item.id.get_num_chunks()
        if count > MAX_CHUNKS:
            return None, f"it has more than {MAX_CHUNKS} chunks"
        self._catalogue.take(200 * count)
        places: dict[tuple[int, ...], tuple[int, int, int]] = {}
        for number in range(count):
            info = item.id.get_chunk_info(number)
            check_range(self._source, info.byte_offset, info.size)
            key = tuple(int(at) // size for at, size in zip(info.chunk_offset, chunk, strict=True))
            places[key] = (info.byte_offset, info.size, info.filter_mask)
        fill = np.asarray(item.fillvalue).tobytes() if item.fillvalue is not None else b""
        fill = fill.ljust(dtype.numpy.itemsize, b"\0")[: dtype.numpy.itemsize]
        store = _Chunks(self._source, places, tuple(filters), chunk, dtype, big_endian=big_endian, fill=fill)
        return Chunked(name, dtype, shape, store), ""


def _dtype(item: Any) -> tuple[DType | None, bool]:
    """The element type and whether it is big-endian; None for what is no number."""
    numpy = item.dtype
    if numpy.kind == "V" and numpy.itemsize == 2 and numpy.names is None:
        # How Keras 3 writes bfloat16.
        return (dtypes.BF16 if _text(item.attrs.get("dtype")) == "bfloat16" else None), False
    if numpy.kind not in "fiubc" or numpy.metadata:
        return (dtypes.BOOL if numpy.kind == "b" else None), False
    if numpy.kind == "b":
        return dtypes.BOOL, False
    letter = {"f": "F", "i": "I", "u": "U", "c": "C"}[numpy.kind]
    return DTYPES.get(f"{letter}{numpy.itemsize * 8}"), numpy.byteorder == ">"


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Chunks(Struct):
    """The chunks of a dataset, unpacked as they are asked for; a few are kept."""

    source: Source
    places: dict[tuple[int, ...], tuple[int, int, int]]
    filters: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: DType
    big_endian: bool
    fill: bytes
    _kept: OrderedDict[tuple[int, ...], Array] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: tuple[int, ...]) -> Array:
        """Chunk ``key`` (counted along each axis), as an array of the chunks' shape."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            found = self._kept[key] = self._unpacked(key)
            while len(self._kept) > _KEPT_CHUNKS:
                self._kept.popitem(last=False)
            return found

    def _unpacked(self, key: tuple[int, ...]) -> Array:
        size = math.prod(self.shape) * self.dtype.numpy.itemsize
        if key not in self.places:
            return np.frombuffer(self.fill * math.prod(self.shape), self.dtype.numpy).reshape(self.shape)
        offset, length, mask = self.places[key]
        raw = bytes(self.source.read(offset, length))
        for number, code in reversed(list(enumerate(self.filters))):
            if mask >> number & 1:
                continue
            if code == _FLETCHER:
                raw = raw[:-4]
            elif code == _DEFLATE:
                raw = self._inflated(raw, size + 4, offset)
            elif code == _SHUFFLE:
                width = self.dtype.numpy.itemsize
                raw = np.frombuffer(raw, np.uint8, len(raw) // width * width).reshape(width, -1).T.tobytes()
        if len(raw) != size:
            message = f"a chunk of {len(raw)} bytes, where {size} are wanted"
            raise MalformedFileError(message, path=self.source.path, offset=offset)
        values = np.frombuffer(raw, self.dtype.numpy)
        return (values.byteswap() if self.big_endian else values).reshape(self.shape)

    def _inflated(self, raw: bytes, most: int, offset: int) -> bytes:
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(raw, most)
        except zlib.error as error:
            message = f"a chunk cannot be unpacked: {error}"
            raise MalformedFileError(message, path=self.source.path, offset=offset) from error
        return data


class Chunked(Struct, frozen=True):
    """A dataset in chunks."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    chunks: _Chunks

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``; goes over rows of chunks, of which a few are kept unpacked."""
        if stop <= start:
            return np.empty(0, self.dtype.numpy)
        values = np.empty(stop - start, self.dtype.numpy)
        if not self.shape:
            values[:] = self.chunks.get(()).reshape(-1)
            return values
        self._fill(values, start, stop, (), 0)
        return values

    def _fill(self, values: Array, start: int, stop: int, index: tuple[int, ...], at: int) -> None:
        """Puts elements ``start`` to ``stop`` of the part at ``index`` into ``values`` from ``at`` on."""
        axis = len(index)
        if axis == len(self.shape) - 1:
            step = self.chunks.shape[axis]
            key = tuple(place // size for place, size in zip(index, self.chunks.shape, strict=False))
            inside = tuple(place % size for place, size in zip(index, self.chunks.shape, strict=False))
            while start < stop:
                number, first = divmod(start, step)
                last = min(step, first + stop - start)
                row = self.chunks.get((*key, number))[inside]
                values[at : at + last - first] = row[first:last]
                start, at = start + last - first, at + last - first
            return
        width = math.prod(self.shape[axis + 1 :])
        while start < stop:
            number, first = divmod(start, width)
            last = min(width, first + stop - start)
            self._fill(values, first, last, (*index, number), at)
            start, at = start + last - first, at + last - first
