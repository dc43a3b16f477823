"""Command: derive the suspects of a family, scan them in another process, and write what came out as a table.

Writes ``lineage-FAMILY.md``, ``lineage-FAMILY.json`` and ``lineage-FAMILY-scores.png`` to OUT. Exit status 1 if a case
fails, 2 if the command cannot do its work. Held-out families are scored only with the rules as they were frozen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lineage.derive import derive_all
from benchmarks.lineage.distributions import collect, draw, rows
from benchmarks.lineage.freeze import HELD_OUT, ROOT, digest, frozen_file, state
from benchmarks.lineage.registries import Builder, plan
from benchmarks.lineage.score import Outcome, score
from benchmarks.lineage.table import summary, to_json, to_markdown
from benchmarks.zoo.recipes import FAMILIES, family
from fingerprint.vocabulary import Depth

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class RulesChangedError(Exception):
    """A held-out family is scored once, with frozen rules; these are others."""


def scan(
    truth: Mapping[str, Any], derived: Path, zoo: Path, work: Path, report: Callable[[str], None], depth: Depth
) -> tuple[list[dict[str, Any]], Path]:
    """Build the registries, scan every suspect in a process of its own; the reports, and the path of the scores."""
    plans = plan(truth, zoo)
    registries = Builder(zoo, derived, work, family(truth["family"], quick=truth["quick"])).build(plans, report)
    report(f"scanning {len(truth['suspects'])} suspects against {len(plans)} registries")
    jobs, reports, scores = work / "jobs.json", work / "reports.jsonl", work / "scores.jsonl"
    listed = [
        {"registry": str(folder), "suspects": [str(derived / path) for path in sorted(one.suspects)]}
        for folder, one in zip(registries, plans, strict=True)
    ]
    jobs.write_text(json.dumps(listed))
    command = [sys.executable, "-m", "benchmarks.lineage.scan", str(jobs), str(reports), str(scores), depth]
    # One thread for each library: the suspects are small, and a shared machine stays usable.
    subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1", **os.environ}, check=True)
    return [json.loads(line) for line in reports.read_text().splitlines()], scores


def outcomes(truth: Mapping[str, Any], derived: Path, reports: Sequence[dict[str, Any]]) -> list[Outcome]:
    """Join reports with the truth, in the order of the truth; raises KeyError if a suspect was not scanned."""
    said = {str(Path(report["suspect"]["path"]).relative_to(derived)): report for report in reports}
    return [score(suspect, said[path]) for path, suspect in truth["suspects"].items()]


def run(
    *,
    family_name: str,
    zoo: Path,
    out: Path,
    work: Path,
    quick: bool = False,
    derived: Path | None = None,
    models: Sequence[str] = ("*",),
    only: Sequence[str] = ("*",),
    changed_rules: bool = False,
    depth: Depth = Depth.DEEP,
    report: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Do everything, and write the results to ``out``.

    ``derived`` is a folder of suspects that are there already. ``changed_rules`` allows a held-out family with
    rules that are not the frozen ones, and the table says so. Raises RulesChangedError if that is not allowed;
    FileExistsError, FileNotFoundError and ValueError as deriving does; CalledProcessError if the scanning process
    fails.
    """
    frozen, changed = state(frozen_file(family_name))
    if family_name in HELD_OUT and not quick and not changed_rules:
        if frozen is None:
            raise RulesChangedError("the rules are not frozen: python -m benchmarks.lineage freeze FAMILY")
        if changed:
            raise RulesChangedError(f"rules changed since they were frozen on {frozen}: {', '.join(changed)}")
    if derived is None:
        derived = work / "derived"
        report("deriving suspects")
        derive_all(zoo, family_name, derived, quick=quick, models=models, only=only)
    truth = json.loads((derived / "truth" / "truth.json").read_text())
    if truth["family"] != family_name or truth["quick"] != quick:
        raise ValueError(f"{derived} holds suspects of another family")
    reports, scores = scan(truth, derived, zoo, work, report, depth)
    found = outcomes(truth, derived, reports)
    values = collect(truth, derived, scores)
    about = {
        "family": family_name,
        "quick": quick,
        "depth": depth,
        "date": datetime.now(UTC).date().isoformat(),
        "frozen": frozen,
        "changed": changed,
        "rules": digest(),
        "registered": max(one["registry"]["models"] for one in reports),
        "scores": rows(values),
        "seconds": round(statistics.median(one["seconds"] for one in reports), 2),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    out.mkdir(parents=True, exist_ok=True)
    name = f"lineage-{'quick-' if quick else ''}{family_name}{'-quick-look' if depth is Depth.QUICK else ''}"
    draw(values, out / f"{name}-scores.png")
    (out / f"{name}.json").write_text(to_json(found, about))
    (out / f"{name}.md").write_text(to_markdown(found, about, plot=f"{name}-scores.png"))
    return found


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m benchmarks.lineage run", description=__doc__)
    options.add_argument("--family", choices=FAMILIES, default="a")
    options.add_argument("--zoo", type=Path, default=ROOT / ".cache" / "zoo")
    options.add_argument("--out", type=Path, required=True, help="folder for the table and the plots")
    options.add_argument("--work", type=Path, help="keep suspects, registries and reports in this folder, made anew")
    options.add_argument("--derived", type=Path, help="scan the suspects in this folder instead of deriving them")
    options.add_argument("--models", action="append", metavar="GLOB", help="shapes, such as 'a-llama-*'")
    options.add_argument("--only", action="append", metavar="GLOB", help="cases")
    options.add_argument("--quick", action="store_true", help="the tiny models of the quick zoo")
    options.add_argument(
        "--changed-rules", action="store_true", help="score a held-out family with rules that are not the frozen ones"
    )
    options.add_argument("--depth", type=Depth, choices=list(Depth), default=Depth.DEEP, help="depth of the scans")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(arguments)
    started = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - started:7.1f}s {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if options.work is not None:
            work = options.work.resolve()
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
        try:
            found = run(
                family_name=options.family,
                zoo=options.zoo,
                out=options.out,
                work=work,
                quick=options.quick,
                derived=None if options.derived is None else options.derived.resolve(),
                models=options.models or ["*"],
                only=options.only or ["*"],
                changed_rules=options.changed_rules,
                depth=options.depth,
                report=report,
            )
        except (OSError, ValueError, RulesChangedError, subprocess.CalledProcessError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    for line in summary(found):
        print(line)
    for one in found:
        if not one.right:
            print(f"{one.stem} {one.case}: {'; '.join(one.problems)}")
    return 0 if all(one.right for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
