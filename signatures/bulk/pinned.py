"""The registry that a list was begun with, as workers have to find it at its folder on whichever machine they are."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from fingerprint.errors import RegistryError
from signatures.database import DATABASE
from signatures.registry import Registry

if TYPE_CHECKING:
    from signatures.engine import Mark


class PinnedRegistry(Struct, frozen=True):
    """``file`` tells the very database in ``folder`` from its copies.

    In the same database others may register meanwhile. A copy has nobody who would tell it: it must stand where the
    registry stood at the beginning, at ``mark`` and with the same ``contents`` (see ``Registry``).
    """

    folder: str
    key: str
    file: str
    mark: Mark
    contents: str

    @classmethod
    def of(cls, registry: Registry) -> Self:
        """The registry as it is now."""
        folder = os.path.abspath(registry.folder)
        return cls(folder, registry.key, _file(folder), registry.mark, registry.contents())

    def opened(self) -> Registry:
        """What is at the folder here. Raises ``RegistryError`` if it is another registry, or such a copy."""
        try:
            found = Registry.open(self.folder, create=False)
        except RegistryError as error:
            raise RegistryError(f"on {socket.gethostname()}: {error}") from error
        try:
            self._require_same(found)
        except BaseException:
            found.close()
            raise
        return found

    def require_current(self, opened: Registry) -> None:
        """Raise ``RegistryError`` if a copy that was opened was changed since: quick."""
        if opened.mark != self.mark and self._is_copied():
            raise self._outdated()

    def _require_same(self, found: Registry) -> None:
        if found.key != self.key:
            raise RegistryError(f"{self._here()} is another registry than the one that the run was begun with")
        self.require_current(found)
        if self._is_copied() and found.contents() != self.contents:
            raise self._outdated()

    def _is_copied(self) -> bool:
        return _file(self.folder) != self.file

    def _outdated(self) -> RegistryError:
        return RegistryError(
            f"{self._here()} is a copy that holds other models, or other names of them, than the registry with which "
            "the run was begun: copy the folder anew"
        )

    def _here(self) -> str:
        return f"{self.folder} on {socket.gethostname()}"


def _file(folder: str) -> str:
    """Which file the database is, among all files of all machines; empty if there is none."""
    with suppress(OSError):
        found = os.stat(os.path.join(folder, DATABASE))
        return f"{_machine()} {found.st_dev} {found.st_ino}"
    return ""


def _machine() -> str:
    """What tells this machine from others: on Linux drawn at random when it is started."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{socket.gethostname()} {uuid.getnode():x}"
