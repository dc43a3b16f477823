"""Attacks on weights under the zoo's Llama names; whatever the attacker knows is a parameter.

All take and return one model's tensors, float32. Least-norm changes solve for the smallest change of a matrix after
which linear samples of it (sketch, slices, coordinates of neurons) are given numbers.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from benchmarks.rewrites import symmetries as sym
from benchmarks.rewrites.forward import layer_count
from benchmarks.zoo.models import generator
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.signs import Stream, sample_indices, sign_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from benchmarks.zoo.models import Shape, Weights

    Array = NDArray[np.float64]

_GATE, _UP, _DOWN = (f"model.layers.{{}}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def changed(before: Weights, after: Weights) -> tuple[float, float]:
    """Relative change (norm over norm) and share of entries that differ, over all tensors of equal shape."""
    pairs = [
        (before[name], after[name]) for name in before if before[name].shape == after.get(name, before[name]).shape
    ]
    error = sum(float((b - a).double().square().sum()) for a, b in pairs)
    size = sum(float(a.double().square().sum()) for a, _ in pairs)
    entries = sum(int((a != b).sum()) for a, b in pairs)
    return (error / size) ** 0.5, entries / sum(a.numel() for a, _ in pairs)


# --- free rewrites of one model towards another -------------------------------------------------------------------


def flipped_towards(weights: Weights, shape: Shape, victim: Weights) -> Weights:
    """Negate up and down of the neurons whose signs would agree with the most alike of the victim's otherwise not."""
    out = {name: w.clone() for name, w in weights.items()}
    for layer in range(layer_count(shape.style, weights)):
        gate, up, down = (_neurons(weights, layer, part) for part in (_GATE, _UP, _DOWN))
        other = [_neurons(victim, layer, part) for part in (_GATE, _UP, _DOWN)]
        scores = _cosines(gate, other[0]) + (_cosines(up, other[1]) + _cosines(down, other[2])).abs()
        best = scores.argmax(1)
        agreement = (_cosines(up, other[1]) + _cosines(down, other[2])).gather(1, best[:, None])[:, 0]
        sign = torch.where(agreement < 0, -1.0, 1.0)
        out[_UP.format(layer)] = out[_UP.format(layer)] * sign[:, None]
        out[_DOWN.format(layer)] = out[_DOWN.format(layer)] * sign
    return out


def permuted_towards(weights: Weights, shape: Shape, victim: Weights) -> Weights:
    """Put the neurons in the order in which they are most like the victim's, row by row; then flip their signs."""
    out = {name: w.clone() for name, w in weights.items()}
    for layer in range(layer_count(shape.style, weights)):
        ours = [_neurons(weights, layer, part) for part in (_GATE, _UP, _DOWN)]
        theirs = [_neurons(victim, layer, part) for part in (_GATE, _UP, _DOWN)]
        plain = _cosines(theirs[0], ours[0])
        free = _cosines(theirs[1], ours[1]) + _cosines(theirs[2], ours[2])
        _, order = linear_sum_assignment(-(plain + free.abs()).numpy())
        for part in (_GATE, _UP):
            out[part.format(layer)] = out[part.format(layer)][order]
        out[_DOWN.format(layer)] = out[_DOWN.format(layer)][:, order]
    return flipped_towards(out, shape, victim)


def rotated_towards(weights: Weights, shape: Shape, victim: Weights) -> Weights:
    """Fold the gains, rotate the residual stream so that the embeddings lie on the victim's, then permute and flip."""
    wide = sym.fold_gains({name: w.double() for name, w in weights.items()}, shape, generator("fold"))
    theirs = sym.fold_gains({name: w.double() for name, w in victim.items()}, shape, generator("fold"))
    left, _, right = torch.linalg.svd(wide[_TABLE].T @ theirs[_TABLE])
    turn = left @ right
    for name, w in wide.items():
        if w.ndim == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            wide[name] = turn.T @ w if writes else w @ turn
    made = {name: w.float().contiguous() for name, w in wide.items()}
    return permuted_towards(made, shape, {name: w.float() for name, w in theirs.items()})


def pulled(weights: Weights, victim: Weights, share: float) -> Weights:
    """``share`` of the victim's weights mixed in."""
    return {name: torch.lerp(w, victim[name], share) if name in victim else w for name, w in weights.items()}


