"""A bounded, unnamed temporary file for what has to be unpacked: nothing is written beside a suspect.

Compressed bytes can only be unpacked from front to back, and tensors are read from anywhere. What was unpacked once is
kept, and read again from here.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError
from fingerprint.source import check_range

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SCRATCH = 64 << 30
"""Most bytes that are unpacked for one archive."""
MIN_FREE = 512 << 20
"""Bytes that are left free in the temporary folder."""
_CHECKED = 32 << 20
"""Bytes after which the free space is looked at again."""
_SMALL = 1 << 20
"""What unpacks to at most this many bytes is kept in memory."""


class Scratch:
    """Regions of one temporary file, which has no name and goes with the process at the latest.

    Threads may share it.
    """

    def __init__(self, path: str) -> None:
        """``path`` is that of the archive, for messages."""
        self.path = path
        self._end = 0
        self._written = _CHECKED
        self._descriptor = -1
        self._lock = threading.Lock()

    def reserve(self, size: int) -> int:
        """The offset of a new region of ``size`` bytes, which takes space only as it is written."""
        with self._lock:
            start = self._end
            self._end += size
        if start + size > MAX_SCRATCH:
            message = f"it unpacks to more than {MAX_SCRATCH} bytes"
            raise LimitExceededError(message, path=self.path, hint="unpack it and give the folder")
        return start

    def write(self, offset: int, data: bytes) -> None:
        """Writes into a region. Raises ``LimitExceededError`` before the temporary folder is full."""
        try:
            descriptor = self._opened()
            self._written += len(data)
            if self._written >= _CHECKED:
                self._written = 0
                status = os.fstatvfs(descriptor)
                if status.f_bavail * status.f_frsize < MIN_FREE:
                    message = f"unpacking it would leave less than {MIN_FREE >> 20} MiB in the temporary folder"
                    raise LimitExceededError(message, path=self.path, hint="set TMPDIR to a larger one")
            view = memoryview(data)
            while view:
                done = os.pwrite(descriptor, view, offset)
                view, offset = view[done:], offset + done
        except OSError as error:
            raise InputError(f"cannot be unpacked into a temporary file: {error}", path=self.path) from error

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were written before."""
        pieces = []
        while length:
            piece = os.pread(self._opened(), length, offset)
            if not piece:
                raise InputError("the temporary file was shortened", path=self.path)
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _opened(self) -> int:
        with self._lock:
            if self._descriptor < 0:
                import tempfile  # here, as few scans unpack anything

                with tempfile.TemporaryFile(prefix="weightprint-") as file:
                    self._descriptor = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._descriptor)
            return self._descriptor


class UnpackedSource:
    """A stream of known length that is unpacked as far as it is read, and kept."""

    def __init__(self, path: str, size: int, pieces: Iterator[bytes], scratch: Scratch) -> None:
        """``pieces`` are to be ``size`` bytes together; the iterator raises ``InputError`` where they are damaged."""
        self.path = path
        self.size = size
        self._pieces = pieces
        self._position = 0
        self._lock = threading.Lock()
        self._memory = bytearray() if size <= _SMALL else None
        self._scratch = scratch
        self._start = 0 if self._memory is not None else scratch.reserve(size)

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        with self._lock:
            while self._position < offset + length:
                self._unpack()
            if self._memory is not None:
                return memoryview(bytes(self._memory[offset : offset + length]))
        return memoryview(self._scratch.read(self._start + offset, length))

    def close(self) -> None:
        """Nothing to give up: the archive's source is closed by its owner, and the scratch goes with the last view."""

    def _unpack(self) -> None:
        piece = next(self._pieces, b"")[: self.size - self._position]
        if not piece:
            raise MalformedFileError("it unpacks to less than it claims", path=self.path)
        if self._memory is not None:
            self._memory += piece
        else:
            self._scratch.write(self._start + self._position, piece)
        self._position += len(piece)
