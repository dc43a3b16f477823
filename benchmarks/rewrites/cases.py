"""The table of rewrites, each alone and all together, and of damages on top of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks.lineage import derive_ops as ops
from benchmarks.rewrites import bert
from benchmarks.rewrites import symmetries as sym
from benchmarks.rewrites.forward import ZOO, layer_count, logits
from benchmarks.rewrites.tune import fine_tune
from benchmarks.zoo.models import Style, generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Generator, Tensor

    from benchmarks.rewrites.forward import Constants
    from benchmarks.zoo.models import Shape, Weights
    from benchmarks.zoo.recipes import Schedule

_EVERY = frozenset(Style) - {Style.BERT}
_GATED = frozenset({Style.LLAMA, Style.GEMMA})
_SCALABLE = _GATED | {Style.RELU}
TOLERANCE = 1e-5
"""Largest difference of logits, over their standard deviation, that rounding to float32 is allowed."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Symmetries one after the other. tokens: whether the vocabulary is permuted at last."""

    name: str
    done: str
    steps: tuple[sym.Rewrite, ...]
    tokens: bool = False
    styles: frozenset[Style] = _EVERY


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A rewritten model, float32. order: old token number by new one. error: see ``TOLERANCE``."""

    tensors: Weights
    order: Tensor
    error: float


@dataclass(frozen=True, slots=True)
class Site:
    """What a damage may need beside the rewritten model.

    sibling: a fine-tune of the source, rewritten in the very same way. order: see ``Rewritten``. data: name of
    the data set of fine-tunes, ``other`` that of continued training, ``shared`` that of which a registered fine-tune
    was made. first: how the source was trained.
    """

    shape: Shape
    random: Generator
    order: Tensor
    sibling: Callable[[], Weights]
    data: str
    other: str
    steps: int
    first: Schedule
    shared: str = ""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is done after the rewrite. uses_sibling: whether it needs one; dtype: of the matrices that are written."""

    name: str
    done: str
    apply: Callable[[Weights, Site], Weights]
    uses_sibling: bool = False
    dtype: torch.dtype = field(default=torch.float32)


_PERMUTED = (sym.permute_neurons, sym.permute_heads)
_EVERYTHING = (
    *_PERMUTED,
    sym.mix_values,
    sym.change_keys,
    sym.rotate_residual,
    sym.scramble_gains,
)


def rewrites(style: Style) -> list[Rewrite]:
    """List the rewrites of a style, in a fixed order."""
    if style is Style.BERT:
        return _bert_rewrites()
    gated = style.is_gated
    scaled = (sym.rescale_neurons,) if style in _SCALABLE else ()
    neurons = (*scaled, *((sym.scramble_signs,) if gated else ()))
    found = [
        Rewrite("none", "nothing", ()),
        Rewrite("neurons-permuted", "MLP neurons permuted", (sym.permute_neurons,)),
        Rewrite("heads-permuted", "attention heads permuted", (sym.permute_heads,)),
        Rewrite("neurons-rescaled", "neurons rescaled on both sides", (sym.rescale_neurons,), styles=_SCALABLE),
        Rewrite("signs-scrambled", "up and down of half of the neurons negated", (sym.scramble_signs,), styles=_GATED),
        Rewrite("signs-negated", "up and down of every neuron negated", (sym.negate_pairs,), styles=_GATED),
        Rewrite("values-rescaled", "value channels rescaled, signs and all", (sym.rescale_values,)),
        Rewrite("values-mixed", "values of each head times an invertible matrix", (sym.mix_values,)),
        Rewrite(
            "keys-changed",
            "rotary pairs of queries and keys turned and rescaled; without rotary positions, mixed",
            (sym.change_keys,),
        ),
        Rewrite("gains-folded", "norm gains moved into the matrices behind them", (sym.fold_gains,)),
        Rewrite("gains-scrambled", "norm gains replaced by random ones", (sym.scramble_gains,)),
        Rewrite("residual-permuted", "channels of the residual stream permuted", (sym.permute_residual,)),
        Rewrite("rotated", "gains folded, residual stream rotated", (sym.rotate_residual,)),
        Rewrite("vocabulary-permuted", "tokens numbered anew", (), tokens=True),
        Rewrite(
            "laundered",
            "permuted, rescaled, folded, rotated; signs of neurons left",
            (*_PERMUTED, *scaled, sym.rescale_values if gated else sym.mix_values, sym.rotate_residual),
        ),
        Rewrite(
            "all-but-vocabulary",
            "everything but the vocabulary, signs scrambled",
            (*neurons, *_EVERYTHING),
        ),
        Rewrite("all", "everything, signs scrambled and vocabulary permuted", (*neurons, *_EVERYTHING), tokens=True),
    ]
    return [one for one in found if style in one.styles]


