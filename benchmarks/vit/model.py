"""A vision transformer (Dosovitskiy et al. 2021) whose tensors have GPT-2's names, so that the rewrites of these apply.

Both are stacks of the same blocks. What stands for the table of tokens, ``transformer.wte.weight``, has a row for each
number of a patch, and two more for the bias of patches and the class token; the output head is that of the classes.
``published`` gives the names and layouts that models of Hugging Face have.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from benchmarks.rewrites.forward import HEAD, embedding_name, layer_count
from benchmarks.units.networks import CLASSES, pictures
from benchmarks.zoo.models import Shape, Style, generator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from benchmarks.zoo.models import Weights

SIDE: Final = 24
PATCH: Final = 3
_NUMBERS: Final = 3 * PATCH * PATCH
_BIAS, _CLASS = _NUMBERS, _NUMBERS + 1
_WIDTH, _HEADS, _LAYERS = 64, 4, 4
SHAPE: Final = Shape(
    Style.GPT2, _WIDTH, _LAYERS, _HEADS, _HEADS, 4 * _WIDTH, _NUMBERS + 2, (SIDE // PATCH) ** 2 + 1, tied=False
)
STEPS: Final = 400
_RATE: Final = 2e-3
_BATCH: Final = 16
_TOKENS, _PLACES, _FINAL = embedding_name(Style.GPT2), "transformer.wpe.weight", "transformer.ln_f"
_HEAD_BIAS: Final = "classifier.bias"


def initial(key: str) -> Weights:
    """Random weights as they are before training."""
    random = generator(key)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random) / math.sqrt(_WIDTH)

    out = {_TOKENS: normal(SHAPE.vocabulary, _WIDTH), _PLACES: 0.3 * normal(SHAPE.positions, _WIDTH)}
    for layer in range(_LAYERS):
        p = f"transformer.h.{layer}."
        for name, rows, columns, scale in (
            ("attn.c_attn", _WIDTH, 3 * _WIDTH, 1.0),
            ("attn.c_proj", _WIDTH, _WIDTH, 0.3),
            ("mlp.c_fc", _WIDTH, 4 * _WIDTH, 1.0),
            ("mlp.c_proj", 4 * _WIDTH, _WIDTH, 0.15),
        ):
            out[f"{p}{name}.weight"], out[f"{p}{name}.bias"] = scale * normal(rows, columns), torch.zeros(columns)
        for norm in ("ln_1", "ln_2"):
            out[f"{p}{norm}.weight"], out[f"{p}{norm}.bias"] = torch.ones(_WIDTH), torch.zeros(_WIDTH)
    out |= {f"{_FINAL}.weight": torch.ones(_WIDTH), f"{_FINAL}.bias": torch.zeros(_WIDTH)}
    return out | {HEAD: normal(CLASSES, _WIDTH), _HEAD_BIAS: torch.zeros(CLASSES)}


def logits(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Logits of the classes: images (n, 3, side, side), returns (n, classes), in the weights' type."""
    patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
    tokens = weights[_TOKENS]
    x = patches @ tokens[:_NUMBERS] + tokens[_BIAS]
    x = torch.cat([tokens[_CLASS].expand(len(x), 1, -1), x], 1) + weights[_PLACES]
    for layer in range(layer_count(Style.GPT2, weights)):
        p = f"transformer.h.{layer}."
        h = _normed(weights, f"{p}ln_1", x) @ weights[f"{p}attn.c_attn.weight"] + weights[f"{p}attn.c_attn.bias"]
        parts = [part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in h.chunk(3, -1)]
        mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + mixed @ weights[f"{p}attn.c_proj.weight"] + weights[f"{p}attn.c_proj.bias"]
        h = _normed(weights, f"{p}ln_2", x) @ weights[f"{p}mlp.c_fc.weight"] + weights[f"{p}mlp.c_fc.bias"]
        x = x + F.gelu(h) @ weights[f"{p}mlp.c_proj.weight"] + weights[f"{p}mlp.c_proj.bias"]
    return _normed(weights, _FINAL, x[:, 0]) @ weights[HEAD].T + weights[_HEAD_BIAS]


def _normed(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def train(
    key: str, start: Weights | None = None, *, steps: int = STEPS, rate: float = _RATE, noise: float = 0.7
) -> Weights:
    """Train from random weights, or on from ``start``, with AdamW, warmup and decay; ``noise``: of the pictures."""
    weights = initial(f"{key}/init") if start is None else start
    held = {name: w.clone().requires_grad_() for name, w in weights.items()}
    random = generator(f"{key}/order")
    optimizer = torch.optim.AdamW(list(held.values()), lr=rate, weight_decay=0.05)
    warmup = max(1, steps // 12)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / warmup, 1 - step / steps)
        images, wanted = pictures(_BATCH, random, side=SIDE, noise=noise)
        loss = F.cross_entropy(logits(held, images), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(held.values()), 1.0)
        optimizer.step()
    return {name: w.detach().clone() for name, w in held.items()}


def difference(original: Weights, made: Weights) -> float:
    """Largest difference of the logits of two models, over the deviation of the first's; computed in float64."""
    images, _ = pictures(16, generator("vit/check"), side=SIDE)
    one, two = (logits({n: w.double() for n, w in weights.items()}, images.double()) for weights in (original, made))
    return float((one - two).abs().max() / one.std())


def published(weights: Mapping[str, Tensor]) -> Weights:
    """The tensors under the names of ``ViTForImageClassification``, matrices as (out, in)."""
    tokens = weights[_TOKENS]
    out = {
        "vit.embeddings.cls_token": tokens[_CLASS].view(1, 1, -1),
        "vit.embeddings.position_embeddings": weights[_PLACES][None],
        "vit.embeddings.patch_embeddings.projection.weight": tokens[:_NUMBERS].T.reshape(-1, 3, PATCH, PATCH),
        "vit.embeddings.patch_embeddings.projection.bias": tokens[_BIAS],
        "vit.layernorm.weight": weights[f"{_FINAL}.weight"],
        "vit.layernorm.bias": weights[f"{_FINAL}.bias"],
        "classifier.weight": weights[HEAD],
        _HEAD_BIAS: weights[_HEAD_BIAS],
    }
    for layer in range(layer_count(Style.GPT2, weights)):
        p, q = f"transformer.h.{layer}.", f"vit.encoder.layer.{layer}."
        for end in ("weight", "bias"):
            fused = weights[f"{p}attn.c_attn.{end}"].chunk(3, -1)
            for name, part in zip(("query", "key", "value"), fused, strict=True):
                out[f"{q}attention.attention.{name}.{end}"] = part.T if part.ndim == 2 else part
            for ours, theirs in (
                ("attn.c_proj", "attention.output.dense"),
                ("mlp.c_fc", "intermediate.dense"),
                ("mlp.c_proj", "output.dense"),
                ("ln_1", "layernorm_before"),
                ("ln_2", "layernorm_after"),
            ):
                value = weights[f"{p}{ours}.{end}"]
                out[f"{q}{theirs}.{end}"] = value.T if value.ndim == 2 else value
    return {name: w.contiguous() for name, w in out.items()}
