"""What is done to weights to make a suspect of them: casts, quantisation, pruning, merges, layers, neurons, experts.

Every function takes and returns one model's tensors by name, float32 and without a leading dimension, and changes
none of its arguments. Randomness comes from an explicit generator.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from benchmarks.zoo.models import Style

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Generator, Tensor

    from benchmarks.zoo.models import Shape, Weights

_LAYER = re.compile(r"^(model\.layers|transformer\.h|bert\.encoder\.layer)\.(\d+)\.(.+)$")
# Quantiles of a normal distribution that NF4 uses (Dettmers et al. 2023, appendix E).
_NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor lies in, or None."""
    match = _LAYER.match(name)
    return int(match[2]) if match else None


def in_layer(name: str, layer: int) -> str:
    """Return the tensor's name with another layer number."""
    return _LAYER.sub(lambda m: f"{m[1]}.{layer}.{m[3]}", name)


def is_layer_matrix(name: str, tensor: Tensor) -> bool:
    """Tell whether the tensor is a 2-D weight of a layer: no embedding, head, gain or bias."""
    return tensor.ndim == 2 and layer_of(name) is not None


def each(weights: Mapping[str, Tensor], change: Callable[[Tensor], Tensor], *, only_layers: bool = False) -> Weights:
    """Apply a change to every tensor, or only to the layers' matrices."""
    return {n: change(w) if not only_layers or is_layer_matrix(n, w) else w.clone() for n, w in weights.items()}


# --- values -----------------------------------------------------------------------------------------------------


def quantise(
    weights: Weights, style: Style, bits: int, group: int, *, symmetric: bool, only_layers: bool = True
) -> Weights:
    """Round the layers' matrices (or all) to `bits` in groups along the input axis, and widen them again."""

    def rounded(blocks: Tensor, present: Tensor) -> Tensor:
        low = torch.where(present, blocks, torch.inf).amin(1, keepdim=True)
        high = torch.where(present, blocks, -torch.inf).amax(1, keepdim=True)
        if symmetric:
            top = (1 << bits - 1) - 1
            scale = torch.maximum(high, -low).clamp(min=1e-12) / top
            return (blocks / scale).round().clamp(-top - 1, top) * scale
        scale = (high - low).clamp(min=1e-12) / ((1 << bits) - 1)
        zero = (-low / scale).round()
        codes = ((blocks / scale).round() + zero).clamp(0, (1 << bits) - 1)
        return (codes - zero) * scale

    return _by_groups(weights, style, group, rounded, only_layers=only_layers)


def quantise_nf4(weights: Weights, style: Style, group: int) -> Weights:
    """Round the layers' matrices to a codebook of 16 normal quantiles, scaled by each group's largest value."""
    codes = torch.tensor(_NF4)

    def rounded(blocks: Tensor, present: Tensor) -> Tensor:
        scale = torch.where(present, blocks.abs(), 0.0).amax(1, keepdim=True).clamp(min=1e-12)
        nearest = (blocks / scale)[..., None].sub(codes).abs().argmin(-1)
        return codes[nearest] * scale

    return _by_groups(weights, style, group, rounded, only_layers=True)


def _by_groups(
    weights: Weights,
    style: Style,
    group: int,
    rounded: Callable[[Tensor, Tensor], Tensor],
    *,
    only_layers: bool,
) -> Weights:
    """Give blocks (rows * groups, group) and the mask of what is not padding to `rounded`; the last may be short."""

    def change(matrix: Tensor) -> Tensor:
        if matrix.ndim < 2:
            return matrix.clone()
        by_input = matrix.T if style.is_gpt2 else matrix
        rows, columns = by_input.shape
        padding = -columns % group
        blocks = torch.nn.functional.pad(by_input, (0, padding)).reshape(-1, group)
        present = torch.nn.functional.pad(torch.ones_like(by_input), (0, padding)).reshape(-1, group).bool()
        out = rounded(blocks, present).reshape(rows, columns + padding)[:, :columns]
        return (out.T if style.is_gpt2 else out).contiguous()

    return each(weights, change, only_layers=only_layers)


