"""Opens the registry that a command works with."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from signatures.registry import Registry


@contextmanager
def open_existing(folder: str | None) -> Iterator[Registry]:
    """The registry in ``folder`` (default: the user's); raises ``RegistryError`` if there is none."""
    from signatures.registry import Registry

    with Registry.open(folder, create=False) as found:
        yield found


@contextmanager
def open_for_writing(folder: str | None) -> Iterator[Registry]:
    """The registry in ``folder`` (default: the user's), made if there is none."""
    from signatures.registry import Registry

    with Registry.open(folder, create=True) as found:
        yield found


@contextmanager
def open_if_any(folder: str | None) -> Iterator[Registry | None]:
    """The registry in ``folder``; None if none was asked for and the user has none yet.

    A folder that was named must be a registry: a slip of the pen is not an empty registry.
    """
    from signatures.registry import Registry, default_folder
    from signatures.store import DATABASE

    if folder is None and not (default_folder() / DATABASE).exists():
        yield None
        return
    with Registry.open(folder, create=False) as found:
        yield found
