"""Core ML: models that coremltools wrote, what it decompresses them to, and hostile bytes."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.dtypes import F32
from fingerprint.errors import InputError
from fingerprint.quant.affine import quantised_dtype
from fingerprint.readers.coreml import open_coreml, recognises
from fingerprint.readers.coreml_views import Palettised
from fingerprint.source import MemorySource
from tests.hostile.coreml_cases import model

if TYPE_CHECKING:
    from fingerprint.dtypes import DType
    from fingerprint.tensors import Array

DATA = Path(__file__).parent / "data" / "coreml"
EXPECTED = np.load(DATA / "expected.npz")
STATE = {name.removeprefix("state/"): EXPECTED[name] for name in EXPECTED.files if name.startswith("state/")}
COMPRESSED = {
    "linear8": "INT8", "palette4": "PALETTE_4", "palette6": "PALETTE_6", "sparse": "F32", "blocks4": "INT4",
    "palettes3": "PALETTE_3", "sparse18": "F32",
}  # fmt: skip


def values(checkpoint: Checkpoint) -> dict[str, Any]:
    return {t.name: t.read(0, math.prod(t.shape)).reshape(t.shape) for t in checkpoint.tensors}


def unpacked(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        archive.extractall(folder)
    return folder / "model.mlpackage"


def same_state(found: dict[str, Any]) -> None:
    """What the converter leaves as it is; of the LSTM it adds up the biases."""
    renamed = {name.replace("input_batch_first.", "rnn."): value for name, value in found.items()}
    for name in STATE.keys() - {"rnn.bias_ih_l0", "rnn.bias_hh_l0"}:
        np.testing.assert_array_equal(renamed[name], STATE[name])
    np.testing.assert_allclose(renamed["rnn.bias_l0"], STATE["rnn.bias_ih_l0"] + STATE["rnn.bias_hh_l0"], rtol=1e-6)


def test_program_has_the_state_of_the_network(tmp_path: Path) -> None:
    with open_checkpoint(unpacked("plain", tmp_path)) as checkpoint:
        assert checkpoint.format == "coreml"
        assert checkpoint.complete
        assert {finding.code for finding in checkpoint.findings} == {"graph-constants"}
        assert [file.path for file in checkpoint.files] == ["model.mlmodel", "weights/weight.bin"]
        same_state(values(checkpoint))


def test_zipped_package_is_read_as_well() -> None:
    with open_checkpoint(DATA / "plain.zip") as checkpoint:
        assert checkpoint.format == "coreml in zip"
        same_state(values(checkpoint))


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_weights_are_what_coremltools_makes_of_them(name: str, tmp_path: Path) -> None:
    with open_checkpoint(unpacked(name, tmp_path)) as checkpoint:
        assert checkpoint.complete
        found = values(checkpoint)
        views = {tensor.name: tensor for tensor in checkpoint.tensors}
        assert views["fc.weight"].dtype.name == COMPRESSED[name]
        for module in ("embed", "fc", "conv", "head"):
            key = next(k for k in EXPECTED.files if k.startswith(f"{name}/{module}_weight"))
            np.testing.assert_allclose(found[f"{module}.weight"], EXPECTED[key], rtol=1e-6, atol=1e-9)
        flat = found["conv.weight"].reshape(-1)
        for start, stop in [(0, 0), (1, 2), (7, 9), (63, 300), (flat.size - 1, flat.size)]:
            np.testing.assert_array_equal(views["conv.weight"].read(start, stop), flat[start:stop])


@dataclass
class Ramp:
    """A tensor of any size whose elements are made as they are read; ``most`` is the longest read."""

    shape: tuple[int, ...]
    dtype: DType
    name: str = "ramp"
    most: int = 0

    def read(self, start: int, stop: int) -> Array:
        self.most = max(self.most, stop - start)
        return (np.arange(start, stop) % 251).astype(self.dtype.numpy)


@pytest.mark.parametrize(
    ("indices", "palettes"),
    [((1, 1 << 36), (1, 1, 256, 2)), ((1 << 20, 1 << 16), (1 << 20, 1 << 16, 256, 2)), ((4, 8), (4, 1, 256, 1 << 30))],
)
def test_few_elements_of_far_apart_codes_and_palettes_take_little_memory(
    indices: tuple[int, ...], palettes: tuple[int, ...]
) -> None:
    codes, colours = Ramp(indices, quantised_dtype("UINT8")), Ramp(palettes, F32)
    view = Palettised("w", quantised_dtype("PALETTE_8"), codes, colours)
    end = view.shape[1]
    found = view.read(end - 5, end + 5)
    assert max(codes.most, colours.most) <= 1 << 20
    # The row above holds the first elements of the vectors, the one below it the second ones.
    for element, (row, column) in zip(
        found, [(0, end - 5 + i) for i in range(5)] + [(1, i) for i in range(5)], strict=True
    ):
        group = column if palettes[1] > 1 else 0
        assert element == ((group * 256 + column % 251) * palettes[3] + row) % 251


def test_network_of_the_older_format() -> None:
    with open_checkpoint(DATA / "network.mlmodel") as checkpoint:
        assert checkpoint.complete
        found = values(checkpoint)
    wanted = {
        "input.1.weight": "embed.weight", "linear_0.weight": "fc.weight", "linear_0.bias": "fc.bias",
        "conv_0.weight": "conv.weight", "linear_1.weight": "head.weight", "input_batch_first.weight_ih_l0":
        "rnn.weight_ih_l0", "input_batch_first.weight_hh_l0": "rnn.weight_hh_l0", "input.7_scale.weight": "norm.weight",
    }  # fmt: skip
    for name, theirs in wanted.items():
        np.testing.assert_array_equal(found[name].reshape(STATE[theirs].shape), STATE[theirs])


@pytest.mark.parametrize(("bits", "error"), [(8, 0.01), (3, 0.35)])
def test_quantised_layers_of_the_older_format(bits: int, error: float) -> None:
    with open_checkpoint(DATA / f"network{bits}.mlmodel") as checkpoint:
        assert checkpoint.complete
        views = {tensor.name: tensor for tensor in checkpoint.tensors}
        assert views["linear_0.weight"].dtype.name == f"UINT{bits}"
        found = values(checkpoint)
        for name, theirs in (("linear_0.weight", "fc.weight"), ("linear_1.weight", "head.weight")):
            step = (STATE[theirs].max(1) - STATE[theirs].min(1)) / (2**bits - 1)
            assert np.all(np.abs(found[name] - STATE[theirs]) <= step[:, None] * 0.51)
        assert np.abs(found["input.1.weight"] - STATE["embed.weight"]).max() < error * 2


def test_blobs_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for weight in ("../secret.bin", "/etc/passwd", "@model_path/../../secret.bin", "a//b", ""):
        (tmp_path / "m" / "model.mlmodel").write_bytes(model(weight=weight))
        with pytest.raises(InputError, match="outside the folder"):
            open_checkpoint(tmp_path / "m" / "model.mlmodel")


def test_absent_file_of_weights_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.mlmodel").write_bytes(model())
    with open_checkpoint(tmp_path / "model.mlmodel") as checkpoint:
        assert not checkpoint.complete
        assert {finding.code for finding in checkpoint.findings} == {"unread-tensor", "no-tensors"}


@pytest.mark.parametrize("name", ["network", "network8"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_leads_to_another_error(name: str, data: st.DataObject) -> None:
    raw = bytearray((DATA / f"{name}.mlmodel").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=6)):
        raw[place] = data.draw(st.integers(0, 255))
    source = MemorySource(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    recognises(source)
    try:
        for tensor in open_coreml(source).tensors:
            tensor.read(0, min(math.prod(tensor.shape), 1000))
    except InputError:
        pass
