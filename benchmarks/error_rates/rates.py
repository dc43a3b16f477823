"""Shares of small p-values, their bootstrap by root of the models, and whether "at most alpha" is rejected."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

ALPHAS = (0.1, 0.01, 0.001)
REPLICATES = 4000
REJECTS_AT = 0.001
_ROUNDING = 1e-9


@dataclass(slots=True)
class Sample:
    """Uncorrected p-values of one test in one stratum.

    Each entry of ``log10_p`` is an array of the comparisons between the registered and the suspect model of the same
    place in ``registered`` and ``suspect`` (the names of their roots: a model and its fine-tune have the same coins and
    nearly the same rows, and are no two draws). ``replicates``: the entries are independent draws from the null,
    whatever the models, so the bootstrap draws entries instead of roots.
    """

    registered: list[str] = field(default_factory=list)
    suspect: list[str] = field(default_factory=list)
    log10_p: list[NDArray[np.float64]] = field(default_factory=list)
    replicates: bool = False

    def add(self, registered: str, suspect: str, log10_p: NDArray[np.float64]) -> None:
        """Add the comparisons of one pair of models."""
        if log10_p.size:
            self.registered.append(registered)
            self.suspect.append(suspect)
            self.log10_p.append(np.asarray(log10_p, np.float64))

    def extend(self, other: Sample) -> None:
        """Add those of another sample of the same test and stratum."""
        self.registered += other.registered
        self.suspect += other.suspect
        self.log10_p += other.log10_p

    @property
    def comparisons(self) -> int:
        """Number of p-values."""
        return sum(one.size for one in self.log10_p)

    @property
    def distinct_share(self) -> float:
        """Distinct pairs of roots among the entries; 1 for replicates."""
        pairs = set(zip(self.registered, self.suspect, strict=True))
        return 1.0 if self.replicates or not pairs else len(pairs) / len(self.log10_p)

    def values(self) -> NDArray[np.float64]:
        """All p-values (log10), in one array."""
        return np.concatenate(self.log10_p) if self.log10_p else np.zeros(0)


@dataclass(frozen=True, slots=True)
class Rate:
    """Share of comparisons with p <= alpha; its 95% interval by bootstrap over roots (or replicates).

    ``rejected``: "at most alpha" is refuted, by the bootstrap's lower bound and by the binomial law together, each at
    level .001. The bootstrap knows that comparisons of one root go together, the binomial how few hits there are; it
    counts the comparisons of one pair of roots as often as one pair of models has them.
    """

    alpha: float
    hits: int
    comparisons: int
    share: float
    low: float
    high: float
    rejected: bool


def rates(sample: Sample, seed: int = 0) -> list[Rate]:
    """The shares at every alpha of ``ALPHAS``."""
    counts = _resampled(sample, seed)
    total = counts([one.size for one in sample.log10_p])
    found = []
    for alpha in ALPHAS:
        small = [int(np.count_nonzero(one <= np.log10(alpha) + _ROUNDING)) for one in sample.log10_p]
        shares = counts(small)[total > 0] / total[total > 0]
        count = sum(small)
        low, high = np.quantile(shares, [0.025, 0.975])
        least = float(np.quantile(shares, REJECTS_AT))
        distinct = sample.distinct_share
        expected = round(sample.comparisons * distinct)
        unlikely = float(binom.sf(math.ceil(count * distinct) - 1, expected, alpha)) < REJECTS_AT
        found.append(
            Rate(
                alpha,
                count,
                sample.comparisons,
                count / sample.comparisons,
                float(low),
                float(high),
                bool(unlikely and least > alpha),
            )
        )
    return found


def _resampled(sample: Sample, seed: int) -> Callable[[Sequence[int]], NDArray[np.float64]]:
    """A function from a number for each entry to its sum over the entries drawn, for each bootstrap replicate.

    Drawing models, an entry counts as often as its two models were drawn, multiplied.
    """
    rng = np.random.default_rng(seed)
    if sample.replicates:
        entries = len(sample.log10_p)
        weights = rng.multinomial(entries, np.full(entries, 1.0 / entries), size=REPLICATES).astype(np.float32)
        return lambda numbers: (weights @ np.array(numbers, np.float32)).astype(np.float64)
    names = sorted({*sample.registered, *sample.suspect})
    number = {name: i for i, name in enumerate(names)}
    places = [number[name] for name in sample.registered], [number[name] for name in sample.suspect]
    draws = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=REPLICATES).astype(np.float64)

    def by_models(numbers: Sequence[int]) -> NDArray[np.float64]:
        cells = np.zeros((len(names), len(names)))
        np.add.at(cells, places, numbers)
        result: NDArray[np.float64] = np.einsum("bi,bi->b", draws @ cells, draws)
        return result

    return by_models


def table(samples: Mapping[tuple[str, str], Sample]) -> dict[tuple[str, str], list[Rate]]:
    """The rates of every test and stratum that has comparisons."""
    return {key: rates(sample) for key, sample in samples.items() if sample.comparisons}
