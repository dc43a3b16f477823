"""safetensors files: an eight-byte length, a JSON header, and the tensors' bytes.

Format: https://github.com/huggingface/safetensors#format. The header is checked as hostile text; every tensor's offsets
fit its dtype and shape, and overlap with no other's. Bytes that belong to no tensor, and tensors behind the end of a
file that was cut off, both of which the library refuses, are tolerated with a finding: they do not hinder measuring.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING

from fingerprint.dtypes import DTYPES
from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import (
    MAX_ELEMENTS,
    MAX_NAME,
    About,
    Catalogue,
    Contents,
    Finding,
    Reader,
    StoredTensor,
    checked_count,
    truncated,
)
from fingerprint.readers.bounded_json import Json, JsonCursor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fingerprint.source import Source

MAX_HEADER = 100_000_000
"""The library's own limit on the header, in bytes."""
MAX_METADATA = 256
"""Most entries of ``__metadata__`` that are kept."""
MAX_METADATA_READ = 2**14
"""Most entries of ``__metadata__`` that are looked at."""
MAX_METADATA_VALUE = 4096
"""Most characters of a value of ``__metadata__`` that are kept."""
MAX_METADATA_STRING = 4 << 20
"""Most bytes of a value of ``__metadata__``; trainers put whole lists of captions there."""

_W = rb"[ \t\n\r]*+"
_NUMBER = _W + rb"(?:0|[1-9][0-9]{0,18}+)" + _W
_DTYPE = rb'"dtype"%b:%b"(?P<dtype>[A-Z0-9_]{1,16}+)"' % (_W, _W)
_SHAPE = rb'"shape"%b:%b\[(?P<shape>%b(?:,%b)*+|%b)\]' % (_W, _W, _NUMBER, _NUMBER, _W)
_OFFSETS = rb'"data_offsets"%b:%b\[(?P<begin>%b),(?P<end>%b)\]' % (_W, _W, _NUMBER, _NUMBER)


def _entry_of(fields: Iterable[bytes]) -> re.Pattern[bytes]:
    return re.compile(_W + rb"\{" + _W + (_W + rb"," + _W).join(fields) + _W + rb"\}")


_AS_WRITTEN = _entry_of((_DTYPE, _SHAPE, _OFFSETS))
"""An entry with its three keys in the library's order; any other, and anything else, takes a slower way."""


@cache
def _in_other_orders() -> tuple[re.Pattern[bytes], ...]:
    """Hardly a file needs them, and compiling them takes as long as reading a header of a hundred tensors."""
    return tuple(map(_entry_of, list(permutations((_DTYPE, _SHAPE, _OFFSETS)))[1:]))


def recognises(source: Source) -> bool:
    """True where a length of less than 100 MB is followed by the opening of a JSON object, as the format demands."""
    if source.size < 9:
        return False
    head = bytes(source.read(0, 9))
    return int.from_bytes(head[:8], "little") <= MAX_HEADER and head[8] == ord("{")


