"""The scanning process: knows the paths of suspects and of registries, and nothing else.

``python -m benchmarks.lineage.scan JOBS REPORTS SCORES [DEPTH]`` reads a JSON list of
``{"registry": DIR, "suspects": [PATH]}`` and writes one line a suspect: to REPORTS what ``fp scan --format jsonl``
prints, to SCORES how it compares with some registered models whether or not they match, which reports leave out: with
those registered here, and with a few of the imported ones, drawn by chance.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fingerprint.comparing.evidence import Test
from fingerprint.errors import InputError, SignatureError
from fingerprint.vocabulary import Depth
from signatures.identify import compare_all
from signatures.options import ScanOptions
from signatures.records import LOCAL
from signatures.registry import Registry
from signatures.scan import scan_path
from signatures.suspect import open_suspect

if TYPE_CHECKING:
    from fingerprint.comparing.comparison import Comparison
    from signatures.records import ModelRecord

STRANGERS = 6


def scan_all(jobs: Path, reports: Path, scores: Path, depth: Depth = Depth.DEEP) -> None:
    """Scan every suspect of a file of jobs."""
    options = ScanOptions(depth=depth)
    with reports.open("w") as told, scores.open("w") as scored:
        for job in json.loads(jobs.read_text()):
            with Registry.open(job["registry"], create=False) as registry:
                for path in job["suspects"]:
                    report = scan_path(registry, path, options=options)
                    told.write(json.dumps(report.to_json(), allow_nan=False) + "\n")
                    told.flush()
                    scored.write(json.dumps({"path": path, "scores": _scores(registry, path, depth)}) + "\n")


def _scores(registry: Registry, path: str, depth: Depth) -> dict[str, dict[str, float]]:
    """How a suspect compares with a few models, by name; nothing if it cannot be read."""
    chosen = _chosen(registry, path)
    known = [registry.load_signature(model).fingerprint for model in chosen]
    try:
        with open_suspect(path) as opened:
            comparisons = compare_all(opened.at(depth), known)
    except (InputError, SignatureError):
        return {}
    return {model.name: _numbers(one) for model, one in zip(chosen, comparisons, strict=True)}


def _chosen(registry: Registry, path: str) -> list[ModelRecord]:
    models = registry.models()
    strangers = [model for model in models if model.origin != LOCAL]
    chance = random.Random(Path(path).name)
    return [model for model in models if model.origin == LOCAL] + chance.sample(
        strangers, min(STRANGERS, len(strangers))
    )


def _numbers(comparison: Comparison) -> dict[str, float]:
    """The statistics whose distributions are drawn; a test that could not be done is left out."""
    found: dict[str, Any] = {"similarity": comparison.similarity, "log10_p": comparison.log10_p}
    for one in comparison.evidence:
        if one.test is Test.ALIGN:
            found["landed"] = one.statistic
        elif one.test is Test.SKETCH:
            found["sketch"] = one.statistic
        elif one.test is Test.ROWS:
            found["agreement"] = float(one.detail["agreement"])
    if comparison.neurons:
        found["concordance"] = sum(match.concordance for match in comparison.neurons) / len(comparison.neurons)
    return found


if __name__ == "__main__":
    scan_all(*map(Path, sys.argv[1:4]), *map(Depth, sys.argv[4:]))
