"""A registry whose vectors lie on Milvus: the embedded one stands for a server. Addresses and refusals need none."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.synthetic import small_model
from fingerprint.errors import UsageError
from signatures.codec import decode_vectors
from signatures.engine import START, EngineAwayError, EngineBehindError, Mark
from signatures.engines import open_engine
from signatures.index import ExactIndex
from signatures.milvus import MilvusEngine, Place, place_of
from signatures.registry import Registry
from signatures.signature import encode, sign
from tests.test_index import assert_agree, units

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.cli_fixtures"]
NOBODY = "http://127.0.0.1:9"  # the port of discard, where nothing listens


def vectors(seed: int) -> np.ndarray:
    return decode_vectors(encode(sign(small_model(seed, layers=1))), path="test")[1]


def add(registry: Registry, *seeds: int) -> None:
    for seed in seeds:
        registry.register(sign(small_model(seed, layers=1)), name=f"org/m{seed}")


def seen(registry: Registry, *seeds: int) -> set[str]:
    names = {record.id: record.name for record in registry.models()}
    return {names.get(int(model), "?") for seed in seeds for model in registry.search(vectors(seed), 1).models[:, 0]}


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "place"),
        [
            ("milvus:///data/v.db", Place("/data/v.db", "/data/v.db")),
            ("/data/v.db?index=hnsw", Place("/data/v.db", "/data/v.db", "HNSW")),
            ("http://host:19530", Place("http://host:19530", None)),
            ("https://host:443/base?index=HNSW", Place("https://host:443/base", None, "HNSW")),
            ("faiss", None),
            ("milvus://host/v.db", None),
            ("/data/folder", None),
        ],
    )
    def test_an_address_is_a_server_or_a_file(self, url: str, place: Place | None) -> None:
        assert place_of(url) == place

    def test_a_password_does_not_belong_there(self) -> None:
        with pytest.raises(UsageError, match="FP_INDEX_TOKEN"):
            place_of("http://root:secret@host:19530")

    def test_an_index_that_there_is_not_is_refused(self) -> None:
        with pytest.raises(UsageError, match="FLAT, HNSW"):
            place_of("http://host:19530?index=best")

    def test_what_is_no_engine_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FP_INDEX", "elsewhere")
        with pytest.raises(UsageError, match="no engine of vectors"):
            open_engine(tmp_path, "key", 16)


def test_without_the_client_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    monkeypatch.setenv("FP_INDEX", str(tmp_path / "v.db"))
    with pytest.raises(EngineAwayError, match=r"weightprint\[milvus\]"):
        open_engine(tmp_path / "index", "key", 16).mark()


def test_embedded_milvus_is_not_searched_by_several_processes(fp, zoo, tmp_path: Path) -> None:
    embedded = {"FP_INDEX": str(tmp_path / "v.db")}
    ran = fp("scan", zoo.tuned, zoo.part, "--jobs", "2", registry=zoo.registry, environment=embedded)
    assert ran.status == 2
    assert "serves one process at a time" in ran.err


@pytest.fixture
def milvus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FP_INDEX", f"milvus://{tmp_path}/vectors.db")
    return tmp_path


def engine(milvus: Path, width: int = 16) -> MilvusEngine:
    found = open_engine(milvus / "index", "key", width)
    assert isinstance(found, MilvusEngine)
    return found


@pytest.mark.engines
class TestRegistry:
    def test_a_search_sees_what_is_registered_and_nothing_else(self, milvus: Path) -> None:
        with Registry.open(milvus / "registry") as registry:
            add(registry, 1, 2, 3)
            assert seen(registry, 1, 2, 3) == {"org/m1", "org/m2", "org/m3"}
            registry.remove("org/m2")
            assert "org/m2" not in seen(registry, 2)
            status = registry.index_status()
            assert status.current
            assert set(status.kinds.values()) == {"milvus, FLAT"}
            assert registry.check_index(20).problems == ()
            registry.rebuild_index()
            assert registry.check_index(20).problems == ()
        assert not (milvus / "registry" / "index").exists()  # no files beside the registry

    def test_registries_share_it_and_see_their_own_models_only(self, milvus: Path) -> None:
        with Registry.open(milvus / "one") as one, Registry.open(milvus / "two") as two:
            add(one, 1, 2)
            add(two, 2, 3)
            one.rebuild_index()
            assert (seen(one, 3) | seen(two, 1)).isdisjoint({"?"})
            assert "org/m3" not in seen(one, 1, 2, 3)
            assert seen(two, 2, 3) == {"org/m2", "org/m3"}
            one.remove("org/m2")
            assert seen(two, 2) == {"org/m2"}

    def test_it_takes_in_a_registry_that_was_filled_without_it(
        self, milvus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FP_INDEX")
        with Registry.open(milvus / "registry") as registry:
            add(registry, 1, 2)
        monkeypatch.setenv("FP_INDEX", f"milvus://{milvus}/vectors.db")
        with Registry.open(milvus / "registry") as registry:
            assert seen(registry, 1, 2) == {"org/m1", "org/m2"}
            assert registry.index_status().kinds["sketches"] == "milvus, FLAT"

    def test_a_model_registered_by_another_object_is_seen(self, milvus: Path) -> None:
        with Registry.open(milvus / "registry") as mine, Registry.open(milvus / "registry") as theirs:
            add(mine, 1)
            assert seen(mine, 1) == {"org/m1"}
            add(theirs, 4)
            assert seen(mine, 4) == {"org/m4"}


@pytest.mark.engines
class TestEngine:
    def test_only_the_latest_state_can_be_changed(self, milvus: Path) -> None:
        mine, theirs = engine(milvus), engine(milvus)
        rows = np.arange(3), units(np.random.default_rng(0), 3)
        assert mine.mark() == theirs.mark() == START
        mine.update([], [(1, rows)], START, Mark(1, "a"))
        with pytest.raises(EngineBehindError):
            theirs.update([], [(2, rows)], START, Mark(1, "b"))
        assert theirs.mark() == Mark(1, "a")
        assert theirs.covers() == {1: 3}

    def test_what_was_there_before_a_rebuild_goes_with_the_next_change(self, milvus: Path) -> None:
        one = engine(milvus)
        random = np.random.default_rng(0)
        one.update([], [(model, (np.arange(5), units(random, 5))) for model in range(4)], START, Mark(1, "a"))
        kept = np.arange(2), units(random, 2)
        one.rebuild([(9, kept)], Mark(2, "b"))
        other = engine(milvus)
        assert other.mark() == Mark(2, "b")
        assert other.covers() == {9: 2}
        assert len(other) == 2
        assert set(other.search(kept[1], 3).models.ravel().tolist()) == {9}
        other.update([], [(10, kept)], Mark(2, "b"), Mark(3, "c"))
        assert len(list(other._all(other._vectors, 'space != ""', ["space"]))) == 4

    def test_a_search_ends_well_in_rows_that_were_deleted_under_it(self, milvus: Path) -> None:
        random = np.random.default_rng(0)
        held = np.arange(3), units(random, 3)
        slow, quick = engine(milvus), engine(milvus)
        quick.update([], [(1, held)], START, Mark(1, "a"))
        slow.mark()
        quick.rebuild([(1, held)], Mark(2, "b"))
        quick.update([], [(2, (np.arange(1), units(random, 1)))], Mark(2, "b"), Mark(3, "c"))
        assert slow.search(held[1], 1).models.ravel().tolist() == [1, 1, 1]

    def test_where_one_answer_is_too_short_the_models_in_it_are_left_out(
        self, milvus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("signatures.milvus._DEEPEST", 40)
        random = np.random.default_rng(5)
        shared, slow, fast = units(random, 1), ExactIndex(16), engine(milvus)
        held = {model: (np.arange(30), np.repeat(shared, 30, axis=0)) for model in range(6)}
        held |= {model: (np.arange(4), units(random, 4)) for model in range(10, 20)}
        for model, rows in held.items():
            slow.add(model, *rows)
        fast.update([], held.items(), START, Mark(1, "a"))
        fast.mark()
        queries = np.concatenate([shared, units(random, 3)])
        for n in (1, 6, 9, 100):
            assert_agree(fast.search(queries, n), slow.search(queries, n))

    def test_what_was_marked_outlives_a_killed_process(self, milvus: Path) -> None:
        code = (
            "import os, sys, signal, numpy as np; from pathlib import Path; from signatures.engines import open_engine;"
            "from signatures.engine import Mark, START; e = open_engine(Path(sys.argv[1]) / 'index', 'key', 16);"
            "e.update([], [(m, (np.arange(4), np.eye(16, dtype=np.float32)[:4])) for m in range(50)], e.mark(),"
            "Mark(1, 'a')); os.kill(os.getpid(), signal.SIGKILL)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run([sys.executable, "-c", code, str(milvus)], env=environment, check=False)
        assert done.returncode == -9
        found = engine(milvus)
        assert found.mark() == Mark(1, "a")
        assert found.covers() == dict.fromkeys(range(50), 4)
        assert len(found) == 200

    def test_a_database_in_use_by_another_process_is_left_alone(
        self, milvus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sqlite3

        monkeypatch.setattr("signatures.milvus._SECONDS", 0.1)
        lock = sqlite3.connect(f"{milvus}/vectors.db.lock.sqlite3", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EngineAwayError, match="one at a time"):
            engine(milvus).mark()
        lock.close()

    def test_with_an_approximate_index_scores_are_those_of_the_vectors(
        self, milvus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FP_INDEX", f"milvus://{milvus}/vectors.db?index=HNSW")
        one, random = engine(milvus), np.random.default_rng(0)
        held = {model: (np.arange(20), units(random, 20)) for model in range(30)}
        one.update([], held.items(), START, Mark(1, "a"))
        one.mark()
        assert not one.status().exact
        hits = one.search(held[7][1], 1)
        assert np.mean(hits.models[:, 0] == 7) >= one.status().least_recall
        assert np.allclose(hits.scores[hits.models[:, 0] == 7], 1, atol=1e-5)


@pytest.mark.engines
class TestAway:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("signatures.milvus._SECONDS", 1.0)

    def test_a_scan_says_so_and_does_not_search_elsewhere(self, fp, zoo) -> None:
        ran = fp("scan", zoo.tuned, "--format", "jsonl", registry=zoo.registry, environment={"FP_INDEX": NOBODY})
        assert ran.status == 2
        assert f"Milvus at {NOBODY} cannot be used" in ran.err
        assert ran.err.count("\n") == 1
        assert ran.out == ""

    def test_what_is_registered_then_is_registered_with_a_warning(self, fp, zoo, tmp_path: Path) -> None:
        ran = fp("register", zoo.base, "--name", "acme/base", registry=tmp_path, environment={"FP_INDEX": NOBODY})
        assert ran.status == 0
        assert "the index does not know it yet" in ran.err
