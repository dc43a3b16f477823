"""The signature files of a registry: each in its place, or in ``pending/`` on its way there or out; see ``store``."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from signatures.files import flush_file, flush_folder, make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_MANY: Final = 16
_FRESH: Final = ".fresh"


class SignatureFiles:
    """The files of the registry in ``folder``. Who holds the write lock changes them. Raises ``OSError``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._signatures = folder / "signatures"
        self._pending = folder / "pending"
        self._unflushed: list[Path] = []

    def place(self, identity: str) -> Path:
        """Where the signature file of that identity lies."""
        number = identity.removeprefix("sha256:")
        return self._signatures / number[:2] / f"{number}.fpsig"

    def read(self, identity: str) -> bytes | None:
        """A file, wherever it is, ``None`` if it is absent."""
        places = (self.place(identity), self._pending_place(identity))
        for place in (*places, *places):  # a file may move to the place just looked at
            with suppress(FileNotFoundError):
                return place.read_bytes()
        return None

    def strays(self, identities: Iterable[str]) -> list[Path]:
        """The files in places of other identities than these."""
        known = {self.place(identity) for identity in identities}
        return sorted(path for path in self._signatures.glob("*/*") if path not in known)

    def add(self, identity: str, data: bytes) -> None:
        """Write a file into ``pending/``, for ``flush`` to see to.

        What lies there already may be the only copy of a model that has just been removed, and that stays if all is
        taken back.
        """
        make_folder(self._pending)
        place = self._pending_place(identity)
        fresh = place.with_suffix(_FRESH)
        fresh.write_bytes(data)
        if place.exists():
            flush_file(fresh)
        fresh.replace(place)
        self._unflushed.append(place)

    def take_out(self, identity: str) -> None:
        """Move a file to ``pending/``."""
        make_folder(self._pending)
        with suppress(FileNotFoundError):
            self.place(identity).replace(self._pending_place(identity))

    def flush(self) -> None:
        """Return when the disk has all that was added."""
        if len(self._unflushed) > _MANY and hasattr(os, "sync"):
            os.sync()
            return
        for path in self._unflushed:
            flush_file(path)
        if self._unflushed:
            flush_folder(self._pending)

    def forget(self) -> None:
        """Leave what was added unflushed: it was flushed, or is not wanted any more."""
        self._unflushed.clear()

    def settle(self, is_known: Callable[[str], bool]) -> None:
        """Empty ``pending/``: files of known identities go to their places, others are deleted."""
        if not self._pending.is_dir():
            return
        for path in self._pending.glob(f"*{_FRESH}"):
            path.unlink()
        changed: set[Path] = set()
        for path in sorted(self._pending.glob("*.fpsig")):
            identity = f"sha256:{path.stem}"
            place = self.place(identity)
            if is_known(identity) and not place.exists():
                if not place.parent.is_dir():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    changed |= {self._signatures, self._folder}
                path.replace(place)
                changed.add(place.parent)
            else:
                path.unlink()
        for folder in changed:
            flush_folder(folder)

    def _pending_place(self, identity: str) -> Path:
        return self._pending / f"{identity.removeprefix('sha256:')}.fpsig"
