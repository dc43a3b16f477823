"""Hostile folders of zarr arrays, and databases (OCDBT) that lie about themselves."""

# One case a line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import json
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

from tests.hostile.case import Case, Expect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MALFORMED, LIMIT, UNSUPPORTED = "MalformedFileError", "LimitExceededError", "UnsupportedFormatError"
NODE_MAGIC = 0x0CDB20DE
_V2: dict[str, Any] = {
    "zarr_format": 2,
    "shape": [4],
    "chunks": [4],
    "dtype": "<f4",
    "compressor": None,
    "fill_value": 0,
    "order": "C",
}
_V3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [4], "data_type": "float32", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}}, "chunk_key_encoding": {"name": "default"},
}  # fmt: skip
_SHARD = {"chunk_shape": [2], "codecs": [{"name": "bytes"}], "index_codecs": [{"name": "bytes"}]}
ZLIB = {"id": "zlib"}


def _array(chunk: bytes | None = bytes(16), **fields: Any) -> Callable[[Path], Path]:
    """A group with a sound array ``good`` and one called ``bad``."""

    def build(folder: Path) -> Path:
        (folder / ".zgroup").write_text("{}")
        for name, told, raw in (("good", _V2, bytes(16)), ("bad", _V2 | fields, chunk)):
            (folder / name).mkdir()
            (folder / name / ".zarray").write_text(json.dumps(told))
            if raw is not None:
                (folder / name / "0").write_bytes(raw)
        return folder

    return build


def _shard(raw: bytes, chunk: int = 2) -> Callable[[Path], Path]:
    """An array in one shard of those bytes, which is said to be in chunks of ``chunk`` elements."""

    def build(folder: Path) -> Path:
        told = _V3 | {"codecs": [{"name": "sharding_indexed", "configuration": _SHARD | {"chunk_shape": [chunk]}}]}
        (folder / "zarr.json").write_text(json.dumps(told))
        (folder / "c").mkdir()
        (folder / "c" / "0").write_bytes(raw)
        return folder

    return build


