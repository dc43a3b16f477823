"""SmolLM2-135M from its GGUF file and from the weights that the ``gguf`` package dequantises it to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

LAYERS, HEADS, KEY_HEADS = 30, 9, 3


def dequantised(path: Path, folder: Path) -> Path:
    """A safetensors file in float32 under the names of Hugging Face, with llama.cpp's order of rows undone.

    Nothing here uses this project's code: names are those of the package's map, the rows follow ``permute`` in
    llama.cpp's conversion.
    """
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    theirs = {}
    for name in _names():
        theirs[table.get_name(name, try_suffixes=(".weight",))] = name
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(size) for size in tensor.shape[::-1])
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        for kind, heads in (("attn_q.", HEADS), ("attn_k.", KEY_HEADS)):
            if kind in tensor.name:
                values = _halves_first(values, heads)
        state[theirs[tensor.name]] = torch.from_numpy(np.array(values, np.float32))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def _halves_first(weights: Any, heads: int) -> Any:
    """Row ``2 i + half`` of a head goes to row ``half * size / 2 + i``."""
    rows, width = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _names() -> list[str]:
    linear = [f"self_attn.{one}_proj" for one in "qkvo"] + [f"mlp.{one}_proj" for one in ("gate", "up", "down")]
    inner = [*linear, "input_layernorm", "post_attention_layernorm"]
    layers = [f"model.layers.{layer}.{one}.weight" for layer in range(LAYERS) for one in inner]
    return ["model.embed_tokens.weight", "model.norm.weight", *layers]
