"""Flax checkpoints: a tree in MessagePack whose arrays are extension types.

Format: flax/serialization.py (0.12) and the MessagePack specification. Type 1 is an array and type 3 a scalar of numpy,
both as ``(shape, name of the dtype, bytes)``; type 2 is a complex number. An array of more than a gigabyte is a dict of
flat chunks. Weights are laid out as in PyTorch (see ``flax_layout``). Long byte strings stay in the file; depth, items
and memory are bounded.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NoReturn

from msgspec import Struct, field
from msgspec.structs import replace

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import (
    MAX_NAME,
    About,
    Catalogue,
    Contents,
    Finding,
    Reader,
    StoredTensor,
    bounded,
    checked_count,
    some,
)
from fingerprint.readers.flax_layout import as_in_torch
from fingerprint.readers.numpy_types import NAMES
from fingerprint.readers.torch_views import free_name, wrapper
from fingerprint.tensors import Chained

if TYPE_CHECKING:
    from fingerprint.dtypes import DType
    from fingerprint.source import Source

MAX_ITEMS: Final = 2**20
"""Most values of a file, keys included."""
MAX_NESTING: Final = 64
_ARRAY, _SCALAR = 1, 3
_CHUNKED: Final = "__msgpack_chunked_array__"
_LOOKED_AT: Final = 1 << 16
_FIXED_EXT: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_SIZED: Final = {
    0xC4: (1, "bin"), 0xC5: (2, "bin"), 0xC6: (4, "bin"), 0xC7: (1, "ext"), 0xC8: (2, "ext"), 0xC9: (4, "ext"),
    0xD9: (1, "str"), 0xDA: (2, "str"), 0xDB: (4, "str"), 0xDC: (2, "array"), 0xDD: (4, "array"),
    0xDE: (2, "map"), 0xDF: (4, "map"),
}  # fmt: skip
_NUMBERS: Final = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h",
    0xD2: ">i", 0xD3: ">q",
}  # fmt: skip


class _Blob(Struct, frozen=True):
    """A byte string, left in the file."""

    offset: int
    length: int


class _Extension(Struct, frozen=True):
    """An extension type: its ``kind``, and what its payload holds if that is an array."""

    kind: int
    value: Any


class _Stop(Exception):  # noqa: N818 - not an error: enough was seen
    """The first array was reached."""


class _Parser(Struct):
    """Reads values from front to back; ``end`` is where a payload ends."""

    source: Source
    end: int
    position: int = 0
    left: int = MAX_ITEMS
    stop_at_array: bool = False
    catalogue: Catalogue | None = None
    _window: bytes = b""
    _base: int = 0

    def fail(self, message: str) -> NoReturn:
        raise MalformedFileError(f"MessagePack: {message}", path=self.source.path, offset=self.position)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > self.end - self.position:
            self.fail("it ends inside a value")
        start = self.position - self._base
        if not 0 <= start <= len(self._window) - size:
            length = min(max(size, 1 << 14), self.source.size - self.position)
            self._window, self._base, start = bytes(self.source.read(self.position, length)), self.position, 0
        self.position += size
        return self._window[start : start + size]

    def value(self, depth: int = 0) -> Any:
        """The next value: dicts as lists of pairs, long strings of bytes as ``_Blob``."""
        self.left -= 1
        if self.left < 0 or depth > MAX_NESTING:
            limit = f"more than {MAX_ITEMS} values" if self.left < 0 else f"nested deeper than {MAX_NESTING} levels"
            raise LimitExceededError(f"MessagePack: {limit}", path=self.source.path, offset=self.position)
        if self.catalogue is not None:
            self.catalogue.take(100)
        code = self.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code in _NUMBERS:
            layout = struct.Struct(_NUMBERS[code])
            return layout.unpack(self.take(layout.size))[0]
        if code in {0xC0, 0xC2, 0xC3}:
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in _FIXED_EXT:
            return self._extension(_FIXED_EXT[code], depth)
        if code in _SIZED:
            width, kind = _SIZED[code]
            size = int.from_bytes(self.take(width), "big")
        elif code < 0xC0:
            size, kind = (code & 31, "str") if code >= 0xA0 else (code & 15, "array" if code >= 0x90 else "map")
        else:
            self.fail(f"unknown type {code:#04x}")
        if kind == "str":
            return self._text(size)
        if kind == "bin":
            return self._blob(size)
        if kind == "ext":
            return self._extension(size, depth)
        # Each value takes a byte at least.
        if size * (2 if kind == "map" else 1) > self.end - self.position:
            self.fail(f"{size} values are said to follow in {self.end - self.position} bytes")
        if kind == "array":
            return [self.value(depth + 1) for _ in range(size)]
        return _Pairs([(self.value(depth + 1), self.value(depth + 1)) for _ in range(size)])

    def _text(self, size: int) -> str:
        if size > MAX_NAME:
            self._blob(size)
            return ""
        if self.catalogue is not None:
            self.catalogue.take(4 * size)
        return self.take(size).decode("utf-8", "replace")

    def _blob(self, size: int) -> _Blob:
        if size > self.end - self.position:
            self.fail("it ends inside a string of bytes")
        blob = _Blob(self.position, size)
        self.position += size
        return blob

    def _extension(self, size: int, depth: int) -> _Extension:
        kind = int.from_bytes(self.take(1), "big", signed=True)
        if kind in {_ARRAY, _SCALAR} and self.stop_at_array:
            raise _Stop
        payload = self._blob(size)
        if kind not in {_ARRAY, _SCALAR}:
            return _Extension(kind, None)
        inner = replace(self, position=payload.offset, end=payload.offset + size)
        inner.left = self.left
        value = inner.value(depth + 1)
        if inner.position != inner.end:
            inner.fail("bytes behind the array of an extension")
        self.left = inner.left
        return _Extension(kind, value)


class _Pairs(list[tuple[Any, Any]]):
    """A map, in its order."""

    def get(self, key: str) -> Any:
        """The last value under ``key``."""
        return next((value for name, value in reversed(self) if name == key), None)


def recognises(source: Source) -> bool:
    """True for a map in MessagePack whose first values lead to an array of Flax's extension types."""
    head = bytes(source.read(0, min(2, source.size)))
    if len(head) < 2 or not (0x81 <= head[0] <= 0x8F or head[0] in {0xDE, 0xDF}):
        return False
    parser = _Parser(source, min(source.size, _LOOKED_AT), stop_at_array=True, left=2**12)
    try:
        parser.value()
    except _Stop:
        return True
    except InputError:
        return False
    return False


