"""The tail of the linear sketch's statistic between unrelated matrices: calibrated, not exact.

The statistic of a pair is the larger magnitude of the sketch cosine in the two orientations, over its spread by chance.
For most pairs of unrelated trained matrices it behaves as its spread says, but not where rows and columns mean
something in both models: two token tables over one vocabulary share the direction that tells frequent tokens from rare
ones. Since a matrix does not say what it is, every pair gets a tail as heavy as theirs: exponential beyond a threshold.

Fitted on the pairs within one half of the roots of a population (width 64, 40 seeds of each of two recipes, some other
small models, ProteinMPNN) and checked on the pairs within the other half. Seen on the first half: of pairs of token
tables .36 and .10 (GPT-2 and Llama style) are above 3, the largest is 10.1, and the mean excess over 5 is at most 1.4
with generalised Pareto shapes below 0, so that an exponential of that scale decays no faster than the data; of 742,000
other pairs none is above 4.9. The constants are rounded up from that: p is 1 up to the threshold, and the scale 1.5.
"""

from __future__ import annotations

import math
from typing import Final

from fingerprint.comparing.evidence import LN10

TAIL_START: Final = 3.0
"""Where the tail begins, in units of the cosine's spread by chance: no smaller value says anything."""
TAIL_SCALE: Final = 1.5
"""Decay length of the exponential tail, in the same units."""
FLOOR: Final = -9.0
"""No calibrated p-value is believed below this (log10), before correction for the number of registered models."""


def sketch_log10_p(largest: float, trials: int) -> float:
    """log10 p of the largest sketch statistic among ``trials`` pairs of unrelated matrices.

    A pair's own p-value (one trial) is ``min(1, exp(-(largest - TAIL_START) / TAIL_SCALE))``; the largest of several is
    corrected by Bonferroni, which holds however they depend. Never below ``FLOOR``, never above 0.
    """
    single = -max(largest - TAIL_START, 0.0) / TAIL_SCALE / LN10
    return min(0.0, max(FLOOR, single + math.log10(max(trials, 1))))
