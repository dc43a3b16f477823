"""GGUF files, llama.cpp's format: versions 1 to 3, little- and big-endian, one file or one part of a split one.

The header is parsed here; blocks are dequantised by the ``gguf`` package (see ``quant.ggml``). Offsets of tensors lie
inside the file and overlap with no other's. Tensors beyond the end of a truncated file are left out with a finding.
Names are llama.cpp's, and shapes are turned to numpy's order; what llama.cpp did to the rows of queries and keys is
undone once all parts are together (see ``rope_order``).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fingerprint.dtypes import BF16, F16, F32, F64, I8, I16, I32, I64, DType
from fingerprint.errors import LimitExceededError, MalformedFileError, UnsupportedFormatError, clipped
from fingerprint.quant.ggml import BLOCK_TYPES, BlockTensor, BlockType, require_package
from fingerprint.readers.base import (
    MAX_NAME,
    MAX_RANK,
    MAX_TENSORS,
    About,
    Catalogue,
    Contents,
    Finding,
    Reader,
    StoredTensor,
    checked_count,
    some,
)
from fingerprint.readers.gguf_header import HeaderCursor, read_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.source import Source

VERSIONS = (1, 2, 3)
MAX_ALIGNMENT = 1 << 20
_PLAIN = {0: F32, 1: F16, 24: I8, 25: I16, 26: I32, 27: I64, 28: F64, 30: BF16}

Tensor = StoredTensor | BlockTensor


def recognises(source: Source) -> bool:
    """True where the file begins with ``GGUF``."""
    return source.size >= 4 and bytes(source.read(0, 4)) == b"GGUF"


def open_gguf(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The tensors of a GGUF file, in the order of the header. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    cursor = _cursor(source, catalogue)
    count, entries = cursor.count(), cursor.count()
    if count > MAX_TENSORS:
        raise LimitExceededError(f"{count} tensors; {MAX_TENSORS} are allowed", path=source.path, offset=8)
    metadata, findings = read_metadata(cursor, entries)
    alignment = _alignment(metadata, source)
    listed = [_entry(cursor, catalogue) for _ in range(count)]
    data_start = -(-cursor.position // alignment) * alignment
    kept, unread, beyond = _Kept(source, data_start), Counter[str](), list[str]()
    for name, shape, kind, offset in listed:
        kept.name_once(name)
        tensor = _tensor(cursor, data_start, name, shape, kind, offset)
        if isinstance(tensor, str):
            unread[tensor] += 1
            findings.append(Finding("unread-tensor", tensor, name))
        elif not kept.add(*tensor):
            beyond.append(name)
    if listed and not kept.tensors and beyond:
        hint = "is the file truncated?"
        raise MalformedFileError("all tensors lie beyond the end of the file", path=source.path, hint=hint)
    if beyond:
        text = f"{len(beyond)} tensors lie beyond the end of the file, which is truncated: {some(beyond)}"
        findings.append(Finding("unread-tensor", text, beyond[0]))
    if any(isinstance(tensor, BlockTensor) for tensor in kept.tensors):
        require_package(source.path)
    kept.check_overlaps()
    return Contents(tuple(kept.tensors), tuple(findings), metadata, complete=not unread and not beyond)


def _cursor(source: Source, catalogue: Catalogue) -> HeaderCursor:
    if not recognises(source):
        raise MalformedFileError("no GGUF file: it does not begin with GGUF", path=source.path, offset=0)
    if source.size < 8:
        raise MalformedFileError("the file ends after its magic", path=source.path, hint="is the file truncated?")
    raw = bytes(source.read(4, 4))
    # Versions are small numbers: a low half of zeros is the high half of one in the other byte order.
    big_endian = raw[:2] == b"\0\0"
    version = int.from_bytes(raw, "big" if big_endian else "little")
    if version not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        message = f"GGUF version {version}; {known} are read"
        raise UnsupportedFormatError(message, path=source.path, offset=4)
    return HeaderCursor(source, catalogue, 8, big_endian=big_endian, version=version)


def _alignment(metadata: Mapping[str, str], source: Source) -> int:
    text = metadata.get("general.alignment", "32")
    alignment = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
    if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise MalformedFileError(f"general.alignment is {clipped(text, 20)!r}, no power of two", path=source.path)
    return alignment


def _entry(cursor: HeaderCursor, catalogue: Catalogue) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape in numpy's order, number of the type, and offset in the data of the next tensor."""
    name = cursor.string(MAX_NAME, "a tensor's name")
    rank = cursor.number("I")
    if rank > MAX_RANK:
        message = f"{rank} axes; {MAX_RANK} are allowed"
        raise LimitExceededError(message, path=cursor.source.path, tensor=name, offset=cursor.position)
    shape = tuple(cursor.count() for _ in range(rank))[::-1]
    catalogue.add(name, shape)
    return name, shape, cursor.number("I"), cursor.number("Q")


