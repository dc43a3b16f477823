"""Deep comparisons of a real model of full size, SmolLM2-135M, after rewrites and after 4 bits on top of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.rewrites.full_size import DAMAGES, TOLERANCE, smollm2
from benchmarks.undoing.cases import KEY, Beside, compared
from benchmarks.zoo.models import generator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fingerprint.undoing.result import Undoing

REWRITE = "all-but-vocabulary"
AFTER = ("none", "4bit")


@dataclass(frozen=True, slots=True)
class Compared:
    """One comparison; seconds are of CPU time and include writing the files."""

    done: str
    found: Undoing
    seconds: float


def compare_all(cache: Path, work: Path) -> Iterator[Compared]:
    """Compare SmolLM2-135M with itself rewritten. Raises ArithmeticError if a rewrite does not compute the same."""
    model = smollm2(cache, work)
    (case,) = (one for one in rewrites(model.shape.style) if one.name == REWRITE)
    made = rewrite(model.weights, model.shape, case, KEY, model.constants, TOLERANCE).tensors
    for name in AFTER:
        damage = DAMAGES[name]
        theirs = {name: w.to(damage.dtype) for name, w in damage.apply(made, generator(KEY)).items()}
        started = time.process_time()
        found = compared(model.weights, theirs, model.shape, work, Beside.NAMES)
        label = case.done if name == "none" else f"the same, then {damage.done}"
        yield Compared(label, found, time.process_time() - started)
