"""Writes MiniLM in full precision, in every container, by the library that produces it.

A state is a dict of float32 tensors under the names of Hugging Face's BERT. Nothing here uses this project's code.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import gguf
import h5py
import msgpack
import numpy as np
import onnx
import torch
import torch.distributed.checkpoint as dcp
import zstandard
from safetensors.torch import save_file

from benchmarks.containers.bert import Bert

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

State = dict[str, torch.Tensor]
Writer = "Callable[[State, Path], Path]"


def safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def widened(state: State, folder: Path) -> Path:
    return safetensors({name: tensor.double() for name, tensor in state.items()}, folder)


def _shards(state: State, folder: Path, suffix: str, save: Callable[[State, Path], None], stem: str) -> Path:
    """Four shards with an index, names dealt in turn."""
    weight_map = {}
    for number in range(4):
        part = dict(list(state.items())[number::4])
        file = f"{stem}-{number + 1:05}-of-00004.{suffix}"
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def sharded_safetensors(state: State, folder: Path) -> Path:
    return _shards(state, folder, "safetensors", save_file, "model")


def sharded_bin(state: State, folder: Path) -> Path:
    return _shards(state, folder, "bin", torch.save, "pytorch_model")


def pt(state: State, folder: Path) -> Path:
    torch.save({"epoch": 3, "model": {f"module.{name}": tensor for name, tensor in state.items()}}, folder / "model.pt")
    return folder / "model.pt"


def legacy_pt(state: State, folder: Path) -> Path:
    torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


def _example() -> tuple[torch.Tensor, ...]:
    tokens = torch.tensor([[1, 2, 3, 4]])
    return tokens, torch.ones_like(tokens), torch.zeros_like(tokens)


def torchscript(state: State, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still what people have
        torch.jit.trace(Bert(state).eval(), _example()).save(str(folder / "model.torchscript"))
    return folder / "model.torchscript"


def distributed(state: State, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it runs in one process
        dcp.save({"model": state}, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


def npz(state: State, folder: Path) -> Path:
    np.savez(folder / "model.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    return folder / "model.npz"


def compressed_npz(state: State, folder: Path) -> Path:
    np.savez_compressed(folder / "model.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    return folder / "model.npz"


def gguf_names(architecture: gguf.MODEL_ARCH, layers: int, names: list[str]) -> dict[str, str]:
    """The names of llama.cpp, by the package's own map; names that it has none for are left out."""
    table = gguf.get_tensor_name_map(architecture, layers)
    found = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    return {name: told for name, told in found.items() if told is not None}


def gguf_f32(state: State, folder: Path) -> Path:
    return write_gguf(state, folder / "model.gguf", lambda _, values: (values, None))


def write_gguf(
    state: State, path: Path, encode: Callable[[str, Any], tuple[Any, gguf.GGMLQuantizationType | None]]
) -> Path:
    """As conversion writes a BERT; ``encode`` makes the stored bytes of a tensor and says their type."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(6)
    writer.add_embedding_length(384)
    writer.add_head_count(12)
    # Conversion leaves the pooler out; its names are kept here so that nothing is lost.
    names = gguf_names(gguf.MODEL_ARCH.BERT, 6, list(state))
    for name, tensor in state.items():
        data, kind = encode(name, tensor.numpy())
        writer.add_tensor(names.get(name, name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def onnx_fp32(state: State, folder: Path) -> Path:
    """By torch's exporter, which transposes the weights of linear layers and takes their names away."""
    axes = {name: {0: "batch", 1: "length"} for name in ("tokens", "mask", "types")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        torch.onnx.export(
            Bert(state).eval(), _example(), str(folder / "model.onnx"), dynamo=False, opset_version=17,
            input_names=list(axes), output_names=["pooled"], dynamic_axes=axes,
        )  # fmt: skip
    return folder / "model.onnx"


def onnx_external(state: State, folder: Path) -> Path:
    """The same with its weights in a file beside it, as the onnx package stores large models."""
    model = onnx.load(onnx_fp32(state, folder))
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    return folder / "model.onnx"


def _tree(state: State, norm: str, table: str) -> dict[str, Any]:
    """Nested dicts with weights as the frameworks that multiply from the right have them."""
    tree: dict[str, Any] = {}
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        values = tensor.numpy()
        if leaf == "weight" and path[-1] == "LayerNorm":
            leaf = norm
        elif leaf == "weight" and path[-1].endswith("_embeddings"):
            leaf = table
        elif leaf == "weight":
            leaf, values = "kernel", np.ascontiguousarray(values.T)
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = values
    return tree


def flax(state: State, folder: Path) -> Path:
    """With the extension type of ``flax.serialization``, by the msgpack package."""

    def extension(value: Any) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes("C"))))

    packed = msgpack.packb(_tree(state, "scale", "embedding"), default=extension, strict_types=True)
    (folder / "flax_model.msgpack").write_bytes(packed)
    return folder / "flax_model.msgpack"


