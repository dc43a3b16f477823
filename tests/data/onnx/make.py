"""Makes the quantised models of this folder: run by hand with onnx 1.23.2, onnxruntime 1.32.0 and onnx-ir.

A table, two products and a convolution, quantised by ONNX Runtime in each way that it offers. ``weights.npz`` has what
was quantised, as PyTorch would store it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    matmul_nbits_quantizer,
    quantize_dynamic,
    quantize_static,
)

HERE = Path(__file__).parent
RANDOM = np.random.default_rng(11)
WEIGHTS = {
    "embed.weight": RANDOM.standard_normal((24, 32)).astype(np.float32),
    "up.weight": RANDOM.standard_normal((48, 32)).astype(np.float32),
    "up.bias": RANDOM.standard_normal(48).astype(np.float32),
    "conv.weight": RANDOM.standard_normal((8, 4, 3)).astype(np.float32),
    "conv.bias": RANDOM.standard_normal(8).astype(np.float32),
    "head.weight": RANDOM.standard_normal((10, 46)).astype(np.float32),
    "head.bias": RANDOM.standard_normal(10).astype(np.float32),
}


def model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["embed.weight", "ids"], ["x"], name="/embed/Gather"),
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], name="/up/MatMul"),
        helper.make_node("Add", ["up.bias", "y"], ["z"], name="/up/Add"),
        helper.make_node("Relu", ["z"], ["a"], name="/Relu"),
        helper.make_node("Conv", ["a", "conv.weight", "conv.bias"], ["c"], name="/conv/Conv", kernel_shape=[3]),
        helper.make_node("ReduceMean", ["c"], ["m"], name="/ReduceMean", axes=[1], keepdims=0),
        helper.make_node("Gemm", ["m", "head.weight", "head.bias"], ["out"], name="/head/Gemm", transB=1),
    ]
    stored = {
        ("onnx::MatMul_7" if k == "up.weight" else k): (v.T.copy() if k == "up.weight" else v)
        for k, v in WEIGHTS.items()
    }
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 10])],
        initializer=[numpy_helper.from_array(v, k) for k, v in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = [{"ids": RANDOM.integers(0, 24, (1, 4))} for _ in range(8)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def main() -> None:
    np.savez(HERE / "weights.npz", **WEIGHTS)
    plain = HERE / "plain.onnx"
    onnx.save(model(), plain)
    quantize_dynamic(plain, HERE / "dynamic.onnx")
    quantize_dynamic(plain, HERE / "dynamic_channels.onnx", per_channel=True, weight_type=QuantType.QInt8)
    for kind in (QuantFormat.QDQ, QuantFormat.QOperator):
        name = f"static_{kind.name.lower()}"
        quantize_static(plain, HERE / f"{name}.onnx", Reader(), quant_format=kind)
        quantize_static(plain, HERE / f"{name}_channels.onnx", Reader(), quant_format=kind, per_channel=True)
    for symmetric in (True, False):
        config = matmul_nbits_quantizer.DefaultWeightOnlyQuantConfig(block_size=16, is_symmetric=symmetric)
        quantiser = matmul_nbits_quantizer.MatMulNBitsQuantizer(onnx.load(plain), algo_config=config)
        quantiser.process()
        onnx.save(quantiser.model.model, HERE / f"nbits_{'symmetric' if symmetric else 'zeros'}.onnx")


if __name__ == "__main__":
    main()
