"""Fills a registry with models of one shape: what was measured of a real checkpoint once, with other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import asdict, replace

from signatures.identify import LEAST_CANDIDATES
from signatures.registry import Registry
from signatures.search import find_candidates
from signatures.signature import read_signature, sign

if TYPE_CHECKING:
    from pathlib import Path

    from fingerprint.records import Fingerprint

_SUSPECT: Final = 1 << 20
"""A seed that none of those has that are registered."""


def fill(registry: Path, signature: Path, count: int) -> None:
    """Register ``count`` models of the shapes of a signature's, unrelated to it and to one another."""
    like = read_signature(signature).fingerprint
    with Registry.open(registry) as held, held.together():
        for number in range(count):
            held.register(sign(unrelated(like, number)), name=f"others/{number}")


def compared(registry: Path, signature: Path) -> int:
    """With how many registered models a suspect of a signature's shapes is compared that is related to none."""
    suspect = unrelated(read_signature(signature).fingerprint, _SUSPECT)
    with Registry.open(registry) as held:
        return len(find_candidates(held, suspect, LEAST_CANDIDATES))


def unrelated(like: Fingerprint, seed: int) -> Fingerprint:
    """A fingerprint of the same shapes, names and samples in which every float and digest is drawn anew."""
    random = np.random.default_rng(seed)
    measured = {part: _drawn(getattr(like, part), random) for part in ("tensors", "neurons", "channels", "grams")}
    return replace(like, **measured)


def _drawn(value: Any, random: np.random.Generator) -> Any:
    """Arrays of floats get numbers of their own at random places, and keep their norm; digests are random; what is
    inside others is drawn likewise, and all else stays."""
    match value:
        case np.ndarray() if value.dtype.kind == "f":
            drawn = random.choice(value.reshape(-1), value.shape) if value.size else value
            return drawn * np.float32(np.linalg.norm(value) / max(float(np.linalg.norm(drawn)), 1e-30))
        case bytes():
            return random.bytes(len(value))
        case tuple():
            return tuple(_drawn(one, random) for one in value)
        case Mapping():
            return {name: _drawn(one, random) for name, one in value.items()}
        case Struct():
            return replace(value, **{name: _drawn(one, random) for name, one in asdict(value).items()})
        case _:
            return value
