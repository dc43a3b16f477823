"""What every engine owes the registry: marks, updates that can be repeated, one writer, replacement beside the old."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from fingerprint.errors import UsageError
from signatures.engine import START, EngineBehindError, Mark
from signatures.engines import open_engine
from tests.engines import ENGINES, NAMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from signatures.engine import Engine

WIDTH = 16
FIRST, SECOND = Mark(3, "first"), Mark(7, "second")


def rows(model: int, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(model).standard_normal((count, WIDTH))
    return np.arange(count) * 2, (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=NAMES)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Engine]:
    """Opens the engine of one registry, every time as another process would."""
    return lambda key="key": ENGINES[request.param](tmp_path / "index", key, WIDTH)


def seen(engine: Engine, model: int) -> int:
    return int(engine.search(rows(model)[1][:1], 1).models[0, 0])


def test_an_engine_begins_before_all_changes(opened: Callable[..., Engine]) -> None:
    engine = opened()
    assert engine.mark() == START
    assert len(engine) == 0
    assert engine.search(rows(1)[1], 4).models.shape == (12, 0)
    assert engine.status().rows == 0


def test_another_process_sees_the_mark_and_the_rows(opened: Callable[..., Engine]) -> None:
    other = opened()
    assert other.mark() == START
    engine = opened()
    engine.update([], [(5, rows(5)), (2, rows(2)), (8, rows(8, 0))], START, FIRST)
    assert engine.mark() == other.mark() == FIRST
    assert other.covers() == {5: 12, 2: 12, 8: 0}
    assert seen(other, 5) == 5
    engine.update([5], [(6, rows(6))], FIRST, SECOND)
    assert other.mark() == SECOND
    assert seen(other, 5) != 5
    assert seen(other, 6) == 6


def test_an_update_that_is_repeated_changes_nothing(opened: Callable[..., Engine]) -> None:
    """As after a crash of an engine that could not write rows and mark at once."""
    engine = opened()
    engine.update([], [(5, rows(5)), (2, rows(2))], START, FIRST)
    engine.update([9], [(5, rows(5)), (2, rows(2))], FIRST, SECOND)
    assert engine.covers() == {5: 12, 2: 12}
    assert np.array_equal(np.sort(engine.rows(5)[0]), rows(5)[0])


def test_new_rows_of_a_model_replace_those_that_it_had(opened: Callable[..., Engine]) -> None:
    engine = opened()
    engine.update([], [(5, rows(5))], START, FIRST)
    engine.update([], [(5, rows(6, 3))], FIRST, SECOND)
    assert engine.covers() == {5: 3}
    assert float(engine.search(rows(5)[1][:1], 1).scores[0, 0]) < 0.99


def test_an_update_from_elsewhere_is_refused(opened: Callable[..., Engine]) -> None:
    engine, other = opened(), opened()
    engine.update([], [(5, rows(5))], START, FIRST)
    with pytest.raises(EngineBehindError):
        other.update([], [(6, rows(6))], START, SECOND)
    assert other.mark() == FIRST
    assert other.covers() == {5: 12}


def test_rows_that_cannot_be_leave_everything_as_it_was(opened: Callable[..., Engine]) -> None:
    engine = opened()
    engine.update([], [(5, rows(5))], START, FIRST)
    with pytest.raises(UsageError):
        engine.update([5], [(6, rows(6)), (7, (np.arange(2), np.ones((2, WIDTH), np.float32)))], FIRST, SECOND)
    assert opened().mark() == FIRST
    engine = opened()
    engine.mark()
    assert engine.covers() == {5: 12}


def test_a_rebuilt_engine_holds_what_it_was_given_and_nothing_else(opened: Callable[..., Engine]) -> None:
    engine, other = opened(), opened()
    engine.update([], [(5, rows(5)), (2, rows(2))], START, FIRST)
    other.mark()
    engine.rebuild(iter([(2, rows(2)), (9, rows(9)), (11, rows(11, 0))]), SECOND)
    assert seen(other, 5) == 5  # the old one is searched until its mark is read again
    assert other.mark() == SECOND
    assert other.covers() == {2: 12, 9: 12, 11: 0}
    with pytest.raises(KeyError):
        other.rows(5)


def test_the_engine_of_another_registry_is_not_believed(opened: Callable[..., Engine]) -> None:
    opened().update([], [(5, rows(5))], START, FIRST)
    stranger = opened("another")
    assert stranger.mark() == START
    assert len(stranger) == 0


def test_the_status_counts(opened: Callable[..., Engine]) -> None:
    engine = opened()
    engine.update([], [(model, rows(model)) for model in range(1, 9)], START, FIRST)
    status = engine.status()
    assert (status.models, status.rows) == (8, 96)
    assert status.parts >= 1
    assert 0 < status.least_recall <= 1


def test_an_engine_that_nobody_knows_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FP_INDEX", "nonsense://host")
    with pytest.raises(UsageError, match="FP_INDEX"):
        open_engine(tmp_path, "key", WIDTH)
