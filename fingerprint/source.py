"""Bytes by range: the one place where files are opened.

A file is mapped into memory and handed out as read-only windows; nothing is copied. Only regular files are opened:
folders, pipes, sockets and devices are refused before they are opened, so that none can block or run on for ever.

A mapped file that another program shortens raises SIGBUS when the lost pages are touched, which no Python program
survives. ``FileSource.read`` therefore asks for the file's size before every window; what remains is the moment between
that question and the use of the window. Copy a file first if others may shorten it while it is read.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import threading
import weakref
from collections import OrderedDict
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


class Section:
    """Part of another source, as a source of its own: a member of an archive, a stream inside a file."""

    def __init__(self, source: Source, offset: int, size: int, path: str | None = None) -> None:
        """``size`` bytes of ``source`` from ``offset`` on. Raises ``MalformedFileError`` if it has fewer."""
        check_range(source, offset, size)
        self.path = source.path if path is None else path
        self.size = size
        self._source = source
        self._offset = offset

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        return self._source.read(self._offset + offset, length)

    def close(self) -> None:
        """Nothing to give up: the whole is closed by its owner."""


class FileSource:
    """A regular file, mapped read-only.

    At most ``MAX_MAPPED`` files are mapped at a time, since each map holds a descriptor: a checkpoint of a thousand
    shards needs no thousand descriptors. A file is mapped again when it is read again; if another one has taken its
    place by then, ``read`` raises.
    """

    def __init__(self, path: str | os.PathLike[str], shown: str | None = None) -> None:
        """Opens ``path`` (called ``shown`` in messages). Raises ``InputError`` if it is no readable regular file."""
        self._real = os.fspath(path)
        self.path = self._real if shown is None else shown
        self._map: mmap.mmap | None = None
        self._closed = False
        descriptor = _open_regular(self._real, self.path)
        try:
            status = os.fstat(descriptor)
            self.size = status.st_size
            self._identity = (status.st_dev, status.st_ino, status.st_size)
            if self.size:  # an empty file cannot be mapped, nor need it be
                self._attach(descriptor)
        finally:
            os.close(descriptor)

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        if not length:
            return memoryview(b"")
        with _lock:
            mapped = self._mapped()
            if mapped.size() < offset + length:
                raise MalformedFileError(
                    "the file was shortened while it was read", path=self.path, offset=offset, hint="read a copy of it"
                )
            return memoryview(mapped)[offset : offset + length]

    def expect(self, offset: int, length: int) -> None:
        """Asks the system to read what of these bytes is not in its cache, since ``read`` is about to want them.

        A hint: it does not wait for the bytes, never fails, and takes microseconds for each MB that is there.
        """
        if _NOWAIT is None:
            return
        end = min(offset + length, self.size)
        with contextlib.suppress(InputError, OSError):
            descriptor = _open_regular(self._real, self.path)
            try:
                for start in range(offset, end, _LOOKED_AT):
                    if not _is_cached(descriptor, start):
                        for asked in range(start, min(start + _LOOKED_AT, end), _ASKED_FOR):
                            os.posix_fadvise(descriptor, asked, _ASKED_FOR, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Unmaps the file, or leaves that to the last window on it."""
        with _lock:
            self._closed = True
            self._detach()

    def _mapped(self) -> mmap.mmap:
        if self._closed:
            raise InputError("read after it was closed", path=self.path)
        if self._map is None:
            descriptor = _open_regular(self._real, self.path)
            try:
                status = os.fstat(descriptor)
                if (status.st_dev, status.st_ino, status.st_size) != self._identity:
                    raise InputError("the file was replaced while it was read", path=self.path)
                return self._attach(descriptor)
            finally:
                os.close(descriptor)
        _attached.move_to_end(id(self))
        return self._map

    def _attach(self, descriptor: int) -> mmap.mmap:
        try:
            self._map = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be mapped into memory: {error}", path=self.path) from error
        with _lock:
            _attached[id(self)] = weakref.ref(self)
            while len(_attached) > MAX_MAPPED:
                _, oldest = _attached.popitem(last=False)
                if (source := oldest()) is not None:
                    source._detach()
        return self._map

    def _detach(self) -> None:
        _attached.pop(id(self), None)
        if self._map is not None:
            # Windows in use keep the map alive; it goes with the last of them.
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_LOOKED_AT = 1 << 22
"""Bytes of which all are taken to be in the cache if the first is."""
_ASKED_FOR = 1 << 17
"""Bytes that are asked for at a time: of more Linux reads no more than it would read ahead by itself."""


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether the byte there can be read without waiting, as far as the file system can tell."""
    try:
        os.preadv(descriptor, [bytearray(1)], offset, _NOWAIT or 0)
    except OSError:
        return False
    return True


MAX_MAPPED = 64
_lock = threading.RLock()
_attached: OrderedDict[int, weakref.ref[FileSource]] = OrderedDict()
"""The mapped files, the one read longest ago first."""


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


def stat_path(path: str, shown: str | None = None) -> os.stat_result:
    """``os.stat`` with this project's errors, in which the path is called ``shown``."""
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        raise os_error(error, shown or path) from error


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


_FLAGS = os.O_RDONLY
for _flag in ("O_BINARY", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK"):  # those that the platform has
    _FLAGS |= getattr(os, _flag, 0)


def _open_regular(path: str, shown: str) -> int:
    # Asked before opening, since opening a device can already do something; and again after, since it may be another.
    _refuse_irregular(stat_path(path, shown).st_mode, shown)
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        raise os_error(error, shown) from error
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode, shown)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_irregular(mode: int, shown: str) -> None:
    if not stat.S_ISREG(mode):
        what = next((name for test, name in _KINDS if test(mode)), "not a regular file")
        raise UnsupportedFormatError(f"{what}, where a regular file is wanted", path=shown)
