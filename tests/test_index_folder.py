"""The index beside a registry is a cache: whatever happens to it, a search sees exactly the registered models."""

from __future__ import annotations

import json
import shutil
import sqlite3
from typing import TYPE_CHECKING

import faiss
import numpy as np
import pytest
from msgspec.structs import replace

from benchmarks.synthetic import small_model
from signatures.codec import decode_vectors
from signatures.engine import START, Mark
from signatures.index import FlatIndex
from signatures.index_folder import IndexFolder, Tuning
from signatures.index_lists import Effort, ListsIndex
from signatures.memory import available
from signatures.registry import Registry
from signatures.signature import encode, sign
from tests.engines import TINY

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


@pytest.fixture(params=["flat", "lists"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the registry of these tests is large enough for inverted lists."""
    if request.param == "lists":
        monkeypatch.setattr(Tuning, "for_memory", lambda _width: TINY)
    return request.param


@pytest.fixture
def folder(tmp_path: Path, form: str) -> Path:
    assert form
    with Registry.open(tmp_path / "registry") as registry:
        add(registry, 1, 2, 3)
    return tmp_path / "registry"


def damage_nothing(index: Path) -> None:
    assert index.exists()


def remove_all(index: Path) -> None:
    shutil.rmtree(index)


def remove_segments(index: Path) -> None:
    for path in index.rglob("*.faiss"):
        path.unlink()


def cut_segments(index: Path) -> None:
    for path in index.rglob("*.faiss"):
        path.write_bytes(path.read_bytes()[:100])


def garble_segments(index: Path) -> None:
    for path in index.rglob("*.faiss"):
        path.write_bytes(b"\xff" * path.stat().st_size)


def garble_manifest(index: Path) -> None:
    (index / "index.json").write_text("{")


def change_manifest(index: Path, **values: object) -> None:
    manifest = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(manifest | values))


def forge_mark(index: Path) -> None:
    number, _ = json.loads((index / "index.json").read_text())["mark"]
    change_manifest(index, mark=[number, "another token"])


def take_older_format(index: Path) -> None:
    change_manifest(index, format=1)


def empty_lists(index: Path) -> None:
    for path in (*index.glob("*.faiss.json"), *index.glob("*/about.json")):
        path.write_text("{}")


def cut_vectors(index: Path) -> None:
    for path in (*index.glob("*.faiss"), *index.glob("*/vectors.i16")):
        path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing,
        remove_all,
        remove_segments,
        cut_segments,
        garble_segments,
        garble_manifest,
        forge_mark,
        take_older_format,
        empty_lists,
        cut_vectors,
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
        assert registry.check_index(20).problems == ()  # searches make up for what it has yet to follow
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


@pytest.mark.parametrize("form", ["flat"], indirect=True)
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
    with Registry.open(tmp_path) as registry:
        model = small_model(1, layers=1)
        bare = replace(model, tensors=tuple(replace(one, sketch=None) for one in model.tensors), grams=())
        registry.register(sign(bare), name="org/bare")
        assert registry.index_status().covered == 1
        assert registry.search(vectors(1), 3).models.shape[1] == 0


@pytest.mark.parametrize("form", ["lists"], indirect=True)
def test_the_check_notices_inverted_lists_that_lead_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of other vectors: complete, readable, with the right vectors beside them, and of no use."""
    import faiss

    for path in folder.glob("index/*/lists.faiss"):
        index = faiss.read_index(str(path))
        rows = index.ntotal
        index.reset()
        index.add(np.repeat(np.eye(1, index.d, dtype=np.float32), rows, axis=0))
        faiss.write_index(index, str(path))
        about = json.loads((path.parent / "about.json").read_text())
        about["bytes"]["lists.faiss"] = path.stat().st_size
        (path.parent / "about.json").write_text(json.dumps(about))
    monkeypatch.setattr(Tuning, "for_memory", lambda _width: replace(TINY, effort=Effort(codes=1, least_lists=1)))
    with Registry.open(folder) as registry:
        assert registry.index_status().current
        found = registry.check_index(30)
        assert found.recall < found.least_recall
        assert any("fp index build" in line for line in found.problems)
    monkeypatch.setattr(Tuning, "for_memory", lambda _width: TINY)
    with Registry.open(folder) as registry:
        registry.rebuild_index()
        found = registry.check_index(30)
        assert (found.recall, found.problems) == (1.0, ())


def test_the_status_says_how_vectors_are_searched(folder: Path, form: str) -> None:
    with Registry.open(folder) as registry:
        status = registry.index_status()
        assert ("inverted lists" in status.kinds["sketches"]) is (form == "lists")
        assert 0 < status.memory <= status.bytes + 4096


class TestSegments:
    """Registering one more model writes a segment; neighbours of like size are merged."""

    def test_few_segments_and_few_copies(self, tmp_path: Path) -> None:
        index = IndexFolder(tmp_path, "key", WIDTH)
        written = 0
        for model in range(60):
            before = {path.name for path in tmp_path.glob("*.faiss")}
            put(index, model, 700)
            fresh = [path for path in tmp_path.glob("*.faiss") if path.name not in before]
            written += sum(path.stat().st_size for path in fresh) // (700 * (4 * WIDTH + 8))
        assert read_again(tmp_path).covers() == dict.fromkeys(range(60), 700)
        assert index.status().parts <= 5
        assert written < 60 * 6  # a rewrite of everything each time would have written 1,830 models

    def test_a_growing_index_passes_over_to_inverted_lists_and_stays_in_few_parts(self, tmp_path: Path) -> None:
        index = IndexFolder(tmp_path, "key", WIDTH, TINY)
        kinds: list[str] = []
        for model in range(40):
            put(index, model, 6)
            kinds.append(index.status().kind)
            assert index.status().rows == 6 * (model + 1)
        assert kinds[0] == "flat"
        assert kinds[-1] in {"inverted lists", "inverted lists + flat"}
        assert index.status().parts <= 8
        assert not index.status().exact
        assert read_again(tmp_path, TINY).covers() == dict.fromkeys(range(40), 6)

    def test_nothing_large_is_merged_on_the_way(self, tmp_path: Path) -> None:
        index = IndexFolder(tmp_path, "key", WIDTH, replace(TINY, merged_rows=60))
        for model in range(40):
            put(index, model, 10)
        sizes = [len(path.read_bytes()) // (2 * WIDTH) for path in tmp_path.glob("*/vectors.i16")]
        assert max(sizes) <= 60
        index.rebuild(((model, rows(model, 10)) for model in range(40)), Mark(99, "all"))
        assert index.status().parts == 1
        assert index.covers() == dict.fromkeys(range(40), 10)

    def test_segments_with_the_same_centroids_are_joined_without_coding_them_again(self, tmp_path: Path) -> None:
        index = IndexFolder(tmp_path, "key", WIDTH, replace(TINY, merged_rows=10_000))
        coarse = set[str]()
        for model in range(30):
            put(index, model, 10)
            coarse |= {json.loads(path.read_text())["coarse"] for path in tmp_path.glob("*/about.json")}
        assert len(coarse) == 1
        found = [ListsIndex(path, TINY.effort) for path in tmp_path.glob("*.lists")]
        for part in found:
            for model in part.covers():
                assert np.allclose(part.rows(model)[1], rows(model, 10)[1], atol=2e-5)
                assert np.all(part.search(rows(model, 10)[1], 1).models[:, 0] == model)

    def test_models_removed_from_inverted_lists_are_left_out_of_what_is_merged(self, tmp_path: Path) -> None:
        index = IndexFolder(tmp_path, "key", WIDTH, TINY)
        for model in range(20):
            put(index, model, 10)
        for model in range(0, 20, 2):
            index.update([model], [], index.mark(), Mark(index.mark().number + 1, "t"))
        assert index.covers() == dict.fromkeys(range(1, 20, 2), 10)
        assert not set(index.search(rows(2, 10)[1], 30).models.ravel().tolist()) & set(range(0, 20, 2))
        for model in range(20, 40):
            put(index, model, 10)
        left = {model for path in tmp_path.glob("*.lists") for model in ListsIndex(path, TINY.effort).covers()}
        named = {
            model for part in json.loads((tmp_path / "index.json").read_text())["segments"] for model in part["gone"]
        }
        assert left - named == set(index.covers()) - {m for m in index.covers() if m not in left}
        assert index.covers() == dict.fromkeys([*range(1, 20, 2), *range(20, 40)], 10)

    def test_inverted_lists_that_most_models_have_left_are_written_anew(self, tmp_path: Path) -> None:
        index = IndexFolder(tmp_path, "key", WIDTH, TINY)
        index.rebuild(((model, rows(model, 10)) for model in range(40)), Mark(1, "all"))
        for model in range(30):
            index.update([model], [], index.mark(), Mark(index.mark().number + 1, "t"))
            (entry,) = json.loads((tmp_path / "index.json").read_text())["segments"]
            kept = ListsIndex(tmp_path / entry["name"], TINY.effort).models
            assert kept <= 2 * (39 - model)
            assert kept - len(entry["gone"]) == 39 - model
        assert read_again(tmp_path, TINY).covers() == dict.fromkeys(range(30, 40), 10)
        for model in range(30, 40):
            index.update([model], [], index.mark(), Mark(index.mark().number + 1, "t"))
        assert (index.covers(), index.status().parts) == ({}, 0)

    def test_models_that_are_gone_crowd_nobody_out(self, tmp_path: Path) -> None:
        """However many of them are nearer than the nearest that is left."""
        tuning = replace(TINY, effort=Effort(depth=8, most_depth=16))
        index = IndexFolder(tmp_path, "key", WIDTH, tuning)
        query = rows(0, 1)[1]
        copies = [(model, (np.arange(1), query)) for model in range(1, 400)]
        index.rebuild([*copies, *((model, rows(model, 1)) for model in range(400, 900))], Mark(1, "all"))
        gone = set(range(1, 400))
        index.update(gone, [], index.mark(), Mark(2, "t"))
        assert json.loads((tmp_path / "index.json").read_text())["segments"][0]["gone"]
        rest = FlatIndex(WIDTH)
        for model in range(400, 900):
            rest.add(model, *rows(model, 1))
        assert index.search(query, 1).models.tolist() == rest.search(query, 1).models.tolist()

    def test_an_index_that_has_grown_is_searched_with_the_effort_of_one_made_anew(self, tmp_path: Path) -> None:
        ndis = []
        tuning = Tuning(flat_rows=500, backlog_rows=100, merged_rows=1500, effort=Effort(codes=1 << 14))
        index = IndexFolder(tmp_path, "key", WIDTH, tuning)
        for first in range(0, 400, 10):
            mark = index.mark()
            added = [(model, rows(model, 20)) for model in range(first, first + 10)]
            index.update([], added, mark, Mark(mark.number + 1, "t"))
        assert index.status().parts > 4
        assert index.status().outgrown
        queries = np.concatenate([rows(model, 20)[1] for model in range(8)])
        for parts in ("many", "one"):
            faiss.cvar.indexIVF_stats.reset()
            hits = index.search(queries, 1)
            ndis.append(faiss.cvar.indexIVF_stats.ndis)
            assert np.mean(hits.models[:, 0] == np.repeat(np.arange(8), 20)) > 0.95, parts
            index.rebuild(((model, rows(model, 20)) for model in range(400)), Mark(999, "all"))
        assert index.status().parts == 1
        assert not index.status().outgrown
        assert ndis[1] / 2 <= ndis[0] <= 3 * ndis[1]

    def test_what_is_on_disk_is_read_by_another(self, tmp_path: Path) -> None:
        index = IndexFolder(tmp_path, "key", WIDTH)
        put(index, 3, 5)
        put(index, 9, 5)
        other = read_again(tmp_path)
        assert other.mark() == index.mark() != START
        assert other.covers() == {3: 5, 9: 5}
        assert np.array_equal(other.rows(9)[1], rows(9, 5)[1])

    def test_left_over_files_go_with_the_next_change(self, tmp_path: Path) -> None:
        for name in ("0123.faiss", "0123.faiss.json", ".index.json.abcd.tmp"):
            (tmp_path / name).write_text("left by a killed process")
        (tmp_path / "0123.lists").mkdir()
        (tmp_path / "0123.lists" / "vectors.i16").write_text("left by a killed process")
        put(IndexFolder(tmp_path, "key", WIDTH), 1, 5)
        assert len(list(tmp_path.iterdir())) == 4  # manifest, segment, its list, lock


@pytest.mark.parametrize(("memory", "rows"), [(1 << 20, 1 << 12), (1 << 30, 65_027), (1 << 40, 1 << 17)])
def test_little_memory_makes_inverted_lists_of_fewer_rows(memory: int, rows: int) -> None:
    assert Tuning.for_memory(256, memory).flat_rows == rows


def test_this_machine_has_memory() -> None:
    assert 1 << 26 < available() < 1 << 50


def read_again(folder: Path, tuning: Tuning | None = None) -> IndexFolder:
    other = IndexFolder(folder, "key", WIDTH, tuning)
    other.mark()
    return other


def put(index: IndexFolder, model: int, count: int) -> None:
    mark = index.mark()
    index.update([], [(model, rows(model, count))], mark, Mark(mark.number + 1, f"token {mark.number + 1}"))


def rows(model: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(model).standard_normal((count, WIDTH))
    return np.arange(count), (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
