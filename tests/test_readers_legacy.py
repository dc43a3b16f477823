"""PyTorch files from before 1.6, and numpy arrays inside pickles: what torch and numpy write."""

from __future__ import annotations

import io
import math
import pickle
import tracemalloc
import warnings
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.dtypes import to_float32
from fingerprint.errors import InputError, MalformedFileError
from fingerprint.readers.numpy_objects import Latin1Source
from fingerprint.readers.pickles import Blob
from fingerprint.source import MemorySource
from tests.test_readers_torch import NOISE, RARE, UNREAD, VIEWS, Net, codes, values

if TYPE_CHECKING:
    from pathlib import Path


def legacy(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about rare dtypes that are wanted here
        torch.save(value, buffer, _use_new_zipfile_serialization=False, **options)
    return buffer.getvalue()


def opened(raw: bytes, folder: Path, name: str = "model.pt") -> Checkpoint:
    (folder / name).write_bytes(raw)
    return open_checkpoint(folder / name)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", None])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dict_has_the_names_of_the_module(wrapper: str | None, protocol: int, tmp_path: Path) -> None:
    state = Net().state_dict()
    value = state if wrapper is None else {"epoch": 3, wrapper: state}
    with opened(legacy(value, pickle_protocol=protocol), tmp_path) as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == list(state)
        assert checkpoint.complete
        assert codes(checkpoint) == {"tied-tensors"}
        for name, array in values(checkpoint).items():
            np.testing.assert_array_equal(array, state[name].float().numpy())


def test_whole_module_with_its_source_is_read_without_its_class(tmp_path: Path) -> None:
    net = Net()
    with opened(legacy(net), tmp_path) as checkpoint:
        wanted = net.state_dict()
        assert checkpoint.complete
        assert {tensor.name for tensor in checkpoint.tensors} == set(wanted)
        for name, array in values(checkpoint).items():
            np.testing.assert_array_equal(array, wanted[name].float().numpy())


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_read_in_row_major_order(name: str, tmp_path: Path) -> None:
    with opened(legacy({"rest": NOISE + 1, "w": VIEWS[name]}), tmp_path) as checkpoint:
        tensor = checkpoint.tensors[1]
        wanted = VIEWS[name].contiguous().numpy()
        assert tensor.shape == wanted.shape
        np.testing.assert_array_equal(tensor.read(0, wanted.size), wanted.reshape(-1))


@pytest.mark.parametrize("name", RARE)
def test_dtypes_without_a_storage_class_are_read(name: str, tmp_path: Path) -> None:
    with opened(legacy({"w": RARE[name], "rest": NOISE}), tmp_path) as checkpoint:
        np.testing.assert_array_equal(values(checkpoint)["w"], RARE[name].float().numpy())
        np.testing.assert_array_equal(values(checkpoint)["rest"], NOISE.numpy())


@pytest.mark.parametrize("name", UNREAD)
def test_what_cannot_be_read_does_not_hide_what_lies_behind(name: str, tmp_path: Path) -> None:
    with opened(legacy({"w": UNREAD[name], "rest": NOISE + 1}), tmp_path) as checkpoint:
        assert not checkpoint.complete
        assert [f.tensor for f in checkpoint.findings if f.code == "unread-tensor"] == ["w"]
        np.testing.assert_array_equal(values(checkpoint)["rest"], (NOISE + 1).numpy())


def test_optimiser_state_is_passed_over_and_its_storages_too(tmp_path: Path) -> None:
    net = Net()
    optimiser = torch.optim.AdamW(net.parameters())
    net.head(net.layers(net.embed(torch.tensor([1, 2, 3])))).sum().backward()
    optimiser.step()
    with opened(legacy({"optimizer": optimiser.state_dict(), "state_dict": net.state_dict()}), tmp_path) as checkpoint:
        assert "optimiser-state" in codes(checkpoint)
        assert checkpoint.complete
        for name, array in values(checkpoint).items():
            np.testing.assert_array_equal(array, net.state_dict()[name].float().numpy())


def test_file_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    state = {f"w{number}": torch.full((1000,), float(number)) for number in range(10)}
    raw = legacy(state)
    seen = set()
    for end in range(len(raw) - 10, len(raw) - 41_000, -1_999):
        with opened(raw[:end], tmp_path) as checkpoint:
            assert not checkpoint.complete
            assert "truncated" in codes(checkpoint)
            for name, array in values(checkpoint).items():
                np.testing.assert_array_equal(array, state[name].numpy())
            seen.add(len(checkpoint.tensors))
    assert seen == set(range(10))


def test_storages_in_another_order_than_the_pickle_names_them(tmp_path: Path) -> None:
    """The list of keys decides; torch sorts it as text."""
    state = {str(number): torch.full((2,), float(number)) for number in range(20)}
    with opened(legacy(state), tmp_path) as checkpoint:
        assert {name: array[0] for name, array in values(checkpoint).items()} == {str(n): n for n in range(20)}


def test_another_protocol_is_refused(tmp_path: Path) -> None:
    raw = legacy({"w": NOISE}).replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2), 1)
    with pytest.raises(InputError, match="protocol 1002"):
        opened(raw, tmp_path)