def _tensor(
    cursor: HeaderCursor, data_start: int, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> tuple[Tensor, int] | str:
    """The tensor and its number of bytes, or why it cannot be read."""
    source, big_endian = cursor.source, cursor.order == ">"
    count = checked_count(shape, source.path)
    if offset >= 2**62:
        raise MalformedFileError(f"the offset {offset} is none in any file", path=source.path, tensor=name)
    if (plain := _PLAIN.get(kind)) is not None:
        return StoredTensor(name, plain, shape, source, data_start + offset, big_endian), _plain_bytes(plain, count)
    block = BLOCK_TYPES.get(kind)
    if block is None:
        return f"elements of type {kind} are not read"
    if big_endian and block.halves is None:
        return f"big-endian blocks of type {block.name} are not read"
    return BlockTensor(name, block, shape, source, data_start + offset, big_endian), _block_bytes(
        block, shape, name, source
    )


def _plain_bytes(dtype: DType, count: int) -> int:
    return count * dtype.bits // 8


def _block_bytes(block: BlockType, shape: tuple[int, ...], name: str, source: Source) -> int:
    row = shape[-1] if shape else 1
    if row % block.elements:
        message = f"rows of {row} elements are not made of {block.name} blocks of {block.elements}"
        raise MalformedFileError(message, path=source.path, tensor=name)
    return checked_count(shape, source.path) // block.elements * block.bytes


class _Kept:
    """The tensors that can be read, and where they lie."""

    def __init__(self, source: Source, data_start: int) -> None:
        self.tensors: list[Tensor] = []
        self._source = source
        self._data_start = data_start
        self._extents: list[tuple[int, int, int]] = []
        self._names: set[str] = set()

    def name_once(self, name: str) -> None:
        """Notes a name. Raises ``MalformedFileError`` if it was there before."""
        if name in self._names:
            raise MalformedFileError("two tensors of this name", path=self._source.path, tensor=name)
        self._names.add(name)

    def add(self, tensor: Tensor, size: int) -> bool:
        """Keeps a tensor of ``size`` bytes; False if it ends beyond the file."""
        if tensor.offset + size > self._source.size:
            return False
        if size:
            self._extents.append((tensor.offset, tensor.offset + size, len(self.tensors)))
        self.tensors.append(tensor)
        return True

    def check_overlaps(self) -> None:
        """Raises ``MalformedFileError`` if two tensors share bytes."""
        position, previous = self._data_start, -1
        for start, end, number in sorted(self._extents):
            if start < position:
                raise MalformedFileError(
                    f"overlaps with tensor {clipped(self.tensors[previous].name)!r}",
                    path=self._source.path,
                    tensor=self.tensors[number].name,
                    offset=start,
                )
            position, previous = end, number


_ABOUT = (
    About(
        "GGUF, versions 1 to 3, either byte order, split or whole",
        "`GGUF`",
        f"F16 to F64, BF16, integers, and {len(BLOCK_TYPES)} types of blocks, which the `gguf` package dequantises; "
        "the order of rows of queries and keys that llama.cpp changes is undone where it does that, and so is the one "
        "that it adds to the gains of Gemma, Nemotron and Qwen3-Next",
        "types of blocks that the package does not dequantise",
        extra="gguf",
    ),
)
READER = Reader("gguf", (".gguf",), recognises, open_gguf, _ABOUT)
