"""Fuzzes one target with atheris, in this process, which does not come back.

Everything but ``WeightprintError`` is a finding: it is kept, once for each place in the code, and the run goes on.
libFuzzer ends the process where an input takes ten seconds or memory beyond the limit.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import atheris

# Where the seeds come from is not what is looked into.
import benchmarks.fuzz.seeds  # noqa: F401  isort: skip

MEMORY_MB = 2048
"""Resident memory of the process, instrumentation, torch and corpus included, beyond which an input is a finding."""
ADDRESS_SPACE = 24 << 30
INPUT_SECONDS = 10
LARGEST = 1 << 16
MOST_FINDINGS = 50

INSTRUMENTED = ("fingerprint", "signatures")

if early := sorted(name for name in sys.modules if name.startswith(INSTRUMENTED)):
    raise ImportError(f"imported before it could be instrumented: {', '.join(early)}")

with atheris.instrument_imports(include=list(INSTRUMENTED)):
    from benchmarks.fuzz.targets import TARGETS
    from fingerprint.errors import WeightprintError


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a target is fuzzed: executions, seconds of CPU time; the seed; where findings are kept."""

    runs: int
    seconds: float
    seed: int
    keep: Path


class Run:
    """A target while it is fuzzed; ``result`` is the file of JSON that says what came of it."""

    def __init__(self, name: str, plan: Plan, result: Path) -> None:
        self._name = name
        self._target = TARGETS[name]
        self._plan = plan
        self._result = result
        self._found: dict[str, str] = {}
        self._done = 0
        self._slowest = 0.0
        self._begun = time.process_time()

    def once(self, data: bytes) -> None:
        """Runs the parser on one input; ends the process where the plan is fulfilled."""
        started = time.process_time()
        if self._done >= self._plan.runs or started - self._begun > self._plan.seconds:
            self._report()
            os._exit(0)  # libFuzzer cannot be asked to stop after CPU time
        self._done += 1
        try:
            self._target.run(data)
        except WeightprintError:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            self._keep(data, error)
        self._slowest = max(self._slowest, time.process_time() - started)

    def _keep(self, data: bytes, error: BaseException) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        if place not in self._found and len(self._found) < MOST_FINDINGS:
            name = f"{self._name}-{hashlib.sha256(data).hexdigest()[:12]}"
            (self._plan.keep / name).write_bytes(data)
            (self._plan.keep / f"{name}.txt").write_text("".join(traceback.format_exception(error)))
            self._found[place] = name

    def _report(self) -> None:
        result = {
            "runs": self._done, "seconds": time.process_time() - self._begun, "slowest": self._slowest,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "findings": self._found,
        }  # fmt: skip
        self._result.write_text(json.dumps(result))


def fuzz(name: str, plan: Plan, result: Path) -> None:
    """Fuzzes the target ``name``; does not return."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    plan.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(TARGETS[name].seeds()):
            if len(data) <= LARGEST:
                (Path(folder) / str(number)).write_bytes(data)
        arguments = [
            sys.argv[0], f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={LARGEST}",
            f"-seed={plan.seed}", f"-artifact_prefix={plan.keep}/{name}-", folder,
        ]  # fmt: skip
        atheris.Setup(arguments, Run(name, plan, result).once)
        atheris.Fuzz()
