"""The alignment test: exact under its null, blind to ties, and sure of copies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from benchmarks.synthetic import small_model
from fingerprint.comparing import align
from fingerprint.comparing.align import align_samples, align_tensors, log10_p_landed
from fingerprint.records import AxisSample, TensorRecord
from fingerprint.vocabulary import Axis


def sample(values: np.ndarray, indices: np.ndarray | None = None) -> AxisSample:
    chosen = np.arange(len(values)) if indices is None else indices
    return AxisSample(Axis.RESIDUAL, 0, 4096, chosen.astype(np.int64), values.astype(np.float32))


def normal(seed: int, rows: int = 64, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width))


def tensor(one: AxisSample) -> TensorRecord:
    return replace(small_model(1).tensors[0], axes=(one,))


def test_a_copy_lands_everywhere() -> None:
    found = align_samples(sample(normal(0)), sample(normal(0)))
    assert (found.landed, found.compared) == (64, 64)
    assert found.log10_p == pytest.approx(-math.log10(math.factorial(64)))
    assert found.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(("cosine", "at_most"), [(0.9, -80), (0.7, -45), (0.5, -15)])
def test_related_slices_land(cosine: float, at_most: float) -> None:
    a = normal(0)
    b = cosine * a + math.sqrt(1 - cosine**2) * normal(1)
    assert align_samples(sample(a), sample(b)).log10_p < at_most


def test_permuting_the_registered_slices_is_an_exact_null() -> None:
    rng = np.random.default_rng(3)
    a, b = normal(0), normal(0) + 0.3  # as alike as can be: only the numbering is random
    found = [align_samples(sample(a[rng.permutation(64)]), sample(b)).log10_p for _ in range(400)]
    for alpha in (0.1, 0.01):
        share = np.mean(np.array(found) <= math.log10(alpha))
        assert share <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / len(found))


def test_equal_rows_do_not_land_because_of_the_solver() -> None:
    landed = []
    for seed in range(50):
        same = np.repeat(normal(seed, rows=1), 64, axis=0)
        landed.append(align_samples(sample(same), sample(same + 1e-12)).landed)
    assert max(landed) <= 8


def test_a_mean_shared_by_all_slices_makes_no_match() -> None:
    landed = [align_samples(sample(normal(s) + 9), sample(normal(s + 99) + 9)).landed for s in range(50)]
    assert np.mean(landed) < 2
    assert max(landed) <= 7


def test_only_common_numbers_are_compared() -> None:
    values = normal(0, rows=100)
    ours, theirs = np.arange(0, 64), np.arange(32, 96)
    found = align_samples(sample(values[ours], ours), sample(values[theirs], theirs))
    assert (found.landed, found.compared) == (32, 32)


def test_zero_slices_are_left_out() -> None:
    values = normal(0)
    values[:10] = 0
    found = align_samples(sample(values), sample(values))
    assert (found.landed, found.compared) == (54, 54)


@pytest.mark.parametrize("cosine", [0.9, 0.7, 0.5])
def test_what_can_land_is_assigned_as_ever(cosine: float) -> None:
    for seed in range(20):
        a = normal(seed)
        b = cosine * a + math.sqrt(1 - cosine**2) * normal(seed + 100)
        assert align_samples(sample(a), sample(b), least=12) == align_samples(sample(a), sample(b))


def test_what_cannot_land_is_not_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(align, "_assigned", asked.append)
    found = [align_samples(sample(normal(seed)), sample(normal(seed + 100)), least=10) for seed in range(50)]
    assert not asked
    assert {(one.landed, one.compared, one.log10_p) for one in found} == {(0, 64, 0.0)}


@pytest.mark.parametrize("better_than", [-1e-9, -1.0, -7.5, -40.0])
def test_tensors_are_aligned_only_where_that_can_be_better(better_than: float) -> None:
    a = normal(0)
    b = 0.6 * a + 0.8 * normal(1)
    ours, theirs = (tensor(sample(one)) for one in (a, b))
    (whole,) = align_tensors(ours, theirs, transposed=False, negated=False)
    found = align_tensors(ours, theirs, transposed=False, negated=False, better_than=better_than)
    assert [one for one in found if one.landed] == [whole] * (whole.log10_p < better_than)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_little_says_nothing(rows: int) -> None:
    found = align_samples(sample(normal(0, rows)), sample(normal(0, rows)))
    assert found.log10_p == 0.0


def test_the_bound_holds_for_the_exact_law_of_fixed_points() -> None:
    for number in (5, 8):
        law = [
            math.comb(number, k)
            * sum((-1) ** i * math.factorial(number - k) // math.factorial(i) for i in range(number - k + 1))
            / math.factorial(number)
            for k in range(number + 1)
        ]
        assert sum(law) == pytest.approx(1.0)
        for k in range(number + 1):
            assert sum(law[k:]) <= 10 ** log10_p_landed(k) * (1 + 1e-12)
