"""Small Llama-shaped models of random weights, as named arrays: enough to test everything that needs no training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from fingerprint.comparing.coins import usable_coins
from fingerprint.comparing.gauge import Gauge, compare_gauge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fingerprint.records import Fingerprint

Weights = dict[str, np.ndarray]

WIDTH, NEURONS, LAYERS, VOCABULARY = 64, 160, 3, 1200
PER_LAYER = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH // 2, WIDTH),
    "self_attn.v_proj": (WIDTH // 2, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (NEURONS, WIDTH),
    "mlp.up_proj": (NEURONS, WIDTH),
    "mlp.down_proj": (WIDTH, NEURONS),
}


def model(seed: int, layers: int = LAYERS) -> Weights:
    """A model of independent normal weights, with gains near one."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in PER_LAYER.items()}
    weights = {name: (rng.normal(size=shape) * 0.05).astype(np.float32) for name, shape in shapes.items()}
    for layer in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            gains = 1 + 0.1 * rng.normal(size=WIDTH)
            weights[f"model.layers.{layer}.{norm}.weight"] = gains.astype(np.float32)
    return weights


def low_rank_change(weights: Mapping[str, np.ndarray], seed: int, amount: float, rank: int = 3) -> Weights:
    """As training changes weights: every matrix by a few directions, by ``amount`` of its norm times .5 to 1.5."""
    rng = np.random.default_rng(seed)
    changed = {}
    for name, value in weights.items():
        if value.ndim == 2:
            update = rng.normal(size=(value.shape[0], rank)) @ rng.normal(size=(rank, value.shape[1]))
            size = amount * rng.uniform(0.5, 1.5) * np.linalg.norm(value) / np.linalg.norm(update)
            changed[name] = (value + size * update).astype(np.float32)
        else:
            changed[name] = value
    return changed


def blend(parts: Mapping[float, Mapping[str, np.ndarray]]) -> Weights:
    """The weighted sum of models of one shape; keys are the weights."""
    names = next(iter(parts.values()))
    return {name: sum(w * part[name] for w, part in parts.items()).astype(np.float32) for name in names}


def disguised(weights: Mapping[str, np.ndarray], seed: int = 0) -> Weights:
    """The same tensors under random names, in random order."""
    rng = np.random.default_rng(seed)
    names = list(weights)
    rng.shuffle(names)
    return {f"t{rng.integers(1 << 60):015x}": weights[name] for name in names}


def save(weights: Mapping[str, np.ndarray], path: Path) -> Path:
    """Write a safetensors file."""
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, path)
    return path


def gauge_of(registered: Fingerprint, suspect: Fingerprint) -> Gauge:
    """What the two share beneath rewrites."""
    return compare_gauge(registered, suspect, usable_coins(registered.neurons))
