"""Distributions of the tests' statistics over related and unrelated pairs: as rows of a table, and as plots."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from benchmarks.lineage.derive_cases import Link

mpl.use("Agg")  # before pyplot: there may be no display
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Float64 = NDArray[np.float64]


class Kin(StrEnum):
    """What a suspect and a registered model are to each other."""

    RELATIVE = "relatives"
    PART = "same initialisation or component"
    NONE = "non-relatives"


_KIN = {
    Link.LINEAGE: Kin.RELATIVE,
    Link.ANCESTOR: Kin.RELATIVE,
    Link.SIBLING: Kin.RELATIVE,
    Link.SHARED_COMPONENT: Kin.PART,
    Link.SAME_INITIALISATION: Kin.PART,
    Link.NONE: Kin.NONE,
}
_COLOURS = {Kin.RELATIVE: "#0072b2", Kin.PART: "#e69f00", Kin.NONE: "#555555"}
"""Told apart by colour-blind readers too (Okabe and Ito's palette)."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number of the scores. ``wide``: drawn on a logarithmic axis that begins at 0."""

    key: str
    title: str
    wide: bool = False


STATISTICS = (
    Statistic("similarity", "similarity of the matched tensors"),
    Statistic("minus_log10_p", "-log10 p, before correction for the number of models", wide=True),
    Statistic("landed", "align: slices that landed on their own number, 0 where too few could", wide=True),
    Statistic("sketch", "sketch: largest standardised cosine", wide=True),
    Statistic("agreement", "rows: agreement of the coins"),
    Statistic("concordance", "rows: concordance"),
)

Values = dict[str, dict[Kin, "Float64"]]


def collect(truth: Mapping[str, Any], derived: Path, scores: Path) -> Values:
    """Values of every statistic by kin, from what the scanning process wrote."""
    found: dict[str, dict[Kin, list[float]]] = {one.key: {kin: [] for kin in Kin} for one in STATISTICS}
    for line in scores.read_text().splitlines():
        scored = json.loads(line)
        links = truth["suspects"][scored["path"].removeprefix(f"{derived}/")]["links"]
        for model, numbers in scored["scores"].items():
            kin = _KIN[Link(links.get(model, Link.NONE))]
            numbers["minus_log10_p"] = 0.0 - numbers.pop("log10_p")
            for key, value in numbers.items():
                found[key][kin].append(value)
    return {key: {kin: np.array(values) for kin, values in by_kin.items()} for key, by_kin in found.items()}


def rows(values: Values) -> list[dict[str, Any]]:
    """For every statistic and kin: how many pairs have it, and its smallest, 5%, middle, 95% and largest value."""
    return [
        {
            "statistic": one.key,
            "title": one.title,
            "kin": kin.value,
            "pairs": len(found),
            "quantiles": [round(float(value), 4) for value in np.quantile(found, (0, 0.05, 0.5, 0.95, 1))],
        }
        for one in STATISTICS
        for kin, found in values[one.key].items()
        if len(found)
    ]


def draw(values: Values, path: Path) -> None:
    """Write a PNG with one panel for each statistic: the share of each kin's pairs in each bin."""
    figure, panels = plt.subplots(2, 3, figsize=(13, 6.4), layout="constrained")
    for panel, one in zip(panels.flat, STATISTICS, strict=True):
        _panel(panel, one, values[one.key])
    pairs = {kin: max(len(values[one.key][kin]) for one in STATISTICS) for kin in Kin}
    legend = [Patch(color=_COLOURS[kin], alpha=0.6, label=f"{kin.value} ({pairs[kin]} pairs)") for kin in Kin]
    figure.legend(handles=legend, loc="outside upper center", ncols=len(Kin), frameon=False)
    # The same numbers give the same file: no name of a version in it.
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def _panel(panel: Axes, one: Statistic, values: Mapping[Kin, Float64]) -> None:
    everything = np.concatenate(list(values.values()))
    top = float(everything.max(initial=1.0))
    edges = np.expm1(np.linspace(0, np.log1p(top), 41)) if one.wide else np.linspace(0.0, max(top, 1.0), 41)
    edges[-1] = max(edges[-1], top)  # rounding may leave the largest value out
    for kin, found in values.items():
        if len(found):
            heights, _ = np.histogram(np.clip(found, 0.0, None), edges)
            panel.stairs(heights / len(found), edges, fill=True, alpha=0.35, color=_COLOURS[kin])
            panel.stairs(heights / len(found), edges, color=_COLOURS[kin])
    if one.wide:
        panel.set_xscale("function", functions=(np.log1p, np.expm1))
        ticks = [tick for tick in (0, 3, 6, 12, 30, 100, 300, 1000) if tick <= top]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.set_xlim(0, 1.1 * top)
    panel.set_yscale("log")
    panel.set_ylim(bottom=5e-4, top=1.3)
    panel.set_title(one.title, fontsize=10)
    panel.set_ylabel("share of the pairs", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
