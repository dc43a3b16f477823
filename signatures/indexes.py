"""The vector indexes beside one registry: one of whole sketches and layers, one of the slices that quick looks read."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from fingerprint.errors import RegistryBrokenError, RegistryError
from fingerprint.slices import DIGESTED_SLICES
from signatures.index_check import check
from signatures.index_folder import IndexFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fingerprint.parameters import Parameters
    from signatures.index import Float32, Hits
    from signatures.index_folder import Rows


class Vectors(StrEnum):
    """What is searched, by the folder of its index: ``SKETCHES`` of whole matrices (and of layers), or ``SLICES``."""

    SKETCHES = "index"
    SLICES = "slices"


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """What the indexes on disk cover together: ``missing`` and ``superfluous`` are ids of models; ``bytes`` of the
    segments."""

    models: int
    covered: int
    vectors: int
    segments: int
    bytes: int
    missing: tuple[int, ...]
    superfluous: tuple[int, ...]

    @property
    def current(self) -> bool:
        """Whether the files cover exactly the registered models (a search adds in memory what they lack)."""
        return not self.missing and not self.superfluous


@dataclass(frozen=True, slots=True)
class IndexCheck:
    """Outcome of comparing the indexes with the signatures and with the slow search.

    ``queries`` were searched both ways; ``problems`` is empty if all agreed.
    """

    status: IndexStatus
    queries: int
    problems: tuple[str, ...]


_PROBLEMS: Final = 20


class Indexes:
    """``models`` gives the identities of the registered signatures by the models' ids, ``rows_of`` what an index holds
    of a model (None if it is gone; raises ``RegistryBrokenError``). ``key`` names the registry."""

    def __init__(
        self,
        folder: Path,
        key: str,
        parameters: Parameters,
        models: Callable[[], Mapping[int, str]],
        rows_of: Callable[[Vectors, int], Rows | None],
    ) -> None:
        self._folder = folder
        self._key = key
        self._widths = {
            Vectors.SKETCHES: parameters.index_width**2,
            Vectors.SLICES: DIGESTED_SLICES * parameters.axis_width,
        }
        self._models = models
        self._rows_of = rows_of
        self._open = {kind: self._fresh(kind) for kind in Vectors}

    def search(self, kind: Vectors, queries: Float32, n: int) -> Hits:
        """See ``VectorIndex.search``; every model that is registered at this moment is searched."""
        index = self._open[kind]
        self._follow(kind)
        return index.search(queries, n)

    def follow(self) -> None:
        """Keep the files close to the registry; a search makes up for whatever fails here."""
        with suppress(RegistryError):
            for kind in Vectors:
                self._follow(kind)

    def rebuild(self) -> None:
        """Make all files anew from the signatures; raises ``RegistryError`` if they cannot be written."""
        for kind in Vectors:
            self._open[kind] = self._fresh(kind)
            try:
                self._open[kind].rebuild(self._models(), partial(self._rows_of, kind))
            except (OSError, sqlite3.Error) as error:
                raise RegistryError(f"{self._folder}: the index cannot be written: {error}") from error

    def status(self) -> IndexStatus:
        """What the files cover."""
        found = [self._fresh(kind).on_disk() for kind in Vectors]
        models = set(self._models())
        all_of, any_of = set(found[0][0]), set[int]()
        for covered, _, _ in found:
            all_of, any_of = all_of & set(covered), any_of | set(covered)
        return IndexStatus(
            models=len(models),
            covered=len(all_of),
            vectors=sum(sum(covered.values()) for covered, _, _ in found),
            segments=sum(segments for _, segments, _ in found),
            bytes=sum(size for _, _, size in found),
            missing=tuple(sorted(models - all_of)),
            superfluous=tuple(sorted(any_of - models)),
        )

    def check(self, queries: int) -> IndexCheck:
        """Compare the files with the signatures, and their answers with those of the slow search.

        ``queries`` registered vectors of each index, spread over the models and blurred, are searched both ways. Models
        whose signature cannot be read are left out.
        """
        status = self.status()
        total, problems = 0, list[str]()
        for kind in Vectors:
            rows: dict[int, Rows] = {}
            unreadable: set[int] = set()
            for model in self._models():
                try:
                    found = self._rows_of(kind, model)
                except RegistryBrokenError:  # told by ``Registry.check``
                    unreadable.add(model)
                else:
                    if found is not None:
                        rows[model] = found
            count, wrong = check(self._fresh(kind), rows, queries, self._widths[kind], unreadable)
            total += count
            problems += [line for line in wrong if line not in problems]
        return IndexCheck(status, total, tuple(problems[:_PROBLEMS]))

    def _follow(self, kind: Vectors) -> None:
        self._open[kind].follow(self._models(), partial(self._rows_of, kind))

    def _fresh(self, kind: Vectors) -> IndexFolder:
        return IndexFolder(self._folder / kind, self._key, self._widths[kind])
