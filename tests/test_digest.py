"""Digests see values: not names, containers, widths, or how the pieces arrive."""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fingerprint.digest import TensorDigester, narrowest

BLOCK = 64
FLOATS = [ml_dtypes.bfloat16, np.float16, np.float32, np.float64, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


def digest(values: np.ndarray, *, block: int = BLOCK, pieces: int = 1) -> bytes:
    digester = TensorDigester(block)
    for piece in np.array_split(values, pieces):
        digester.update(piece)
    return digester.digest()


def test_golden_digest_follows_the_definition() -> None:
    values = np.arange(100, dtype=np.float32) / 8
    blocks = b""
    for part in (values[:64], values[64:]):  # eighths up to 12.375 are exact in bf16
        raw = struct.pack(f"<{len(part)}f", *part)
        high = b"".join(raw[i + 2 : i + 4] for i in range(0, len(raw), 4))
        blocks += blake3(high + b"\x01").digest()
    outer = blake3(b"weightprint tensor 2\x00float\x00" + struct.pack("<Q", 100) + blake3(blocks).digest())
    assert digest(values) == outer.digest()


def test_golden_digests_are_pinned() -> None:
    eighths = np.arange(1000, dtype=np.float32) / 8
    expected = "317da3b38f558fa2c48a7373b88ba16d484c0359d14a309c488a07296034b78a"
    assert digest(eighths, block=65536).hex() == expected
    expected = "82f47a819a7fc09ca32389f9569b636ae5c350ac7985c85ac6778af438b3c442"
    assert digest(np.arange(10, dtype=np.int64), block=65536).hex() == expected
    expected = "4b6bc1351386f77032eb60009ec020d744fbab0cc1a4fc34d5e77d0e7d1b80f8"
    assert digest(np.arange(3.0) / 3, block=65536).hex() == expected


@given(
    values=hnp.arrays(np.float16, st.integers(0, 200), elements=st.floats(width=16, allow_subnormal=True)),
    dtype=st.sampled_from(FLOATS),
    pieces=st.integers(1, 7),
)
def test_widening_and_pieces_change_nothing(values: np.ndarray, dtype: type, pieces: int) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(dtype)
    wide = narrow.astype(np.float64)
    assert digest(narrow, pieces=pieces) == digest(wide)
    if np.dtype(dtype) != np.float64:
        assert digest(narrow.astype(np.float32)) == digest(wide, pieces=pieces)


def test_negative_zero_is_zero_and_all_nans_are_one() -> None:
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64):
        zeros = np.array([0.0, 1.0, -0.0], dtype)
        assert digest(zeros) == digest(np.array([-0.0, 1.0, 0.0], dtype))
    quiet, other = np.array([0x7FC00000, 0xFFC12345], np.uint32).view(np.float32)
    assert digest(np.array([quiet, 1 / 3], np.float32)) == digest(np.array([other, 1 / 3], np.float32))
    assert digest(np.array([np.nan, 1.0], ml_dtypes.bfloat16)) == digest(np.array([np.nan, 1.0], np.float64))
    assert digest(np.array([np.nan, 1.0], np.float32)) != digest(np.array([0.0, 1.0], np.float32))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ([1.0, 0.5, -3.0], "bf16"),
        ([1.0009765625], "f16"),
        ([65505.0], "f32"),
        ([2.0**-100, 1.0 + 2.0**-20], "f32"),
        ([0.1], "f64"),
        ([1e300], "f64"),
        ([np.inf, -np.inf, np.nan], "bf16"),
        ([2.0**-24], "bf16"),
        ([], "bf16"),
    ],
)
def test_the_narrowest_type_that_holds_a_block_is_taken(values: list[float], name: str) -> None:
    found, _ = narrowest(np.array(values, np.float64))
    assert found == name


def test_one_changed_bit_changes_the_digest() -> None:
    values = np.random.default_rng(0).normal(size=300).astype(np.float32)
    other = values.copy()
    other[299] = np.nextafter(other[299], np.float32(10))
    assert digest(values) != digest(other)


def test_length_kind_and_order_count() -> None:
    zeros = np.zeros(10, np.float32)
    found = {
        digest(zeros),
        digest(zeros[:9]),
        digest(zeros.astype(np.int32)),
        digest(zeros.astype(np.int64)),
        digest(np.array([1.0, 2.0])),
        digest(np.array([2.0, 1.0])),
    }
    assert len(found) == 6


def test_booleans_are_bytes() -> None:
    flags = np.array([True, False, True])
    assert digest(flags) == digest(flags.astype(np.uint8))
