"""Scans every file of the hostile corpus in a process of its own: status, messages, memory and time.

``python -m benchmarks.hostile --out docs/benchmarks``. Writes ``hostile.md``. Exit status 1 if a file is not refused
or reported as it must be, or takes 200 MB or 2 s more than the scan of a good tiny file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import save_file

from benchmarks.observed import Observed, observe
from tests.hostile import CANARY, CASES, Case, Expect

MOST_MEMORY = 200_000_000
MOST_SECONDS = 2.0
_TRIES = 3
_BASELINES = 5
STATUSES = {
    Expect.ERROR: {2},
    Expect.PARTIAL: {3},
    Expect.FINDING: {0, 3},
    Expect.FINE: {0, 3},
}
_MEANING = {
    Expect.ERROR: "refused with one line",
    Expect.PARTIAL: "read as far as possible, and said to be incomplete",
    Expect.FINDING: "odd but whole: read, with a finding in the report",
    Expect.FINE: "odd but valid: read; what matters is what it does not do",
}


@dataclass(frozen=True, slots=True)
class Baseline:
    """The scan of a good tiny file: medians of some runs."""

    anonymous: int
    resident: int
    processor: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one case took beyond the baseline, and what is wrong with it, if anything."""

    case: Case
    status: int | None
    memory: int
    seconds: float
    faults: tuple[str, ...]


def scan(path: Path, registry: Path) -> Observed:
    """Scan ``path``, given on standard input, where it may hold any byte."""
    return observe(["scan", "-", "--format", "json", "--registry", str(registry)], stdin=os.fsencode(path))


def prepare(folder: Path) -> tuple[Path, Baseline]:
    """A registry of two models, and the baseline."""
    registry = folder / "registry"
    for seed in (1, 2):
        random = np.random.default_rng(seed)
        path = folder / f"model{seed}.safetensors"
        save_file({f"w{i}": random.normal(0, 0.05, (96, 64)).astype(np.float32) for i in range(6)}, path)
        done = observe(["register", str(path), "--name", f"a/m{seed}", "--registry", str(registry), "-q"])
        if done.status != 0:
            raise SystemExit(f"cannot register: {done.err}")
    good = folder / "good.safetensors"
    save_file({"w": np.random.default_rng(3).normal(0, 0.05, (64, 64)).astype(np.float32)}, good)
    runs = [scan(good, registry) for _ in range(_BASELINES)]
    if any(run.status != 0 for run in runs):
        raise SystemExit(f"a good file is not scanned: {runs[0].err}")
    return registry, Baseline(
        int(median(run.anonymous for run in runs)),
        int(median(run.resident for run in runs)),
        median(run.processor for run in runs),
    )


def judge(case: Case, seen: Observed, baseline: Baseline, folder: Path) -> Outcome:
    """Compare what was seen with what must be."""
    # Anonymous memory is sampled and could be missed; the resident peak is exact, but counts mapped files. Where the
    # exact one is within the bound, so is the other.
    memory = max(seen.anonymous - baseline.anonymous, 0)
    exact = max(seen.resident - baseline.resident, 0)
    # A scan never waits for anything, and time on a processor is the same on a busy machine.
    seconds = max(seen.processor - baseline.processor, 0.0)
    faults = []
    if seen.status not in STATUSES[case.expect]:
        faults.append(f"status {seen.status}")
    lines = seen.err.splitlines()
    if len(lines) > 1:
        faults.append(f"{len(lines)} lines on standard error")
    if case.expect is Expect.ERROR and not lines:
        faults.append("nothing on standard error")
    if "Traceback" in seen.err or "defect" in seen.err:
        faults.append("a crash")
    if not _is_report(seen.out):
        faults.append("no report")
    if max(memory, exact) >= MOST_MEMORY:
        faults.append("memory")
    if seconds >= MOST_SECONDS:
        faults.append("time")
    if (folder / CANARY).exists():
        faults.append("code of the file was run")
    return Outcome(case, seen.status, max(memory, exact), seconds, tuple(faults))


def _is_report(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, list) and len(found) == 1


def examine(case: Case, registry: Path, baseline: Baseline) -> Outcome:
    """Build and scan one case; again where only the time is at fault, which a busy machine may be to blame for."""
    for _ in range(_TRIES):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            outcome = judge(case, scan(case.build(folder), registry), baseline, folder)
        if outcome.faults != ("time",):
            break
    return outcome


def page(outcomes: list[Outcome], baseline: Baseline) -> str:
    """The page in Markdown."""
    failed = [one for one in outcomes if one.faults]
    lines = [
        "# Hostile corpus",
        "",
        f"`python -m benchmarks.hostile`: {len(outcomes)} files made by code (`tests/hostile`), each scanned in a "
        f"process of its own; {len(failed)} failed.",
        "",
        f"The baseline is the scan of a good file of one small matrix: {baseline.processor:.2f} s with the start of "
        f"the interpreter, {baseline.anonymous / 1e6:.0f} MB anonymous and {baseline.resident / 1e6:.0f} MB resident "
        "at the peak. Memory and time in the tables are beyond it. Memory is the larger of the peak of anonymous "
        "memory (sampled every 5 ms) and of resident memory (exact, with the pages of mapped files). Time is that of "
        "all threads on a processor, which other work on the machine does not lengthen much; a case that took too "
        f"long was run again, up to {_TRIES} times. The bounds are {MOST_MEMORY / 1e6:.0f} MB and {MOST_SECONDS:g} s.",
        "",
        "| expected | statuses | cases | failed | most memory, MB | longest, s |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for expect, meaning in _MEANING.items():
        group = [one for one in outcomes if one.case.expect is expect]
        if group:
            statuses = ", ".join(
                str(status) for status in sorted({one.status for one in group if one.status is not None})
            )
            lines.append(
                f"| {meaning} | {statuses} | {len(group)} | {sum(bool(one.faults) for one in group)} | "
                f"{max(one.memory for one in group) / 1e6:.1f} | {max(one.seconds for one in group):.2f} |"
            )
    lines += ["", "| case | expected | status | memory, MB | time, s | at fault |", "|---|---|--:|--:|--:|---|"]
    lines += [
        f"| {_cell(one.case.name)} | {one.case.expect} | {one.status} | {one.memory / 1e6:.1f} | {one.seconds:.2f} | "
        f"{', '.join(one.faults)} |"
        for one in outcomes
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text).replace("|", "\\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder of the page (default: standard output)")
    parser.add_argument("--only", default="", help="only cases whose names hold this text")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    with tempfile.TemporaryDirectory() as name:
        registry, baseline = prepare(Path(name))
        outcomes = []
        for case in cases:
            outcomes.append(examine(case, registry, baseline))
            if outcomes[-1].faults:
                print(f"{case.name}: {', '.join(outcomes[-1].faults)}", file=sys.stderr)
    text = page(outcomes, baseline)
    if options.out is None:
        print(text)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "hostile.md").write_text(text, "utf-8")
    return 1 if any(one.faults for one in outcomes) or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
