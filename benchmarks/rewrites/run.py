"""Command: scan rewritten models of the zoo, end to end, and write the table of what was found.

Registers originals, makes every suspect with ``benchmarks.rewrites.make`` (names, configuration and tokenizer gone,
tensors in random order), scans it as ``fp scan`` does, and counts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

from benchmarks.rewrites.make import make_all, matches
from benchmarks.rewrites.parts import PARTS, is_right, plan_all
from benchmarks.zoo.recipes import FAMILIES, STYLES
from benchmarks.zoo.store import weights_path
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from signatures.registry import Registry
from signatures.report import Confidence, Link, Verdict
from signatures.scan import scan_path
from signatures.signature import sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from benchmarks.rewrites.make import Job
    from benchmarks.rewrites.parts import Part
    from signatures.report import Report


def score(report: Report, part: Part, stem: str) -> dict[str, Any]:
    """What a report says, and whether it is right: ``found`` (or rightly nothing), ``strangers`` at possible or above,
    ``accused``: models that must not be accused and are."""
    best = report.matches[0] if report.matches else None
    right = f"{stem}-{part.expected}" if part.expected else ""
    line = {right, *(f"{stem}-{one}" for one in part.ancestors)}
    allowed = {*line, *(f"{stem}-{one}" for one in part.allowed)}
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
        "links": {one.model.removeprefix(f"{stem}-"): one.link.value for one in report.matches},
        "strangers": sorted({one.model for one in report.matches} - allowed),
        "accused": sorted(set(accusing) - line),
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


def scan_all(
    zoo: Path, planned: Sequence[tuple[Job, Sequence[Part]]], place: Path, *, family_name: str, quick: bool
) -> Iterator[dict[str, Any]]:
    """Make the suspects, one at a time, and scan each for every part that wants it; ``place`` is an empty folder."""
    stems = dict.fromkeys(job.stem for job, _ in planned)
    with ExitStack() as opened:
        registries = {}
        for endings in dict.fromkeys(part.registered for _, parts in planned for part in parts):
            registry = opened.enter_context(Registry.open(place / "+".join(endings), create=True))
            register(registry, zoo, [f"{stem}-{one}" for stem in stems for one in endings])
            registries[endings] = registry
        for number, (job, parts) in enumerate(planned):
            out = place / str(number)
            truth = json.loads(make_all(zoo, [job], out, family_name=family_name, quick=quick).read_text())
            ((path, made),) = truth["suspects"].items()
            for part in parts:
                suspect = _piece(out / path, made["tensors"], part.kept)
                if suspect is None:
                    continue
                started = time.process_time()
                report = scan_path(registries[part.registered], suspect)
                yield {
                    "part": part.name,
                    "stem": job.stem,
                    "style": job.shape.style.value,
                    "source": job.source,
                    "layer": part.layer,
                    "rewrite": job.rewrite.name,
                    "damage": job.damage.name,
                    **score(report, part, job.stem),
                    "cpu": time.process_time() - started,
                }
            shutil.rmtree(out)


def _piece(suspect: Path, names: Mapping[str, str], patterns: Sequence[str]) -> Path | None:
    """The suspect's tensors whose names were like that, as a file beside it; None if it has none."""
    if patterns == ("*",):
        return suspect
    kept = {name: w for name, w in load_file(suspect).items() if matches(names[name], patterns)}
    target = suspect.with_name("piece.safetensors")
    save_file(kept, target)
    return target if kept else None


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
    planned = plan_all(family_name, quick=quick, models=models, only=only, parts=parts)
    with tempfile.TemporaryDirectory() as folder:
        for row in scan_all(zoo, planned, Path(folder), family_name=family_name, quick=quick):
            rows.append(row)
            keep(row)
            report(_said(row))
    return rows


def _said(row: Mapping[str, Any]) -> str:
    layer = f" layer {row['layer']}" if row["layer"] >= 0 else ""
    what = f"{row['stem']}-{row['source']}{layer}"
    said = f"{row['verdict']} {row['first']} {row['confidence']} {row['log10_p']:.1f} {row['test']}"
    concordance = " ".join(f"{name} {value:.2f}" for name, value in row["concordance"].items())
    others = "".join(f" {name}: {link}" for name, link in row["links"].items() if name != row["first"])
    return (
        f"{row['part']}: {what} {row['rewrite']}/{row['damage']}: {said} [{concordance}] {','.join(row['undone'])}"
        f"{others} {row['cpu']:.1f}s{'' if is_right(row) else '   <<<'}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 if everything came out as it must."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewrites.run", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / ".cache" / "zoo")
    parser.add_argument("--family", choices=(*FAMILIES, STYLES), default="a")
    parser.add_argument("--rows", type=Path, help="a file that each row is appended to as a line of JSON")
    parser.add_argument("--models", action="append", metavar="GLOB", help="shapes, such as '*-128'")
    parser.add_argument("--only", action="append", metavar="GLOB", help="rewrite/damage")
    parser.add_argument(
        "--part", action="append", metavar="GLOB", help=", ".join(dict.fromkeys(one.name for one in PARTS))
    )
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
    wrong = [row for row in rows if not is_right(row)]
    print(f"{len(rows) - len(wrong)} of {len(rows)} as they must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
