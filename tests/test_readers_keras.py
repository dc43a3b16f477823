"""Keras: every file that Keras 2 and 3 write of two small networks has the weights that PyTorch would store."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.errors import InputError
from tests.keras_values import expected

FOLDER = Path(__file__).parent / "data" / "tensorflow"
FILES = (".keras", ".h5", ".weights.h5", "_tf_keras.h5", "_tf_keras_weights.h5")


def read(checkpoint: Checkpoint) -> dict[str, Any]:
    return {t.name: t.read(0, math.prod(t.shape)).reshape(t.shape) for t in checkpoint.tensors}


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("network", ["network", "sequence"])
def test_weights_are_laid_out_as_in_torch(network: str, suffix: str) -> None:
    with open_checkpoint(FOLDER / f"{network}{suffix}") as checkpoint:
        assert checkpoint.format == "keras"
        assert checkpoint.complete
        got = read(checkpoint)
    wanted = expected(network)
    if "lstm" in next(iter(wanted)) or network == "sequence":
        # The paths of cells differ between versions: lstm.cell, lstm.lstm_cell.
        got = {
            name.replace(".cell", "").replace(".lstm_cell", "").replace(".gru_cell", ""): v for name, v in got.items()
        }
    assert set(got) == set(wanted)
    assert all(np.array_equal(got[name], value) for name, value in wanted.items())


def write(path: Path, **options: Any) -> Path:
    values = np.random.default_rng(1).standard_normal((50, 30))
    with h5py.File(path, "w") as file:
        file.create_dataset("dense/kernel", data=values.astype(options.pop("dtype", "f4")), **options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (7, 11)},
        {"chunks": (7, 11), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": True, "compression": "gzip"},
        {"dtype": ">f8"},
        {"dtype": ">f4", "chunks": (50, 30), "shuffle": True},
        {"dtype": "f2"},
    ],
    ids=str,
)
def test_every_storage_of_hdf5_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "model.h5", **options)
    with h5py.File(path) as file:
        values = file["dense/kernel"][()]
    with open_checkpoint(path) as checkpoint:
        (tensor,) = checkpoint.tensors
        assert np.array_equal(tensor.read(0, 1500).reshape(30, 50), values.T)
        assert np.array_equal(tensor.read(77, 1234), values.T.reshape(-1)[77:1234])


def test_chunks_that_were_never_written_have_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        dataset = file.create_dataset("bias", (100,), "f4", chunks=(8,), fillvalue=2.5)
        dataset[16:20] = 1
    with open_checkpoint(tmp_path / "model.h5") as checkpoint:
        expected_values = np.full(100, 2.5)
        expected_values[16:20] = 1
        assert np.array_equal(checkpoint.tensors[0].read(0, 100), expected_values)


def test_brain_floats_of_keras_are_read(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).astype(ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "model.h5", "w") as file:
        dataset = file.create_dataset("layers/dense/vars/1", data=values.view("V2"))
        dataset.attrs["dtype"] = "bfloat16"
    with open_checkpoint(tmp_path / "model.h5") as checkpoint:
        (tensor,) = checkpoint.tensors
        assert (tensor.name, tensor.dtype.name) == ("dense.bias", "BF16")
        assert np.array_equal(tensor.read(0, 12), values)


def test_names_of_transformers_become_those_of_torch(tmp_path: Path) -> None:
    path = "tf_bert/bert/encoder/layer_._3/attention/self/query/kernel:0"
    with h5py.File(tmp_path / "tf_model.h5", "w") as file:
        file[path] = np.zeros((4, 6), np.float32)
    with open_checkpoint(tmp_path / "tf_model.h5") as checkpoint:
        (tensor,) = checkpoint.tensors
        assert (tensor.name, tensor.shape) == ("tf_bert.bert.encoder.layer.3.attention.self.query.weight", (6, 4))


# --- hostile files --------------------------------------------------------------------------------------------------


def codes(path: Path) -> tuple[bool, set[str]]:
    with open_checkpoint(path) as checkpoint:
        for tensor in checkpoint.tensors:
            tensor.read(0, min(10, math.prod(tensor.shape)))
        return checkpoint.complete, {finding.code for finding in checkpoint.findings}


def test_links_and_data_outside_the_file_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    write(tmp_path / "other.h5")
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["soft"] = h5py.SoftLink("/w")
        file["external"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/dense")
        file.create_dataset("elsewhere", (16,), "f4", external=[(str(tmp_path / "secret"), 0, 64)])
        layout = h5py.VirtualLayout((50, 30), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "dense/kernel", (50, 30))
        file.create_virtual_dataset("virtual", layout)
        file["w"] = np.zeros(4, np.float32)
        file["circle"] = file["/"]
        file["text"] = "a string"
    with open_checkpoint(tmp_path / "model.h5") as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == ["w"]
        assert not checkpoint.complete
        assert sum(finding.code == "unread-tensor" for finding in checkpoint.findings) == 4


def test_chunks_that_unpack_to_gigabytes_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.create_dataset("big", (1 << 40,), "f4", chunks=(1 << 27,), compression="gzip")
    assert codes(tmp_path / "model.h5") == (False, {"no-tensors", "unread-tensor"})


def test_data_that_were_never_written_cannot_claim_terabytes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.create_dataset("big", (1 << 40,), "f4", chunks=(1 << 16,))
    with pytest.raises(InputError, match="claim"):
        codes(tmp_path / "model.h5")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["/".join("a" * 60)] = np.zeros(4)
    with pytest.raises(InputError, match="nested"):
        codes(tmp_path / "model.h5")


def test_damaged_files_give_one_error_or_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    whole = (FOLDER / "network.weights.h5").read_bytes()
    path = tmp_path / "model.h5"
    for number in range(150):
        data = bytearray(whole[: random.integers(1, len(whole))] if number % 3 == 0 else whole)
        for place in random.integers(0, min(len(data), 12_000), 8):
            data[place] = random.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(InputError):  # anything else fails the test
            codes(path)


def test_a_chunk_that_lies_about_its_size_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "model.h5", chunks=(50, 30), compression="gzip")
    with h5py.File(path) as file:
        info = file["dense/kernel"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    import zlib

    bomb = zlib.compress(bytes(1 << 22), 9)
    data[info.byte_offset : info.byte_offset + len(bomb)] = bomb
    path.write_bytes(data)
    with open_checkpoint(path) as checkpoint, pytest.raises(InputError, match="chunk"):
        checkpoint.tensors[0].read(0, 10)


def test_compressed_archives_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(FOLDER / "network.keras") as old:
        entries = {name: old.read(name) for name in old.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, data)
    (tmp_path / "model.keras").write_bytes(buffer.getvalue())
    with open_checkpoint(tmp_path / "model.keras") as checkpoint:
        got = read(checkpoint)
    assert all(np.array_equal(got[name], value) for name, value in expected("network").items())
