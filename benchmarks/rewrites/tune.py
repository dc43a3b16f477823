"""Fine-tuning of one rewritten model, by the zoo's recipe for fine-tunes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from benchmarks.rewrites.forward import logits
from benchmarks.zoo.models import Style
from benchmarks.zoo.text import tokens

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from benchmarks.zoo.models import Shape, Weights
    from benchmarks.zoo.recipes import Schedule

_RATE = 4e-4
_BATCH = 16
_BETAS = (0.9, 0.95)


def fine_tune(
    weights: Weights,
    shape: Shape,
    order: Tensor,
    data: str,
    steps: int,
    random: Generator,
    *,
    like: Schedule | None = None,
) -> Weights:
    """Train all tensors with AdamW at a rate that falls to zero in a line; the weights given are not changed.

    order: old token number by new one. data: name of a data set of the zoo. like: as large batches at as high a rate as
    this schedule has, instead of those of a fine-tune.
    """
    rate, batch, most = (_RATE, _BATCH, 64) if like is None else (like.rate, like.batch, like.length)
    trained = {name: w.clone().requires_grad_() for name, w in weights.items()}
    matrices = [w for w in trained.values() if w.ndim > 1]
    vectors = [w for w in trained.values() if w.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=rate, betas=_BETAS
    )
    length = min(most, shape.positions)
    text = torch.argsort(order)[torch.from_numpy(tokens(data, shape.vocabulary).train)]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, steps // 12)) * (1 - step / steps)
        starts = torch.randint(0, len(text) - length - 1, (batch,), generator=random)
        windows = text[starts[:, None] + torch.arange(length + 1)]
        loss = _loss(shape, trained, windows, order)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
    return {name: w.detach() for name, w in trained.items()}


def _loss(shape: Shape, trained: Weights, windows: Tensor, order: Tensor) -> Tensor:
    """Of the next token; of BERT-style models that of one token in seven, which is hidden."""
    if shape.style is not Style.BERT:
        out = logits(shape, trained, windows[:, :-1])
        return F.cross_entropy(out.flatten(0, 1), windows[:, 1:].flatten())
    target = windows[:, 1:]
    hidden = (order[target] * 7919 + torch.arange(target.shape[1]) * 104729) % 97 < 14
    mask = int(torch.argsort(order)[0])
    out = logits(shape, trained, target.masked_fill(hidden, mask))
    return F.cross_entropy(out[hidden], target[hidden])
