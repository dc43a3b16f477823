"""Shares of small p-values, their bootstrap by model, and whether "at most alpha" is rejected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

if TYPE_CHECKING:
    from collections.abc import Mapping

ALPHAS = (0.1, 0.01, 0.001)
REPLICATES = 4000
REJECTS_AT = 0.001
_ROUNDING = 1e-9


@dataclass(slots=True)
class Sample:
    """Uncorrected p-values of one test in one stratum.

    Each entry of ``log10_p`` is an array of the comparisons between the registered and the suspect model of the same
    place in ``registered`` and ``suspect`` (names).
    """

    registered: list[str] = field(default_factory=list)
    suspect: list[str] = field(default_factory=list)
    log10_p: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, registered: str, suspect: str, log10_p: NDArray[np.float64]) -> None:
        """Add the comparisons of one pair of models."""
        if log10_p.size:
            self.registered.append(registered)
            self.suspect.append(suspect)
            self.log10_p.append(np.asarray(log10_p, np.float64))

    @property
    def comparisons(self) -> int:
        """Number of p-values."""
        return sum(one.size for one in self.log10_p)

    def values(self) -> NDArray[np.float64]:
        """All p-values (log10), in one array."""
        return np.concatenate(self.log10_p) if self.log10_p else np.zeros(0)


@dataclass(frozen=True, slots=True)
class Rate:
    """Share of comparisons with p <= alpha; its 95% interval by bootstrap over models.

    ``rejected``: "at most alpha" is refuted, by the bootstrap's lower bound and by the binomial law together, each at
    level .001. The bootstrap knows that comparisons of one model go together; the binomial knows how few hits there are.
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
    names = sorted({*sample.registered, *sample.suspect})
    number = {name: i for i, name in enumerate(names)}
    rows = np.array([number[name] for name in sample.registered])
    columns = np.array([number[name] for name in sample.suspect])
    sizes = np.zeros((len(names), len(names)))
    np.add.at(sizes, (rows, columns), [one.size for one in sample.log10_p])
    weights = _draws(len(names), seed)
    total = _weighted(weights, sizes)
    found = []
    for alpha in ALPHAS:
        small = [int(np.count_nonzero(one <= np.log10(alpha) + _ROUNDING)) for one in sample.log10_p]
        hits = np.zeros_like(sizes)
        np.add.at(hits, (rows, columns), small)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = (_weighted(weights, hits) / total)[total > 0]
        count = sum(small)
        low, high = np.quantile(shares, [0.025, 0.975])
        least = float(np.quantile(shares, REJECTS_AT))
        unlikely = float(binom.sf(count - 1, sample.comparisons, alpha)) < REJECTS_AT
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


def _draws(models: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return rng.multinomial(models, np.full(models, 1.0 / models), size=REPLICATES).astype(np.float64)


def _weighted(weights: NDArray[np.float64], cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over pairs of models of the cell times how often both were drawn."""
    result: NDArray[np.float64] = np.einsum("bi,bi->b", weights @ cells, weights)
    return result


def table(samples: Mapping[tuple[str, str], Sample]) -> dict[tuple[str, str], list[Rate]]:
    """The rates of every test and stratum that has comparisons."""
    return {key: rates(sample) for key, sample in samples.items() if sample.comparisons}
