"""A folder out of which nothing leads: names of its files, and their bytes, with links confined."""

from __future__ import annotations

import os
import stat

from fingerprint.errors import InputError, LimitExceededError
from fingerprint.source import FileSource, os_error

MAX_ENTRIES = 10_000
"""Most entries of a folder that are looked at."""


class Place:
    """A folder, given by the user, whose contents may be hostile.

    A symbolic link in it is followed if it ends inside the folder or, where the folder is a snapshot of a Hugging Face
    cache (``<repository>/snapshots/<revision>``), among that repository's own ``blobs``; nowhere else.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._real = os.path.realpath(path)
        self._roots = [os.path.join(self._real, "")]
        snapshots = os.path.dirname(self._real)
        if os.path.basename(snapshots) == "snapshots":
            # Not resolved: a ``blobs`` that is itself a link elsewhere contains nothing of what is compared here.
            self._roots.append(os.path.join(os.path.dirname(snapshots), "blobs", ""))

    def file_names(self) -> list[str]:
        """Names of the regular files and links in the folder, sorted. Raises ``InputError``."""
        names = []
        try:
            with os.scandir(self._real) as entries:
                for number, entry in enumerate(entries):
                    if number == MAX_ENTRIES:
                        raise LimitExceededError(f"more than {MAX_ENTRIES} entries in the folder", path=self.path)
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
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
