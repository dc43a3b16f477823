"""Bytes by range: the one place where files are opened.

A file is mapped into memory and handed out as read-only windows; nothing is copied. Only regular files are opened:
folders, pipes, sockets and devices are refused before they are opened, so that none can block or run on for ever.

A mapped file that another program shortens raises SIGBUS when the lost pages are touched, which no Python program
survives. ``FileSource.read`` therefore asks for the file's size before every window; what remains is the moment between
that question and the use of the window. Copy a file first if others may shorten it while it is read.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import Protocol, Self

from fingerprint.errors import InputError, InputNotFoundError, MalformedFileError, UnsupportedFormatError


class Source(Protocol):
    """Bytes of known number that are read by range."""

    @property
    def path(self) -> str:
        """Where the bytes come from, for messages."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def read(self, offset: int, length: int) -> memoryview:
        """The ``length`` bytes at ``offset``, read-only. Raises ``InputError`` if they cannot be had."""

    def close(self) -> None:
        """Gives up what the source holds; windows handed out before stay valid."""


class MemorySource:
    """Bytes that are in memory already: unpacked members of archives, and tests."""

    def __init__(self, data: bytes, path: str = "<memory>") -> None:
        self.path = path
        self.size = len(data)
        self._data = memoryview(data).toreadonly()

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Nothing to give up."""


class FileSource:
    """A regular file, mapped read-only."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens ``path``. Raises ``InputError`` if it is not a readable regular file."""
        self.path = os.fspath(path)
        descriptor = _open_regular(self.path)
        try:
            self.size = os.fstat(descriptor).st_size
            # An empty file cannot be mapped.
            self._map = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ) if self.size else None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be mapped into memory: {error}", path=self.path) from error
        finally:
            os.close(descriptor)

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        if not length or self._map is None:
            return memoryview(b"")
        if self._map.size() < offset + length:
            raise MalformedFileError(
                "the file was shortened while it was read", path=self.path, offset=offset, hint="read a copy of it"
            )
        return memoryview(self._map)[offset : offset + length]

    def close(self) -> None:
        """Unmaps the file, or leaves that to the last window on it."""
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                self._map = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_range(source: Source, offset: int, length: int) -> None:
    """Raises ``MalformedFileError`` unless the range lies inside the source."""
    if offset < 0 or length < 0 or offset + length > source.size:
        raise MalformedFileError(
            f"{length} bytes are wanted where the file has {max(source.size - offset, 0)}",
            path=source.path,
            offset=offset,
            hint="is the file truncated?",
        )


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def stat_path(path: str) -> os.stat_result:
    """``os.stat`` with this project's errors."""
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        raise os_error(error, path) from error


def os_error(error: OSError | ValueError, path: str) -> InputError:
    """The error of this project that says what the operating system said about ``path``."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InputNotFoundError("no such file or folder", path=path)
    if isinstance(error, PermissionError):
        return InputError("permission denied", path=path)
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return InputError("symbolic links that lead in a circle", path=path)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"cannot be read: {reason}", path=path)


def _open_regular(path: str) -> int:
    # Asked before opening, since opening a device can already do something; and again after, since it may be another.
    _refuse_irregular(stat_path(path).st_mode, path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise os_error(error, path) from error
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_irregular(mode: int, path: str) -> None:
    if not stat.S_ISREG(mode):
        what = next((name for test, name in _KINDS if test(mode)), "not a regular file")
        raise UnsupportedFormatError(f"{what}, where a regular file is wanted", path=path)
