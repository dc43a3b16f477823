"""The tail of the linear sketch's statistic between unrelated matrices: calibrated, not exact."""

from __future__ import annotations

import math
from typing import Final

from fingerprint.comparing.evidence import LN10

TAIL_SCALE: Final = 1.0
"""Decay length of the exponential tail, in units of the cosine's spread by chance: placeholder until calibrated."""
TAIL_START: Final = 2.0
FLOOR: Final = -9.0
"""No calibrated p-value is believed below this (log10), before correction for the number of registered models."""


def sketch_log10_p(largest: float, trials: int) -> float:
    """log10 p of the largest absolute sketch statistic among ``trials`` pairs of unrelated matrices."""
    single = -max(largest - TAIL_START, 0.0) / TAIL_SCALE / LN10
    return min(0.0, max(FLOOR, single + math.log10(max(trials, 1))))
