"""What is shared by everything that is fetched for one checkpoint: a record, a cache of pages, threads that wait."""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from fingerprint.errors import InputError
from fingerprint.readers.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from fingerprint.remote.options import RemoteOptions

CACHE_BYTES: Final = 64 << 20
"""Bytes of pages that are kept for all files of a checkpoint together."""
WHOLE_BYTES: Final = 128 << 20
"""Bytes of whole files, from servers without ranges, that are held in memory for a checkpoint."""
PROGRESS: Final = 1 << 16
"""Bytes that make a try count as no failure, though the connection was lost behind them."""
MAX_WAIT: Final = 60.0
"""Longest pause, in seconds, that a server may ask for."""


class Transfer:
    """The fetching of one checkpoint; ``close`` gives it all up."""

    def __init__(self, options: RemoteOptions) -> None:
        self.options = options
        self.pages = PageCache(CACHE_BYTES)
        self.pool = ThreadPoolExecutor(options.parallel, "fetch")
        self.closed = False
        self._closing: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._bytes = self._requests = self._retries = 0
        self._room = WHOLE_BYTES
        self._scratch: Scratch | None = None

    def hold(self, size: int) -> bool:
        """Whether a whole file of ``size`` bytes may be held in memory too; counts it if so."""
        with self._lock:
            if size > self._room:
                return False
            self._room -= size
            return True

    @property
    def scratch(self) -> Scratch:
        """The temporary file that what is downloaded goes to."""
        with self._lock:
            if self._scratch is None:
                self._scratch = Scratch("downloads")
            return self._scratch

    @property
    def bytes(self) -> int:
        """Bytes of answers that were received, what was asked for twice counted twice; without headers."""
        return self._bytes

    @property
    def requests(self) -> int:
        """Requests that were made, redirected and repeated ones among them."""
        return self._requests

    @property
    def retries(self) -> int:
        """Tries that failed and were repeated."""
        return self._retries

    def count(self, *, received: int = 0, requests: int = 0, retries: int = 0) -> None:
        """Adds to the record, from any thread."""
        with self._lock:
            self._bytes += received
            self._requests += requests
            self._retries += retries

    def on_close(self, action: Callable[[], None]) -> None:
        """Have ``action`` called when the fetching ends."""
        self._closing.append(action)

    def close(self) -> None:
        """Ends what is under way, as soon as it notices."""
        self.closed = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        for action in self._closing:
            action()
        self._closing.clear()


class InterruptedTransferError(Exception):
    """A try failed for a reason that may pass: the message says which; ``wait``: seconds that the server asked for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Tries(Struct):
    """Counts the tries of one fetch, and waits between them."""

    transfer: Transfer
    path: str
    length: int
    _in_row: int = 0
    _left: int = 0

    def __post_init__(self) -> None:
        # Progress excuses a failure, but not without end.
        self._left = self.transfer.options.attempts + self.length // PROGRESS

    def failed(self, problem: InterruptedTransferError, progress: int = 0) -> None:
        """Waits before the next try, or raises ``InputError`` if there is to be none."""
        options = self.transfer.options
        self._in_row = 1 if progress >= PROGRESS else self._in_row + 1
        self._left -= 1
        if self.transfer.closed:
            raise InputError("fetching was given up", path=self.path)
        if problem.wait is not None and problem.wait > MAX_WAIT:
            text = f"{problem}; the server asks to wait {problem.wait:.0f} seconds"
            raise InputError(text, path=self.path, hint="try again later")
        if self._in_row >= options.attempts or self._left <= 0:
            raise InputError(f"{problem}, {self._in_row} times in a row", path=self.path, hint="try again later")
        self.transfer.count(retries=1)
        # A connection that was kept and has been closed is simply opened anew: no wait before the second try.
        pause = options.backoff * 2.0 ** (self._in_row - 2) * random.uniform(0.75, 1.25) if self._in_row > 1 else 0.0  # noqa: S311 - spreads load
        pause = min(pause, MAX_WAIT) if problem.wait is None else problem.wait
        if pause > 0:
            time.sleep(pause)


class PageCache:
    """Pages of files, those used longest ago forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._pages: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: int, page: int) -> bytes | None:
        """A page of a file, if it is held."""
        with self._lock:
            found = self._pages.get((file, page))
            if found is not None:
                self._pages.move_to_end((file, page))
            return found

    def put(self, file: int, page: int, data: bytes) -> None:
        """Keeps a page."""
        with self._lock:
            self._held += len(data) - len(self._pages.pop((file, page), b""))
            self._pages[file, page] = data
            while self._held > self._limit:
                _, oldest = self._pages.popitem(last=False)
                self._held -= len(oldest)