def open_flax(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The arrays of a Flax checkpoint, under their keys joined with dots. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    parser = _Parser(source, source.size, catalogue=catalogue)
    found = _Found(source, catalogue)
    found.walk("", parser.value(), 0)
    findings = found.findings
    if parser.position < source.size:
        text = f"{source.size - parser.position} bytes follow the end of the tree"
        findings.append(Finding("trailing-bytes", text))
    if found.optimisers:
        text = f"the state of {len(found.optimisers)} optimisers was set aside: {some(found.optimisers)}"
        findings.append(Finding("optimiser-state", text))
    unread = any(finding.code == "unread-tensor" for finding in findings)
    prefix = wrapper(tensor.name for tensor in found.tensors)
    tensors = (replace(tensor, name=tensor.name[len(prefix) :]) for tensor in found.tensors)
    return Contents(as_in_torch(tensors), bounded(findings), complete=not unread)


class _Found(Struct):
    """The arrays of a tree while it is walked."""

    source: Source
    catalogue: Catalogue
    tensors: list[StoredTensor | Chained] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    optimisers: list[str] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)
    _numbers: Counter[str] = field(default_factory=Counter)

    def walk(self, name: str, value: Any, depth: int) -> None:
        """Collects the arrays in ``value``."""
        if isinstance(value, _Extension):
            self._add(name, lambda label: _array(self.source, label, value))
        elif isinstance(value, _Pairs) and value.get(_CHUNKED) is True:
            self._add(name, lambda label: self._chunked(label, value))
        elif isinstance(value, _Pairs | list):
            if isinstance(value, _Pairs) and _is_optimiser(value):
                self.optimisers.append(name or "the whole file")
                return
            parts = value if isinstance(value, _Pairs) else enumerate(value)
            for key, part in parts:
                if isinstance(part, _Pairs | list | _Extension):
                    self.walk(f"{name}.{key}" if name else str(key), part, depth + 1)

    def _add(self, name: str, make: Any) -> None:
        label = free_name(name, self._taken, self._numbers)
        self._taken.add(label)
        try:
            tensor = make(label)
        except _UnreadError as reason:
            self.catalogue.add_name(label)
            self.findings.append(Finding("unread-tensor", f"a tensor cannot be read: {reason}", label))
            return
        except InputError as error:
            error.tensor = label
            raise
        if tensor is not None:
            self.catalogue.add(label, tensor.shape)
            self.tensors.append(tensor)

    def _chunked(self, name: str, value: _Pairs) -> Chained:
        shape, chunks = value.get("shape"), value.get("chunks")
        if not isinstance(shape, _Pairs) or not isinstance(chunks, _Pairs) or not chunks:
            raise _UnreadError("chunks in a form that is not known")
        sizes = _sizes([shape.get(str(axis)) for axis in range(min(len(shape), 64))])
        parts: list[StoredTensor] = []
        numbered = {key: chunk for key, chunk in chunks if isinstance(key, str)}
        for number in range(len(chunks)):
            chunk = numbered.get(str(number))
            part = _array(self.source, name, chunk) if isinstance(chunk, _Extension) else None
            if part is None or (parts and part.dtype != parts[0].dtype):
                raise _UnreadError("chunks in a form that is not known")
            parts.append(part)
        have = sum(math.prod(part.shape) for part in parts)
        if have != checked_count(sizes, self.source.path):
            message = f"chunks of {have} elements for an array of {list(sizes)}"
            raise MalformedFileError(clipped(message), path=self.source.path)
        return Chained(name, sizes, tuple(parts))


