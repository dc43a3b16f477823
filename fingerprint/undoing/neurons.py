"""One MLP undone: which neuron is which, its sign and scale; and what is left of gate, up and down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from fingerprint.undoing.result import Use
from fingerprint.undoing.stream import gate_partners, joint_partners, neuron_rows
from fingerprint.vectors import unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fingerprint.undoing.scores import Tally
    from fingerprint.undoing.stream import Pair, Stream

    Float32 = NDArray[np.float32]
    Int64 = NDArray[np.int64]

_SCALED: Final = 0.05
"""Logarithm of a scale from which a neuron counts as rescaled."""


class UndoneMlp(Struct, frozen=True):
    """``order`` (their neurons,) are ours, -1 for none; ``scale`` (their neurons,) is what their up is multiplied by,
    sign included, and their down divided by."""

    ours: int | None
    theirs: int | None
    order: Int64
    scale: Float32
    fitted: bool

    @property
    def moved(self) -> float:
        """Share of neurons under another number."""
        return float(np.mean(self.order != np.arange(self.order.size)))

    @property
    def negated(self) -> float:
        """Share of neurons whose up and down are negated."""
        return float(np.mean(self.scale < 0))

    @property
    def rescaled(self) -> float:
        """Share of neurons whose up and down are rescaled."""
        return float(np.mean(np.abs(np.log(np.maximum(np.abs(self.scale), 1e-30))) > _SCALED))


def undo_mlp(pair: Pair, stream: Stream, tally: Tally, *, centred: bool) -> UndoneMlp:
    """Undo one MLP and add to the tally. Raises ``InputError``.

    Of a pair that the rotation was not fitted on, neurons are put in order by their gates alone, and scales taken from
    up alone: down is held out.
    """
    mine, its = neuron_rows(pair.ours, centred=centred), neuron_rows(pair.theirs, centred=centred)
    parts = [part for part in (pair.theirs.gate, pair.theirs.up, pair.theirs.down) if part is not None]
    turned = [stream.turned(rows, writes=number == len(mine) - 1) for number, rows in enumerate(mine)]
    order, _ = joint_partners(turned, its) if pair.fitted else gate_partners(turned[0], its[0])
    scale = np.ones(len(order), np.float32)
    if len(mine) == 3:
        scale = _scales(turned[1][order], its[1])
    elif "relu" in pair.ours.activation:
        scale = np.abs(_scales(turned[0][order], its[0]))
    scale[order < 0] = 1.0
    # Gate, up and down; or fc-in, whose scale only a rectifier lets pass, and fc-out.
    factors = [np.ones_like(scale), scale, 1.0 / scale] if len(mine) == 3 else [scale, 1.0 / scale]
    last = Use.FITTED if pair.fitted else Use.HELD_OUT
    others = Use.FITTED if pair.fitted else Use.ORDERED
    for number, (part, rows, found) in enumerate(zip(parts, turned, its, strict=True)):
        predicted = rows[order] * factors[number][:, None]
        predicted[order < 0] = 0.0
        tally.add(part.role.value, last if number == len(parts) - 1 else others, found, predicted)
    return UndoneMlp(pair.ours.layer, pair.theirs.layer, order, scale, pair.fitted)


def _scales(ours: Float32, theirs: Float32) -> Float32:
    """Ratios of norms with the sign of the product: unlike least squares they shrink nothing where rows differ."""
    ratio = np.linalg.norm(theirs, axis=1) / np.maximum(np.linalg.norm(ours, axis=1), 1e-30)
    sign = np.where(np.einsum("ij,ij->i", unit_rows(ours), unit_rows(theirs)) < 0, -1.0, 1.0)
    usable = (ratio > 1e-6) & (ratio < 1e6)
    found: Float32 = np.where(usable, ratio * sign, sign).astype(np.float32)
    return found
