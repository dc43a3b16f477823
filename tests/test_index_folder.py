"""The index beside a registry is a cache: whatever happens to it, a search sees exactly the registered models."""

from __future__ import annotations

import json
import shutil
import sqlite3
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.synthetic import small_model
from signatures.codec import decode_vectors
from signatures.index_folder import IndexFolder
from signatures.registry import Registry
from signatures.signature import encode, sign

if TYPE_CHECKING:
    from pathlib import Path

    from signatures.records import ModelRecord

WIDTH = 8


def vectors(seed: int) -> np.ndarray:
    return decode_vectors(encode(sign(small_model(seed, layers=1))), path="test")[1]


def add(registry: Registry, *seeds: int) -> list[ModelRecord]:
    return [registry.register(sign(small_model(seed, layers=1)), name=f"org/m{seed}") for seed in seeds]


def seen(registry: Registry, *seeds: int) -> set[str]:
    """Names of the models that are nearest to the vectors of these seeds."""
    names = {record.id: record.name for record in registry.models()}
    return {names.get(int(model), "?") for seed in seeds for model in registry.search(vectors(seed), 1).models[:, 0]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Registry.open(tmp_path / "registry") as registry:
        add(registry, 1, 2, 3)
    return tmp_path / "registry"


def damage_nothing(index: Path) -> None:
    assert index.exists()


def remove_all(index: Path) -> None:
    shutil.rmtree(index)


def remove_segments(index: Path) -> None:
    for path in index.glob("*.faiss"):
        path.unlink()


def cut_segments(index: Path) -> None:
    for path in index.glob("*.faiss"):
        path.write_bytes(path.read_bytes()[:100])


def garble_segments(index: Path) -> None:
    for path in index.glob("*.faiss"):
        path.write_bytes(b"\xff" * path.stat().st_size)


def garble_manifest(index: Path) -> None:
    (index / "index.json").write_text("{")


def misname_models(index: Path) -> None:
    manifest = json.loads((index / "index.json").read_text())
    manifest["models"].pop(next(iter(manifest["models"])))
    (index / "index.json").write_text(json.dumps(manifest))


def empty_lists(index: Path) -> None:
    for path in index.glob("*.faiss.json"):
        path.write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing,
        remove_all,
        remove_segments,
        cut_segments,
        garble_segments,
        garble_manifest,
        misname_models,
        empty_lists,
    ],
)
def test_a_search_sees_all_models_whatever_happened_to_the_index(folder: Path, damage) -> None:
    damage(folder / "index")
    with Registry.open(folder) as registry:
        assert seen(registry, 1, 2, 3) == {"org/m1", "org/m2", "org/m3"}
        assert registry.index_status().current
        assert registry.check_index(20).problems == ()


def test_the_index_of_another_registry_is_not_believed(folder: Path, tmp_path: Path) -> None:
    with Registry.open(tmp_path / "other") as other:
        add(other, 7, 8, 9)
    shutil.rmtree(folder / "index")
    shutil.copytree(tmp_path / "other" / "index", folder / "index")
    with Registry.open(folder) as registry:
        assert registry.index_status().missing == (1, 2, 3)
        assert seen(registry, 1, 2, 3) == {"org/m1", "org/m2", "org/m3"}


def test_a_registry_restored_from_a_copy_does_not_trust_ids(folder: Path, tmp_path: Path) -> None:
    """The copy's next model gets an id that the newer index has for another one."""
    shutil.copy(folder / "registry.sqlite3", tmp_path / "copy")
    with Registry.open(folder) as registry:
        (newer,) = add(registry, 4)
    shutil.copy(tmp_path / "copy", folder / "registry.sqlite3")
    with Registry.open(folder) as registry:
        (other,) = add(registry, 5)
        assert other.id == newer.id
        assert seen(registry, 5) == {"org/m5"}
        assert registry.check_index(20).problems == ()


