"""What the tests beneath rewrites say of unrelated models: the population of the zoo, every ordered pair.

    python -m benchmarks.gauge_null STYLE --zoo DIR --out FILE

Prints, for each exact test, the shares of pairs and of single samples with p at most .1, .01 and .001, and for each
frame what ``fingerprint.comparing.calibration`` is made of: the mean concordance and the dispersion of its count, with
the tail that a half of the models predicts for the other. Writes all pairs' numbers to FILE as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import nbinom
from threadpoolctl import threadpool_limits

from fingerprint.assemble import measure_checkpoint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.comparing.coins import usable_coins
from fingerprint.comparing.gauge import compare_gauge

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fingerprint.records import Fingerprint

LEVELS = (0.1, 0.01, 0.001)


def measured(path: Path, *, registered: bool) -> Fingerprint:
    with open_checkpoint(path) as checkpoint:
        return measure_checkpoint(checkpoint, casts=registered, workers=1).fingerprint


def one_pair(ours: Fingerprint, theirs: Fingerprint) -> dict[str, Any]:
    """Concordance counts by frame, and log10 p by test."""
    found = compare_gauge(ours, theirs, usable_coins(ours.neurons))
    counts = {one.frame: [round(one.concordance * one.neurons), one.neurons] for one in found.frames}
    tests = {f"{one.frame} {one.kind}": one.toss.log10_p for one in found.tests}
    return {"concordant": counts, "tests": tests}


def all_pairs(paths: Sequence[Path], most: int) -> Iterable[dict[str, Any]]:
    ours = [measured(path, registered=True) for path in paths]
    theirs = [measured(path, registered=False) for path in paths]
    pairs = [(i, j) for i in range(len(paths)) for j in range(len(paths)) if i != j]
    random.Random(1).shuffle(pairs)
    for i, j in pairs[:most]:
        yield {"registered": i, "suspect": j} | one_pair(ours[i], theirs[j])


def shares(logs: Sequence[float]) -> str:
    return " / ".join(f"{np.mean(10.0 ** np.array(logs) <= level):.4f}" for level in LEVELS)


def report(pairs: Sequence[dict[str, Any]], models: int) -> None:
    tests: dict[str, list[float]] = defaultdict(list)
    frames: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
    for pair in pairs:
        for name, log in pair["tests"].items():
            tests[name].append(log)
        for name, (count, of) in pair["concordant"].items():
            frames[name].append((pair["registered"], pair["suspect"], count, of))
    for name, logs in sorted(tests.items()):
        print(f"{name:28} {len(logs)} pairs, p <= .1 / .01 / .001: {shares(logs)}, smallest log10 p {min(logs):.2f}")
    for name, rows in sorted(frames.items()):
        table = np.array(rows)
        of, half = int(np.median(table[:, 3])), models // 2
        print(f"{name:28} {of} neurons: {moments(table[:, 2] / table[:, 3], table[:, 2])}")
        fitted = table[(table[:, 0] < half) & (table[:, 1] < half)][:, 2]
        checked = table[(table[:, 0] >= half) & (table[:, 1] >= half)][:, 2]
        if len(fitted) and len(checked):
            mean = fitted.mean()
            spread = max(fitted.var() / mean, 1.02)
            tail = np.log10(np.maximum(nbinom.sf(checked - 1, mean / (spread - 1), 1 / spread), 1e-300))
            print(f"{'':28} the first half's law, on the pairs of the second: {shares(tail.tolist())}")


def moments(rates: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> str:
    spread = counts.var() / max(counts.mean(), 1e-9)
    return f"mean {rates.mean():.4f}, sd {rates.std():.4f}, largest {rates.max():.4f}, dispersion {spread:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("style", choices=["llama", "gpt2"])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--family", default="a")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1 << 20)
    chosen = parser.parse_args()
    paths = sorted(chosen.zoo.glob(f"{chosen.family}-pop-{chosen.style}-64-s??.safetensors"))
    with chosen.out.open("w", encoding="utf-8") as out, threadpool_limits(1):
        pairs = []
        for pair in all_pairs(paths, chosen.pairs):
            pairs.append(pair)
            print(json.dumps(pair), file=out, flush=True)
    report(pairs, len(paths))


if __name__ == "__main__":
    main()