def keras(state: State, folder: Path) -> Path:
    """As Hugging Face's TensorFlow models are saved: ``layer_names``, ``weight_names`` and a dataset for each."""

    def visit(tree: dict[str, Any], path: str) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for key, value in tree.items():
            # TensorFlow's names have no numbers as steps: "layer_._0".
            step = f"{path}_._{key}" if key.isdigit() else f"{path}/{key}" if path else key
            found += visit(value, step) if isinstance(value, dict) else [(step, value)]
        return found

    weights = visit(_tree(state, "gamma", "weight"), "")
    with h5py.File(folder / "tf_model.h5", "w") as file:
        group = file.create_group("bert")
        file.attrs["layer_names"] = np.array([b"bert"])
        file.attrs["backend"] = b"tensorflow"
        names = [f"tf_bert_model/bert/{name}:0".replace("LayerNorm/bias", "LayerNorm/beta") for name, _ in weights]
        group.attrs["weight_names"] = np.array([name.encode() for name in names])
        for name, (_, values) in zip(names, weights, strict=True):
            group.create_dataset(name, data=values)
    return folder / "tf_model.h5"


def archive_zip(state: State, folder: Path) -> Path:
    path = safetensors(state, folder)
    with zipfile.ZipFile(folder / "upload.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.write(path, "minilm/model.safetensors")
    return folder / "upload.zip"


def archive_tar_gz(state: State, folder: Path) -> Path:
    path = safetensors(state, folder)
    with gzip.open(folder / "upload.tar.gz", "wb", compresslevel=1) as raw, tarfile.open(fileobj=raw, mode="w") as file:
        file.add(path, "minilm/model.safetensors")
    return folder / "upload.tar.gz"


def archive_tar_zst(state: State, folder: Path) -> Path:
    path = safetensors(state, folder)
    with (
        (folder / "upload.tar.zst").open("wb") as target,
        zstandard.ZstdCompressor(level=1).stream_writer(target) as raw,
        tarfile.open(fileobj=raw, mode="w|") as file,
    ):
        file.add(path, "minilm/model.safetensors")
    return folder / "upload.tar.zst"


def hub_cache(state: State, folder: Path) -> Path:
    """A snapshot of a Hugging Face cache: a link to a blob."""
    snapshot, blobs = folder / "models--org--minilm/snapshots/0a1b", folder / "models--org--minilm/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shutil.move(safetensors(state, folder), blobs / "abcd")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abcd")
    return snapshot


PLAIN: dict[str, Callable[[State, Path], Path]] = {
    "safetensors": safetensors,
    "safetensors, four shards and an index": sharded_safetensors,
    "safetensors, widened to float64": widened,
    "safetensors in a Hugging Face cache": hub_cache,
    "PyTorch .bin, four shards and an index": sharded_bin,
    "PyTorch .pt, in `model`, under `module.`": pt,
    "PyTorch .pt from before 1.6": legacy_pt,
    "TorchScript (traced)": torchscript,
    "PyTorch distributed checkpoint": distributed,
    "npz": npz,
    "npz, compressed": compressed_npz,
    "GGUF F32": gguf_f32,
    "ONNX, torch's exporter": onnx_fp32,
    "ONNX, weights in a file beside it": onnx_external,
    "Flax msgpack": flax,
    "Keras .h5 (TensorFlow names)": keras,
    "zip": archive_zip,
    "tar.gz": archive_tar_gz,
    "tar.zst": archive_tar_zst,
}
"""Containers by the title of their row."""
