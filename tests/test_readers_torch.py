"""PyTorch files: what torch.save makes of modules, views, optimisers and rare dtypes."""

from __future__ import annotations

import math
import pickle
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.dtypes import I32, to_float32
from fingerprint.readers.base import StoredTensor
from fingerprint.readers.pickles import Call, Global, Pairs, read_pickle
from fingerprint.readers.strided import StridedTensor, extent, is_contiguous
from fingerprint.readers.torch_zip import open_torch_zip
from fingerprint.source import MemorySource
from tests.hostile.archives import TENSOR, archive, integer, state_dict, text

if TYPE_CHECKING:
    from pathlib import Path


def saved(value: object, folder: Path, **options: Any) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about rare dtypes that are wanted here
        torch.save(value, folder / "model.pt", **options)
    return open_checkpoint(folder / "model.pt")


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {t.name: to_float32(t.read(0, math.prod(t.shape))).reshape(t.shape) for t in checkpoint.tensors}


def codes(checkpoint: Checkpoint) -> set[str]:
    return {finding.code for finding in checkpoint.findings}


NOISE = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", None])
def test_state_dict_has_the_names_of_the_module(wrapper: str | None, tmp_path: Path) -> None:
    state = Net().state_dict()
    with saved(state if wrapper is None else {"epoch": 3, wrapper: state, "note": "x"}, tmp_path) as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == list(state)
        assert checkpoint.complete
        for name, array in values(checkpoint).items():
            np.testing.assert_array_equal(array, state[name].float().numpy())


def test_two_wrapped_state_dicts_keep_their_prefixes(tmp_path: Path) -> None:
    with saved({"model": {"w": NOISE}, "ema": {"w": NOISE + 1}}, tmp_path) as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == ["model.w", "ema.w"]


def test_name_that_begins_like_a_wrapper_is_left_alone(tmp_path: Path) -> None:
    with saved({"model.w": NOISE, "model": NOISE + 1}, tmp_path) as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == ["model.w", "model"]


def test_whole_module_is_read_without_its_class(tmp_path: Path) -> None:
    net = Net()
    with saved(net, tmp_path) as checkpoint:
        wanted = net.state_dict()
        assert {tensor.name for tensor in checkpoint.tensors} == set(wanted)
        for name, array in values(checkpoint).items():
            np.testing.assert_array_equal(array, wanted[name].float().numpy())
        assert any("Net" in f.message for f in checkpoint.findings if f.code == "unknown-global")


def test_torchscript_weights_are_found(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)))
        torch.jit.save(script, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        for name, array in values(checkpoint).items():
            np.testing.assert_array_equal(array, script.state_dict()[name].numpy())
        assert len(checkpoint.tensors) == 4
        assert "unknown-global" not in codes(checkpoint)


def test_optimiser_state_is_set_aside_by_its_form(tmp_path: Path) -> None:
    net = Net()
    optimiser = torch.optim.AdamW(net.parameters())
    net.head(net.layers(net.embed(torch.tensor([1, 2, 3])))).sum().backward()
    optimiser.step()
    with saved({"state_dict": net.state_dict(), "anything": optimiser.state_dict()}, tmp_path) as checkpoint:
        assert {tensor.name for tensor in checkpoint.tensors} == set(net.state_dict())
        assert "optimiser-state" in codes(checkpoint)
        assert checkpoint.complete


def test_tensors_called_optimizer_are_read(tmp_path: Path) -> None:
    """A name hides nothing."""
    with saved({"optimizer": {"w": NOISE}, "state": NOISE + 1}, tmp_path) as checkpoint:
        assert {tensor.name for tensor in checkpoint.tensors} == {"optimizer.w", "state"}


def test_tied_tensors_are_both_there_and_reported(tmp_path: Path) -> None:
    with saved(Net().state_dict(), tmp_path) as checkpoint:
        arrays = values(checkpoint)
        np.testing.assert_array_equal(arrays["head.weight"], arrays["embed.weight"])
        assert codes(checkpoint) == {"tied-tensors"}


def test_lists_tuples_and_numbers_make_names(tmp_path: Path) -> None:
    value = [NOISE, (NOISE + 1, {"a": NOISE + 2, 7: NOISE + 3}), OrderedDict(b=torch.nn.Parameter(NOISE + 4))]
    with saved(value, tmp_path) as checkpoint:
        arrays = values(checkpoint)
        assert list(arrays) == ["0", "1.0", "1.1.a", "1.1.7", "2.b"]
        np.testing.assert_array_equal(arrays["2.b"], (NOISE + 4).numpy())


def test_two_tensors_of_one_name_are_both_read() -> None:
    data = archive(b"\x80\x02}(" + text("1") + TENSOR + integer(1) + TENSOR + b"u.")
    contents = open_torch_zip(MemorySource(data))
    assert [tensor.name for tensor in contents.tensors] == ["1", "1#2"]


def test_of_two_values_under_one_key_the_later_counts(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(archive(state_dict(("w", TENSOR), ("w", b"N"))))
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert checkpoint.tensors == ()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    with saved({"w": NOISE, "s": {1, 2}, "b": b"x", "f": frozenset([1])}, tmp_path, pickle_protocol=protocol) as found:
        np.testing.assert_array_equal(values(found)["w"], NOISE.numpy())


VIEWS = {
    "transposed": NOISE.T,
    "every second column": NOISE[:, ::2],
    "part of the rows": NOISE[2:4],
    "part of both": NOISE[1:5, 3:6],
    "permuted": torch.arange(120.0).reshape(2, 3, 4, 5).permute(3, 1, 0, 2),
    "diagonal": NOISE.diagonal(),
    "one column": NOISE[:, 3],
    "one element": NOISE[2, 3],
    "empty": NOISE[:0],
    "size one axes": NOISE[:1, None, ::2],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_read_in_row_major_order(name: str, tmp_path: Path) -> None:
    with saved({"w": VIEWS[name], "rest": NOISE}, tmp_path) as checkpoint:
        tensor = checkpoint.tensors[0]
        wanted = VIEWS[name].contiguous().numpy()
        assert tensor.shape == wanted.shape
        for start in range(wanted.size + 1):
            for stop in range(start, wanted.size + 1):
                np.testing.assert_array_equal(tensor.read(start, stop), wanted.reshape(-1)[start:stop])


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    strides = draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)).map(tuple))
    return shape, strides


