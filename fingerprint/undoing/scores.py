"""What is left after undoing: sums of squares by kind of tensor and by what had been fitted on them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from fingerprint.undoing.algebra import relative
from fingerprint.undoing.result import Residual

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fingerprint.undoing.result import Use

    Floats = NDArray[np.floating]


class Tally:
    """Adds up squares."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, Use], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0, 0.0])

    def add(self, kind: str, use: Use, theirs: Floats, predicted: Floats) -> None:
        """Rows of one tensor, and what they should be."""
        if not theirs.size:
            return
        wide = theirs.astype(np.float64)
        moved = np.roll(predicted, 1, axis=0)
        self.add_squares(
            kind,
            use,
            float(np.sum((wide - predicted) ** 2)),
            float(np.sum((wide - moved) ** 2)),
            float(np.sum(wide**2)),
            theirs.size,
        )

    def add_squares(self, kind: str, use: Use, error: float, control: float, size: float, elements: int) -> None:
        """Squares that are known already."""
        sums = self._sums[kind, use]
        for place, value in enumerate((error, control, size, 1.0, float(elements))):
            sums[place] += value

    def residuals(self) -> tuple[Residual, ...]:
        """All of them, by kind and use."""
        found = []
        for (kind, use), (error, control, size, tensors, elements) in sorted(self._sums.items()):
            found.append(
                Residual(kind, use.value, relative(error, size), relative(control, size), int(tensors), int(elements))
            )
        return tuple(found)

    def total(self, use: Use) -> tuple[float, float, int] | None:
        """Residual, control and elements of all tensors (not circuits) of one use; None without any."""
        chosen = [sums for (kind, one), sums in self._sums.items() if one is use and not kind.endswith("circuit")]
        if not chosen:
            return None
        error, control, size, _, elements = (sum(column) for column in zip(*chosen, strict=True))
        return relative(error, size), relative(control, size), int(elements)
