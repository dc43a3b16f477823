"""Runs the program in a process of its own and sees what it took: status, streams, time, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# The process looks at itself: the largest resident memory is kept by the kernel, so that no peak is missed; what is
# anonymous is sampled, since mapped files count as resident too.
_CHILD = """
import json, os, sys, threading, time
here = {"anonymous": 0}
def status():
    with open("/proc/self/status", encoding="ascii") as lines:
        found = dict(line.split(":", 1) for line in lines)
    return {name: int(found[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")}
def watch():
    while True:
        here["anonymous"] = max(here["anonymous"], status()["RssAnon"])
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
from cli.main import run
code = int(run(sys.argv[2:]))
sys.stdout.flush()
end = status()
here["anonymous"] = max(here["anonymous"], end["RssAnon"])
here |= {"resident": end["VmHWM"], "code": code, "processor": time.process_time()}
with open(sys.argv[1], "w", encoding="ascii") as file:
    json.dump(here, file)
os._exit(code)
"""


@dataclass(frozen=True, slots=True)
class Observed:
    """``status`` is None if the process did not come to an end of its own; memory in bytes, time in seconds.

    ``resident`` is the exact peak, mapped files included; ``anonymous`` a peak of samples 5 ms apart. ``processor`` is
    the time of all threads on a processor, ``wall`` that on the clock, both with the start of the interpreter.
    """

    status: int | None
    out: str
    err: str
    anonymous: int
    resident: int
    processor: float
    wall: float


def observe(arguments: Sequence[str], *, stdin: bytes = b"", limit: float = 120.0) -> Observed:
    """Run ``fp`` with ``arguments`` in a process of its own, for ``limit`` seconds at most."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "note.json"
        began = time.perf_counter()
        try:
            ran = subprocess.run(
                [sys.executable, "-c", _CHILD, str(note), *arguments],
                input=stdin,
                capture_output=True,
                timeout=limit,
                check=False,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        except subprocess.TimeoutExpired as late:
            return Observed(None, "", (late.stderr or b"").decode(errors="replace"), 0, 0, limit, limit)
        wall = time.perf_counter() - began
        seen: dict[str, Any] = json.loads(note.read_text("ascii")) if note.exists() else {}
    return Observed(
        seen.get("code"),
        ran.stdout.decode(errors="replace"),
        ran.stderr.decode(errors="replace"),
        seen.get("anonymous", 0),
        seen.get("resident", 0),
        seen.get("processor", 0.0),
        wall,
    )