def _bert_rewrites() -> list[Rewrite]:
    styles = frozenset({Style.BERT})
    moved = (bert.permute_neurons, bert.permute_heads, bert.permute_residual)
    mixed = (bert.mix_values, bert.change_keys, bert.negate_residual)
    return [
        Rewrite("none", "nothing", (), styles=styles),
        Rewrite("neurons-permuted", "MLP neurons permuted", (bert.permute_neurons,), styles=styles),
        Rewrite("heads-permuted", "attention heads permuted", (bert.permute_heads,), styles=styles),
        Rewrite("values-mixed", "values of each head times an invertible matrix", (bert.mix_values,), styles=styles),
        Rewrite("keys-changed", "queries and keys mixed", (bert.change_keys,), styles=styles),
        Rewrite(
            "residual-permuted", "channels of the residual stream permuted", (bert.permute_residual,), styles=styles
        ),
        Rewrite("residual-negated", "the whole residual stream negated", (bert.negate_residual,), styles=styles),
        Rewrite("vocabulary-permuted", "tokens numbered anew", (), tokens=True, styles=styles),
        Rewrite("laundered", "everything permuted, values mixed", (*moved, bert.mix_values), styles=styles),
        Rewrite("all-but-vocabulary", "everything but the vocabulary", (*moved, *mixed), styles=styles),
        Rewrite("all", "everything, and the vocabulary permuted", (*moved, *mixed), tokens=True, styles=styles),
    ]


def rewrite(
    weights: Weights,
    shape: Shape,
    case: Rewrite,
    key: str,
    constants: Constants = ZOO,
    tolerance: float = TOLERANCE,
) -> Rewritten:
    """Rewrite a model with a random stream of its own and check that it computes the same.

    Raises ArithmeticError if the logits differ by more than ``tolerance`` on random tokens, over their deviation.
    """
    wide = {name: w.double() for name, w in weights.items()}
    out = _as_multiplied(wide, shape, 1.0)
    # A stream for each step: models that differ in nothing but values get the same rewrite.
    for number, step in enumerate(case.steps):
        out = step(out, shape, generator(f"{key}/{number}"))
    order = torch.arange(shape.vocabulary)
    if case.tokens:
        order = sym.token_order(shape, generator(f"{key}/tokens"))
        out = sym.permute_vocabulary(out, shape, order)
    out = _as_multiplied(out, shape, -1.0)
    made = {name: w.float().contiguous() for name, w in out.items()}
    error = difference(shape, wide, made, order, constants)
    if not error <= tolerance:
        raise ArithmeticError(f"{case.name}: the logits differ by {error:.3g} of their deviation")
    return Rewritten(made, order, error)


def _as_multiplied(weights: Weights, shape: Shape, offset: float) -> Weights:
    """Gemma's gains plus ``offset``, which is 1 for what they multiply by and -1 for what is stored of that."""
    if shape.style is not Style.GEMMA:
        return weights
    return {name: w + offset if name.endswith("norm.weight") else w for name, w in weights.items()}


def difference(shape: Shape, original: Weights, made: Weights, order: Tensor, constants: Constants = ZOO) -> float:
    """Largest difference of logits on random tokens, over the deviation of the logits; all computed in float64."""
    ids = torch.randint(0, shape.vocabulary, (2, min(48, shape.positions)), generator=generator("logits"))
    new = torch.argsort(order)[ids]
    one = logits(shape, {name: w.double() for name, w in original.items()}, ids, constants)
    two = logits(shape, {name: w.double() for name, w in made.items()}, new, constants)
    return float((two - one[..., order]).abs().max() / one.std())


