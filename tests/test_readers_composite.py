"""Composite folders: pipelines of diffusers, sentence-transformers; and one model in every container."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parent / "data"


def weights(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"layers.{n}.weight": random.normal(size=(48, 32)).astype(np.float32) for n in range(2)}


def pipeline(folder: Path) -> Path:
    for seed, (name, file) in enumerate(
        {
            "unet": "diffusion_pytorch_model.safetensors",
            "vae": "diffusion_pytorch_model.safetensors",
            "text_encoder": "model.safetensors",
        }.items()
    ):
        (folder / name).mkdir(parents=True)
        save_file(weights(seed), folder / name / file)
        (folder / name / "config.json").write_text(json.dumps({"_class_name": name.upper()}))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", "unet": ["diffusers", "UNet"]}))
    return folder


def names(*components: str) -> set[str]:
    return {f"{component}.layers.{n}.weight" for component in components for n in range(2)}


def test_components_of_a_pipeline_are_read_under_their_names(tmp_path: Path) -> None:
    with open_checkpoint(pipeline(tmp_path)) as checkpoint:
        assert checkpoint.complete
        assert {tensor.name for tensor in checkpoint.tensors} == names("unet", "vae", "text_encoder")
        messages = [f.message for f in checkpoint.findings if f.code == "component"]
        assert len(messages) == len(checkpoint.findings) == 3
        assert "component unet: safetensors, 2 tensors, 3,072 parameters" in messages
        assert checkpoint.metadata["unet.config._class_name"] == "UNET"
        unet = next(tensor for tensor in checkpoint.tensors if tensor.name == "unet.layers.1.weight")
        np.testing.assert_array_equal(unet.read(0, 1536), weights(0)["layers.1.weight"].reshape(-1))


def test_pipeline_in_an_archive(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "pipeline")
    with tarfile.open(tmp_path / "p.tar", "w") as file:
        file.add(folder, "pipeline")
    with open_checkpoint(tmp_path / "p.tar") as checkpoint:
        assert {tensor.name for tensor in checkpoint.tensors} == names("unet", "vae", "text_encoder")
        assert {f.code for f in checkpoint.findings} == {"component"}


def test_damaged_component_does_not_hide_the_others(tmp_path: Path) -> None:
    (pipeline(tmp_path) / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"no checkpoint")
    with open_checkpoint(tmp_path) as checkpoint:
        assert not checkpoint.complete
        assert {tensor.name for tensor in checkpoint.tensors} == names("unet", "text_encoder")
        assert "unreadable-file" in {f.code for f in checkpoint.findings}


def test_snapshot_of_a_cache_keeps_its_links_in_components(tmp_path: Path) -> None:
    snapshot = pipeline(tmp_path / "models--org--p" / "snapshots" / "0f1e")
    blobs = tmp_path / "models--org--p" / "blobs"
    blobs.mkdir()
    for number, name in enumerate(("unet", "vae", "text_encoder")):
        [file] = (snapshot / name).glob("*.safetensors")
        file.rename(blobs / str(number))
        file.symlink_to(f"../../../blobs/{number}")
    with open_checkpoint(snapshot) as checkpoint:
        assert {tensor.name for tensor in checkpoint.tensors} == names("unet", "vae", "text_encoder")


def test_link_out_of_a_component_is_not_followed(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "p")
    save_file(weights(9), tmp_path / "outside.safetensors")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae" / "diffusion_pytorch_model.safetensors").symlink_to("../../outside.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert not checkpoint.complete
        assert {tensor.name for tensor in checkpoint.tensors} == names("unet", "text_encoder")


def test_dense_module_of_sentence_transformers(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "model.safetensors")
    for name in ("1_Pooling", "2_Dense", "onnx"):
        (tmp_path / name).mkdir()
    save_file({"linear.weight": np.ones((4, 4), np.float32)}, tmp_path / "2_Dense" / "model.safetensors")
    save_file(weights(1), tmp_path / "onnx" / "model.safetensors")
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with open_checkpoint(tmp_path) as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == [*weights(0), "2_Dense.linear.weight"]


def test_module_without_weights_of_its_own_changes_nothing(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "model.safetensors")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.findings == ()
        assert [tensor.name for tensor in checkpoint.tensors] == list(weights(0))


def test_settings_of_quantisation_are_those_of_the_component(tmp_path: Path) -> None:
    """One file of GPTQ twice; the config of one component says that its zero points are not stored less one."""
    alone = {}
    for name, settings in (("prior", {"checkpoint_format": "gptq_v2"}), ("decoder", {"quant_method": "gptq"})):
        (tmp_path / name).mkdir()
        shutil.copy(DATA / "quantised" / "gptq-4.safetensors", tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"quantization_config": settings}))
        with open_checkpoint(tmp_path / name) as checkpoint:
            alone |= {f"{name}.{tensor.name}": tensor.read(0, math.prod(tensor.shape)) for tensor in checkpoint.tensors}
    (tmp_path / "model_index.json").write_text("{}")
    with open_checkpoint(tmp_path) as checkpoint:
        together = {tensor.name: tensor.read(0, math.prod(tensor.shape)) for tensor in checkpoint.tensors}
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(together[name], value)
    assert any((alone[n] != alone[n.replace("prior", "decoder")]).any() for n in alone if n.startswith("prior"))


STATE = weights(5)


def _legacy(path: Path) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in STATE.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def _flax(path: Path) -> None:
    tree = {
        name: msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
        for name, array in STATE.items()
    }
    path.write_bytes(msgpack.packb(tree))


CONTAINERS: dict[str, Callable[[Path], object]] = {
    "legacy.pt": _legacy,
    "zip.pt": lambda path: torch.save(
        {name: torch.from_numpy(array).T.contiguous().T for name, array in STATE.items()}, path
    ),
    "pickle.pkl": lambda path: path.write_bytes(pickle.dumps(STATE, 2)),
    "arrays.npz": lambda path: np.savez(path, **STATE),
    "columns.npz": lambda path: np.savez_compressed(path, **{k: np.asfortranarray(v) for k, v in STATE.items()}),
    "doubles.npz": lambda path: np.savez(path, **{k: v.astype(np.float64) for k, v in STATE.items()}),
    "flax.msgpack": _flax,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_same_weights_have_the_same_digests_in_every_container(name: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    CONTAINERS[name](tmp_path / name)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    digests = []
    for file in ("model.safetensors", name, f"{name}.gz"):
        with open_checkpoint(tmp_path / file) as checkpoint:
            digests.append({record.name: record.digest for record in fingerprint(checkpoint).tensors})
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) == 2
    assert all(digests[0].values())
