"""Opens the registry that a command works with."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

    from signatures.records import ModelRecord
    from signatures.registry import Registry


@contextmanager
def open_existing(folder: str | None) -> Iterator[Registry]:
    """The registry in ``folder`` (default: the user's); raises ``RegistryError`` if there is none."""
    from signatures.registry import Registry

    with Registry.open(folder, create=False) as found:
        yield found


class Destination:
    """The registry that a command writes to. One that is absent is made when there is something to write."""

    def __init__(self, folder: str | None) -> None:
        """Raises ``RegistryError`` if there is a registry that cannot be used."""
        from signatures.database import has_database
        from signatures.registry import Registry, default_folder

        self.folder = default_folder() if folder is None else Path(folder)
        self._registry = Registry.open(self.folder, create=False) if has_database(self.folder) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._registry is not None:
            self._registry.close()

    def made(self) -> Registry:
        """The registry. Raises ``RegistryError`` if it cannot be made."""
        from signatures.registry import Registry

        if self._registry is None:
            self._registry = Registry.open(self.folder, create=True)
        return self._registry

    def holder(self, name: str) -> ModelRecord | None:
        """The model of that name, None if there is none."""
        from fingerprint.errors import UnknownModelError

        with suppress(UnknownModelError):
            return None if self._registry is None else self._registry.get(name)
        return None

    def count(self) -> int:
        """How many models there are."""
        return 0 if self._registry is None else self._registry.count()


@contextmanager
def open_if_any(folder: str | None) -> Iterator[Registry | None]:
    """The registry in ``folder``; None if none was asked for and the user has none yet.

    A folder that was named must be a registry: a slip of the pen is not an empty registry. Raises ``RegistryError``.
    """
    from signatures.database import has_database
    from signatures.registry import Registry, default_folder

    if folder is None and not has_database(default_folder()):
        yield None
        return
    with Registry.open(folder, create=False) as found:
        yield found
