"""Products of blocks with directions, as they are stored and by numpy, against float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fingerprint import directions
from fingerprint.directions import Directions, energies, rounded
from fingerprint.dtypes import DTYPES
from fingerprint.gauge.project import project, project_centred, project_some, survey
from fingerprint.readers.base import StoredTensor
from fingerprint.source import MemorySource
from fingerprint.tensors import Transposed

needs_the_loops = pytest.mark.skipif(directions._loops is None, reason="not built, or no products of bf16 here")
BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = [(1, 1), (1, 16), (7, 5), (6, 32), (50, 31), (13, 1030), (258, 33), (300, 64), (1025, 40)]
WIDTHS = [1, 16, 17, 64, 65, 192]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.02, shape).astype(BF16)


def exact(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0.0, atol=3e-6 * (np.abs(wanted).max() + 1e-30) + 1e-30)


@pytest.mark.parametrize("loops", [pytest.param(True, marks=needs_the_loops), False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_products_follow_their_definition(
    shape: tuple[int, int], width: int, loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not loops:
        monkeypatch.setattr(directions, "_loops", None)
    block, wide = numbers(*shape), numbers(*shape).astype(np.float64)
    along, across = (rounded(numbers(width, size, seed=1).astype(np.float32)) for size in (shape[1], shape[0]))
    places = np.flatnonzero(np.arange(shape[0]) % 3 != 1)
    exact(Directions(along).of_rows(block), wide @ along.T)
    exact(Directions(along).of_rows(block, places), wide[places] @ along.T)
    exact(Directions(across).of_columns(block), wide.T @ across.T)
    weights = np.abs(along[0])
    of_rows, totals = energies(block, weights)
    exact(of_rows, wide**2 @ weights)
    exact(totals, wide.sum(axis=0))


@needs_the_loops
@pytest.mark.parametrize("start", [0, 2, 3])
def test_a_part_of_the_rows_meets_its_part_of_the_directions(start: int) -> None:
    block, along = numbers(9, 40), rounded(numbers(20, 13, seed=1).astype(np.float32))
    exact(Directions(along).of_columns(block, start), block.astype(np.float64).T @ along[:, start : start + 9].T)


@needs_the_loops
def test_rows_that_lie_apart_are_multiplied_as_they_are_stored() -> None:
    block, along = numbers(30, 100)[::2, 20:60], rounded(numbers(64, 40, seed=1).astype(np.float32))
    exact(Directions(along).of_rows(block), block.astype(np.float64) @ along.T)


@needs_the_loops
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_counts_as_nothing(bad: float) -> None:
    block = numbers(20, 48)
    along, across = (rounded(numbers(64, size, seed=1).astype(np.float32)) for size in (48, 20))
    block[3, 5] = bad
    clean = np.where(np.isfinite(block.astype(np.float64)), block, 0).astype(np.float64)
    exact(Directions(along).of_rows(block), clean @ along.T)
    exact(Directions(across).of_columns(block), clean.T @ across.T)
    exact(energies(block, along[0] ** 2)[0], clean**2 @ along[0].astype(np.float64) ** 2)


@needs_the_loops
def test_directions_that_bf16_does_not_have_are_not_rounded() -> None:
    block, along = numbers(20, 48), numbers(64, 48, seed=1).astype(np.float32) * np.float32(1.0001)
    assert np.any(along != rounded(along))
    exact(Directions(along).of_rows(block), block.astype(np.float64) @ along.T)


@needs_the_loops
def test_the_loops_refuse_what_does_not_fit() -> None:
    loops = directions._loops
    assert loops is not None
    words, pairs = np.zeros((4, 6), np.uint16), np.zeros((3, 16, 2), np.uint16)
    none, room = np.zeros(0, np.int64), np.zeros((4, 16), np.float32)
    loops.of_rows(words, pairs, none, room)
    for given in (
        (words.astype(np.uint32), pairs, none, room),
        (words.T, pairs, none, room),
        (words[:, :4], pairs, none, room),
        (words, pairs[:, :8].copy(), none, room),
        (words, pairs, np.array([4]), room[:1].copy()),
        (words, pairs, np.array([-1]), room[:1].copy()),
        (words, pairs, none, room[:3].copy()),
        (words, pairs, none, room.astype(np.float64)),
    ):
        with pytest.raises(ValueError, match=r"words|rows"):
            loops.of_rows(*given)
    pairs, room = np.zeros((2, 16, 2), np.uint16), np.zeros((1, 16, 32), np.float32)
    loops.of_columns(words, pairs, room)
    for given in ((words, pairs, room[:, :8].copy()), (words[:2], pairs, room), (words.astype(np.uint32), pairs, room)):
        with pytest.raises(ValueError, match=r"words|rows"):
            loops.of_columns(*given)
    one, six = np.zeros(4, np.float32), np.zeros(6, np.float32)
    for given in ((words, one, one, six), (words, six, six, six), (words, six, one, one)):
        with pytest.raises(ValueError, match="words"):
            loops.energies(*given)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_matrices_are_projected_whole_and_in_part(
    dtype: str, turned: bool, columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fingerprint.gauge.project._NUMBERS_AT_ONCE", 1 << 10)
    monkeypatch.setattr("fingerprint.gauge.project._STORED_AT_ONCE", 1 << 10)
    values = numbers(90, 70).astype(np.float32 if dtype == "F32" else BF16)
    stored = StoredTensor("w", DTYPES[dtype], (90, 70), MemorySource(values.tobytes()), 0)
    view = Transposed(stored, "w") if turned else stored
    slices = values.astype(np.float64)
    slices = slices.T if turned else slices
    slices = slices.T if columns else slices
    along = rounded(numbers(64, slices.shape[1], seed=1).astype(np.float32))
    scales = np.abs(numbers(2, slices.shape[1], seed=2)).astype(np.float32)
    places = np.array([0, 3, 40, len(slices) - 1])
    whole = project(view, along, scales, columns=columns)
    exact(whole.coordinates, slices @ along.T)
    exact(whole.norms, np.sqrt(slices**2 @ scales.astype(np.float64).T ** 2))
    exact(project_some(view, places, along, columns=columns), (slices @ along.T)[places])
    centred = slices - slices.mean(axis=1, keepdims=True)
    exact(project_centred(view, places, along, columns=columns), (centred @ along.T)[places])
    seen = survey(view, scales, along[:2], columns=columns)
    exact(seen.norms, whole.norms)
    exact(seen.products, (slices @ along[:2].T))
    exact(seen.mean, slices.mean(axis=0))
