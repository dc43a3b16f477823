"""What ``fp inspect`` promises of every format: container, quantisation, tensors, types, roles, number of layers."""

from __future__ import annotations

import json
import math
import pickle
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import h5py
import msgpack
import numpy as np
import onnx
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.numpy import save_file

from fingerprint.quant import layouts
from fingerprint.readers import FORMATS, distributed, orbax, zarr
from tests.cli_support import HIDDEN, LAYERS, TOKENS, WIDTH, weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli_support import Ran

    Program = Callable[..., Ran]

pytest_plugins = ["tests.cli_fixtures"]

DATA = Path(__file__).parent / "data"
STATE = weights(1)
ROLES = {"gate": LAYERS, "query": LAYERS, "norm-gain": LAYERS, "token-embedding": 1}


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in STATE.items()}


def write_flax(path: Path) -> None:
    tree = {
        name: msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))
        for name, value in STATE.items()
    }
    path.write_bytes(msgpack.packb(tree))


LLAMA_CPP = {
    "model.embed_tokens": "token_embd", "model.layers": "blk", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
}  # fmt: skip


def write_gguf(path: Path, kind: str = "F32") -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    for full, value in STATE.items():
        name = full
        for ours, theirs in LLAMA_CPP.items():
            name = name.replace(ours, theirs)
        if kind == "F32" or value.ndim < 2:
            writer.add_tensor(name, value)
        else:
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(value, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_onnx(path: Path) -> None:
    held = [onnx.numpy_helper.from_array(value, name) for name, value in STATE.items()]
    nodes = [onnx.helper.make_node("Identity", [one.name], [f"{one.name}.out"]) for one in held]
    last = onnx.helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [last], held)), path)


def write_keras(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name, value in STATE.items():
            place = name.removesuffix(".weight")  # one layer each: the reader passes over a word "layers"
            word = "gamma" if value.ndim == 1 else "embeddings" if "embed" in name else "kernel"
            file.create_dataset(f"{place}/{word}", data=value.T if word == "kernel" else value)


def write_dcp(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tensors(), checkpoint_id=path)


def write_zarr(path: Path) -> None:
    for name, value in STATE.items():
        told = {"zarr_format": 2, "shape": value.shape, "chunks": value.shape, "dtype": value.dtype.str, "order": "C"}
        (path / name).mkdir(parents=True)
        (path / name / ".zarray").write_text(json.dumps({**told, "fill_value": 0, "compressor": {"id": "zlib"}}))
        (path / name / ".".join("0" * value.ndim)).write_bytes(zlib.compress(value.tobytes()))
    (path / ".zgroup").write_text('{"zarr_format": 2}')


def write_orbax(path: Path) -> None:
    write_zarr(path)
    (path / "_METADATA").write_text('{"tree_metadata": {}}')


def write_adapter(path: Path) -> None:
    path.mkdir()
    module = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    held = {module.format(n, side): np.ones((4, 64) if side == "A" else (64, 4), "f4") for n in (0, 1) for side in "AB"}
    save_file(held, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 4}))


