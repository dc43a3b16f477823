"""GGUF: what the gguf package writes, its converter of byte orders, every type of block, parts, and hostile bytes."""

from __future__ import annotations

import builtins
import math
import struct
import sys
from typing import TYPE_CHECKING, Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerprint.canonical import lay_out
from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import InputError, MalformedFileError, UnsupportedFormatError
from fingerprint.measure import measure_digest
from fingerprint.parameters import Parameters
from fingerprint.quant.ggml import BLOCK_TYPES

if TYPE_CHECKING:
    from pathlib import Path

    from fingerprint.checkpoint import Checkpoint

HEADS, KEY_HEADS, WIDTH, NEURONS, LAYERS, TOKENS = 4, 2, 64, 96, 2, 160


def permuted(weights: Any, heads: int) -> Any:
    """What llama.cpp's ``LlamaModel.permute`` does, written out by hand: row 2i + half from row half * size/2 + i."""
    size = len(weights) // heads
    order = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weights[order]


def llama_weights(seed: int = 0) -> dict[str, Any]:
    """A tiny Llama by its Hugging Face names."""
    random = np.random.default_rng(seed)

    def of(*shape: int) -> Any:
        return random.normal(0, 0.02, shape).astype(np.float32)

    weights = {"model.embed_tokens.weight": of(TOKENS, WIDTH), "model.norm.weight": of(WIDTH)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        weights |= {
            f"{at}.self_attn.q_proj.weight": of(WIDTH, WIDTH),
            f"{at}.self_attn.k_proj.weight": of(WIDTH // 2, WIDTH),
            f"{at}.self_attn.k_proj.bias": of(WIDTH // 2),
            f"{at}.self_attn.v_proj.weight": of(WIDTH // 2, WIDTH),
            f"{at}.self_attn.o_proj.weight": of(WIDTH, WIDTH),
            f"{at}.mlp.gate_proj.weight": of(NEURONS, WIDTH),
            f"{at}.mlp.up_proj.weight": of(NEURONS, WIDTH),
            f"{at}.mlp.down_proj.weight": of(WIDTH, NEURONS),
            f"{at}.input_layernorm.weight": of(WIDTH),
            f"{at}.post_attention_layernorm.weight": of(WIDTH),
        }
    return weights


def gguf_name(name: str) -> str:
    """The package's own map of names, for the architecture llama."""
    if ".self_attn.k_proj.bias" in name:
        return name.replace("model.layers.", "blk.").replace(".self_attn.k_proj", ".attn_k")
    found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS).get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None
    return found


def write_llama(
    path: Path, weights: dict[str, Any], *, big: bool = False, heads: int | None = HEADS, kind: str = "F32", **more: Any
) -> None:
    """The file that conversion makes of a Llama, by the package's writer."""
    order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=order, **more)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_token_list([f"token {number}" for number in range(TOKENS)])
    writer.add_array("general.languages", ["en", "de"])
    if heads is not None:
        writer.add_head_count(heads)
        writer.add_head_count_kv(KEY_HEADS)
    for name, values in weights.items():
        stored = values.copy()
        if "q_proj" in name:
            stored = permuted(stored, HEADS)
        if "k_proj" in name:
            stored = permuted(stored, KEY_HEADS)
        if kind != "F32" and stored.ndim == 2:
            number = GGMLQuantizationType[kind]
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(stored, number), raw_dtype=number)
        else:
            writer.add_tensor(gguf_name(name), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_all(checkpoint: Checkpoint) -> dict[str, Any]:
    return {one.name: one.read(0, math.prod(one.shape)).reshape(one.shape).copy() for one in checkpoint.tensors}


def assert_is_llama(checkpoint: Checkpoint, weights: dict[str, Any]) -> None:
    assert checkpoint.complete
    assert not checkpoint.findings
    stored = read_all(checkpoint)
    assert set(stored) == {gguf_name(name) for name in weights}
    for name, values in weights.items():
        np.testing.assert_array_equal(stored[gguf_name(name)], values)


# --- what the package writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("big", [False, True])
def test_a_llama_is_read_as_hugging_face_has_it(tmp_path: Path, big: bool) -> None:
    path, weights = tmp_path / "m.gguf", llama_weights()
    write_llama(path, weights, big=big)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "gguf"
        assert_is_llama(checkpoint, weights)
        assert checkpoint.metadata["general.name"] == "tiny"
        assert not any(key.startswith("tokenizer.") for key in checkpoint.metadata)


def test_same_digests_and_roles_as_safetensors(tmp_path: Path) -> None:
    weights = llama_weights()
    write_llama(tmp_path / "m.gguf", weights)
    safetensors.numpy.save_file(weights, tmp_path / "m.safetensors")
    found = []
    for name in ("m.gguf", "m.safetensors"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            layout = lay_out(checkpoint.tensors, checkpoint.metadata)
            found.append(
                {
                    (one.role.value, one.layer, one.axes, one.oriented, measure_digest(one.view, Parameters()))
                    for one in layout.tensors
                }
            )
            assert len(layout.mlps) == LAYERS
    assert found[0] == found[1]
    assert len(found[0]) == len(weights)


@pytest.mark.parametrize("kind", sorted(one.name for one in BLOCK_TYPES.values()))
def test_every_type_of_block_reads_as_the_package_dequantises_it(tmp_path: Path, kind: str) -> None:
    number = GGMLQuantizationType[kind]
    elements, size = GGML_QUANT_SIZES[number]
    block = BLOCK_TYPES[number]
    assert (block.elements, block.bytes, block.dtype.name) == (elements, size, kind)
    random = np.random.default_rng(number)
    raw = random.integers(0, 256, (3, 5, 7 * size), np.uint8)  # any bytes are blocks, if not likely ones
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    writer.add_tensor("stacked", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, number)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        (tensor,) = checkpoint.tensors
        assert checkpoint.complete
        assert tensor.dtype.name == kind
        assert tensor.shape == (3, 5, 7 * elements) == wanted.shape
        flat = wanted.reshape(-1)
        np.testing.assert_array_equal(tensor.read(0, flat.size), flat)
        for start, stop in [(0, 0), (1, 2), (elements - 1, elements + 1), (flat.size - 3, flat.size), (33, 1999)]:
            np.testing.assert_array_equal(tensor.read(start, stop), flat[start:stop])
        with pytest.raises(IndexError):
            tensor.read(0, flat.size + 1)


def test_all_types_that_the_package_dequantises_are_read() -> None:
    known = {number.value for number in gguf.quants._type_traits} - {GGMLQuantizationType.BF16}
    assert known == set(BLOCK_TYPES)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("big", [False, True])
def test_plain_types(tmp_path: Path, dtype: str, big: bool) -> None:
    values = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bert", endianess=order)
    writer.add_custom_alignment(128)
    writer.add_tensor("a", values.copy())
    writer.add_tensor("b", values[0].copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        stored = read_all(checkpoint)
    np.testing.assert_array_equal(stored["a"], values)
    np.testing.assert_array_equal(stored["b"], values[0])


def test_bfloat16_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    bits = gguf.quants.quantize(values, GGMLQuantizationType.BF16)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bert")
    writer.add_tensor("a", bits, raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        stored = read_all(checkpoint)["a"]
    assert stored.dtype.name == "bfloat16"
    np.testing.assert_array_equal(stored.astype(np.float32), gguf.quants.dequantize(bits, GGMLQuantizationType.BF16))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "MXFP4", "F32"])
def test_big_endian_files_of_the_packages_converter(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from argparse import Namespace

    from gguf.scripts.gguf_convert_endian import convert_byteorder

    path, weights = tmp_path / "m.gguf", llama_weights()
    weights = {name: values for name, values in weights.items() if values.shape[-1] % 32 == 0}
    write_llama(path, weights, kind=kind)
    with open_checkpoint(path) as checkpoint:
        wanted = read_all(checkpoint)
    monkeypatch.setattr(builtins, "input", lambda _: "YES")
    convert_byteorder(gguf.GGUFReader(path, "r+"), Namespace(order="big", dry_run=False))
    assert path.read_bytes()[4:8] == b"\0\0\0\3"
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.complete
        stored = read_all(checkpoint)
    for name, values in wanted.items():
        np.testing.assert_array_equal(stored[name], values)


def test_big_endian_blocks_that_nobody_has_described_are_a_finding(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf", llama_weights(), kind="Q5_1", big=True)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert not checkpoint.complete
        assert {one.code for one in checkpoint.findings} == {"unread-tensor"}
        assert all(one.dtype.name == "F32" for one in checkpoint.tensors)


# --- the order of rows ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 5),
    half=st.integers(1, 6),
    width=st.integers(1, 9),
    data=st.data(),
)
def test_any_range_of_reordered_rows(heads: int, half: int, width: int, data: st.DataObject) -> None:
    import fingerprint.dtypes as d
    from fingerprint.readers.base import StoredTensor
    from fingerprint.readers.rope_order import HalvesFirst
    from fingerprint.source import MemorySource

    wanted = np.arange(heads * half * 2 * width, dtype=np.float32).reshape(-1, width)
    source = MemorySource(permuted(wanted, heads).tobytes())
    view = HalvesFirst(StoredTensor("q", d.F32, wanted.shape, source, 0), heads)
    start = data.draw(st.integers(0, wanted.size))
    stop = data.draw(st.integers(start, wanted.size))
    np.testing.assert_array_equal(view.read(start, stop), wanted.reshape(-1)[start:stop])


def test_rows_stay_where_the_number_of_heads_is_not_known(tmp_path: Path) -> None:
    weights = llama_weights()
    write_llama(tmp_path / "m.gguf", weights, heads=None)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.complete
        assert [one.code for one in checkpoint.findings] == ["rope-order"]
        stored = read_all(checkpoint)
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(stored[gguf_name(name)], permuted(weights[name], HEADS))


def test_heads_may_differ_by_layer(tmp_path: Path) -> None:
    rows = np.arange(32, dtype=np.float32).reshape(16, 2)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "deci")
    writer.add_head_count([2, 4])
    writer.add_head_count_kv([1, 2])
    for layer, (queries, keys) in enumerate([(2, 1), (4, 2)]):
        writer.add_tensor(f"blk.{layer}.attn_q.weight", permuted(rows, queries))
        writer.add_tensor(f"blk.{layer}.attn_k.weight", permuted(rows, keys))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert len(checkpoint.tensors) == 4
        for values in read_all(checkpoint).values():
            np.testing.assert_array_equal(values, rows)


# --- parts and folders ----------------------------------------------------------------------------------------------


def test_split_files_are_one_checkpoint_by_folder_and_by_any_part(tmp_path: Path) -> None:
    weights = llama_weights()
    write_llama(tmp_path / "m.gguf", weights, split_max_tensors=9)
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert parts == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for path in (tmp_path, *(tmp_path / part for part in parts)):
        with open_checkpoint(path) as checkpoint:
            assert len(checkpoint.files) == 3
            assert_is_llama(checkpoint, weights)


def test_an_absent_part_is_a_finding(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf", llama_weights(), split_max_tensors=9)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    for path in (tmp_path, tmp_path / "m-00001-of-00003.gguf"):
        with open_checkpoint(path) as checkpoint:
            assert not checkpoint.complete
            assert "absent-shard" in {one.code for one in checkpoint.findings}


def test_several_quantisations_in_one_folder_are_an_error_that_names_them(tmp_path: Path) -> None:
    for kind in ("Q8_0", "F32"):
        write_llama(tmp_path / f"m.{kind}.gguf", llama_weights(), kind=kind)
    with pytest.raises(InputError, match="2 GGUF checkpoints"):
        open_checkpoint(tmp_path)


# --- older versions -------------------------------------------------------------------------------------------------


def by_hand(
    version: int, tensors: list[tuple[str, list[int], int, int]], data: bytes, *, kv: bytes = b"", kvs: int = 0
) -> bytes:
    """A file as the specification has it; version 1 has 32-bit counts and lengths."""
    count = "<I" if version == 1 else "<Q"
    out = b"GGUF" + struct.pack("<I", version) + struct.pack(count, len(tensors)) + struct.pack(count, kvs) + kv
    for name, dims, kind, offset in tensors:
        out += struct.pack(count, len(name)) + name.encode() + struct.pack("<I", len(dims))
        out += b"".join(struct.pack(count, dim) for dim in dims) + struct.pack("<IQ", kind, offset)
    return out + bytes(-len(out) % 32) + data


@pytest.mark.parametrize("version", [1, 2, 3])
def test_versions(tmp_path: Path, version: int) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    count = "<I" if version == 1 else "<Q"

    def text(value: str) -> bytes:
        return struct.pack(count, len(value)) + value.encode()

    kv = text("general.architecture") + struct.pack("<I", 8) + text("mpt")
    kv += text("tokenizer.ggml.tokens") + struct.pack("<II", 9, 8) + struct.pack(count, 2) + text("a") + text("bc")
    kv += (
        text("nested") + struct.pack("<II", 9, 9) + struct.pack(count, 1) + struct.pack("<I", 0) + struct.pack(count, 3)
    )
    kv += b"xyz" + text("flag") + struct.pack("<I?", 7, True)
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(version, [("a", [4, 3], 0, 0)], values.tobytes(), kv=kv, kvs=4))
    with open_checkpoint(path) as checkpoint:
        assert dict(checkpoint.metadata) == {"general.architecture": "mpt", "flag": "True"}
        np.testing.assert_array_equal(read_all(checkpoint)["a"], values)


# --- hostile --------------------------------------------------------------------------------------------------------

GOOD = by_hand(3, [("a", [4, 3], 0, 0), ("b", [32], 2, 64)], bytes(range(82)))
HOSTILE = {
    "unknown version": b"GGUF" + struct.pack("<I", 9) + GOOD[8:],
    "truncated magic": b"GGUF",
    "truncated header": GOOD[:40],
    "huge count of tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
    "many tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**18, 0) + bytes(64),
    "huge count of entries": b"GGUF" + struct.pack("<IQQ", 3, 1, 2**60),
    "huge key": b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**62) + bytes(64),
    "huge array": by_hand(3, [], b"", kvs=1, kv=struct.pack("<Q1sIIQ", 1, b"k", 9, 0, 2**62)),
    "huge array of strings": by_hand(3, [], b"", kvs=1, kv=struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 2**61)),
    "huge string": by_hand(3, [], b"", kvs=1, kv=struct.pack("<Q1sIQ", 1, b"k", 8, 2**62)),
    "unknown type of a value": by_hand(3, [], b"", kvs=1, kv=struct.pack("<Q1sI", 1, b"k", 99) + bytes(32)),
    "nested arrays": by_hand(3, [], b"", kvs=1, kv=struct.pack("<Q1sI", 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 5000),
    "key twice": by_hand(3, [], b"", kvs=2, kv=struct.pack("<Q1sIB", 1, b"k", 0, 1) * 2),
    "many axes": by_hand(3, [("a", [1] * 500, 0, 0)], bytes(64)),
    "huge shape": by_hand(3, [("a", [2**40, 2**40], 0, 0)], bytes(64)),
    "huge shape with a zero": by_hand(3, [("a", [0, 2**62, 2**62], 0, 0)], bytes(64)),
    "rows that are no blocks": by_hand(3, [("a", [31], 2, 0)], bytes(64)),
    "overlap": by_hand(3, [("a", [16], 0, 0), ("b", [16], 0, 32)], bytes(128)),
    "huge offset": by_hand(3, [("a", [16], 0, 2**63)], bytes(128)),
    "name twice": by_hand(3, [("a", [1], 0, 0), ("a", [1], 0, 32)], bytes(128)),
    "all beyond the end": by_hand(3, [("a", [16], 0, 0)], bytes(63)),
    "name that is not UTF-8": by_hand(3, [("a", [16], 0, 0)], bytes(64)).replace(b"a\x01\0\0\0", b"\xff\x01\0\0\0"),
    "bad alignment": by_hand(
        3, [("a", [4], 0, 0)], bytes(64), kvs=1, kv=struct.pack("<Q17sII", 17, b"general.alignment", 4, 33)
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_clear_error(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(InputError, match=r"m\.gguf"):
        open_checkpoint(path)


def test_the_readable_part_of_a_truncated_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD[:-1])
    with open_checkpoint(path) as checkpoint:
        assert [one.name for one in checkpoint.tensors] == ["a"]
        assert not checkpoint.complete
        assert "beyond the end" in checkpoint.findings[0].message


def test_an_unknown_type_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(3, [("a", [4], 0, 0), ("b", [4], 77, 32)], bytes(64)))
    with open_checkpoint(path) as checkpoint:
        assert [one.name for one in checkpoint.tensors] == ["a"]
        assert [(one.code, one.tensor) for one in checkpoint.findings] == [("unread-tensor", "b")]
        assert not checkpoint.complete


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), end=st.integers(0, len(GOOD)))
def test_any_changed_or_missing_byte_is_an_error_or_is_read(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, end: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    changed = bytearray(GOOD)
    changed[position] = value
    path.write_bytes(changed[: max(end, 1)])
    try:
        with open_checkpoint(path) as checkpoint:
            read_all(checkpoint)
    except InputError:
        pass


def test_without_the_package_one_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fingerprint.quant import ggml

    path = tmp_path / "m.gguf"
    write_llama(path, llama_weights(), kind="Q8_0")
    plain = tmp_path / "plain.gguf"
    write_llama(plain, llama_weights())
    ggml._dequantise.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    try:
        with pytest.raises(UnsupportedFormatError, match=r"weightprint\[gguf\]"):
            open_checkpoint(path)
        open_checkpoint(plain).close()
    finally:
        ggml._dequantise.cache_clear()


def test_bytes_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGML" + bytes(100))
    with pytest.raises(MalformedFileError, match="does not begin with GGUF"):
        open_checkpoint(path)


# --- gains ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "shifted"), [("gemma3", True), ("qwen3next", True), ("gemma3n", False)])
def test_gains_that_conversion_shifts_by_one_are_as_in_the_original(
    tmp_path: Path, architecture: str, shifted: bool
) -> None:
    random = np.random.default_rng(2)
    original = random.normal(0, 0.3, 96).astype(ml_dtypes.bfloat16).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    names = ("blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight", "output_norm.weight", "blk.0.ssm_norm.weight")
    for name in names:
        writer.add_tensor(name, original + np.float32(shifted and "ssm" not in name))
    writer.add_tensor("blk.0.attn_norm.bias", original)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    safetensors.numpy.save_file({"norm.weight": original.astype(ml_dtypes.bfloat16)}, tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "model.gguf") as read, open_checkpoint(tmp_path / "m.safetensors") as wanted:
        digest = measure_digest(wanted.tensors[0], Parameters())
        assert [measure_digest(tensor, Parameters()) for tensor in read.tensors] == [digest] * 5
        np.testing.assert_array_equal(read.tensors[0].read(5, 9), original[5:9])
