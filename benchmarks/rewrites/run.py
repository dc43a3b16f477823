"""Command: scan rewritten models of the zoo, end to end, and write the table of what was found.

Registers originals, makes every suspect with ``benchmarks.rewrites.make`` (names, configuration and tokenizer gone,
tensors in random order), scans it as ``fp scan`` does, and counts.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from benchmarks.rewrites.make import make_all, plan
from benchmarks.zoo.recipes import FAMILIES, STYLES
from benchmarks.zoo.store import weights_path
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from signatures.registry import Registry
from signatures.report import Confidence, Link, Verdict
from signatures.scan import scan_path
from signatures.signature import sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from benchmarks.rewrites.make import Job
    from signatures.report import Report

TOGETHER = ("laundered", "all-but-vocabulary", "all")
"""Rewrites that damages come on top of."""
WHOLE = ("A", "B")
RELATIVES = ("A", "A-ftx")
_LAYER = ("*.layers.1.*", "*.h.1.*", "*.layer.1.*")
_MLP = ("*.1.mlp.*", "*.layer.1.intermediate.dense.*", "*.layer.1.output.dense.*")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the benchmark: whose rewrites are scanned against which registered models.

    ``source`` and ``registered`` are endings of ids; ``expected`` that of the model that must come first, "" for none;
    ``allowed`` those that may be listed beside it, without accusing. ``kept``: patterns of the only tensors that the
    suspect has, by the names that they had.
    """

    name: str
    source: str
    registered: tuple[str, ...]
    expected: str
    allowed: tuple[str, ...]
    only: tuple[str, ...]
    after: tuple[str, ...]
    kept: tuple[str, ...] = ("*",)


PARTS = (
    Part("each alone", "A", WHOLE, "A", (), ("*",), ("intact",)),
    Part("damaged", "A", WHOLE, "A", (), TOGETHER, ("[!i]*",)),
    Part("siblings", "A-fty", RELATIVES, "A", ("A-ftx",), ("*",), ("intact",)),
    Part("one layer", "A", WHOLE, "A", (), ("laundered",), ("*",), _LAYER),
    Part("one layer, trained on", "A-cont", WHOLE, "A", (), ("laundered",), ("intact",), _LAYER),
    Part("one layer of a look-alike", "B", RELATIVES, "", (), ("laundered",), ("intact", "4bit"), _LAYER),
    Part("one MLP", "A", WHOLE, "A", (), ("laundered",), ("*",), _MLP),
    Part("one MLP, trained on", "A-cont", WHOLE, "A", (), ("laundered",), ("intact",), _MLP),
    Part("one MLP of a look-alike", "B", RELATIVES, "", (), ("laundered",), ("intact", "4bit"), _MLP),
    Part("look-alikes", "B", RELATIVES, "", (), ("*",), ("intact", "4bit", "sparse-50", "neurons-halved")),
)


def score(report: Report, part: Part, stem: str) -> dict[str, Any]:
    """What a report says, and whether it is right: ``found`` (or rightly nothing), ``strangers`` at possible or above,
    ``accused``: models that must not be accused and are."""
    best = report.matches[0] if report.matches else None
    right = f"{stem}-{part.expected}" if part.expected else ""
    allowed = {right, *(f"{stem}-{one}" for one in part.allowed)}
    sure = report.verdict is Verdict.MATCH and best is not None and best.confidence is not Confidence.POSSIBLE
    accusing = [one.model for one in report.matches if one.link is Link.LINEAGE]
    found = report.verdict is Verdict.NO_MATCH if not right else sure and best is not None and best.model == right
    return {
        "verdict": report.verdict.value,
        "first": "" if best is None else best.model.removeprefix(f"{stem}-"),
        "confidence": "" if best is None else best.confidence.value,
        "log10_p": 0.0 if best is None else best.log10_p,
        "test": "" if best is None else min(best.evidence, key=lambda one: one.log10_p).test,
        "relation": "" if best is None else best.relation.value,
        "undone": [] if best is None else list(best.undone),
        "coverage": 0.0 if best is None else best.coverage.suspect,
        "concordance": _concordance(report),
        "found": bool(found),
        "strangers": sorted({one.model for one in report.matches} - allowed),
        "accused": sorted(set(accusing) - {right}),
        "error": report.error,
        "seconds": report.seconds,
    }


