"""Fuzzes every target and writes the page: ``python -m benchmarks.fuzz --runs 200000 --out docs/benchmarks``.

Each target runs in a child of this process until it has done so many executions or spent ``--seconds`` of CPU time.
``--rows`` keeps what came of the targets of several calls, such as one for each with ``--only``, for one page.
Exit status 1 if anything was found; the inputs are in ``--keep``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.fuzz.one import TARGETS, Plan, fuzz

_MENDED = (
    "npz, PyTorch: a file of less than 18 bytes with the beginning of a ZIP archive's end in it raised `struct.error`",
    "zarr: a shard in chunks of no elements raised `ZeroDivisionError`",
)
_PULSE = re.compile(r"^#\d+\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one target."""

    name: str
    runs: int
    seconds: float
    edges: int
    features: int
    corpus: int
    slowest: float
    peak: int
    findings: tuple[str, ...]


def kept(file: Path) -> list[Row]:
    """The last row of each target in ``file``, in the order of the targets."""
    found: dict[str, Row] = {}
    if file.is_file():
        for line in file.read_text("utf-8").splitlines():
            told = json.loads(line)
            found[told["name"]] = Row(**told | {"findings": tuple(told["findings"])})
    return [found[name] for name in TARGETS if name in found]


def fuzzed(name: str, plan: Plan) -> Row:
    """Fuzzes ``name`` in a child of this process, which has everything imported and instrumented already."""
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        child = os.fork()
        if not child:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 2)
                os.dup2(file.fileno(), 1)
                try:
                    fuzz(name, plan, result)
                finally:
                    os._exit(1)
        os.waitpid(child, 0)
        text = log.read_text("utf-8", "replace")
        told = json.loads(result.read_text()) if result.is_file() else {}
    pulses = _PULSE.findall(text) or [("0", "0", "0")]
    findings = [f"{place} ({file})" for place, file in told.get("findings", {}).items()]
    if not told:
        tail = next((line for line in reversed(text.splitlines()) if "ERROR" in line), text[-300:])
        findings.append(f"the process ended: {tail}")
    edges, features, corpus = (int(max(column, key=int)) for column in zip(*pulses, strict=True))
    return Row(
        name, told.get("runs", 0), told.get("seconds", 0.0), edges, features, corpus, told.get("slowest", 0.0),
        told.get("peak_mb", 0), tuple(findings),
    )  # fmt: skip


def page(rows: list[Row]) -> str:
    """The page."""
    total = sum(row.runs for row in rows)
    lines = [
        "# Coverage-guided fuzzing",
        "",
        "Every parser of hostile bytes is a target of atheris (libFuzzer), instrumented, with small good files of",
        "the producing libraries to begin from. An input may end in one of the project's own errors and in nothing",
        "else. It is a finding too if it takes ten seconds, or if the process, instrumentation and torch included,",
        "grows beyond 2 GB. Made by `make bench-fuzz`, which gives each target a number of executions and a time:",
        "the one that ended first ended it.",
        "",
        f"- {len(rows)} targets, {total:,} executions, {sum(row.seconds for row in rows):,.0f} s of CPU time.",
        f"- {sum(len(row.findings) for row in rows)} findings in this run.",
        "",
        "Edges and features are libFuzzer's counts of what was reached, corpus the inputs that reached something new.",
        "Memory is the peak of the whole process.",
        "",
        "| target | parser | executions | CPU, s | edges | features | corpus | slowest, s | memory, MB | findings |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| {row.name} | {TARGETS[row.name].parser} | {row.runs:,} | {row.seconds:.0f} | {row.edges:,} | "
        f"{row.features:,} | {row.corpus:,} | {row.slowest:.2f} | {row.peak:,} | {'; '.join(row.findings) or 'none'} |"
        for row in rows
    ]
    lines += [
        "",
        "Found so far, mended, and kept as cases of the hostile corpus:",
        "",
        *(f"- {one}" for one in _MENDED),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=180.0, help="most seconds of CPU time of a target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=sorted(TARGETS))
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--rows", type=Path, help="file of JSON lines: adds to it, and makes the page of all of it")
    parser.add_argument("--out", type=Path, help="folder of the page (default: standard output)")
    options = parser.parse_args()
    plan = Plan(options.runs, options.seconds, options.seed, options.keep)
    rows = []
    for name in options.only or TARGETS:
        rows.append(fuzzed(name, plan))
        print(rows[-1], file=sys.stderr, flush=True)
        if options.rows is not None:
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(rows[-1])) + "\n")
    text = page(rows if options.rows is None else kept(options.rows))
    if options.out is None:
        print(text)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "fuzz.md").write_text(text, "utf-8")
    return 1 if any(row.findings for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
