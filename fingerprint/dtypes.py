"""Element types: names and storage as safetensors has them, decoding to numpy, and fast widening to float32.

Names and sizes are those of the safetensors library (``safetensors::Dtype``, version 0.8). Bytes are little-endian.
Sub-byte types are packed without padding between elements, the first element in the lowest bits: ``F4`` as torch's
``float4_e2m1fn_x2`` (two to a byte, low nibble first), the ``F6`` types four to three bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class Kind(StrEnum):
    """What sort of number an element is."""

    FLOAT = "float"
    INT = "int"
    UINT = "uint"
    BOOL = "bool"
    COMPLEX = "complex"


class DType(Struct, frozen=True):
    """An element type as stored.

    ``name`` in safetensors' spelling, ``bits`` of one stored element, ``kind``, and ``numpy``: the dtype that decoded
    elements have (from ml_dtypes where numpy has none).
    """

    name: str
    bits: int
    kind: Kind
    numpy: np.dtype[Any]

    def nbytes(self, count: int) -> int | None:
        """Bytes that ``count`` elements take, or None where they do not fill whole bytes."""
        whole, rest = divmod(count * self.bits, 8)
        return None if rest else whole

    @property
    def group(self) -> int:
        """The smallest number of elements that fills whole bytes."""
        return {4: 2, 6: 4}.get(self.bits, 1)


def _dtype(name: str, bits: int, kind: Kind, numpy: Any) -> DType:
    return DType(name, bits, kind, np.dtype(numpy))


BOOL = _dtype("BOOL", 8, Kind.BOOL, np.bool_)
F4 = _dtype("F4", 4, Kind.FLOAT, ml_dtypes.float4_e2m1fn)
F6_E2M3 = _dtype("F6_E2M3", 6, Kind.FLOAT, ml_dtypes.float6_e2m3fn)
F6_E3M2 = _dtype("F6_E3M2", 6, Kind.FLOAT, ml_dtypes.float6_e3m2fn)
U8 = _dtype("U8", 8, Kind.UINT, "u1")
I8 = _dtype("I8", 8, Kind.INT, "i1")
F8_E5M2 = _dtype("F8_E5M2", 8, Kind.FLOAT, ml_dtypes.float8_e5m2)
F8_E4M3 = _dtype("F8_E4M3", 8, Kind.FLOAT, ml_dtypes.float8_e4m3fn)
F8_E8M0 = _dtype("F8_E8M0", 8, Kind.FLOAT, ml_dtypes.float8_e8m0fnu)
F8_E4M3FNUZ = _dtype("F8_E4M3FNUZ", 8, Kind.FLOAT, ml_dtypes.float8_e4m3fnuz)
F8_E5M2FNUZ = _dtype("F8_E5M2FNUZ", 8, Kind.FLOAT, ml_dtypes.float8_e5m2fnuz)
I16 = _dtype("I16", 16, Kind.INT, "<i2")
U16 = _dtype("U16", 16, Kind.UINT, "<u2")
F16 = _dtype("F16", 16, Kind.FLOAT, "<f2")
BF16 = _dtype("BF16", 16, Kind.FLOAT, ml_dtypes.bfloat16)
I32 = _dtype("I32", 32, Kind.INT, "<i4")
U32 = _dtype("U32", 32, Kind.UINT, "<u4")
F32 = _dtype("F32", 32, Kind.FLOAT, "<f4")
C64 = _dtype("C64", 64, Kind.COMPLEX, "<c8")
F64 = _dtype("F64", 64, Kind.FLOAT, "<f8")
I64 = _dtype("I64", 64, Kind.INT, "<i8")
U64 = _dtype("U64", 64, Kind.UINT, "<u8")

DTYPES: Mapping[str, DType] = {
    dtype.name: dtype
    for dtype in (
        BOOL, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, I16, U16, F16, BF16,
        I32, U32, F32, C64, F64, I64, U64,
    )
}  # fmt: skip
"""All dtypes of safetensors by name."""


def decode(raw: bytes | memoryview, dtype: DType, count: int) -> NDArray[Any]:
    """The first ``count`` elements of ``raw`` as a 1-D array of ``dtype.numpy``.

    A window on ``raw`` without a copy where an element fills whole bytes (BOOL too, whose bytes other than 0 and 1 are
    normalised in a copy). Raises ``ValueError`` if ``raw`` is too short.
    """
    if dtype.bits >= 8:
        if dtype.kind is Kind.BOOL:
            flags = np.frombuffer(raw, np.uint8, count)
            return flags.view(np.bool_) if not flags.size or flags.max() <= 1 else flags != 0
        return np.frombuffer(raw, dtype.numpy, count)
    groups = -(-count // dtype.group)
    packed = np.frombuffer(raw, np.uint8, groups * dtype.group * dtype.bits // 8)
    codes = _unpack_nibbles(packed) if dtype.bits == 4 else _unpack_sixes(packed)
    return codes[:count].view(dtype.numpy)


def _unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    codes = np.empty((packed.size, 2), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, 0])
    np.right_shift(packed, 4, out=codes[:, 1])
    return codes.reshape(-1)


def _unpack_sixes(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    first, second, third = packed.reshape(-1, 3).T
    codes = np.empty((packed.size // 3, 4), np.uint8)
    codes[:, 0] = first & 63
    codes[:, 1] = first >> 6 | (second & 15) << 2
    codes[:, 2] = second >> 4 | (third & 3) << 4
    codes[:, 3] = third >> 2
    return codes.reshape(-1)


def to_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Decoded elements as float32, of the same shape; the real part of complex ones.

    Exact for every float type up to 32 bits. The array itself where it is float32 already.
    """
    if array.dtype == np.float32:
        return array
    if array.dtype.itemsize == 1 and array.dtype.kind not in "iub":
        # A table of all values: 0.8 ms for 2**20 elements, where the cast of ml_dtypes 0.6 takes 5.5 ms. (Its cast of
        # bfloat16 takes 0.23 ms, no more than a shift of the bits does.)
        table: NDArray[np.float32] = np.arange(256, dtype=np.uint8).view(array.dtype).astype(np.float32)
        return table.take(array.view(np.uint8), mode="clip")
    if array.dtype.kind == "c":
        array = array.real
    with _quiet():
        return array.astype(np.float32)


def to_float64(array: NDArray[Any]) -> NDArray[np.float64]:
    """Decoded elements as float64, of the same shape; the real part of complex ones. Exact for every float type."""
    if array.dtype == np.float64:
        return array
    if array.dtype.kind == "c":
        array = array.real
    with _quiet():
        return (array if array.dtype.kind in "fiub" else to_float32(array)).astype(np.float64)


def _quiet() -> np.errstate:
    """Without warnings where a double is too large for float32, or a NaN is a signalling one."""
    return np.errstate(over="ignore", invalid="ignore")
