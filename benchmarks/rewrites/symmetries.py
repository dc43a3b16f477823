"""Rewrites of weights after which a model computes the same function, one for each symmetry.

Each takes one model's tensors by name, float64 and under the zoo's names and layouts, and returns new ones; whatever
is random comes from the generator. Llama style: matrices are (out, in). GPT-2 style: (in, out), with biases. Gemma
style is Llama's, with gains as they multiply; BERT style is in ``bert``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.rewrites.forward import HEAD, embedding_name, head_name, layer_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Generator, Tensor

    from benchmarks.zoo.models import Shape, Weights

    Change = Callable[[Weights, str], None]
    Rewrite = Callable[[Weights, Shape, Generator], Weights]

_SPREAD = 0.7
"""Standard deviation of the logarithm of random scales: most lie between 1/4 and 4."""


def normal(random: Generator, *size: int) -> Tensor:
    """Independent standard normal numbers, float64."""
    return torch.randn(size, generator=random, dtype=torch.float64)


def _scales(random: Generator, *size: int) -> Tensor:
    return torch.exp(_SPREAD * normal(random, *size))


def _signs(random: Generator, size: int) -> Tensor:
    return torch.randint(0, 2, (size,), generator=random).double() * 2 - 1


def _orthogonal(random: Generator, size: int) -> Tensor:
    """A uniformly random orthogonal matrix: Q of a Gaussian matrix, with the signs of R's diagonal."""
    q, r = torch.linalg.qr(normal(random, size, size))
    signed: Tensor = q * torch.sign(torch.diagonal(r))
    return signed


def invertible(random: Generator, size: int) -> Tensor:
    """A random invertible matrix whose condition number stays small enough for float32."""
    return _orthogonal(random, size) @ torch.diag(_scales(random, size)) @ _orthogonal(random, size)


def blocks(parts: Sequence[Tensor]) -> Tensor:
    """The block-diagonal matrix of square blocks."""
    size = sum(len(part) for part in parts)
    out = torch.zeros(size, size, dtype=torch.float64)
    start = 0
    for part in parts:
        out[start : start + len(part), start : start + len(part)] = part
        start += len(part)
    return out


def _per_layer(weights: Weights, shape: Shape, change: Change) -> Weights:
    out = {name: w.clone() for name, w in weights.items()}
    prefix = "model.layers.{}." if shape.style.is_gated else "transformer.h.{}."
    for i in range(layer_count(shape.style, weights)):
        change(out, prefix.format(i))
    return out


# --- neurons ----------------------------------------------------------------------------------------------------


