"""The result as Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.retrieval.measure import NAMED, Asked, Result, counts
from benchmarks.retrieval.nameless import REWRITTEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = "retrieval-result/1"
LEAST_SHARE = 0.999
LEAST_FIRST = 0.99
MOST_SECONDS = 1.0


def machine() -> str:
    """The processor and its cores, as far as the system tells."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def as_mapping(result: Result) -> dict[str, Any]:
    """Everything that the page says, as numbers. ``right`` says whether the demands are met."""
    found = counts(result.asked)
    seconds = np.array([one.seconds for one in result.asked])
    shares = {
        "of detected": found["proposed of detected"] / max(found["detected"], 1),
        "of slow": found["proposed of slow"] / max(found["slow"], 1),
        "first ten": found["first ten"] / max(found["suspects"], 1),
    }
    median = float(np.median(seconds))
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "models": result.models,
        "kinds": result.kinds,
        "vectors": result.vectors,
        "suspects": len(result.asked),
        "build_seconds": round(result.build_seconds, 1),
        "counts": dict(found),
        "shares": {name: round(share, 6) for name, share in shares.items()},
        "search_seconds": {
            "median": round(median, 4),
            "median, of the processor": round(float(np.median([one.work for one in result.asked])), 4),
            "99%": round(float(np.quantile(seconds, 0.99)), 4),
            "longest": round(float(seconds.max()), 4),
            "first after opening": round(float(np.median(result.cold)), 4),
            **{name: round(value, 4) for name, value in result.large.items()},
        },
        "oracle": {"queries": result.oracle_queries, "differences": result.oracle_differences},
        "by_damage": {name: dict(counts(members)) for name, members in _by_damage(result.asked).items()},
        "missed": [
            {"damage": one.damage, "parents": list(one.parents), "detected": one.detected, "proposed": one.proposed}
            for one in result.asked
            if any(a and not b for a, b in zip(one.detected, one.proposed, strict=True))
        ],
        "right": min(shares["of detected"], shares["of slow"]) >= LEAST_SHARE
        and shares["first ten"] >= LEAST_FIRST
        and found["detected"] > 0
        and median < MOST_SECONDS
        and all(value < MOST_SECONDS for value in (*result.cold, *result.large.values()))
        and not result.oracle_differences,
    }


def to_json(result: Result) -> str:
    return json.dumps(as_mapping(result), indent=1, allow_nan=False) + "\n"


def to_markdown(result: Result) -> str:
    """The page."""
    said = as_mapping(result)
    found = said["counts"]
    lines = [
        "# Retrieval benchmark",
        "",
        f"A registry of {said['models']:,} models ({_kinds(said['kinds'])}) with {said['vectors']:,} vectors, and "
        f"{said['suspects']:,} suspects made of its models. Invented models come in families of a base and three "
        "fine-tunes; look-alikes have the shapes, means and deviations of a trained model's tensors, or its very "
        "elements in another order. Suspects called rewritten are trained models with every symmetry at once, the "
        "vocabulary too, checked to compute the same; they and all but the rotated ones have random names in random "
        f"order. Run on {said['date']}; {said['machine']}.",
        "",
        f"- Comparing with the true relative finds it (`possible` or better, corrected for {said['models']:,} models) "
        f"for {found['detected']:,} suspects; the index proposes it for {found['proposed of detected']:,} of them: "
        f"**{said['shares']['of detected']:.3%}** (demanded: {LEAST_SHARE:.1%}).",
        f"- The slow search, which compares with every vector, proposes it for {found['slow']:,}; the index for "
        f"{found['proposed of slow']:,} of them: **{said['shares']['of slow']:.3%}**.",
        f"- A true relative is among the first ten candidates of the index for {found['first ten']:,} of all "
        f"{said['suspects']:,} suspects: **{said['shares']['first ten']:.3%}** (demanded: {LEAST_FIRST:.0%}).",
        *_of_moved(said["by_damage"]),
        f"- On {said['oracle']['queries']:,} queries the slow search here differed from the index that the unit tests "
        f"take as oracle {said['oracle']['differences']} times.",
        "",
        "Both searches go without the lookup of equal digests, which finds most of these suspects by their norm gains "
        "already; the times below are those of the whole step, digests included. A merge counts as proposed if all "
        "parents are that were found the slow way.",
        "",
        "## Time of the search step",
        "",
        _row(("searches", "seconds")),
        _row(("---", "---")),
        *(_row((name, f"{value:.3f}")) for name, value in said["search_seconds"].items()),
        "",
        "## By damage",
        "",
        _row(("damage", "suspects", "detected", "proposed of these", "slow search", "proposed of these", "first ten")),
        _row(["---"] * 7),
    ]
    keys = ("suspects", "detected", "proposed of detected", "slow", "proposed of slow", "first ten")
    lines += [_row((name, *(str(one.get(key, 0)) for key in keys))) for name, one in said["by_damage"].items()]
    if said["missed"]:
        lines += ["", "## Missed by the index", ""]
        lines += [f"- {one['damage']} of {' and '.join(one['parents'])}" for one in said["missed"]]
    return "\n".join(lines) + "\n"


def _of_moved(by_damage: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Of the suspects that were rotated or rewritten, and whatever was done to them after that."""
    moved = [one for name, one in by_damage.items() if name.startswith((NAMED, REWRITTEN))]
    suspects = sum(one["suspects"] for one in moved)
    if not suspects:
        return []
    first = sum(one.get("first ten", 0) for one in moved)
    return [f"- Of the {suspects:,} that were rotated or rewritten: {first:,}, **{first / suspects:.3%}**."]


def _kinds(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())


def _by_damage(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    groups: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        groups[one.damage].append(one)
    return groups


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
