"""The formats that can be read, in the order in which they are tried."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from fingerprint.errors import MalformedFileError, UnsupportedFormatError

if TYPE_CHECKING:
    from fingerprint.readers.base import Reader
    from fingerprint.source import Source


class Format(Struct, frozen=True):
    """Where the reader of a format is: its module is not imported before somebody asks for it, since few of all formats
    are in the files of a scan, and some take longer to import than a small file to read.

    ``name`` and ``suffixes`` are those of the reader. ``first`` holds the bytes of which one begins every file that the
    reader recognises, as far as that is known: a text beside the weights need not be shown to all of them.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    attribute: str = "READER"
    first: frozenset[int] | None = None

    @property
    def reader(self) -> Reader:
        """The reader itself."""
        found: Reader = getattr(import_module(f"fingerprint.readers.{self.module}"), self.attribute)
        return found


GGUF: Final = "gguf"
_MESSAGE: Final = frozenset(byte for byte in range(256) if byte & 7 in {0, 1, 2, 5})
"""First bytes of a message of Protocol Buffers: the lowest three bits are one of its types."""
_MAP: Final = frozenset({*range(0x81, 0x90), 0xDE, 0xDF})
"""Of a map in MessagePack that is not empty."""
FORMATS: Final = (
    Format("safetensors", (".safetensors",), "safetensors"),
    Format("pytorch", (".pt", ".pth", ".bin", ".ckpt"), "pytorch", first=frozenset(b"PL\x80\x8a")),
    Format(GGUF, (".gguf",), "gguf", first=frozenset(b"G")),
    Format("onnx", (".onnx",), "onnx", first=_MESSAGE),
    Format("coreml", (".mlmodel",), "coreml", first=frozenset(b"\x08")),
    Format("keras", (".h5", ".hdf5", ".keras"), "keras", first=frozenset(b"P\x89")),
    Format("tflite", (".tflite",), "tflite"),
    Format("tensorflow", (), "tensorflow"),
    Format("tfjs", (), "tfjs", first=frozenset(b"{ \n")),
    Format("pickle", (".pkl", ".pickle"), "plain_pickle", first=frozenset(b"\x80")),
    Format("npy", (".npy",), "numpy_files", "NPY_READER", first=frozenset(b"\x93")),
    Format("npz", (".npz",), "numpy_files", "NPZ_READER", first=frozenset(b"P")),
    Format("flax", (".msgpack",), "flax", first=_MAP),
)


def reader_for(source: Source) -> Reader:
    """The reader that recognises the bytes of ``source``.

    Where none does, a usual suffix still chooses the reader, so that its error can say what is wrong. Raises
    ``UnsupportedFormatError``, and ``MalformedFileError`` for an empty file.
    """
    if not source.size:
        raise MalformedFileError("the file is empty", path=source.path)
    if source.size < 1024 and bytes(source.read(0, source.size)).startswith(b"version https://git-lfs"):
        hint = "fetch the file itself: git lfs pull"
        raise UnsupportedFormatError("a pointer of Git LFS, not the file itself", path=source.path, hint=hint)
    reader = recognised(source)
    if reader is not None:
        return reader
    usual = next((one for one in FORMATS if source.path.lower().endswith(one.suffixes)), None)
    if usual is None:
        names = ", ".join(one.name for one in FORMATS)
        raise UnsupportedFormatError("not in a format that can be read", path=source.path, hint=f"formats: {names}")
    return usual.reader


def recognised(source: Source) -> Reader | None:
    """The reader that recognises the bytes of ``source``, or None."""
    first = bytes(source.read(0, min(1, source.size)))
    readers = (one.reader for one in FORMATS if one.first is None or not one.first.isdisjoint(first))
    return next((reader for reader in readers if reader.recognises(source)), None)
