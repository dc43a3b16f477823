"""Element types: all that safetensors knows, decoded as the producing libraries mean them."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fingerprint.dtypes import DTYPES, F4, F6_E2M3, F6_E3M2, DType, Kind, decode, to_float32, to_float64

TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}


def microscaling(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The value of a code by the OCP Microscaling Formats specification 1.0, section 5.3: no infinities, no NaN."""
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    fraction = (code & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    bias = (1 << exponent_bits - 1) - 1
    return sign * (fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias))


def sixes(codes: np.ndarray) -> bytes:
    """Six-bit codes one after the other, the first in the lowest bits: bit by bit, to check the fast way against."""
    bits = "".join(f"{int(code):06b}"[::-1] for code in codes)
    return bytes(int(bits[start : start + 8][::-1], 2) for start in range(0, len(bits), 8))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_safetensors_accepts_name_and_size(dtype: DType) -> None:
    """The library checks the size of a tensor against its dtype: a wrong name or size is refused."""
    count = 8
    header = f'{{"w":{{"dtype":"{dtype.name}","shape":[{count}],"data_offsets":[0,{dtype.nbytes(count)}]}}}}'.encode()
    file = len(header).to_bytes(8, "little") + header + bytes(dtype.nbytes(count) or 0)
    [(name, found)] = safetensors.deserialize(file)
    assert name == "w"
    assert found["dtype"] == dtype.name


def test_table_has_every_dtype_of_safetensors() -> None:
    """An unknown name is answered with the list of those that are known."""
    header = b'{"w":{"dtype":"F7","shape":[1],"data_offsets":[0,1]}}'
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.deserialize(len(header).to_bytes(8, "little") + header + b"\0")
    for name in DTYPES:
        assert f"`{name}`" in str(caught.value)
    assert str(caught.value).count("`") == 2 * (len(DTYPES) + 1)


@pytest.mark.parametrize("name", TORCH)
def test_every_bit_pattern_decodes_as_in_torch(name: str) -> None:
    dtype = DTYPES[name]
    raw = np.random.default_rng(7).integers(0, 256, 1 << 16).astype(np.uint8)
    if dtype.kind is Kind.BOOL:
        raw &= 1
    elif dtype.bits == 8:
        raw[:256] = np.arange(256)
    elif dtype.bits == 16:
        raw = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    expected = torch.frombuffer(bytearray(raw.tobytes()), dtype=TORCH[name])
    decoded = decode(raw.tobytes(), dtype, expected.numel())
    assert decoded.dtype == dtype.numpy
    wanted = expected.real if dtype.kind is Kind.COMPLEX else expected
    np.testing.assert_array_equal(to_float32(decoded), wanted.to(torch.float32).numpy())
    np.testing.assert_array_equal(to_float64(decoded), wanted.to(torch.float64).numpy())


def test_f4_has_the_low_nibble_first() -> None:
    codes = np.random.default_rng(1).permutation(np.repeat(np.arange(16, dtype=np.uint8), 3))
    packed = bytes(codes[::2] | codes[1::2] << 4)
    expected = [microscaling(int(code), 2, 1) for code in codes]
    np.testing.assert_array_equal(to_float32(decode(packed, F4, 48)), expected)
    # safetensors stores the bytes of torch's type as they are, under twice the last size.
    tensor = torch.frombuffer(bytearray(packed), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    [(_, stored)] = safetensors.deserialize(save({"w": tensor}))
    assert (stored["dtype"], stored["shape"], bytes(stored["data"])) == ("F4", [48], packed)


@pytest.mark.parametrize(("dtype", "exponent", "mantissa"), [(F6_E2M3, 2, 3), (F6_E3M2, 3, 2)])
def test_f6_values_are_those_of_the_microscaling_formats(dtype: DType, exponent: int, mantissa: int) -> None:
    codes = np.random.default_rng(2).permutation(np.arange(64, dtype=np.uint8))
    expected = [microscaling(int(code), exponent, mantissa) for code in codes]
    np.testing.assert_array_equal(to_float32(decode(sixes(codes), dtype, 64)), expected)


@given(st.data(), st.sampled_from([F4, F6_E2M3, F6_E3M2]))
def test_prefix_of_packed_elements_is_prefix_of_all(data: st.DataObject, dtype: DType) -> None:
    raw = data.draw(st.binary(min_size=3, max_size=60).filter(lambda raw: len(raw) % 3 == 0))
    count = len(raw) * 8 // dtype.bits
    part = data.draw(st.integers(0, count))
    whole = decode(raw, dtype, count)
    np.testing.assert_array_equal(decode(raw, dtype, part).view(np.uint8), whole[:part].view(np.uint8))


def test_whole_byte_types_are_windows_not_copies() -> None:
    raw = bytes(64)
    for dtype in DTYPES.values():
        if dtype.bits >= 8:
            array = decode(raw, dtype, 64 * 8 // dtype.bits)
            assert np.shares_memory(array, np.frombuffer(raw, np.uint8))
            assert not array.flags.writeable


def test_bool_bytes_other_than_0_and_1_are_true() -> None:
    np.testing.assert_array_equal(decode(b"\x00\x01\x02\xff", DTYPES["BOOL"], 4), [False, True, True, True])


def test_too_few_bytes_are_refused() -> None:
    for dtype in DTYPES.values():
        with pytest.raises(ValueError, match=r"buffer|smaller"):
            decode(b"", dtype, 1)


def test_nbytes_counts_whole_bytes_only() -> None:
    for dtype in DTYPES.values():
        assert dtype.nbytes(0) == 0
        assert dtype.nbytes(8) == dtype.bits
        assert dtype.nbytes(dtype.group) == dtype.group * dtype.bits / 8
        assert dtype.group == 1 or dtype.nbytes(1) is None


def test_wide_integers_and_doubles_round_quietly() -> None:
    assert to_float32(np.array([1e300, -1e300]))[0] == np.inf
    assert to_float32(np.array([2**63 - 1]))[0] == np.float32(2.0**63)
    assert to_float64(np.array([3], np.uint64))[0] == 3.0
