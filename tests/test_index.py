"""Every index answers as the slow one does, counts models instead of rows, and never hides one behind ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerprint.errors import RegistryBrokenError, UsageError
from signatures.index import TIE, ExactIndex, FlatIndex, Hits, VectorIndex, merged, unit_vectors

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 16
Kind = type[ExactIndex] | type[FlatIndex]


def units(random: np.random.Generator, rows: int, width: int = WIDTH) -> np.ndarray:
    values = random.standard_normal((rows, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def filled(kind: Kind, sizes: dict[int, int], seed: int = 0) -> VectorIndex:
    random = np.random.default_rng(seed)
    index: VectorIndex = kind(WIDTH)
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
        assert {model for model in want if want[model] > last + 2 * TIE} <= set(got)
        assert {model for model in got if got[model] > last + 2 * TIE} <= set(want)
        assert all(abs(got[model] - want[model]) <= TIE for model in set(got) & set(want))


@pytest.fixture(params=[ExactIndex, FlatIndex], ids=["exact", "flat"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


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
    assert np.allclose(hits.scores[:, 0], 1, atol=1e-5)


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


def test_an_index_that_was_saved_is_the_same(kind: Kind, tmp_path: Path) -> None:
    index = filled(kind, {1: 4, 5: 0, 3: 9})
    index.save(tmp_path / "index")
    loaded: VectorIndex = kind.load(tmp_path / "index")
    assert loaded.covers() == index.covers()
    queries = units(np.random.default_rng(1), 4)
    assert_agree(loaded.search(queries, 2), index.search(queries, 2))
    loaded.remove(1)
    loaded.add(8, np.arange(1), queries[:1])
    assert loaded.search(queries[:1], 1).models.tolist() == [[8]]
    assert kind.load(tmp_path / "index").covers() == index.covers()


@pytest.mark.parametrize("damage", ["absent", "cut", "about", "mixed"])
def test_a_damaged_file_is_refused(kind: Kind, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "index"
    filled(kind, {1: 400, 3: 9}).save(path)
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
        kind.load(tmp_path / "index")


def test_copies_of_a_model_do_not_hide_the_nearest_one() -> None:
    random = np.random.default_rng(5)
    shared, own = units(random, 1), units(random, 1)
    for kind in (ExactIndex, FlatIndex):
        index: VectorIndex = kind(WIDTH)
        for model in range(300):
            index.add(model, np.arange(50), np.repeat(shared, 50, axis=0))  # each with 50 copies of one tensor
        index.add(1000, np.arange(1), own)
        near = shared + 0.5 * own
        near /= np.linalg.norm(near)
        hits = index.search(near.astype(np.float32), 5)
        assert set(hits.models[0].tolist()) == set(range(300))  # all tie for the best place: none is left out
        assert 1000 in index.search(near.astype(np.float32), 301).models


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


def test_an_index_absorbs_chosen_models_of_another() -> None:
    source, target = filled(FlatIndex, {1: 3, 2: 0, 3: 4}), filled(FlatIndex, {9: 2})
    assert isinstance(source, FlatIndex)
    assert isinstance(target, FlatIndex)
    target.absorb(source, {2, 3})
    assert target.covers() == {9: 2, 2: 0, 3: 4}
    assert np.array_equal(target.rows(3)[1], source.rows(3)[1])
    with pytest.raises(UsageError):
        target.absorb(source, {3})


def test_sketches_become_unit_vectors() -> None:
    sketches = np.random.default_rng(0).standard_normal((3, 4, 4)).astype(np.float32) * 1e-30
    assert np.allclose(np.linalg.norm(unit_vectors(sketches), axis=1), 1, atol=1e-6)
    assert not unit_vectors(np.zeros((1, 4, 4), np.float32)).any()
