"""Sketches are linear, turn with the matrix, keep the prefix of a grown one, and see no means."""

from __future__ import annotations

import numpy as np
import pytest

from fingerprint.parameters import DEFAULT_PARAMETERS as P
from fingerprint.signs import Stream, sign_matrix
from fingerprint.sketch import MatrixSketch, MatrixSketcher, chance_spread

TOLERANCE = 2e-4  # of the root mean square entry: float32 products of some hundred terms


def sketch(matrix: np.ndarray, step: int = 37) -> MatrixSketch:
    sketcher = MatrixSketcher(*matrix.shape, P)
    for start in range(0, len(matrix), step):
        sketcher.update(start, np.ascontiguousarray(matrix[start : start + step], np.float32))
    return sketcher.finish()


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def without_means(wide: np.ndarray) -> np.ndarray:
    return wide - wide.mean(axis=1, keepdims=True) - wide.mean(axis=0) + wide.mean()


def centred(wide: np.ndarray) -> np.ndarray:
    result = without_means(wide)
    if wide.shape[0] == wide.shape[1]:
        identity = np.eye(len(wide)) - 1.0 / len(wide)
        result -= np.sum(result * identity) / np.sum(identity**2) * identity
    return result


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= TOLERANCE * np.sqrt(np.mean(np.square(b))) * np.sqrt(b.size))


@pytest.mark.parametrize(
    ("shape", "identity"), [((90, 200), 0.0), ((150, 150), 0.0), ((150, 150), 4.0), ((300, 40), 0.0)]
)
def test_every_part_follows_its_definition(shape: tuple[int, int], identity: float) -> None:
    values = matrix(*shape) + 0.3 + matrix(shape[0], 1, seed=1) + identity * np.eye(*shape, dtype=np.float32)
    found, exact = sketch(values), centred(values.astype(np.float64))
    # The multiple of the identity leaves the slices only where it is more than chance puts there.
    slices = exact if identity else without_means(values.astype(np.float64))
    left, right = (sign_matrix(P.seed, Stream.SKETCH, size, P.sketch_width).astype(np.float64) for size in shape)
    assert close(found.whole, left.T @ exact @ right / P.sketch_width)
    out, inner = (sign_matrix(P.seed, Stream.SLICE, size, P.axis_width).astype(np.float64) for size in shape)
    assert close(found.rows, (slices @ inner)[found.row_indices] / np.sqrt(P.axis_width))
    assert close(found.columns, (out.T @ slices).T[found.column_indices] / np.sqrt(P.axis_width))


@pytest.mark.parametrize("shape", [(90, 200), (150, 150)])
def test_the_sketch_of_the_transpose_is_the_transpose_of_the_sketch(shape: tuple[int, int]) -> None:
    upright, turned = sketch(matrix(*shape)), sketch(matrix(*shape).T)
    assert close(turned.whole, upright.whole.T)
    assert close(turned.rows, upright.columns)
    assert close(turned.columns, upright.rows)


def test_sketches_are_linear() -> None:
    a, b = matrix(100, 80), matrix(100, 80, seed=1)
    assert close(sketch(0.7 * a - 2 * b).whole, 0.7 * sketch(a).whole - 2 * sketch(b).whole)


def test_means_and_multiples_of_the_identity_are_not_seen() -> None:
    values = matrix(120, 120)
    shifted = values + matrix(120, 1, seed=1) + matrix(1, 120, seed=2) + 5 * np.eye(120, dtype=np.float32)
    assert close(sketch(shifted).whole, sketch(values).whole)


def test_block_size_does_not_matter() -> None:
    values = matrix(130, 70)
    assert close(sketch(values, 130).whole, sketch(values, 1).whole)


def test_added_rows_leave_the_prefix() -> None:
    values = matrix(1000, 64)
    grown = np.concatenate([values, np.zeros((8, 64), np.float32)])
    a, b = sketch(values).whole.ravel(), sketch(grown).whole.ravel()
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


def test_norms_and_cosines_are_estimated_without_bias() -> None:
    a = matrix(256, 192)
    b = 0.6 * a + 0.8 * matrix(256, 192, seed=1)
    first, second = sketch(a).whole, sketch(b).whole
    assert np.linalg.norm(first) == pytest.approx(np.linalg.norm(centred(a)), rel=0.1)
    cosine = np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second)
    assert cosine == pytest.approx(0.6, abs=5 / P.sketch_width)


@pytest.mark.parametrize("shape", [(80, 60), (40, 700), (512, 512)])
def test_the_spread_of_cosines_of_unrelated_matrices_is_as_stated(shape: tuple[int, int]) -> None:
    units = [sketch(matrix(*shape, seed)).whole.ravel() for seed in range(60)]
    stack = np.stack([unit / np.linalg.norm(unit) for unit in units])
    cosines = (stack @ stack.T)[np.triu_indices(60, 1)]
    assert np.std(cosines) == pytest.approx(chance_spread(shape, P.sketch_width), rel=0.15)
