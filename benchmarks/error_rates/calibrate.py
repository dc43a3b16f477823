"""``python -m benchmarks.error_rates.calibrate``: fit the sketch's tail on half of the models, check on the rest.

The constants in ``fingerprint/comparing/tail.py`` were read off this command's first table and frozen. Models are dealt
to the two halves by their roots, alternately within each recipe; a pair counts where both its models are of one half.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import genpareto

from benchmarks.error_rates.comparisons import one_recipe, pairs_of
from benchmarks.error_rates.population import load_corpus, load_zoo
from benchmarks.error_rates.rates import ALPHAS
from fingerprint.comparing.matching import SketchCosines
from fingerprint.comparing.tail import TAIL_SCALE, TAIL_START, sketch_log10_p
from fingerprint.vocabulary import Axis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from benchmarks.error_rates.population import Model
    from fingerprint.records import TensorRecord

TABLES = "two token tables"
REST = "any other pair"
FITTED_ABOVE = 5.0
_LEAST = 50


@dataclass(frozen=True, slots=True)
class Half:
    """Scores of single pairs by (stratum, kind of pair), and (largest score, comparisons) of each pair of models."""

    single: Mapping[tuple[str, str], NDArray[np.float64]]
    largest: Mapping[str, list[tuple[float, int]]]


def halves(models: Sequence[Model]) -> tuple[list[Model], list[Model]]:
    """The models of which the tail is fitted, and those on which it is checked; relatives stay together."""
    roots: dict[str, list[str]] = defaultdict(list)
    for model in models:
        if model.root not in roots[model.recipe]:
            roots[model.recipe].append(model.root)
    fitted = {root for members in roots.values() for root in sorted(members)[::2]}
    return [one for one in models if one.root in fitted], [one for one in models if one.root not in fitted]


def scores(models: Sequence[Model]) -> Half:
    """The statistic of every pair of tensors of unrelated models."""
    single: dict[tuple[str, str], list[float]] = defaultdict(list)
    largest: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for stratum, registered, suspect in pairs_of(models):
        if registered.id > suspect.id:
            continue
        cosines = SketchCosines.of(registered.registered.tensors, suspect.suspect.tensors)
        if not cosines.pairs:
            continue
        ours = [_is_table(registered.registered.tensors[i]) for i in cosines.registered.positions.tolist()]
        theirs = [_is_table(suspect.suspect.tensors[i]) for i in cosines.suspect.positions.tolist()]
        tables = np.logical_and.outer(theirs, ours)
        dense = cosines.scores
        single[stratum, TABLES] += dense[(dense > 0) & tables].tolist()
        single[stratum, REST] += dense[(dense > 0) & ~tables].tolist()
        largest[stratum].append((cosines.largest, 2 * cosines.pairs))
    return Half({key: np.array(values) for key, values in single.items() if values}, largest)


def _is_table(tensor: TensorRecord) -> bool:
    return any(sample.axis is Axis.TOKEN for sample in tensor.axes)


def fit_table(half: Half) -> list[str]:
    """Markdown: how often the start of the tail is exceeded, the Pareto shape there, the mean excess further out."""
    lines = [
        f"| stratum | pairs | number | above {TAIL_START:g} | Pareto shape | above {FITTED_ABOVE:g} | mean excess "
        "| largest |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (stratum, kind), values in sorted(half.single.items()):
        start, deep = (values[values > least] - least for least in (TAIL_START, FITTED_ABOVE))
        shape = f"{genpareto.fit(start, floc=0)[0]:.2f}" if start.size >= _LEAST else ""
        mean = f"{deep.mean():.2f}" if deep.size else ""
        lines.append(
            f"| {stratum} | {kind} | {values.size:,} | {start.size / values.size:.2g} | {shape} "
            f"| {deep.size / values.size:.2g} | {mean} | {values.max():.1f} |"
        )
    return lines


def check_table(half: Half) -> tuple[list[str], bool]:
    """Markdown: shares of p <= alpha with the frozen tail, and whether any is above alpha among enough pairs."""
    lines = ["| stratum | pairs | number | " + " | ".join(f"p ≤ {alpha:g}" for alpha in ALPHAS) + " |"]
    lines.append("|---|---|--:|" + "--:|" * len(ALPHAS))
    fine = True
    rows = [(*key, [sketch_log10_p(x, 1) for x in values.tolist()]) for key, values in half.single.items()]
    rows += [
        (stratum, "largest of a model, Bonferroni", [sketch_log10_p(*one) for one in values])
        for stratum, values in half.largest.items()
    ]
    for stratum, kind, logs in sorted(rows, key=lambda row: (row[1], row[0])):
        small = [float(np.mean(np.array(logs) <= np.log10(alpha))) for alpha in ALPHAS]
        lines.append(f"| {stratum} | {kind} | {len(logs):,} | " + " | ".join(f"{one:.2g}" for one in small) + " |")
        fine &= all(one <= alpha for one, alpha in zip(small, ALPHAS, strict=True) if len(logs) * alpha >= 1)
    return lines, fine


def report(models: Sequence[Model]) -> tuple[str, bool]:
    """The page of the calibration, and whether the half that was held out keeps to every alpha."""
    fitted, held_out = halves(models)
    first, second = scores(fitted), scores(held_out)
    same = sum(values.size for (stratum, _), values in second.single.items() if one_recipe(stratum))
    checked, fine = check_table(second)
    lines = [
        "# The tail of the sketch statistic",
        "",
        "The statistic of two tensors is the larger magnitude of the sketch cosine in the two orientations, in units "
        "of its standard deviation for unrelated matrices of independent entries. Between unrelated trained models it "
        "is close to that law but for pairs of token tables (embeddings, output heads) over one vocabulary: their rows "
        "share a direction of frequent against rare tokens, so the cosine is that of two directions of the residual "
        "stream, which is as wide as the model is narrow.",
        "",
        f"Frozen: `p = exp(-(x - {TAIL_START:g}) / {TAIL_SCALE:g})` above {TAIL_START:g}, 1 below: an exponential tail "
        "as heavy as that of the token tables, for every pair, since a matrix without a name does not say what it is. "
        f"The scale is the mean excess over {FITTED_ABOVE:g}, rounded up; generalised Pareto shapes below 0 say that "
        "an exponential of that scale falls no faster than the data; p is 1 at the start, where the share is below 1.",
        "",
        "Written by `python -m benchmarks.error_rates.calibrate`.",
        "",
        f"## The half it was fitted on: {len(fitted)} models",
        "",
        *fit_table(first),
        "",
        f"## The half held out: {len(held_out)} models, {same:,} pairs of tensors of one recipe",
        "",
        *checked,
        "",
    ]
    return "\n".join(lines), fine


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.error_rates.calibrate", description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--family", default="a", help="family of the zoo whose models are used")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    models = load_zoo(options.zoo, lambda name: name.startswith(f"{options.family}-"))
    models += load_corpus(options.corpus) if options.corpus else []
    text, fine = report(models)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "error-rates-tail.md").write_text(text)
    print(text)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
