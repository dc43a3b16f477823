"""Folders out of which nothing leads, on disk or in an archive: names of the files, and their bytes."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Protocol

from fingerprint.errors import InputError, LimitExceededError
from fingerprint.source import FileSource, os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fingerprint.source import Source

MAX_ENTRIES = 10_000
"""Most entries of a folder that are looked at."""


class Folder(Protocol):
    """A folder of files that may be one checkpoint.

    ``distant``: opening a file of it takes a request to another machine, so that none is opened to see what it is.
    """

    @property
    def distant(self) -> bool:
        """See above."""

    @property
    def path(self) -> str:
        """What it is called in messages."""

    def file_names(self) -> list[str]:
        """Names of the files in it, sorted. Raises ``InputError``."""

    def folder_names(self) -> list[str]:
        """Names of the folders in it, sorted. Raises ``InputError``."""

    def present(self, names: Iterable[str]) -> set[str]:
        """Those of ``names`` that are files in it, which are likely to be opened next. Raises ``InputError``."""

    def open(self, name: str) -> Source:
        """The bytes of the file ``name``. Raises ``InputError``."""

    def sub(self, name: str) -> Folder:
        """The folder ``name`` in it. Raises ``InputError``."""


def folder_of(source: Source, beside: Folder | None) -> Folder:
    """The folder that ``source`` lies in: ``beside``, or, where that is not known, the one on disk."""
    return beside if beside is not None else Place(os.path.dirname(source.path) or ".")


class Place:
    """A folder, given by the user, whose contents may be hostile.

    A symbolic link in it is followed if it ends inside the folder or, where the folder is a snapshot of a Hugging Face
    cache (``<repository>/snapshots/<revision>``), among that repository's own ``blobs``; nowhere else.
    """

    distant = False

    def __init__(self, path: str, within: Place | None = None) -> None:
        """``within``: the folder that this one lies in, which links may lead into as well."""
        self.path = path
        self._real = os.path.realpath(path)
        self._roots: list[str] = [os.path.join(self._real, "")]
        snapshots = os.path.dirname(self._real)
        if os.path.basename(snapshots) == "snapshots":
            # Not resolved: a ``blobs`` that is itself a link elsewhere contains nothing of what is compared here.
            self._roots.append(os.path.join(os.path.dirname(snapshots), "blobs", ""))
        if within is not None:
            self._roots = within._roots

    def file_names(self) -> list[str]:
        """Names of the regular files and links in the folder, sorted. Raises ``InputError``."""
        return self._names(stat.S_ISREG, stat.S_ISLNK)

    def folder_names(self) -> list[str]:
        """Names of the folders in it, sorted; links to folders are none. Raises ``InputError``."""
        return self._names(stat.S_ISDIR)

    def present(self, names: Iterable[str]) -> set[str]:
        """See ``Folder``."""
        return set(self.file_names()).intersection(names)

    def _names(self, *kinds: Callable[[int], bool]) -> list[str]:
        names = []
        try:
            with os.scandir(self._real) as entries:
                for number, entry in enumerate(entries):
                    if number == MAX_ENTRIES:
                        raise LimitExceededError(f"more than {MAX_ENTRIES} entries in the folder", path=self.path)
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if any(kind(mode) for kind in kinds):
                        names.append(entry.name)
        except OSError as error:
            raise os_error(error, self.path) from error
        return sorted(names)

    def open(self, name: str) -> FileSource:
        """The bytes of the file ``name``. Raises ``InputError``, also for a link that leads out of the folder."""
        shown = os.path.join(self.path, name)
        try:
            real = os.path.realpath(os.path.join(self._real, name), strict=True)
        except (OSError, ValueError) as error:
            raise os_error(error, shown) from error
        if not any(real.startswith(root) for root in self._roots):
            raise InputError("a link that leads out of the folder is not followed", path=shown)
        return FileSource(real, shown)

    def sub(self, name: str) -> Place:
        """The folder ``name`` in it, whose links may lead where those of this one may."""
        return Place(os.path.join(self.path, name), self)
