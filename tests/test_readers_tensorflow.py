"""TFLite, checkpoints and SavedModels of TensorFlow, and TensorFlow.js, as their own programs wrote them."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, UnsupportedFormatError
from tests.keras_values import expected

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parent / "data" / "tensorflow"


def read(checkpoint: Checkpoint) -> dict[str, Any]:
    return {t.name: t.read(0, math.prod(t.shape)).reshape(t.shape) for t in checkpoint.tensors}


def examine(path: Path) -> tuple[bool, set[str]]:
    with open_checkpoint(path) as checkpoint:
        for tensor in checkpoint.tensors:
            tensor.read(0, min(100, math.prod(tensor.shape)))
        return checkpoint.complete, {finding.code for finding in checkpoint.findings}


# --- TFLite ---------------------------------------------------------------------------------------------------------

KERNELS = {
    "network_1/conv2d_1/convolution": "conv2d.weight",
    "network_1/conv2d_transpose_1/conv_transpose": "conv2d_transpose.weight",
    "network_1/dense_1/MatMul": "dense.weight",
    "network_1/dense_1_2/MatMul": "dense_1.weight",
}
"""What the converter does not fold the normalisation into."""


@pytest.mark.parametrize(("kind", "steps"), [("float32", None), ("float16", 2**10), ("dynamic", 127), ("int8", 127)])
def test_tflite_has_the_weights_as_torch_would(kind: str, steps: int | None) -> None:
    with open_checkpoint(FOLDER / f"network_{kind}.tflite") as checkpoint:
        assert checkpoint.format == "tflite"
        assert checkpoint.complete
        got = read(checkpoint)
        names = set(checkpoint.dtypes)
    wanted = expected("network")
    for stored, name in KERNELS.items():
        assert got[stored].shape == wanted[name].shape
        error = np.abs(got[stored] - wanted[name]).max()
        assert error <= (np.abs(wanted[name]).max() / steps if steps else 0)
    assert names == {"float32": {"F32"}, "float16": {"F16"}}.get(kind, names)
    assert ("INT8" in names) is (kind in {"dynamic", "int8"})


def test_depthwise_kernels_of_tflite_are_a_multiple_of_those_of_the_layer() -> None:
    # The normalisation was folded in: each channel is multiplied by one number.
    with open_checkpoint(FOLDER / "network_float32.tflite") as checkpoint:
        got = next(value for value in read(checkpoint).values() if value.shape == (8, 1, 3, 3))
    ratio = got / expected("network")["depthwise_conv2d.weight"]
    known = np.isfinite(ratio).all((1, 2, 3))  # some of the random variances are negative
    assert known.sum() > 2
    assert np.allclose(ratio[known], ratio[known, :, :1, :1], rtol=1e-4)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "network"),
    [
        ("network_checkpoint", "network"),
        ("network_checkpoint/model.index", "network"),
        ("sequence_checkpoint", "sequence"),
        ("network_saved_model", "network"),
        ("network_saved_model/variables", "network"),
    ],
)
def test_checkpoints_have_the_weights_as_torch_would(place: str, network: str) -> None:
    with open_checkpoint(FOLDER / place) as checkpoint:
        assert checkpoint.format == "tensorflow"
        assert checkpoint.complete
        assert len(checkpoint.files) == 2
        got = {name.replace(".lstm_cell", "").replace(".gru_cell", ""): v for name, v in read(checkpoint).items()}
    wanted = expected(network)
    assert set(got) == set(wanted)
    assert all(np.array_equal(got[name], value) for name, value in wanted.items())


def test_variables_that_are_stored_twice_are_read_once() -> None:
    assert examine(FOLDER / "network_saved_model") == (True, {"tied-tensors"})


def copied(folder: Path, name: str) -> Path:
    shutil.copytree(FOLDER / name, folder / name)
    return folder / name


def test_absent_and_truncated_shards_are_findings(tmp_path: Path) -> None:
    path = copied(tmp_path, "network_checkpoint")
    data = path / "model.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:5000])
    complete, codes = examine(path)
    assert not complete
    assert "unread-tensor" in codes
    data.unlink()
    complete, codes = examine(path)
    assert not complete
    assert {"absent-shard", "no-tensors"} <= codes


# --- TensorFlow.js --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "steps"), [("plain", None), ("float16", 2**11), ("uint8", 255), ("uint16", 65535)])
@pytest.mark.parametrize("file", ["", "model.json"])
def test_tfjs_has_the_weights_as_torch_would(kind: str, steps: int | None, file: str) -> None:
    with open_checkpoint(FOLDER / "network_tfjs" / kind / file) as checkpoint:
        assert checkpoint.format == "tfjs"
        assert checkpoint.complete
        assert not checkpoint.findings
        got = {name.removeprefix("network."): value for name, value in read(checkpoint).items()}
    wanted = expected("network")
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        spread = np.abs(value).max() if kind == "float16" else np.ptp(value)
        assert np.abs(got[name] - value).max() <= (spread / steps if steps else 0)


@pytest.mark.parametrize("shard", ["../secret", "/etc/passwd", "..", "", "a/b", "group1-shard1of4.bin"])
def test_shards_outside_the_folder_or_twice_are_refused(shard: str, tmp_path: Path) -> None:
    path = copied(tmp_path, "network_tfjs") / "plain" / "model.json"
    model = json.loads(path.read_text())
    model["weightsManifest"][0]["paths"][1] = shard
    path.write_text(json.dumps(model))
    with pytest.raises(MalformedFileError, match="shard"):
        examine(path)


def test_absent_shards_of_tfjs_leave_what_comes_before(tmp_path: Path) -> None:
    path = copied(tmp_path, "network_tfjs") / "plain"
    (path / "group1-shard3of4.bin").unlink()
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.complete
        assert {"absent-shard", "unread-tensor"} <= {finding.code for finding in checkpoint.findings}
        assert "network.conv2d.weight" in read(checkpoint)


# --- hostile files --------------------------------------------------------------------------------------------------


def changed(change: Callable[[bytearray], None], source: str, path: Path) -> Path:
    data = bytearray((FOLDER / source).read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def root_to_itself(data: bytearray) -> None:
    data[0:4] = bytes(4)


def far_away(data: bytearray) -> None:
    data[0:4] = struct.pack("<I", 2**32 - 1)


def shortened(data: bytearray) -> None:
    del data[3000:]


@pytest.mark.parametrize("change", [root_to_itself, far_away, shortened])
def test_damaged_tflite_is_one_error(change: Callable[[bytearray], None], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        examine(changed(change, "network_float32.tflite", tmp_path / "model.tflite"))


def table(index_size: int = 0, *, kind: int = 0, entries: bytes = b"") -> bytes:
    """A table of LevelDB with one block of ``entries``; written from the description of the format."""
    block = entries + struct.pack("<II", 0, 1)
    data = block + bytes([kind]) + bytes(4)
    handle = varint(0) + varint(len(block))
    index = b"\0\1" + varint(len(handle)) + b"z" + handle + struct.pack("<II", 0, 1)
    start = len(data)
    data += index + bytes(5)
    footer = varint(0) + varint(0) + varint(start) + varint(index_size or len(index))
    return data + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def entry(key: bytes, value: bytes, shared: int = 0, claimed: int | None = None) -> bytes:
    return varint(shared) + varint(len(key)) + varint(len(value) if claimed is None else claimed) + key + value


def described(shape: int, size: int, shard: int = 0, offset: int = 0) -> bytes:
    inner = b"\x08" + varint(shape)
    body = b"\x12" + varint(len(inner)) + inner
    return (
        b"\x08\x01\x12"
        + varint(len(body))
        + body
        + b"\x18"
        + varint(shard)
        + b"\x20"
        + varint(offset)
        + b"\x28"
        + varint(size)
    )


HEADER = entry(b"", b"\x08\x01")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (table(1 << 40), LimitExceededError),
        (table(1 << 20), MalformedFileError),
        (table(kind=1), UnsupportedFormatError),
        (table(entries=entry(b"w", b"", shared=5)), MalformedFileError),
        (table(entries=entry(b"w", b"", claimed=1 << 30)), MalformedFileError),
        (table(entries=entry(b"", b"\x08" + varint(1 << 40))), LimitExceededError),
        (table(entries=HEADER + entry(b"w", described(4, 17))), MalformedFileError),
        (table(entries=HEADER + entry(b"w", described(1 << 62, 1 << 63))), MalformedFileError),
        (table(entries=HEADER + entry(b"w", described(4, 16, shard=7))), MalformedFileError),
        (table(entries=HEADER + b"".join(entry(b"%d" % n, described(4, 16)) for n in range(9))), LimitExceededError),
    ],
    ids=lambda value: getattr(value, "__name__", "table"),
)
def test_damaged_index_is_one_error(data: bytes, error: type[InputError], tmp_path: Path) -> None:
    (tmp_path / "model.index").write_bytes(data)
    (tmp_path / "model.data-00000-of-00001").write_bytes(bytes(16))
    with pytest.raises(error):
        examine(tmp_path / "model.index")


def test_table_written_from_the_description_is_read(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    entries = HEADER + entry(b"dense/bias", described(4, 16)) + entry(b"2", described(4, 16), shared=6)
    (tmp_path / "model.index").write_bytes(table(entries=entries))
    (tmp_path / "model.data-00000-of-00001").write_bytes(values.tobytes())
    with open_checkpoint(tmp_path / "model.index") as checkpoint:
        got = read(checkpoint)
    assert list(got) == ["dense.bias", "dense.2"]
    assert np.array_equal(got["dense.bias"], values)


@pytest.mark.parametrize(
    "weight",
    [
        {"name": "w", "dtype": "float32", "shape": [-1]},
        {"name": "w", "dtype": "float32", "shape": [2**62]},
        {"name": "w", "dtype": "string", "shape": [1]},
        {"name": "w", "dtype": "float32", "shape": [1], "quantization": {"dtype": "uint8", "scale": "x", "min": 0}},
        {"name": "w", "dtype": "float32", "shape": [1] * 40},
        {"name": "w" * 5000, "dtype": "float32", "shape": [1]},
        {"dtype": "float32", "shape": [1]},
        [],
    ],
    ids=lambda weight: str(weight)[:40],
)
def test_manifest_that_lies_is_one_error(weight: object, tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(bytes(16))
    manifest = [{"paths": ["shard"], "weights": [weight]}]
    text = json.dumps({"modelTopology": {"class_name": "Sequential"}, "weightsManifest": manifest})
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(InputError):
        examine(tmp_path / "model.json")


@pytest.mark.parametrize(
    "name", ["network_int8.tflite", "network_checkpoint/model.index", "network_tfjs/uint8/model.json"]
)
def test_random_damage_gives_an_error_or_nothing(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    folder = copied(tmp_path, name.rpartition("/")[0]) if "/" in name else tmp_path
    path = folder / Path(name).name
    whole = (FOLDER / name).read_bytes()
    for number in range(150):
        data = bytearray(whole[: random.integers(1, len(whole))] if number % 3 == 0 else whole)
        for place in random.integers(0, len(data), 6):
            data[place] = random.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(InputError):  # anything else fails the test
            examine(path)


@pytest.mark.parametrize("folder", ["network_checkpoint", "network_saved_model", "network_tfjs/plain"])
def test_archives_of_several_files_are_read(folder: str, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "model"), "zip", FOLDER, folder)
    with open_checkpoint(tmp_path / "model.zip") as packed, open_checkpoint(FOLDER / folder) as plain:
        assert packed.complete
        got, wanted = read(packed), read(plain)
    assert set(got) == set(wanted)
    assert all(np.array_equal(got[name], value) for name, value in wanted.items())
