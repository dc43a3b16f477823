"""The server: a hub's API, files by range behind a redirect, and connections that break off in the middle."""

from __future__ import annotations

import json
import random
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMIT = "5" * 40
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK = 1 << 20


class File(Protocol):
    """A file of a repository."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, stop: int) -> bytes: ...


@dataclass(slots=True)
class Counts:
    """What was asked for and sent."""

    requests: int = 0
    sent: int = 0
    dropped: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, requests: int = 0, sent: int = 0, dropped: int = 0) -> None:
        with self.lock:
            self.requests += requests
            self.sent += sent
            self.dropped += dropped


class VirtualHub:
    """Serves ``repositories`` (files by path, by ``org/name``) on loopback; a context manager.

    ``drops`` is the share of answers whose connection is closed somewhere in the body; ``seed`` decides which.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, File]], *, drops: float = 0.0, seed: int = 0) -> None:
        self.repositories = repositories
        self.drops = drops
        self.counts = Counts()
        self._random = random.Random(seed)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def breaks_at(self, length: int) -> int:
        """After how many bytes of a body the connection is closed: mostly, behind all of them."""
        with self.counts.lock:
            return self._random.randrange(length) if length and self._random.random() < self.drops else length

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    hub: VirtualHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.hub.counts.add(requests=1)
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) > 5 - 1:
            self._api("/".join(parts[2:4]), parts[4], parts[5:])
        elif len(parts) > 4 and parts[2] == "resolve":
            # As hubs do: the bytes lie elsewhere, behind a link that is signed for a while.
            self._head(
                302, {"Location": f"/files/{'/'.join([*parts[:2], *parts[4:]])}?signed=1", "Content-Length": "0"}
            )
        elif len(parts) > 3 and parts[0] == "files":
            self._file("/".join(parts[1:3]), "/".join(parts[3:]))
        else:
            self._json({}, 404)

    def _api(self, name: str, what: str, rest: list[str]) -> None:
        files = self.hub.repositories.get(name)
        if files is None or what not in {"revision", "tree"}:
            self._json({}, 404)
        elif what == "revision":
            self._json({"id": name, "sha": COMMIT})
        else:
            self._json(_listing(files, "/".join(rest[1:])))

    def _file(self, name: str, path: str) -> None:
        file = self.hub.repositories.get(name, {}).get(path)
        if file is None:
            self._json({}, 404)
            return
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        stop = min(int(asked[2]) + 1 if asked and asked[2] else file.size, file.size)
        tag = f'"{name}/{path}"'.replace(" ", "")
        if asked and start >= file.size:
            self._head(416, {"Content-Range": f"bytes */{file.size}", "Content-Length": "0"})
            return
        headers = {"Content-Length": str(stop - start), "ETag": tag, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        self._head(206 if asked else 200, headers)
        end = start + self.hub.breaks_at(stop - start)
        for at in range(start, end, _CHUNK):
            piece = file.read(at, min(at + _CHUNK, end))
            self.wfile.write(piece)
            self.hub.counts.add(sent=len(piece))
        if end < stop:
            self.hub.counts.add(dropped=1)
            self.close_connection = True

    def _json(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def _listing(files: Mapping[str, File], folder: str) -> list[dict[str, object]]:
    prefix = f"{folder}/" if folder else ""
    below = [path for path in files if path.startswith(prefix)]
    here = [path for path in below if "/" not in path[len(prefix) :]]
    folders = {prefix + path[len(prefix) :].split("/")[0] for path in below if "/" in path[len(prefix) :]}
    return [
        *({"type": "directory", "path": path, "size": 0} for path in sorted(folders)),
        *({"type": "file", "path": path, "size": files[path].size} for path in sorted(here)),
    ]
