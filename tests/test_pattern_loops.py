"""The compiled recognisers of patterns say what those of numpy say, on noise and on everything that they recognise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fingerprint import content, patterns

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(patterns._loops is None, reason="the loops were not compiled")

RANDOM = np.random.default_rng(5)


def slices(kind: str, number: int, length: int) -> np.ndarray:
    """Slices of one kind, (number, length) float64."""
    place = np.arange(length) + RANDOM.uniform(0.0, 9.0, (number, 1))
    noise = RANDOM.normal(0.0, 1.0, (number, length))
    return {
        "noise": noise,
        "waves": np.sin(place * RANDOM.uniform(0.02, 3.0, (number, 1))) + 0.01 * noise,
        "ramps": place - place.mean(axis=1, keepdims=True),
        "repeated": np.tile(noise[:, : max(1, length // 3)], 4)[:, :length],
        "steps": np.sign(np.sin(place / 7.0)),
        "sparse": noise * (np.abs(noise) > 2.5),
        "one": np.where(np.arange(length) == length // 2, 3.0, 0.0) + np.zeros((number, 1)),
        "huge": np.clip(noise, -3.0, 3.0) * 1e38,
        "tiny": noise * 1e-45,
        "zeros": np.zeros((number, length)),
        "grid": np.round(noise * 4.0) / 4.0,
        "codes": RANDOM.normal(0.0, 1.0, 11)[RANDOM.integers(0, 11, (number, length))],
        "pruned grid": np.round(noise * 4.0) / 4.0 * (RANDOM.random((number, length)) < 0.5),
        "three steps": RANDOM.integers(0, 60, (number, length)) * 0.3,
    }[kind]


KINDS = [
    "noise", "waves", "ramps", "repeated", "steps", "sparse", "one", "huge", "tiny", "zeros", "grid", "codes",
    "pruned grid", "three steps",
]  # fmt: skip


def both_ways(ask: Callable[[], Any]) -> tuple[Any, Any]:
    """What the loops and numpy answer."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        found = ask()
        patch.setattr(patterns, "_loops", None)
        patch.setattr(content, "_loops", None)
        return found, ask()


@pytest.mark.parametrize("length", [1, 15, 16, 19, 20, 37, 256, 300, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrences_leave_as_much_unexplained(kind: str, length: int) -> None:
    given = slices(kind, 7, length)
    found, wanted = both_ways(lambda: patterns.unexplained(given))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("length", [2, 3, 9, 64, 257, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_slices_repeat_as_much_at_the_same_distance(kind: str, length: int) -> None:
    given = slices(kind, 7, length)
    (found, distance), (wanted, other) = both_ways(lambda: patterns.repetition(given))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)
    # Where a correlation is as good as the best but for rounding, either distance is right.
    assert np.mean(distance == other) >= (0.5 if kind in {"steps", "waves", "ramps", "codes"} else 0.8)


@pytest.mark.parametrize("length", [160, 161, 1000, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_slices_are_as_steep(kind: str, length: int) -> None:
    for one in slices(kind, 12, length).astype(np.float32):
        found, wanted = both_ways(lambda one=one: patterns._may_be_steep(one[None]))
        assert found == wanted


@pytest.mark.parametrize("length", [16, 20, 32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_runs_have_the_same_levels(kind: str, length: int) -> None:
    given = slices(kind, 40, length)
    found, wanted = both_ways(lambda: content._grid_levels(given))
    np.testing.assert_array_equal(found, wanted)
    if kind == "grid":
        assert np.mean(found > 0) > 0.9


@pytest.mark.parametrize("length", [16, 33, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_code_books_have_the_same_size(kind: str, length: int) -> None:
    given = slices(kind, 40, length)
    found, wanted = both_ways(lambda: content._book_size(given))
    np.testing.assert_array_equal(found, wanted)
    if kind == "codes" and length == 64:
        assert found.max() == 11


def test_what_does_not_fit_is_refused() -> None:
    loops: Any = patterns._loops
    two, whole = np.zeros((3, 20)), np.zeros(3, np.int64)
    for wrong in (
        lambda: loops.unexplained(two.astype(np.float32), np.zeros(3)),
        lambda: loops.unexplained(two[0], np.zeros(3)),
        lambda: loops.unexplained(two, np.zeros(2)),
        lambda: loops.unexplained(two[:, ::2], np.zeros(3)),
        lambda: loops.repetition(two[:, :1].copy(), np.zeros(3), whole),
        lambda: loops.repetition(two, np.zeros(3), whole[:2]),
        lambda: loops.any_steep(two),
        lambda: loops.levels(np.zeros((3, 65)), whole),
        lambda: loops.levels(two, whole[:1]),
        lambda: loops.different(two, whole, 1, 64),
        lambda: loops.different(two, whole, 1, -1),
    ):
        with pytest.raises(ValueError, match=r"float|contiguous"):
            wrong()
    frozen = np.zeros(3)
    frozen.setflags(write=False)
    with pytest.raises((ValueError, BufferError)):
        loops.unexplained(two, frozen)