class _UnreadError(Exception):
    """Why an array cannot be read."""


def _array(source: Source, name: str, extension: _Extension) -> StoredTensor | None:
    """The array of an extension; None for a scalar or a complex number, which are no weights."""
    if extension.kind != _ARRAY:
        return None
    match extension.value:
        case [list() as shape, str() as kind, _Blob() as data]:
            dtype: DType | None = NAMES.get(kind)
            if dtype is None:
                raise _UnreadError(f"elements of the type {clipped(kind)!r} are not read")
            sizes = _sizes(shape)
            size = checked_count(sizes, source.path) * dtype.bits // 8
            if size != data.length:
                message = f"an array of {size} bytes has {data.length}"
                raise MalformedFileError(message, path=source.path, offset=data.offset)
            return StoredTensor(name, dtype, sizes, source, data.offset)
    raise _UnreadError("an array in a form that is not known")


def _sizes(values: list[Any]) -> tuple[int, ...]:
    if not all(type(size) is int and 0 <= size < 2**63 for size in values):
        raise _UnreadError("a shape that holds something else than sizes")
    return tuple(values)


def _is_optimiser(value: _Pairs) -> bool:
    """True for the state of one of optax's Adams: two trees of moments of one form. Its name may say anything."""
    first, second = value.get("mu"), value.get("nu")
    return isinstance(first, _Pairs) and isinstance(second, _Pairs) and bool(first) and _form(first) == _form(second)


def _form(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return [(key, _form(part)) for key, part in value]
    return value.value[0] if isinstance(value, _Extension) and isinstance(value.value, list) and value.value else None


_ABOUT = (
    About(
        "Flax (`flax.serialization`)",
        "a map in MessagePack that leads to an array of Flax's extension types",
        "arrays, in chunks or whole, of numpy's types and those of ml_dtypes; moments of Adam are set aside. "
        "Weights are laid out as PyTorch stores them: see [below](#laid-out-as-in-pytorch)",
    ),
)
READER = Reader("flax", (".msgpack",), recognises, open_flax, _ABOUT)
