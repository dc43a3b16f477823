"""The symmetries of BERT-style models, whose norms lie behind every part, on the stream itself.

``x = norm(x + part(x))``: the gain of a norm multiplies what the next part reads and what is added to it, so that it
can be moved nowhere, and a rotation does not commute with it. What remains: the channels of the stream in any order,
the whole stream negated, neurons and heads in any order, and any invertible matrix between values and output and
between queries and keys. GELU allows neither scales nor signs of neurons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.rewrites.forward import layer_count
from benchmarks.rewrites.symmetries import blocks, invertible, normal

if TYPE_CHECKING:
    from torch import Generator

    from benchmarks.rewrites.symmetries import Change
    from benchmarks.zoo.models import Shape, Weights

_TABLES = ("bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight")
_READERS = ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
_WRITERS = ("attention.output.dense", "output.dense")
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


def _per_layer(weights: Weights, shape: Shape, change: Change) -> Weights:
    out = {name: w.clone() for name, w in weights.items()}
    for i in range(layer_count(shape.style, weights)):
        change(out, f"bert.encoder.layer.{i}.")
    return out


def permute_neurons(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Put every MLP's neurons in a random order."""

    def change(w: Weights, p: str) -> None:
        order = torch.randperm(len(w[p + "intermediate.dense.weight"]), generator=random)
        for end in ("weight", "bias"):
            w[f"{p}intermediate.dense.{end}"] = w[f"{p}intermediate.dense.{end}"][order]
        w[p + "output.dense.weight"] = w[p + "output.dense.weight"][:, order]

    return _per_layer(weights, shape, change)


def permute_heads(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Put every layer's heads in a random order."""

    def change(w: Weights, p: str) -> None:
        heads = torch.randperm(shape.heads, generator=random)
        order = (heads[:, None] * shape.head_size + torch.arange(shape.head_size)).flatten()
        for part in _READERS[:3]:
            for end in ("weight", "bias"):
                w[f"{p}{part}.{end}"] = w[f"{p}{part}.{end}"][order]
        w[p + "attention.output.dense.weight"] = w[p + "attention.output.dense.weight"][:, order]

    return _per_layer(weights, shape, change)


def mix_values(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Multiply each head's values by a general invertible matrix, and move their bias, which all tokens share."""

    def change(w: Weights, p: str) -> None:
        mixes = [invertible(random, shape.head_size) for _ in range(shape.heads)]
        there, back = blocks(mixes), blocks([torch.linalg.inv(mix) for mix in mixes])
        value, output = p + "attention.self.value", p + "attention.output.dense"
        w[output + ".bias"] = w[output + ".bias"] + w[output + ".weight"] @ w[value + ".bias"]
        w[value + ".bias"] = torch.zeros_like(w[value + ".bias"])
        w[value + ".weight"], w[output + ".weight"] = there @ w[value + ".weight"], w[output + ".weight"] @ back

    return _per_layer(weights, shape, change)


def change_keys(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Multiply each head's keys by an invertible matrix, its queries by the inverse; replace the bias of the keys."""

    def change(w: Weights, p: str) -> None:
        mixes = [invertible(random, shape.head_size) for _ in range(shape.heads)]
        there, back = blocks(mixes), blocks([torch.linalg.inv(mix).T for mix in mixes])
        for part, by in (("query", back), ("key", there)):
            for end in ("weight", "bias"):
                name = f"{p}attention.self.{part}.{end}"
                w[name] = by @ w[name]
        w[p + "attention.self.key.bias"] = normal(random, shape.width) * 0.1

    return _per_layer(weights, shape, change)


def _on_stream(weights: Weights, shape: Shape, read: Change, write: Change, norm: Change, table: Change) -> Weights:
    """Change every tensor that lies on the residual stream, each by its name: readers, writers, norms, tables."""

    def change(w: Weights, p: str) -> None:
        for names, how in ((_READERS, read), (_WRITERS, write), (_NORMS, norm)):
            for name in names:
                how(w, p + name)

    out = _per_layer(weights, shape, change)
    norm(out, "bert.embeddings.LayerNorm")
    for name in _TABLES:
        table(out, name)
    return out


def permute_residual(weights: Weights, shape: Shape, random: Generator) -> Weights:
    """Put the channels of the residual stream in a random order."""
    order = torch.randperm(shape.width, generator=random)

    def along(axis: int, *ends: str) -> Change:
        def change(w: Weights, name: str) -> None:
            for end in ends:
                w[name + end] = w[name + end].index_select(axis if w[name + end].ndim > 1 else 0, order)

        return change

    both = (".weight", ".bias")
    return _on_stream(weights, shape, along(1, ".weight"), along(0, *both), along(0, *both), along(1, ""))


def negate_residual(weights: Weights, shape: Shape, _: Generator) -> Weights:
    """Negate the whole residual stream."""

    def negated(*ends: str) -> Change:
        def change(w: Weights, name: str) -> None:
            for end in ends:
                w[name + end] = -w[name + end]

        return change

    return _on_stream(weights, shape, negated(".weight"), negated(".weight", ".bias"), negated(".bias"), negated(""))
