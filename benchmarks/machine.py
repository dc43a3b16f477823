"""The machine that a benchmark runs on, in a line; and how much of it other work took meanwhile."""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from signatures.memory import available

_LIBRARIES: Final = {"torch": "torch", "numpy": "numpy", "faiss-cpu": "faiss"}
_WIDE: Final = ("avx512_bf16", "avx512f", "avx2")
"""What a processor may have that changes how weights are measured, the most first."""


def described() -> str:
    """Processor, cores, memory, system, and versions of Python and of the libraries that compute."""
    hardware = f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {available() / 2**30:.0f} GiB of memory"
    libraries = (f"{word} {found}" for name, word in _LIBRARIES.items() if (found := _version(name)))
    return "; ".join((hardware, _system(), ", ".join((f"Python {platform.python_version()}", *libraries))))


def _processor(told: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and the widest instructions that it has; where Linux does not tell, what Python knows."""
    try:
        lines = [line.partition(":") for line in told.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = facts.get("flags", "").split()
    wide = next((flag for flag in _WIDE if flag in flags), None)
    name = facts.get("model name") or platform.processor() or "processor without a name"
    return f"{name} ({', '.join((platform.machine(), *([wide] if wide else [])))})"


def _system() -> str:
    kernel = f"{platform.system()} {platform.release().partition('-')[0]}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds since some start: ``all`` that all processors had, how many of them were ``busy``, and how many this
    process and its finished children took of those (``own``)."""

    all: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> Busy:
        """As Linux tells it."""
        uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        with open("/proc/stat", encoding="ascii") as lines:
            user, nice, system, idle, waiting, *rest = (int(word) for word in next(lines).split()[1:])
        ticks, busy = os.sysconf("SC_CLK_TCK"), user + nice + system + sum(rest[:3])  # the others are parts of user
        own = sum(use.ru_utime + use.ru_stime for use in uses)
        return cls((busy + idle + waiting) / ticks, busy / ticks, own)

    def others_since(self, start: Busy) -> float:
        """The share of the processors' time since ``start`` that other work took, the system's own included."""
        busy, own = self.busy - start.busy, self.own - start.own
        return max(busy - own, 0.0) / max(self.all - start.all, 1e-9)
