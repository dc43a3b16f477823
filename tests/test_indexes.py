"""While the index on disk cannot follow the registry, memory makes up for what it lacks, and the disk is left alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from benchmarks.synthetic import small_model
from fingerprint.errors import RegistryError
from signatures import indexes
from signatures.codec import decode_vectors
from signatures.index_folder import IndexFolder
from signatures.indexes import Vectors
from signatures.registry import Registry
from signatures.signature import encode, sign

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

    from signatures.index import Hits

SIGNATURES = [sign(small_model(seed, layers=1)) for seed in range(6)]
VECTORS = [decode_vectors(encode(signature), path="test")[1] for signature in SIGNATURES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry of the first three models."""
    with Registry.open(tmp_path / "registry") as registry:
        for seed in range(3):
            registry.register(SIGNATURES[seed], name=f"org/m{seed}")
    return tmp_path / "registry"


@pytest.fixture
def never_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once that registry has an index, making it anew is an error."""
    assert folder.exists()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the index was made anew")

    monkeypatch.setattr(IndexFolder, "rebuild", refuse)


def nearest(registry: Registry, seed: int) -> str | None:
    """The model that has the vectors of this seed; None if it is none of the found."""
    hits = registry.search(VECTORS[seed], 1)
    record = registry.by_id(int(hits.models[0, 0]))
    return record.name if record is not None and hits.scores[0, 0] > 0.99 else None


def contents(folder: Path) -> dict[str, bytes]:
    """The files of both indexes but for their locks."""
    files = (path for kind in Vectors for path in sorted((folder / kind).iterdir()) if "lock" not in path.name)
    return {str(path): path.read_bytes() for path in files}


@contextmanager
def held_index(folder: Path) -> Iterator[None]:
    """Another process writes the index."""
    with closing(sqlite3.connect(folder / "index" / "lock.sqlite3", isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        yield


def _changed_and_searched(registry: Registry, folder: Path, before: dict[str, bytes]) -> None:
    registry.register(SIGNATURES[3], name="org/m3")
    registry.remove("org/m1")
    assert [nearest(registry, seed) for seed in range(5)] == ["org/m0", None, "org/m2", "org/m3", None]
    registry.register(SIGNATURES[4], name="org/m4")
    registry.remove("org/m3")
    assert [nearest(registry, seed) for seed in range(5)] == ["org/m0", None, "org/m2", None, "org/m4"]
    assert contents(folder) == before
    with Registry.open(folder) as other:
        assert [nearest(other, seed) for seed in range(5)] == ["org/m0", "org/m1", "org/m2", None, None]


@pytest.mark.usefixtures("never_anew")
def test_a_search_inside_a_change_leaves_the_index_to_its_end(folder: Path) -> None:
    before = contents(folder)
    with Registry.open(folder) as registry:
        with registry.together():
            _changed_and_searched(registry, folder, before)
            with pytest.raises(RegistryError, match="registered together"):
                registry.rebuild_index()
        assert contents(folder) != before
        assert registry.index_status().current
        assert [nearest(registry, seed) for seed in range(5)] == ["org/m0", None, "org/m2", None, "org/m4"]


def _taken_back(registry: Registry, folder: Path, before: dict[str, bytes]) -> None:
    with registry.together():
        _changed_and_searched(registry, folder, before)
        raise KeyboardInterrupt


@pytest.mark.usefixtures("never_anew")
def test_a_change_that_was_taken_back_leaves_the_index_as_it_was(folder: Path) -> None:
    before = contents(folder)
    with Registry.open(folder) as registry:
        with pytest.raises(KeyboardInterrupt):
            _taken_back(registry, folder, before)
        assert [nearest(registry, seed) for seed in range(5)] == ["org/m0", "org/m1", "org/m2", None, None]
        assert contents(folder) == before
        with held_index(folder):  # what is held in memory now begins at what is registered
            registry.register(SIGNATURES[5], name="org/m5")
            assert [nearest(registry, seed) for seed in (3, 4, 5)] == [None, None, "org/m5"]
        assert nearest(registry, 5) == "org/m5"
        assert registry.index_status().current


def test_a_change_inside_another_is_a_part_of_it(folder: Path) -> None:
    before = contents(folder)
    with Registry.open(folder) as registry, registry.together():
        with registry.together():
            registry.register(SIGNATURES[3], name="org/m3")
        assert contents(folder) == before


def test_an_index_that_is_behind_is_asked_for_one_more_only_for_each_model_that_it_still_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    search = IndexFolder.search

    def counted(engine: IndexFolder, queries: np.ndarray, n: int) -> Hits:
        asked.append(n)
        return search(engine, queries, n)

    monkeypatch.setattr(IndexFolder, "search", counted)
    with Registry.open(folder) as registry, held_index(folder):
        for seed in (3, 4, 5):
            registry.register(SIGNATURES[seed], name=f"org/m{seed}")
        assert nearest(registry, 4) == "org/m4"
        registry.remove("org/m4")
        assert nearest(registry, 4) is None
        assert asked == [1, 1]
        registry.remove("org/m0")
        assert [nearest(registry, seed) for seed in (0, 3)] == [None, "org/m3"]
        assert asked[2:] == [2, 2]


def test_what_is_too_much_for_memory_says_why_the_index_is_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "_MOST_HELD", -1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Registry.open(folder) as registry:
        with held_index(folder):
            registry.register(SIGNATURES[3], name="org/m3")
            with pytest.raises(RegistryError, match=r"database is locked; .* more than is searched in memory"):
                registry.search(VECTORS[0], 1)
        monkeypatch.setattr(IndexFolder, "_write", full)
        with pytest.raises(RegistryError, match=r"No space left on device; .* more than is searched in memory"):
            registry.search(VECTORS[0], 1)
        with registry.together():
            registry.register(SIGNATURES[4], name="org/m4")
            with pytest.raises(RegistryError, match=r"registered together; .* more than is searched in memory"):
                registry.search(VECTORS[0], 1)
