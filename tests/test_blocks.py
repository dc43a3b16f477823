"""Facts about blocks told from their bits, against numpy on the same numbers."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from fingerprint import blocks
from fingerprint.blocks import (
    Piece,
    Scratch,
    Signs,
    bits_of,
    cut,
    look,
    project,
    taken,
    widened,
    without_nonfinite,
)
from fingerprint.digest import TensorDigester
from fingerprint.dtypes import to_float32
from fingerprint.measure import measure_tensor
from fingerprint.moments import Moments
from fingerprint.parameters import DEFAULT_PARAMETERS as P
from fingerprint.signs import Stream, sign_block
from fingerprint.slices import clean
from fingerprint.vocabulary import Content

needs_the_loop = pytest.mark.skipif(blocks._kernels is None, reason="the loop was not compiled")
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


def test_the_moments_of_a_large_matrix_are_those_of_its_numbers() -> None:
    from fingerprint.dtypes import F32

    drawn = np.random.default_rng(0).laplace(size=(2048, 512)).astype(np.float32)
    found = measure_tensor(_Matrix(drawn, F32), P, casts=False).statistics
    wide = drawn.astype(np.float64)
    centred = wide - wide.mean()
    assert found.deviation == pytest.approx(wide.std(), rel=1e-5)
    assert found.mean == pytest.approx(wide.mean(), abs=1e-6)
    assert found.kurtosis == pytest.approx(np.mean(centred**4) / np.mean(centred**2) ** 2, rel=1e-4)


def test_values_that_are_not_finite_are_left_out_of_the_moments() -> None:
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    values[3, 5], values[7, 1], values[9, 9] = np.nan, np.inf, 0.0
    moments = Moments()
    moments.add(look(values, math.inf, Scratch()))
    found = moments.finish(0)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found.nonfinite == 2
    assert found.zeros == pytest.approx(1 / values.size)
    assert found.deviation == pytest.approx(finite.std(), rel=1e-4)
    centred = finite - finite.mean()
    assert found.kurtosis == pytest.approx(np.mean(centred**4) / np.mean(centred**2) ** 2, rel=1e-3)
    assert not np.any(clean(values)[~np.isfinite(values)])


LOOKED_AT = [*TYPES, np.dtype(np.float64), np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)]


def _looked_at(native: np.ndarray, limit: float, *, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> Piece:
    with monkeypatch.context() as patch, np.errstate(over="ignore", invalid="ignore"):
        if not compiled:
            patch.setattr(blocks, "_kernels", None)
        return look(native, limit, Scratch(), column_squares=True)


def _drawn(dtype: np.dtype, name: str) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(37, 2 * 129))
    if name == "zeros and -0":
        drawn[3, 5:9], drawn[8, 1] = 0.0, -0.0
    elif name == "not finite":
        drawn[1, 2], drawn[5, 7] = np.nan, -np.nan
        drawn[30, 200] = np.inf if dtype.name != "float8_e4m3fn" else np.nan
    elif name == "huge":
        drawn *= 2.0 ** min(np.log2(float(ml_dtypes.finfo(dtype).max)) - 4, 120.0)
    elif name == "tiny":
        drawn *= 2.0**-35
    elif name == "constant":
        drawn[:] = -0.5
    return drawn.astype(dtype)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", LOOKED_AT, ids=str)
@pytest.mark.parametrize("name", ["plain", "zeros and -0", "not finite", "huge", "tiny", "constant"])
def test_a_piece_is_what_its_numbers_are(
    dtype: np.dtype, name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled and blocks._kernels is None:
        pytest.skip("the loop was not compiled")
    whole = _drawn(dtype, name)
    native = whole[:, 129:]  # rows do not lie together
    before = whole.tobytes()
    wide = native.astype(np.float64)
    wide[~np.isfinite(wide)] = 0.0
    limit = float(np.abs(wide).max()) / 2
    piece = _looked_at(native, limit, compiled=compiled, monkeypatch=monkeypatch)
    assert whole.tobytes() == before
    cut_off = np.clip(wide, -limit, limit)
    np.testing.assert_array_equal(piece.block, cut_off.astype(np.float32))
    close = {"rtol": 1e-5, "atol": 1e-5 * limit}
    np.testing.assert_allclose(piece.rows, cut_off.sum(axis=1), **close)
    np.testing.assert_allclose(piece.columns, cut_off.sum(axis=0), **close)
    np.testing.assert_allclose(piece.row_squares, (wide**2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(piece.column_squares, (wide**2).sum(axis=0), rtol=1e-5)
    for power, found in enumerate(piece.powers, start=1):
        size = float((np.abs(wide) ** power).sum())
        assert found == pytest.approx((wide**power).sum(), rel=1e-5, abs=1e-5 * size)
    assert (piece.low, piece.high) == (np.float32(wide.min()), np.float32(wide.max()))
    finite = np.isfinite(native.astype(np.float64))
    assert piece.nonfinite == native.size - np.count_nonzero(finite)
    assert piece.zeros == np.count_nonzero((native.astype(np.float64) == 0) & finite)
    normal = bool(finite.all()) and not np.any(np.signbit(wide) & (wide == 0))
    assert piece.normal == normal or (not piece.normal and dtype not in TYPES)


@needs_the_loop
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", ["plain", "zeros and -0", "constant"])
@pytest.mark.parametrize("shape", [(37, 129), (12, 2048), (1, 1), (6, 1025), (7, 2)], ids=str)
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, math.inf])
def test_a_piece_that_is_projected_is_what_its_numbers_are(
    dtype: np.dtype, name: str, shape: tuple[int, int], share: float
) -> None:
    """The sums are those of ``look``, the product is that of what was cut."""
    whole = np.tile(_drawn(dtype, name), (1, 20))[: shape[0]]
    native = whole[:, 3 : 3 + shape[1]]
    limit = share * float(np.abs(native.astype(np.float32)).max())
    signs = sign_block(1, Stream.SKETCH, 5, 5 + shape[1], 32)
    places = np.arange(0, shape[1], 7)
    found = project(native, limit, Signs.of(signs), Scratch(), places, column_squares=True)
    told = look(native, limit, Scratch(), column_squares=True)
    assert found is not None
    assert found.projected is not None
    size = float(np.abs(told.numbers).max()) * shape[1]
    np.testing.assert_allclose(
        found.projected, told.numbers.astype(np.float64) @ signs.astype(np.float64), rtol=0, atol=1e-6 * size
    )
    assert (found.shape, found.normal, found.zeros, found.low, found.high) == (
        told.shape,
        told.normal,
        told.zeros,
        told.low,
        told.high,
    )
    for one, other in (
        (found.rows, told.rows),
        (found.columns, told.columns),
        (found.row_squares, told.row_squares),
        (found.column_squares, told.column_squares),
        (np.array(found.powers), np.array(told.powers)),
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * max(size, size**3))
    if dtype == np.float16:  # of these there are no more than the float32 numbers
        assert found.taken is None
    else:
        assert found.taken is not None
        np.testing.assert_array_equal(found.taken, native[:, places].T)
    with pytest.raises(ValueError, match="not kept"):
        found.numbers  # noqa: B018


@needs_the_loop
@pytest.mark.parametrize("name", ["not finite", "tiny", "huge"])
def test_what_is_rare_is_not_projected(name: str) -> None:
    native = _drawn(np.dtype(np.float32), name)
    signs = Signs.of(sign_block(1, Stream.SKETCH, 0, native.shape[1], 32))
    assert project(native, math.inf, signs, Scratch(), np.arange(3)) is None


@needs_the_loop
@pytest.mark.parametrize("shape", [(300, 700), (500, 500), (2049, 33), (64, 5000)], ids=str)
def test_a_matrix_measures_the_same_projected_or_not(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from fingerprint import measure
    from fingerprint.dtypes import BF16

    values = np.random.default_rng(0).normal(size=shape)
    values[: min(shape), : min(shape)] += 0.3 * np.eye(min(shape))
    view = _Matrix(values.astype(ml_dtypes.bfloat16), BF16)
    monkeypatch.setattr(measure, "projects", lambda _: True)
    found = measure_tensor(view, P, casts=True, norms=True)
    monkeypatch.setattr(measure, "projects", lambda _: False)
    told = measure_tensor(view, P, casts=True, norms=True)
    assert (found.digest, found.casts, found.slices, found.content) == (
        told.digest,
        told.casts,
        told.slices,
        told.content,
    )
    for one, other in (
        (found.sketch.whole, told.sketch.whole),
        (found.sketch.rows, told.sketch.rows),
        (found.sketch.columns, told.sketch.columns),
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())
    squares = np.square(values.astype(ml_dtypes.bfloat16).astype(np.float64))
    for looked in (found, told):  # thousands of float32 squares, one after the other
        np.testing.assert_allclose(looked.row_norms, np.sqrt(squares.sum(axis=1)), rtol=4e-6)
        np.testing.assert_allclose(looked.column_norms, np.sqrt(squares.sum(axis=0)), rtol=4e-6)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (1, 7)])
def test_pieces_may_be_empty_or_small(shape: tuple[int, int]) -> None:
    piece = look(np.full(shape, 3.0, np.float32), 2.0, Scratch())
    assert piece.block.shape == shape
    assert piece.rows.tolist() == [2.0 * shape[1]] * shape[0]
    assert piece.columns.tolist() == [2.0 * shape[0]] * shape[1]
    assert piece.powers[1] == 9.0 * shape[0] * shape[1]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_numbers_at_odd_places_of_a_file_are_read(dtype: np.dtype) -> None:
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(dtype)
    at_odd = np.frombuffer(b"\0" + values.tobytes(), np.uint8)[1:].view(dtype).reshape(4, 64)
    np.testing.assert_array_equal(look(at_odd, math.inf, Scratch()).block, to_float32(values))


def test_the_compiled_loop_refuses_room_that_does_not_fit() -> None:
    kernels = pytest.importorskip("fingerprint._kernels")
    words, out = np.zeros((2, 3), np.uint16), np.zeros((2, 3), np.float32)
    two, three, none = np.zeros(2, np.float32), np.zeros(3, np.float32), np.zeros(0, np.float32)
    assert kernels.look(words, 1.0, out, two, three, two.copy(), none) == (0, 0, 0, 6, 0.0, 0.0, 0.0, 0.0)
    for wrong in (
        (words, 1.0, out[:1], two, three, two, none),
        (words, 1.0, out, three, three, two, none),
        (words, 1.0, out, two, two, two, none),
        (words, 1.0, out, two, three, three, none),
        (words, 1.0, out, two, three, two, two),
        (words, 1.0, out.astype(np.float64), two, three, two, none),
        (words.astype(np.uint64), 1.0, out, two, three, two, none),
        (words[0], 1.0, out, two, three, two, none),
        (words.T, 1.0, out.T.copy(), three, two, three.copy(), none),
    ):
        with pytest.raises((ValueError, BufferError)):
            kernels.look(*wrong)


@needs_the_loop
def test_the_compiled_product_refuses_room_that_does_not_fit() -> None:
    kernels = pytest.importorskip("fingerprint._kernels")
    words, signs, out = np.zeros((2, 3), np.uint16), np.zeros((3, 32), np.float32), np.zeros((2, 32), np.float32)
    pairs, no_pairs = np.zeros((2, 32, 2), np.uint16), np.zeros(0, np.uint16)
    two, three, none = np.zeros(2, np.float32), np.zeros(3, np.float32), np.zeros(0, np.float32)
    zeros = (0, 0, 0, 6, 0.0, 0.0, 0.0, 0.0)
    at, taken = np.array([0, 2]), np.zeros((2, 2), np.uint16)
    for given in (pairs, no_pairs):
        assert kernels.sketch(words, 1.0, signs, given, at, out, two, three, two.copy(), none, taken) == zeros
    for wrong in (
        (words, 1.0, signs[:2], pairs, at, out, two, three, two, none, taken),
        (words, 1.0, signs, pairs[:1], at, out, two, three, two, none, taken),
        (words, 1.0, signs, pairs, at, out[:1], two, three, two, none, taken),
        (words, 1.0, signs, pairs, at, out, three, three, two, none, taken),
        (words, 1.0, signs, pairs, at, out, two, two, two, none, taken),
        (words, 1.0, signs, pairs, at, out, two, three, two, two, taken),
        (words[0], 1.0, signs, pairs, at, out, two, three, two, none, taken),
        (words, 1.0, signs, pairs, at + 1, out, two, three, two, none, taken),
        (words, 1.0, signs, pairs, at - 1, out, two, three, two, none, taken),
        (words, 1.0, signs, pairs, at.astype(np.int32), out, two, three, two, none, taken),
        (words, 1.0, signs, pairs, at, out, two, three, two, none, taken[:1]),
    ):
        with pytest.raises((ValueError, BufferError)):
            kernels.sketch(*wrong)


@pytest.mark.parametrize("with_loop", [True, False])
@pytest.mark.parametrize("middle", [0.0173, 1.0, -3.3])
def test_numbers_that_hardly_differ_are_told_from_their_rounding(
    middle: float, with_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fingerprint.dtypes import F32

    if not with_loop:
        monkeypatch.setattr(blocks, "_kernels", None)
    values = (middle * (1 + 1e-5 * np.random.default_rng(0).normal(size=4096))).astype(np.float32)
    wide = values.astype(np.float64)
    found = measure_tensor(_Matrix(values, F32), P, casts=False)
    assert found.content is Content.VECTOR
    assert found.statistics.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert found.statistics.deviation == pytest.approx(wide.std(), rel=1e-6)
    assert found.statistics.kurtosis == pytest.approx(np.mean((wide - wide.mean()) ** 4) / wide.var() ** 2, rel=1e-6)
    same = measure_tensor(_Matrix(np.full(4096, middle, np.float32), F32), P, casts=False)
    assert (same.content, same.statistics.deviation, same.statistics.kurtosis) == (Content.CONSTANT, 0.0, 0.0)
