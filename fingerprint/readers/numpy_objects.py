"""numpy arrays inside pickles: told by a closed list of names, their bytes left where they are."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from fingerprint.errors import MalformedFileError, clipped
from fingerprint.readers.base import StoredTensor, checked_count
from fingerprint.readers.numpy_types import ML_DTYPES, NoNumbersError, UnreadTypeError, dtype_of
from fingerprint.readers.pickles import Blob, Call, Global
from fingerprint.readers.strided import StridedTensor, is_contiguous
from fingerprint.source import MemorySource, Section, check_range

if TYPE_CHECKING:
    from fingerprint.dtypes import DType
    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

_CORES: Final = ("numpy._core", "numpy.core")
"""numpy 2 and numpy 1."""
RECONSTRUCT: Final = {(f"{core}.multiarray", "_reconstruct") for core in _CORES}
FROM_BUFFER: Final = {(f"{core}.numeric", "_frombuffer") for core in _CORES}
_BYTES: Final = {("__builtin__", "bytes"), ("builtins", "bytes")}
KNOWN: Final = (
    RECONSTRUCT
    | FROM_BUFFER
    | {(f"{core}.multiarray", "scalar") for core in _CORES}
    | {("numpy", "ndarray"), ("numpy", "dtype"), *_BYTES}
    | {("ml_dtypes", name) for name in ML_DTYPES}
)
"""Names that pickles of arrays and scalars hold."""


class ArrayNote(Struct, frozen=True):
    """An array as the pickle describes it; ``data`` are its bytes, in column-major order if ``fortran``."""

    name: str
    dtype: DType
    big_endian: bool
    shape: tuple[int, ...]
    fortran: bool
    data: bytes | Blob

    def renamed(self, name: str) -> ArrayNote:
        """The same array under another name."""
        return replace(self, name=name)


def is_array(call: Call) -> bool:
    """True for a call that makes an array out of bytes; an array of objects is a container like any other."""
    function = _pair(call.function)
    if function in FROM_BUFFER:
        return True
    return function in RECONSTRUCT and isinstance(call.state, tuple) and _raw(call.state[-1]) is not None


def array_note(name: str, call: Call) -> ArrayNote:
    """The array that ``call`` makes. Raises ``NoNumbersError`` and ``UnreadTypeError``."""
    if _pair(call.function) in FROM_BUFFER:
        match call.arguments:
            case (buffer, kind, shape, "C" | "F" as order):
                return _note(name, kind, shape, order == "F", buffer)
    else:
        match call.state:
            case (_, shape, kind, bool(fortran), buffer) | (shape, kind, bool(fortran), buffer):
                return _note(name, kind, shape, fortran, buffer)
    raise UnreadTypeError("an array in a form that is not known")


def array_view(note: ArrayNote, path: str) -> TensorView:
    """The lazy view of a noted array. Raises ``InputError``."""
    size = checked_count(note.shape, path) * note.dtype.bits // 8
    data = note.data
    source: Source
    if isinstance(data, bytes):
        source, held = MemorySource(data, path), len(data)
    elif data.encoded:
        # Every byte from 128 on was written as two.
        source, held = Latin1Source(data, size), size if size <= data.length <= 2 * size else data.length
    else:
        source, held = Section(data.source, data.offset, data.length), data.length
    if held != size:
        raise MalformedFileError(f"an array of {size} bytes has {held}", path=path, tensor=note.name)
    return laid_out(note.name, note.dtype, note.shape, source, 0, fortran=note.fortran, big_endian=note.big_endian)


def laid_out(
    name: str,
    dtype: DType,
    shape: tuple[int, ...],
    source: Source,
    offset: int,
    *,
    fortran: bool,
    big_endian: bool,
) -> TensorView:
    """The view of an array that is stored without gaps, in row-major or in column-major (``fortran``) order."""
    strides = tuple(math.prod(shape[:axis]) for axis in range(len(shape)))
    if not fortran or is_contiguous(shape, strides):
        return StoredTensor(name, dtype, shape, source, offset, big_endian)
    flat = StoredTensor(name, dtype, (math.prod(shape),), source, offset, big_endian)
    return StridedTensor(name, shape, strides, flat)


def _note(name: str, kind: Any, shape: Any, fortran: bool, buffer: Any) -> ArrayNote:
    dtype, big_endian = _dtype(kind)
    data = _raw(buffer)
    if data is None:
        raise UnreadTypeError("an array without bytes")
    if not isinstance(shape, tuple) or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise UnreadTypeError("an array whose shape is no tuple of sizes")
    return ArrayNote(name, dtype, big_endian, shape, fortran, data)


def _dtype(kind: Any) -> tuple[DType, bool]:
    if (
        not isinstance(kind, Call)
        or _pair(kind.function) != ("numpy", "dtype")
        or not isinstance(kind.arguments, tuple)
    ):
        raise UnreadTypeError("an array whose dtype is not known")
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "|"
    first = kind.arguments[0] if kind.arguments else None
    if isinstance(first, Global) and first.module == "ml_dtypes" and first.name in ML_DTYPES:
        return ML_DTYPES[first.name], False
    if not isinstance(first, str) or not isinstance(order, str) or first.startswith("V"):
        raise UnreadTypeError(f"elements of the type {clipped(str(first))!r} are not read")
    return dtype_of(first if first[:1] in {"<", ">", "|", "="} else f"{order[:1]}{first}")


def _raw(value: Any) -> bytes | Blob | None:
    """The bytes that ``value`` stands for: as they are, as text of Python 2, or as a call that encodes text."""
    if isinstance(value, Call) and _pair(value.function) == ("_codecs", "encode"):
        match value.arguments:
            case (str() | Blob() as text, "latin1" | "latin-1"):
                return _raw(text)
        return None
    if isinstance(value, Call) and _pair(value.function) in _BYTES and not value.arguments:
        return b""
    if isinstance(value, str):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return value if isinstance(value, bytes | Blob) else None


def _pair(value: Any) -> tuple[str, str]:
    return (value.module, value.name) if isinstance(value, Global) else ("", "")


class Latin1Source:
    """Bytes that a pickle of protocol 2 writes as text: each one a character below 256, in UTF-8.

    Decoded as they are read; marks a megabyte apart, set on the way, make later reads begin near their place.
    """

    def __init__(self, blob: Blob, size: int) -> None:
        """``size`` bytes are to come out of ``blob``."""
        self.path = blob.source.path
        self.size = size
        self._blob = blob
        self._raw = [0]
        self._decoded = [0]

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        mark = bisect_right(self._decoded, offset) - 1
        raw, position = self._raw[mark], self._decoded[mark]
        pieces = []
        while position < offset + length:
            piece, taken = self._piece(raw)
            if not piece:
                raise MalformedFileError("text that holds fewer bytes than the array", path=self.path)
            pieces.append(piece[max(offset - position, 0) : offset + length - position])
            raw += taken
            position += len(piece)
            if position > self._decoded[-1]:
                self._raw.append(raw)
                self._decoded.append(position)
        return memoryview(b"".join(pieces))

    def close(self) -> None:
        """Nothing to give up."""

    def _piece(self, start: int) -> tuple[bytes, int]:
        """Up to a megabyte of text from byte ``start`` on, decoded, and how many bytes it took."""
        step = min(1 << 20, self._blob.length - start)
        text = bytes(self._blob.source.read(self._blob.offset + start, step))
        if text and text[-1] >= 0xC0 and step > 1:  # the first half of a character
            text = text[:-1]
        try:
            return text.decode("utf-8").encode("latin-1"), len(text)
        except UnicodeError as error:
            raise MalformedFileError("text that stands for no bytes", path=self.path) from error


__all__ = [
    "KNOWN",
    "ArrayNote",
    "Latin1Source",
    "NoNumbersError",
    "UnreadTypeError",
    "array_note",
    "array_view",
    "is_array",
    "laid_out",
]
