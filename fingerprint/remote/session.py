"""HTTP to servers that may be hostile: where a request may go, what is sent along, how long an answer may take.

Every connection is one of ``connections``, so that a name that resolves anew, or a redirect, leads nowhere else.
Redirects are followed here, one by one. An answer is never decoded.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import sys
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

from msgspec import Struct

from fingerprint.errors import InputError, InputNotFoundError, LimitExceededError, MalformedFileError, clipped
from fingerprint.remote.transfer import InterruptedTransferError, Tries

try:
    import urllib3
    from urllib3.exceptions import HTTPError, LocationParseError

    from fingerprint.remote.connections import connections
except ImportError as _error:
    raise InputError("urllib3 is not installed", hint="pip install 'weightprint[remote]'") from _error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.remote.transfer import Transfer

MAX_REDIRECTS: Final = 5
MAX_URL: Final = 8192
_PIECE: Final = 1 << 20
_DRAINED: Final = 1 << 13
_REDIRECTS: Final = {301, 302, 303, 307, 308}
_TEMPORARY: Final = {408, 425, 429, 500, 502, 503, 504}
_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_EMPTY: Final = re.compile(r"bytes \*/(\d{1,19})")

Origin = tuple[str, str, int]


def origin_of(url: str) -> Origin:
    """Scheme, host and port. Raises ``InputError`` for what is no HTTP URL, and for one with credentials in it."""
    if len(url) > MAX_URL or not url.isprintable() or " " in url:
        raise MalformedFileError("no URL: too long, or with characters that none has", path=clipped(without_query(url)))
    try:
        parsed = urllib3.util.parse_url(url)
        scheme, host, port = (parsed.scheme or "").lower(), (parsed.host or "").lower(), parsed.port
    except LocationParseError as error:
        raise MalformedFileError("no URL that can be understood", path=clipped(without_query(url))) from error
    if scheme not in {"http", "https"} or not host:
        raise MalformedFileError("no URL of HTTP", path=clipped(without_query(url)))
    if parsed.auth is not None:
        raise InputError("a user name or password in a URL is not taken", path=f"{scheme}://…@{host}")
    return scheme, host, port or {"http": 80, "https": 443}[scheme]


def without_query(url: str) -> str:
    """A URL as messages may show it: a query often is a signature that gives access."""
    return url.partition("#")[0].partition("?")[0]


class Reply(Struct):
    """An answer whose body is still to be read; ``url`` is the one that gave it, after redirects."""

    url: str
    status: int
    response: urllib3.BaseHTTPResponse
    session: Session

    @property
    def validator(self) -> str:
        """What changes when the file does: a strong ETag, or nothing."""
        tag = self.response.headers.get("ETag", "")
        return "" if len(tag) > 256 or not tag.startswith('"') else tag

    def is_of_another_state(self, first: Reply) -> bool:
        """Whether the file was replaced since ``first``: another ETag, or, without one, another date of change."""
        if self.validator and first.validator:
            return self.validator != first.validator
        dates = {reply.response.headers.get("Last-Modified", "") for reply in (first, self)}
        return len(dates) > 1 and "" not in dates

    @property
    def length(self) -> int | None:
        """Bytes of the body as claimed."""
        text = self.response.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    @property
    def part(self) -> tuple[int, int, int | None] | None:
        """Of a part of a file: its first byte, the one behind its last, and the size of the file."""
        found = _RANGE.fullmatch(self.response.headers.get("Content-Range", "").strip())
        if found is None or int(found[2]) < int(found[1]):
            return None
        return int(found[1]), int(found[2]) + 1, None if found[3] == "*" else int(found[3])

    @property
    def is_empty_file(self) -> bool:
        """Whether a range was refused because the file has no byte."""
        found = _EMPTY.fullmatch(self.response.headers.get("Content-Range", "").strip())
        return self.status == 416 and found is not None and int(found[1]) == 0

    def pieces(self, length: int | None) -> Iterator[bytes]:
        """The body as it comes, at most ``length`` bytes. Raises ``InterruptedTransferError``."""
        left = sys.maxsize if length is None else length
        try:
            while left:
                piece = self.response.read1(min(left, _PIECE))
                if not piece:
                    return
                self.session.transfer.count(received=len(piece))
                left -= len(piece)
                yield piece
        except (HTTPError, OSError, http.client.HTTPException, ValueError) as error:
            raise _interrupted(error) from error

    def close(self) -> None:
        """Keeps the connection if the body has ended, or nearly so; closes it otherwise."""
        with contextlib.suppress(HTTPError, OSError, http.client.HTTPException, ValueError):
            if (self.length or 0) <= _DRAINED and not self.response.chunked:
                left = _DRAINED
                while left > 0 and (piece := self.response.read1(left)):
                    left -= len(piece)
        if getattr(self.response, "length_remaining", 1) == 0:
            self.response.release_conn()
        else:
            self.response.close()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """Connections to any number of servers, kept and used again."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.options = transfer.options
        self._hub = origin_of(self.options.hub) if self.options.token else None
        plain, secure = connections(self.options)
        self._pools = urllib3.PoolManager(num_pools=16, maxsize=self.options.parallel, block=False)
        self._pools.pool_classes_by_scheme = {
            "http": type("Pool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("SecurePool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": secure}),
        }
        transfer.on_close(self._pools.clear)

    def get(self, url: str, headers: dict[str, str], *, shown: str) -> Reply:
        """Asks ``url``, follows redirects, and gives the answer if it is a success, or a range that cannot be had.

        Raises ``InterruptedTransferError`` for what may pass, else ``InputError``.
        """
        origin = origin_of(url)
        for _ in range(MAX_REDIRECTS + 1):
            reply = self._once(url, origin, headers, shown)
            if reply.status not in _REDIRECTS:
                return self._judged(reply, shown)
            reply.close()
            target = reply.response.headers.get("Location", "")
            if not target:
                raise MalformedFileError(f"status {reply.status} without a place to go on", path=shown)
            try:
                url = urljoin(url, target)
            except ValueError as error:
                raise MalformedFileError("a redirect to what is no URL", path=shown) from error
            before, origin = origin, origin_of(url)
            if before[0] == "https" and origin[0] == "http":
                raise InputError("a redirect from https to http is not followed", path=shown)
        raise LimitExceededError(f"more than {MAX_REDIRECTS} redirects", path=shown)

    def text(self, url: str, most: int, *, shown: str) -> tuple[bytes, Reply]:
        """The whole body of a small answer. Raises ``InputError``."""
        tries = Tries(self.transfer, shown, 0)
        while True:
            try:
                with self.get(url, {}, shown=shown) as reply:
                    if reply.status != 200:
                        raise MalformedFileError(f"status {reply.status} to a plain question", path=shown)
                    return self.body(reply, most, shown), reply
            except InterruptedTransferError as problem:
                tries.failed(problem)

    @staticmethod
    def body(reply: Reply, most: int, shown: str) -> bytes:
        """The whole body, if it has at most ``most`` bytes."""
        data = b"".join(reply.pieces(most + 1))
        if len(data) > most:
            raise LimitExceededError(f"an answer of more than {most} bytes", path=shown)
        if reply.length is not None and len(data) < reply.length:
            raise InterruptedTransferError("the connection was lost")
        return data

    def _once(self, url: str, origin: Origin, headers: dict[str, str], shown: str) -> Reply:
        if self.transfer.closed:
            raise InputError("fetching was given up", path=shown)
        sent = {"Accept-Encoding": "identity", "User-Agent": "weightprint", **headers}
        if self._hub is not None and origin == self._hub and (origin[0] == "https" or _is_here(origin[1])):
            sent["Authorization"] = f"Bearer {self.options.token}"
        self.transfer.count(requests=1)
        timeout = self.options.timeout
        try:
            pool = self._pools.connection_from_url(url)
            response = pool.urlopen(
                "GET",
                urllib3.util.parse_url(url).request_uri,
                headers=sent,
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=urllib3.Timeout(connect=timeout, read=timeout),
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError, http.client.HTTPException, ValueError) as error:
            if _is_untrusted(error):
                message = f"the server cannot prove who it is: {clipped(str(error), 200)}"
                raise InputError(message, path=shown) from error
            raise _interrupted(error) from error
        except InputError as error:
            error.path = shown
            raise
        return Reply(url, response.status, response, self)

    def _judged(self, reply: Reply, shown: str) -> Reply:
        status = reply.status
        encoding = reply.response.headers.get("Content-Encoding", "identity").strip().lower()
        if status in {200, 206, 416}:
            if encoding in {"", "identity"}:
                return reply
            reply.response.close()
            message = f"the server sends it encoded ({clipped(encoding, 40)}), though that was not asked for"
            raise MalformedFileError(message, path=shown)
        reply.close()
        if status in _TEMPORARY:
            raise InterruptedTransferError(f"the server answered with status {status}", _wait(reply))
        if status in {404, 410}:
            raise InputNotFoundError(f"there is nothing (status {status})", path=shown)
        if status in {401, 403}:
            hint = (
                "HF_TOKEN gives access to repositories of the hub" if "huggingface" in shown or "hf:" in shown else None
            )
            raise InputError(f"the server denies access (status {status})", path=shown, hint=hint)
        raise InputError(f"the server answered with status {status}", path=shown)


def _wait(reply: Reply) -> float | None:
    """Seconds to wait that a server asks for, as a number or a date."""
    text = reply.response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0) if 0 < len(text) < 64 else None
    except (ValueError, OverflowError):
        return None


def _is_untrusted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _interrupted(error: Exception) -> InterruptedTransferError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, TimeoutError | socket.gaierror | ConnectionRefusedError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, TimeoutError) or isinstance(error, urllib3.exceptions.TimeoutError):
        return InterruptedTransferError("the server took too long")
    if isinstance(cause, socket.gaierror):
        return InterruptedTransferError("the name of the server is not known")
    if isinstance(cause, ConnectionRefusedError):
        return InterruptedTransferError("the server refuses connections")
    return InterruptedTransferError("the connection was lost")


def _is_here(host: str) -> bool:
    return host in {"localhost", "127.0.0.1", "[::1]"}
