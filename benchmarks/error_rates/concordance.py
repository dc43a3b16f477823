"""``python -m benchmarks.error_rates.concordance``: what unrelated models have in common, by style and frame.

The constants of ``fingerprint/comparing/calibration.py`` were read off this command's table, off the half of each
population that is named first, and frozen; the other half checks them. Models are compared as they are, and with
suspects that were rewritten so that they compute the same and have lost their names, whose roles are then inferred.
Exit status 1 if on the halves that were held out "the share of p <= alpha is at most alpha" is refuted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.error_rates.population import REWRITE, load_zoo, nameless
from benchmarks.error_rates.rates import ALPHAS, Rate, Sample, rates
from benchmarks.zoo.models import Style
from benchmarks.zoo.recipes import STYLES
from benchmarks.zoo.recipes import family as specs_of
from fingerprint.comparing.calibration import concordance_log10_p
from fingerprint.comparing.coins import usable_coins
from fingerprint.comparing.gauge import compare_gauge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from benchmarks.error_rates.population import Model

STEM: Final = "concordance"
VARIANTS: Final = ("as they are", "rewritten, nameless")
OWN_FRAMES: Final = 6
"""Of as many pairs, one has its layers aligned in their own frames too, which takes longer than all the rest."""
ABOUT: Final = f"""Concordance ([method](../method.md)) between models of one recipe that share no training: the
populations of width 64, three layers, all ordered pairs of different seeds. Suspects *as they are*, and *rewritten,
nameless*: everything at once that keeps the function (`{REWRITE}`), with random names in random order, so that roles
are inferred. *Fitted mean* and *dispersion*: share of concordant neurons, and variance over mean of their count, on the
half of the models that the constants of `fingerprint/comparing/calibration.py` were read off. *Largest*: over all
pairs. The last three columns are of pairs within the other half: the share of frozen p-values at most alpha, and its
95% interval by bootstrap over models. A row is marked where "at most alpha" is refuted; the command then exits with
status 1. Of one pair in {OWN_FRAMES} the layers were aligned in their own frames too."""


@dataclass(frozen=True, slots=True)
class Count:
    """Concordant neurons of a pair in one frame, and of how many in how many layers; a row of the file of counts."""

    recipe: str
    variant: str
    frame: str
    gated: bool
    registered: int
    suspect: int
    concordant: float
    neurons: int
    layers: int

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """Of its row in the table."""
        return self.recipe, self.frame, self.variant, self.gated

    @property
    def log10_p(self) -> float:
        """With the frozen constants, before any correction."""
        found = concordance_log10_p(self.frame, self.concordant, self.neurons, gated=self.gated, layers=self.layers)
        return min(0.0, found)


@dataclass(slots=True)
class Row:
    """All pairs of one recipe, frame and variant; ``half`` is the number of models that were fitted."""

    counts: list[Count] = field(default_factory=list)

    def within(self, half: int, *, first: bool) -> list[Count]:
        """The pairs both models of which are of the first half, or of the other."""
        return [one for one in self.counts if (one.registered < half) is first and (one.suspect < half) is first]

    def fitted(self, half: int) -> tuple[float, float, int]:
        """Mean share, variance over mean of the count, and the number of pairs."""
        chosen = self.within(half, first=True)
        counts = np.array([one.concordant for one in chosen])
        neurons = np.array([one.neurons for one in chosen])
        return float((counts / neurons).mean()), float(counts.var() / max(counts.mean(), 1e-9)), len(chosen)

    @property
    def largest(self) -> float:
        """Largest share of concordant neurons."""
        return max(one.concordant / one.neurons for one in self.counts)

    def held_out(self, half: int) -> list[Rate]:
        """Shares of p <= alpha in the other half."""
        sample = Sample()
        for one in self.within(half, first=False):
            sample.add(str(one.registered), str(one.suspect), np.array([one.log10_p]))
        return rates(sample)


def populations(zoo: Path, family: str) -> Iterator[tuple[str, list[Model]]]:
    """Recipe, and bases in order of their seeds."""
    for style, name in ((Style.LLAMA, family), (Style.GPT2, family), (Style.GEMMA, STYLES), (Style.BERT, STYLES)):
        chosen = [spec for spec in specs_of(name) if spec.kind == "population" and spec.shape.style is style]
        wanted = {spec.id for spec in chosen}
        yield f"{style.value} {chosen[0].shape.width}, {name}", load_zoo(zoo, wanted.__contains__)


def counts_of(recipe: str, variant: str, registered: Sequence[Model], suspects: Sequence[Model]) -> Iterator[Count]:
    """The counts of all ordered pairs, every frame by itself."""
    masks = [usable_coins(one.registered.neurons) for one in registered]
    pairs = [(i, j) for i in range(len(registered)) for j in range(len(suspects)) if i != j]
    for number, (i, j) in enumerate(pairs):
        ours, theirs = registered[i].registered, suspects[j].suspect
        for one in compare_gauge(ours, theirs, masks[i], own_frames=number % OWN_FRAMES == 0).frames:
            concordant, layers = one.concordance * one.neurons, min(one.theirs, len(one.matches))
            yield Count(recipe, variant, one.frame, one.gated, i, j, concordant, one.neurons, layers)


def all_counts(zoo: Path, family: str) -> Iterator[Count]:
    """Those of all populations and variants."""
    for recipe, models in populations(zoo, family):
        for variant, suspects in zip(VARIANTS, (models, nameless(zoo, models)), strict=True):
            yield from counts_of(recipe, variant, models, suspects)
        print(f"{recipe}: {len(models)} models", flush=True)


def table(counts: Iterable[Count]) -> dict[tuple[str, str, str, bool], Row]:
    """The rows, by recipe, frame, variant and kind of MLP."""
    rows: dict[tuple[str, str, str, bool], Row] = defaultdict(Row)
    for one in counts:
        rows[one.key].counts.append(one)
    return dict(sorted(rows.items()))


def markdown(rows: Mapping[tuple[str, str, str, bool], Row]) -> tuple[str, bool]:
    """The page, and whether no row is marked."""
    head = ["recipe", "frame", "suspects", "pairs", "neurons", "fitted mean", "dispersion", "largest"]
    head += [f"p ≤ {alpha:g}" for alpha in ALPHAS]
    lines = [
        "# Concordance of unrelated models",
        "",
        ABOUT,
        "",
        "Written by `python -m benchmarks.error_rates.concordance`.",
    ]
    lines += ["", "| " + " | ".join(head) + " | |", "|---|---|---|" + "--:|" * (len(head) - 3) + "---|"]
    fine = True
    for (recipe, frame, variant, _), row in rows.items():
        half = -(-max(one.registered for one in row.counts) // 2)
        mean, spread, _ = row.fitted(half)
        held = row.held_out(half)
        refuted = any(one.rejected for one in held)
        fine &= not refuted
        neurons = int(np.median([one.neurons for one in row.counts]))
        cells = [recipe, frame, variant, f"{len(row.counts):,}", str(neurons), f"{mean:.4f}", f"{spread:.2f}"]
        cells += [f"{row.largest:.3f}", *(f"{one.share:.2g} ({one.low:.2g} to {one.high:.2g})" for one in held)]
        lines.append("| " + " | ".join(cells) + f" | {'**too many**' if refuted else ''} |")
    return "\n".join([*lines, ""]), fine


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.error_rates.concordance", description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--family", default="a", help="family of the Llama- and GPT-2-style populations")
    parser.add_argument("--counts", type=Path, required=True, help="JSON lines of counts, read if it is there")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    if not options.counts.exists():
        with threadpool_limits(1, "blas"):
            lines = [json.dumps(asdict(one)) for one in all_counts(options.zoo, options.family)]
        options.counts.write_text("\n".join(lines))
    counts = [Count(**json.loads(line)) for line in options.counts.read_text().splitlines()]
    text, fine = markdown(table(counts))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{STEM}.md").write_text(text)
    print(text)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
