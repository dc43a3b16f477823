"""Files that are written whole or not at all, and read within a bound."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from fingerprint.errors import InputNotFoundError, MalformedSignatureError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: there is the old file, if any, or the new one; raises ``UsageError``."""
    with written_atomically(path) as file:
        file.write(data)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path`` to write to; on leaving it is flushed to the disk and renamed to ``path``.

    Raises ``UsageError`` if the file cannot be written; nothing is left behind by an error.
    """
    temporary = path.parent / f".{path.name[:100]}.{os.urandom(8).hex()}.tmp"
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{path}: the file cannot be written: {error.strerror}") from None


def write_flushed(path: Path, data: bytes) -> None:
    """Write ``data`` and return when the disk has it; raises ``OSError``."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_file(path: Path) -> None:
    """Return when the disk has the contents of a file; raises ``OSError``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Return when the disk has the names in ``folder`` (nothing to do where folders cannot be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there; return when the disk has them. Raises ``OSError``."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises ``InputNotFoundError`` if it cannot be read and ``MalformedSignatureError`` if it is larger.
    """
    try:
        if not path.is_file():
            raise InputNotFoundError("there is no such file", path=str(path))
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(limit + 1) if size <= limit else b""
    except OSError as error:
        raise InputNotFoundError(f"the file cannot be read: {error.strerror}", path=str(path)) from None
    if max(size, len(data)) > limit:
        raise MalformedSignatureError(f"{path}: the file is larger than the {limit} bytes that its format allows")
    return data
