"""Command: make the index of some sizes, ask it about damaged relatives, write the page.

Writes ``vectors.md`` and ``vectors.json`` to OUT; sizes measured before stay in the file. Every size is made and asked
in processes of their own, so that memory is told apart. Exit status 1 if the true model is among the first ten too
rarely.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.vectors import measure, report
from signatures.memory import available

SIZES = [1_000_000, 3_000_000, 10_000_000]
COSINES = (0.9, 0.7, 0.5)
DEMANDED_AT = 0.7
ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vectors", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the page and the numbers")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--grown", type=int, nargs="*", default=SIZES, help="those that are let grow, too")
    parser.add_argument("--suspects", type=int, default=100, help="at each cosine")
    parser.add_argument("--work", type=Path, help="folder for the indexes (default: a temporary one)")
    parser.add_argument("--phase", choices=["build", "ask", "grow"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.phase is not None:
        print(json.dumps(_phase(options.phase, options.work, options.sizes[0], options.suspects)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    numbers = options.out / "vectors.json"
    known: dict[str, Any] = json.loads(numbers.read_text())["sizes"] if numbers.exists() else {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            made = _run("build", Path(folder), size, options.suspects)
            known[str(size)] = {"build": made, **_run("ask", Path(folder), size, options.suspects)}
            shutil.rmtree(Path(folder) / "index")
            if size in options.grown:
                known[str(size)]["grown"] = _run("grow", Path(folder), size, options.suspects)
                shutil.rmtree(Path(folder) / "index")
        result = {
            "schema": report.SCHEMA,
            "machine": machine.described(),
            "cores": measure.cores(),
            "memory": available(),
            "sizes": {key: known[key] for key in sorted(known, key=int)},
        }
        numbers.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        (options.out / "vectors.md").write_text(report.to_markdown(result))
    print((options.out / "vectors.md").read_text())
    return 0 if report.right(result) else 1


def _run(phase: str, folder: Path, size: int, suspects: int) -> Any:
    """One phase in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.vectors", "--out", str(folder), "--work", str(folder)]
    command += ["--sizes", str(size), "--suspects", str(suspects), "--phase", phase]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def _phase(phase: str, folder: Path, size: int, suspects: int) -> dict[str, Any]:
    index = folder / "index"
    if phase == "build":
        return measure.build(index, size)
    if phase == "grow":
        made = measure.grow(index, size)
        return {"build": made, "asked": measure.ask(index, size, [DEMANDED_AT], suspects, _say)}
    told = measure.ask(index, size, COSINES, suspects, _say)
    resident = measure.memory()
    recall = measure.recall(index, size, COSINES, suspects)
    return {"asked": told, "resident": resident, "recall": recall, "add": measure.add_one(index, size)}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
