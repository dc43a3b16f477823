"""Parameters of Flax as PyTorch stores the same weights: order of axes and names.

Flax multiplies from the right, (in, out), puts the channels of kernels last, and calls a parameter after what it does,
``kernel``, ``scale``, ``embedding`` (flax/linen: linear.py, attention.py, normalization.py). A transposed convolution
is not told apart from others by its parameters and is turned as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fingerprint.readers.packed import Permuted
from fingerprint.tensors import Reshaped, TensorView, Transposed, renamed

if TYPE_CHECKING:
    from collections.abc import Iterable

_TORCH = {"embedding": "weight", "kernel": "weight", "scale": "weight"}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_HEADS = ("query", "key", "value")
_MOST_AXES = 5


def as_in_torch(tensors: Iterable[TensorView]) -> tuple[TensorView, ...]:
    """``tensors`` of one checkpoint, named by their keys joined with dots, with PyTorch's axes under PyTorch's names.

    Where two would have one name, both keep Flax's.
    """
    views = list(tensors)
    names = {view.name for view in views}
    turned = [_named(_arranged(view, names), view.name) for view in views]
    counts: dict[str, int] = {}
    for view in turned:
        counts[view.name] = counts.get(view.name, 0) + 1
    return tuple(
        view if counts[view.name] == 1 else renamed(view, old.name) for view, old in zip(turned, views, strict=True)
    )


def _arranged(view: TensorView, names: set[str]) -> TensorView:
    rank = len(view.shape)
    path, _, variable = view.name.rpartition(".")
    if not 2 <= rank <= _MOST_AXES or min(view.shape) <= 0:
        return view
    above, _, owner = f".{path}".rpartition(".")
    above = f"{above[1:]}." if above else ""
    # The heads of linen's attention are an axis of their own; a convolution has no such neighbours.
    attention = owner in {*_HEADS, "out"} and all(f"{above}{one}.kernel" in names for one in (*_HEADS, "out"))
    if variable == "bias" and attention:
        return Reshaped(view, view.name, (math.prod(view.shape),))
    if variable != "kernel":
        return view
    if rank == 2:
        return Transposed(view, view.name)
    if rank == 3 and attention:
        first, second, third = view.shape
        flat = (first * second, third) if owner == "out" else (first, second * third)
        return Transposed(Reshaped(view, view.name, flat), view.name)
    return Permuted(view, view.name, (rank - 1, rank - 2, *range(rank - 2)))


def _named(view: TensorView, old: str) -> TensorView:
    owner, _, variable = old.rpartition(".")
    told = _TORCH.get(variable) or (_STATISTICS.get(variable) if "batch_stats" in owner.split(".") else None)
    return view if told is None or not owner else renamed(view, f"{owner}.{told}")
