"""Concordance between unrelated models: calibrated by frame and kind of MLP, not exact. Frozen; see ``VERSION``.

Concordance is the share of the registered model's sampled neurons whose best partner by the gate is their best one by
up and down too (by fc-out where there is no gate). No launderer can change it for free, and between unrelated models it
is small but not zero: what models of one language have in common shows in all of their neurons.

The count of concordant neurons gets the tail of a negative binomial law. Its rate is ``SAFETY`` times the mean that was
seen between independently trained small models of the style that has the largest, its dispersion twice that seen (at
the number of neurons counted there; it grows with the number, as that of a rate that differs from pair to pair). Both
factors are a judgement.

Units of convolutions count where they and their partners prefer each other to all others by much, and the number that
do depends on that of the layers: the more units a layer has, the fewer of them stand apart from all others.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from msgspec import Struct

from fingerprint.comparing.evidence import LN10
from fingerprint.vocabulary import Frame

VERSION: Final = 3
"""Of the constants below; named in the evidence."""
SAFETY: Final = 1.5
FLOOR: Final = -9.0
"""No p-value of a comparison is believed below this (log10), before correction for the number of registered models."""
_LEAST_DISPERSION: Final = 2.0
_ROUNDING: Final = 1e-6
"""A count that was a mean of shares falls short of a whole number by less."""
_SPREADS: Final = 40.0
_DECAYS: Final = 60.0
"""How far a tail is summed, in standard deviations and in lengths over which its terms fall by e."""


class Rate(Struct, frozen=True):
    """Concordance seen between unrelated models: mean share of the neurons, or number in each layer if ``by_layer``;
    variance over mean of the count among ``number`` neurons or layers."""

    mean: float
    dispersion: float
    number: int
    by_layer: bool = False


RATES: Final = {
    (Frame.ANCHORS, True): Rate(0.0460, 1.03, 288),
    (Frame.ANCHORS, False): Rate(0.0357, 1.24, 288),
    (Frame.POSITIONS, False): Rate(0.0581, 1.0, 288),
    (Frame.SELF, True): Rate(0.0462, 1.29, 384),
    (Frame.SELF, False): Rate(0.0672, 1.35, 384),
    (Frame.UNITS, False): Rate(0.2, 1.2, 3, by_layer=True),
    (Frame.UNITS, True): Rate(0.0104, 1.11, 384),
}
"""By frame, and whether the MLPs are gated: the largest of the means of a style, since a suspect without names does
not say of which it is. Measured on populations of a Llama- and a GPT-2-style recipe (40 seeds each of several
families), of a Gemma- and a BERT-style one (24 seeds), all ordered pairs, width 64, 96 neurons a layer in 3 layers,
suspects rewritten and without names too: ``docs/benchmarks/concordance.md``. Anchors of gated MLPs are those of
Gemma, whose mean is three times that of Llama, and positions those of BERT, ten times that of GPT-2. The frames
``self`` keep what an earlier alignment left, which is twice what today's does. Of units: 792 ordered pairs of LSTMs
and of GRUs of two levels, largest share .031, the mean being that of the GRUs; and 1,848 of convolutional networks of
four recipes (16 to 128 channels in three or four layers), suspects rewritten, rounded, trained on, pruned and halved:
the largest of the means of a recipe and a damage."""
_WORST: Final = Rate(0.0672, 1.59, 384)
"""For what was not measured."""


def concordance_log10_p(frame: str, concordant: float, neurons: int, *, gated: bool, layers: int = 1) -> float:
    """log10 of the probability of at least ``concordant`` of ``neurons`` in ``layers`` between unrelated models, not
    floored."""
    rate = next((found for (name, kind), found in RATES.items() if name == frame and kind is gated), _WORST)
    if neurons < 1 or concordant < 1:
        return 0.0
    number = layers if rate.by_layer else neurons
    mean = SAFETY * rate.mean * number
    doubled = 2.0 * rate.dispersion
    dispersion = max(_LEAST_DISPERSION, doubled, 1.0 + (doubled - 1.0) * number / rate.number)
    size = mean / (dispersion - 1.0)
    return _log10_tail(math.floor(concordant + _ROUNDING), size, 1.0 - 1.0 / dispersion)


def _log10_tail(count: int, size: float, ratio: float) -> float:
    """log10 of the probability that a negative binomial count is ``count`` or more.

    ``P(X = k)`` falls like ``ratio`` to the k in the end, and ``size`` is the number of successes. Summed in log space
    from the first term on: the incomplete beta function would underflow, and takes .2 s to import.
    """
    mean = size * ratio / (1.0 - ratio)
    terms = max(0.0, mean - count) + _SPREADS * math.sqrt(mean / (1.0 - ratio)) + _DECAYS / (1.0 - ratio)
    first = math.lgamma(count + size) - math.lgamma(count + 1) - math.lgamma(size)
    first += count * math.log(ratio) + size * math.log1p(-ratio)
    k = np.arange(count, count + math.ceil(terms), dtype=np.float64)
    later = np.cumsum(np.log((k + size) / (k + 1.0)) + math.log(ratio))
    most = max(0.0, float(later.max(initial=0.0)))
    total = math.exp(-most) + float(np.exp(later - most).sum())
    return min(0.0, (first + most + math.log(total)) / LN10)
