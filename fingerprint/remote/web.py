"""Files of web servers: opened with their first bytes, read by range, and kept to one state of the file."""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from fingerprint.errors import InputError, InputNotFoundError, LimitExceededError, MalformedFileError
from fingerprint.readers.scratch import MAX_SCRATCH
from fingerprint.remote.pages import HEAD, RangedSource
from fingerprint.remote.session import Reply, Session, without_query
from fingerprint.remote.transfer import InterruptedTransferError, Tries
from fingerprint.source import MemorySource, check_range

if TYPE_CHECKING:
    from fingerprint.readers.scratch import Scratch
    from fingerprint.remote.folders import Listing
    from fingerprint.source import Source

SMALL: Final = 8 << 20
"""A file of at most this many bytes is taken whole from a server that knows no ranges."""
_NO_RANGES: Final = "the server gives whole files only, no ranges of bytes"


def open_file(session: Session, url: str, shown: str) -> Source:
    """The file at ``url``, called ``shown``. Raises ``InputError``.

    One request tells its size and whether the server knows ranges, and brings the beginning.
    """
    tries = Tries(session.transfer, shown, 0)
    while True:
        try:
            with session.get(url, {"Range": f"bytes=0-{HEAD - 1}"}, shown=shown) as reply:
                if reply.status == 206:
                    return _ranged(session, url, shown, reply)
                if reply.is_empty_file:
                    return MemorySource(b"", shown)
                if reply.status != 200:
                    raise MalformedFileError("the server refuses to give the first bytes", path=shown)
                if reply.length is None or reply.length <= SMALL:
                    data = b"".join(reply.pieces(SMALL + 1))
                    _check_whole(reply, len(data))
                    if len(data) <= SMALL and session.transfer.hold(len(data)):
                        return MemorySource(data, shown)
                if not session.options.download:
                    hint = "--download fetches it whole, into a temporary file"
                    raise InputError(_NO_RANGES, path=shown, hint=hint)
            return _downloaded(session, url, shown)
        except InterruptedTransferError as problem:
            tries.failed(problem)


def _check_whole(reply: Reply, received: int) -> None:
    if reply.length is not None and received < reply.length:
        raise InterruptedTransferError("the connection was lost")


def _ranged(session: Session, url: str, shown: str, reply: Reply) -> RangedSource:
    part = reply.part
    if part is None or part[0] != 0 or part[1] > HEAD:
        raise MalformedFileError("the server answers with another range than was asked for", path=shown)
    _, stop, size = part
    if size is None or size < stop or (stop < HEAD and size != stop):
        raise MalformedFileError("the server does not say how large the file is", path=shown)
    head = bytearray()
    try:
        for piece in reply.pieces(stop):
            head += piece
    except InterruptedTransferError:
        pass  # what is left of it is asked for when it is needed
    file = _WebFile(session, url, shown, size, reply)
    return RangedSource(shown, size, file.fetch, session.transfer, bytes(head))


