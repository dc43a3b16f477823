"""Unit rows, norms and medians against float64, at every scale that float32 has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerprint.vectors import median, row_norms, unit_rows

SCALES = [1e-45, 1e-38, 1e-30, 1e-19, 1e-9, 1.0, 1e9, 1e16, 1e30, 3e37]


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 4, 64), (2, 0), (0, 3), (300, 700)])
@pytest.mark.parametrize("scale", SCALES)
def test_rows_of_any_scale_become_unit_rows(shape: tuple[int, ...], scale: float) -> None:
    rows = (np.random.default_rng(1).uniform(0.5, 1.0, shape) * scale).astype(np.float32)
    wide = rows.astype(np.float64)
    wanted = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-300)
    np.testing.assert_allclose(unit_rows(rows), wanted, atol=1e-6)


def test_rows_of_many_scales_and_none_beside_one_another() -> None:
    rows = np.outer(np.array([*SCALES, 0.0], np.float32), [3.0, -4.0]).astype(np.float32)
    wanted = np.tile([0.6, -0.8], (len(rows), 1))
    wanted[0] = rows[0].astype(np.float64) / np.linalg.norm(rows[0].astype(np.float64))  # few bits are left of it
    wanted[-1] = 0.0
    np.testing.assert_allclose(unit_rows(rows), wanted, atol=1e-6)
    np.testing.assert_allclose(row_norms(rows[1:]) * 4.0 * SCALES[-1], 5.0 * np.array([*SCALES[1:], 0.0]), rtol=1e-6)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30))
def test_the_median_is_that_of_numpy(numbers: list[float]) -> None:
    assert median(numbers) == pytest.approx(float(np.median(numbers)), rel=1e-12)
    assert median(np.array(numbers)) == median(numbers)


def test_the_median_of_nothing_or_with_what_is_no_number_is_none() -> None:
    assert math.isnan(median([]))
    assert math.isnan(median([1.0, math.nan, 2.0]))
    assert median(np.array([[3, 1], [2, 9]])) == 2.5
