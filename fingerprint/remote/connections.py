"""Connections of HTTP to allowed addresses only, whose answers have to keep pace.

The address is judged after the name was resolved, and is the one that is connected to.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from urllib3.connection import HTTPConnection, HTTPSConnection

from fingerprint.errors import InputError, clipped
from fingerprint.remote.addresses import is_public

if TYPE_CHECKING:
    from fingerprint.remote.options import RemoteOptions

MAX_HEAD: Final = 1 << 18
"""Most bytes of the status line and headers of an answer."""
LEAST_RATE: Final = 4096
"""Bytes a second at which an answer has to come, after twice the timeout."""


class _Paced(io.RawIOBase):
    """The bytes of one answer off a socket, which have to come at a least rate, slow drops of headers included."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._timeout = timeout
        self._started = time.monotonic()
        self._received = 0
        self.headed = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = 2 * self._timeout + self._received / LEAST_RATE - (time.monotonic() - self._started)
        if left <= 0:
            raise TimeoutError("the answer comes too slowly")
        if not self.headed and self._received > MAX_HEAD:
            raise http.client.HTTPException("the headers are too long")
        self._sock.settimeout(min(self._timeout, left))
        count = self._raw.readinto(buffer)
        self._received += count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def connections(options: RemoteOptions) -> tuple[type[HTTPConnection], type[HTTPSConnection]]:
    """Classes of connections that go to allowed addresses only, and whose answers have to keep pace."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
            super().__init__(sock, *args, **more)
            self.fp.close()
            self._paced = _Paced(sock, options.timeout)
            self.fp = io.BufferedReader(self._paced, 1 << 14)

        def begin(self) -> None:
            super().begin()
            self._paced.headed = True

    class Plain(HTTPConnection):
        response_class = Answer

        def _new_conn(self) -> socket.socket:
            return _connected(self._dns_host, self.port, options)

    class Secure(HTTPSConnection):
        response_class = Answer

        def _new_conn(self) -> socket.socket:
            return _connected(self._dns_host, self.port, options)

    return Plain, Secure


def _connected(host: str, port: int, options: RemoteOptions) -> socket.socket:
    """A connection to one of the addresses of ``host``, all of which have to be allowed."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    if not options.allow_private:
        refused = [str(place[0]) for *_, place in found if not is_public(str(place[0]))]
        if refused:
            message = f"{clipped(host, 80)} is at {refused[0]}, which is not a public address"
            raise InputError(message, hint="--allow-private, if you trust the link and its server")
    problem: OSError = OSError("no address")
    for family, kind, protocol, _, place in found[:8]:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(options.timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(place)
        except OSError as error:
            sock.close()
            problem = error
        else:
            return sock
    raise problem
