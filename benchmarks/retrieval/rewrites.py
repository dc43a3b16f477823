"""Rewrites that keep a model's function, in numpy: the residual stream rotated, gains folded, neurons permuted.

For the two layouts of the population. Heads stay in their order; ``benchmarks/rewrites`` has all symmetries, checked
against the function, for the models that are small enough to be trained.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from benchmarks.retrieval.invented import Arrays

    Float64 = NDArray[np.float64]

_SPREAD = 0.7
_LLAMA = re.compile(r"model\.layers\.(\d+)\.")
_GPT2 = re.compile(r"transformer\.h\.(\d+)\.")


def rotated(weights: Arrays, random: Generator) -> Arrays:
    """The same function with everything at once: gains folded, neurons permuted and rescaled, residual rotated."""
    held = {name: value.astype(np.float64) for name, value in weights.items()}
    made = _llama(held, random) if any(map(_LLAMA.match, held)) else _gpt2(held, random)
    return {name: value.astype(np.float32) for name, value in made.items()}


def orthogonal(size: int, random: Generator) -> Float64:
    """A uniformly random orthogonal matrix."""
    q, r = np.linalg.qr(random.standard_normal((size, size)))
    found: Float64 = q * np.sign(np.diag(r))
    return found


def _llama(w: dict[str, Float64], random: Generator) -> dict[str, Float64]:
    embedding, head = w["model.embed_tokens.weight"], w.get("lm_head.weight", w["model.embed_tokens.weight"])
    turn = orthogonal(embedding.shape[1], random)
    out = dict(w)
    out["model.embed_tokens.weight"] = embedding @ turn
    out["lm_head.weight"] = head * w["model.norm.weight"] @ turn
    out["model.norm.weight"] = np.ones_like(w["model.norm.weight"])
    for layer in {match[1] for name in w if (match := _LLAMA.match(name))}:
        p = f"model.layers.{layer}."
        attention, mlp = w[f"{p}input_layernorm.weight"], w[f"{p}post_attention_layernorm.weight"]
        out[f"{p}input_layernorm.weight"], out[f"{p}post_attention_layernorm.weight"] = np.ones((2, len(mlp)))
        for word in "qkv":
            out[f"{p}self_attn.{word}_proj.weight"] = w[f"{p}self_attn.{word}_proj.weight"] * attention @ turn
        out[f"{p}self_attn.o_proj.weight"] = turn.T @ w[f"{p}self_attn.o_proj.weight"]
        gate, up, down = (w[f"{p}mlp.{word}_proj.weight"] for word in ("gate", "up", "down"))
        order = random.permutation(len(up))
        scales = np.exp(_SPREAD * random.standard_normal((len(up), 1)))
        out[f"{p}mlp.gate_proj.weight"] = (gate * mlp @ turn)[order]
        out[f"{p}mlp.up_proj.weight"] = (scales * (up * mlp @ turn))[order]
        out[f"{p}mlp.down_proj.weight"] = (turn.T @ down / scales.T)[:, order]
    return out


def _gpt2(w: dict[str, Float64], random: Generator) -> dict[str, Float64]:
    """A LayerNorm takes the mean away: the rotation leaves the direction of ones as it is."""
    embedding = w["transformer.wte.weight"]
    width = embedding.shape[1]
    basis = np.linalg.qr(np.column_stack([np.ones(width), random.standard_normal((width, width - 1))]))[0]
    inner = np.eye(width)
    inner[1:, 1:] = orthogonal(width - 1, random)
    turn = basis @ inner @ basis.T
    out = dict(w)
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        if name in w:
            out[name] = w[name] @ turn
    out["lm_head.weight"] = w.get("lm_head.weight", embedding) * w["transformer.ln_f.weight"] @ turn
    out["transformer.ln_f.weight"] = np.ones(width)
    for layer in {match[1] for name in w if (match := _GPT2.match(name))}:
        p = f"transformer.h.{layer}."
        for norm, reader in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            gain, matrix = w[f"{p}{norm}.weight"], w[f"{p}{reader}.weight"]
            out[f"{p}{norm}.weight"] = np.ones(width)
            if f"{p}{norm}.bias" in w:
                out[f"{p}{reader}.bias"] = w[f"{p}{reader}.bias"] + w[f"{p}{norm}.bias"] @ matrix
                out[f"{p}{norm}.bias"] = np.zeros(width)
            out[f"{p}{reader}.weight"] = turn.T @ (gain[:, None] * matrix)
        for writer in ("attn.c_proj", "mlp.c_proj"):
            out[f"{p}{writer}.weight"] = w[f"{p}{writer}.weight"] @ turn
            if f"{p}{writer}.bias" in w:
                out[f"{p}{writer}.bias"] = w[f"{p}{writer}.bias"] @ turn
        order = random.permutation(out[f"{p}mlp.c_fc.weight"].shape[1])
        out[f"{p}mlp.c_fc.weight"] = out[f"{p}mlp.c_fc.weight"][:, order]
        if f"{p}mlp.c_fc.bias" in out:
            out[f"{p}mlp.c_fc.bias"] = out[f"{p}mlp.c_fc.bias"][order]
        out[f"{p}mlp.c_proj.weight"] = out[f"{p}mlp.c_proj.weight"][order]
    return out