@given(layouts(), st.data())
def test_any_strides_are_read_as_numpy_reads_them(
    layout: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    shape, strides = layout
    count = extent(shape, strides)
    numbers = np.arange(count, dtype="<i4")
    tensor = StridedTensor("w", shape, strides, StoredTensor("w", I32, (count,), MemorySource(numbers.tobytes()), 0))
    steps = tuple(4 * stride for stride in strides)
    wanted = np.lib.stride_tricks.as_strided(numbers, shape, steps).reshape(-1)
    start = data.draw(st.integers(0, wanted.size))
    stop = data.draw(st.integers(start, wanted.size))
    np.testing.assert_array_equal(tensor.read(start, stop), wanted[start:stop])
    if is_contiguous(shape, strides):
        np.testing.assert_array_equal(wanted, numbers[: wanted.size])


RARE = {
    "float8_e4m3fn": NOISE.to(torch.float8_e4m3fn),
    "float8_e5m2fnuz": NOISE.to(torch.float8_e5m2fnuz),
    "float8_e8m0fnu": NOISE.abs().to(torch.float8_e8m0fnu),
    "uint16": NOISE.abs().to(torch.uint16),
}


@pytest.mark.parametrize("name", RARE)
def test_dtypes_without_a_storage_class_are_read(name: str, tmp_path: Path) -> None:
    with saved({"w": RARE[name]}, tmp_path) as checkpoint:
        np.testing.assert_array_equal(values(checkpoint)["w"], RARE[name].float().numpy())


def test_packed_f4_has_twice_the_last_size(tmp_path: Path) -> None:
    packed = torch.arange(6, dtype=torch.uint8).reshape(2, 3).view(torch.float4_e2m1fn_x2)
    with saved({"w": packed}, tmp_path) as checkpoint:
        [tensor] = checkpoint.tensors
        assert (tensor.shape, tensor.dtype.name) == ((2, 6), "F4")
        # Low nibbles 0 to 5, high ones 0.
        np.testing.assert_array_equal(to_float32(tensor.read(0, 12))[::2], [0, 0.5, 1, 1.5, 2, 3])
        np.testing.assert_array_equal(to_float32(tensor.read(0, 12))[1::2], np.zeros(6))


def _quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(NOISE, 0.1, 0, torch.qint8)


UNREAD = {
    "complex128": NOISE.to(torch.complex128),
    "quantised": _quantised(),
    "sparse": NOISE.to_sparse(),
    "meta": NOISE.to("meta"),
    "conjugate": NOISE.to(torch.complex64).conj(),
    "expanded": NOISE[:1].expand(100, 8),
}


@pytest.mark.parametrize("name", UNREAD)
def test_tensor_that_cannot_be_read_is_reported_and_the_rest_is_read(name: str, tmp_path: Path) -> None:
    with saved({"w": UNREAD[name], "rest": NOISE + 1}, tmp_path) as checkpoint:
        assert not checkpoint.complete
        assert [f.tensor for f in checkpoint.findings if f.code == "unread-tensor"] == ["w"]
        np.testing.assert_array_equal(values(checkpoint)["rest"], (NOISE + 1).numpy())


class Marked(torch.Tensor):
    pass


def test_tensor_subclass_is_read(tmp_path: Path) -> None:
    with saved({"w": NOISE.as_subclass(Marked)}, tmp_path) as checkpoint:
        np.testing.assert_array_equal(values(checkpoint)["w"], NOISE.numpy())


def test_numpy_scalars_and_torch_values_are_known_names(tmp_path: Path) -> None:
    value = {"w": NOISE, "lr": np.float64(0.1), "size": NOISE.shape, "dtype": torch.float16, "on": torch.device("cpu")}
    with saved(value, tmp_path) as checkpoint:
        assert checkpoint.findings == ()


LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
PLAIN = st.recursive(
    LEAVES | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN, st.integers(0, 5))
@example(10**20, 0)
@example(-(2**2000), 1)
@example([True, False, "line\nend \U0001f600"], 0)
def test_plain_values_come_out_of_a_pickle_as_they_went_in(value: object, protocol: int) -> None:
    raw = pickle.dumps(value, protocol)
    read = read_pickle(raw, "x")
    assert read.end == len(raw)
    assert _plain(read.root) == value


@given(st.binary(max_size=300), st.integers(3, 5))
def test_bytes_come_out_of_a_pickle_as_they_went_in(value: bytes, protocol: int) -> None:
    assert read_pickle(pickle.dumps([value, value], protocol), "x").root == [value, value]


def _plain(value: object) -> object:
    match value:
        case Pairs(pairs):
            return {key: _plain(part) for key, part in pairs}
        case list():
            return [_plain(part) for part in value]
        case tuple():
            return tuple(_plain(part) for part in value)
    return value


def test_calls_are_notes() -> None:
    root = read_pickle(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "x").root
    assert isinstance(root, Call)
    assert root.function == Global("os", "system")
    assert root.arguments == ("ls",)
