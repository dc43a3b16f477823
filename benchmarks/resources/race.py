"""What starting takes; and scans of models of 20 MB in turns with modelDNA's comparisons of the same files."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks.observed import environment
from benchmarks.resources.shapes import SMALL
from benchmarks.resources.timing import Cost, Times, program, timed
from benchmarks.resources.weights import write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_MOVED: Final = 0.02
SUSPECTS: Final[Mapping[str, tuple[int, float]]] = {
    "the registered file itself": (0, 0.0),
    f"fine-tuned: every weight moved, by {_MOVED:.0%} of their deviation": (0, _MOVED),
    "unrelated, of the same shapes": (1, 0.0),
}
"""Seed of each, and how far its weights are moved. The first is the registered model."""


@dataclass(frozen=True, slots=True)
class Runner:
    """A command that compares a suspect with the registered model; ``told`` makes it answer in JSON, ``read`` says in a
    few words what it answers."""

    command: list[str]
    told: list[str]
    read: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Leg:
    """What one command took for one suspect, and its answer."""

    suspect: str
    command: str
    cost: Cost
    answer: str


def measured(folder: Path, runs: int, modeldna: Path | None) -> tuple[Mapping[str, Cost], list[Leg]]:
    """What starting takes, and a race over every suspect."""
    models = {suspect: folder / f"small-{number}" for number, suspect in enumerate(SUSPECTS)}
    first, registry = next(iter(models.values())), folder / "registry"
    try:
        for suspect, (seed, moved) in SUSPECTS.items():
            write(models[suspect], SMALL, seed, moved=moved)
        timed([*program(), "register", str(first), "--name", "a/small", "--registry", str(registry), "-q"])
        runners = {
            (suspect, name): runner
            for suspect, model in models.items()
            for name, runner in _runners(model, first, registry, modeldna).items()
        }
        return _starts(registry, runs), _race(runners, folder, runs)
    finally:
        for one in (*models.values(), registry):
            shutil.rmtree(one, ignore_errors=True)


def _starts(registry: Path, runs: int) -> Mapping[str, Cost]:
    """What commands take that look at no weights, in turns."""
    commands = {"`fp --help`": ["--help"], "`fp list`": ["list", "--registry", str(registry)]}
    taken: dict[str, list[Times]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, words in commands.items():
            taken[name].append(timed([*program(), *words]))
    return {name: Cost.of(times) for name, times in taken.items()}


def _race(runners: Mapping[tuple[str, str], Runner], home: Path, runs: int) -> list[Leg]:
    """All runners, by suspect and command, in turns."""
    answers = {key: _answer(runner, home) for key, runner in runners.items()}
    taken: dict[tuple[str, str], list[Times]] = {key: [] for key in runners}
    for _ in range(runs):
        for key, runner in runners.items():
            taken[key].append(timed(runner.command, answers[key][1], HOME=str(home)))
    return [Leg(*key, Cost.of(times), answers[key][0]) for key, times in taken.items()]


def _runners(suspect: Path, first: Path, registry: Path, modeldna: Path | None) -> dict[str, Runner]:
    scan = [*program(), "scan", str(suspect), "--registry", str(registry), "-q"]
    runners = {
        "`fp scan`": Runner(scan, ["--format", "json"], _said_by_fp),
        "`fp scan --depth quick`": Runner([*scan, "--depth", "quick"], ["--format", "json"], _said_by_fp),
    }
    if modeldna is not None:
        compare = [str(modeldna), "compare", str(suspect), str(first)]
        runners["`modeldna compare`"] = Runner(compare, ["--json"], _said_by_modeldna)
    return runners


def _answer(runner: Runner, home: Path) -> tuple[str, int]:
    """What a command answers, and the status that it ends with; what it loads is in the page cache afterwards.

    modelDNA writes what it was asked into ``home``.
    """
    command = [*runner.command, *runner.told]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment(HOME=str(home)))
    try:
        return runner.read(json.loads(done.stdout)), done.returncode
    except (ValueError, LookupError) as error:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-1000:]}") from error


def _said_by_fp(told: Any) -> str:
    (report,) = told
    words = [report["verdict"], *([report["matches"][0]["relation"]] if report["matches"] else [])]
    return f"{', '.join(words)} ({report['suspect']['depth']})"


def _said_by_modeldna(told: Any) -> str:
    return str(told["verdict"]["verdict"])
