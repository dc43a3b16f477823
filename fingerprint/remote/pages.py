"""Remote bytes as a ``Source``: small reads through pages that are kept, large ones fetched as they are asked for."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError
from fingerprint.source import check_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from fingerprint.remote.transfer import Transfer

PAGE: Final = 1 << 12
"""Bytes of a page. Rows of a matrix lie far apart: larger pages would mostly hold what nobody wants."""
HEAD: Final = 1 << 16
"""Bytes that are fetched of the beginning of a file at once: it holds most headers whole."""
PAGED: Final = 1 << 16
"""Longest read that goes through the pages."""
PIECE: Final = 4 << 20
"""Longer reads are fetched in pieces of this size, several at once."""
MOST: Final = 256 << 20
"""Longest read: a mapped file lends a window of any size, a fetched one takes memory."""
_MOST_AHEAD: Final = 256
_numbers = itertools.count()

Pages = dict[int, bytes]


class RangedSource:
    """A file that is fetched by range, as ``fingerprint.source.Source``.

    ``fetch(offset, length)`` gives exactly those bytes or raises ``InputError``. Reads that go on where the last one
    ended fetch ahead, twice as much each time: headers are read in small steps. A page that another thread is fetching
    is waited for.
    """

    def __init__(
        self, path: str, size: int, fetch: Callable[[int, int], bytes], transfer: Transfer, head: bytes = b""
    ) -> None:
        """``head``: bytes of the beginning that are known already."""
        self.path = path
        self.size = size
        self._fetch = fetch
        self._transfer = transfer
        self._number = next(_numbers)
        self._lock = threading.Lock()
        self._coming: dict[int, Future[Pages]] = {}
        self._next, self._ahead = -1, 1
        whole = len(head) if len(head) == size else len(head) - len(head) % PAGE
        self._keep(0, head[:whole])
        self._next = -(-whole // PAGE)

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        if not length:
            return memoryview(b"")
        if self._transfer.closed:
            raise InputError("read after it was closed", path=self.path)
        if length > MOST:
            message = f"{length} bytes are wanted in one piece; {MOST} are fetched"
            raise LimitExceededError(message, path=self.path, offset=offset, hint="download it and give the file")
        if length > PAGED:
            return memoryview(self._large(offset, length)).toreadonly()
        first, stop = offset // PAGE, -(-(offset + length) // PAGE)
        joined = b"".join(self._paged(first, stop))
        start = offset - first * PAGE
        return memoryview(joined)[start : start + length]

    def close(self) -> None:
        """Nothing to give up: pages and connections are the whole checkpoint's."""

    def _large(self, offset: int, length: int) -> bytes | bytearray:
        stop = offset + length
        if length <= PIECE:
            return self._exactly(offset, length)
        starts = range(offset, stop, PIECE)
        pieces = self._transfer.pool.map(lambda at: self._exactly(at, min(PIECE, stop - at)), starts)
        joined = bytearray()
        for piece in pieces:
            joined += piece
        return joined

    def _exactly(self, offset: int, length: int) -> bytes:
        data = self._fetch(offset, length)
        if len(data) != length:
            message = f"{len(data)} bytes came where {length} were wanted"
            raise MalformedFileError(message, path=self.path, offset=offset)
        return data

    def _paged(self, first: int, stop: int) -> list[bytes]:
        got: Pages = {}
        while True:
            with self._lock:
                for page in range(first, stop):
                    if page not in got and (held := self._transfer.pages.get(self._number, page)) is not None:
                        got[page] = held
                missing = [page for page in range(first, stop) if page not in got]
                if not missing:
                    return [got[page] for page in range(first, stop)]
                coming = next((self._coming[page] for page in missing if page in self._coming), None)
                if coming is None:
                    mine, begin, end = self._claim(missing)
            if coming is not None:
                got |= {page: data for page, data in coming.result().items() if first <= page < stop}
                continue
            got |= self._fetched(mine, begin, end)

    def _claim(self, missing: list[int]) -> tuple[Future[Pages], int, int]:
        """Announces the pages that this thread fetches: what is missing, and some ahead."""
        begin, end = missing[0], missing[-1] + 1
        self._ahead = min(2 * self._ahead, _MOST_AHEAD) if begin == self._next else 1
        last = -(-self.size // PAGE)
        reach = min(max(end, begin + (HEAD // PAGE if begin == 0 else self._ahead)), last)
        while end < reach and end not in self._coming and self._transfer.pages.get(self._number, end) is None:
            end += 1
        self._next = end
        mine: Future[Pages] = Future()
        self._coming |= dict.fromkeys(range(begin, end), mine)
        return mine, begin, end

    def _fetched(self, mine: Future[Pages], begin: int, end: int) -> Pages:
        start, stop = begin * PAGE, min(end * PAGE, self.size)
        try:
            pages = self._keep(begin, self._exactly(start, stop - start))
        except BaseException as error:
            mine.set_exception(error if isinstance(error, Exception) else InputError("interrupted", path=self.path))
            raise
        else:
            mine.set_result(pages)
            return pages
        finally:
            with self._lock:
                for page in range(begin, end):
                    self._coming.pop(page, None)

    def _keep(self, begin: int, data: bytes) -> Pages:
        pages = {begin + at // PAGE: data[at : at + PAGE] for at in range(0, len(data), PAGE)}
        for page, held in pages.items():
            self._transfer.pages.put(self._number, page, held)
        return pages
