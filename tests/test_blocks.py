"""Facts about blocks told from their bits, against numpy on the same numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fingerprint.blocks import Scratch, bits_of, cut, taken, widened, without_nonfinite
from fingerprint.digest import TensorDigester
from fingerprint.dtypes import to_float32
from fingerprint.measure import Moments, measure_tensor
from fingerprint.parameters import DEFAULT_PARAMETERS as P
from fingerprint.slices import clean

TYPES = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)]
CASES = {
    "both signs": [1.5, -2.0, 0.0, 3.0, -0.25],
    "negative": [-1.5, -2.0, -0.25],
    "positive": [1.5, 2.0, 0.25],
    "zeros": [0.0, 0.0],
    "negative zeros": [-0.0, -1.0, 0.0, -0.0],
    "nothing but negative zeros": [-0.0, -0.0],
    "infinite": [1.0, np.inf],
    "negatively infinite": [1.0, -np.inf],
    "unknown": [np.nan, 1.0],
    "negatively unknown": [-np.nan, -1.0],
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_facts_are_those_of_the_numbers(dtype: np.dtype, name: str) -> None:
    values = np.array(CASES[name]).astype(dtype)
    found, wide = bits_of(values), to_float32(values)
    assert found is not None
    assert found.finite == bool(np.isfinite(wide).all())
    if not found.finite:
        return
    assert (found.low, found.high) == (wide.min(), wide.max())
    assert found.zeros == np.count_nonzero(wide == 0)
    assert found.normal == (not np.any((wide == 0) & np.signbit(wide)))


@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
def test_every_number_of_16_bits_is_told_apart(dtype: np.dtype) -> None:
    for word in np.arange(1 << 16, dtype=np.uint16).reshape(-1, 1 << 8):
        for flat in (word.view(dtype), np.stack([word, word[::-1]]).reshape(-1).view(dtype)):
            found, wide = bits_of(flat), to_float32(flat)
            assert found is not None
            assert found.finite == bool(np.isfinite(wide).all())
            if found.finite:
                assert (found.low, found.high) == (wide.min(), wide.max())


def test_other_types_are_left_to_the_numbers() -> None:
    assert bits_of(np.zeros(4, np.float64)) is None
    assert bits_of(np.zeros(4, np.int8)) is None
    assert bits_of(np.zeros(0, np.float32)) is None


@pytest.mark.parametrize("dtype", [*TYPES, np.dtype(np.float64), np.dtype(ml_dtypes.float8_e4m3fn)], ids=str)
def test_widening_is_exact_and_leaves_what_is_stored(dtype: np.dtype) -> None:
    scratch = Scratch()
    values = np.random.default_rng(0).normal(size=(8, 32)).astype(dtype)
    before = values.tobytes()
    block = widened(values, scratch)
    np.testing.assert_array_equal(block, to_float32(values))
    np.testing.assert_array_equal(cut(block, 0.5, scratch), np.clip(to_float32(values), -0.5, 0.5))
    assert values.tobytes() == before


def test_a_block_that_is_finite_is_not_copied() -> None:
    block = np.full((2, 3), 1e30, np.float32)  # whose squares overflow
    np.testing.assert_array_equal(without_nonfinite(block), block)
    small = np.ones((2, 3), np.float32)
    assert without_nonfinite(small) is small
    small[1, 2] = np.nan
    np.testing.assert_array_equal(without_nonfinite(small), [[1, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_some_rows_and_columns_are_taken_as_they_are(dtype: np.dtype) -> None:
    values = np.random.default_rng(0).normal(size=(7, 9)).astype(dtype)
    at = np.array([0, 3, 6])
    assert taken(values, at, 0).tobytes() == values[at].tobytes()
    assert taken(values, at, 1).tobytes() == np.ascontiguousarray(values[:, at]).tobytes()


@pytest.mark.parametrize("dtype", [*TYPES, np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("rounding", [None, ml_dtypes.bfloat16, np.float16])
def test_the_digest_of_normal_numbers_needs_no_second_look(dtype: np.dtype, rounding: type | None) -> None:
    values = np.random.default_rng(0).normal(size=3000).astype(dtype)
    values = values if rounding is None else values.astype(rounding).astype(dtype)
    plain, hinted = TensorDigester(1024), TensorDigester(1024)
    for piece in np.split(values, [700, 1024, 2500]):
        plain.update(piece)
        hinted.update(piece, normal=True)
    assert plain.digest() == hinted.digest()


class _Matrix:
    """An array as a view that is read in pieces."""

    name = "w"

    def __init__(self, values: np.ndarray, dtype: object) -> None:
        self.shape, self.dtype, self._flat = values.shape, dtype, values.reshape(-1)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._flat[start:stop]


def test_the_kurtosis_of_a_large_matrix_is_that_of_a_part_of_its_rows() -> None:
    from fingerprint.dtypes import F32

    drawn = np.random.default_rng(0).laplace(size=(2048, 512)).astype(np.float32)
    found = measure_tensor(_Matrix(drawn, F32), P, casts=False).statistics
    wide = drawn.astype(np.float64)
    centred = wide - wide.mean()
    assert found.deviation == pytest.approx(wide.std(), rel=1e-5)
    assert found.mean == pytest.approx(wide.mean(), abs=1e-6)
    assert found.kurtosis == pytest.approx(np.mean(centred**4) / np.mean(centred**2) ** 2, rel=0.1)


def test_values_that_are_not_finite_are_left_out_of_the_moments() -> None:
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    values[3, 5], values[7, 1], values[9, 9] = np.nan, np.inf, 0.0
    moments = Moments()
    moments.add(values)
    moments.sample(0, values)
    found = moments.finish(0)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found.nonfinite == 2
    assert found.zeros == pytest.approx(1 / values.size)
    assert found.deviation == pytest.approx(finite.std(), rel=1e-4)
    centred = finite - finite.mean()
    assert found.kurtosis == pytest.approx(np.mean(centred**4) / np.mean(centred**2) ** 2, rel=1e-3)
    assert not np.any(clean(values)[~np.isfinite(values)])