def write_archive(path: Path) -> None:
    import zipfile

    save_file(STATE, path.with_name("model.safetensors"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_name("model.safetensors"), "m/model.safetensors")


@dataclass(frozen=True, slots=True)
class Case:
    """A file of a format: ``make`` writes it, or it is there in ``made``; what an inspection must say of it."""

    format: str
    file: str
    make: Callable[[Path], object] | None = None
    types: frozenset[str] = frozenset({"F32"})
    quantised: str = ""
    layers: int = LAYERS
    roles: tuple[str, ...] = tuple(ROLES)
    count: int = len(STATE)

    @property
    def id(self) -> str:
        return f"{self.format}: {self.file}"


CASES = [
    Case("safetensors", "model.safetensors", lambda path: save_file(STATE, path)),
    Case("pytorch", "model.pt", lambda path: torch.save(tensors(), path)),
    Case("pytorch", "old.pt", lambda path: torch.save(tensors(), path, _use_new_zipfile_serialization=False)),
    Case("pytorch-distributed", "dcp", write_dcp),
    Case("pickle", "model.pkl", lambda path: path.write_bytes(pickle.dumps(STATE, 4))),
    Case("npz", "model.npz", lambda path: np.savez(path, **STATE)),
    Case(
        "npy", "gate.npy", lambda path: np.save(path, STATE["model.layers.0.mlp.gate_proj.weight"]),
        layers=0, roles=("other",), count=1,
    ),
    Case("flax", "model.msgpack", write_flax),
    Case("gguf", "model.gguf", write_gguf),
    Case(
        "gguf", "q8.gguf", lambda path: write_gguf(path, "Q8_0"),
        types=frozenset({"F32", "Q8_0"}), quantised="stored as Q8_0",
    ),
    Case("onnx", "model.onnx", write_onnx),
    Case("keras", "model.h5", write_keras),
    Case("keras", "tensorflow/network.keras", layers=0, roles=("other", "convolution", "buffer"), count=14),
    Case("tflite", "tensorflow/network_float32.tflite", layers=0, roles=("other",), count=10),
    Case(
        "tflite", "tensorflow/network_dynamic.tflite", types=frozenset({"F32", "INT8"}), quantised="stored as INT8",
        layers=0, roles=("other",), count=10,
    ),
    Case("tensorflow", "tensorflow/network_checkpoint", layers=0, roles=("other", "convolution", "buffer"), count=14),
    Case("tensorflow", "tensorflow/network_saved_model", layers=0, roles=("other", "convolution", "buffer"), count=14),
    Case("tfjs", "tensorflow/network_tfjs/plain/model.json", layers=0, roles=("other", "convolution"), count=14),
    Case("coreml", "coreml/network.mlmodel", layers=2, roles=("other", "convolution"), count=14),
    Case("zarr", "model.zarr", write_zarr),
    Case("orbax", "orbax", write_orbax),
    Case(
        "orbax in tar.xz", "orbax/database.tar.xz",
        types=frozenset({"F32", "BF16"}), layers=0, roles=("other",), count=5,
    ),
    Case("safetensors in zip", "model.zip", write_archive),
    Case(
        "safetensors", "adapter", write_adapter,
        types=frozenset({"LORA"}), quantised="", roles=("query",), count=2,
    ),
]  # fmt: skip


def quantised_files() -> list[Path]:
    return sorted((DATA / "quantised").glob("*.safetensors"))


def path_of(case: Case, folder: Path) -> Path:
    if case.make is None:
        return DATA / case.file
    case.make(folder / case.file)
    return folder / case.file


def test_every_reader_has_a_case() -> None:
    assert {case.format for case in CASES} >= {
        *(one.name for one in FORMATS),
        distributed.FORMAT,
        orbax.FORMAT,
        zarr.FORMAT,
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_inspection_says_what_a_file_of_every_format_is(case: Case, fp: Program, tmp_path: Path) -> None:
    path = path_of(case, tmp_path)
    (found,) = fp("inspect", path, "--tensors", "--format", "json").objects
    assert found["format"] == case.format
    assert found["complete"]
    assert (found["stored_tensors"], found["canonical_tensors"]) == (case.count, len(found["tensors"]))
    assert set(found["dtypes"]) == case.types
    assert sum(found["dtypes"].values()) == found["parameters"] == sum(math.prod(t["shape"]) for t in found["tensors"])
    assert (found["quantisation"] or "") == case.quantised
    assert found["layers"] == case.layers
    assert set(case.roles) <= set(found["roles"])
    if set(case.roles) == set(ROLES):
        assert {role: found["roles"][role] for role in ROLES} == ROLES
        gate = next(one for one in found["tensors"] if one["role"] == "gate" and one["layer"] == 1)
        assert gate["shape"] == [HIDDEN, WIDTH]
        assert [one["shape"] for one in found["tensors"] if one["role"] == "token-embedding"] == [[TOKENS, WIDTH]]
    text = fp("inspect", path, environment={"COLUMNS": "80"}).out
    check_text(text, found, case)


def check_text(text: str, found: dict[str, Any], case: Case) -> None:
    lines = text.splitlines()
    assert max(map(len, lines[1:])) <= 80
    words = " ".join(text.split())
    assert f"Format {case.format}, " in words
    assert f"{case.count} tensor" in words or f"{case.count} stored tensor" in words
    assert f"Types {next(iter(found['dtypes']))} " in words
    assert f"Quantised {case.quantised or 'no, as far as'}" in words
    assert (f"{case.layers} layer" if case.layers else "no layers that are numbered") in words
    assert all(f"\n  {role}" in text for role in case.roles)


@pytest.mark.parametrize("path", quantised_files(), ids=lambda path: path.stem)
def test_a_quantised_layout_is_named(path: Path, fp: Program) -> None:
    (found,) = fp("inspect", path, "--format", "json").objects
    narrow = set(found["dtypes"]) - {"F32", "F16", "BF16"}
    assert len(narrow) == 1
    assert found["quantisation"].startswith(f"stored as {narrow.pop()}")
    assert found["layers"] == 1
    assert "Quantised       stored as" in fp("inspect", path).out


def test_every_shown_type_of_the_table_of_layouts_occurs_in_a_file(fp: Program) -> None:
    seen: set[str] = set()
    for path in quantised_files():
        (found,) = fp("inspect", path, "--format", "json").objects
        seen |= set(found["dtypes"])
    listed = {word.strip("` ") for row in layouts.ABOUT for word in row.shown.split(",")}
    assert listed <= seen
