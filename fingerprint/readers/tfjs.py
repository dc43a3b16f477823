"""TensorFlow.js: ``model.json`` with a manifest of weights, and the shards of bytes beside it.

Format: tfjs-converter/python/tensorflowjs/write_weights.py. The weights of a group follow each other without gaps in
its shards, as if those were one file; quantised ones are ``number * scale + min``.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any

from fingerprint import dtypes
from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, clipped
from fingerprint.quant.affine import Affine, quantised_dtype
from fingerprint.readers.base import (
    MAX_ELEMENTS,
    MAX_NAME,
    MAX_RANK,
    About,
    Catalogue,
    Contents,
    FileRecord,
    Finding,
    Reader,
    StoredTensor,
    bounded,
    checked_count,
)
from fingerprint.readers.bounded_json import Json, JsonCursor
from fingerprint.readers.joined import Joined
from fingerprint.readers.keras_layout import as_in_torch
from fingerprint.readers.places import folder_of
from fingerprint.source import MemorySource, Source
from fingerprint.tensors import Reshaped, TensorView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.dtypes import DType

MAX_MODEL = 64 << 20
"""Most bytes of a ``model.json``."""
MAX_SHARDS = 4096
_KEY = b'"weightsManifest"'
_TYPES = {
    "float32": dtypes.F32, "int32": dtypes.I32, "bool": dtypes.BOOL, "uint8": dtypes.U8, "uint16": dtypes.U16,
    "complex64": dtypes.C64, "float16": dtypes.F16,
}  # fmt: skip


def recognises(source: Source) -> bool:
    """True for a JSON object that has a manifest of weights."""
    if not 64 < source.size <= MAX_MODEL or bytes(source.read(0, 1)) not in {b"{", b" ", b"\n"}:
        return False
    return _manifest(source) >= 0


def _manifest(source: Source) -> int:
    """Where the manifest's key stands, or -1. It comes last, or with little behind it."""
    return bytes(source.read(0, source.size)).rfind(_KEY)