def test_an_index_that_cannot_be_written_is_kept_in_memory(folder: Path) -> None:
    lock = sqlite3.connect(folder / "index" / "lock.sqlite3", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    with Registry.open(folder) as registry:
        add(registry, 4)
        registry.remove("org/m1")
        assert seen(registry, 2, 3, 4) == {"org/m2", "org/m3", "org/m4"}
        assert "org/m1" not in seen(registry, 1)
        status = registry.index_status()
        assert (status.missing, status.superfluous, status.current) == ((4,), (1,), False)
        lock.execute("ROLLBACK")
        lock.close()
        assert seen(registry, 4) == {"org/m4"}
        registry.rebuild_index()
        assert registry.index_status().current


def test_a_model_registered_by_another_process_is_seen(folder: Path) -> None:
    with Registry.open(folder) as mine, Registry.open(folder) as theirs:
        assert seen(mine, 1) == {"org/m1"}
        add(theirs, 4)
        assert seen(mine, 4) == {"org/m4"}
        theirs.remove("org/m1")
        assert "org/m1" not in seen(mine, 1)


def test_the_check_notices_an_index_of_wrong_vectors(folder: Path) -> None:
    """Two models change places in the index: complete, readable, and wrong."""
    index = folder / "index"
    (segment,) = index.glob("*.faiss")
    about = json.loads((index / f"{segment.name}.json").read_text())
    from signatures.index import FlatIndex

    old = FlatIndex.load(segment)
    swapped = FlatIndex(about["width"])
    for model, source in ((1, 2), (2, 1), (3, 3)):
        swapped.add(model, *old.rows(source))
    swapped.save(segment)
    with Registry.open(folder) as registry:
        assert registry.index_status().current
        assert registry.check_index(20).problems
        registry.rebuild_index()
        assert registry.check_index(20).problems == ()


def test_models_without_vectors_are_covered(tmp_path: Path) -> None:
    from dataclasses import replace

    with Registry.open(tmp_path) as registry:
        model = small_model(1, layers=1)
        bare = replace(model, tensors=tuple(replace(one, sketch=None) for one in model.tensors), grams=())
        registry.register(sign(bare), name="org/bare")
        assert registry.index_status().covered == 1
        assert registry.search(vectors(1), 3).models.shape[1] == 0


class TestSegments:
    """Registering one more model writes a segment; neighbours of like size are merged."""

    def test_few_segments_and_few_copies(self, tmp_path: Path) -> None:
        models: dict[int, str] = {}
        index = IndexFolder(tmp_path, "key", WIDTH)
        written = 0
        for model in range(60):
            models[model] = f"sha256:{model}"
            before = {path.name for path in tmp_path.glob("*.faiss")}
            index.follow(models, lambda number: rows(number, 700))
            fresh = [path for path in tmp_path.glob("*.faiss") if path.name not in before]
            written += sum(path.stat().st_size for path in fresh) // (700 * (4 * WIDTH + 8))
            assert index.on_disk()[0] == dict.fromkeys(models, 700)
        assert index.on_disk()[1] <= 5
        assert written < 60 * 6  # a rewrite of everything each time would have written 1,830 models

    def test_what_is_on_disk_is_read_by_another(self, tmp_path: Path) -> None:
        models = {3: "sha256:3", 9: "sha256:9"}
        IndexFolder(tmp_path, "key", WIDTH).follow(models, lambda number: rows(number, 5))
        other = IndexFolder(tmp_path, "key", WIDTH)
        other.follow(models, refuse)
        assert other.covers() == {3: 5, 9: 5}
        assert np.array_equal(other.rows(9)[1], rows(9, 5)[1])

    def test_a_model_that_vanished_meanwhile_is_left_out(self, tmp_path: Path) -> None:
        index = IndexFolder(tmp_path, "key", WIDTH)
        index.follow({1: "a", 2: "b"}, lambda number: None if number == 2 else rows(number, 5))
        assert index.covers() == {1: 5}

    def test_left_over_files_go_with_the_next_change(self, tmp_path: Path) -> None:
        for name in ("0123.faiss", "0123.faiss.json", ".index.json.abcd.tmp"):
            (tmp_path / name).write_text("left by a killed process")
        IndexFolder(tmp_path, "key", WIDTH).follow({1: "a"}, lambda number: rows(number, 5))
        assert len(list(tmp_path.iterdir())) == 4  # manifest, segment, its list, lock


def rows(model: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(model).standard_normal((count, WIDTH))
    return np.arange(count), (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def refuse(model: int) -> None:
    raise AssertionError(f"model {model} was read again")
