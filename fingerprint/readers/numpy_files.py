"""numpy's own files: ``.npy``, one array behind a header of text, and ``.npz``, a ZIP archive of them.

Format: numpy.lib.format, versions 1.0 to 3.0. Arrays of objects, which are pickles, are not read.
"""

from __future__ import annotations

import os
import re
import struct
from itertools import permutations
from typing import TYPE_CHECKING

from fingerprint.dtypes import BF16
from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, UnsupportedFormatError, clipped
from fingerprint.readers.base import About, Catalogue, Contents, Finding, Reader, bounded, checked_count, truncated
from fingerprint.readers.numpy_objects import laid_out
from fingerprint.readers.numpy_types import NoNumbersError, UnreadTypeError, dtype_of
from fingerprint.readers.zips import ZipArchive, find_directory, first_name, has_directory, is_zip
from fingerprint.source import Section

if TYPE_CHECKING:
    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""Most bytes of a header of text: numpy's own limit."""

_DESCR = r"'descr':\s*(?P<descr>'[^'\\]{0,64}'|\[.*\]|\(.*\))"
_ORDER = r"'fortran_order':\s*(?P<order>True|False)"
_SHAPE = r"'shape':\s*\((?P<shape>[0-9L, ]*)\)"
_HEADERS = tuple(
    re.compile(r"\{\s*" + r"\s*,\s*".join(fields) + r"\s*,?\s*\}\s*", re.DOTALL)
    for fields in permutations((_DESCR, _ORDER, _SHAPE))
)
_OBJECTS = "it is an array of objects, which is a pickle"


def recognises_npy(source: Source) -> bool:
    """True for numpy's magic string."""
    return bytes(source.read(0, min(6, source.size))) == MAGIC


def recognises_npz(source: Source) -> bool:
    """True for a ZIP archive of ``.npy`` files and nothing else; one that was cut off is told by its first entry."""
    if not is_zip(source):
        return False
    if not has_directory(source):
        return first_name(source).endswith(".npy")
    try:
        _, _, count = find_directory(source)
        return bool(count) and all(name.endswith(".npy") for name in ZipArchive(source).entries)
    except InputError:
        return False


def open_npy(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The array of an ``.npy`` file, which has no name but that of the file. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    findings: list[Finding] = []
    try:
        name = os.path.basename(source.path)
        tensor, end = _array(name.removesuffix(".npy") or "array", source, findings)
    except UnreadTypeError as error:
        raise UnsupportedFormatError(str(error), path=source.path) from error
    except NoNumbersError as error:
        message = _OBJECTS if error.code == "O" else str(error)
        raise UnsupportedFormatError(message, path=source.path) from error
    catalogue.add(tensor.name, tensor.shape)
    if end > source.size:
        return Contents((), (truncated(source.size, 1, 1, tensor.name),), complete=False)
    if end < source.size:
        findings.append(Finding("trailing-bytes", f"{source.size - end} bytes follow the end of the array"))
    return Contents((tensor,), tuple(findings))


def open_npz(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The arrays of an ``.npz`` file, under the names of its entries without ``.npy``. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    archive = ZipArchive(source)
    tensors: list[TensorView] = []
    findings: list[Finding] = []
    absent: list[str] = []
    unread = 0
    for key, entry in archive.entries.items():
        name = entry.name.removesuffix(".npy")
        catalogue.add_name(name)
        if key == archive.cut:
            absent.append(name)
            continue
        part, start, size = archive.locate(key)
        try:
            tensor, end = _array(name, Section(part, start, size), findings)
        except InputError as error:
            error.tensor = name
            raise
        except UnreadTypeError as error:
            findings.append(Finding("unread-tensor", f"a tensor cannot be read: {error}", name))
            unread += 1
            continue
        except NoNumbersError as error:
            if error.code == "O":
                findings.append(Finding("unread-tensor", f"a tensor cannot be read: {_OBJECTS}", name))
                unread += 1
            continue
        if end != size:
            message = f"an array that ends at byte {end} of an entry of {size}"
            raise MalformedFileError(message, path=source.path, tensor=name)
        catalogue.add(name, tensor.shape)
        tensors.append(tensor)
    findings = [*archive.findings, *findings]
    if archive.truncated:
        first = absent[0] if absent else None
        findings.append(truncated(source.size, len(absent), len(absent) + len(tensors), first))
    return Contents(tuple(tensors), bounded(findings), complete=not unread and not archive.truncated)


def _array(name: str, source: Source, findings: list[Finding]) -> tuple[TensorView, int]:
    """The array at the beginning of ``source``, and where it ends by its header: maybe behind the end."""
    if not recognises_npy(source) or source.size < 10:
        raise MalformedFileError("no array of numpy", path=source.path)
    major = source.read(6, 1)[0]
    width = 2 if major == 1 else 4
    if major not in {1, 2, 3} or source.size < 8 + width:
        raise MalformedFileError(f"version {major} of numpy's format, or no header", path=source.path)
    (length,) = struct.unpack("<H" if width == 2 else "<I", source.read(8, width))
    if length > MAX_HEADER:
        message = f"the header claims {length} bytes; {MAX_HEADER} are allowed"
        raise LimitExceededError(message, path=source.path, offset=8)
    start = 8 + width + length
    if start > source.size:
        message = f"the header claims {length} bytes where the file has {source.size - 8 - width} left"
        raise MalformedFileError(message, path=source.path, offset=8, hint="is the file truncated?")
    text = bytes(source.read(8 + width, length)).decode("latin-1" if major < 3 else "utf-8", "replace")
    match = next((found for pattern in _HEADERS if (found := pattern.fullmatch(text)) is not None), None)
    if match is None:
        message = f"a header that cannot be understood: {clipped(repr(text.strip()))}"
        raise MalformedFileError(message, path=source.path, offset=8)
    descr, order, sizes = match.group("descr", "order", "shape")
    if not descr.startswith("'"):
        raise UnreadTypeError("its elements are structures")
    dtype, big_endian = dtype_of(descr.strip("'"))
    shape = _shape(sizes, source.path)
    end = start + checked_count(shape, source.path) * dtype.bits // 8
    if dtype is BF16:
        findings.append(Finding("bfloat16-assumed", "two bytes without a type (V2) were read as bfloat16", name))
    # Of a file that was cut off, the caller makes nothing of the view.
    view = laid_out(name, dtype, shape, source, start, fortran=order == "True", big_endian=big_endian)
    return view, end


def _shape(text: str, path: str) -> tuple[int, ...]:
    # Python 2 wrote long integers with an L.
    parts = [part.strip().removesuffix("L") for part in text.split(",")]
    if parts and not parts[-1]:
        parts.pop()
    if len(parts) > 64 or not all(0 < len(part) <= 19 and part.isdecimal() for part in parts):
        raise MalformedFileError(f"a shape that is none: {clipped(text)!r}", path=path)
    return tuple(map(int, parts))


_ABOUT_NPY = (
    About(
        "npy",
        "numpy's magic string",
        "versions 1 to 3, both orders of axes and of bytes; `V2` is read as bfloat16, with a finding",
        "arrays of objects, structures, complex128",
    ),
)
NPY_READER = Reader("npy", (".npy",), recognises_npy, open_npy, _ABOUT_NPY)
_ABOUT_NPZ = (
    About(
        "npz",
        "a ZIP archive of `.npy` files only, stored or deflated",
        "the same, of each array",
        "the same",
    ),
)
NPZ_READER = Reader("npz", (".npz",), recognises_npz, open_npz, _ABOUT_NPZ)
