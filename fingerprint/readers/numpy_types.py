"""numpy's names of element types: the strings in headers of arrays and in pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fingerprint import dtypes
from fingerprint.errors import clipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.dtypes import DType

NUMPY_DTYPES: Final[Mapping[str, DType]] = {
    "b1": dtypes.BOOL,
    "i1": dtypes.I8,
    "i2": dtypes.I16,
    "i4": dtypes.I32,
    "i8": dtypes.I64,
    "u1": dtypes.U8,
    "u2": dtypes.U16,
    "u4": dtypes.U32,
    "u8": dtypes.U64,
    "f2": dtypes.F16,
    "f4": dtypes.F32,
    "f8": dtypes.F64,
    "c8": dtypes.C64,
}
ML_DTYPES: Final[Mapping[str, DType]] = {
    "bfloat16": dtypes.BF16,
    "float8_e4m3fn": dtypes.F8_E4M3,
    "float8_e5m2": dtypes.F8_E5M2,
    "float8_e4m3fnuz": dtypes.F8_E4M3FNUZ,
    "float8_e5m2fnuz": dtypes.F8_E5M2FNUZ,
    "float8_e8m0fnu": dtypes.F8_E8M0,
}
"""Types of the package ml_dtypes, by the name of their class."""
NAMES: Final[Mapping[str, DType]] = {
    **{dtype.numpy.name: dtype for dtype in NUMPY_DTYPES.values()},
    **ML_DTYPES,
}
"""By numpy's full name: ``float32``."""
_NO_NUMBERS: Final = "SUMmaO"


class NoNumbersError(Exception):
    """Elements that are no numbers: strings, dates, objects. ``code`` is numpy's letter."""

    def __init__(self, code: str) -> None:
        super().__init__(f"elements of the type {code!r} are no numbers")
        self.code = code


class UnreadTypeError(Exception):
    """Numbers of a type that is not read."""


def dtype_of(text: str) -> tuple[DType, bool]:
    """The element type that ``text`` (``<f4``) names, and whether its bytes are big-endian.

    ``V2`` is how ``numpy.save`` writes bfloat16, which it has no name for. Raises ``NoNumbersError`` and
    ``UnreadTypeError``.
    """
    order, code = (text[0], text[1:]) if text[:1] in {"<", ">", "|", "="} else ("=", text)
    if code[:1] and code[0] in _NO_NUMBERS:
        raise NoNumbersError(code[0])
    dtype = dtypes.BF16 if code == "V2" else NUMPY_DTYPES.get(code)
    if dtype is None:
        raise UnreadTypeError(f"elements of the type {clipped(text)!r} are not read")
    return dtype, order == ">"
