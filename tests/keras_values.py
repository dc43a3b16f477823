"""The values of the networks in ``data/tensorflow``, turned by hand into what PyTorch would store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "beta": "bias", "depthwise_kernel": "weight", "embeddings": "weight", "gamma": "weight", "kernel": "weight",
    "moving_mean": "running_mean", "moving_variance": "running_var", "recurrent_kernel": "recurrent.weight",
}  # fmt: skip


def expected(network: str) -> dict[str, Any]:
    """Weights by PyTorch's name."""
    stored = np.load(Path(__file__).parent / "data" / "tensorflow" / "weights.npz")
    found = {}
    for key in stored.files:
        prefix, layer, variable = key.split("/")
        if prefix == network:
            found[f"{layer}.{NAMES.get(variable, variable)}"] = in_torch(layer, variable, stored[key])
    return found


def in_torch(layer: str, variable: str, value: Any) -> Any:
    """One variable as PyTorch has it, by the documentation of both libraries."""
    if layer == "gru" and variable.endswith("kernel"):
        update, reset, new = np.split(value, 3, axis=1)
        return np.concatenate([reset, update, new], axis=1).T
    if layer.startswith("depthwise") and value.ndim == 4:
        return np.moveaxis(value, (0, 1), (2, 3)).reshape(8, 1, 3, 3)
    if variable.endswith("kernel"):
        # Spatial axes to the end, the last two swapped to the front: (k..., in, out) to (out, in, k...).
        return np.transpose(value, (value.ndim - 1, value.ndim - 2, *range(value.ndim - 2)))
    return value