ARRAYS = {
    "float32": np.arange(24, dtype=np.float32).reshape(4, 6) - 7.5,
    "float64": np.linspace(-1, 1, 7),
    "float16": np.arange(6, dtype=np.float16),
    "int64": np.arange(-3, 3),
    "uint8": np.arange(250, 256, dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "complex64": np.array([1 + 2j, 3 - 4j], np.complex64),
    "bfloat16": np.arange(6).astype(ml_dtypes.bfloat16),
    "big-endian": np.arange(6, dtype=">f4"),
    "fortran": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(4, 6)),
    "fortran of three axes": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
    "slice": np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2],
    "no axes": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "long": np.random.default_rng(0).normal(size=(300, 100)).astype(np.float32),
}


def same(checkpoint: Checkpoint, wanted: dict[str, np.ndarray]) -> None:
    assert {tensor.name: tensor.shape for tensor in checkpoint.tensors} == {k: v.shape for k, v in wanted.items()}
    for tensor in checkpoint.tensors:
        array = wanted[tensor.name]
        flat = array.astype(array.dtype.newbyteorder("=")).reshape(-1)
        read = tensor.read(0, flat.size)
        if array.dtype.name == "complex64":
            np.testing.assert_array_equal(read, flat)
        else:
            np.testing.assert_array_equal(to_float32(read), to_float32(flat))
        for start, stop in ((1, flat.size), (flat.size // 2, flat.size - 1)):
            if start <= stop <= flat.size:
                assert tensor.read(start, stop).tobytes() == read[start:stop].tobytes()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_a_plain_pickle_are_read(protocol: int, tmp_path: Path) -> None:
    raw = pickle.dumps({"model": ARRAYS, "names": ["a", "b"], "lr": np.float64(0.1)}, protocol)
    with opened(raw, tmp_path, "model.pkl") as checkpoint:
        assert checkpoint.format == "pickle"
        assert checkpoint.findings == ()
        assert checkpoint.complete
        same(checkpoint, ARRAYS)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_in_a_file_of_torch_are_read(protocol: int, zipped: bool, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {**ARRAYS, "tensor": NOISE}},
        tmp_path / "model.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert checkpoint.findings == ()
        same(checkpoint, {**ARRAYS, "tensor": NOISE.numpy()})


def test_array_of_objects_is_walked(tmp_path: Path) -> None:
    value = np.array([{"w": ARRAYS["float32"]}, None], dtype=object)
    with opened(pickle.dumps({"layers": value}, 4), tmp_path, "model.pkl") as checkpoint:
        assert [tensor.shape for tensor in checkpoint.tensors] == [(4, 6)]


@pytest.mark.parametrize(
    "array",
    [np.zeros(3, np.complex128), np.zeros(3, [("a", "f4")]), np.zeros(3, "V3")],
    ids=["complex128", "structured", "void"],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_array_that_cannot_be_read_is_reported(array: np.ndarray, protocol: int, tmp_path: Path) -> None:
    raw = pickle.dumps({"w": array, "rest": ARRAYS["float32"]}, protocol)
    with opened(raw, tmp_path, "model.pkl") as checkpoint:
        assert not checkpoint.complete
        assert [f.tensor for f in checkpoint.findings if f.code == "unread-tensor"] == ["w"]
        assert [tensor.name for tensor in checkpoint.tensors] == ["rest"]


def test_arrays_of_labels_are_no_tensors(tmp_path: Path) -> None:
    labels = {"names": np.array(["a", "b"]), "when": np.array(["2020-01-01"], "M8[D]"), "bytes": np.array([b"ab"])}
    with opened(pickle.dumps({**labels, "w": ARRAYS["float32"]}, 4), tmp_path, "model.pkl") as checkpoint:
        assert checkpoint.complete
        assert [tensor.name for tensor in checkpoint.tensors] == ["w"]


def test_pickle_of_one_large_array_takes_little_memory(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=(4096, 1024)).astype(np.float32)
    for protocol in (2, 4):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps({"w": array}, protocol))
        tracemalloc.start()
        try:
            with open_checkpoint(tmp_path / "model.pkl") as checkpoint:
                [tensor] = checkpoint.tensors
                for start in range(0, array.size, 1 << 18):
                    piece = tensor.read(start, start + (1 << 18))
                    np.testing.assert_array_equal(piece, array.reshape(-1)[start : start + (1 << 18)])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 << 20


def test_text_that_stands_for_bytes_is_decoded_from_anywhere() -> None:
    raw = np.random.default_rng(2).bytes(5_000_000)
    text = raw.decode("latin-1").encode()
    source = Latin1Source(Blob(MemorySource(text), 0, len(text), encoded=True), len(raw))
    for start in (0, 4_999_000, 1, 2_500_000, 999_999, 0):
        for length in (0, 1, 999, min(2_000_000, len(raw) - start)):
            assert bytes(source.read(start, length)) == raw[start : start + length]


def test_text_that_stands_for_too_few_bytes_is_an_error() -> None:
    text = "é".encode() * 100_000
    with pytest.raises(MalformedFileError):
        Latin1Source(Blob(MemorySource(text), 0, len(text), encoded=True), 150_000).read(0, 150_000)
    wide = "€".encode() * 100_000
    with pytest.raises(MalformedFileError):
        Latin1Source(Blob(MemorySource(wide), 0, len(wide), encoded=True), 150_000).read(0, 1)


def test_counts_agree_with_torch(tmp_path: Path) -> None:
    raw = legacy({"a": NOISE, "b": NOISE[:2], "c": NOISE.half()})
    with opened(raw, tmp_path) as checkpoint:
        wanted = torch.load(io.BytesIO(raw), weights_only=True)
        assert checkpoint.parameters == sum(math.prod(tensor.shape) for tensor in wanted.values())
