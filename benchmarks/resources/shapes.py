"""Shapes of published models, whose weights are not needed to measure time, and of some that nobody published."""

from __future__ import annotations

from dataclasses import dataclass

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Llama:
    """A Llama-shaped model: ``heads`` of ``head`` channels read ``shared`` ones of keys and values; ``tied``: its head
    is its table of tokens; ``normed``: queries and keys have norms of their own."""

    layers: int
    width: int
    neurons: int
    heads: int
    shared: int
    head: int
    vocabulary: int
    tied: bool = True
    normed: bool = False

    @property
    def config(self) -> dict[str, object]:
        """What lies beside the weights."""
        return {
            "model_type": "qwen3" if self.normed else "llama",
            "hidden_size": self.width,
            "head_dim": self.head,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.shared,
            "tie_word_embeddings": self.tied,
        }

    @property
    def shapes(self) -> Shapes:
        """Names and shapes of its tensors, in their order."""
        wide, narrow = self.heads * self.head, self.shared * self.head
        shapes: Shapes = [("model.embed_tokens.weight", (self.vocabulary, self.width))]
        for number in range(self.layers):
            of_layer: Shapes = [
                ("self_attn.q_proj", (wide, self.width)),
                ("self_attn.k_proj", (narrow, self.width)),
                ("self_attn.v_proj", (narrow, self.width)),
                ("self_attn.o_proj", (self.width, wide)),
                ("mlp.gate_proj", (self.neurons, self.width)),
                ("mlp.up_proj", (self.neurons, self.width)),
                ("mlp.down_proj", (self.width, self.neurons)),
                ("input_layernorm", (self.width,)),
                ("post_attention_layernorm", (self.width,)),
            ]
            if self.normed:
                of_layer += [("self_attn.q_norm", (self.head,)), ("self_attn.k_norm", (self.head,))]
            shapes += [(f"model.layers.{number}.{name}.weight", shape) for name, shape in of_layer]
        shapes.append(("model.norm.weight", (self.width,)))
        return shapes if self.tied else [*shapes, ("lm_head.weight", (self.vocabulary, self.width))]


MODELS = {
    "SmolLM2-135M": Llama(30, 576, 1536, 9, 3, 64, 49152),
    "SmolLM2-360M": Llama(32, 960, 2560, 15, 5, 64, 49152),
    "Qwen2.5-0.5B": Llama(24, 896, 4864, 14, 2, 64, 151936),
    "Llama-3.2-1B": Llama(16, 2048, 8192, 32, 8, 64, 128256),
    "Qwen3-1.7B": Llama(28, 2048, 6144, 16, 8, 128, 151936, tied=False, normed=True),
    "Qwen3-4B": Llama(36, 2560, 9728, 32, 8, 128, 151936, normed=True),
    "Llama-3.1-8B": Llama(32, 4096, 14336, 32, 8, 128, 128256, tied=False),
}
DEEP = Llama(86, 2048, 5632, 32, 8, 64, 32000, tied=False)
"""8 GB in more and smaller matrices than a published model of that size has."""
SMALL = Llama(8, 256, 704, 32, 16, 8, 8000, tied=False)
"""20 MB."""


def experts(layers: int = 58, number: int = 256, width: int = 48, neurons: int = 64) -> Shapes:
    """A mixture of experts of about 45,000 tensors, each just large enough for a sketch."""
    shapes: Shapes = [("model.embed_tokens.weight", (4096, width))]
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes += [(f"{prefix}.self_attn.{one}_proj.weight", (width, width)) for one in "qkvo"]
        shapes.append((f"{prefix}.mlp.gate.weight", (number, width)))
        for expert in range(number):
            where = f"{prefix}.mlp.experts.{expert}"
            shapes.append((f"{where}.gate_proj.weight", (neurons, width)))
            shapes.append((f"{where}.up_proj.weight", (neurons, width)))
            shapes.append((f"{where}.down_proj.weight", (width, neurons)))
    return shapes
