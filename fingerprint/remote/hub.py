"""Repositories of a hub with the API of huggingface.co: one commit of them, listed and opened."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote, unquote, urljoin

from msgspec import Struct

from fingerprint.errors import InputError, InputNotFoundError, LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.bounded_json import Json, JsonCursor
from fingerprint.readers.index import is_plain_name
from fingerprint.readers.places import MAX_ENTRIES
from fingerprint.remote.folders import Listing
from fingerprint.remote.session import origin_of
from fingerprint.remote.web import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.remote.session import Session
    from fingerprint.source import Source

MAX_ANSWER: Final = 8 << 20
"""Most bytes of one answer of the API."""
MAX_PAGES: Final = 100
_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REFERENCE: Final = re.compile(r"(refs/(?:pr|convert)/[A-Za-z0-9._-]{1,64})(?:/(.*))?", re.DOTALL)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_NEXT: Final = re.compile(r'<([^<>]{1,4096})>\s*;\s*rel="?next"?')


class Repository(Struct, frozen=True):
    """What ``hf://org/name[@revision][/path]`` means; ``path`` is empty for the whole repository."""

    name: str
    revision: str
    path: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ``InputError`` for what is no such URL."""
        head, *rest = url.removeprefix("hf://").split("/", 2)
        second, path = rest[0] if rest else "", rest[1] if len(rest) > 1 else ""
        repository, at, revision = second.partition("@")
        if at and path and (found := _REFERENCE.fullmatch(f"{revision}/{path}")):
            revision, path = found[1], found[2] or ""
        if not (_PART.fullmatch(head) and _PART.fullmatch(repository)) or (at and not revision):
            raise InputError("no repository of models", path=clipped(url), hint="hf://org/model[@revision][/path]")
        if head in {"datasets", "spaces"}:
            raise InputError(f"{head} hold no models", path=clipped(url), hint="hf://org/model[@revision][/path]")
        path = path.strip("/")
        if any(part in {"", ".", ".."} for part in path.split("/")) and path:
            raise InputError("no path of a repository", path=clipped(url))
        return cls(f"{head}/{repository}", unquote(revision) or "main", path)


class HubStore:
    """The files of one commit of a repository."""

    def __init__(self, session: Session, repository: Repository) -> None:
        """Asks which commit the revision is, so that all files are of one. Raises ``InputError``."""
        self._session = session
        self._hub = session.options.hub
        self._name = repository.name
        self._shown = f"hf://{repository.name}" + (f"@{repository.revision}" if repository.revision != "main" else "")
        url = f"{self._hub}/api/models/{self._name}/revision/{quote(repository.revision, safe='')}?expand[]=sha"
        answer, _ = self._asked(url)
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise MalformedFileError("the hub does not say which commit that is", path=self._shown)
        self.commit = commit

    def listing(self, prefix: str) -> Listing:
        """See ``Store``. A folder that is not there is empty."""
        tree = f"{self._hub}/api/models/{self._name}/tree/{self.commit}"
        url = f"{tree}/{quote(prefix)}" if prefix else tree
        files: set[str] = set()
        folders: set[str] = set()
        origin = origin_of(url)
        for _ in range(MAX_PAGES):
            try:
                answer, following = self._asked(url)
            except InputNotFoundError:
                return Listing(frozenset(), frozenset())
            for entry in answer if isinstance(answer, list) else []:
                self._take(entry, prefix, files, folders)
            if len(files) + len(folders) > MAX_ENTRIES:
                raise LimitExceededError(f"more than {MAX_ENTRIES} entries in the folder", path=self.shown(prefix))
            if not following:
                return Listing(frozenset(files), frozenset(folders))
            url = urljoin(url, following)
            if origin_of(url) != origin:
                raise InputError("the list of files goes on at another server", path=self.shown(prefix))
        raise LimitExceededError(f"a list of files of more than {MAX_PAGES} pages", path=self.shown(prefix))

    def open(self, name: str) -> Source:
        """See ``Store``."""
        if any(part in {"", ".", ".."} for part in name.split("/")):
            raise InputNotFoundError("no name of a file", path=self.shown(name))
        return open_file(
            self._session, f"{self._hub}/{self._name}/resolve/{self.commit}/{quote(name)}", self.shown(name)
        )

    def shown(self, name: str) -> str:
        """See ``Store``."""
        return f"{self._shown}/{name}" if name else self._shown

    def _asked(self, url: str) -> tuple[Json, str]:
        data, reply = self._session.text(url, MAX_ANSWER, shown=self._shown)
        cursor = JsonCursor(data, path=self._shown, what="answer of the hub")
        value: Json = (
            list(_items(cursor)) if cursor.peek() == "[" else {key: cursor.value() for key in cursor.members()}
        )
        cursor.end()
        link = _NEXT.search(reply.response.headers.get("Link", "")[:8192])
        return value, link[1] if link else ""

    @staticmethod
    def _take(entry: Json, prefix: str, files: set[str], folders: set[str]) -> None:
        if not isinstance(entry, dict) or not isinstance(path := entry.get("path"), str):
            return
        folder, _, name = path.rpartition("/")
        if folder == prefix and is_plain_name(name) and not path.startswith("/"):
            (folders if entry.get("type") == "directory" else files).add(name)


def _items(cursor: JsonCursor) -> Iterator[Json]:
    """The items of a long array, each bounded by itself."""
    cursor.take("[")
    if cursor.peek() != "]":
        yield cursor.value()
        while cursor.peek() == ",":
            cursor.take(",")
            yield cursor.value()
    cursor.take("]")
