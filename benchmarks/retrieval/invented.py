"""Models that were never trained, in the layouts of Llama and GPT-2, and changes like those of further training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]

Arrays = dict[str, "Float32"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of one synthetic model; a gated MLP and grouped heads, or GPT-2's layout."""

    gated: bool
    width: int
    layers: int
    neurons: int
    vocabulary: int


SHAPES = (
    Sizes(gated=True, width=64, layers=3, neurons=176, vocabulary=1024),  # those of the zoo's Llama-style population
    Sizes(gated=True, width=64, layers=2, neurons=176, vocabulary=512),
    Sizes(gated=True, width=96, layers=3, neurons=256, vocabulary=512),
    Sizes(gated=True, width=128, layers=2, neurons=352, vocabulary=512),
    Sizes(gated=False, width=64, layers=3, neurons=256, vocabulary=1024),  # and of its GPT-2-style one
    Sizes(gated=False, width=96, layers=2, neurons=384, vocabulary=512),
)
WIDE = (
    Sizes(gated=True, width=256, layers=6, neurons=688, vocabulary=2048),
    Sizes(gated=True, width=576, layers=2, neurons=1536, vocabulary=2048),  # a layer as SmolLM2-135M has it
    Sizes(gated=False, width=384, layers=3, neurons=1536, vocabulary=2048),  # as MiniLM
    Sizes(gated=False, width=768, layers=1, neurons=3072, vocabulary=1024),  # as GPT-2
)
_WIDE_EVERY = 16


def shape_of(number: int) -> Sizes:
    """The shape of a family: every sixteenth has the width of a published model."""
    if number % _WIDE_EVERY == _WIDE_EVERY - 1:
        return WIDE[number // _WIDE_EVERY % len(WIDE)]
    return SHAPES[number % len(SHAPES)]


def synthetic(sizes: Sizes, seed: list[int]) -> Arrays:
    """A random model under the names of its style, with gains near one and matrices as ``trained_like`` makes them."""
    random = np.random.default_rng(seed)
    width, neurons = sizes.width, sizes.neurons
    out: Arrays = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        out[name] = trained_like(rows, columns, random)

    def gains(name: str) -> None:
        out[name] = (1 + 0.1 * random.standard_normal(width)).astype(np.float32)

    if sizes.gated:
        matrix("model.embed_tokens.weight", sizes.vocabulary, width)
        matrix("lm_head.weight", sizes.vocabulary, width)
        gains("model.norm.weight")
        for layer in range(sizes.layers):
            stem = f"model.layers.{layer}"
            for name, rows in (("q", width), ("k", width // 2), ("v", width // 2), ("o", width)):
                matrix(f"{stem}.self_attn.{name}_proj.weight", rows, width)
            matrix(f"{stem}.mlp.gate_proj.weight", neurons, width)
            matrix(f"{stem}.mlp.up_proj.weight", neurons, width)
            matrix(f"{stem}.mlp.down_proj.weight", width, neurons)
            gains(f"{stem}.input_layernorm.weight")
            gains(f"{stem}.post_attention_layernorm.weight")
        return out
    matrix("transformer.wte.weight", sizes.vocabulary, width)
    gains("transformer.ln_f.weight")
    for layer in range(sizes.layers):
        stem = f"transformer.h.{layer}"
        matrix(f"{stem}.attn.c_attn.weight", width, 3 * width)
        matrix(f"{stem}.attn.c_proj.weight", width, width)
        matrix(f"{stem}.mlp.c_fc.weight", width, neurons)
        matrix(f"{stem}.mlp.c_proj.weight", neurons, width)
        gains(f"{stem}.ln_1.weight")
        gains(f"{stem}.ln_2.weight")
    return out


def trained_like(rows: int, columns: int, random: np.random.Generator) -> Float32:
    """Noise, and directions whose strengths fall as 1/k, as training leaves them (Martin and Mahoney 2021).

    Half of the squared norm lies in the noise; the deviation of the elements is .05.
    """
    rank = min(rows, columns) // 4
    strengths = 1.0 / np.arange(1, rank + 1)
    low = (random.standard_normal((rows, rank)) * strengths) @ random.standard_normal((rank, columns))
    noise = random.standard_normal((rows, columns))
    both = low / np.sqrt(np.mean(low**2)) + noise
    matrix: Float32 = (0.05 / np.sqrt(2) * both).astype(np.float32)
    return matrix


def tuned(weights: Mapping[str, Float32], amount: float, random: np.random.Generator) -> Arrays:
    """As further training changes weights: every matrix by a few directions, ``amount`` of its norm in all."""
    out: Arrays = {}
    for name, value in weights.items():
        if value.ndim != 2:
            out[name] = value
            continue
        rank = min(8, *value.shape)
        strengths = 1.0 / np.arange(1, rank + 1)
        change = (random.standard_normal((value.shape[0], rank)) * strengths) @ random.standard_normal(
            (rank, value.shape[1])
        )
        scale = amount * np.linalg.norm(value) / np.linalg.norm(change)
        out[name] = (value + scale * change).astype(np.float32)
    return out


def drawn(weights: Mapping[str, Float32], random: np.random.Generator) -> Arrays:
    """Normal numbers of each tensor's mean and deviation."""
    return {name: random.normal(w.mean(), w.std(), w.shape).astype(np.float32) for name, w in sorted(weights.items())}


def shuffled(weights: Mapping[str, Float32], random: np.random.Generator) -> Arrays:
    """The elements of each tensor in another order."""
    return {name: random.permutation(w.reshape(-1)).reshape(w.shape) for name, w in sorted(weights.items())}


def stream(key: str) -> np.random.Generator:
    """A stream of random numbers of its own for every key."""
    return np.random.default_rng(list(hashlib.blake2b(key.encode(), digest_size=16).digest()))
