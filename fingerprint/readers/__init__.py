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

    ``name`` and ``suffixes`` are those of the reader.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    attribute: str = "READER"

    @property
    def reader(self) -> Reader:
        """The reader itself."""
        found: Reader = getattr(import_module(f"fingerprint.readers.{self.module}"), self.attribute)
        return found


GGUF: Final = "gguf"
FORMATS: Final = (
    Format("safetensors", (".safetensors",), "safetensors"),
    Format("pytorch", (".pt", ".pth", ".bin", ".ckpt"), "pytorch"),
    Format(GGUF, (".gguf",), "gguf"),
    Format("onnx", (".onnx",), "onnx"),
    Format("coreml", (".mlmodel",), "coreml"),
    Format("keras", (".h5", ".hdf5", ".keras"), "keras"),
    Format("tflite", (".tflite",), "tflite"),
    Format("tensorflow", (), "tensorflow"),
    Format("tfjs", (), "tfjs"),
    Format("pickle", (".pkl", ".pickle"), "plain_pickle"),
    Format("npy", (".npy",), "numpy_files", "NPY_READER"),
    Format("npz", (".npz",), "numpy_files", "NPZ_READER"),
    Format("flax", (".msgpack",), "flax"),
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
    readers = (one.reader for one in FORMATS)
    return next((reader for reader in readers if reader.recognises(source)), None)
