"""The formats that can be read, in the order in which they are tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fingerprint.errors import MalformedFileError, UnsupportedFormatError
from fingerprint.readers import (
    coreml,
    flax,
    gguf,
    keras,
    numpy_files,
    onnx,
    plain_pickle,
    pytorch,
    safetensors,
    tensorflow,
    tfjs,
    tflite,
)

if TYPE_CHECKING:
    from fingerprint.readers.base import Reader
    from fingerprint.source import Source

READERS: tuple[Reader, ...] = (
    safetensors.READER,
    pytorch.READER,
    gguf.READER,
    onnx.READER,
    coreml.READER,
    keras.READER,
    tflite.READER,
    tensorflow.READER,
    tfjs.READER,
    plain_pickle.READER,
    numpy_files.NPY_READER,
    numpy_files.NPZ_READER,
    flax.READER,
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
    reader = recognised(source) or next((r for r in READERS if source.path.lower().endswith(r.suffixes)), None)
    if reader is None:
        names = ", ".join(reader.name for reader in READERS)
        raise UnsupportedFormatError("not in a format that can be read", path=source.path, hint=f"formats: {names}")
    return reader


def recognised(source: Source) -> Reader | None:
    """The reader that recognises the bytes of ``source``, or None."""
    return next((reader for reader in READERS if reader.recognises(source)), None)
