"""The page of what scans cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.resources.measure import MOST_MEMORY
from benchmarks.resources.shapes import MODELS, SMALL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from benchmarks.resources.measure import Row
    from benchmarks.resources.race import Leg
    from benchmarks.resources.timing import Cost

_LEAST_FITTED: Final = 500_000_000
_FEWEST_FITTED: Final = 3
_ABOUT = """{machine}.
`make bench-resources`; other work took {others:.0%} of the processors' time meanwhile.

The checkpoints are bf16, in the shapes of published models with a configuration beside them, of one that is deeper and
narrower, and of a mixture of experts of very small tensors; all in the page cache. Each is hashed by one thread of
`openssl dgst -sha256` and scanned, in turns, against a registry that holds it, or another model of the same shapes in
its place; medians of {runs} runs (of the mixture of experts of one). Seconds are on the clock, and in brackets on a
processor (all threads together), both with the start of the process. Ratios are to the checksum, the first on the
clock, the second on the processor: with both cores at work twice as much may be spent there. Memory is the peak of
anonymous memory of all processes, without the mapped file, in runs of their own; what reaches the bound, {most:.0f}
MB, is in bold.
"""
_FULL = """## Full and quick scans

`sketch` makes a signature for registration, with the digests after rounding, a file of the size in the last column: one
run.

| shapes | tensors | GB | sha256, s | full, s | ratios | MB | quick, s | MB | read, MB | sketch, s | MB | file, MB |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""
_LINEAR = """
A full scan of the {count} registered models in published shapes of {least:.1f} to {most:.0f} GB takes {fixed:.2f} +
{each:.3f} x GB seconds, by least squares; the largest relative deviation from that is {worst:.0%} ({where})."""
_DEFAULT = """## `fp scan` without `--depth`

The default is a quick look, a full scan if that explains nothing, and a deep one if nothing is explained still.
`registered` is how many models the registry holds: all have the suspect's shapes, and all are compared with it. Where
there are several, the signatures of all but one are made of that one's, with random numbers in place of what was
measured, and times are of one run.

| suspect | registered | ends at | s | ratios | MB | full, s | ratios | MB |
|---|--:|---|--:|--:|--:|--:|--:|--:|"""
_RACE = """## A model of 20 MB

Three suspects against one registered model ({width} wide, {layers} layers), medians of {runs} rounds in turns, by
`fp scan` and by `modeldna compare` (version 0.1.0) of the suspect with that model. In italics what is answered, of `fp`
with the depth that was reached.
"""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a full scan by least squares: ``fixed`` and ``each`` for a GB; the ``worst`` relative deviation of a
    row, and its title."""

    fixed: float
    each: float
    worst: float
    where: str


def fitted(rows: Iterable[Row]) -> list[Row]:
    """The rows that a line is laid through: registered models in published shapes that are not small."""
    return [row for row in rows if row.known and row.title in MODELS and row.stored >= _LEAST_FITTED]


def line(rows: Sequence[Row]) -> Line:
    """The line through the full scans of some rows."""
    sizes = np.array([row.stored / 1e9 for row in rows])
    seconds = np.array([row.scans["full"].cost.wall for row in rows])
    each, fixed = np.polyfit(sizes, seconds, 1)
    off = np.abs(seconds / (fixed + each * sizes) - 1)
    return Line(float(fixed), float(each), float(off.max()), rows[int(off.argmax())].title)


def page(
    rows: Sequence[Row],
    started: Mapping[str, Cost],
    raced: Sequence[Leg],
    *,
    runs: int,
    rounds: int,
    machine: str,
    others: float,
) -> str:
    """The page in Markdown: medians of ``runs``, for models of 20 MB of ``rounds``; ``others`` is the share of the
    processors' time that other work took."""
    about = _ABOUT.format(machine=machine, others=others, runs=runs, most=MOST_MEMORY / 1e6)
    lines = ["# Resources", "", about, _FULL]
    lines += [_row(_of_scans(row)) for row in rows if row.sketch is not None]
    if len(those := fitted(rows)) >= _FEWEST_FITTED:
        found, most = line(those), max(row.stored for row in those) / 1e9
        told = {"fixed": found.fixed, "each": found.each, "worst": found.worst, "where": found.where}
        lines.append(_LINEAR.format(least=_LEAST_FITTED / 1e9, count=len(those), most=most, **told))
    lines += ["", _DEFAULT, *(_row(_of_default(row)) for row in rows)]
    lines += [
        "",
        "## Starting",
        "",
        "| command | s |",
        "|---|--:|",
        *(_row((name, f"{cost}")) for name, cost in started.items()),
    ]
    commands = list(dict.fromkeys(leg.command for leg in raced))
    lines += [
        "",
        _RACE.format(width=SMALL.width, layers=SMALL.layers, runs=rounds),
        _row(["suspect", *commands]),
        _row(["---"] * (1 + len(commands))),
    ]
    for suspect in dict.fromkeys(leg.suspect for leg in raced):
        legs = {leg.command: leg for leg in raced if leg.suspect == suspect}
        lines.append(_row([suspect, *(f"{legs[name].cost} *{legs[name].answer}*" for name in commands)]))
    return "\n".join(lines) + "\n"


def _of_scans(row: Row) -> Iterator[str]:
    full, quick, sketch = row.scans["full"], row.scans["quick"], row.sketch
    yield from (row.title, f"{row.tensors}", f"{row.stored / 1e9:.2f}", "-" if row.hashed is None else f"{row.hashed}")
    yield from (f"{full.cost}", _ratios(row, "full"), _megabytes(full.memory))
    yield from (f"{quick.cost}", _megabytes(quick.memory), f"{quick.read / 1e6:.1f}")
    if sketch is not None:
        yield from (f"{sketch.cost}", _megabytes(sketch.memory), f"{sketch.size / 1e6:.2f}")


def _of_default(row: Row) -> Iterator[str]:
    default, full = row.scans["default"], row.scans["full"]
    yield from (row.title, f"{row.models}", default.depth)
    yield from (f"{default.cost}", _ratios(row, "default"), _megabytes(default.memory))
    yield from (f"{full.cost}", _ratios(row, "full"), _megabytes(full.memory))


def _ratios(row: Row, depth: str) -> str:
    return "-" if row.hashed is None else row.scans[depth].cost.beside(row.hashed)


def _megabytes(size: int) -> str:
    text = f"{size / 1e6:.0f}"
    return f"**{text}**" if size >= MOST_MEMORY else text


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