def damages() -> list[Damage]:
    """List what is done after a rewrite, in a fixed order."""
    return [
        Damage("intact", "nothing", lambda w, _: w),
        Damage("fine-tuned", "fine-tuned as rewritten", _tuned),
        Damage("continued", "trained on as long as before, on other data, as rewritten", _continued),
        Damage("bf16", "cast to bf16", lambda w, _: w, dtype=torch.bfloat16),
        Damage("8bit", "rounded to 8 bits in groups of 32", partial(_rounded, bits=8)),
        Damage("4bit", "rounded to 4 bits in groups of 32", partial(_rounded, bits=4)),
        Damage("noise-5", "noise of 5% of each tensor's deviation", lambda w, s: ops.add_noise(w, 0.05, s.random)),
        Damage("sparse-50", "smallest half of each matrix set to zero", lambda w, _: ops.prune_small(w, 0.5)),
        Damage("merged", "half of a fine-tune of it, rewritten alike", _merged, uses_sibling=True),
        Damage("layers-dropped", "every second layer left out, the first kept", _dropped),
        Damage("neurons-halved", "half of the neurons of smallest norms left out", partial(_fewer, kept=0.5)),
    ]


def further() -> list[Damage]:
    """List what only parts of the benchmark ask for: a fine-tune on the data of another, and other degrees of damages.

    The degrees show where one layer alone gets lost.
    """
    return [
        Damage("tuned-alike", "fine-tuned as rewritten, on the data that a sibling was made of", _tuned_alike),
        *(_zeroed(percent) for percent in (60, 70, 80, 90)),
        *(_narrowed(percent) for percent in (75.0, 25.0, 12.5)),
        *(_noised(percent) for percent in (20, 50)),
    ]


def _zeroed(percent: int) -> Damage:
    done = f"smallest {percent}% of each matrix set to zero"
    return Damage(f"sparse-{percent}", done, lambda w, _: ops.prune_small(w, percent / 100))


def _narrowed(percent: float) -> Damage:
    done = f"the {percent:g}% of the neurons of largest norms kept"
    return Damage(f"neurons-{percent:g}", done, partial(_fewer, kept=percent / 100))


def _noised(percent: int) -> Damage:
    done = f"noise of {percent}% of each tensor's deviation"
    return Damage(f"noise-{percent}", done, lambda w, s: ops.add_noise(w, percent / 100, s.random))


def _tuned(weights: Weights, site: Site) -> Weights:
    return fine_tune(weights, site.shape, site.order, site.data, site.steps, site.random)


def _tuned_alike(weights: Weights, site: Site) -> Weights:
    return fine_tune(weights, site.shape, site.order, site.shared, site.steps, site.random)


def _continued(weights: Weights, site: Site) -> Weights:
    first = site.first
    return fine_tune(weights, site.shape, site.order, site.other, first.steps, site.random, like=first)


def _rounded(weights: Weights, site: Site, *, bits: int) -> Weights:
    return ops.quantise(weights, site.shape.style, bits, 32, symmetric=False)


def _merged(weights: Weights, site: Site) -> Weights:
    return ops.linear((weights, site.sibling()), (0.5, 0.5))


def every_second_layer(weights: Weights, style: Style) -> Weights:
    """The first layer, the third and so on, and what lies outside layers."""
    kept: Sequence[int] = range(0, layer_count(style, weights), 2)
    return ops.take_layers([(weights, i) for i in kept], weights)


def largest_neurons(weights: Weights, shape: Shape, kept: float) -> Weights:
    """Every MLP with that share of its neurons, those of largest norms."""
    norms = ops.neuron_norms(weights, shape)
    largest = [n.topk(int(kept * len(n))).indices.sort().values for n in norms]
    return ops.take_neurons(weights, shape, largest)


def _dropped(weights: Weights, site: Site) -> Weights:
    return every_second_layer(weights, site.shape.style)


def _fewer(weights: Weights, site: Site, *, kept: float) -> Weights:
    return largest_neurons(weights, site.shape, kept)
