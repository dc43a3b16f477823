"""What a test says: its statistic, its p-value with the null hypothesis behind it, and how often it was tried."""

from __future__ import annotations

import math
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Mapping

LN10: Final = math.log(10.0)


class Test(StrEnum):
    """The tests."""

    __test__ = False  # not for pytest

    DIGEST = "digest"
    ALIGN = "align"
    SKETCH = "sketch"
    ROWS = "rows"
    GAUGE = "gauge"
    EVEN = "even"


class Null(StrEnum):
    """What a p-value rests on.

    ``CRYPTOGRAPHIC``: two different tensors do not share a digest. ``EXACT``: a symmetry of initialisation and training
    makes the null distribution known for any unrelated suspect. ``CALIBRATED``: a tail fitted to unrelated models.
    """

    CRYPTOGRAPHIC = "cryptographic"
    EXACT = "exact"
    CALIBRATED = "calibrated"


def looks(test: Test) -> int:
    """By how much a p-value is multiplied because a model is tried with every test at every depth.

    A weighted correction (Bonferroni's; Genovese, Roeder & Wasserman 2006), fixed beforehand: of the error three
    quarters, rounded down, are for ``EVEN``, which needs them, at the two depths that know it, and a twentieth for each
    of the five others at three depths.
    """
    return 3 if test is Test.EVEN else 60


class Evidence(Struct, frozen=True):
    """One test's result for one registered model.

    ``log10_p`` is corrected for the ``trials`` among which this result is the best, those of ``looks`` among them, and
    never above 0.
    """

    test: Test
    null: Null
    statistic: float
    log10_p: float
    trials: int
    detail: Mapping[str, float | int | str] = field(default_factory=lambda: MappingProxyType({}))

    def corrected(self, factor: int) -> Evidence:
        """The same result as the best among ``factor`` times as many trials."""
        log10_p = min(0.0, self.log10_p + math.log10(factor))
        return replace(self, log10_p=log10_p, trials=self.trials * factor)


def bonferroni(log10_p: float, trials: int) -> float:
    """log10 of the p-value after correction for ``trials`` tries (Bonferroni), at most 0."""
    return min(0.0, log10_p + math.log10(max(trials, 1)))
