"""Norm gains, to be folded into the matrices behind them: which gain each reads, and what it multiplies by.

``norm(x) * gain`` before a linear layer is the same network as ``norm(x)`` before a layer whose columns were multiplied
by the gain, so gains can be moved and scaled for free, and coordinates are taken of the folded matrices. A norm without
a gain, or with one of equal entries, counts as folded already. Some families store ``gain - 1``: nothing but zeros is a
gain of theirs that was folded, as it would otherwise switch off all behind it. Norms behind a layer (on what it writes)
cannot be moved and are left alone.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from fingerprint.dtypes import to_float32
from fingerprint.vectors import median
from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor, Layout
    from fingerprint.tensors import TensorView

    Float64 = NDArray[np.float64]

MLP_READERS: Final = frozenset({Role.GATE, Role.UP, Role.FC_IN, Role.ROUTER})
ATTENTION_READERS: Final = frozenset({Role.QUERY, Role.KEY, Role.VALUE, Role.LATENT_DOWN})

_BEFORE_ATTENTION: Final = frozenset(
    {"input_layernorm", "attention_norm", "attn_norm", "ln_1", "ln1", "norm_1", "norm1", "layer_norm1",
     "self_attn_layer_norm", "layernorm_before", "attention_layernorm"}
)  # fmt: skip
_BEFORE_MLP: Final = frozenset(
    {"pre_feedforward_layernorm", "ffn_norm", "mlp_norm", "ln_2", "ln2", "norm_2", "norm2", "layer_norm2",
     "final_layer_norm", "layernorm_after"}
)  # fmt: skip
_BEHIND: Final = frozenset(
    {"post_feedforward_layernorm", "post_ffw_norm", "post_attention_norm", "attn_output_norm", "layer_output_norm"}
)
_EITHER: Final = "post_attention_layernorm"
"""Before the MLP, but behind attention where the MLP has a norm of its own before or behind it."""
_FROM_ONE: Final = 1e-3
_NEGATIVE: Final = 0.05
_SOME_NEGATIVE: Final = 0.01


class Gains(Struct, frozen=True):
    """The gains of one checkpoint.

    ``values`` (width,) float64 by position of the vector; ``read_by`` is the position of the gain that each matrix
    reads, by the matrix's own; ``offsets`` are what may have to be added to the stored numbers, the likelier first.
    """

    values: Mapping[int, Float64]
    read_by: Mapping[int, int]
    offsets: tuple[float, ...]

    def known(self, matrix: int, offset: float, width: int) -> Float64 | None:
        """The gain in front of a matrix as it is, (width,); None where none is known."""
        stored = self.values.get(self.read_by.get(matrix, -1))
        return None if stored is None or stored.size != width else stored + offset

    def of(self, matrix: int, offset: float, width: int) -> Float64:
        """What the columns of a matrix are multiplied by, (width,): ones where no gain is known or it is constant."""
        gain = self.known(matrix, offset, width)
        if gain is None:
            return np.ones(width)
        size = float(np.abs(gain).mean())
        if not 0.0 < size < np.inf or np.abs(gain - gain.mean()).max() <= _FROM_ONE * size:
            return np.ones(width)
        # In units of its own size: only directions are compared.
        units: Float64 = gain / size
        return units


def find_gains(layout: Layout, read_by: Mapping[int, int], *, offset: bool | None) -> Gains:
    """Read the gains that some matrix reads. ``offset`` says whether ``gain - 1`` is stored, None if that is not known.

    Raises ``InputError``.
    """
    values = {position: _read(layout.tensors[position].view) for position in sorted(set(read_by.values()))}
    return Gains(values, read_by, _offsets(list(values.values()), offset))


def reading_by_names(tensors: Sequence[CanonicalTensor]) -> dict[int, int]:
    """For each matrix that reads a norm's output the position of the gain, as names and layers tell."""
    layers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for position, tensor in enumerate(tensors):
        if tensor.layer is not None:
            layers[tensor.stack, tensor.layer].append(position)
    found: dict[int, int] = {}
    for positions in layers.values():
        gains = {
            _word(tensors[position].name): position
            for position in positions
            if tensors[position].role is Role.NORM_GAIN and tensors[position].axes[0] in {Axis.RESIDUAL, Axis.CHANNEL}
        }
        gains = {word: position for word, position in gains.items() if _is_placed(word)}
        if not gains:
            continue
        attention, mlp = _placed(gains)
        for position in positions:
            role = tensors[position].role
            gain = mlp if role in MLP_READERS else attention if role in ATTENTION_READERS else None
            if gain is not None:
                found[position] = gain
    return found


def _is_placed(word: str) -> bool:
    return word in _BEFORE_ATTENTION or word in _BEFORE_MLP or word in _BEHIND or word == _EITHER


def _placed(gains: Mapping[str, int]) -> tuple[int | None, int | None]:
    """The gains before attention and before the MLP of one layer; the only one there is serves both."""
    behind = any(word in _BEHIND for word in gains)
    attention = next((gains[word] for word in sorted(gains) if word in _BEFORE_ATTENTION), None)
    mlp = next((gains[word] for word in sorted(gains) if word in _BEFORE_MLP), None)
    if mlp is None and _EITHER in gains and not behind:
        mlp = gains[_EITHER]
    if len(gains) == 1 and not behind:
        return attention if attention is not None else mlp, mlp if mlp is not None else attention
    return attention, mlp


def _word(name: str) -> str:
    """The module's last word: ``ln_1`` of ``transformer.h.0.ln_1.weight``."""
    words = name.split(".")
    return words[-2] if len(words) > 1 else words[-1]


def _offsets(gains: Sequence[Float64], offset: bool | None) -> tuple[float, ...]:
    """Gains grow from one and seldom below zero; stored as ``gain - 1`` they lie on both sides of it.

    A launderer may have given gains of either sign, or folded some of them, so that both readings are tried where some
    are negative or zero. Nothing but zeros can be read in one way only.
    """
    if gains and not any(gain.any() for gain in gains):
        return (1.0,)
    if max((float(np.mean(gain <= 0)) for gain in gains), default=0.0) < _SOME_NEGATIVE:
        return (1.0, 0.0) if offset else (0.0,)
    shares = [float(np.mean(gain < 0)) if gain.any() else 1.0 for gain in gains]
    likely = median(shares) > _NEGATIVE if offset is None else offset
    return (1.0, 0.0) if likely else (0.0, 1.0)


def says_offset(hints: Mapping[str, str]) -> bool | None:
    """Whether the configuration names a family that stores ``gain - 1``; None if it names no family."""
    named = [value.lower() for key, value in hints.items() if key.rsplit(".", 1)[-1] in _FAMILY_KEYS]
    if not named:
        return None
    return any(family in value for value in named for family in _OFFSET_FAMILIES)


_FAMILY_KEYS: Final = frozenset({"model_type", "architectures", "architecture"})
_OFFSET_FAMILIES: Final = ("gemma", "qwen3_next", "qwen3next", "qwen35", "nemotron")


def has_layer_norm(tensors: Iterable[CanonicalTensor]) -> bool:
    """Whether norms subtract the mean over the residual stream, as their having biases tells."""
    return any(tensor.role is Role.NORM_BIAS and tensor.axes[0] in {Axis.RESIDUAL, Axis.CHANNEL} for tensor in tensors)


def _read(view: TensorView) -> Float64:
    values = to_float32(view.read(0, view.shape[0])).astype(np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
