"""Uncorrected p-values of the tests in frames that move with the residual stream, between two unrelated models."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from fingerprint.comparing.gauge import NEURONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from benchmarks.error_rates.population import Model
    from benchmarks.error_rates.procedures import Procedures
    from fingerprint.records import Fingerprint

GAUGE = "gauge, one MLP in one frame"
CHANNELS = "gauge, attention channels of one frame"
EVEN = "even, one frame"
OWN_FRAME_PAIRS = 1000
"""Pairs whose layers are aligned in their own frames as well, which takes ten times as long as everything else."""


def with_own_frames(
    pairs: Sequence[tuple[str, Model, Model]], most: int = OWN_FRAME_PAIRS
) -> frozenset[tuple[str, str]]:
    """Identifiers of a fixed random part of the pairs (all, if they are few), each direction once."""
    once = sorted({(a.id, b.id) for _, a, b in pairs}, key=_shuffled)
    return frozenset(once[:most])


def _shuffled(pair: tuple[str, str]) -> bytes:
    return hashlib.sha256("|".join(pair).encode()).digest()


def gauge_p(
    registered: Model, suspect: Model, procedures: Procedures, *, own_frames: bool
) -> dict[str, NDArray[np.float64]]:
    """log10 p by test: of the coins of neurons and of channels, and of concordance, each frame and kind by itself."""
    usable = procedures.usable(registered.registered.neurons)
    found = procedures.gauge(registered.registered, suspect.suspect, usable, own_frames=own_frames)
    tosses = [procedures.toss([match], usable) for frame in found.frames for match in frame.matches]
    return {
        GAUGE: _array(one.log10_p for one in tosses if one.coins),
        CHANNELS: _array(one.toss.log10_p for one in found.tests if one.kind != NEURONS),
        EVEN: _array(min(0.0, one.log10_p) for one in found.frames),
    }


def channels_p(registered: Fingerprint, suspect: Fingerprint, procedures: Procedures) -> NDArray[np.float64]:
    """log10 p of the coins of attention channels, each frame and kind by itself."""
    found = procedures.gauge(replace(registered, neurons=()), suspect, (), own_frames=False)
    return _array(one.toss.log10_p for one in found.tests)


def _array(values: Iterable[float]) -> NDArray[np.float64]:
    return np.array(list(values), np.float64)
