"""What whole commands take, on the clock and on a processor."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

from benchmarks.observed import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

Times = tuple[float, float]
"""Seconds on the clock, and on a processor of all threads together."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over some runs, in seconds on the clock and on a processor."""

    wall: float
    processor: float

    @classmethod
    def of(cls, runs: Sequence[Times]) -> Self:
        """The medians of some runs."""
        return cls(median(wall for wall, _ in runs), median(processor for _, processor in runs))

    def beside(self, other: Cost) -> str:
        """Both as ratios to another's."""
        return f"{self.wall / other.wall:.2f}, {self.processor / other.processor:.2f}"

    def __str__(self) -> str:
        return f"{self.wall:.2f} ({self.processor:.2f})"


def timed(command: Sequence[str], status: int = 0, **around: str) -> Times:
    """What a command takes that must end with ``status``; ``around`` is added to its environment."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, env=environment(**around))
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    if done.returncode != status:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def program() -> list[str]:
    """The program as it is started by everybody: the script beside this interpreter, else its module."""
    script = Path(sys.executable).with_name("fp")
    return [str(script)] if script.exists() else [sys.executable, "-m", "cli"]


def hashed(path: Path) -> Times | None:
    """What ``openssl dgst -sha256`` takes; None where there is no openssl."""
    return timed(["openssl", "dgst", "-sha256", str(path)]) if shutil.which("openssl") else None
