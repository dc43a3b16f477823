"""Signature files keep what a fingerprint holds, and nothing hostile gets further than one error."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.synthetic import small_model
from signatures.signature import decode, encode, is_signature, read_signature, sign, write_signature

if TYPE_CHECKING:
    from fingerprint.records import Fingerprint


def assert_same(left: object, right: object, tolerance: float = 0.0) -> None:
    """Compare records, arrays within ``tolerance`` of the largest absolute value of each row."""
    assert type(left) is type(right)
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        bound = tolerance * np.max(np.abs(left), axis=-1, keepdims=True, initial=0) if tolerance else 0
        assert np.all(np.abs(left - right) <= bound)
    elif dataclasses.is_dataclass(left):
        for item in dataclasses.fields(left):
            assert_same(getattr(left, item.name), getattr(right, item.name), tolerance)
    elif isinstance(left, tuple) and isinstance(right, tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other, tolerance)
    else:
        assert left == right


@pytest.fixture(scope="module")
def model() -> Fingerprint:
    return small_model(1)


def test_a_signature_holds_the_fingerprint_within_the_stated_error(model: Fingerprint) -> None:
    assert_same(model, sign(model).fingerprint, 1 / 254)


def test_what_was_read_is_written_again_to_the_bit(model: Fingerprint) -> None:
    signature = sign(model)
    data = encode(signature)
    assert encode(decode(data)) == data
    assert_same(signature, decode(data))


def test_a_signature_written_to_a_file_is_read_back(model: Fingerprint, tmp_path) -> None:
    path = tmp_path / "model.fpsig"
    write_signature(path, sign(model))
    assert is_signature(path)
    assert read_signature(path).identity == sign(model).identity
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.fpsig"]
