"""Variables of Keras as PyTorch stores the same weights: order of axes, order of gates, names.

Keras multiplies from the right, (in, out), and puts the channels last; its GRU has the update gate first
(https://keras.io/api/layers/). A variable is told by its path: ``conv2d/kernel``, or, in files of Keras 3, by the class
of its layer and a number: ``layers/conv2d_1/vars/0``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fingerprint.readers.packed import Permuted
from fingerprint.tensors import Reshaped, RowGather, TensorView, Transposed

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBERED = {
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "cell": ("kernel", "recurrent_kernel", "bias"),
    "depthwise_conv": ("depthwise_kernel", "bias"),
    "embedding": ("embeddings",),
    "separable_conv": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "token_and_position": ("embeddings",),
    "position_embedding": ("embeddings",),
    "reversible_embedding": ("embeddings",),
    "layer_normalization": ("gamma", "beta"),
    "group_normalization": ("gamma", "beta"),
    "p_re_lu": ("alpha",),
    "rms_normalization": ("scale",),
}
"""Variables by the name of the layer's class; all other layers have a kernel and a bias."""
_TORCH = {
    "alpha": "weight", "beta": "bias", "depthwise_kernel": "weight", "embeddings": "weight", "gamma": "weight",
    "kernel": "weight", "moving_mean": "running_mean", "moving_variance": "running_var",
    "pointwise_kernel": "pointwise.weight", "recurrent_kernel": "recurrent.weight",
}  # fmt: skip
_SILENT = frozenset({"vars", "layers", "model_weights", "_layer_checkpoint_dependencies", ""})
_HEADS = frozenset({
    "query", "key", "value", "query_dense", "key_dense", "value_dense", "einsum_dense",
})  # fmt: skip
_JOINS = frozenset({"attention_output", "output_dense", "attention_output_dense"})
_ORDINAL = re.compile(r"_[0-9]{1,6}\Z")
_GATES_OF_GRU = (1, 0, 2)


def as_in_torch(view: TensorView, path: Sequence[str]) -> TensorView:
    """``view`` with its axes in PyTorch's order, under PyTorch's name; ``path`` are the words of its place."""
    words = [word.partition(":")[0] for word in path if word not in _SILENT]
    if not words:
        return view
    variable = _variable(words)
    name = _name([*words[:-1], _TORCH.get(variable, variable)])
    return _named(_arranged(view, variable, words[:-1]), name)


def _variable(words: Sequence[str]) -> str:
    """What the last word stands for: a number counts the variables of a layer of that class."""
    if not words[-1].isdigit() or len(words[-1]) > 3 or len(words) < 2:
        return words[-1]
    owner = _ORDINAL.sub("", words[-2])
    known = next((names for stem, names in _NUMBERED.items() if owner.startswith(stem)), ("kernel", "bias"))
    number = int(words[-1])
    return known[number] if number < len(known) else words[-1]


def _arranged(view: TensorView, variable: str, owners: Sequence[str]) -> TensorView:
    rank = len(view.shape)
    if not variable.endswith("kernel") or rank < 2 or min(view.shape) <= 0:
        return view
    stems = {_ORDINAL.sub("", owner) for owner in owners}
    if rank == 2:
        turned = Transposed(view, view.name)
        is_gru = any(stem == "gru" or stem.startswith("gru_cell") for stem in stems)
        return _gates(turned) if is_gru and view.shape[1] % 3 == 0 else turned
    if rank == 3 and stems & (_HEADS | _JOINS):
        first, second, third = view.shape
        flat = (first * second, third) if stems & _JOINS else (first, second * third)
        return Transposed(Reshaped(view, view.name, flat), view.name)
    if variable == "depthwise_kernel" or any(stem.startswith("depthwise_conv") for stem in stems):
        return Permuted(view, view.name, (rank - 2, rank - 1, *range(rank - 2)))
    if rank > 5:
        return view
    return Permuted(view, view.name, (rank - 1, rank - 2, *range(rank - 2)))


def _gates(view: TensorView) -> TensorView:
    height = view.shape[0] // 3
    runs = tuple((gate * height, (gate + 1) * height) for gate in _GATES_OF_GRU)
    return RowGather(view, view.name, runs)


def _name(words: Sequence[str]) -> str:
    """``tf_bert/bert/encoder/layer_._0/query/weight`` as ``tf_bert.bert.encoder.layer.0.query.weight``."""
    kept = [word for place, word in enumerate(words) if not place or word != words[place - 1]]
    return re.sub(r"\blayer_([0-9]+)\b", r"layer.\1", ".".join(kept).replace("_._", "."))


def _named(view: TensorView, name: str) -> TensorView:
    if isinstance(view, Transposed) and not isinstance(view.source, Transposed):
        return Transposed(view.source, name)
    return Reshaped(view, name, view.shape)