def open_tfjs(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The weights of a TensorFlow.js model, as PyTorch stores them. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    reader = _Reader(source, catalogue)
    try:
        return reader.read()
    except BaseException:
        reader.close()
        raise


class _Reader:
    def __init__(self, source: Source, catalogue: Catalogue) -> None:
        self._source = source
        self._catalogue = catalogue
        self._place = folder_of(source, catalogue.beside)
        self._shards: list[Source] = []
        self._listed: set[str] = set()
        self._records: list[FileRecord] = []
        self._findings: list[Finding] = []
        self._complete = True

    def close(self) -> None:
        """Gives up the shards."""
        for shard in self._shards:
            shard.close()

    def read(self) -> Contents:
        """All groups of the manifest. Raises ``InputError``."""
        start = _manifest(self._source)
        if start < 0:
            raise MalformedFileError("no manifest of weights in it", path=self._source.path)
        start += len(_KEY)
        size = self._source.size - start
        cursor = JsonCursor(self._source.read(start, size), path=self._source.path, what="manifest", base=start)
        cursor.take(":")
        tensors: list[TensorView] = []
        numbers: Counter[str] = Counter()
        for group in _items(cursor):
            for view in self._group(group):
                numbers[view.name] += 1
                count = numbers[view.name]
                tensors.append(view if count == 1 else Reshaped(view, f"{view.name}#{count}", view.shape))
                self._catalogue.add(tensors[-1].name, view.shape)
        findings = bounded(self._findings)
        return Contents(tuple(tensors), findings, {}, self._complete, tuple(self._records), tuple(self._shards))

    def _group(self, group: Json) -> Iterator[TensorView]:
        paths = group.get("paths") if isinstance(group, dict) else None
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(paths, list) or not isinstance(weights, list):
            raise self._error("a group without paths or weights")
        data, absent = self._data(paths)
        offset = 0
        for weight in weights:
            name, dtype, shape, quantisation = self._weight(weight)
            count = checked_count(shape, self._source.path)
            length = dtype.bits * count // 8
            begin, offset = offset, offset + length
            if offset > data.size:
                reason = "its shard is not there" if absent else f"it ends at byte {offset} of shards of {data.size}"
                self._findings.append(Finding("unread-tensor", f"a tensor cannot be read: {reason}", name))
                self._complete = False
                continue
            stored = StoredTensor(name, dtype, shape, data, begin)
            view: TensorView = stored
            if quantisation is not None:
                scale, low = quantisation
                blocks = tuple(max(size, 1) for size in shape)
                raw = StoredTensor("", dtypes.F64, (1,), MemorySource(_packed(scale)), 0)
                kind = quantised_dtype({"U8": "UINT8", "U16": "UINT16"}.get(dtype.name, dtype.name))
                view = Affine(name, kind, stored, raw, None, blocks, low)
            yield as_in_torch(view, name.split("/"))

    def _weight(self, weight: Json) -> tuple[str, DType, tuple[int, ...], tuple[float, float] | None]:
        if not isinstance(weight, dict):
            raise self._error("a weight is no object")
        name, kind, sizes = weight.get("name"), weight.get("dtype"), weight.get("shape")
        if not isinstance(name, str) or not isinstance(kind, str) or not isinstance(sizes, list):
            raise self._error("a weight without name, dtype or shape")
        if len(name) > MAX_NAME or len(sizes) > MAX_RANK:
            raise LimitExceededError("a name or shape that is too long", path=self._source.path, tensor=name)
        shape: list[int] = []
        for size in sizes:
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_ELEMENTS:
                raise self._error("a shape holds something else than whole numbers", name)
            shape.append(size)
        quantisation = weight.get("quantization")
        parameters = None
        if isinstance(quantisation, dict):
            kind = str(quantisation.get("dtype"))
            if kind != "float16":
                parameters = self._number(quantisation, "scale", name), self._number(quantisation, "min", name)
        dtype = _TYPES.get(kind)
        if dtype is None:
            raise self._error(f"a weight of type {clipped(kind)!r}", name)
        return name, dtype, tuple(shape), parameters

    def _number(self, values: dict[str, Any], key: str, name: str) -> float:
        value = values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self._error(f"{key} of the quantisation is no number", name)
        return float(value)

    def _data(self, paths: list[Json]) -> tuple[Source, bool]:
        """The shards that are there, up to the first that is not, as one source; and whether one is not."""
        found: list[Source] = []
        for path in paths:
            if not isinstance(path, str) or path in {"", ".", ".."} or "/" in path or "\\" in path or "\0" in path:
                raise self._error(f"a shard must be a plain file name, not {clipped(str(path))!r}")
            if path in self._listed:
                raise self._error(f"the shard {clipped(path)!r} is listed twice")
            self._listed.add(path)
            if len(self._shards) == MAX_SHARDS:
                raise LimitExceededError(f"more than {MAX_SHARDS} shards", path=self._source.path)
            try:
                shard = self._place.open(path)
            except InputError as error:
                text = f"the shard {clipped(path)!r} cannot be read: {error.message}"
                self._findings.append(Finding("absent-shard", text))
                return Joined(found, self._source.path), True
            self._shards.append(shard)
            self._records.append(FileRecord(path, shard.size))
            found.append(shard)
        return Joined(found, self._source.path), False

    def _error(self, message: str, tensor: str | None = None) -> InputError:
        return MalformedFileError(f"manifest: {message}", path=self._source.path, tensor=tensor)


def _items(cursor: JsonCursor) -> Iterator[Json]:
    """The items of an array, one by one."""
    cursor.take("[")
    while cursor.peek() != "]":
        yield cursor.value()
        if cursor.peek() == ",":
            cursor.position += 1


def _packed(value: float) -> bytes:
    return struct.pack("<d", value)


_ABOUT = (
    About(
        "TensorFlow.js",
        "a JSON object with a `weightsManifest`",
        "all types but strings; uint8, uint16 and float16 dequantised",
        "strings",
    ),
)
READER = Reader("tfjs", (), recognises, open_tfjs, _ABOUT)
