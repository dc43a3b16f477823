"""Values of Core ML programs: types and shapes, numbers in the message itself, and blobs in the file of weights.

Format: mlmodel/format/MIL.proto and mlmodel/src/MILBlob/Blob/StorageFormat.hpp of coremltools 9.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from fingerprint import dtypes
from fingerprint.dtypes import DType, Kind
from fingerprint.errors import InputError, MalformedFileError, clipped
from fingerprint.readers.base import MAX_ELEMENTS, MAX_NAME, MAX_RANK, FileRecord, StoredTensor, checked_count
from fingerprint.readers.coreml_views import Bits
from fingerprint.readers.places import Folder, folder_of
from fingerprint.readers.protobuf import BYTES, VARINT, Field, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

MAX_BLOB_FILES: Final = 64
_MODEL_PATH: Final = "@model_path/"
_SENTINEL: Final = 0xDEADBEEF
_METADATA: Final = struct.Struct("<IIQQQ")
_TYPES: Final = {
    1: dtypes.BOOL, 10: dtypes.F16, 11: dtypes.F32, 12: dtypes.F64, 13: dtypes.BF16, 21: dtypes.I8, 22: dtypes.I16,
    23: dtypes.I32, 24: dtypes.I64, 31: dtypes.U8, 32: dtypes.U16, 33: dtypes.U32, 34: dtypes.U64,
    40: dtypes.F8_E4M3, 41: dtypes.F8_E5M2,
}  # fmt: skip
_SMALL: Final = {
    25: ("INT4", 4, Kind.INT), 35: ("UINT4", 4, Kind.UINT), 36: ("UINT2", 2, Kind.UINT), 37: ("UINT1", 1, Kind.UINT),
    38: ("UINT6", 6, Kind.UINT), 39: ("UINT3", 3, Kind.UINT),
}  # fmt: skip
_BLOBS: Final = {
    1: 10, 2: 11, 3: 31, 4: 21, 5: 13, 6: 22, 7: 32, 8: 25, 9: 37, 10: 36, 11: 35, 12: 39, 13: 38, 14: 23, 15: 33,
    16: 40, 17: 41,
}  # fmt: skip
"""Types of a blob, as types of a value."""
_STRING: Final = 2
_FLOATS, _DOUBLES, _RAW = 1, 6, 7


class UnreadableError(Exception):
    """A value that is there and cannot be read; the message says why."""


class TensorType(Struct, frozen=True):
    """The number of an element type and the sizes of the axes; -1 for one that is not known."""

    code: int
    shape: tuple[int, ...]


class Values:
    """Reads values out of ``wire``; blobs lie in files beside the model, inside its folder."""

    def __init__(self, wire: Wire, beside: Folder | None = None) -> None:
        self._wire = wire
        self._place = folder_of(wire.source, beside)
        self._files: dict[str, Source | str] = {}
        self.records: list[FileRecord] = []

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files that were opened beside the model."""
        return tuple(one for one in self._files.values() if not isinstance(one, str))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self._wire.source.size + sum(source.size for source in self.sources)

    def close(self) -> None:
        """Gives up the files beside the model."""
        for source in self.sources:
            source.close()

    def text(self, value: Field) -> str:
        """The first string of a value; empty if it is none. Raises ``InputError``."""
        for strings in self._tensor(value):
            for one in self._wire.message(strings) if strings.number == 4 else ():
                return self._wire.text(one, MAX_NAME)
        return ""

    def integers(self, value: Field, most: int = MAX_RANK) -> list[int]:
        """The few whole numbers or truth values of a value. Raises ``InputError``."""
        found: list[int] = []
        for kind in self._tensor(value):
            for numbers in self._wire.message(kind) if kind.number in {2, 3, 5, _RAW} else ():
                if numbers.number == 1 and kind.number != _RAW:
                    found += self._wire.numbers(numbers, most)
                elif numbers.number == 1 and self.type(value).code in _TYPES:
                    raw = self._wire.raw(numbers, 8 * most)
                    numpy = _TYPES[self.type(value).code].numpy
                    found += [
                        int(one) for one in np.frombuffer(raw[: len(raw) // numpy.itemsize * numpy.itemsize], numpy)
                    ]
        return found[:most]

    def type(self, value: Field) -> TensorType:
        """The type of a value; of code 0 if it is no tensor. Raises ``InputError``."""
        for one in self._wire.message(value):
            if one.number == 2:
                return tensor_type(self._wire, one)
        return TensorType(0, ())

    def view(self, value: Field, name: str) -> TensorView | None:
        """The tensor that a value is; None for text. Raises ``UnreadableError`` and ``InputError``."""
        kind = self.type(value)
        if kind.code in {0, _STRING}:
            return None
        if min(kind.shape, default=0) < 0:
            raise UnreadableError("its shape is not known")
        count = checked_count(kind.shape, self._wire.source.path)
        blob = next((one for one in self._wire.message(value) if one.number == 5), None)
        if blob is not None:
            return self._blob(blob, kind, name, count)
        for tensor in self._tensor(value):
            for numbers in self._wire.message(tensor):
                if numbers.number == 1 and numbers.wire == BYTES and tensor.number in {_FLOATS, _DOUBLES, _RAW}:
                    return self._stored(name, kind, count, self._wire.source, numbers.start, numbers.size)
        if kind.code in {23, 24, 22, 32, 33, 34, 1}:
            return None  # a few whole numbers: an axis, a shape
        raise UnreadableError("its numbers are stored in a way that is not known")

    def _tensor(self, value: Field) -> Iterator[Field]:
        """The kinds of numbers in the immediate value of ``value``."""
        for one in self._wire.message(value):
            for immediate in self._wire.message(one) if one.number == 3 else ():
                if immediate.number == 1:
                    yield from self._wire.message(immediate)

    def _stored(
        self, name: str, kind: TensorType, count: int, source: Source, offset: int, size: int
    ) -> StoredTensor | Bits:
        dtype = _TYPES.get(kind.code)
        if dtype is not None:
            if dtype.nbytes(count) != size:
                message = f"{size} bytes, where {dtype.name} {list(kind.shape)} takes {dtype.nbytes(count)}"
                raise MalformedFileError(message, path=source.path, tensor=name, offset=offset)
            return StoredTensor(name, dtype, kind.shape, source, offset)
        if kind.code not in _SMALL:
            raise UnreadableError(f"its type has the number {kind.code}")
        label, bits, family = _SMALL[kind.code]
        octets = -(-count * bits // 8)
        if octets > size:
            message = f"{size} bytes, where {label} {list(kind.shape)} takes {octets}"
            raise MalformedFileError(message, path=source.path, tensor=name, offset=offset)
        numpy = np.dtype("i1" if family is Kind.INT else "u1")
        return Bits(
            name, DType(label, 8, family, numpy), kind.shape, bits,
            StoredTensor(name, dtypes.U8, (octets,), source, offset),
        )  # fmt: skip

    def _blob(self, message: Field, kind: TensorType, name: str, count: int) -> StoredTensor | Bits:
        fields = {one.number: one for one in self._wire.message(message)}
        if 1 not in fields or 2 not in fields or fields[2].wire != VARINT:
            raise UnreadableError("a blob without a file or an offset")
        source = self._open(self._wire.text(fields[1], MAX_NAME))
        at = fields[2].value
        if at + 64 > source.size:
            raise UnreadableError(f"its blob begins at byte {at} of a file of {source.size}")
        sentinel, code, size, offset, _ = _METADATA.unpack(source.read(at, _METADATA.size))
        if sentinel != _SENTINEL:
            raise MalformedFileError("no blob begins here", path=source.path, tensor=name, offset=at)
        if _BLOBS.get(code) != kind.code and not (kind.code == 1 and code == 3):
            raise MalformedFileError(
                f"a blob of type {code}, not {kind.code}", path=source.path, tensor=name, offset=at
            )
        if offset + size > source.size:
            raise UnreadableError(f"it ends at byte {offset + size} of a file of {source.size}")
        return self._stored(name, kind, count, source, offset, size)

    def _open(self, location: str) -> Source:
        if location not in self._files:
            path = location.removeprefix(_MODEL_PATH)
            parts = path.split("/")
            if not path or os.path.isabs(path) or {"", ".", ".."} & set(parts) or "\0" in path or "\\" in path:
                message = f"its blobs lie outside the folder: {clipped(location)!r}"
                raise MalformedFileError(message, path=self._wire.source.path)
            if len(self._files) == MAX_BLOB_FILES or len(parts) > MAX_RANK:
                raise UnreadableError("too many files of blobs")
            try:
                place = self._place
                for part in parts[:-1]:
                    place = place.sub(part)
                source = place.open(parts[-1])
                self.records.append(FileRecord(path, source.size))
                self._files[location] = source
            except InputError as error:
                self._files[location] = f"its blobs cannot be read: {error}"
        found = self._files[location]
        if isinstance(found, str):
            raise UnreadableError(found)
        return found


def tensor_type(wire: Wire, message: Field) -> TensorType:
    """A ``ValueType`` that is a tensor's; of code 0 if it is not. Raises ``InputError``."""
    for one in wire.message(message):
        if one.number != 1 or one.wire != BYTES:
            continue
        code = 0
        sizes: list[int] = []
        for part in wire.message(one):
            if part.number == 1 and part.wire == VARINT:
                code = part.value
            elif part.number == 3 and len(sizes) <= MAX_RANK:
                sizes.append(_dimension(wire, part))
        if len(sizes) > MAX_RANK:
            return TensorType(0, ())
        return TensorType(code, tuple(sizes))
    return TensorType(0, ())


def _dimension(wire: Wire, message: Field) -> int:
    """The size of an axis, 0 if it is left out (as protocol buffers leave out zeros), -1 if it is not known."""
    for one in wire.message(message):
        if one.number == 1:
            size = next((part.value for part in wire.message(one) if part.number == 1 and part.wire == VARINT), 0)
            return size if size <= MAX_ELEMENTS else -1
    return -1
