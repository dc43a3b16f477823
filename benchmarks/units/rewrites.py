"""Rewrites of small networks that compute the same function, each checked, and damages on top of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from benchmarks.lineage import derive_ops as ops
from benchmarks.units import residual
from benchmarks.units.networks import HIDDEN, PICTURES, VOCABULARY, Kind, Network, Weights, batch, layers, train
from benchmarks.zoo.models import generator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

    Change = Callable[[Weights, Kind, Generator], Weights]

TOLERANCE = 1e-4
GATES = {Kind.LSTM: 4, Kind.GRU: 3}
CANDIDATE = 2
_NUMBERED = re.compile(r"(conv|bn)(\d+)(\..+)")


def _conv(layer: int) -> str:
    return f"conv{layer}.weight"


def _reader(weights: Weights, layer: int) -> str:
    return _conv(layer + 1) if layer < layers(weights) else "fc.weight"


def _on_channels(weights: Weights, layer: int, order: Tensor, scales: Tensor) -> None:
    """Put the channels of one layer in another order, multiplied by positive numbers behind the norm."""
    weights[_conv(layer)] = weights[_conv(layer)][order]
    shape = (1, -1, 1, 1) if layer < layers(weights) else (1, -1)
    for end in ("weight", "bias", "running_mean", "running_var"):
        name = f"bn{layer}.{end}"
        if name in weights:
            weights[name] = weights[name][order] * (scales if end in {"weight", "bias"} else 1.0)
    if f"conv{layer}.bias" in weights:
        weights[_conv(layer)] = weights[_conv(layer)] * scales[:, None, None, None]
        weights[f"conv{layer}.bias"] = weights[f"conv{layer}.bias"][order] * scales
    reader = _reader(weights, layer)
    weights[reader] = weights[reader][:, order] / scales.view(shape)


def permute(weights: Weights, kind: Kind, random: Generator) -> Weights:
    """Put the hidden units of every layer in a random order."""
    out = {name: w.clone() for name, w in weights.items()}
    if kind is Kind.RESNET:
        for writers, readers in residual.spaces(out):
            order = torch.randperm(len(out[f"{writers[0]}.weight"]), generator=random)
            residual.on_channels(out, writers, readers, order, torch.ones(len(order), dtype=torch.float64))
        return out
    if kind is Kind.CNN:
        for layer in range(1, layers(weights) + 1):
            order = torch.randperm(len(out[_conv(layer)]), generator=random)
            _on_channels(out, layer, order, torch.ones(len(order), dtype=torch.float64))
        return out
    for level in _levels(out):
        _on_units(out, kind, level, torch.randperm(HIDDEN, generator=random), torch.ones(HIDDEN, dtype=torch.float64))
    return out


def rescale(weights: Weights, kind: Kind, random: Generator) -> Weights:
    """Multiply every channel behind its norm by a positive number, and divide what reads it."""
    assert kind in PICTURES
    out = {name: w.clone() for name, w in weights.items()}
    if kind is Kind.RESNET:
        for writers, readers in residual.spaces(out):
            size = len(out[f"{writers[0]}.weight"])
            residual.on_channels(out, writers, readers, torch.arange(size), residual.random_scales(size, random))
        return out
    for layer in range(1, layers(weights) + 1):
        size = len(out[_conv(layer)])
        _on_channels(out, layer, torch.arange(size), residual.random_scales(size, random))
    return out


def fold_norms(weights: Weights, kind: Kind, _: Generator) -> Weights:
    """Fold every batch norm into the convolution in front of it, which gets a bias."""
    assert kind in PICTURES
    if kind is Kind.RESNET:
        folded = {name: w.clone() for name, w in weights.items()}
        residual.fold(folded)
        return folded
    out = {name: w.clone() for name, w in weights.items() if not name.startswith("bn")}
    for layer in range(1, layers(weights) + 1):
        gain, bias, mean, variance = (
            weights[f"bn{layer}.{end}"] for end in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain / (variance + 1e-5).sqrt()
        out[_conv(layer)] = out[_conv(layer)] * factor[:, None, None, None]
        out[f"conv{layer}.bias"] = bias - mean * factor
    return out


def _levels(weights: Weights) -> list[int]:
    return [level for level in range(8) if f"rnn.weight_ih_l{level}" in weights]


def _on_units(weights: Weights, kind: Kind, level: int, order: Tensor, signs: Tensor) -> None:
    """Put the units of one level in another order and negate some: the candidate's rows, and whatever reads them."""
    gates = GATES[kind]
    rows = torch.cat([order + gate * HIDDEN for gate in range(gates)])
    by = torch.cat([signs if gate == CANDIDATE else torch.ones_like(signs) for gate in range(gates)])
    for part in ("ih", "hh"):
        weight, bias = f"rnn.weight_{part}_l{level}", f"rnn.bias_{part}_l{level}"
        weights[weight] = weights[weight][rows] * by[:, None]
        weights[bias] = weights[bias][rows] * by
    loop = f"rnn.weight_hh_l{level}"
    following = f"rnn.weight_ih_l{level + 1}"
    for reader in (loop, following if following in weights else "decoder.weight"):
        weights[reader] = weights[reader][:, order] * signs


