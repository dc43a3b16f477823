"""Flax checkpoints: bytes that flax wrote, and trees packed by msgpack as flax packs them."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.dtypes import to_float32
from fingerprint.errors import InputError
from fingerprint.readers.flax import open_flax, recognises
from fingerprint.source import MemorySource

GOLDEN = Path(__file__).parent / "data" / "flax.msgpack"
"""Written by flax 0.12.8, with chunks of at most 64 bytes."""


def array(value: np.ndarray, kind: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(kind, msgpack.packb((value.shape, value.dtype.name, value.tobytes("C")), use_bin_type=True))


def packed(tree: Any) -> bytes:
    def default(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return array(value)
        if isinstance(value, np.generic):
            return array(np.asarray(value), 3)
        return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))

    return msgpack.packb(tree, default=default, strict_types=True)


def opened(raw: bytes, folder: Path) -> Checkpoint:
    (folder / "flax_model.msgpack").write_bytes(raw)
    return open_checkpoint(folder / "flax_model.msgpack")


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {t.name: to_float32(t.read(0, math.prod(t.shape))).reshape(t.shape) for t in checkpoint.tensors}


def test_file_of_flax_is_read() -> None:
    with open_checkpoint(GOLDEN) as checkpoint:
        assert checkpoint.format == "flax"
        assert checkpoint.complete
        assert checkpoint.findings == ()
        found = values(checkpoint)
        assert list(found) == ["Dense_0.weight", "Dense_0.bias", "embed.weight"]
        np.testing.assert_array_equal(found["Dense_0.weight"], np.arange(12).reshape(3, 4).T)
        np.testing.assert_array_equal(found["Dense_0.bias"], np.arange(4))
        np.testing.assert_array_equal(found["embed.weight"], np.arange(40).reshape(10, 4) - 3.5)
        embedding = checkpoint.tensors[2]
        for start in range(41):
            for stop in range(start, 41):
                np.testing.assert_array_equal(embedding.read(start, stop), np.arange(start, stop) - 3.5)


def test_parameters_are_laid_out_as_in_torch(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    heads = {
        name: {"kernel": random.normal(size=(6, 2, 3)), "bias": np.zeros((2, 3))} for name in ("query", "key", "value")
    }
    attention = {**heads, "out": {"kernel": random.normal(size=(2, 3, 6)), "bias": np.zeros(6)}}
    conv, alone = random.normal(size=(5, 4, 3, 7)), random.normal(size=(5, 3, 7))
    tree = {
        "params": {"mha": attention, "conv": {"kernel": conv}, "out": {"kernel": alone}, "norm": {"scale": np.ones(6)}},
        "batch_stats": {"bn": {"mean": np.ones(3), "var": np.ones(3)}},
        "both": {"kernel": np.ones(2), "scale": np.ones(2)},
    }
    with opened(packed(tree), tmp_path) as checkpoint:
        found = values(checkpoint)

    def exact(value: np.ndarray) -> np.ndarray:
        return value.astype(np.float32)

    np.testing.assert_array_equal(exact(attention["query"]["kernel"].reshape(6, 6).T), found["params.mha.query.weight"])
    np.testing.assert_array_equal(exact(attention["out"]["kernel"].reshape(6, 6).T), found["params.mha.out.weight"])
    np.testing.assert_array_equal(exact(conv.transpose(3, 2, 0, 1)), found["params.conv.weight"])
    np.testing.assert_array_equal(exact(alone.transpose(2, 1, 0)), found["params.out.weight"])
    assert found["params.mha.query.bias"].shape == (6,)
    assert {"params.norm.weight", "batch_stats.bn.running_mean", "both.kernel", "both.scale"} <= found.keys()


DTYPES = ["float32", "float16", "float64", "int32", "uint8", "bool", "complex64", "bfloat16", "float8_e4m3fn"]


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_read(name: str, tmp_path: Path) -> None:
    kind = np.dtype(getattr(ml_dtypes, name, name))
    wanted = (np.arange(6).reshape(2, 3) % 2).astype(kind)
    with opened(packed({"a": {"w": wanted}}), tmp_path) as checkpoint:
        [tensor] = checkpoint.tensors
        assert tensor.read(0, 6).tobytes() == wanted.tobytes()
        assert tensor.shape == (2, 3)


def test_lists_scalars_and_long_names(tmp_path: Path) -> None:
    weight = np.ones((2, 2), np.float32)
    tree = {"layers": [{"w": weight}, {"w": weight}], "step": 7, "lr": np.float32(1), "z": 1j, "note": "x" * 70_000}
    with opened(packed(tree), tmp_path) as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == ["layers.0.w", "layers.1.w"]
        assert checkpoint.complete


def test_moments_of_an_optimiser_are_told_by_their_form(tmp_path: Path) -> None:
    params = {"d": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}}
    tree = {"step": 3, "params": params, "anything": {"0": {"count": 3, "mu": params, "nu": params}, "1": {}}}
    with opened(packed(tree), tmp_path) as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == ["d.weight", "d.bias"]
        assert {finding.code for finding in checkpoint.findings} == {"optimiser-state"}
    with opened(packed({"opt_state": {"mu": params, "nu": {}}}), tmp_path) as checkpoint:
        assert len(checkpoint.tensors) == 2


def test_unknown_types_of_elements_are_reported(tmp_path: Path) -> None:
    tree = {"a": np.zeros(3, ml_dtypes.float8_e4m3b11fnuz), "b": np.zeros(3, np.float32)}
    with opened(packed(tree), tmp_path) as checkpoint:
        assert not checkpoint.complete
        assert [tensor.name for tensor in checkpoint.tensors] == ["b"]


def test_large_array_takes_little_memory(tmp_path: Path) -> None:
    wanted = np.random.default_rng(0).normal(size=1 << 22).astype(np.float32)
    raw = packed({"a": {"w": wanted}})
    (tmp_path / "m").write_bytes(raw)
    tracemalloc.start()
    try:
        with open_checkpoint(tmp_path / "m") as checkpoint:
            [tensor] = checkpoint.tensors
            np.testing.assert_array_equal(tensor.read(1 << 20, (1 << 20) + 1000), wanted[1 << 20 : (1 << 20) + 1000])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_damage_leads_to_another_error(data: st.DataObject) -> None:
    raw = bytearray(GOLDEN.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    source = MemorySource(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    recognises(source)
    try:
        for tensor in open_flax(source).tensors:
            tensor.read(0, math.prod(tensor.shape))
    except InputError:
        pass


HOSTILE = {
    "a map of 2**32": b"\xdf\xff\xff\xff\xff",
    "an array of 2**32": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "bytes of 4 GB": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "nested 10,000 deep": b"\x81\xa1a" * 10_000,
    "lists nested 100,000 deep": b"\x81\xa1a" + b"\x91" * 100_000,
    "a million empty lists": b"\x81\xa1a\xdd" + (2**21).to_bytes(4, "big") + b"\x90" * 2**21,
    "extension that ends early": b"\x81\xa1a\xc7\x05\x01\x93",
    "extension with more in it": packed({"a": msgpack.ExtType(1, msgpack.packb(([1], "float32", b"abcd")) + b"x")}),
    "array of too few bytes": packed({"a": msgpack.ExtType(1, msgpack.packb(([5], "float32", b"abcd")))}),
    "array of 2**60": packed({"a": msgpack.ExtType(1, msgpack.packb(([2**60], "float32", b"abcd")))}),
    "chunks of too few elements": packed(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 5}, "chunks": {"0": np.zeros(4, np.float32)}}}
    ),
    "unknown type": b"\x81\xa1a\xc1",
    "cut off": GOLDEN.read_bytes()[:-1],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        open_flax(MemorySource(HOSTILE[name], "m.msgpack"))


@pytest.mark.parametrize("value", [("x",), ([-1], "float32", b""), (3, 4, 5), ([1.5], "float32", b"abcd")])
def test_array_in_another_form_is_reported(value: tuple[Any, ...]) -> None:
    raw = packed({"a": msgpack.ExtType(1, msgpack.packb(value)), "b": np.zeros(1, np.float32)})
    contents = open_flax(MemorySource(raw))
    assert not contents.complete
    assert [tensor.name for tensor in contents.tensors] == ["b"]