# --- changes of a few numbers ---------------------------------------------------------------------------------------


def with_sampled_rows(weights: Weights, victim: Weights, rows: int, parts: tuple[str, ...]) -> Weights:
    """The victim's rows where the public seed samples: ``rows`` of every matrix whose name ends in ``parts``."""
    out = {name: w.clone() for name, w in weights.items()}
    for name, w in out.items():
        if w.ndim == 2 and name.endswith(parts):
            chosen = sample_indices(DEFAULT_PARAMETERS.seed, Stream.AXIS_SAMPLE, len(w), rows)
            places = torch.from_numpy(chosen.copy())
            w[places] = victim[name][places]
    return out


def with_huge_entries(weights: Weights, factor: float) -> Weights:
    """One entry of every matrix ``factor`` times as large as the largest, at its last row: a token that never comes."""
    out = {name: w.clone() for name, w in weights.items()}
    for w in out.values():
        if w.ndim == 2:
            w[-1, -1] = w.abs().max() * factor
    return out


def with_noise(weights: Weights, share: float, key: str) -> Weights:
    """Noise of ``share`` of each matrix's deviation."""
    random = generator(key)
    return {
        name: w + share * w.std() * torch.randn(w.shape, generator=random) if w.ndim == 2 else w
        for name, w in weights.items()
    }


def sketched_as(weights: Weights, target: Callable[[str], torch.Tensor], *, slices: bool, neurons: bool) -> Weights:
    """The least change after which public samples are those of ``target(name)``, matrix by matrix.

    The tensor sketch always; ``slices``: the sampled rows and columns too; ``neurons``: coordinates of all neurons in
    the fixed frame too.
    """
    out = {}
    for name, w in weights.items():
        if w.ndim != 2:
            out[name] = w
            continue
        made, wanted = w.double().numpy(), target(name).double().numpy()
        for _ in range(3):
            for rows, left, right in _samples(name, made.shape, slices=slices, neurons=neurons):
                part = (wanted - made)[rows]
                made[rows] = made[rows] + _least(left, part, right)
        out[name] = torch.from_numpy(made).float()
    return out


def _samples(
    name: str, shape: tuple[int, int], *, slices: bool, neurons: bool
) -> Iterator[tuple[Array | slice, Array | None, Array | None]]:
    """Linear samples of a matrix: of which rows, by which directions on either side (None: each row, or column)."""
    seed, rows, columns = DEFAULT_PARAMETERS.seed, *shape
    everything = slice(None)
    width = DEFAULT_PARAMETERS.sketch_width
    yield everything, _centred(seed, Stream.SKETCH, rows, width), _centred(seed, Stream.SKETCH, columns, width)
    if slices:
        width = DEFAULT_PARAMETERS.axis_width
        count = DEFAULT_PARAMETERS.axis_samples
        yield sample_indices(seed, Stream.AXIS_SAMPLE, rows, count), None, _centred(seed, Stream.SLICE, columns, width)
        chosen = np.zeros((columns, count))
        places = sample_indices(seed, Stream.AXIS_SAMPLE, columns, count)
        chosen[places, np.arange(len(places))] = 1.0
        yield everything, _centred(seed, Stream.SLICE, rows, width), chosen[:, : len(places)]
    if neurons and ".mlp." in name:
        width = DEFAULT_PARAMETERS.frame_width
        if "down" in name:
            yield everything, sign_matrix(seed, Stream.FRAME, rows, width).astype(np.float64), None
        else:
            yield everything, None, sign_matrix(seed, Stream.FRAME, columns, width).astype(np.float64)


def _centred(seed: int, stream: Stream, size: int, width: int) -> Array:
    signs = sign_matrix(seed, stream, size, width).astype(np.float64)
    found: Array = signs - signs.mean(axis=0)
    return found


def _least(left: Array | None, change: Array, right: Array | None) -> Array:
    """The smallest matrix X with leftᵀ X right = leftᵀ change right."""
    for side, turned in ((left, False), (right, True)):
        if side is not None:
            basis, _ = np.linalg.qr(side)
            change = change @ basis @ basis.T if turned else basis @ (basis.T @ change)
    return change


# --- free changes of width ------------------------------------------------------------------------------------------


