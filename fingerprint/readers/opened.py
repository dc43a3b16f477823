"""Files below a folder, by their paths with slashes, each opened once."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from fingerprint.errors import InputNotFoundError, LimitExceededError
from fingerprint.readers.base import FileRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fingerprint.readers.base import Catalogue
    from fingerprint.readers.places import Folder
    from fingerprint.source import Source

MAX_FILES = 1 << 17
"""Most files of a folder of arrays; each chunk may be one."""
_TOGETHER = 1024
"""Files of one folder that are said to be opened next at a time."""


class Opened:
    """The files below ``place`` that were asked for, and what becomes of them: records, and closing."""

    def __init__(self, place: Folder, catalogue: Catalogue) -> None:
        self.path = place.path
        self._place = place
        self._catalogue = catalogue
        self._folders: dict[str, Folder] = {"": place}
        self._sources: dict[str, Source | None] = {}

    def folder(self, path: str) -> Folder:
        """The folder ``path``, whose parts must be plain names; ``""`` for the whole."""
        found = self._folders.get(path)
        if found is None:
            above, _, name = path.rpartition("/")
            found = self._folders[path] = self.folder(above).sub(name)
            self._catalogue.add_name(path, 500)
        return found

    def get(self, path: str) -> Source | None:
        """The file ``path``, whose parts must be plain names; None if it is not there. Raises ``InputError``."""
        if path not in self._sources:
            if len(self._sources) == MAX_FILES:
                raise LimitExceededError(f"more than {MAX_FILES} files", path=self.path)
            self._catalogue.add_name(path, 700)
            above, _, name = path.rpartition("/")
            try:
                self._sources[path] = self.folder(above).open(name)
            except InputNotFoundError:
                self._sources[path] = None
        return self._sources[path]

    def ahead(self, paths: Iterable[str]) -> None:
        """Says what is going to be asked for: where each file takes a request, several are opened at once.

        Raises ``InputError``.
        """
        if not self._place.distant:
            return
        names: dict[str, list[str]] = {}
        for path in paths:
            above, _, name = path.rpartition("/")
            names.setdefault(above, []).append(name)
        for above, wanted in names.items():
            for start in range(0, len(wanted), _TOGETHER):
                with suppress(InputNotFoundError):
                    self.folder(above).present(wanted[start : start + _TOGETHER])

    def records(self) -> tuple[FileRecord, ...]:
        """The files that are there."""
        return tuple(FileRecord(path, source.size) for path, source in self._sources.items() if source is not None)

    def sources(self) -> tuple[Source, ...]:
        """The same, to read and to close."""
        return tuple(source for source in self._sources.values() if source is not None)

    def close(self) -> None:
        """Gives the files up."""
        for source in self.sources():
            source.close()
