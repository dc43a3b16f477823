"""Tensors of two very large models, as their repositories list them: names, shapes, types, and shards."""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """``dtype`` is BF16, F8_E4M3 or F32."""

    name: str
    shape: Shape
    dtype: str = "BF16"

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * {"BF16": 2, "F8_E4M3": 1, "F32": 4}[self.dtype]


def llama_405b(layers: int = 126, width: int = 16384, neurons: int = 53248, shared: int = 1024) -> list[Tensor]:
    """The shapes of Llama 3.1 405B: 405.9 G parameters in bf16."""
    tensors = [Tensor("model.embed_tokens.weight", (128256, width))]
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors += [
            Tensor(f"{prefix}.input_layernorm.weight", (width,)),
            Tensor(f"{prefix}.mlp.down_proj.weight", (width, neurons)),
            Tensor(f"{prefix}.mlp.gate_proj.weight", (neurons, width)),
            Tensor(f"{prefix}.mlp.up_proj.weight", (neurons, width)),
            Tensor(f"{prefix}.post_attention_layernorm.weight", (width,)),
            Tensor(f"{prefix}.self_attn.k_proj.weight", (shared, width)),
            Tensor(f"{prefix}.self_attn.o_proj.weight", (width, width)),
            Tensor(f"{prefix}.self_attn.q_proj.weight", (width, width)),
            Tensor(f"{prefix}.self_attn.v_proj.weight", (shared, width)),
        ]
    return [*tensors, Tensor("model.norm.weight", (width,)), Tensor("lm_head.weight", (128256, width))]


def deepseek_v3(layers: int = 61, dense: int = 3, experts: int = 256, width: int = 7168) -> list[Tensor]:
    """The shapes of DeepSeek-V3: 671 G parameters in 8-bit floats with a scale for each block of 128 by 128, and the
    module that predicts a second token, as a layer of its own behind the others."""
    tensors = [Tensor("model.embed_tokens.weight", (129280, width))]
    for layer in range(layers + 1):
        prefix = f"model.layers.{layer}"
        tensors += _attention(f"{prefix}.self_attn", width)
        if layer < dense:
            tensors += _gated(f"{prefix}.mlp", width, 18432)
        else:
            for expert in range(experts):
                tensors += _gated(f"{prefix}.mlp.experts.{expert}", width, 2048)
            tensors += [
                Tensor(f"{prefix}.mlp.gate.weight", (experts, width)),
                Tensor(f"{prefix}.mlp.gate.e_score_correction_bias", (experts,), "F32"),
                *_gated(f"{prefix}.mlp.shared_experts", width, 2048),
            ]
        tensors += [
            Tensor(f"{prefix}.{norm}.weight", (width,)) for norm in ("input_layernorm", "post_attention_layernorm")
        ]
        if layer == layers:
            tensors += [
                Tensor(f"{prefix}.embed_tokens.weight", (129280, width)),
                Tensor(f"{prefix}.enorm.weight", (width,)),
                Tensor(f"{prefix}.hnorm.weight", (width,)),
                Tensor(f"{prefix}.eh_proj.weight", (width, 2 * width)),
                Tensor(f"{prefix}.shared_head.norm.weight", (width,)),
                Tensor(f"{prefix}.shared_head.head.weight", (129280, width)),
            ]
    return [*tensors, Tensor("model.norm.weight", (width,)), Tensor("lm_head.weight", (129280, width))]


def _attention(prefix: str, width: int) -> list[Tensor]:
    return [
        *_scaled(f"{prefix}.q_a_proj", (1536, width)),
        Tensor(f"{prefix}.q_a_layernorm.weight", (1536,)),
        *_scaled(f"{prefix}.q_b_proj", (24576, 1536)),
        *_scaled(f"{prefix}.kv_a_proj_with_mqa", (576, width)),
        Tensor(f"{prefix}.kv_a_layernorm.weight", (512,)),
        *_scaled(f"{prefix}.kv_b_proj", (32768, 512)),
        *_scaled(f"{prefix}.o_proj", (width, 16384)),
    ]


def _gated(prefix: str, width: int, neurons: int) -> list[Tensor]:
    return [
        *_scaled(f"{prefix}.gate_proj", (neurons, width)),
        *_scaled(f"{prefix}.up_proj", (neurons, width)),
        *_scaled(f"{prefix}.down_proj", (width, neurons)),
    ]


def _scaled(name: str, shape: tuple[int, int]) -> list[Tensor]:
    blocks = (-(-shape[0] // 128), -(-shape[1] // 128))
    return [Tensor(f"{name}.weight", shape, "F8_E4M3"), Tensor(f"{name}.weight_scale_inv", blocks, "F32")]


def shards(tensors: list[Tensor], number: int) -> list[list[Tensor]]:
    """The tensors in ``number`` shards of about the same size, in order; none is empty."""
    total = sum(tensor.bytes for tensor in tensors)
    made: list[list[Tensor]] = [[] for _ in range(number)]
    done = 0
    for tensor in tensors:
        made[min(done * number // total, number - 1)].append(tensor)
        done += tensor.bytes
    empty = [place for place, shard in enumerate(made) if not shard]
    for place in empty:  # behind a tensor larger than a shard: it takes the last one from before
        donor = next(at for at in range(place - 1, -1, -1) if len(made[at]) > 1)
        for at in range(donor, place):
            made[at + 1].insert(0, made[at].pop())
    return made
