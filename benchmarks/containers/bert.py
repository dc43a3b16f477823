"""BERT as a module of torch under the names of Hugging Face, for exporters: what MiniLM's weights belong to."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

HEADS = 12


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape

        def heads(name: str) -> Tensor:
            return cast("Tensor", self.self[name](x)).view(batch, length, HEADS, width // HEADS).transpose(1, 2)

        scores = heads("query") @ heads("key").transpose(2, 3) / math.sqrt(width // HEADS) + mask
        mixed = (scores.softmax(-1) @ heads("value")).transpose(1, 2).reshape(batch, length, width)
        return cast("Tensor", self.output["LayerNorm"](self.output["dense"](mixed) + x))


class Layer(nn.Module):
    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, neurons)})
        self.output = nn.ModuleDict({"dense": nn.Linear(neurons, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        hidden = nn.functional.gelu(self.intermediate["dense"](x))
        return cast("Tensor", self.output["LayerNorm"](self.output["dense"](hidden) + x))


class Bert(nn.Module):
    """``tokens``, ``mask``, ``types``: (batch, length) int64; returns (batch, width), the pooled output."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        tables = [f"{name}_embeddings" for name in ("word", "position", "token_type")]
        sizes = {name: state[f"embeddings.{name}.weight"].shape for name in tables}
        width = sizes["word_embeddings"][1]
        neurons = len(state["encoder.layer.0.intermediate.dense.bias"])
        count = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding(*size) for name, size in sizes.items()} | {"LayerNorm": nn.LayerNorm(width, eps=1e-12)}
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(width, neurons) for _ in range(count))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.load_state_dict(state)

    def forward(self, tokens: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        embeddings = self.embeddings
        x = embeddings["word_embeddings"](tokens) + embeddings["token_type_embeddings"](types)
        x = embeddings["LayerNorm"](x + embeddings["position_embeddings"](places))
        bias = (1 - mask[:, None, None, :].float()) * -10_000
        for layer in cast("nn.ModuleList", self.encoder["layer"]):
            x = layer(x, bias)
        return torch.tanh(cast("Tensor", self.pooler["dense"](x[:, 0])))
