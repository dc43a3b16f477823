"""Every index answers as the slow one does, counts models instead of rows, and never hides one behind ties.

The suite runs on the indexes in memory and on every engine (``tests/engines.py``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerprint.errors import RegistryBrokenError, UsageError
from signatures.index import (
    MOST_TIED,
    Block,
    ExactIndex,
    FlatIndex,
    Hits,
    VectorIndex,
    best_of_models,
    merged,
    unit_vectors,
    without_models,
)
from tests.engines import ENGINES, NAMES, EngineIndex

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 16
SCORE = 2e-5
"""What scores of an engine may be off: vectors are stored rounded there."""
Kind = type[ExactIndex] | type[FlatIndex]


def units(random: np.random.Generator, rows: int, width: int = WIDTH) -> np.ndarray:
    values = random.standard_normal((rows, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def filled(kind: Callable[[int], VectorIndex], sizes: dict[int, int], seed: int = 0) -> VectorIndex:
    random = np.random.default_rng(seed)
    index = kind(WIDTH)
    for model, rows in sizes.items():
        index.add(model, np.arange(rows) * 3, units(random, rows))
    return index


def assert_agree(fast: Hits, slow: Hits) -> None:
    """The same models with the same scores, but for the order of ties and for which of them end the list."""
    assert len(fast.models) == len(slow.models)
    for query in range(len(slow.models)):
        got = dict(zip(fast.models[query].tolist(), fast.scores[query].tolist(), strict=True))
        want = dict(zip(slow.models[query].tolist(), slow.scores[query].tolist(), strict=True))
        got.pop(-1, None)
        want.pop(-1, None)
        last = min(want.values(), default=0.0)
        assert {model for model in want if want[model] > last + 2 * SCORE} <= set(got)
        assert {model for model in got if got[model] > last + 2 * SCORE} <= set(want)
        assert all(abs(got[model] - want[model]) <= SCORE for model in set(got) & set(want))


@pytest.fixture(params=[ExactIndex, FlatIndex], ids=["exact", "flat"])
def saved(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=["exact in memory", "flat in memory", *NAMES])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], VectorIndex]:
    if request.param.endswith("in memory"):
        return ExactIndex if request.param.startswith("exact") else FlatIndex

    def opened(width: int) -> VectorIndex:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        return EngineIndex(ENGINES[request.param](folder, "key", width))  # type: ignore[return-value]

    return opened


def test_an_empty_index_finds_nothing(kind: Kind) -> None:
    hits = kind(WIDTH).search(units(np.random.default_rng(1), 3), 5)
    assert hits.models.shape == (3, 0)
    assert len(kind(WIDTH)) == 0


def test_a_row_is_found_with_its_model_and_position(kind: Kind) -> None:
    index = filled(kind, {7: 5, 2: 40, 9: 1})
    positions, vectors = index.rows(2)
    hits = index.search(vectors, 1)
    assert np.all(hits.models[:, 0] == 2)
    assert np.all(hits.positions[:, 0] == positions)
    assert np.allclose(hits.scores[:, 0], 1, atol=SCORE)


def test_it_says_which_models_it_covers_even_without_rows(kind: Kind) -> None:
    index = filled(kind, {7: 5, 2: 0})
    assert index.covers() == {7: 5, 2: 0}
    assert len(index) == 5
    assert set(index.search(units(np.random.default_rng(1), 1), 9).models[0].tolist()) == {7}


def test_a_removed_model_is_not_found_and_can_be_added_again(kind: Kind) -> None:
    index = filled(kind, {1: 4, 2: 4, 3: 4})
    positions, vectors = index.rows(2)
    index.remove(2)
    index.remove(2)
    assert index.covers() == {1: 4, 3: 4}
    assert 2 not in index.search(vectors, 3).models
    index.add(2, positions, vectors)
    assert np.all(index.search(vectors, 1).models == 2)


def test_rows_that_cannot_be_are_refused(kind: Kind) -> None:
    index = filled(kind, {1: 4})
    good = units(np.random.default_rng(1), 2)
    for model, positions, vectors in (
        (1, [0, 1], good),
        (-1, [0, 1], good),
        (2, [0], good),
        (2, [0, 1], 2 * good),
        (2, [-1, 1], good),
        (2, [0, 1 << 20], good),
        (2, [0, 1], good[:, :5]),
    ):
        with pytest.raises(UsageError):
            index.add(model, np.array(positions), vectors)
    assert index.covers() == {1: 4}


def test_an_index_that_was_saved_is_the_same(saved: Kind, tmp_path: Path) -> None:
    index = filled(saved, {1: 4, 5: 0, 3: 9})
    index.save(tmp_path / "index")
    loaded: VectorIndex = saved.load(tmp_path / "index")
    assert loaded.covers() == index.covers()
    queries = units(np.random.default_rng(1), 4)
    assert_agree(loaded.search(queries, 2), index.search(queries, 2))
    loaded.remove(1)
    loaded.add(8, np.arange(1), queries[:1])
    assert loaded.search(queries[:1], 1).models.tolist() == [[8]]
    assert saved.load(tmp_path / "index").covers() == index.covers()


@pytest.mark.parametrize("damage", ["absent", "cut", "about", "mixed"])
def test_a_damaged_file_is_refused(saved: Kind, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "index"
    filled(saved, {1: 400, 3: 9}).save(path)
    data = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "about":
        path.with_name("index.json").write_text("[]")
    else:
        path.write_bytes(bytes(len(data)))
    with pytest.raises(RegistryBrokenError):
        saved.load(tmp_path / "index")


@pytest.mark.parametrize("copies", [6, 50])
def test_copies_of_a_model_do_not_hide_the_nearest_one(kind: Callable[[int], VectorIndex], copies: int) -> None:
    random = np.random.default_rng(5)
    shared, own = units(random, 1), units(random, 1)
    index = kind(WIDTH)
    models = 4000 // copies if isinstance(index, EngineIndex) else 300
    rows = {model: (np.arange(copies), np.repeat(shared, copies, axis=0)) for model in range(models)}
    if isinstance(index, EngineIndex):
        index.add_all(rows)
    else:
        for model, held in rows.items():
            index.add(model, *held)
    index.add(100_000, np.arange(1), own)
    near = shared + 0.5 * own
    near /= np.linalg.norm(near)
    hits = index.search(near.astype(np.float32), 5)
    # All tie for the best place, and none is left out but where they are very many.
    assert set(hits.models[0].tolist()) <= set(range(models))
    assert hits.models.shape[1] == min(models, 5 + MOST_TIED)
    assert 100_000 in index.search(near.astype(np.float32), models + 1).models


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.dictionaries(st.integers(0, 1 << 30), st.integers(0, 40), max_size=30),
    copies=st.integers(0, 20),
    n=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_the_fast_search_agrees_with_the_slow_one(sizes: dict[int, int], copies: int, n: int, seed: int) -> None:
    fast, slow = filled(FlatIndex, sizes, seed), filled(ExactIndex, sizes, seed)
    random = np.random.default_rng(seed + 1)
    source = next((model for model, rows in sizes.items() if rows), None)
    if source is not None:
        for copy in range(copies):
            for index in (fast, slow):
                index.add((1 << 31) + copy, *slow.rows(source))
    queries = units(random, 3)
    if source is not None:
        queries = np.concatenate([queries, slow.rows(source)[1][:2]])
    assert_agree(fast.search(queries, n), slow.search(queries, n))


def test_parts_are_joined_as_one_index_would_answer() -> None:
    sizes = {model: model % 7 for model in range(60)}
    whole = filled(ExactIndex, sizes)
    parts = [FlatIndex(WIDTH) for _ in range(3)]
    for model in sizes:
        parts[model % 3].add(model, *whole.rows(model))
    queries = units(np.random.default_rng(1), 8)
    for n in (1, 7, 100):
        assert_agree(merged([part.search(queries, n) for part in parts], n), whole.search(queries, n))


@pytest.mark.parametrize("engine", NAMES)
def test_an_engine_that_was_added_to_and_taken_from_agrees_with_the_slow_search(engine: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    slow = ExactIndex(WIDTH)
    fast = EngineIndex(ENGINES[engine](tmp_path, "key", WIDTH))
    for model in range(60):
        rows = np.arange(model % 11), units(random, model % 11)
        slow.add(model, *rows)
        fast.add(model, *rows)
        if model % 5 == 4:
            gone = int(random.integers(model))
            slow.remove(gone)
            fast.remove(gone)
        if model % 20 == 19:
            queries = units(random, 4)
            for n in (1, 7, 100):
                assert_agree(fast.search(queries, n), slow.search(queries, n))
    assert fast.covers() == slow.covers()
    assert len(fast) == len(slow)
    for model in slow.covers():
        assert np.array_equal(fast.rows(model)[0], slow.rows(model)[0])
        assert np.allclose(fast.rows(model)[1], slow.rows(model)[1], atol=SCORE)


def test_all_rows_of_a_few_models_are_searched_without_faiss(tmp_path: Path) -> None:
    index = filled(FlatIndex, {4: 3, 2: 0, 9: 8})
    index.save(tmp_path / "index")
    program = (
        "import sys; from pathlib import Path; import numpy as np; from signatures.index import FlatIndex;"
        f"index = FlatIndex.load(Path(sys.argv[1])); hits = index.search(np.eye({WIDTH}, dtype=np.float32), 16);"
        "print(hits.models.tolist(), hits.scores.tolist(), 'faiss' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "index")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    hits = index.search(np.eye(WIDTH, dtype=np.float32), 16)
    assert found.stdout == f"{hits.models.tolist()} {hits.scores.tolist()} False\n"


@pytest.mark.parametrize("models", [3, 40])
def test_a_loaded_index_has_the_rows_that_faiss_finds_in_the_file(tmp_path: Path, models: int) -> None:
    import faiss

    filled(FlatIndex, dict.fromkeys(range(models), 5)).save(tmp_path / "index")
    loaded, written = FlatIndex.load(tmp_path / "index"), faiss.read_index(str(tmp_path / "index"))
    block = loaded.block()
    assert np.array_equal(block.ids, faiss.vector_to_array(written.id_map))
    assert np.array_equal(block.vectors, faiss.downcast_index(written.index).reconstruct_n(0, len(loaded)))


def test_a_file_of_another_layout_is_left_to_faiss(tmp_path: Path) -> None:
    import faiss

    index = filled(FlatIndex, {4: 3, 9: 8})
    index.save(tmp_path / "index")
    other = faiss.IndexIDMap(faiss.IndexHNSWFlat(WIDTH, 4, faiss.METRIC_INNER_PRODUCT))
    other.add_with_ids(*(np.concatenate([index.rows(model)[at] for model in (4, 9)]) for at in (1, 0)))
    faiss.write_index(other, str(tmp_path / "index"))
    beside = tmp_path / "index.json"
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"bytes": (tmp_path / "index").stat().st_size}))
    assert len(FlatIndex.load(tmp_path / "index")) == 11


def test_an_index_takes_in_the_rows_of_another_but_for_some_models() -> None:
    source, target = filled(FlatIndex, {1: 3, 2: 0, 3: 4}), filled(FlatIndex, {9: 2})
    assert isinstance(source, FlatIndex)
    assert isinstance(target, FlatIndex)
    target.extend(source.block().without({1}))
    assert target.covers() == {9: 2, 2: 0, 3: 4}
    assert np.array_equal(target.rows(3)[1], source.rows(3)[1])
    with pytest.raises(UsageError):
        target.extend(source.block())


def test_one_product_over_a_block_finds_what_the_slow_search_finds() -> None:
    slow = filled(ExactIndex, {4: 3, 2: 0, 9: 8, 1: 5})
    held = [slow.rows(model) for model in (4, 2, 9, 1)]
    block = Block(
        np.array([4, 2, 9, 1]),
        np.array([3, 0, 8, 5]),
        np.concatenate([positions for positions, _ in held]),
        np.concatenate([vectors for _, vectors in held]),
    )
    queries = units(np.random.default_rng(1), 5)
    for n in (0, 2, 9):
        assert_agree(best_of_models(block, queries, n), slow.search(queries, n))
    assert_agree(without_models(slow.search(queries, 9), {9}), filled_without(slow, 9).search(queries, 9))


def filled_without(index: VectorIndex, gone: int) -> VectorIndex:
    rest = ExactIndex(WIDTH)
    for model in set(index.covers()) - {gone}:
        rest.add(model, *index.rows(model))
    return rest


def test_sketches_become_unit_vectors() -> None:
    sketches = np.random.default_rng(0).standard_normal((3, 4, 4)).astype(np.float32) * 1e-30
    assert np.allclose(np.linalg.norm(unit_vectors(sketches), axis=1), 1, atol=1e-6)
    assert not unit_vectors(np.zeros((1, 4, 4), np.float32)).any()
