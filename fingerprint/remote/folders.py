"""A place elsewhere as a folder: names of the files, and their bytes, as ``fingerprint.readers.places.Folder``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from fingerprint.errors import InputNotFoundError, LimitExceededError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from fingerprint.remote.transfer import Transfer
    from fingerprint.source import Source

MAX_AHEAD: Final = 4096
"""Most files that are opened ahead: as many as a checkpoint may have shards."""


class Listing(Struct, frozen=True):
    """Names of what lies in a folder."""

    files: frozenset[str]
    folders: frozenset[str]


class Store(Protocol):
    """Files by their path from some root."""

    def listing(self, prefix: str) -> Listing | None:
        """What lies in the folder ``prefix`` (``""``: the root); None where that cannot be known. Raises
        ``InputError``."""

    def open(self, name: str) -> Source:
        """The file at the path ``name``. Raises ``InputError``."""

    def shown(self, name: str) -> str:
        """What a file or folder is called in messages."""


class RemoteFolder:
    """A folder of a store, as ``Folder``. Files that were asked for together are opened together, and once."""

    distant = True

    def __init__(self, store: Store, transfer: Transfer, prefix: str = "") -> None:
        """``prefix``: the path of the folder, empty or with a slash behind."""
        self._store = store
        self._transfer = transfer
        self._prefix = prefix
        self._known: Listing | None = None
        self._asked = False
        self._opened: dict[str, Future[Source]] = {}

    @property
    def path(self) -> str:
        """See ``Folder``."""
        return self._store.shown(self._prefix).removesuffix("/")

    def file_names(self) -> list[str]:
        """See ``Folder``; none where the server does not list them."""
        known = self._listing()
        return [] if known is None else sorted(known.files)

    def folder_names(self) -> list[str]:
        """See ``Folder``."""
        known = self._listing()
        return [] if known is None else sorted(known.folders)

    def present(self, names: Iterable[str]) -> set[str]:
        """See ``Folder``. They are opened ahead, several at once; where nothing is listed that tells which exist."""
        wanted = sorted(set(names))
        if len(wanted) > MAX_AHEAD:
            raise LimitExceededError(f"more than {MAX_AHEAD} files of one checkpoint", path=self.path)
        known = self._listing()
        there = wanted if known is None else [name for name in wanted if name in known.files]
        for name in there:
            if name not in self._opened:
                self._opened[name] = self._transfer.pool.submit(self._store.open, self._prefix + name)
        if known is None:
            there = [name for name in there if not isinstance(self._opened[name].exception(), InputNotFoundError)]
        return set(there)

    def open(self, name: str) -> Source:
        """See ``Folder``."""
        opened = self._opened.get(name)
        if opened is not None:
            return opened.result()
        known = self._listing()
        if known is not None and "/" not in name and name not in known.files:
            raise InputNotFoundError("there is nothing", path=self._store.shown(self._prefix + name))
        return self._store.open(self._prefix + name)

    def sub(self, name: str) -> RemoteFolder:
        """See ``Folder``."""
        return RemoteFolder(self._store, self._transfer, f"{self._prefix}{name}/")

    def _listing(self) -> Listing | None:
        if not self._asked:
            self._known = self._store.listing(self._prefix.removesuffix("/"))
            self._asked = True
        return self._known
