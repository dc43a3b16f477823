"""The engines that the protocol suites run on, and one shape for all indexes that can be searched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fingerprint.errors import UsageError
from signatures.engine import Mark
from signatures.index_folder import IndexFolder, Tuning
from signatures.index_lists import Effort

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

    from signatures.engine import Engine
    from signatures.index import Hits

TINY = Tuning(flat_rows=24, backlog_rows=8, merged_rows=300, small_rows=4, effort=Effort(depth=4096))
"""Everything but the newest rows in inverted lists, several segments of them; ranked so deep that nothing is missed."""

ENGINES: dict[str, Callable[[Path, str, int], Engine]] = {
    "flat": IndexFolder,
    "lists": lambda folder, key, width: IndexFolder(folder, key, width, TINY),
}
"""By name: what opens the engine of a registry's key, in a folder, for vectors of a width."""


def _embedded(folder: Path, key: str, width: int, index: str = "FLAT") -> Engine:
    """Embedded Milvus; the folder is not called as a kind of vectors is, which names of collections come from."""
    from signatures.milvus import MilvusEngine, place_of

    place = place_of(f"milvus://{folder}/milvus.db?index={index}")
    assert place is not None
    return MilvusEngine(place, folder / "index", key, width)


ENGINES["milvus"] = _embedded

NAMES = [pytest.param(name, marks=pytest.mark.engines) if name == "milvus" else name for name in ENGINES]
"""For ``parametrize``: ``make test-engines`` runs those that need packages which the other tests do without."""


class EngineIndex:
    """An engine in the shape of ``VectorIndex``: every change is an update with a mark of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __len__(self) -> int:
        self.engine.mark()
        return len(self.engine)

    def add(self, model: int, positions: np.ndarray, vectors: np.ndarray) -> None:
        if model in self.covers():
            raise UsageError("it is covered: an engine would take the new rows for the old ones")
        self._change([], [(model, (positions, vectors))])

    def add_all(self, rows: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> None:
        self._change([], list(rows.items()))

    def remove(self, model: int) -> None:
        self._change([model], [])

    def covers(self) -> Mapping[int, int]:
        self.engine.mark()
        return self.engine.covers()

    def search(self, queries: np.ndarray, n: int) -> Hits:
        self.engine.mark()
        return self.engine.search(queries, n)

    def rows(self, model: int) -> tuple[np.ndarray, np.ndarray]:
        self.engine.mark()
        return self.engine.rows(model)

    def _change(self, removed: list[int], added: list[tuple[int, tuple[np.ndarray, np.ndarray]]]) -> None:
        since = self.engine.mark()
        self.engine.update(removed, added, since, Mark(since.number + 1, f"token {since.number + 1}"))
