"""Tensors of ONNX files: ``TensorProto`` as views on raw bytes, typed fields, or a file beside the model.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and docs/ExternalData.md (opset 23).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct, field

from fingerprint import dtypes
from fingerprint.dtypes import DType, Kind
from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import MAX_NAME, MAX_RANK, FileRecord, StoredTensor, checked_count
from fingerprint.readers.packed import Packed
from fingerprint.readers.places import Folder, folder_of
from fingerprint.readers.protobuf import BYTES, Field, Varints, Wire
from fingerprint.source import MemorySource, Source

if TYPE_CHECKING:
    from fingerprint.tensors import Array, TensorView

MAX_JOINED = 16 << 20
"""Most bytes of a tensor whose typed field comes in several pieces, which are joined in memory."""
MAX_PIECES = 1 << 20
MAX_EXTERNAL_FILES = 4096
_EXTERNAL = 1
_STRING = 8
_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S = 4, 5, 7, 10, 11


class _Type(Struct, frozen=True):
    dtype: DType
    field: int
    bits: int = 0


def _small(name: str, kind: Kind, numpy: str, bits: int) -> _Type:
    return _Type(DType(name, 8, kind, np.dtype(numpy)), _INT32S, bits)


_TYPES = {
    1: _Type(dtypes.F32, _FLOATS),
    2: _Type(dtypes.U8, _INT32S),
    3: _Type(dtypes.I8, _INT32S),
    4: _Type(dtypes.U16, _INT32S),
    5: _Type(dtypes.I16, _INT32S),
    6: _Type(dtypes.I32, _INT32S),
    7: _Type(dtypes.I64, _INT64S),
    9: _Type(dtypes.BOOL, _INT32S),
    10: _Type(dtypes.F16, _INT32S),
    11: _Type(dtypes.F64, _DOUBLES),
    12: _Type(dtypes.U32, _UINT64S),
    13: _Type(dtypes.U64, _UINT64S),
    14: _Type(dtypes.C64, _FLOATS),
    16: _Type(dtypes.BF16, _INT32S),
    17: _Type(dtypes.F8_E4M3, _INT32S),
    18: _Type(dtypes.F8_E4M3FNUZ, _INT32S),
    19: _Type(dtypes.F8_E5M2, _INT32S),
    20: _Type(dtypes.F8_E5M2FNUZ, _INT32S),
    21: _small("UINT4", Kind.UINT, "u1", 4),
    22: _small("INT4", Kind.INT, "i1", 4),
    23: _Type(dtypes.F4, _INT32S, 4),
    24: _Type(dtypes.F8_E8M0, _INT32S),
    25: _small("UINT2", Kind.UINT, "u1", 2),
    26: _small("INT2", Kind.INT, "i1", 2),
}
"""By ``TensorProto.DataType``; those of less than a byte have ``bits``."""


class TensorProto(Struct):
    """A ``TensorProto`` as found: where its bytes are, not what they are."""

    name: str = ""
    code: int = 0
    shape: tuple[int, ...] = ()
    raw: Field | None = None
    typed: dict[int, list[Field]] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False
    in_segments: bool = False

    @property
    def is_text(self) -> bool:
        """Whether it holds strings."""
        return self.code == _STRING


def read_proto(wire: Wire, message: Field) -> TensorProto:
    """Reads a ``TensorProto`` without its data. Raises ``InputError``."""
    proto = TensorProto()
    sizes: list[int] = []
    pieces = 0
    for one in wire.message(message):
        if one.number == 1:
            sizes += wire.numbers(one, MAX_RANK)
            if len(sizes) > MAX_RANK:
                raise LimitExceededError(f"a tensor with more than {MAX_RANK} axes", path=wire.source.path)
        elif one.number == 2:
            proto.code = one.value
        elif one.number == 3:
            proto.in_segments = True
        elif one.number == 8:
            proto.name = wire.text(one, MAX_NAME)
        elif one.number == 9 and one.wire == BYTES:
            proto.raw = one
        elif one.number == 13:
            _read_entry(wire, one, proto.external)
        elif one.number == 14:
            proto.is_external = one.value == _EXTERNAL
        elif one.number in {_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S}:
            pieces += 1
            if pieces > MAX_PIECES:
                raise LimitExceededError("a tensor in too many pieces", path=wire.source.path, offset=one.start)
            proto.typed.setdefault(one.number, []).append(one)
    if min(sizes, default=0) < 0:
        raise MalformedFileError("a negative size", path=wire.source.path, tensor=proto.name, offset=message.start)
    proto.shape = tuple(sizes)
    return proto


def _read_entry(wire: Wire, message: Field, entries: dict[str, str]) -> None:
    texts = {one.number: wire.text(one, MAX_NAME) for one in wire.message(message) if one.number in {1, 2}}
    if len(entries) < 16:
        entries[texts.get(1, "")] = texts.get(2, "")


class UnreadableError(Exception):
    """A tensor that is there and cannot be read; the message says why, for a finding."""


class Data:
    """The bytes of a model: its own file, and the files beside it that its tensors name."""

    def __init__(self, source: Source, beside: Folder | None = None) -> None:
        """``beside``: the folder that ``source`` lies in, see ``Catalogue.beside``."""
        self._source = source
        self._place = folder_of(source, beside)
        self._files: dict[str, Source | str] = {}
        self.records: list[FileRecord] = []

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files that were opened beside the model."""
        return tuple(source for source in self._files.values() if not isinstance(source, str))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self._source.size + sum(source.size for source in self.sources)

    def close(self) -> None:
        """Gives up the files beside the model."""
        for source in self.sources:
            source.close()

    def view(self, name: str, proto: TensorProto) -> TensorView:
        """The tensor under ``name``. Raises ``UnreadableError`` and ``InputError``."""
        path = self._source.path
        kind = _TYPES.get(proto.code)
        if kind is None:
            raise UnreadableError(f"its type has the number {proto.code}")
        if proto.in_segments:
            raise UnreadableError("it is stored in segments")
        try:
            count = checked_count(proto.shape, path)
            if proto.is_external:
                return self._external(name, proto, kind, count)
            if proto.raw is not None:
                wanted = _nbytes(kind, count)
                if proto.raw.size != wanted:
                    message = f"{proto.raw.size} bytes, where {kind.dtype.name} {list(proto.shape)} takes {wanted}"
                    raise MalformedFileError(message, path=path, offset=proto.raw.start)
                return _stored(name, kind, proto.shape, self._source, proto.raw.start)
            return self._typed(name, proto, kind, count)
        except InputError as error:
            error.tensor = error.tensor or name
            raise

    def _typed(self, name: str, proto: TensorProto, kind: _Type, count: int) -> TensorView:
        pieces = proto.typed.get(kind.field, [])
        size = sum(piece.size for piece in pieces)
        if not size and count:
            raise UnreadableError("its data are not there")
        source, start = self._source, pieces[0].start if pieces else 0
        if len(pieces) > 1:
            if size > MAX_JOINED:
                message = f"typed data of {size} bytes in {len(pieces)} pieces; {MAX_JOINED} are allowed"
                raise LimitExceededError(message, path=source.path, offset=start)
            joined = b"".join(bytes(source.read(piece.start, piece.size)) for piece in pieces)
            source, start = MemorySource(joined, source.path), 0
        if kind.field in {_FLOATS, _DOUBLES}:
            wanted = _nbytes(kind, count)
            if size != wanted:
                message = f"{size} bytes of numbers, where {kind.dtype.name} {list(proto.shape)} takes {wanted}"
                raise MalformedFileError(message, path=source.path, offset=start)
            return _stored(name, kind, proto.shape, source, start)
        numbers = count if not kind.bits else -(-count * kind.bits // 8)
        if not numbers <= size <= 10 * numbers:
            message = f"{size} bytes cannot hold {numbers} numbers"
            raise MalformedFileError(message, path=source.path, offset=start)
        varints = Varints(source, start, start + size, numbers)
        if not kind.bits:
            return FromVarints(name, kind.dtype, proto.shape, varints)
        return Packed(name, kind.dtype, proto.shape, kind.bits, FromVarints(name, dtypes.U8, (numbers,), varints))

    def _external(self, name: str, proto: TensorProto, kind: _Type, count: int) -> TensorView:
        location = proto.external.get("location", "")
        offset = self._number(proto, "offset") or 0
        length = self._number(proto, "length")
        wanted = _nbytes(kind, count)
        if length is not None and length != wanted:
            message = f"length {length} beside the model, where {kind.dtype.name} {list(proto.shape)} takes {wanted}"
            raise MalformedFileError(message, path=self._source.path)
        source = self._open(location)
        if offset + wanted > source.size:
            raise UnreadableError(
                f"it ends at byte {offset + wanted} of {clipped(location)!r}, which has {source.size}"
            )
        return _stored(name, kind, proto.shape, source, offset)

    def _number(self, proto: TensorProto, key: str) -> int | None:
        text = proto.external.get(key)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            message = f"{key} of data beside the model is no number: {clipped(text)!r}"
            raise MalformedFileError(message, path=self._source.path)
        return int(text)

    def _open(self, location: str) -> Source:
        if location not in self._files:
            if len(self._files) == MAX_EXTERNAL_FILES:
                message = f"more than {MAX_EXTERNAL_FILES} files beside the model"
                raise LimitExceededError(message, path=self._source.path)
            parts = location.replace("\\", "/").split("/")
            if not location or os.path.isabs(location) or ".." in parts or ":" in parts[0] or "\0" in location:
                message = f"its data lie outside the folder: {clipped(location)!r}"
                raise MalformedFileError(message, path=self._source.path)
            try:
                source = self._place.open(location)
                self.records.append(FileRecord(location, source.size))
                self._files[location] = source
            except InputError as error:
                self._files[location] = f"its data cannot be read: {error}"
        found = self._files[location]
        if isinstance(found, str):
            raise UnreadableError(found)
        return found


def _nbytes(kind: _Type, count: int) -> int:
    return -(-count * (kind.bits or kind.dtype.bits) // 8)


def _stored(name: str, kind: _Type, shape: tuple[int, ...], source: Source, offset: int) -> TensorView:
    if not kind.bits:
        return StoredTensor(name, kind.dtype, shape, source, offset)
    octets = _nbytes(kind, checked_count(shape, source.path))
    return Packed(name, kind.dtype, shape, kind.bits, StoredTensor(name, dtypes.U8, (octets,), source, offset))


class FromVarints(Struct, frozen=True):
    """A tensor whose elements are written as numbers of variable length; floats as their bits."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    varints: Varints

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        values = self.varints.read(start, stop)
        numpy = self.dtype.numpy
        if numpy.kind in "iu":
            return values.astype(numpy)
        if numpy.kind == "b":
            return values.astype(np.bool_)
        return np.asarray(values.astype(f"u{numpy.itemsize}").view(numpy))
