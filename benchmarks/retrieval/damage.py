"""What is done to a registered model to make a suspect of it: damage, parts of it, other names; numpy alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.retrieval.invented import Arrays, tuned
from benchmarks.retrieval.rewrites import rotated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.random import Generator

    from benchmarks.retrieval.invented import Float32

    Damage = Callable[[Arrays, Arrays, Generator], Arrays]

_LAYER = re.compile(r"\.(\d+)\.")
LEAST_MATRIX = 4096
"""Elements of the smallest matrix that is shown alone."""


def _each(weights: Mapping[str, Float32], change: Callable[[Float32], Float32]) -> Arrays:
    return {name: change(value).astype(np.float32) if value.ndim == 2 else value for name, value in weights.items()}


def noise(weights: Arrays, share: float, random: Generator) -> Arrays:
    """Gaussian noise of ``share`` times each matrix's deviation."""
    return _each(weights, lambda w: w + share * w.std() * random.standard_normal(w.shape))


def pruned(weights: Arrays, share: float) -> Arrays:
    """The smallest ``share`` of each matrix set to zero."""
    return _each(weights, lambda w: np.where(np.abs(w) <= np.quantile(np.abs(w), share), 0.0, w))


def quantised(weights: Arrays, bits: int) -> Arrays:
    """Rounded to ``bits`` in each row, symmetric."""
    top = (1 << bits - 1) - 1

    def rounded(w: Float32) -> Float32:
        scale = np.maximum(np.abs(w).max(axis=1, keepdims=True), 1e-12) / top
        whole: Float32 = np.rint(w / scale) * scale
        return whole

    return _each(weights, rounded)


def merged(weights: Arrays, other: Arrays, share: float) -> Arrays:
    """``share`` of the one and the rest of the other; what the other lacks, or has in another shape, stays."""
    return {
        name: (share * value + (1 - share) * other[name]).astype(np.float32)
        if name in other and other[name].shape == value.shape
        else value
        for name, value in weights.items()
    }


def shard(weights: Arrays, random: Generator) -> Arrays:
    """A third of the tensors, neighbours in the order of their names, with two matrices or more."""
    names = sorted(weights)
    size = max(2, len(names) // 3)
    while True:
        start = int(random.integers(len(names) - size + 1))
        chosen = names[start : start + size]
        if sum(weights[name].ndim == 2 for name in chosen) >= 2:
            return {name: weights[name] for name in chosen}


def one_layer(weights: Arrays, random: Generator) -> Arrays:
    """All tensors of one layer."""
    layers = sorted({match[1] for name in weights if (match := _LAYER.search(name))})
    chosen = layers[int(random.integers(len(layers)))]
    return {name: w for name, w in weights.items() if (match := _LAYER.search(name)) and match[1] == chosen}


def one_matrix(weights: Arrays, random: Generator) -> Arrays:
    """One matrix of a layer that is not too small."""
    names = sorted(n for n, w in weights.items() if w.ndim == 2 and w.size >= LEAST_MATRIX and _LAYER.search(n))
    chosen = names[int(random.integers(len(names)))]
    return {chosen: weights[chosen]}


def transposed(weights: Arrays) -> Arrays:
    """All matrices stored the other way round."""
    return _each(weights, lambda w: np.ascontiguousarray(w.T))


DAMAGE: dict[str, Damage] = {
    "renamed": lambda w, _o, _r: w,
    "transposed": lambda w, _o, _r: transposed(w),
    "half precision": lambda w, _o, _r: {name: v.astype(np.float16).astype(np.float32) for name, v in w.items()},
    "8 bits": lambda w, _o, _r: quantised(w, 8),
    "4 bits": lambda w, _o, _r: quantised(w, 4),
    "3 bits": lambda w, _o, _r: quantised(w, 3),
    "pruned 50%": lambda w, _o, _r: pruned(w, 0.5),
    "pruned 80%": lambda w, _o, _r: pruned(w, 0.8),
    "noise 20%": lambda w, _o, r: noise(w, 0.2, r),
    "noise 100%": lambda w, _o, r: noise(w, 1.0, r),
    "fine-tuned": lambda w, _o, r: tuned(w, 0.1, r),
    "trained on": lambda w, _o, r: tuned(w, 0.6, r),
    "merged 70/30": lambda w, o, _r: merged(w, o, 0.7),
    "shard": lambda w, _o, r: shard(w, r),
    "shard, 4 bits": lambda w, _o, r: shard(quantised(w, 4), r),
    "layer": lambda w, _o, r: one_layer(w, r),
    "layer, fine-tuned": lambda w, _o, r: one_layer(tuned(w, 0.3, r), r),
    "layer, transposed": lambda w, _o, r: transposed(one_layer(w, r)),
    "layer, noise 100%": lambda w, _o, r: one_layer(noise(w, 1.0, r), r),
    "matrix": lambda w, _o, r: one_matrix(w, r),
    "matrix, 4 bits": lambda w, _o, r: one_matrix(quantised(w, 4), r),
    "matrix, pruned 50%": lambda w, _o, r: one_matrix(pruned(w, 0.5), r),
    "matrix, fine-tuned": lambda w, _o, r: one_matrix(tuned(w, 0.3, r), r),
    "matrix, noise 100%": lambda w, _o, r: one_matrix(noise(w, 1.0, r), r),
    "rotated": lambda w, _o, r: rotated(w, r),
    "rotated, 4 bits": lambda w, _o, r: quantised(rotated(w, r), 4),
    "rotated, fine-tuned": lambda w, _o, r: tuned(rotated(w, r), 0.1, r),
    "rotated, trained on": lambda w, _o, r: tuned(rotated(w, r), 0.6, r),
    "rotated, noise 20%": lambda w, _o, r: noise(rotated(w, r), 0.2, r),
    "rotated, pruned 50%": lambda w, _o, r: pruned(rotated(w, r), 0.5),
    "rotated, merged 70/30": lambda w, o, r: rotated(merged(w, o, 0.7), r),
}


def disguised(weights: Arrays, random: Generator) -> Arrays:
    """Random names, in random order."""
    names: Sequence[str] = random.permutation(sorted(weights)).tolist()
    return {f"{random.integers(1 << 40):010x}": weights[name] for name in names}
