"""A web server on this machine that answers as a test says, rightly or not."""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(frozen=True)
class Asked:
    """A request: its path with the query, its headers, and the bytes it wants (0 to 0 without a range)."""

    path: str
    headers: dict[str, str]
    start: int = 0
    stop: int = 0


@dataclass
class Answer:
    """``body`` is sent as far as ``cut``; ``raw`` instead of everything."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    raw: Callable[[Any], None] | None = None


def part_of(data: bytes, asked: Asked, tag: str = '"one"', **headers: str) -> Answer:
    """The right answer to a request for a range of ``data``."""
    stop = min(asked.stop, len(data))
    known = {"Content-Range": f"bytes {asked.start}-{stop - 1}/{len(data)}", "ETag": tag} | headers
    return Answer(206, known, data[asked.start : stop])


class OddServer:
    """Gives every request to ``answer`` and keeps it in ``asked``; a context manager."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.done = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"odd": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    odd: OddServer

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has heard enough
            super().handle()

    def do_GET(self) -> None:
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        span = (int(found[1]), int(found[2]) + 1) if found else (0, 0)
        asked = Asked(self.path, dict(self.headers.items()), *span)
        self.odd.asked.append(asked)
        answer = self.odd.answer(asked)
        if answer.raw is not None:
            answer.raw(self.wfile)
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for key, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
        if answer.cut is not None:
            self.close_connection = True
