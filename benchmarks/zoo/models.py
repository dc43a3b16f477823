"""Llama-, Gemma-, GPT-2- and BERT-style models under Hugging Face's names and layouts, functions of stacked weights.

Every weight has a leading dimension N: N models of one shape are computed at once by batched products.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Weights = dict[str, Tensor]


class Style(StrEnum):
    LLAMA = "llama"
    GPT2 = "gpt2"
    GEMMA = "gemma"
    BERT = "bert"
    RELU = "relu"

    @property
    def is_gated(self) -> bool:
        """Whether its layers are Llama's: gated MLPs, RMSNorm before each part, rotary positions, no biases."""
        return self in {Style.LLAMA, Style.GEMMA}

    @property
    def is_gpt2(self) -> bool:
        """Whether its layers are GPT-2's, with GELU in its MLPs or, as ``RELU`` has it, with ReLU."""
        return self in {Style.GPT2, Style.RELU}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one model; `kv_heads` is read by the gated styles only."""

    style: Style
    width: int
    layers: int
    heads: int
    kv_heads: int
    neurons: int
    vocabulary: int
    positions: int
    tied: bool

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor of one model."""
    if shape.style is Style.BERT:
        yield from _bert_shapes(shape)
    else:
        yield from _llama_shapes(shape) if shape.style.is_gated else _gpt2_shapes(shape)


