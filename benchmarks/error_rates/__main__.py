"""``python -m benchmarks.error_rates``: how often each test is wrong between unrelated models.

Exit status 1 if, for any test and stratum, "the share of p <= alpha is at most alpha" is refuted, or if after
correction an unrelated pair reaches ``possible``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from benchmarks.error_rates.comparisons import collect, pairs_of
from benchmarks.error_rates.corrected import smallest_corrected
from benchmarks.error_rates.population import (
    TIED,
    UPCYCLED,
    load_corpus,
    load_zoo,
    lookalikes,
    nameless,
    tied,
    upcycled,
)
from benchmarks.error_rates.procedures import BROKEN, TRUE
from benchmarks.error_rates.rates import table
from benchmarks.error_rates.replicates import replicate
from benchmarks.error_rates.report import as_mapping, enough, markdown, plot, plot_name
from benchmarks.zoo.recipes import STYLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.error_rates.comparisons import Samples
    from benchmarks.error_rates.population import Arrays, Model
    from benchmarks.error_rates.report import Rates

POSSIBLE = -3.0
EVERY = 4
"""Of as many seeds of a recipe, one is compared as a rewritten suspect without names too."""
SOURCES = 6
"""Trained models of which look-alikes are made."""
ABOUT = """Uncorrected p-values of each test between models that share no training. A cell is the share of comparisons
with p at most alpha, and its 95% interval by bootstrap over the roots of the models (over replicates in the strata of
those). The claim is that the share is at most alpha. A row is marked where that is refuted: by the bootstrap and the
binomial law together, each at level .001. Then, and if after correction an unrelated pair reaches `possible`, the
command exits with status 1; `--break` runs deliberately broken tests, which must.

Registered models are as a signature file holds them (samples rounded to 8 bits), suspects as they are measured. Models
are related, and never paired, if one descends from the other, or both from one, or share an initialisation or a donated
tensor. Look-alikes are random weights with a trained model's mean and deviation per tensor, and its elements shuffled;
tied slices are matrices whose rows or columns repeat four prototypes; upcycled are registered models whose eight MLPs
are near-copies of one. Nameless suspects were rewritten so that they compute the same (all at once, the vocabulary
apart) and have random names in random order. Coins flipped: the registered model's up and down projections, or both
sides of its attention channels, negated together at random; axis permuted: its sampled slices in random order. Both
leave nothing to be found even in its relatives and copies, so every replicate is a draw from the null. Shapes wider
than 64 were trained from two roots each: their rows are few draws, whatever the number of comparisons, and their
intervals have no width.

Written by `python -m benchmarks.error_rates`."""


def assemble(zoo: Path, corpus: Path | None, family: str, sources: int = SOURCES) -> list[Model]:
    """All models of the benchmark; of about ``sources`` trained ones there are look-alikes of each sort."""
    prefixes = tuple(f"{quick}{one}-" for quick in ("", "quick-") for one in (family, STYLES))
    models = load_zoo(zoo, lambda name: name.startswith(prefixes))
    bases = [one for one in models if "-pop-" in one.id and one.id == one.root]
    some = bases[:: max(1, len(bases) // sources)]
    models += load_corpus(corpus) if corpus else []

    def weights(model: Model) -> Arrays:
        return load_file(zoo / f"{model.id}.safetensors")

    awkward = lookalikes(weights, some) + tied(weights, some) + upcycled(some)
    return models + nameless(zoo, bases[::EVERY]) + awkward


def run(
    models: Sequence[Model],
    relatives: Sequence[tuple[str, Model, Model]],
    broken: str | None,
    *,
    scale: float = 1.0,
    workers: int = 1,
) -> tuple[Samples, dict[str, Any]]:
    """All samples, and what goes beside the table. ``scale`` shrinks the numbers of replicates."""
    procedures = BROKEN[broken] if broken else TRUE
    pairs = pairs_of(models)
    flips, permutations = max(1, round(300 * scale)), max(1, round(30 * scale))
    # The products are small: threads of BLAS would only wait for each other.
    with threadpool_limits(1, "blas"):
        samples = collect(pairs, procedures, workers)
        samples |= replicate(relatives, procedures, flips=flips, permutations=permutations)
    extra: dict[str, Any] = {"about": ABOUT, "models": len(models), "broken": broken or ""}
    if broken is None:
        extra |= smallest_corrected(pairs, workers=workers)
    return samples, extra


def replicated_pairs(models: Sequence[Model], most: int) -> list[tuple[str, Model, Model]]:
    """Pairs for the replicates: models with their relatives, unrelated ones of one recipe, and the awkward kinds."""
    trained = [one for one in models if one.trained]
    knotted = [one for one in models if one.kind == TIED]
    by_id = {one.id: one for one in models}
    choices = {
        "relatives": [(a, b) for a in trained for b in trained if a.root == b.root and a.id != b.id],
        "unrelated": [(a, b) for a in trained for b in trained if a.root != b.root and a.recipe == b.recipe],
        "ties": [(a, b) for a in knotted for b in knotted if a.id != b.id and a.recipe == b.recipe],
        "copies": [(a, by_id[a.id.partition(":")[0]]) for a in models if a.kind == UPCYCLED],
    }
    return [(label, *pair) for label, pairs in choices.items() for pair in pairs[:: max(1, len(pairs) // most)][:most]]


def failures(found: Rates, extra: Mapping[str, Any]) -> list[str]:
    """What the command fails for: shares above alpha, and unrelated pairs at ``possible`` after correction."""
    wrong = [f"{test}, {stratum}" for (test, stratum), rows in found.items() if any(one.rejected for one in rows)]
    smallest = extra.get("smallest", {})
    return wrong + [f"{test}: {one[0]:.2f} after correction" for test, one in smallest.items() if one[0] <= POSSIBLE]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.error_rates", description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--family", default="a", help="family of the zoo whose models are used")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--break", dest="broken", choices=sorted(BROKEN), help="run a deliberately broken test")
    parser.add_argument("--quick", action="store_true", help="fewer look-alikes and replicates")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the pairs")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    started = time.monotonic()
    sources, most, scale = (3, 5, 0.2) if options.quick else (SOURCES, 12, 1.0)
    models = assemble(options.zoo, options.corpus, options.family, sources)
    print(f"{len(models)} models measured after {time.monotonic() - started:.0f} s", flush=True)
    samples, extra = run(models, replicated_pairs(models, most), options.broken, scale=scale, workers=options.workers)
    found = table(samples)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = "error-rates" if options.broken is None else f"error-rates-broken-{options.broken}"
    (options.out / f"{stem}.json").write_text(json.dumps(as_mapping(found, extra), indent=1) + "\n")
    text = markdown(found, extra, stem)
    (options.out / f"{stem}.md").write_text(text)
    for test in dict.fromkeys(test for test, _ in found):
        plot({k: v for k, v in samples.items() if k[0] == test}, options.out / plot_name(stem, test), test)
    print(text)
    wrong = failures(found, extra)
    if not enough(found) and not options.quick:
        print("fewer comparisons than a verdict needs: see the totals")
    print(f"{time.monotonic() - started:.0f} s; " + ("failed: " + "; ".join(wrong) if wrong else "passed"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