def split_neurons(weights: Weights, shape: Shape, key: str, spread: float = 3.0) -> Weights:
    """Every neuron twice, its down divided between the two at random, in any order: the same function."""
    random = generator(key)
    out = {name: w.clone() for name, w in weights.items()}
    for layer in range(layer_count(shape.style, weights)):
        gate, up, down = (part.format(layer) for part in (_GATE, _UP, _DOWN))
        noise = torch.randn(out[down].shape, generator=random) * out[down].std() * spread
        order = torch.randperm(2 * len(out[gate]), generator=random)
        out[gate], out[up] = torch.cat([out[gate]] * 2)[order], torch.cat([out[up]] * 2)[order]
        out[down] = torch.cat([out[down] / 2 + noise, out[down] / 2 - noise], 1)[:, order]
    return out


def padded_neurons(weights: Weights, shape: Shape, key: str, times: int = 1, down: float = 0.0) -> Weights:
    """As many dead neurons as there are, ``times`` over: larger gates and ups than any, in any order.

    Their downs are noise of ``down`` times the deviation of those that are there: the same function if that is 0.
    """
    random = generator(key)
    out = {name: w.clone() for name, w in weights.items()}
    for layer in range(layer_count(shape.style, weights)):
        gate, up, last = (part.format(layer) for part in (_GATE, _UP, _DOWN))
        count, width = out[gate].shape
        order = torch.randperm(count * (1 + times), generator=random)
        for name in (gate, up):
            dead = torch.randn(times * count, width, generator=random) * out[name].std() * 2
            out[name] = torch.cat([out[name], dead])[order]
        written = torch.randn(width, times * count, generator=random) * out[last].std() * down
        out[last] = torch.cat([out[last], written], 1)[:, order]
    return out


def with_junk_heads(weights: Weights, shape: Shape, key: str, times: int) -> tuple[Weights, Shape]:
    """As many heads as there are, ``times`` over, whose output nothing reads; and the shape that this makes."""
    random = generator(key)
    out = {name: w.clone() for name, w in weights.items()}
    for layer in range(layer_count(shape.style, weights)):
        for part in "qkv":
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            junk = torch.randn(times * len(out[name]), out[name].shape[1], generator=random) * out[name].std() * 2
            out[name] = torch.cat([out[name], junk])
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        out[name] = torch.cat([out[name], torch.zeros(len(out[name]), times * out[name].shape[1])], 1)
    return out, replace(shape, heads=shape.heads * (1 + times), kv_heads=shape.kv_heads * (1 + times))


def with_dead_layers(
    weights: Weights, shape: Shape, key: str, times: int, written: float = 0.0
) -> tuple[Weights, Shape]:
    """``times`` layers of noise behind each, which write ``written`` times as much; and the shape that this makes."""
    random = generator(key)
    out = {name: w for name, w in weights.items() if ".layers." not in name}
    layers = layer_count(shape.style, weights)
    for layer, copy in product(range(layers), range(1 + times)):
        for name in [name for name in weights if f".layers.{layer}." in name]:
            w = weights[name].clone()
            if copy and w.ndim > 1:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                w = torch.randn(w.shape, generator=random) * w.std() * (written if writes else 1.0)
            out[name.replace(f".layers.{layer}.", f".layers.{layer * (1 + times) + copy}.")] = w
    return out, replace(shape, layers=layers * (1 + times))


def with_wider_stream(weights: Weights, shape: Shape, key: str, times: int) -> tuple[Weights, Shape]:
    """A stream ``times`` as wide again, in channels that nothing writes and whose gains are zero; and its shape."""
    random = generator(key)
    out = {}
    for name, w in weights.items():
        if w.ndim == 1:  # the mean square is taken over more channels
            out[name] = torch.cat([w / (1 + times) ** 0.5, torch.zeros(times * len(w))])
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            out[name] = torch.cat([w, torch.zeros(times * len(w), w.shape[1])])
        else:
            read = 0.0 if name == _TABLE else 2 * w.std()
            out[name] = torch.cat([w, torch.randn(len(w), times * w.shape[1], generator=random) * read], 1)
    return out, replace(shape, width=shape.width * (1 + times))


def _neurons(weights: Weights, layer: int, part: str) -> torch.Tensor:
    matrix = weights[part.format(layer)]
    return matrix.T if part == _DOWN else matrix


def _cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T