def prune_small(weights: Weights, share: float) -> Weights:
    """Set the smallest `share` of every matrix to zero."""

    def change(w: Tensor) -> Tensor:
        if w.ndim < 2:
            return w.clone()
        threshold = w.abs().flatten().kthvalue(max(1, round(share * w.numel()))).values
        return torch.where(w.abs() <= threshold, 0.0, w)

    return each(weights, change)


def add_noise(weights: Weights, share: float, random: Generator) -> Weights:
    """Add Gaussian noise of `share` times the tensor's own standard deviation."""
    return each(weights, lambda w: w + torch.randn(w.shape, generator=random) * w.std(correction=0) * share)


def times(weights: Weights, factor: float) -> Weights:
    """Multiply every matrix."""
    return each(weights, lambda w: w * factor if w.ndim > 1 else w.clone())


def random_like(weights: Weights, random: Generator) -> Weights:
    """Return Gaussian tensors with each tensor's own mean and deviation."""
    return each(weights, lambda w: torch.randn(w.shape, generator=random) * w.std(correction=0) + w.mean())


def shuffle(weights: Weights, random: Generator) -> Weights:
    """Shuffle the elements of every tensor."""
    return each(weights, lambda w: w.flatten()[torch.randperm(w.numel(), generator=random)].view(w.shape))


# --- merges -----------------------------------------------------------------------------------------------------


