"""Makes the small Core ML models of ``tests/data/coreml`` with coremltools, which is no dependency of this project.

``PYTHONPATH=THERE python -m benchmarks.coreml_vectors tests/data/coreml``, with coremltools 9.0 installed in ``THERE``.
Each model is a network of torch; ``expected.npz`` holds its state and what coremltools decompresses the weights to.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as optimise
import numpy as np
import torch


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(20, 16)
        self.fc = torch.nn.Linear(16, 24)
        self.conv = torch.nn.Conv1d(24, 8, 3)
        self.norm = torch.nn.LayerNorm(6)
        self.rnn = torch.nn.LSTM(6, 4, batch_first=True)
        self.head = torch.nn.Linear(4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.fc(self.embed(x))).transpose(1, 2)
        output: torch.Tensor = self.head(self.rnn(self.norm(self.conv(hidden)))[0])
        return output


def converted(net: torch.nn.Module, kind: str = "mlprogram", **options: Any) -> Any:
    traced = torch.jit.trace(net.eval(), torch.zeros(1, 8, dtype=torch.long))
    return ct.convert(traced, inputs=[ct.TensorType("x", shape=(1, 8), dtype=np.int32)], convert_to=kind, **options)


def compressed(model: Any, model18: Any) -> dict[str, Any]:
    """The forms of compression, by the title of the file."""

    def config(one: Any) -> Any:
        return optimise.OptimizationConfig(global_config=one)

    def palette(bits: int, **options: Any) -> Any:
        return config(optimise.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=0, **options))

    linear = config(optimise.OpLinearQuantizerConfig(mode="linear", weight_threshold=0))
    blocks = config(
        optimise.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=4, weight_threshold=0
        )
    )
    pruned = config(optimise.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0))
    grouped = palette(3, granularity="per_grouped_channel", group_size=8)
    return {
        "linear8": optimise.linear_quantize_weights(model, linear),
        "palette4": optimise.palettize_weights(model, palette(4)),
        "palette6": optimise.palettize_weights(model, palette(6)),
        "sparse": optimise.prune_weights(model, pruned),
        "blocks4": optimise.linear_quantize_weights(model18, blocks),
        "palettes3": optimise.palettize_weights(model18, grouped),
        "sparse18": optimise.prune_weights(model18, pruned),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net = Net()
    options = {"compute_precision": ct.precision.FLOAT32, "minimum_deployment_target": ct.target.iOS16}
    plain, later = converted(net, **options), converted(net, **options | {"minimum_deployment_target": ct.target.iOS18})
    expected = {f"state/{name}": value.numpy() for name, value in net.state_dict().items()}
    made = {"plain": plain, **compressed(plain, later)}
    for name, model in made.items():
        if name != "plain":
            found = optimise.get_weights_metadata(optimise.decompress_weights(model), weight_threshold=8)
            expected |= {
                f"{name}/{key}": np.asarray(one.val, np.float32)
                for key, one in found.items()
                if key.startswith(("embed", "fc", "conv", "head")) and "weight" in key
            }
        with tempfile.TemporaryDirectory() as place:
            package = Path(place) / "model.mlpackage"
            model.save(str(package))
            with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(package.rglob("*")):
                    if path.is_file():
                        archive.write(path, path.relative_to(place))
    network = converted(net, "neuralnetwork")
    network.save(str(folder / "network.mlmodel"))
    for bits, mode in ((8, "linear"), (4, "kmeans_lut"), (3, "linear")):
        try:
            small = ct.models.neural_network.quantization_utils.quantize_weights(network, bits, mode)
        except Exception as error:  # noqa: BLE001 - some modes want packages that are not there
            print(f"network, {bits} bits, {mode}: {error}")
            continue
        spec = small if not hasattr(small, "get_spec") else small.get_spec()
        (folder / f"network{bits}.mlmodel").write_bytes(spec.SerializeToString())
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main()