def _text(name: str, raw: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(raw)
        return folder

    return build


def _circle(folder: Path) -> Path:
    _array()(folder)
    (folder / "again").symlink_to(".")
    return folder


def _linked_chunk(folder: Path) -> Path:
    _array(None)(folder)
    (folder / "bad" / "0").symlink_to("/dev/zero")
    return folder


def _pipe_chunk(folder: Path) -> Path:
    _array(None)(folder)
    os.mkfifo(folder / "bad" / "0")
    return folder


def _deep(folder: Path) -> Path:
    (folder / ".zgroup").write_text("{}")
    (folder / "/".join("a" * 40)).mkdir(parents=True)
    return folder


# --- OCDBT ----------------------------------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _numbers(*numbers: int) -> bytes:
    return b"".join(map(_varint, numbers))


def wrapped(magic: int, body: bytes, *, length: int | None = None, packed: int = 0) -> bytes:
    """A manifest or node around ``body``; ``packed``: what is said of its compression."""
    size = 14 + len(body) + 4
    return (
        struct.pack(">I", magic)
        + struct.pack("<Q", size if length is None else length)
        + bytes([0, packed])
        + body
        + bytes(4)
    )


def manifest(file: bytes, offset: int, length: int, height: int, *, kind: int = 0) -> bytes:
    """A manifest whose root is in ``file``."""
    table = _numbers(1, len(file), 0) + file
    version = _numbers(1, 1, height, 0, offset, length, 1, 1, 1) + bytes(8)
    body = bytes(16) + _numbers(kind, 100, 1 << 20) + b"\x04" + _numbers(0) + table + version + _numbers(0)
    return wrapped(0x0CDB3A2A, body)


def _node(height: int, entries: bytes, file: bytes = b"d") -> bytes:
    return wrapped(NODE_MAGIC, bytes([height]) + _numbers(1, len(file), 0) + file + entries)


def _leaf(key: bytes, length: int, offset: int, *, kind: int = 1, number: int = 0) -> bytes:
    return _node(0, _numbers(1, len(key)) + key + _numbers(length, kind, number, offset))


def _database(
    node: bytes, *, height: int = 0, file: bytes = b"d", offset: int = 0, kind: int = 0
) -> Callable[[Path], Path]:
    """A database of one data file that begins with ``node``, its root."""

    def build(folder: Path) -> Path:
        (folder / "manifest.ocdbt").write_bytes(manifest(file, offset, len(node), height, kind=kind))
        (folder / "d").write_bytes(node)
        return folder

    return build


def _itself(height: int) -> bytes:
    """A node with two children, both of them itself in size and place: a tree of 2**height ways."""
    size = 64
    while True:
        entries = _numbers(2, 0, 1, 1, 0, 0) + b"ab" + _numbers(0, 0, 0, 0, size, size) + _numbers(1, 1, 1, 1, 1, 1)
        node = _node(height, entries)
        if len(node) == size:
            return node
        size = len(node)


def _doubling(folder: Path) -> Path:
    """Thirty levels, each with the one below it twice."""
    size = len(_itself(30))
    levels = []
    for height in range(30, 0, -1):
        below = (31 - height) * size * 2
        entries = _numbers(2, 0, 1, 1, 0, 0) + b"ab" + _numbers(0, 0, below, below)
        levels.append((height, entries))
    raw = bytearray()
    places = [number * size * 2 for number in range(31)]
    leaf = _node(0, _numbers(1, 1) + b"k" + _numbers(0, 0))
    sizes = [0] * 31
    nodes: list[bytes] = [leaf]
    sizes[30] = len(leaf)
    for height, entries in reversed(levels):
        below = len(nodes[0])
        nodes.insert(0, _node(height, entries + _numbers(below, below) + _numbers(1, 1, 1, 1, 1, 1)))
    for place, node in zip(places, nodes, strict=True):
        raw += bytes(place - len(raw)) + node
    (folder / "manifest.ocdbt").write_bytes(manifest(b"d", 0, len(nodes[0]), 30))
    (folder / "d").write_bytes(bytes(raw))
    return folder


ORBAX_CASES: tuple[Case, ...] = (
    Case("zarr: a chunk that is cut off", _array(bytes(15)), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: 2**60 elements", _array(shape=[2**60]), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: 2**40 chunks", _array(shape=[2**40], chunks=[1]), Expect.ERROR, LIMIT),
    Case("zarr: a shape of 2**50 without a chunk", _array(None, shape=[2**50], chunks=[2**50]), Expect.ERROR, LIMIT),
    Case("zarr: chunks of no elements", _array(chunks=[0]), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: a negative size", _array(shape=[-4]), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: sizes that are no numbers", _array(shape=["4"]), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: 100 axes", _array(shape=[1] * 100, chunks=[1] * 100), Expect.ERROR, LIMIT),
    Case("zarr: a bomb of a gigabyte", _array(zlib.compress(bytes(1 << 20)), shape=[2**28], chunks=[2**28], compressor=ZLIB), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: a frame of Blosc that lies", _array(bytes(16), compressor={"id": "blosc"}), Expect.ERROR, MALFORMED),
    Case("zarr: metadata that nest 100,000 deep", _text(".zarray", b'{"a":' * 100_000), Expect.ERROR, LIMIT),
    Case("zarr: metadata of 2 MB", _text(".zarray", b" " * (2 << 20)), Expect.ERROR, LIMIT),
    Case("zarr: metadata that are no object", _text(".zarray", b"[]"), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: a link to the folder itself", _circle, Expect.FINE),
    Case("zarr: a chunk that is a link to a device", _linked_chunk, Expect.PARTIAL, "unread-tensor"),
    Case("zarr: a chunk that is a pipe", _pipe_chunk, Expect.PARTIAL, "unread-tensor"),
    Case("zarr: groups 40 deep", _deep, Expect.ERROR, LIMIT),
    Case("zarr: a shard without its index", _shard(bytes(8)), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: a shard whose index leads out of it", _shard(bytes(16) + struct.pack("<4Q", 2**63, 8, 0, 8)), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: a shard in chunks of no elements", _shard(bytes(64), 0), Expect.PARTIAL, "unread-tensor"),
    Case("zarr: a shard whose chunks are too short", _shard(bytes(16) + struct.pack("<4Q", 0, 8, 8, 7)), Expect.PARTIAL, "unread-tensor"),
    Case("orbax: a list of the tree that never ends", _text("_METADATA", b'{"tree_metadata":' + b'{"a":' * 100_000), Expect.FINDING, "no-tensors"),
    Case("ocdbt: an empty manifest", _text("manifest.ocdbt", b""), Expect.ERROR, MALFORMED),
    Case("ocdbt: a manifest of zeros", _text("manifest.ocdbt", bytes(200)), Expect.ERROR, MALFORMED),
    Case("ocdbt: numbered manifests", _database(_leaf(b"a", 1, 0), kind=1), Expect.ERROR, UNSUPPORTED),
    Case("ocdbt: a data file outside", _database(_leaf(b"a", 1, 0), file=b"../d"), Expect.ERROR, MALFORMED),
    Case("ocdbt: a data file at the root", _database(_leaf(b"a", 1, 0), file=b"/etc/passwd"), Expect.ERROR, MALFORMED),
    Case("ocdbt: a data file that is absent", _database(_leaf(b"a", 1, 0), file=b"e"), Expect.ERROR, MALFORMED),
    Case("ocdbt: a root behind the end", _database(_leaf(b"a", 1, 0), offset=2**62), Expect.ERROR, MALFORMED),
    Case("ocdbt: a tree of 2**30 ways", _doubling, Expect.ERROR, LIMIT),
    Case("ocdbt: a node that is its own child", _database(_itself(9), height=9), Expect.ERROR, MALFORMED),
    Case("ocdbt: a height of 200", _database(_itself(200), height=200), Expect.ERROR, MALFORMED),
    Case("ocdbt: 2**60 keys", _database(_node(0, _numbers(2**60))), Expect.ERROR, MALFORMED),
    Case("ocdbt: a number without an end", _database(_node(0, b"\xff" * 100)), Expect.ERROR, MALFORMED),
    Case("ocdbt: metadata behind the end", _database(_leaf(b"a/.zarray", 100, 2**40)), Expect.PARTIAL, "unread-tensor"),
    Case("ocdbt: a value in a file that is not listed", _database(_leaf(b"a/.zarray", 1, 0, number=7)), Expect.ERROR, MALFORMED),
    Case("ocdbt: a value of an unknown kind", _database(_leaf(b"a/.zarray", 1, 0, kind=2)), Expect.ERROR, MALFORMED),
    Case("ocdbt: no arrays in it", _database(_leaf(b"../../a", 1, 0)), Expect.FINDING, "no-tensors"),
)  # fmt: skip
"""Every way to lie about arrays of zarr and where they are."""