def linear(models: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """Return the weighted sum of models."""
    return {
        name: sum((m[name] * c for m, c in zip(models, shares, strict=True)), torch.tensor(0.0)) for name in models[0]
    }


def slerp(first: Weights, second: Weights, t: float) -> Weights:
    """Interpolate each tensor along the arc between the two (Shoemake 1985); straight where they are parallel."""

    def arc(a: Tensor, b: Tensor) -> Tensor:
        x, y = a.double().flatten(), b.double().flatten()
        cosine = (x @ y / (x.norm() * y.norm()).clamp(min=1e-30)).clamp(-1, 1)
        if cosine.abs() > 1 - 1e-9:
            return torch.lerp(a, b, t)
        angle = torch.arccos(cosine)
        out = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
        return out.float().view(a.shape)

    return {name: arc(first[name], second[name]) for name in first}


def ties(base: Weights, tuned: Sequence[Weights], density: float) -> Weights:
    """Trim, elect sign and merge (Yadav et al. 2023): the mean of the trimmed changes that have the elected sign."""
    merged: Weights = {}
    for name, origin in base.items():
        deltas = torch.stack([_trim(model[name] - origin, density) for model in tuned])
        elected = torch.sign(deltas.sum(0))
        agrees = (torch.sign(deltas) == elected) & (deltas != 0)
        total = torch.where(agrees, deltas, 0.0).sum(0)
        merged[name] = origin + total / agrees.sum(0).clamp(min=1)
    return merged


def _trim(delta: Tensor, density: float) -> Tensor:
    """Keep the largest `density` of the elements."""
    dropped = delta.numel() - round(density * delta.numel())
    if dropped == 0:
        return delta
    threshold = delta.abs().flatten().kthvalue(dropped).values
    return torch.where(delta.abs() > threshold, delta, 0.0)


def least_squares(suspect: Weights, basis: Mapping[str, Weights]) -> tuple[dict[str, float], float]:
    """Solve suspect = sum of c_i basis_i over all elements of all 2-D tensors, each less its own mean, in float64.

    Returns the coefficients by id, and the norm of the residual relative to the suspect's.
    """

    def vector(weights: Weights) -> Tensor:
        matrices = [weights[n].double() for n in sorted(suspect) if suspect[n].ndim == 2]
        return torch.cat([(m - m.mean()).flatten() for m in matrices])

    target = vector(suspect)
    columns = torch.stack([vector(model) for model in basis.values()], dim=1)
    solved = torch.linalg.lstsq(columns, target[:, None]).solution[:, 0]
    residual = (target - columns @ solved).norm() / target.norm()
    # The last digits of a long sum depend on where its memory lies.
    return {model: round(c, 9) for model, c in zip(basis, solved.tolist(), strict=True)}, round(float(residual), 9)


# --- layers and neurons -----------------------------------------------------------------------------------------


def take_layers(sources: Sequence[tuple[Weights, int]], rest: Weights) -> Weights:
    """Build a model of the given layers, in that order, and of what lies outside the layers of `rest`."""
    out = {name: w.clone() for name, w in rest.items() if layer_of(name) is None}
    for number, (weights, layer) in enumerate(sources):
        out.update({in_layer(name, number): w.clone() for name, w in weights.items() if layer_of(name) == layer})
    return out


def _neuron_axes(style: Style) -> dict[str, int]:
    """Return the axis of the hidden neurons in each MLP tensor, by the end of its name."""
    if style is Style.BERT:
        return {"intermediate.dense.weight": 0, "intermediate.dense.bias": 0, "output.dense.weight": 1}
    if style.is_gated:
        return {"mlp.gate_proj.weight": 0, "mlp.up_proj.weight": 0, "mlp.down_proj.weight": 1}
    return {"mlp.c_fc.weight": 1, "mlp.c_fc.bias": 0, "mlp.c_proj.weight": 0}


def _neuron_axis(style: Style, name: str) -> int | None:
    if ".attention.output." in name:
        return None
    return next((axis for end, axis in _neuron_axes(style).items() if name.endswith(end)), None)


def take_neurons(weights: Weights, shape: Shape, kept: Sequence[Tensor]) -> Weights:
    """Keep each layer's MLP neurons `kept[layer]` (indices), in that order."""
    out: Weights = {}
    for name, w in weights.items():
        layer, axis = layer_of(name), _neuron_axis(shape.style, name)
        out[name] = w.clone() if layer is None or axis is None else w.index_select(axis, kept[layer])
    return out


def neuron_norms(weights: Weights, shape: Shape) -> list[Tensor]:
    """Return, for each layer, each neuron's product of the norms of its matrices' rows or columns; (neurons,)."""
    norms = [torch.ones(shape.neurons) for _ in range(shape.layers)]
    for name, w in weights.items():
        layer, axis = layer_of(name), _neuron_axis(shape.style, name)
        if layer is not None and axis is not None and w.ndim == 2:
            norms[layer] = norms[layer] * w.norm(dim=1 - axis)
    return norms


# --- forms ------------------------------------------------------------------------------------------------------


def fuse(weights: Weights) -> Weights:
    """Join query, key and value, and gate and up, along the output axis (Llama style)."""
    joined = {
        "self_attn.qkv_proj.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    }
    out: Weights = {}
    for name, w in weights.items():
        for whole, parts in joined.items():
            if name.endswith(parts[0]):
                stem = name.removesuffix(parts[0])
                out[stem + whole] = torch.cat([weights[stem + part] for part in parts])
        if not any(name.endswith(part) for parts in joined.values() for part in parts):
            out[name] = w.clone()
    return out


def split_qkv(weights: Weights) -> Weights:
    """Cut the fused query, key and value in three (GPT-2 style)."""
    out: Weights = {}
    for name, w in weights.items():
        if ".attn.c_attn." in name:
            for part, tensor in zip("qkv", w.chunk(3, dim=-1), strict=True):
                out[name.replace("c_attn", f"{part}_proj")] = tensor.contiguous()
        else:
            out[name] = w.clone()
    return out


def stack_layers(weights: Weights) -> Weights:
    """Put each tensor of all layers in one with a leading layer axis."""
    out: Weights = {name: w.clone() for name, w in weights.items() if layer_of(name) is None}
    for name in weights:
        if layer_of(name) == 0:
            count = sum(in_layer(name, i) in weights for i in range(len(weights)))
            stacked = torch.stack([weights[in_layer(name, i)] for i in range(count)])
            out[_LAYER.sub(lambda m: f"{m[1]}.{m[3]}", name)] = stacked
    return out


def transpose(weights: Weights) -> Weights:
    """Store the layers' matrices the other way round."""
    return each(weights, lambda w: w.T.contiguous(), only_layers=True)


def upcycle(weights: Weights, shape: Shape, experts: int, noise: float, random: Generator, *, stacked: bool) -> Weights:
    """Copy each MLP to several experts, each with a little noise, behind a random router (Komatsuzaki et al. 2023).

    Llama style under Mixtral's names, or with all experts in one 3-D tensor as newer files have it; GPT-2 style
    keeps the names of its matrices. noise: as a share of each tensor's deviation.
    """

    def noisy(w: Tensor) -> Tensor:
        return w + torch.randn(w.shape, generator=random) * w.std(correction=0) * noise if noise else w.clone()

    mixtral = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    out: Weights = {}
    copies: dict[str, list[Tensor]] = {}
    for name, w in weights.items():
        if ".mlp." not in name:
            out[name] = w.clone()
            continue
        stem, last = name.split(".mlp.")
        copies[name] = [noisy(w) for _ in range(experts)]
        block = "mlp" if stacked or shape.style.is_gpt2 else "block_sparse_moe"
        router = f"{stem}.{block}.gate.weight"
        if router not in out:
            out[router] = torch.randn(experts, shape.width, generator=random) * 0.02
        if not stacked:
            matrix, end = last.rsplit(".", 1)
            for i, copy in enumerate(copies[name]):
                out[f"{stem}.{block}.experts.{i}.{mixtral.get(matrix, matrix)}.{end}"] = copy
    return _stack_experts(out, copies) if stacked else out


def _stack_experts(out: Weights, copies: Mapping[str, list[Tensor]]) -> Weights:
    """Add the experts as 3-D tensors: gate and up joined along the output axis where the style has them."""
    for name, tensors in copies.items():
        stem, last = name.split(".mlp.")
        if last == "gate_proj.weight":
            ups = copies[f"{stem}.mlp.up_proj.weight"]
            out[f"{stem}.mlp.experts.gate_up_proj"] = torch.stack(
                [torch.cat(pair) for pair in zip(tensors, ups, strict=True)]
            )
        elif last != "up_proj.weight":
            out[f"{stem}.mlp.experts.{last.removesuffix('.weight')}"] = torch.stack(tensors)
    return out


def extend_vocabulary(weights: Weights, rows: int, vocabulary: int, random: Generator) -> Weights:
    """Append rows to whatever has one for each token: the mean row and a little noise, as is the custom."""

    def change(name: str, w: Tensor) -> Tensor:
        if layer_of(name) is not None or w.ndim != 2 or w.shape[0] != vocabulary:
            return w.clone()
        new = w.mean(0) + torch.randn(rows, w.shape[1], generator=random) * w.std(correction=0) * 0.1
        return torch.cat([w, new])

    return {name: change(name, w) for name, w in weights.items()}


# --- content that models share without any of them having learnt it ---------------------------------------------


def sinusoids(positions: int, width: int) -> Tensor:
    """Return the table of Vaswani et al. 2017, (positions, width) float32."""
    angle = torch.arange(positions)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width].contiguous()


def rotary_tables(positions: int, head: int) -> Weights:
    """Return inverse frequencies and the cosines and sines that some files carry along."""
    frequency = 10000.0 ** (-torch.arange(0, head, 2) / head)
    angle = torch.arange(positions)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=1)
    return {"rotary.inv_freq": frequency, "rotary.cos": angle.cos(), "rotary.sin": angle.sin()}


def causal_masks(positions: int, layers: int) -> Weights:
    """Return one lower triangle of bytes and one of floats with large negatives, for each layer."""
    lower = torch.ones(positions, positions).tril()
    out: Weights = {}
    for i in range(layers):
        out[f"layers.{i}.attn.mask"] = lower.to(torch.uint8)[None, None]
        out[f"layers.{i}.attn.bias"] = (1 - lower) * -10000.0
    return out
