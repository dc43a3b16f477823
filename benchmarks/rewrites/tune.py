"""Fine-tuning of one rewritten model, by the zoo's recipe for fine-tunes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from benchmarks.rewrites.forward import logits
from benchmarks.zoo.text import tokens

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from benchmarks.zoo.models import Shape, Weights

_RATE = 4e-4
_BATCH = 16
_BETAS = (0.9, 0.95)


def fine_tune(weights: Weights, shape: Shape, order: Tensor, data: str, steps: int, random: Generator) -> Weights:
    """Train all tensors with AdamW at a rate that falls to zero in a line; the weights given are not changed.

    order: old token number by new one. data: name of a data set of the zoo.
    """
    trained = {name: w.clone().requires_grad_() for name, w in weights.items()}
    matrices = [w for w in trained.values() if w.ndim > 1]
    vectors = [w for w in trained.values() if w.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=_RATE, betas=_BETAS
    )
    length = min(64, shape.positions)
    text = torch.argsort(order)[torch.from_numpy(tokens(data, shape.vocabulary).train)]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        starts = torch.randint(0, len(text) - length - 1, (_BATCH,), generator=random)
        windows = text[starts[:, None] + torch.arange(length + 1)]
        out = logits(shape, trained, windows[:, :-1])
        loss = F.cross_entropy(out.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
    return {name: w.detach() for name, w in trained.items()}