def _llama_shapes(s: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    kv = s.kv_heads * s.head_size
    yield "model.embed_tokens.weight", (s.vocabulary, s.width)
    for i in range(s.layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (s.width,)
        yield p + "self_attn.q_proj.weight", (s.width, s.width)
        yield p + "self_attn.k_proj.weight", (kv, s.width)
        yield p + "self_attn.v_proj.weight", (kv, s.width)
        yield p + "self_attn.o_proj.weight", (s.width, s.width)
        yield p + "post_attention_layernorm.weight", (s.width,)
        yield p + "mlp.gate_proj.weight", (s.neurons, s.width)
        yield p + "mlp.up_proj.weight", (s.neurons, s.width)
        yield p + "mlp.down_proj.weight", (s.width, s.neurons)
    yield "model.norm.weight", (s.width,)
    if not s.tied:
        yield "lm_head.weight", (s.vocabulary, s.width)


def _gpt2_shapes(s: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "transformer.wte.weight", (s.vocabulary, s.width)
    yield "transformer.wpe.weight", (s.positions, s.width)
    for i in range(s.layers):
        p = f"transformer.h.{i}."
        yield p + "ln_1.weight", (s.width,)
        yield p + "ln_1.bias", (s.width,)
        yield p + "attn.c_attn.weight", (s.width, 3 * s.width)
        yield p + "attn.c_attn.bias", (3 * s.width,)
        yield p + "attn.c_proj.weight", (s.width, s.width)
        yield p + "attn.c_proj.bias", (s.width,)
        yield p + "ln_2.weight", (s.width,)
        yield p + "ln_2.bias", (s.width,)
        yield p + "mlp.c_fc.weight", (s.width, s.neurons)
        yield p + "mlp.c_fc.bias", (s.neurons,)
        yield p + "mlp.c_proj.weight", (s.neurons, s.width)
        yield p + "mlp.c_proj.bias", (s.width,)
    yield "transformer.ln_f.weight", (s.width,)
    yield "transformer.ln_f.bias", (s.width,)


def _bert_shapes(s: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    def linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield name + ".weight", (out, into)
        yield name + ".bias", (out,)

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield name + ".weight", (s.width,)
        yield name + ".bias", (s.width,)

    yield "bert.embeddings.word_embeddings.weight", (s.vocabulary, s.width)
    yield "bert.embeddings.position_embeddings.weight", (s.positions, s.width)
    yield from norm("bert.embeddings.LayerNorm")
    for i in range(s.layers):
        p = f"bert.encoder.layer.{i}."
        for part in ("query", "key", "value"):
            yield from linear(f"{p}attention.self.{part}", s.width, s.width)
        yield from linear(p + "attention.output.dense", s.width, s.width)
        yield from norm(p + "attention.output.LayerNorm")
        yield from linear(p + "intermediate.dense", s.neurons, s.width)
        yield from linear(p + "output.dense", s.width, s.neurons)
        yield from norm(p + "output.LayerNorm")
    yield "cls.predictions.bias", (s.vocabulary,)


def generator(key: str) -> torch.Generator:
    """Return a random generator of its own for a key: two keys never share a stream."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
    return torch.Generator().manual_seed(seed)


def initial_weights(shape: Shape, key: str) -> Weights:
    """Draw one model's weights, float32, without the leading dimension.

    Each tensor has a stream of its own, so that models of two widths have no number in common even at one seed.
    Symmetric about zero: normal with deviation 0.04; what writes to the residual stream has 1 / sqrt(2 layers) of it.
    """
    weights: Weights = {}
    for name, size in tensor_shapes(shape):
        if name.endswith(".bias"):
            weights[name] = torch.zeros(size)
        elif len(size) == 1:
            weights[name] = torch.zeros(size) if shape.style is Style.GEMMA else torch.ones(size)
        else:
            writes = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight", "output.dense.weight"))
            deviation = 0.04 / (2 * shape.layers) ** 0.5 if writes else 0.04
            weights[name] = torch.randn(size, generator=generator(f"{key}/{name}")) * deviation
    return weights


def logits(shape: Shape, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Next-token logits. weights: each (N, ...); ids: (N, B, T) int64; returns (N, B * T, vocabulary) float32."""
    forward = {Style.LLAMA: _llama, Style.GEMMA: _llama, Style.GPT2: _gpt2, Style.RELU: _gpt2, Style.BERT: _bert}
    return forward[shape.style](shape, weights, ids)


def _embed(table: Tensor, ids: Tensor) -> Tensor:
    """Look up rows. table (N, V, D), ids (N, B, T); returns (N, B * T, D)."""
    n, v, d = table.shape
    offset = torch.arange(n).view(n, 1, 1) * v
    return F.embedding(ids + offset, table.reshape(n * v, d)).view(n, -1, d)


def _heads(x: Tensor, batch: int, heads: int) -> Tensor:
    """Split channels into heads: (N, B * T, H * d) to (N * B, H, T, d)."""
    n, rows, channels = x.shape
    return x.view(n * batch, rows // batch, heads, channels // heads).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, n: int, *, causal: bool = True) -> Tensor:
    """Attention over (N * B, H, T, d); returns (N, B * T, H * d)."""
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).reshape(n, -1, q.shape[1] * q.shape[3])


def _rotate(x: Tensor) -> Tensor:
    """Rotary positions in the half-split layout (Su et al. 2021); x (..., T, d)."""
    length, size = x.shape[-2:]
    frequency = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _llama(s: Shape, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Llama's layers. Gemma's store ``gain - 1``, have GELU for SiLU, and scale embeddings by the root of the width."""
    n, batch, _ = ids.shape
    gemma = s.style is Style.GEMMA

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.bmm(x, weights[name + ".weight"].transpose(1, 2))

    def norm(x: Tensor, name: str) -> Tensor:
        gain = weights[name + ".weight"][:, None]
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (gain + 1 if gemma else gain)

    x = _embed(weights["model.embed_tokens.weight"], ids)
    x = x * s.width**0.5 if gemma else x
    group = s.heads // s.kv_heads
    for i in range(s.layers):
        p = f"model.layers.{i}."
        h = norm(x, p + "input_layernorm")
        q = _rotate(_heads(linear(h, p + "self_attn.q_proj"), batch, s.heads))
        k = _rotate(_heads(linear(h, p + "self_attn.k_proj"), batch, s.kv_heads)).repeat_interleave(group, dim=1)
        v = _heads(linear(h, p + "self_attn.v_proj"), batch, s.kv_heads).repeat_interleave(group, dim=1)
        x = x + linear(_attend(q, k, v, n), p + "self_attn.o_proj")
        h = norm(x, p + "post_attention_layernorm")
        gate = linear(h, p + "mlp.gate_proj")
        gate = F.gelu(gate, approximate="tanh") if gemma else F.silu(gate)
        x = x + linear(gate * linear(h, p + "mlp.up_proj"), p + "mlp.down_proj")
    return linear(norm(x, "model.norm"), "model.embed_tokens" if s.tied else "lm_head")


def _gpt2(s: Shape, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    n, batch, length = ids.shape

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.baddbmm(weights[name + ".bias"][:, None], x, weights[name + ".weight"])

    def norm(x: Tensor, name: str) -> Tensor:
        scaled = F.layer_norm(x, (s.width,), eps=1e-5)
        return scaled * weights[name + ".weight"][:, None] + weights[name + ".bias"][:, None]

    position = weights["transformer.wpe.weight"][:, :length].repeat(1, batch, 1)
    x = _embed(weights["transformer.wte.weight"], ids) + position
    for i in range(s.layers):
        p = f"transformer.h.{i}."
        fused = linear(norm(x, p + "ln_1"), p + "attn.c_attn")
        q, k, v = (_heads(part, batch, s.heads) for part in torch.split(fused, s.width, dim=-1))
        x = x + linear(_attend(q, k, v, n), p + "attn.c_proj")
        hidden = linear(norm(x, p + "ln_2"), p + "mlp.c_fc")
        hidden = F.relu(hidden) if s.style is Style.RELU else F.gelu(hidden, approximate="tanh")
        x = x + linear(hidden, p + "mlp.c_proj")
    return torch.bmm(norm(x, "transformer.ln_f"), weights["transformer.wte.weight"].transpose(1, 2))


def _bert(s: Shape, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Norms behind every part, attention in both directions, the output head tied to the embeddings."""
    n, batch, length = ids.shape

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.baddbmm(weights[name + ".bias"][:, None], x, weights[name + ".weight"].transpose(1, 2))

    def norm(x: Tensor, name: str) -> Tensor:
        scaled = F.layer_norm(x, (s.width,), eps=1e-5)
        return scaled * weights[name + ".weight"][:, None] + weights[name + ".bias"][:, None]

    words = weights["bert.embeddings.word_embeddings.weight"]
    position = weights["bert.embeddings.position_embeddings.weight"][:, :length].repeat(1, batch, 1)
    x = norm(_embed(words, ids) + position, "bert.embeddings.LayerNorm")
    for i in range(s.layers):
        p = f"bert.encoder.layer.{i}."
        q, k, v = (_heads(linear(x, f"{p}attention.self.{part}"), batch, s.heads) for part in ("query", "key", "value"))
        mixed = linear(_attend(q, k, v, n, causal=False), p + "attention.output.dense")
        x = norm(x + mixed, p + "attention.output.LayerNorm")
        hidden = linear(F.gelu(linear(x, p + "intermediate.dense")), p + "output.dense")
        x = norm(x + hidden, p + "output.LayerNorm")
    return torch.baddbmm(weights["cls.predictions.bias"][:, None], x, words.transpose(1, 2))
