"""Builders of the cases' suspects: from one model, from layers of several, from none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.lineage import derive_ops as ops
from benchmarks.lineage.derive_cases import Build, Kit, Made
from benchmarks.zoo.models import Style, generator, logits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Generator, Tensor

    from benchmarks.zoo.models import Shape, Weights

ONE_MATRIX = 65_000


def has_style(style: Style) -> Callable[[Kit], bool]:
    return lambda kit: kit.shape.style is style


def one(model: str, change: Callable[[Weights, Kit, Generator], Weights] = lambda w, _k, _r: w) -> Build:
    """Build from one model, layers in place."""
    return lambda kit, random: Made(change(kit.model(model), kit, random))


def layers(rest: str, order: Sequence[tuple[str, int]]) -> Build:
    """Build from layers of several models."""

    def build(kit: Kit, _: Generator) -> Made:
        models = {name: kit.model(name) for name, _ in order}
        out = ops.take_layers([(models[name], layer) for name, layer in order], kit.model(rest))
        return Made(out, tuple((i, kit.id(name), layer) for i, (name, layer) in enumerate(order)))

    return build


def stacked(kit: Kit, _: Generator) -> Made:
    """Stack all layers' tensors; the layer map is the order in the stack."""
    layer_map = tuple((i, kit.id("A"), i) for i in range(kit.shape.layers))
    return Made(ops.stack_layers(kit.model("A")), layer_map)


def check_equal_logits(shape: Shape, first: Weights, second: Weights) -> None:
    """Raise ArithmeticError unless two models of one shape give the same logits but for rounding."""
    ids = torch.randint(0, shape.vocabulary, (1, 2, 32), generator=generator("logits"))
    one, two = (logits(shape, {n: w[None] for n, w in m.items()}, ids) for m in (first, second))
    if not torch.allclose(one, two, rtol=1e-4, atol=1e-4):
        raise ArithmeticError(f"the logits differ by {(one - two).abs().max().item():.3g}")


def permuted(w: Weights, kit: Kit, random: Generator) -> Weights:
    orders = [torch.randperm(kit.shape.neurons, generator=random) for _ in range(kit.shape.layers)]
    out = ops.take_neurons(w, kit.shape, orders)
    check_equal_logits(kit.shape, w, out)
    return out


def largest_neurons(w: Weights, kit: Kit, _: Generator) -> Weights:
    half = kit.shape.neurons // 2
    kept = [norms.topk(half).indices.sort().values for norms in ops.neuron_norms(w, kit.shape)]
    return ops.take_neurons(w, kit.shape, kept)


def random_neurons(w: Weights, kit: Kit, random: Generator) -> Weights:
    n = kit.shape.neurons
    kept = [torch.randperm(n, generator=random)[: n // 2].sort().values for _ in range(kit.shape.layers)]
    return ops.take_neurons(w, kit.shape, kept)


def quantised(model: str, bits: int, group: int, *, symmetric: bool) -> Build:
    return one(model, lambda w, k, _: ops.quantise(w, k.shape.style, bits, group, symmetric=symmetric))


def pruned(share: float) -> Build:
    return one("A", lambda w, _k, _r: ops.prune_small(w, share))


def noised(share: float) -> Build:
    return one("A", lambda w, _k, r: ops.add_noise(w, share, r))


def upcycled(noise: float, *, stacked: bool = False) -> Build:
    return one("A", lambda w, k, r: ops.upcycle(w, k.shape, 4, noise, r, stacked=stacked))


def one_layer(w: Weights, kit: Kit, _: Generator) -> Weights:
    return {name: t for name, t in w.items() if ops.layer_of(name) == kit.shape.layers // 2}


def matrix_name(kit: Kit) -> str:
    is_llama = kit.shape.style is Style.LLAMA
    return "model.layers.1.mlp.gate_proj.weight" if is_llama else "transformer.h.1.mlp.c_fc.weight"


def has_large_matrix(kit: Kit) -> bool:
    return kit.shape.neurons * kit.shape.width >= ONE_MATRIX


def new_matrices(w: Weights, random: Generator) -> Weights:
    """Return random weights with the gains of `w`: matrices and biases are new."""

    def change(name: str, t: Tensor) -> Tensor:
        is_gain = t.ndim == 1 and not name.endswith(".bias")
        return t.clone() if is_gain else torch.randn(t.shape, generator=random) * (0.04 if t.ndim == 2 else 0.01)

    return {name: change(name, t) for name, t in w.items()}


def tables(kit: Kit, kinds: Sequence[str]) -> Weights:
    # Longer than any model here sees, as in real files: large enough that a scanner might rest a verdict on them.
    positions = 512
    out: Weights = {}
    if "sinusoid" in kinds:
        out["positions.table"] = ops.sinusoids(positions, kit.shape.width)
    if "rotary" in kinds:
        out.update(ops.rotary_tables(positions, kit.shape.head_size))
    if "mask" in kinds:
        out.update(ops.causal_masks(positions, kit.shape.layers))
    return out


def with_tables(kinds: Sequence[str]) -> Build:
    return lambda kit, random: Made(new_matrices(kit.model("A"), random) | tables(kit, kinds))


def reference(kinds: Sequence[str]) -> Callable[[Kit], Weights]:
    return lambda kit: kit.model("A") | tables(kit, kinds)


def constants(w: Weights, _: Kit, random: Generator) -> Weights:
    return {name: torch.full_like(t, float(torch.randn((), generator=random))) for name, t in w.items()}


def embeddings(w: Weights, _: Kit, __: Generator) -> Weights:
    return {name: t for name, t in w.items() if ops.layer_of(name) is None and t.ndim == 2}
