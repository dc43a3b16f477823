"""Layer maps and mixtures by layer, with runs of layers joined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cli.text import ranges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cli.console import Look

_SHOWN: Final = 12


def layer_lines(layers: Mapping[str, int], look: Look) -> list[str]:
    """One line: suspect's layers and the registered ones they come from, ``0-3 -> 0-3, 4-7 -> 2-5``."""
    if not layers:
        return []
    arrow = "→" if look.symbols else "->"
    numbered = sorted((int(key), value) for key, value in layers.items() if key.isdecimal())
    pieces = [f"{_span(*theirs)} {arrow} {_span(*ours)}" for theirs, ours in parallel_runs(numbered)]
    nameless = [value for key, value in layers.items() if not key.isdecimal()]
    pieces += [f"layers without numbers {arrow} {_spans(nameless)}"] if nameless else []
    shown = pieces if look.details else pieces[:_SHOWN]
    text = ", ".join(shown)
    if len(shown) < len(pieces):
        text += f", {len(pieces) - len(shown)} more with -v"
    if numbered and len(numbered) == len(layers) and all(one == other for one, other in numbered):
        text += " (each in its place)"
    return [f"suspect {arrow} registered: {text}"]


def _spans(numbers: list[int]) -> str:
    """``0-3, 3, 5``: runs of numbers, each as often as it occurs."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        last = runs[-1] if runs else []
        if last and number == last[-1] + 1:
            last[-1:] = [number] if len(last) > 1 else [last[0], number]
        else:
            runs.append([number])
    return ", ".join(_span(run[0], run[-1]) for run in runs)


def parallel_runs(pairs: list[tuple[int, int]]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Runs of pairs in which both numbers grow by one: ``[((first, last), (first, last)), ...]``."""
    found: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for theirs, ours in pairs:
        if found:
            (start, end), (ours_start, ours_end) = found[-1]
            if theirs == end + 1 and ours == ours_end + 1:
                found[-1] = ((start, theirs), (ours_start, ours))
                continue
        found.append(((theirs, theirs), (ours, ours)))
    return found


def layer_mixture_lines(layers: Mapping[str, Mapping[str, float]], look: Look) -> list[str]:
    """A line for each set of layers with (nearly) the same coefficients; none if all layers have the same."""
    groups: dict[str, list[str]] = {}
    for label, weights in layers.items():
        mix = " + ".join(f"{weight:.1f} {model}" for model, weight in sorted(weights.items()) if weight >= 0.05)
        groups.setdefault(mix or "none of them", []).append(label)
    if len(groups) < 2:
        return []
    lines = [f"{_labels(labels)}: {mix}" for mix, labels in groups.items()]
    if not look.details and len(lines) > _SHOWN:
        return [*lines[:_SHOWN], f"{len(lines) - _SHOWN} more with -v"]
    return lines


def _labels(labels: list[str]) -> str:
    """Labels of layers, with numbers that end them joined: ``layer 0-3``."""
    numbers: dict[str, list[int]] = {}
    for label in labels:
        stem = label.rstrip("0123456789")
        digits = label[len(stem) :]
        if digits:
            numbers.setdefault(stem, []).append(int(digits))
        else:
            numbers.setdefault(label, [])
    return ", ".join(f"{stem}{ranges(sorted(found))}" for stem, found in numbers.items())


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