def scramble_signs(weights: Weights, kind: Kind, random: Generator) -> Weights:
    """Negate a random half of the units of every recurrent level."""
    out = {name: w.clone() for name, w in weights.items()}
    for level in _levels(out):
        signs = torch.randint(0, 2, (HIDDEN,), generator=random).double() * 2 - 1
        _on_units(out, kind, level, torch.arange(HIDDEN), signs)
    return out


def rotate_embeddings(weights: Weights, kind: Kind, random: Generator) -> Weights:
    """Rotate the space between the embeddings and the cells that read them."""
    del kind
    out = {name: w.clone() for name, w in weights.items()}
    width = out["encoder.weight"].shape[1]
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64))
    for name in ("encoder.weight", "rnn.weight_ih_l0"):
        out[name] = out[name] @ turn
    return out


def permute_vocabulary(weights: Weights, kind: Kind, random: Generator) -> Weights:
    """Number the tokens anew; the check undoes that."""
    del kind
    out = {name: w.clone() for name, w in weights.items()}
    order = torch.randperm(len(out["encoder.weight"]), generator=random)
    for name in ("encoder.weight", "decoder.weight", "decoder.bias"):
        out[name] = out[name][order]
    return out


_CONVOLUTIONAL: dict[str, tuple[Change, ...]] = {
    "none": (),
    "permuted": (permute,),
    "rescaled": (rescale,),
    "norms folded": (fold_norms,),
    "permuted, rescaled": (permute, rescale),
    "permuted, rescaled, folded": (permute, rescale, fold_norms),
}
REWRITES: dict[Kind, dict[str, tuple[Change, ...]]] = dict.fromkeys((Kind.CNN, Kind.RESNET), _CONVOLUTIONAL)
_RECURRENT: dict[str, tuple[Change, ...]] = {
    "none": (),
    "permuted": (permute,),
    "embeddings rotated": (rotate_embeddings,),
    "vocabulary permuted": (permute_vocabulary,),
    "permuted, rotated": (permute, rotate_embeddings),
    "signs scrambled": (scramble_signs,),
    "permuted, rotated, signs scrambled": (permute, rotate_embeddings, scramble_signs),
}
REWRITES |= dict.fromkeys((Kind.LSTM, Kind.GRU), _RECURRENT)


def rewrite(weights: Weights, kind: Kind, steps: tuple[Change, ...], key: str) -> tuple[Weights, float]:
    """Apply rewrites in float64 and check the function: the weights in float32, and the largest difference of outputs
    over their deviation. Raises ArithmeticError if that exceeds ``TOLERANCE``."""
    out = {name: w.double() for name, w in floats(weights).items()}
    for number, step in enumerate(steps):
        out = step(out, kind, generator(f"{key}/{number}"))
    made = {name: w.float().contiguous() for name, w in out.items()}
    error = difference(weights, made, kind, order=_order(steps, key))
    if not error <= TOLERANCE:
        raise ArithmeticError(f"the outputs differ by {error:.3g} of their deviation")
    return made, error


def _order(steps: tuple[Change, ...], key: str) -> Tensor | None:
    number = next((i for i, step in enumerate(steps) if step is permute_vocabulary), None)
    if number is None:
        return None
    return torch.randperm(VOCABULARY, generator=generator(f"{key}/{number}"))


