"""The table of error rates as Markdown and JSON, and the QQ plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.error_rates.comparisons import (
    ALIGN,
    COIN,
    FISHER,
    LEADS,
    SKETCH,
    SKETCH_ALL,
    SKETCH_MAX,
    one_recipe,
)
from benchmarks.error_rates.moving import CHANNELS, EVEN, GAUGE
from benchmarks.error_rates.rates import ALPHAS, REJECTS_AT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.error_rates.comparisons import Samples
    from benchmarks.error_rates.rates import Rate

COUNTED = (ALIGN, COIN, FISHER, SKETCH_ALL, GAUGE, CHANNELS, EVEN)
"""The tests of which at least ``ENOUGH`` unrelated comparisons are wanted, half of them of one recipe."""
ENOUGH = 10_000
MEANING = {
    ALIGN: "One alignment of the slices of one axis of two tensors: the registered one and the suspect's at its place.",
    LEADS: "The same, of each registered tensor with the two of the suspect whose sketches are most alike: what the "
    "product looks at before it corrects for all pairs.",
    COIN: "The coins of one registered MLP, matched with one MLP of the suspect; all pairs of MLPs.",
    FISHER: "The coins of all registered MLPs, by Fisher's method: with the partners that the product chooses, and in "
    "each cyclic assignment of layers to layers.",
    GAUGE: "The coins of one registered MLP in one frame that moves with the residual stream (anchors, positions, the "
    "layers' own), matched with the suspect's best MLP there; coins flipped: of all MLPs together.",
    CHANNELS: "The coins of all attention channels of one kind (value/output, rotary pairs, query/key) in one frame.",
    EVEN: "The concordance of all MLPs in one frame; calibrated, by frame and kind of MLP, on halves of populations of "
    "width 64 of all styles ([concordance of unrelated models](concordance.md)).",
    SKETCH: "The sketch statistic of two tensors of one name; calibrated.",
    SKETCH_ALL: "The sketch statistic of all pairs of tensors whose shapes can correspond; calibrated.",
    SKETCH_MAX: "The largest sketch statistic of two models, corrected for the pairs that it is the largest of.",
}

Rates = dict[tuple[str, str], "list[Rate]"]


def as_mapping(rates: Rates, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The results as plain data."""
    rows = [
        {
            "test": test,
            "stratum": stratum,
            "comparisons": found[0].comparisons,
            "rates": [
                {
                    "alpha": one.alpha,
                    "hits": one.hits,
                    "share": round(one.share, 7),
                    "interval": [round(one.low, 7), round(one.high, 7)],
                    "rejected": one.rejected,
                }
                for one in found
            ],
        }
        for (test, stratum), found in rates.items()
    ]
    return {"rows": rows, "rejects_at": REJECTS_AT, **extra}


def plot_name(stem: str, test: str) -> str:
    """File name of the QQ plot of a test."""
    return f"{stem}-{test.replace(', ', '-').replace(' ', '-')}.png"


def markdown(
    rates: Rates,
    extra: Mapping[str, Any],
    stem: str,
    *,
    title: str = "Error rates",
    meaning: Mapping[str, str] = MEANING,
    largest: Mapping[tuple[str, str], str] | None = None,
) -> str:
    """The table, a section a test, each with its plot; with a column of the ``largest`` statistics, if there are."""
    lines = [f"# {title}", "", *_preface(extra)]
    column = " largest |" if largest else ""
    for test in dict.fromkeys(test for test, _ in rates):
        rows = {stratum: found for (name, stratum), found in rates.items() if name == test}
        total, same = totals(rates, test)
        lines += ["", f"## {test}", "", f"![QQ plot]({plot_name(stem, test)})", "", meaning[test]]
        lines += [f"{total:,} unrelated comparisons, {same:,} of them between trained models of one recipe.", ""]
        lines += ["| stratum | comparisons | " + " | ".join(f"p ≤ {alpha:g}" for alpha in ALPHAS) + f" |{column} |"]
        lines += ["|---|--:|" + "--:|" * len(ALPHAS) + "--:|" * bool(largest) + "---|"]
        for stratum, found in rows.items():
            cells = " | ".join(f"{one.share:.2g} ({one.low:.2g} to {one.high:.2g})" for one in found)
            verdict = "**too many**" if any(one.rejected for one in found) else ""
            cells += f" | {largest.get((test, stratum), '')}" if largest else ""
            lines.append(f"| {stratum} | {found[0].comparisons:,} | {cells} | {verdict} |")
    return "\n".join([*lines, ""])


def totals(rates: Rates, test: str) -> tuple[int, int]:
    """Numbers of unrelated comparisons of a test (replicates apart), and of those between trainings of one recipe."""
    counts = {
        stratum: found[0].comparisons
        for (name, stratum), found in rates.items()
        if name == test and (one_recipe(stratum) or ", " not in stratum)
    }
    return sum(counts.values()), sum(count for stratum, count in counts.items() if one_recipe(stratum))


def enough(rates: Rates) -> bool:
    """Whether every test has its ``ENOUGH`` comparisons, half of them of one recipe."""
    return all(total >= ENOUGH and 2 * same >= total for total, same in (totals(rates, test) for test in COUNTED))


def _preface(extra: Mapping[str, Any]) -> list[str]:
    lines = [str(extra.get("about", "")), ""]
    smallest = extra.get("smallest")
    if smallest:
        aligned = ""
        if extra["own_frame_pairs"]:
            aligned = (
                f"{extra['own_frame_pairs']:,} random pairs had their layers aligned in their own frames as well. "
            )
        lines += [
            f"## After correction: {extra['corrected_pairs']:,} unrelated pairs",
            "",
            f"Every test's p-value, corrected within the pair and for {extra['registered_models']} registered models. "
            f"{aligned}`possible` begins at log10 p = -3.",
            "",
            "| test | smallest log10 p | registered | suspect |",
            "|---|--:|---|---|",
            *(f"| {test} | {one[0]:.2f} | {one[1]} | {one[2]} |" for test, one in smallest.items()),
        ]
    return lines


def plot(samples: Samples, path: Path, title: str) -> None:
    """One QQ plot: observed against expected -log10 p, a curve a stratum; above the diagonal is too small."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from cycler import cycler

    figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    axes.set_prop_cycle(cycler(linestyle=["-", ":", "-."]) * cycler(color=mpl.color_sequences["tab10"]))
    top = 1.0
    for (_, stratum), sample in samples.items():
        values = np.sort(sample.values())
        if not values.size:
            continue
        # The share of p-values at most p, where p is attained: a discrete test is judged at its own steps.
        observed = -values
        share = np.searchsorted(values, values + 1e-9, side="right") / values.size
        expected = -np.log10(share)
        keep = np.unique(np.searchsorted(expected[::-1], np.linspace(0, expected.max(), 400)).clip(0, values.size - 1))
        index = np.unique(np.concatenate([values.size - 1 - keep, np.arange(min(50, values.size))]))
        axes.plot(expected[index], observed[index], lw=1.2, marker=".", ms=3, label=f"{stratum} ({values.size:,})")
        top = max(top, float(expected.max()))
    axes.plot([0, top], [0, top], color="black", lw=0.8, ls="--")
    axes.set(xlabel="expected -log10 p (share of comparisons)", ylabel="observed -log10 p", title=title)
    axes.legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)
