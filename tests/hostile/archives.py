"""Makes PyTorch zip files by hand: pickles from opcodes, archives with one lie each."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

STORAGE = bytes(range(16))
"""The bytes of the storage that ``TENSOR`` uses: 2 x 2 float32."""


def text(value: str) -> bytes:
    """Pushes a string."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    """Pushes a global."""
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*values: bytes) -> bytes:
    """Pushes a tuple."""
    return b"(" + b"".join(values) + b"t"


def integer(value: int) -> bytes:
    """Pushes an integer."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    """Pushes what ``module.attribute(*arguments)`` gives."""
    return name(module, attribute) + tuple_of(*arguments) + b"R"


def storage(key: bytes = b"", count: bytes = b"", kind: bytes = b"") -> bytes:
    """Pushes a storage, by default number 0 with 4 float32."""
    kind = kind or name("torch", "FloatStorage")
    return tuple_of(text("storage"), kind, key or text("0"), text("cpu"), count or integer(4)) + b"Q"


def tensor(
    *, store: bytes = b"", offset: bytes = b"", shape: bytes = b"", strides: bytes = b"", hooks: bytes = b""
) -> bytes:
    """Pushes a tensor, by default 2 x 2 of all of the default storage."""
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        store or storage(),
        offset or integer(0),
        shape or tuple_of(integer(2), integer(2)),
        strides or tuple_of(integer(2), integer(1)),
        b"\x89",
        hooks or call("collections", "OrderedDict"),
    )


def sizes(*values: int) -> bytes:
    """Pushes a tuple of integers."""
    return tuple_of(*(integer(value) for value in values))


TENSOR = tensor()


def state_dict(*pairs: tuple[str, bytes]) -> bytes:
    """A pickle of a dict."""
    body = b"".join(text(key) + value for key, value in pairs)
    return b"\x80\x02}(" + body + b"u."


def archive(
    pickle: bytes = b"",
    entries: Mapping[str, bytes] | None = None,
    *,
    prefix: str = "archive",
    method: int = zipfile.ZIP_STORED,
    storages: bool = True,
) -> bytes:
    """A file as torch.save writes it; ``entries`` come on top and may repeat names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr(f"{prefix}/data.pkl", pickle or state_dict(("weight", TENSOR)))
        if storages:
            file.writestr(f"{prefix}/data/0", STORAGE)
        for entry_name, data in (entries or {}).items():
            file.writestr(entry_name, data)
    return buffer.getvalue()


def repeated(entry: str, data: bytes) -> bytes:
    """A good archive in which ``entry`` comes twice."""
    return archive(entries={entry: data})


def central(data: bytes, entry: str) -> int:
    """Position of the record of ``entry`` in the central directory."""
    start = data.rindex(b"PK\x05\x06")
    position = struct.unpack_from("<I", data, start + 16)[0]
    while data[position : position + 4] == b"PK\x01\x02":
        lengths = struct.unpack_from("<3H", data, position + 28)
        if data[position + 46 : position + 46 + lengths[0]] == entry.encode():
            return position
        position += 46 + sum(lengths)
    raise KeyError(entry)


def patched(data: bytes, position: int, layout: str, *values: int) -> bytes:
    """``data`` with packed values written over it."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, position, *values)
    return bytes(changed)