def open_safetensors(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The tensors of a safetensors file, in the order of the header. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    header_size = _header_size(source)
    catalogue.take(header_size)
    cursor = JsonCursor(source.read(8, header_size), path=source.path, what="header", base=8)
    data_start = 8 + header_size
    tensors: list[StoredTensor] = []
    extents: list[tuple[int, int, int]] = []
    metadata: dict[str, str] = {}
    findings: list[Finding] = []
    for name in cursor.members():
        if name == "__metadata__":
            metadata = _metadata(cursor, findings)
            continue
        try:
            tensor, length = _entry(cursor, name, source, data_start)
        except InputError as error:
            error.tensor = name
            raise
        catalogue.add(name, tensor.shape)
        extents.append((tensor.offset, tensor.offset + length, len(tensors)))
        tensors.append(tensor)
    cursor.end()
    findings += _check_layout(source, data_start, extents, tensors)
    absent = [tensors[number].name for _, end, number in extents if end > source.size]
    if absent:
        findings.append(truncated(source.size, len(absent), len(tensors), absent[0]))
        tensors = [tensor for tensor, (_, end, _) in zip(tensors, extents, strict=True) if end <= source.size]
    return Contents(tuple(tensors), tuple(findings), metadata, not absent)


def _header_size(source: Source) -> int:
    if source.size < 8:
        raise MalformedFileError(f"{source.size} bytes are no safetensors file", path=source.path)
    if source.size > 8 and bytes(source.read(8, 1)) != b"{":
        raise MalformedFileError("no safetensors file: its ninth byte does not open a header", path=source.path)
    size = int.from_bytes(source.read(0, 8), "little")
    if size > MAX_HEADER:
        message = f"the header claims {size} bytes; {MAX_HEADER} are allowed"
        raise LimitExceededError(message, path=source.path, offset=0)
    if size > source.size - 8:
        raise MalformedFileError(
            f"the header claims {size} bytes where the file has {source.size - 8} left",
            path=source.path,
            offset=0,
            hint="is the file truncated?",
        )
    return size


def _metadata(cursor: JsonCursor, findings: list[Finding]) -> dict[str, str]:
    kept: dict[str, str] = {}
    cut = 0
    usual, cursor.max_string = cursor.max_string, MAX_METADATA_STRING
    for number, key in enumerate(cursor.members()):
        if number == MAX_METADATA_READ:
            cursor.limit(f"more than {MAX_METADATA_READ} entries of __metadata__")
        value = cursor.string()
        if len(kept) < MAX_METADATA and len(key) <= MAX_NAME:
            kept[key] = clipped(value, MAX_METADATA_VALUE)
            cut += len(value) > MAX_METADATA_VALUE
        else:
            cut += 1
    cursor.max_string = usual
    if cut:
        findings.append(Finding("metadata-clipped", f"{cut} entries of __metadata__ were shortened or left out"))
    return kept


def _entry(cursor: JsonCursor, name: str, source: Source, data_start: int) -> tuple[StoredTensor, int]:
    dtype_name, shape, begin, end = _canonical(cursor) or _general(cursor)
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        cursor.fail(f"unknown dtype {clipped(dtype_name)!r}")
    count = checked_count(shape, source.path)
    length = dtype.nbytes(count)
    if length is None:
        cursor.fail(f"{count} elements of {dtype.bits} bits do not fill whole bytes")
    if begin > end:
        cursor.fail(f"data_offsets run backwards, from {begin} to {end}")
    if end - begin != length:
        sizes = clipped(str(list(shape)))
        cursor.fail(f"data_offsets span {end - begin} bytes where {dtype.name} {sizes} takes {length}")
    return StoredTensor(name, dtype, shape, source, data_start + begin), length


def _canonical(cursor: JsonCursor) -> tuple[str, tuple[int, ...], int, int] | None:
    match = _AS_WRITTEN.match(cursor.data, cursor.position)
    if match is None:
        others = (pattern.match(cursor.data, cursor.position) for pattern in _in_other_orders())
        match = next((other for other in others if other is not None), None)
        if match is None:
            return None
    cursor.position = match.end()
    dtype, sizes, begin, end = match.group("dtype", "shape", "begin", "end")
    shape = tuple(map(int, sizes.split(b","))) if sizes.strip() else ()
    return dtype.decode(), shape, int(begin), int(end)


def _general(cursor: JsonCursor) -> tuple[str, tuple[int, ...], int, int]:
    entry = cursor.value()
    if not isinstance(entry, dict):
        cursor.fail("an entry is not an object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str):
        cursor.fail("dtype is not a string")
    shape = _sizes(cursor, entry.get("shape"), "shape")
    offsets = _sizes(cursor, entry.get("data_offsets"), "data_offsets")
    if len(offsets) != 2:
        cursor.fail("data_offsets are not two numbers")
    return dtype, shape, *offsets


def _sizes(cursor: JsonCursor, value: Json, what: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        cursor.fail(f"{what} is not a list")
    numbers: list[int] = []
    for number in value:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_ELEMENTS:
            cursor.fail(f"{what} holds something else than whole numbers from 0 to {MAX_ELEMENTS}")
        numbers.append(number)
    return tuple(numbers)


def _check_layout(
    source: Source, data_start: int, extents: list[tuple[int, int, int]], tensors: list[StoredTensor]
) -> list[Finding]:
    position, previous, unused = data_start, -1, 0
    for start, end, number in sorted(extents):
        if start < position and end > start:
            raise MalformedFileError(
                f"overlaps with tensor {clipped(tensors[previous].name)!r}",
                path=source.path,
                tensor=tensors[number].name,
                offset=start,
            )
        if end > start:
            unused += start - position
            position, previous = end, number
    findings = []
    if unused:
        findings.append(Finding("unused-bytes", f"{unused} bytes between the tensors belong to none of them"))
    if (trailing := source.size - position) > 0:
        findings.append(Finding("trailing-bytes", f"{trailing} bytes after the last tensor belong to none"))
    return findings


_ABOUT = (
    About(
        "safetensors",
        "a header length of at most 100 MB, then `{`",
        "all dtypes of safetensors 0.8",
    ),
)
READER = Reader("safetensors", (".safetensors",), recognises, open_safetensors, _ABOUT)
