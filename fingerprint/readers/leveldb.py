"""LevelDB tables, as TensorFlow writes its index of a checkpoint: sorted pairs of keys and values.

Format: https://github.com/google/leveldb/blob/main/doc/table_format.md. Only what is uncompressed is read, as
TensorFlow writes it; the filter and its block are ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fingerprint.errors import LimitExceededError, MalformedFileError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.source import Source

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
MAX_BLOCK = 64 << 20
MAX_ENTRIES = 1 << 19
MAX_KEY = 1 << 14
MAX_VALUE = 1 << 20
_TRAILER = 5


def is_table(source: Source) -> bool:
    """True where the file ends as a table does."""
    if source.size < FOOTER:
        return False
    return int.from_bytes(source.read(source.size - 8, 8), "little") == MAGIC


def read_table(source: Source) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of the table in the order of their keys. Raises ``InputError``."""
    if not is_table(source):
        raise MalformedFileError("no table of LevelDB: its end is not there", path=source.path, hint="is it truncated?")
    footer = bytes(source.read(source.size - FOOTER, FOOTER))
    position = 0
    numbers = []
    for _ in range(4):  # offset and size of the block of meta-indexes, and of the index
        value, position = _varint(footer, position, source)
        numbers.append(value)
    left = MAX_ENTRIES
    for _, handle in _entries(source, numbers[2], numbers[3]):
        offset, after = _varint(handle, 0, source)
        size, _ = _varint(handle, after, source)
        for pair in _entries(source, offset, size):
            left -= 1
            if left < 0:
                raise LimitExceededError(f"more than {MAX_ENTRIES} entries", path=source.path)
            yield pair


def _entries(source: Source, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if size > MAX_BLOCK:
        raise LimitExceededError(f"a block of {size} bytes; {MAX_BLOCK} are allowed", path=source.path, offset=offset)
    if offset + size + _TRAILER > source.size:
        raise MalformedFileError("a block reaches beyond the file", path=source.path, offset=offset)
    kind = source.read(offset + size, 1)[0]
    if kind:
        raise UnsupportedFormatError(f"a block is compressed by method {kind}", path=source.path, offset=offset + size)
    block = bytes(source.read(offset, size))
    if size < 4:
        raise MalformedFileError("a block is too short", path=source.path, offset=offset)
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise MalformedFileError("a block has more restarts than bytes", path=source.path, offset=offset)
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position, source)
        fresh, position = _varint(block, position, source)
        length, position = _varint(block, position, source)
        if shared > len(key) or position + fresh + length > end:
            raise MalformedFileError("an entry reaches beyond its block", path=source.path, offset=offset + position)
        if shared + fresh > MAX_KEY or length > MAX_VALUE:
            raise LimitExceededError("an entry is too long", path=source.path, offset=offset + position)
        key = key[:shared] + block[position : position + fresh]
        position += fresh
        yield key, block[position : position + length]
        position += length


def _varint(data: bytes, position: int, source: Source) -> tuple[int, int]:
    value = 0
    for index in range(min(10, len(data) - position)):
        byte = data[position + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, position + index + 1
    raise MalformedFileError("a number has no end", path=source.path)