def permute_neurons(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Put every MLP's neurons in a random order."""
    axes = {"mlp.gate_proj.weight": 0, "mlp.up_proj.weight": 0, "mlp.down_proj.weight": 1}
    if shape.style.is_gpt2:
        axes = {"mlp.c_fc.weight": 1, "mlp.c_fc.bias": 0, "mlp.c_proj.weight": 0}

    def change(w: Weights, p: str) -> None:
        order = torch.randperm(w[p + next(iter(axes))].shape[next(iter(axes.values()))], generator=random)
        for name, axis in axes.items():
            w[p + name] = w[p + name].index_select(axis, order)

    return _per_layer(weights, shape, change)


def _scale_up(weights: Weights, shape: Shape, factors: Callable[[int], Tensor]) -> Weights:
    def change(w: Weights, p: str) -> None:
        if shape.style.is_gpt2:
            up, bias, down = p + "mlp.c_fc.weight", p + "mlp.c_fc.bias", p + "mlp.c_proj.weight"
            by = factors(len(w[bias]))
            w[up], w[bias], w[down] = w[up] * by, w[bias] * by, w[down] / by[:, None]
            return
        up, down = p + "mlp.up_proj.weight", p + "mlp.down_proj.weight"
        by = factors(len(w[up]))
        w[up], w[down] = w[up] * by[:, None], w[down] / by

    return _per_layer(weights, shape, change)


def rescale_neurons(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Multiply what a neuron reads (of a gated MLP, its up row) and divide what it writes by a positive number.

    Without a gate that keeps the function of ReLU alone.
    """
    return _scale_up(weights, shape, lambda n: _scales(random, n))


def scramble_signs(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Negate up and down of a random half of the neurons (gated MLPs)."""
    return _scale_up(weights, shape, lambda n: _signs(random, n))


def negate_pairs(weights: Weights, shape: Shape, _: Generator) -> Weights:
    """Negate up and down of every neuron (gated MLPs)."""
    return _scale_up(weights, shape, lambda n: -torch.ones(n, dtype=torch.float64))


# --- attention --------------------------------------------------------------------------------------------------


def permute_heads(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Put key/value heads in a random order, with their query heads, and these in a random order too."""
    size, group = shape.head_size, shape.heads // shape.kv_heads

    def channels(heads: Tensor) -> Tensor:
        return (heads[:, None] * size + torch.arange(size)).flatten()

    def change(w: Weights, p: str) -> None:
        keys = torch.randperm(shape.kv_heads, generator=random)
        inner = torch.stack([torch.randperm(group, generator=random) for _ in range(shape.kv_heads)])
        queries = (keys[:, None] * group + inner).flatten()
        if shape.style.is_gated:
            for part, heads in (("q", queries), ("k", keys), ("v", keys)):
                name = f"{p}self_attn.{part}_proj.weight"
                w[name] = w[name][channels(heads)]
            w[p + "self_attn.o_proj.weight"] = w[p + "self_attn.o_proj.weight"][:, channels(queries)]
        else:
            fused = torch.cat([channels(queries) + part * shape.width for part in range(3)])
            for name in ("attn.c_attn.weight", "attn.c_attn.bias"):
                w[p + name] = w[p + name][..., fused]
            w[p + "attn.c_proj.weight"] = w[p + "attn.c_proj.weight"][channels(queries)]

    return _per_layer(weights, shape, change)


def _change_values(weights: Weights, shape: Shape, draw: Callable[[], Tensor]) -> Weights:
    """Replace the values of each key/value head by M times them, and undo it where they are read; M from ``draw``."""
    size, group = shape.head_size, shape.heads // shape.kv_heads

    def change(w: Weights, p: str) -> None:
        llama = shape.style.is_gated
        mixes = [draw() for _ in range(shape.kv_heads)]
        there = blocks(mixes)
        back = blocks([torch.linalg.inv(mix) for mix in mixes for _ in range(group)])
        if llama:
            v, o = p + "self_attn.v_proj.weight", p + "self_attn.o_proj.weight"
            w[v], w[o] = there @ w[v], w[o] @ back
            return
        fused, bias, o = p + "attn.c_attn.weight", p + "attn.c_attn.bias", p + "attn.c_proj.weight"
        start = 2 * shape.width
        w[fused][:, start:] = w[fused][:, start:] @ there.T
        # Attention weights sum to one, so a bias of the values is a bias of the output.
        w[p + "attn.c_proj.bias"] = w[p + "attn.c_proj.bias"] + w[bias][start:] @ w[o]
        w[bias][start:] = 0.0
        w[o] = back.T @ w[o]

    assert size * shape.heads == shape.width
    return _per_layer(weights, shape, change)


def rescale_values(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Multiply each value channel by a positive number or its negative."""
    size = shape.head_size
    return _change_values(weights, shape, lambda: torch.diag(_scales(random, size) * _signs(random, size)))


def mix_values(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Multiply each head's values by a general invertible matrix."""
    return _change_values(weights, shape, lambda: invertible(random, shape.head_size))


def change_keys(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Everything that scores allow: rotary pairs turned and rescaled; without rotary positions, heads mixed.

    A pair of channels of a key is a complex number: times z, while the queries' pairs are divided by z's conjugate,
    leaves scores as they are at every position. Without rotary positions any invertible matrix does, and the bias of
    the keys, which adds the same to all scores of a query, can be anything.
    """
    size, group = shape.head_size, shape.heads // shape.kv_heads

    def turned(matrix: Tensor, factors: Tensor) -> Tensor:
        real, imaginary = matrix.view(len(factors), 2, size // 2, -1).unbind(1)
        out = torch.complex(real, imaginary) * factors[..., None]
        return torch.stack((out.real, out.imag), 1).view(matrix.shape)

    def change(w: Weights, p: str) -> None:
        if shape.style.is_gated:
            angle = normal(random, shape.kv_heads, size // 2) * 10
            z = torch.polar(_scales(random, shape.kv_heads, size // 2), angle)
            q, k = p + "self_attn.q_proj.weight", p + "self_attn.k_proj.weight"
            w[k] = turned(w[k], z)
            w[q] = turned(w[q], (1 / z.conj()).repeat_interleave(group, 0))
            return
        mixes = [invertible(random, size) for _ in range(shape.heads)]
        there = blocks(mixes)
        back = blocks([torch.linalg.inv(mix).T for mix in mixes])
        for name in ("attn.c_attn.weight", "attn.c_attn.bias"):
            queries, keys, values = w[p + name].chunk(3, -1)
            w[p + name] = torch.cat((queries @ back.T, keys @ there.T, values), -1)
        w[p + "attn.c_attn.bias"][shape.width : 2 * shape.width] = normal(random, shape.width) * 0.1

    return _per_layer(weights, shape, change)


# --- norms and the residual stream ------------------------------------------------------------------------------


def _readers(shape: Shape, p: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Norms of a layer, and the matrices that read what each puts out."""
    if shape.style.is_gated:
        return (
            ("input_layernorm", tuple(f"{p}self_attn.{part}_proj" for part in "qkv")),
            ("post_attention_layernorm", (p + "mlp.gate_proj", p + "mlp.up_proj")),
        )
    return ("ln_1", (p + "attn.c_attn",)), ("ln_2", (p + "mlp.c_fc",))


def _writers(shape: Shape, p: str) -> tuple[str, ...]:
    llama = ("self_attn.o_proj", "mlp.down_proj")
    return tuple(p + name for name in (llama if shape.style.is_gated else ("attn.c_proj", "mlp.c_proj")))


def _final_norm(shape: Shape) -> str:
    return "model.norm" if shape.style.is_gated else "transformer.ln_f"


def _untie(weights: Weights, shape: Shape) -> Weights:
    return weights | {HEAD: weights[head_name(shape.style, weights)].clone()}


def _divide_gains(weights: Weights, shape: Shape, draw: Callable[[Tensor], Tensor]) -> Weights:
    """Divide every norm's gain by ``draw`` of it, and multiply what reads the norm's output by the same.

    Biases of a LayerNorm go into the biases behind it; that of the last one stays before the head, which has none.
    """

    def change(w: Weights, p: str) -> None:
        for norm, readers in _readers(shape, p):
            gain = p + norm + ".weight"
            by = draw(w[gain])
            for reader in readers:
                name = reader + ".weight"
                if shape.style.is_gpt2:
                    w[reader + ".bias"] = w[reader + ".bias"] + w[p + norm + ".bias"] @ w[name]
                w[name] = w[name] * (by if shape.style.is_gated else by[:, None])
            if shape.style.is_gpt2:
                w[p + norm + ".bias"] = torch.zeros_like(w[gain])
            w[gain] = w[gain] / by

    out = _per_layer(_untie(weights, shape), shape, change)
    final = _final_norm(shape)
    by = draw(out[final + ".weight"])
    for end in (".weight", ".bias") if shape.style.is_gpt2 else (".weight",):
        out[final + end] = out[final + end] / by
    out[HEAD] = out[HEAD] * by
    return out


def fold_gains(weights: Weights, shape: Shape, _: Generator) -> Weights:
    """Move every norm's gain into the matrices behind it: all gains are one; the head is untied."""
    return _divide_gains(weights, shape, lambda gain: gain)


def scramble_gains(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Replace every norm's gain by a random one of either sign; the head is untied."""
    return _divide_gains(weights, shape, lambda gain: gain / (_scales(random, len(gain)) * _signs(random, len(gain))))


def rotate_residual(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Fold the gains, and rotate the residual stream.

    LayerNorm subtracts the mean, so its rotation must keep the direction of equal entries. That direction carries
    nothing: whatever is written to it is lost, and whatever reads it reads zero. It is filled at random.
    """
    folded = fold_gains(weights, shape, random)
    width = shape.width
    turn = _orthogonal(random, width)
    llama = shape.style.is_gated
    if not llama:
        ones = torch.full((width, 1), width**-0.5, dtype=torch.float64)
        basis, _ = torch.linalg.qr(torch.cat((ones, normal(random, width, width - 1)), 1))
        basis = torch.cat((ones, basis[:, 1:]), 1)
        inner = blocks([torch.ones(1, 1, dtype=torch.float64), _orthogonal(random, width - 1)])
        turn = basis @ inner @ basis.T

    def on_ones(matrix: Tensor, size: int) -> Tensor:
        return normal(random, size) * matrix.std() * 0.5

    def change(w: Weights, p: str) -> None:
        for _norm, readers in _readers(shape, p):
            for reader in readers:
                name = reader + ".weight"
                w[name] = w[name] @ turn if llama else turn.T @ w[name]
                if not llama:
                    w[name] = w[name] + on_ones(w[name], w[name].shape[1])
        for writer in _writers(shape, p):
            name = writer + ".weight"
            w[name] = turn.T @ w[name] if llama else w[name] @ turn
            if not llama:
                w[name] = w[name] + on_ones(w[name], len(w[name]))[:, None]
                w[writer + ".bias"] = w[writer + ".bias"] @ turn

    out = _per_layer(folded, shape, change)
    tables = [embedding_name(shape.style), *([] if llama else ["transformer.wpe.weight"])]
    for name in tables:
        out[name] = out[name] @ turn
        if not llama:
            out[name] = out[name] + on_ones(out[name], len(out[name]))[:, None]
    out[HEAD] = out[HEAD] @ turn
    if not llama:
        out["transformer.ln_f.bias"] = out["transformer.ln_f.bias"] @ turn
    return out


def permute_residual(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Put the channels of the residual stream in a random order; gains stay in front of what reads them."""
    order = torch.randperm(shape.width, generator=random)
    llama = shape.style.is_gated

    def change(w: Weights, p: str) -> None:
        for norm, readers in _readers(shape, p):
            for end in (".weight",) if llama else (".weight", ".bias"):
                w[p + norm + end] = w[p + norm + end][order]
            for reader in readers:
                w[reader + ".weight"] = w[reader + ".weight"].index_select(1 if llama else 0, order)
        for writer in _writers(shape, p):
            w[writer + ".weight"] = w[writer + ".weight"].index_select(0 if llama else 1, order)
            if not llama:
                w[writer + ".bias"] = w[writer + ".bias"][order]

    out = _per_layer(weights, shape, change)
    final = _final_norm(shape)
    for end in (".weight",) if llama else (".weight", ".bias"):
        out[final + end] = out[final + end][order]
    tables = {embedding_name(shape.style), head_name(shape.style, out), *([] if llama else ["transformer.wpe.weight"])}
    for name in tables:
        out[name] = out[name][:, order]
    return out


# --- vocabulary -------------------------------------------------------------------------------------------------


def token_order(shape: Shape, random: Generator) -> Tensor:
    """Old token number by new one, (vocabulary,)."""
    return torch.randperm(shape.vocabulary, generator=random)


def permute_vocabulary(weights: Weights, shape: Shape, order: Tensor) -> Weights:
    """Number the tokens anew: the rows of whatever has one for each token in the given order."""
    out = {name: w.clone() for name, w in weights.items()}
    biases = {name for name in ("cls.predictions.bias",) if name in out}
    for name in {embedding_name(shape.style), head_name(shape.style, weights), *biases}:
        out[name] = out[name][order]
    return out