class _WebFile:
    """One state of one file: its size, and what the server says that changes with its contents."""

    def __init__(self, session: Session, url: str, shown: str, size: int, first: Reply) -> None:
        self._session = session
        self._url = url
        self._shown = shown
        self._size = size
        self._first = first
        self._validator = first.validator
        self._target = first.url
        self._lock = threading.Lock()

    def fetch(self, offset: int, length: int) -> bytes:
        """Exactly those bytes: a lost connection is taken up where it broke off. Raises ``InputError``."""
        received = bytearray()
        tries = Tries(self._session.transfer, self._shown, length)
        while len(received) < length:
            before = len(received)
            try:
                self._more(received, offset, length)
            except InterruptedTransferError as problem:
                tries.failed(problem, len(received) - before)
        return bytes(received)

    def _more(self, received: bytearray, offset: int, length: int) -> None:
        start, stop = offset + len(received), offset + length
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if self._validator:
            headers["If-Range"] = self._validator
        with self._asked(headers) as reply:
            self._check(reply, start, stop)
            for piece in reply.pieces(stop - start):
                received += piece
            if len(received) < length:  # also by a server that gives a little at a time
                raise InterruptedTransferError("the connection was lost")

    def _asked(self, headers: dict[str, str]) -> Reply:
        """Asks where the last redirect led; what was signed for a while is asked for anew at the first place."""
        target = self._target
        if target != self._url:
            try:
                return self._session.get(target, headers, shown=self._shown)
            except InputError:
                with self._lock:
                    self._target = self._url
        reply = self._session.get(self._url, headers, shown=self._shown)
        with self._lock:
            self._target = reply.url
        return reply

    def _check(self, reply: Reply, start: int, stop: int) -> None:
        """Raises ``InputError`` unless the answer is (the beginning of) those bytes of the file as it was first."""
        part = reply.part
        if (
            reply.is_of_another_state(self._first)
            or reply.status == 416
            or (part is not None and part[2] not in {None, self._size})
        ):
            raise InputError("the file was replaced while it was read", path=self._shown, hint="try again")
        if reply.status != 206:
            reason = "the file was replaced while it was read" if self._validator else _NO_RANGES
            raise InputError(reason, path=self._shown, hint="try again")
        if part is None or part[0] != start or part[1] > stop:
            message = "the server answers with another range than was asked for"
            raise MalformedFileError(message, path=self._shown, offset=start)


def _downloaded(session: Session, url: str, shown: str) -> Source:
    pieces: list[tuple[int, int, int]] = []
    scratch, size = session.transfer.scratch, 0
    with session.get(url, {}, shown=shown) as reply:
        if reply.status != 200:
            raise MalformedFileError(f"status {reply.status} to a plain question", path=shown)
        if (reply.length or 0) > MAX_SCRATCH:
            raise LimitExceededError(f"{reply.length} bytes; {MAX_SCRATCH} are downloaded", path=shown)
        for piece in reply.pieces(None):
            try:
                start = scratch.reserve(len(piece))
                scratch.write(start, piece)
            except InputError as error:
                error.path = shown
                raise
            if pieces and pieces[-1][2] == start:
                pieces[-1] = (*pieces[-1][:2], start + len(piece))
            else:
                pieces.append((size, start, start + len(piece)))
            size += len(piece)
        _check_whole(reply, size)
    return _Downloaded(shown, size, pieces, scratch)


class _Downloaded:
    """A file that was downloaded whole. Those that come at the same time share a temporary file, in pieces."""

    def __init__(self, path: str, size: int, pieces: list[tuple[int, int, int]], scratch: Scratch) -> None:
        """``pieces``: where each begins in the file, and its beginning and end in ``scratch``."""
        self.path = path
        self.size = size
        self._begins = [begin for begin, _, _ in pieces]
        self._pieces = pieces
        self._scratch = scratch

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        joined: list[bytes] = []
        place = bisect_right(self._begins, offset) - 1
        while length:
            begin, start, stop = self._pieces[place]
            first = start + offset - begin
            joined.append(self._scratch.read(first, min(length, stop - first)))
            offset, length, place = offset + len(joined[-1]), length - len(joined[-1]), place + 1
        return memoryview(b"".join(joined))

    def close(self) -> None:
        """The temporary file goes with the last that reads from it."""


class WebStore:
    """Files below a URL, by name: a web server does not list them."""

    def __init__(self, session: Session, base: str, query: str = "") -> None:
        """``base`` ends with a slash; ``query`` belongs to the URL that was given, and is sent for every file."""
        self._session = session
        self._base = base
        self._query = f"?{query}" if query else ""

    def listing(self, _prefix: str) -> Listing | None:
        """Nothing is known."""
        return None

    def open(self, name: str) -> Source:
        """The file ``name``, whose parts are taken literally. Raises ``InputError``."""
        if any(part in {"", ".", ".."} for part in name.split("/")):
            raise InputNotFoundError("no name of a file", path=self.shown(name))
        return open_file(self._session, self._base + quote(name) + self._query, self.shown(name))

    def shown(self, name: str) -> str:
        """What the file or folder ``name`` is called in messages."""
        return without_query(self._base) + name
