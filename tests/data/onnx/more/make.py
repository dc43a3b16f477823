"""Makes the models of 4-bit floats and of a quantised LSTM: run by hand with onnx 1.23.2 and onnxruntime 1.32.0.

``weights.npz`` has the weights, as PyTorch would store them, and what ONNX Runtime multiplies by.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

HERE = Path(__file__).parent
RANDOM = np.random.default_rng(12)


def product(weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["y"], name="/up/MatMul")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [weight.shape[1], weight.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [weight.shape[1], weight.shape[0]])],
        initializer=[numpy_helper.from_array(weight.T.copy(), "onnx::MatMul_1")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def recurrent(tensors: dict[str, np.ndarray], hidden: int) -> onnx.ModelProto:
    def gates(value: np.ndarray) -> np.ndarray:
        i, f, g, o = np.split(value, 4)
        return np.concatenate([i, o, f, g])[None]

    stored = {
        "W": gates(tensors["weight_ih"]), "R": gates(tensors["weight_hh"]),
        "B": np.concatenate([gates(tensors["bias_ih"]), gates(tensors["bias_hh"])], axis=1),
    }  # fmt: skip
    node = helper.make_node("LSTM", ["x", *stored], ["y"], name="/rnn/LSTM", hidden_size=hidden)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 1, tensors["weight_ih"].shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 1, 1, hidden])],
        initializer=[numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    up = RANDOM.standard_normal((48, 32)).astype(np.float32)
    found = {"up.weight": up}
    for name, kind in (("fp4", 0), ("nf4", 1)):
        quantizer = MatMulBnb4Quantizer(product(up), kind, 64)
        quantizer.process()
        path = HERE / f"bnb4_{name}.onnx"
        quantizer.model.save_model_to_file(str(path), use_external_data_format=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found[f"bnb4_{name}"] = session.run(None, {"x": np.eye(32, dtype=np.float32)})[0].T
    state = {
        "weight_ih": RANDOM.standard_normal((32, 6)).astype(np.float32),
        "weight_hh": RANDOM.standard_normal((32, 8)).astype(np.float32),
        "bias_ih": RANDOM.standard_normal(32).astype(np.float32),
        "bias_hh": RANDOM.standard_normal(32).astype(np.float32),
    }
    source = HERE / "lstm.onnx"
    onnx.save(recurrent(state, 8), source)
    for name, channels in (("lstm_dynamic", False), ("lstm_dynamic_channels", True)):
        quantize_dynamic(source, HERE / f"{name}.onnx", per_channel=channels, weight_type=QuantType.QInt8)
    source.unlink()
    np.savez_compressed(HERE / "weights.npz", **found, **{f"rnn.{name}_l0": value for name, value in state.items()})


if __name__ == "__main__":
    main()