def _concordance(report: Report) -> dict[str, float]:
    details = [one.detail for match in report.matches[:1] for one in match.evidence if one.test == "even"]
    return {
        name.removeprefix("concordance-"): float(value)
        for detail in details
        for name, value in detail.items()
        if name.startswith("concordance-")
    }


def register(registry: Registry, zoo: Path, ids: Iterable[str]) -> None:
    """Register models of the zoo; a fine-tune names its parent as its base."""
    for name in ids:
        with open_checkpoint(weights_path(zoo, name)) as checkpoint:
            made = sign(fingerprint(checkpoint, workers=1))
        base = name.rpartition("-ft")[0]
        registry.register(made, name=name, base=base or None)


def run_part(zoo: Path, part: Part, jobs: Sequence[Job], *, family_name: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Make and scan the suspects of one part, one at a time."""
    stems = dict.fromkeys(job.stem for job in jobs)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with Registry.open(place / "registry", create=True) as registry:
            register(registry, zoo, [f"{stem}-{one}" for stem in stems for one in part.registered])
            for number, job in enumerate(jobs):
                out = place / str(number)
                truth = json.loads(make_all(zoo, [job], out, family_name=family_name, quick=quick).read_text())
                ((path, made),) = truth["suspects"].items()
                suspect = out / path
                if part.kept != ("*",):
                    kept = {name for name, was in made["tensors"].items() if _matches(was, part.kept)}
                    save_file({name: w for name, w in load_file(suspect).items() if name in kept}, suspect)
                started = time.process_time()
                report = scan_path(registry, suspect)
                yield {
                    "part": part.name,
                    "stem": job.stem,
                    "rewrite": job.rewrite.name,
                    "damage": job.damage.name,
                    **score(report, part, job.stem),
                    "cpu": time.process_time() - started,
                }
                suspect.unlink()


def run(
    zoo: Path,
    *,
    family_name: str,
    quick: bool,
    models: Sequence[str],
    only: Sequence[str],
    parts: Sequence[str],
    report: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """All rows of the benchmark. Raises FileNotFoundError if a model is not in the zoo."""
    rows = []
    for part in PARTS:
        if not _matches(part.name, parts):
            continue
        jobs = [
            job
            for job in plan(
                family_name, quick=quick, models=models, sources=[part.source], only=part.only, after=part.after
            )
            if _matches(f"{job.rewrite.name}/{job.damage.name}", only)
            and (job.damage.name == "intact" or job.rewrite.name in TOGETHER)
            and (job.damage.name != "continued" or job.rewrite.name == "all")
        ]
        for row in run_part(zoo, part, jobs, family_name=family_name, quick=quick) if jobs else ():
            rows.append(row)
            keep(row)
            said = f"{row['verdict']} {row['first']} {row['confidence']} {row['log10_p']:.1f} {row['test']}"
            flags = "" if row["found"] and not row["strangers"] and not row["accused"] else "   <<<"
            concordance = " ".join(f"{name} {value:.2f}" for name, value in row["concordance"].items())
            report(
                f"{part.name}: {row['stem']} {row['rewrite']}/{row['damage']}: {said} [{concordance}]"
                f" {','.join(row['undone'])} {row['cpu']:.1f}s{flags}"
            )
    return rows


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 if everything came out as it must."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewrites.run", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / ".cache" / "zoo")
    parser.add_argument("--family", choices=(*FAMILIES, STYLES), default="a")
    parser.add_argument("--rows", type=Path, help="a file that each row is appended to as a line of JSON")
    parser.add_argument("--models", action="append", metavar="GLOB", help="shapes, such as '*-128'")
    parser.add_argument("--only", action="append", metavar="GLOB", help="rewrite/damage")
    parser.add_argument("--part", action="append", metavar="GLOB", help=", ".join(one.name for one in PARTS))
    parser.add_argument("--quick", action="store_true", help="the tiny models of the quick zoo")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def keep(row: dict[str, Any]) -> None:
        if options.rows is not None:
            with options.rows.open("a", encoding="utf-8") as lines:
                print(json.dumps(row), file=lines)

    with threadpool_limits(1):
        rows = run(
            options.zoo,
            family_name=options.family,
            quick=options.quick,
            models=options.models or ["*"],
            only=options.only or ["*"],
            parts=options.part or ["*"],
            report=lambda line: print(line, file=sys.stderr, flush=True),
            keep=keep,
        )
    wrong = [row for row in rows if not row["found"] or row["strangers"] or row["accused"]]
    print(f"{len(rows) - len(wrong)} of {len(rows)} as they must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
