"""Measures scans of one checkpoint: at full and at quick depth and as they are by default, beside a checksum."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.observed import Observed, observe
from benchmarks.resources.crowd import compared, fill
from benchmarks.resources.timing import Cost, Times, hashed, program, timed
from benchmarks.resources.weights import WEIGHTS, shapes_of, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from benchmarks.resources.shapes import Llama, Shapes

MOST_MEMORY: Final = 500_000_000
DEPTHS: Final[Mapping[str, tuple[str, ...]]] = {
    "full": ("--depth", "full"),
    "quick": ("--depth", "quick"),
    "default": (),
}
"""What a scan is told, by the name that it has here."""
_LIMIT: Final = 3600.0
_MATCH: Final = 1
"""The exit status of a scan that finds a registered model."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan took, the peak of its anonymous memory in bytes, the depth that it ended at, the bytes it read."""

    cost: Cost
    memory: int
    depth: str
    read: int


@dataclass(frozen=True, slots=True)
class Sketch:
    """What making a signature took, the peak of its anonymous memory, the size of the file."""

    cost: Cost
    memory: int
    size: int


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint: its size, what ``openssl`` took (None where there is none), what making the ``sketch`` took that
    is registered (None where it was told of another row), and what ``scans`` at each of ``DEPTHS`` took against
    ``models`` registered models, of which it is one if it is ``known``. ``failures`` are what went wrong."""

    title: str
    tensors: int
    stored: int
    hashed: Cost | None
    sketch: Sketch | None
    scans: Mapping[str, Scan]
    models: int
    known: bool
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a model, its signature and the registry lie while they are measured."""

    model: Path
    signature: Path
    registry: Path


def registered(title: str, model: Llama | Shapes, folder: Path, runs: int) -> Row:
    """Write a checkpoint, register it, hash and scan it in turns, delete all."""
    with _place(folder) as place:
        write(place.model, model)
        sketch, failures = _registered(place)
        return _row(title, model, place, runs, sketch=sketch, models=1, known=True, failures=failures)


def unregistered(title: str, model: Llama | Shapes, folder: Path, runs: int, *, crowd: int = 0) -> Iterator[Row]:
    """The same where the registry holds another model of its shapes instead; and, once, where it holds ``crowd``."""
    with _place(folder) as place:
        write(place.model, model, seed=1)
        sketch, failures = _registered(place)
        write(place.model, model)
        yield _row(title, model, place, runs, sketch=sketch, models=1, known=False, failures=failures)
        if crowd:
            fill(place.registry, place.signature, crowd - 1)
            met = compared(place.registry, place.signature)
            failures = () if met == crowd else (f"{met} of {crowd} registered models were compared",)
            yield _row(title, model, place, 1, sketch=None, models=crowd, known=False, failures=failures)


@contextmanager
def _place(folder: Path) -> Iterator[_Place]:
    place = _Place(folder / "model", folder / "model.fpsig", folder / "registry")
    try:
        yield place
    finally:
        shutil.rmtree(place.model, ignore_errors=True)
        place.signature.unlink(missing_ok=True)
        shutil.rmtree(place.registry, ignore_errors=True)


def _registered(place: _Place) -> tuple[Sketch, tuple[str, ...]]:
    made = observe(["sketch", str(place.model), "-o", str(place.signature), "-q"], limit=_LIMIT)
    put = ["register", str(place.signature), "--name", "a/model", "--registry", str(place.registry), "-q"]
    observe(put, limit=_LIMIT)
    size = place.signature.stat().st_size if place.signature.exists() else 0
    return Sketch(Cost(made.wall, made.processor), made.anonymous, size), _failures("sketch", made, 0)


def _row(
    title: str,
    model: Llama | Shapes,
    place: _Place,
    runs: int,
    *,
    sketch: Sketch | None,
    models: int,
    known: bool,
    failures: tuple[str, ...] = (),
) -> Row:
    """Hash and scan what lies there, in turns."""
    path = place.model / WEIGHTS
    scan = ["scan", str(place.model), "--registry", str(place.registry), "--format", "json", "-q"]
    commands = {depth: [*scan, *told] for depth, told in DEPTHS.items()}
    status = _MATCH if known else 0
    # Memory is watched in runs of their own: a process whose pages are counted waits for that.
    seen = {depth: observe(command, limit=_LIMIT) for depth, command in commands.items()}
    failures += tuple(one for depth, scan in seen.items() for one in _failures(depth, scan, status))
    sums, taken = list[Times | None](), {depth: list[Times]() for depth in DEPTHS}
    for _ in range(runs):
        sums.append(hashed(path))
        for depth, command in commands.items():
            taken[depth].append(timed([*program(), *command], status))
    scans = {depth: _scan(one, Cost.of(taken[depth])) for depth, one in seen.items()}
    stored = path.stat().st_size
    if scans["full"].read != stored:
        failures += (f"full: {scans['full'].read} of {stored} bytes were read",)
    return Row(
        title=title,
        tensors=len(shapes_of(model)),
        stored=stored,
        hashed=None if None in sums else Cost.of([one for one in sums if one is not None]),
        sketch=sketch,
        scans=scans,
        models=models,
        known=known,
        failures=failures,
    )


def _scan(seen: Observed, cost: Cost) -> Scan:
    try:
        suspect = json.loads(seen.out)[0]["suspect"]
        return Scan(cost, seen.anonymous, str(suspect["depth"]), int(suspect["bytes_read"]))
    except (ValueError, LookupError):
        return Scan(cost, seen.anonymous, "", 0)


def _failures(what: str, seen: Observed, status: int) -> tuple[str, ...]:
    """What is wrong with a run that was to end with ``status``."""
    found = []
    if seen.status != status:
        found.append(f"{what}: status {seen.status}: {(seen.err.splitlines() or [''])[-1]}")
    if seen.anonymous >= MOST_MEMORY:
        found.append(f"{what}: {seen.anonymous} bytes of memory")
    return tuple(found)
