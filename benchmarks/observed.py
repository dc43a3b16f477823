"""Runs the program in a process of its own and sees what it took: status, streams, time, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

# The process says at its end what it took; what is anonymous is watched from outside, since a thread of its own would
# keep it from forking.
_CHILD = """
import json, os, resource, sys
from cli.main import run
code = int(run(sys.argv[2:]))
sys.stdout.flush()
with open("/proc/self/status", encoding="ascii") as lines:
    resident = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
processor = sum(use.ru_utime + use.ru_stime for use in uses)
with open(sys.argv[1], "w", encoding="ascii") as file:
    json.dump({"resident": resident, "code": code, "processor": processor}, file)
os._exit(code)
"""
_SECONDS_BETWEEN = 0.01
_SECONDS_BETWEEN_SUMS = 0.5


@dataclass(frozen=True, slots=True)
class Observed:
    """``status`` is None if the process did not come to an end of its own; memory in bytes, time in seconds.

    ``resident`` is the exact peak, mapped files included; ``anonymous`` a peak of samples 10 ms apart, or, while there
    are forked processes, of what all of them have together, .5 s apart. ``processor`` is the time of all of them on a
    processor, ``wall`` that on the clock, both with the start of the interpreter.
    """

    status: int | None
    out: str
    err: str
    anonymous: int
    resident: int
    processor: float
    wall: float


def environment(**more: str) -> dict[str, str]:
    """That of this process and ``more``, with Python's caches of compiled modules, as they are for everybody."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | more


def observe(arguments: Sequence[str], *, stdin: bytes = b"", limit: float = 120.0) -> Observed:
    """Run ``fp`` with ``arguments`` in a process of its own, for ``limit`` seconds at most."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "note.json"
        began = time.perf_counter()
        with (
            subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(note), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(OMP_NUM_THREADS="1"),
            ) as process,
            _Watch(process.pid) as watch,
        ):
            try:
                out, err = process.communicate(stdin, timeout=limit)
            except subprocess.TimeoutExpired as late:
                process.kill()
                return Observed(None, "", (late.stderr or b"").decode(errors="replace"), 0, 0, limit, limit)
        wall = time.perf_counter() - began
        seen: dict[str, Any] = json.loads(note.read_text("ascii")) if note.exists() else {}
    return Observed(
        seen.get("code"),
        out.decode(errors="replace"),
        err.decode(errors="replace"),
        watch.anonymous,
        seen.get("resident", 0),
        seen.get("processor", 0.0),
        wall,
    )


class _Watch:
    """Looks at the anonymous memory of a process and its children while the block runs."""

    def __init__(self, pid: int) -> None:
        self.anonymous = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        summed = 0.0
        while not self._over.wait(_SECONDS_BETWEEN):
            with suppress(OSError, ValueError):  # a process that ends while it is looked at
                children = [int(pid) for pid in _read(f"/proc/{self._pid}/task/{self._pid}/children").split()]
                if not children:
                    found = _field(f"/proc/{self._pid}/status", "RssAnon")
                elif time.monotonic() - summed >= _SECONDS_BETWEEN_SUMS:  # which takes some milliseconds
                    summed = time.monotonic()
                    # Of a page that n of them share each has a share of 1/n.
                    found = sum(_field(f"/proc/{pid}/smaps_rollup", "Pss_Anon") for pid in (self._pid, *children))
                else:
                    continue
                self.anonymous = max(self.anonymous, found)


def _field(path: str, name: str) -> int:
    return next((int(line.split()[1]) * 1024 for line in _read(path).splitlines() if line.startswith(f"{name}:")), 0)


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()
