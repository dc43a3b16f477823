"""ONNX: every way in which the library and exporters store a weight, against the library's own reading of it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from fingerprint import dtypes
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.dtypes import to_float64
from fingerprint.errors import InputError, MalformedFileError
from fingerprint.quant.affine import Affine, quantised_dtype
from fingerprint.readers.base import StoredTensor
from fingerprint.readers.onnx_model import looks_like_onnx
from fingerprint.source import MemorySource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.tensors import Array

RANDOM = np.random.default_rng(7)


def save(folder: Path, nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto], **options: Any) -> Path:
    graph = helper.make_graph(nodes, "graph", [], [], initializer=constants)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, producer_name="tests"), path, **options)
    return path


def read(path: Path) -> dict[str, Array]:
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "onnx"
        return {t.name: t.read(0, math.prod(t.shape)).reshape(t.shape) for t in checkpoint.tensors}


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RANDOM.standard_normal(shape).astype(np.float32)


# --- types and places -----------------------------------------------------------------------------------------------

FLOATS = {
    "FLOAT": np.float32, "DOUBLE": np.float64, "FLOAT16": np.float16, "BFLOAT16": ml_dtypes.bfloat16,
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn, "FLOAT8E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2, "FLOAT8E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "FLOAT8E8M0": ml_dtypes.float8_e8m0fnu, "FLOAT4E2M1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip
INTEGERS = ("INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "INT4", "UINT4", "INT2", "UINT2")


def tensor_of(kind: str, *, raw: bool) -> onnx.TensorProto:
    code = TensorProto.DataType.Value(kind)
    values = noise(5, 7) * 10
    if kind in FLOATS:
        values = np.abs(values) if kind == "FLOAT8E8M0" else values
        stored = values.astype(FLOATS[kind])
    else:
        low, high = (0, 2) if kind.endswith("2") and "32" not in kind else (0, 7)
        low = low if kind.startswith("U") else -low
        stored = RANDOM.integers(low, high, (5, 7)).astype(helper.tensor_dtype_to_np_dtype(code))
        if not kind.startswith("U") and not kind.endswith(("2", "4")):
            stored = (stored * -17).astype(stored.dtype)
    if raw:
        return numpy_helper.from_array(stored, kind)
    return helper.make_tensor(kind, code, stored.shape, stored.astype(np.float64).flatten().tolist())


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("kind", [*FLOATS, *INTEGERS])
def test_every_type_is_read_as_the_library_reads_it(kind: str, raw: bool, tmp_path: Path) -> None:
    proto = tensor_of(kind, raw=raw)
    assert bool(proto.raw_data) is raw
    got = read(save(tmp_path, [], [proto]))[kind]
    assert np.array_equal(to_float64(got), numpy_helper.to_array(proto).astype(np.float64))


def test_bools_and_complex_numbers_are_read(tmp_path: Path) -> None:
    flags, spectrum = noise(4, 4) > 0, (noise(3, 3) + 1j * noise(3, 3)).astype(np.complex64)
    got = read(save(tmp_path, [], [numpy_helper.from_array(flags, "flags"), numpy_helper.from_array(spectrum, "fft")]))
    assert np.array_equal(got["flags"], flags)
    assert np.array_equal(got["fft"], spectrum)


@pytest.mark.parametrize("kind", ["FLOAT16", "INT64", "INT4", "FLOAT4E2M1"])
def test_any_range_of_typed_data_can_be_read(kind: str, tmp_path: Path) -> None:
    proto = tensor_of(kind, raw=False)
    expected = numpy_helper.to_array(proto).astype(np.float64).reshape(-1)
    with open_checkpoint(save(tmp_path, [], [proto])) as checkpoint:
        (tensor,) = checkpoint.tensors
        for start, stop in [(0, 35), (3, 4), (17, 30), (35, 35), (1, 34)]:
            assert np.array_equal(to_float64(tensor.read(start, stop)), expected[start:stop])


def test_long_typed_data_are_read_from_marks(tmp_path: Path) -> None:
    values = RANDOM.integers(-(2**62), 2**62, 300_000)
    proto = helper.make_tensor("w", TensorProto.INT64, (300, 1000), values.tolist())
    with open_checkpoint(save(tmp_path, [], [proto])) as checkpoint:
        (tensor,) = checkpoint.tensors
        for start in (299_990, 0, 150_000, 120_000):
            assert np.array_equal(tensor.read(start, start + 10), values[start : start + 10])


def test_data_beside_the_model_are_read(tmp_path: Path) -> None:
    arrays = {f"layer.{n}.weight": noise(40, 30) for n in range(4)}
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    path = save(tmp_path, [], constants, save_as_external_data=True, location="weights.data", size_threshold=0)
    got = read(path)
    assert all(np.array_equal(got[name], array) for name, array in arrays.items())
    with open_checkpoint(path) as checkpoint:
        assert [file.path for file in checkpoint.files] == [str(path), "weights.data"]
    with open_checkpoint(tmp_path) as checkpoint:
        assert {file.path for file in checkpoint.files} == {"model.onnx", "weights.data"}


def beside(tmp_path: Path, location: str, **options: Any) -> Path:
    proto = numpy_helper.from_array(noise(4, 4), "weight")
    set_external_data(proto, location, **options)
    proto.ClearField("raw_data")
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "short").write_bytes(bytes(60))
    (folder / "link").symlink_to(tmp_path / "secret")
    other = numpy_helper.from_array(noise(4, 4), "other.weight")
    return save(folder, [], [proto, other])


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", "", "..\\secret"])
def test_data_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedFileError, match="outside the folder"):
        open_checkpoint(beside(tmp_path, location))


@pytest.mark.parametrize(("location", "offset"), [("absent", 0), ("link", 0), ("short", 0), ("short", 10**15)])
def test_data_that_are_not_there_leave_the_rest(location: str, offset: int, tmp_path: Path) -> None:
    with open_checkpoint(beside(tmp_path, location, offset=offset)) as checkpoint:
        assert not checkpoint.complete
        assert [tensor.name for tensor in checkpoint.tensors] == ["other.weight"]
        assert {finding.code for finding in checkpoint.findings} == {"unread-tensor"}


def test_lying_length_of_data_beside_the_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes 64"):
        open_checkpoint(beside(tmp_path, "short", offset=0, length=60))


# --- layouts --------------------------------------------------------------------------------------------------------


def test_weights_of_products_are_turned_and_named_after_the_bias(tmp_path: Path) -> None:
    weight, bias = noise(6, 4), noise(6)
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_12"], ["y"], name="/query/MatMul"),
        helper.make_node("Add", ["encoder.query.bias", "y"], ["z"]),
    ]
    constants = [numpy_helper.from_array(weight.T.copy(), "onnx::MatMul_12"), named("encoder.query.bias", bias)]
    got = read(save(tmp_path, nodes, constants))
    assert np.array_equal(got["encoder.query.weight"], weight)


def named(name: str, array: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def test_weights_without_a_name_are_named_after_the_node(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "onnx::MatMul_12"], ["y"], name="/encoder/layer.3/key/MatMul")]
    assert list(read(save(tmp_path, nodes, [named("onnx::MatMul_12", noise(4, 6))]))) == ["encoder.layer.3.key.weight"]


@pytest.mark.parametrize("turned", [0, 1])
def test_gemm_says_whether_its_weight_is_turned(turned: int, tmp_path: Path) -> None:
    weight = noise(6, 4)
    nodes = [helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], transB=turned)]
    stored = weight if turned else weight.T.copy()
    got = read(save(tmp_path, nodes, [named("fc.weight", stored), named("fc.bias", noise(6))]))
    assert np.array_equal(got["fc.weight"], weight)


def test_table_that_is_also_an_output_matrix_stays_as_it_is(tmp_path: Path) -> None:
    table = noise(20, 4)
    nodes = [
        helper.make_node("Gather", ["wte.weight", "ids"], ["x"]),
        helper.make_node("Transpose", ["wte.weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["logits"]),
    ]
    assert np.array_equal(read(save(tmp_path, nodes, [named("wte.weight", table)]))["wte.weight"], table)


def test_weights_in_branches_are_read(tmp_path: Path) -> None:
    arrays = {"then.weight": noise(4, 4), "else.weight": noise(4, 4), "deep.weight": noise(4, 4)}

    def branch(name: str, *inner: onnx.NodeProto) -> onnx.GraphProto:
        constant = helper.make_node("Constant", [], [name], value=named("", arrays[name]))
        return helper.make_graph([constant, *inner], "branch", [], [])

    deep = helper.make_node(
        "If", ["other"], ["b"], then_branch=branch("deep.weight"), else_branch=branch("deep.weight")
    )
    node = helper.make_node(
        "If", ["flag"], ["a"], then_branch=branch("then.weight", deep), else_branch=branch("else.weight")
    )
    got = read(save(tmp_path, [node], []))
    assert set(got) == {*arrays, "deep.weight#2"}
    assert all(np.array_equal(got[name], array) for name, array in arrays.items())


def test_shapes_and_scalars_of_the_graph_are_set_aside(tmp_path: Path) -> None:
    constants = [named("shape", np.array([1, -1, 4])), named("eps", np.float32(1e-5)), named("w", noise(4, 4))]
    with open_checkpoint(save(tmp_path, [helper.make_node("Reshape", ["x", "shape"], ["y"])], constants)) as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == ["w"]
        assert {finding.code for finding in checkpoint.findings} == {"graph-constants"}
        assert checkpoint.complete
        assert checkpoint.metadata["onnx.producer"] == "tests"


# --- recurrent layers, as torch exports them ------------------------------------------------------------------------


class Recurrent(torch.nn.Module):
    def __init__(self, kind: type[torch.nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(5, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.rnn(x)[0]
        output: torch.Tensor = self.head(hidden)
        return output


def export(module: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        torch.onnx.export(module.eval(), (example,), str(path), dynamo=False, opset_version=17)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers_have_the_gates_in_the_order_of_torch(kind: type[torch.nn.RNNBase], tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Recurrent(kind)
    export(module, torch.zeros(2, 4, 5), tmp_path / "model.onnx")
    got, state = read(tmp_path / "model.onnx"), module.state_dict()
    assert set(got) >= set(state)
    # The exporter stores the state at the beginning too: zeros.
    assert not any(got[name].any() for name in got.keys() - state.keys())
    assert all(np.array_equal(got[name].reshape(tensor.shape), tensor.numpy()) for name, tensor in state.items())


def test_exported_network_has_the_digests_of_its_state(tmp_path: Path) -> None:
    torch.manual_seed(4)
    module = torch.nn.Sequential(
        torch.nn.Conv1d(4, 16, 3), torch.nn.Linear(14, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8, bias=False)
    )
    export(module, torch.zeros(1, 4, 16), tmp_path / "model.onnx")
    torch.save(module.state_dict(), tmp_path / "model.pt")

    def digests(name: str) -> dict[str, bytes]:
        with open_checkpoint(tmp_path / name) as checkpoint:
            return {record.name: record.digest for record in fingerprint(checkpoint).tensors}

    assert digests("model.onnx") == digests("model.pt")


# --- integers -------------------------------------------------------------------------------------------------------


def evaluated(node: onnx.NodeProto, constants: Sequence[onnx.TensorProto]) -> Array:
    """What the reference implementation of the library makes of the constants."""
    graph = helper.make_graph(
        [node], "graph", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)], initializer=constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return onnx.reference.ReferenceEvaluator(model).run(None, {})[0]


@pytest.mark.parametrize(
    ("kind", "scale_shape", "options"),
    [
        ("INT8", (), {}),
        ("UINT8", (6,), {"axis": 0}),
        ("INT8", (8,), {"axis": -1}),
        ("INT4", (6, 2), {"axis": 1, "block_size": 4}),
        ("UINT4", (2, 8), {"axis": 0, "block_size": 3}),
        ("INT16", (6,), {"axis": 0}),
        ("FLOAT8E4M3FN", (6,), {"axis": 0}),
    ],
)
def test_dequantised_weights_are_those_of_the_reference(
    kind: str, scale_shape: tuple[int, ...], options: dict[str, int], tmp_path: Path
) -> None:
    code = TensorProto.DataType.Value(kind)
    numpy = FLOATS.get(kind) or helper.tensor_dtype_to_np_dtype(code)
    low = 0 if kind.startswith("U") else -8
    numbers = RANDOM.integers(low, 8, (6, 8)).astype(numpy)
    constants = [numpy_helper.from_array(numbers, "w_quantized"), named("s", np.abs(noise(*scale_shape)) + 0.1)]
    inputs = ["w_quantized", "s"]
    if kind != "FLOAT8E4M3FN":
        zeros = RANDOM.integers(max(low, -3), 4, scale_shape).astype(numpy)
        constants.append(numpy_helper.from_array(zeros, "z"))
        inputs.append("z")
    node = helper.make_node("DequantizeLinear", inputs, ["w"], **options)
    table = helper.make_node("Gather", ["w", "ids"], ["y"])
    path = save(tmp_path, [node, table], constants)
    expected = evaluated(node, constants)
    with open_checkpoint(path) as checkpoint:
        (tensor,) = checkpoint.tensors
        assert tensor.dtype.name == (kind if kind.startswith(("I", "U")) else "F8_E4M3")
        assert np.array_equal(tensor.read(0, 48).reshape(6, 8), expected)
        assert np.array_equal(tensor.read(5, 29), expected.reshape(-1)[5:29])


def test_weight_of_an_integer_product_takes_its_scale_from_later(tmp_path: Path) -> None:
    numbers = RANDOM.integers(0, 255, (4, 6)).astype(np.uint8)
    scale, zero = np.abs(noise(6)) + 0.1, RANDOM.integers(100, 140, 6).astype(np.uint8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("Mul", ["xs", "W_scale"], ["scales"]),
        helper.make_node("MatMulInteger", ["xq", "onnx::MatMul_9_quantized", "xz", "W_zero"], ["y"]),
        helper.make_node("Cast", ["y"], ["yf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["yf", "scales"], ["z"]),
        helper.make_node("Add", ["dense.bias", "z"], ["out"]),
    ]
    constants = [named("onnx::MatMul_9_quantized", numbers), named("W_scale", scale), named("W_zero", zero)]
    got = read(save(tmp_path, nodes, [*constants, named("dense.bias", noise(6))]))
    assert set(got) == {"dense.weight", "dense.bias"}
    expected = (numbers.astype(np.float32) - zero) * scale
    assert np.array_equal(got["dense.weight"], expected.T)


def test_weights_of_operators_on_integers_are_dequantised(tmp_path: Path) -> None:
    matrix, kernel = (RANDOM.integers(-100, 100, shape).astype(np.int8) for shape in ((4, 6), (5, 3, 2, 2)))
    scale, each = np.float32(0.25), np.abs(noise(5)) + 0.1
    small = [named("s", np.float32(0.5)), named("z", np.int8(3))]
    nodes = [
        helper.make_node("QLinearMatMul", ["x", "s", "z", "a.weight", "a_scale", "z", "s", "z"], ["y"]),
        helper.make_node("QLinearConv", ["x", "s", "z", "b.weight", "b_scale", "b_zero", "s", "z"], ["v"]),
    ]
    constants = [named("a.weight", matrix), named("a_scale", scale), named("b.weight", kernel), named("b_scale", each)]
    got = read(save(tmp_path, nodes, [*small, *constants, named("b_zero", np.zeros(5, np.int8))]))
    assert set(got) == {"a.weight", "b.weight"}
    assert np.array_equal(got["a.weight"], ((matrix.astype(np.float32) - 3) * scale).T)
    assert np.array_equal(got["b.weight"], kernel.astype(np.float32) * each[:, None, None, None])


@pytest.mark.parametrize(("bits", "columns"), [(4, 64), (4, 40), (8, 64), (2, 64)])
@pytest.mark.parametrize("with_zero", [True, False])
def test_blocks_of_few_bits_are_dequantised(bits: int, columns: int, with_zero: bool, tmp_path: Path) -> None:
    # Worked out from the operator's documentation: ContribOperators.md, com.microsoft.MatMulNBits.
    rows, block = 6, 16
    blocks = -(-columns // block)
    codes = RANDOM.integers(0, 2**bits, (rows, blocks * block)).astype(np.uint8)
    zeros = RANDOM.integers(0, 2**bits, (rows, blocks)).astype(np.uint8)
    scales = np.abs(noise(rows, blocks)) + 0.1

    def packed(values: Array) -> Array:
        each = 8 // bits
        padded = np.pad(values, ((0, 0), (0, -values.shape[1] % each)))
        groups = padded.reshape(rows, -1, each).astype(np.uint32)
        return (groups << (np.arange(each, dtype=np.uint32) * bits)).sum(-1).astype(np.uint8)

    constants = [
        named("fc.weight_Q4", packed(codes).reshape(rows, blocks, -1)),
        named("fc_scales", scales.reshape(-1)),
        named("fc_zeros", packed(zeros).reshape(-1)),
    ]
    inputs = ["x", "fc.weight_Q4", "fc_scales"] + ["fc_zeros"] * with_zero
    options = {"N": rows, "K": columns, "bits": bits, "block_size": block}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **options)
    got = read(save(tmp_path, [node], constants if with_zero else constants[:2]))
    zero = zeros if with_zero else np.full_like(zeros, 1 << (bits - 1))
    expected = (codes.astype(np.float32) - zero.repeat(block, 1)) * scales.repeat(block, 1)
    assert list(got) == ["fc.weight"]
    assert np.array_equal(got["fc.weight"], expected[:, :columns])


def test_bytes_of_other_formats_are_not_taken_for_models() -> None:
    for number in range(300):
        data = np.random.default_rng(number).bytes(200)
        assert not looks_like_onnx(MemorySource(data))
    assert not looks_like_onnx(MemorySource(b"\x08\x01\x12\x04abcd"))


FOLDER = Path(__file__).parent / "data" / "onnx"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.onnx")))
def test_models_that_onnx_runtime_quantised_are_near_what_they_were(name: str) -> None:
    got = read(FOLDER / f"{name}.onnx")
    expected = np.load(FOLDER / "weights.npz")
    assert set(got) == set(expected)
    for key, weight in expected.items():
        error = np.abs(got[key].reshape(weight.shape) - weight).max()
        steps = 15 if name.startswith("nbits") and key == "up.weight" else 255
        assert error <= 1.01 * (weight.max() - min(weight.min(), 0)) / steps, key


def test_any_range_of_any_grid_of_scales_is_dequantised() -> None:
    chance = np.random.default_rng(2)
    for _ in range(400):
        shape = tuple(int(size) for size in chance.integers(1, 7, chance.integers(1, 5)))
        blocks = tuple(int(chance.integers(1, size + 1)) if chance.random() < 0.6 else size for size in shape)
        grid = tuple(-(-size // block) for size, block in zip(shape, blocks, strict=True))
        numbers, scales = np.arange(math.prod(shape), dtype=np.int16), chance.random(grid).astype(np.float32) + 1
        stored = StoredTensor("", dtypes.I16, shape, MemorySource(numbers.tobytes()), 0)
        scale = StoredTensor("", dtypes.F32, grid, MemorySource(scales.tobytes()), 0)
        each = scales
        for axis, (size, block) in enumerate(zip(shape, blocks, strict=True)):
            each = each.repeat(block, axis).take(range(size), axis)
        expected = numbers * each.reshape(-1)
        view = Affine("", quantised_dtype("INT16"), stored, scale, None, blocks)
        start, stop = sorted(chance.integers(0, numbers.size + 1, 2))
        assert np.array_equal(view.read(start, stop), expected[start:stop])
        assert np.array_equal(view.read(0, numbers.size), expected)


MORE = FOLDER / "more"


@pytest.mark.parametrize("kind", ["fp4", "nf4"])
def test_four_bit_floats_are_what_onnx_runtime_multiplies_by(kind: str) -> None:
    got = read(MORE / f"bnb4_{kind}.onnx")
    assert list(got) == ["up.weight"]
    np.testing.assert_array_equal(got["up.weight"], np.load(MORE / "weights.npz")[f"bnb4_{kind}"])


@pytest.mark.parametrize("name", ["lstm_dynamic", "lstm_dynamic_channels"])
def test_quantised_recurrent_layers_have_the_gates_of_torch(name: str) -> None:
    got, wanted = read(MORE / f"{name}.onnx"), np.load(MORE / "weights.npz")
    assert set(got) == {f"rnn.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    for key in got:
        weight = wanted[key]
        step = np.abs(weight).max(1, keepdims=True) if name.endswith("channels") and weight.ndim > 1 else 4.0
        exact = key.startswith("rnn.bias")
        assert np.all(np.abs(got[key].reshape(weight.shape) - weight) <= (0 if exact else step / 127)), key


def test_odd_contrib_operations_are_read_as_stored(tmp_path: Path) -> None:
    codes = numpy_helper.from_array(np.zeros(10, np.uint8), "w")
    absmax = numpy_helper.from_array(np.ones(3, np.float32), "s")
    options = {"K": 4, "N": 4, "block_size": 16, "quant_type": 1}
    node = helper.make_node("MatMulBnb4", ["x", "w", "s"], ["y"], domain="com.microsoft", **options)
    assert {name: value.size for name, value in read(save(tmp_path, [node], [codes, absmax])).items()}["s"] == 3