def difference(original: Weights, made: Weights, kind: Kind, *, order: Tensor | None = None) -> float:
    """Largest difference of the outputs of two networks, over the deviation of the first's."""
    inputs, _ = batch(kind, generator("check"), "a-x-small", 8)
    outputs = [_outputs(one, kind, inputs) for one in (original, made)]
    if order is not None:
        outputs[1] = _outputs(made, kind, torch.argsort(order)[inputs])
        outputs[0] = outputs[0][..., order]
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].std())


def _outputs(weights: Weights, kind: Kind, inputs: Tensor) -> Tensor:
    network = Network.of(kind, weights).double().eval()
    with torch.no_grad():
        found: Tensor = network(inputs.double() if kind in PICTURES else inputs)
    return found


def halve_channels(weights: Weights, kind: Kind) -> Weights:
    """Leave out the half of the channels of each convolution, of residual branches those inside, whose rows are
    shortest."""
    out = {name: w.clone() for name, w in weights.items()}
    if kind is Kind.RESNET:
        residual.halve_inside(out)
        return out
    for layer in range(1, layers(weights) + 1):
        kernel = out[_conv(layer)]
        kept = kernel.flatten(1).norm(dim=1).topk(len(kernel) // 2).indices.sort().values
        for name in [_conv(layer), f"conv{layer}.bias", *(n for n in out if n.startswith(f"bn{layer}."))]:
            if name in out and out[name].ndim:
                out[name] = out[name][kept]
        out[_reader(out, layer)] = out[_reader(out, layer)][:, kept]
    return out


def halve_units(weights: Weights, kind: Kind) -> Weights:
    """Leave out the half of the units of each recurrent level whose rows are shortest."""
    out = {name: w.clone() for name, w in weights.items()}
    for level in _levels(out):
        gates = GATES[kind]
        rows = out[f"rnn.weight_ih_l{level}"].view(gates, HIDDEN, -1)
        kept = rows.norm(dim=(0, 2)).topk(HIDDEN // 2).indices.sort().values
        several = torch.cat([kept + gate * HIDDEN for gate in range(gates)])
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            out[f"rnn.{part}_l{level}"] = out[f"rnn.{part}_l{level}"][several]
        following = f"rnn.weight_ih_l{level + 1}"
        for reader in (f"rnn.weight_hh_l{level}", following if following in out else "decoder.weight"):
            out[reader] = out[reader][:, kept]
    return out


def spare_layer(weights: Weights, kind: Kind) -> int | None:
    """A layer that can be left out, as what it puts out is as wide as what it reads: None if there is none.

    Of convolutions the first such one, of residual networks the first block; of cells the last level, whose
    predecessor has as many units.
    """
    if kind is Kind.RESNET:
        return 0
    if kind is Kind.CNN:
        fits = (i for i in range(1, layers(weights) + 1) if weights[_conv(i)].shape[0] == weights[_conv(i)].shape[1])
        return next(fits, None)
    levels = _levels(weights)
    return levels[-1] if len(levels) > 1 else None


def drop_layer(weights: Weights, kind: Kind) -> Weights:
    """Leave out ``spare_layer``; those behind it move up."""
    spare = spare_layer(weights, kind)
    assert spare is not None
    if kind is Kind.RESNET:
        return residual.without_block(weights)
    if kind is not Kind.CNN:
        return {name: w.clone() for name, w in weights.items() if not name.endswith(f"_l{spare}")}
    out = {}
    for name, w in weights.items():
        part = _NUMBERED.match(name)
        number = int(part[2]) if part else 0
        if part is None or number < spare:
            out[name] = w.clone()
        elif number > spare:
            out[f"{part[1]}{number - 1}{part[3]}"] = w.clone()
    return out


def random_like(weights: Weights, random: Generator) -> Weights:
    """Gaussian tensors with the mean and deviation of each; variances of batch norms positive."""
    drawn = ops.random_like(floats(weights), random)
    return {name: w.abs() if name.endswith("running_var") else w for name, w in drawn.items()}


def shuffle(weights: Weights, random: Generator) -> Weights:
    """The elements of each tensor shuffled."""
    return ops.shuffle(floats(weights), random)


def floats(weights: Weights) -> Weights:
    """Without what is counted."""
    return {name: w for name, w in weights.items() if w.dtype.is_floating_point}


def tuned(weights: Weights, kind: Kind, key: str, *, steps: int, rate: float, data: str = "a-x-small") -> Weights:
    """Train a network on, rewritten or not; text is that of ``data``."""
    return train(kind, key, weights, steps=steps, rate=rate, data=data)
