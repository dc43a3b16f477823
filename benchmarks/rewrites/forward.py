"""Logits of one model, apart from the zoo's own code: in any float type, with an output head that may be untied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from benchmarks.zoo.models import Style

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from benchmarks.zoo.models import Shape

HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Constants:
    """What gated models have beside weights and sizes; by default the zoo's."""

    rotary_base: float = 10000.0
    epsilon: float = 1e-6


ZOO = Constants()


def embedding_name(style: Style) -> str:
    if style is Style.BERT:
        return "bert.embeddings.word_embeddings.weight"
    return "model.embed_tokens.weight" if style.is_gated else "transformer.wte.weight"


def head_name(style: Style, weights: Mapping[str, Tensor]) -> str:
    """Name of the tensor that makes the logits: that of the embedding where they are tied."""
    return HEAD if HEAD in weights else embedding_name(style)


def layer_count(style: Style, weights: Mapping[str, Tensor]) -> int:
    first = "model.layers.{}.mlp.gate_proj.weight" if style.is_gated else "transformer.h.{}.mlp.c_fc.weight"
    first = "bert.encoder.layer.{}.intermediate.dense.weight" if style is Style.BERT else first
    return next(i for i in range(len(weights) + 1) if first.format(i) not in weights)


def logits(shape: Shape, weights: Mapping[str, Tensor], ids: Tensor, constants: Constants = ZOO) -> Tensor:
    """Logits of the next token (BERT style: of every token). ids (B, T); returns (B, T, vocabulary), the weights' type.

    Heads are counted by ``shape``; layers and neurons by the tensors, so that pruned models can be computed too.
    """
    if shape.style.is_gated:
        return _llama(shape, weights, ids, constants)
    return (_gpt2 if shape.style.is_gpt2 else _bert)(shape, weights, ids)


def _heads(x: Tensor, size: int) -> Tensor:
    return x.view(*x.shape[:-1], -1, size).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    length = q.shape[2]
    scores = q @ k.transpose(-1, -2) / float(q.shape[-1]) ** 0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    out: Tensor = scores.softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


def _rotate(x: Tensor, base: float) -> Tensor:
    """Rotary positions (Su et al. 2021): channels j and j + size / 2 of a head form pair j."""
    length, size = x.shape[-2:]
    frequency = base ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    angle = torch.arange(length, dtype=x.dtype)[:, None] * frequency
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.complex(angle.cos(), angle.sin())
    return torch.cat((turned.real, turned.imag), dim=-1)


def _llama(s: Shape, w: Mapping[str, Tensor], ids: Tensor, constants: Constants) -> Tensor:
    gemma = s.style is Style.GEMMA

    def norm(x: Tensor, name: str) -> Tensor:
        gain = w[name + ".weight"]
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + constants.epsilon) * (gain + 1 if gemma else gain)

    x = w["model.embed_tokens.weight"][ids] * (s.width**0.5 if gemma else 1.0)
    group = s.heads // s.kv_heads
    for i in range(layer_count(s.style, w)):
        p = f"model.layers.{i}."
        h = norm(x, p + "input_layernorm")
        q, k, v = (_heads(h @ w[f"{p}self_attn.{part}_proj.weight"].T, s.head_size) for part in "qkv")
        q, k = (_rotate(part, constants.rotary_base) for part in (q, k))
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
        x = x + _attend(q, k, v) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, p + "post_attention_layernorm")
        gate = h @ w[p + "mlp.gate_proj.weight"].T
        gate = F.gelu(gate, approximate="tanh") if gemma else F.silu(gate)
        x = x + (gate * (h @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ w[head_name(s.style, w)].T


def _gpt2(s: Shape, w: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps=1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[name + ".weight"] + w[name + ".bias"]

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: ids.shape[1]]
    for i in range(layer_count(s.style, w)):
        p = f"transformer.h.{i}."
        q, k, v = (_heads(part, s.head_size) for part in linear(norm(x, p + "ln_1"), p + "attn.c_attn").chunk(3, -1))
        x = x + linear(_attend(q, k, v), p + "attn.c_proj")
        hidden = linear(norm(x, p + "ln_2"), p + "mlp.c_fc")
        hidden = F.relu(hidden) if s.style is Style.RELU else F.gelu(hidden, approximate="tanh")
        x = x + linear(hidden, p + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w[head_name(s.style, w)].T


def _bert(s: Shape, w: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps=1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    words = w["bert.embeddings.word_embeddings.weight"]
    x = norm(words[ids] + w["bert.embeddings.position_embeddings.weight"][: ids.shape[1]], "bert.embeddings.LayerNorm")
    for i in range(layer_count(s.style, w)):
        p = f"bert.encoder.layer.{i}."
        q, k, v = (_heads(linear(x, f"{p}attention.self.{part}"), s.head_size) for part in ("query", "key", "value"))
        x = norm(
            x + linear(_attend(q, k, v, causal=False), p + "attention.output.dense"), p + "attention.output.LayerNorm"
        )
        hidden = linear(F.gelu(linear(x, p + "intermediate.dense")), p + "output.dense")
        x = norm(x + hidden, p + "output.LayerNorm")
    return x @ words.T + w["cls.predictions.bias"]
