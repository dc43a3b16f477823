"""The rules are frozen before a family is scored that they have not seen: digests of every file with a threshold.

Each such family has a freeze of its own. Rules that were made on its results are other rules, for the next one.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HELD_OUT = ("b", "c", "d")
"""Families that are scored once each, with frozen rules, in the order in which they were made."""
SCHEMA = "lineage-frozen/1"
RULES = (
    "signatures/verdict.py",
    "signatures/relation.py",
    "signatures/mixture.py",
    "signatures/change.py",
    "signatures/descent.py",
    "signatures/scan.py",
    "signatures/identify.py",
    "signatures/reporting.py",
    "signatures/search.py",
    "signatures/suspect.py",
    "signatures/rewriting.py",
    "signatures/attention.py",
    "signatures/gains.py",
    "signatures/reordered.py",
    "signatures/tables.py",
    "signatures/disclosure.py",
    "signatures/contradiction.py",
    "signatures/parts.py",
    "fingerprint/comparing/*.py",
    "fingerprint/parameters.py",
    "fingerprint/content.py",
    "fingerprint/patterns.py",
    "fingerprint/_patterns.c",
    "fingerprint/gauge/*.py",
    "fingerprint/roles/*.py",
    "fingerprint/neurons.py",
    "fingerprint/quick.py",
    "fingerprint/slices.py",
)


def digests(root: Path = ROOT) -> dict[str, str]:
    """SHA-256 of every file of rules, by path; raises FileNotFoundError if a pattern has none."""
    found: dict[str, str] = {}
    for pattern in RULES:
        paths = sorted(root.glob(pattern))
        if not paths:
            raise FileNotFoundError(f"no file of rules is named like {pattern}")
        # Line ends are no rules: a checkout may have other ones.
        found |= {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
            for path in paths
        }
    return found


def digest(root: Path = ROOT) -> str:
    """One SHA-256 over all of them: two tables with the same one come from the same rules."""
    return hashlib.sha256(json.dumps(digests(root), sort_keys=True).encode()).hexdigest()


def frozen_file(family: str) -> Path:
    """Where the rules are written down that a held-out family is scored with; of another family, those frozen last."""
    files = {one: Path(__file__).with_name(f"frozen-{one}.json") for one in HELD_OUT}
    if family in files:
        return files[family]
    there = [path for path in files.values() if path.exists()]
    return there[-1] if there else files[HELD_OUT[-1]]


def freeze(path: Path, root: Path = ROOT) -> dict[str, Any]:
    """Write down the rules as they are now; raises FileExistsError if they are frozen already."""
    if path.exists():
        raise FileExistsError(f"{path.name} is there: the rules were frozen {json.loads(path.read_text())['date']}")
    frozen = {"schema": SCHEMA, "date": datetime.now(UTC).date().isoformat(), "files": digests(root)}
    path.write_text(json.dumps(frozen, indent=1) + "\n")
    return frozen


def state(path: Path, root: Path = ROOT) -> tuple[str | None, list[str]]:
    """The date on which the rules were frozen (None if they are not), and the files that have changed since."""
    if not path.exists():
        return None, []
    frozen = json.loads(path.read_text())
    now = digests(root)
    changed = {name for name in {*now, *frozen["files"]} if now.get(name) != frozen["files"].get(name)}
    return frozen["date"], sorted(changed)
