"""Training of stacked models: each has its own initialisation, data order and gradient norm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from benchmarks.zoo.models import Style, Weights, generator, initial_weights, logits
from benchmarks.zoo.text import tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.zoo.recipes import Schedule, Spec

_CLIP = 1.0
_BETAS = (0.9, 0.95)
_FLOOR = 0.05
_VALIDATION_WINDOWS = 64
_HIDDEN = 14


def train(specs: Sequence[Spec], parents: Mapping[str, Weights], report: Callable[[str], None]) -> list[Weights]:
    """Train models of one shape, schedule and data set together.

    parents: the weights of every parent and donor by id. report: receives a line now and then.
    Returns the weights, float32, without the leading dimension, in the order of `specs`.
    """
    first = specs[0]
    alike = {(s.shape, s.schedule, s.data, s.frozen) for s in specs}
    if len(alike) != 1:
        raise ValueError(f"models trained together must be alike: {[s.id for s in specs]}")
    weights = _stack([_start(spec, parents) for spec in specs])
    trained = {name: w.requires_grad_() for name, w in weights.items() if name not in first.frozen}
    schedule = first.schedule
    matrices = [w for w in trained.values() if w.ndim == 3]
    vectors = [w for w in trained.values() if w.ndim == 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": schedule.decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=schedule.rate,
        betas=_BETAS,
        fused=True,
    )
    data = torch.from_numpy(tokens(first.data, first.shape.vocabulary).train)
    orders = [generator(f"order/{spec.order}") for spec in specs]
    for step in range(schedule.steps):
        rate = schedule.rate * _rate_factor(schedule, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        windows = torch.stack([_windows(data, schedule, order) for order in orders])
        losses = _losses(first, weights, windows)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.sum())
        _clip(list(trained.values()))
        optimizer.step()
        if step % 50 == 0 or step == schedule.steps - 1:
            report(f"{first.id} x{len(specs)} step {step} loss {losses.detach().mean().item():.3f}")
    return [{name: w.detach()[i].clone() for name, w in weights.items()} for i in range(len(specs))]


def validation_loss(spec: Spec, weights: Weights) -> float:
    """Return the loss, nats a token, on evenly spaced windows of the held-out part of the model's data set."""
    data = torch.from_numpy(tokens(spec.data, spec.shape.vocabulary).validation)
    length = spec.schedule.length
    starts = torch.linspace(0, len(data) - length - 2, _VALIDATION_WINDOWS).long()
    windows = data[starts[:, None] + torch.arange(length + 1)]
    with torch.no_grad():
        stacked = {name: w[None] for name, w in weights.items()}
        parts = [_losses(spec, stacked, part[None]) for part in torch.split(windows, 16)]
    return float(torch.stack(parts).mean())


def _start(spec: Spec, parents: Mapping[str, Weights]) -> Weights:
    if spec.parent is not None:
        return {name: w.clone() for name, w in parents[spec.parent].items()}
    weights = initial_weights(spec.shape, spec.init)
    if spec.donor is not None:
        weights.update({name: parents[spec.donor][name].clone() for name in spec.frozen})
    return weights


def _stack(models: Sequence[Weights]) -> Weights:
    return {name: torch.stack([model[name] for model in models]) for name in models[0]}


def _windows(data: Tensor, schedule: Schedule, order: torch.Generator) -> Tensor:
    """Draw windows at random places: (batch, length + 1) int64."""
    starts = torch.randint(0, len(data) - schedule.length - 1, (schedule.batch,), generator=order)
    return data[starts[:, None] + torch.arange(schedule.length + 1)]


def _losses(spec: Spec, weights: Mapping[str, Tensor], windows: Tensor) -> Tensor:
    """Return each model's mean loss, (N,); windows (N, B, T + 1).

    Of the next token; of BERT-style models that of tokens that are hidden, about one in seven, by token and place.
    """
    if spec.shape.style is Style.BERT:
        target = windows[..., 1:]
        places = torch.arange(target.shape[-1])
        hidden = (target * 7919 + places * 104729) % 97 < _HIDDEN
        out = logits(spec.shape, weights, target.masked_fill(hidden, 0))
        losses = F.cross_entropy(out.flatten(0, 1), target.flatten(), reduction="none").view(len(target), -1)
        return (losses * hidden.flatten(1)).sum(1) / hidden.flatten(1).sum(1)
    out = logits(spec.shape, weights, windows[..., :-1])
    target = windows[..., 1:].flatten(1)
    return F.cross_entropy(out.flatten(0, 1), target.flatten(), reduction="none").view(len(target), -1).mean(1)


def _clip(trained: Sequence[Tensor]) -> None:
    """Clip the gradient norm of each stacked model by itself."""
    gradients = [w.grad for w in trained if w.grad is not None]
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor = (_CLIP / (norms + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))


def _rate_factor(schedule: Schedule, step: int) -> float:
    """Linear warmup, then a cosine to a small floor."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))
