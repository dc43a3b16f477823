"""What a quick look at very large repositories takes: bytes, requests, time and memory.

``python -m benchmarks.virtual_hub --out docs/benchmarks``. Serves two invented repositories on this machine, with
connections that break off, makes signatures of them, registers them, and scans them and some of their shards. Writes
``remote.md``. Exit status 1 if something is not found, 1% of a repository is read, or 500 MB of memory are taken.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.observed import Observed, observe
from benchmarks.virtual_hub.invented import Shard, repository
from benchmarks.virtual_hub.server import VirtualHub
from benchmarks.virtual_hub.shapes import deepseek_v3, llama_405b, shards
from fingerprint.remote import Location, RemoteOptions
from signatures.options import ScanOptions
from signatures.registry import Registry
from signatures.scan import scan_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.virtual_hub.server import File
    from signatures.report import Report

MOST_MEMORY = 500_000_000
MOST_SHARE = 0.01
DROPS = 0.005
_LIMIT = 3600.0
NAMES = {"meta-llama/Llama-3.1-405B": "llama", "deepseek-ai/DeepSeek-V3": "deepseek_v3"}


@dataclass(frozen=True, slots=True)
class Row:
    """One run of the program on a whole repository; ``sent`` and what follows are the server's counts."""

    name: str
    command: str
    seen: Observed
    stored: int
    sent: int
    requests: int
    dropped: int
    expected: int

    @property
    def problem(self) -> str:
        if self.seen.status != self.expected:
            return f"status {self.seen.status}: {self.seen.err.splitlines()[-1:]}"
        if self.sent >= MOST_SHARE * self.stored:
            return f"{self.sent / self.stored:.2%} was read"
        return f"{self.seen.anonymous} bytes of memory" if self.seen.anonymous >= MOST_MEMORY else ""


def repositories() -> dict[str, dict[str, File]]:
    llama, deepseek = shards(llama_405b(), 191), shards(deepseek_v3(), 163)
    groups = dict(zip(NAMES, (llama, deepseek), strict=True))
    return {name: dict(repository(groups[name], name, {"model_type": kind})) for name, kind in NAMES.items()}


def run(hub: VirtualHub, name: str, command: str, arguments: Sequence[str], expected: int) -> Row:
    counts = hub.counts
    before = counts.requests, counts.sent, counts.dropped
    seen = observe([command, f"hf://{name}", "--depth", "quick", *arguments, "-q"], limit=_LIMIT)
    requests, sent, dropped = (
        now - then for now, then in zip((counts.requests, counts.sent, counts.dropped), before, strict=True)
    )
    stored = sum(file.size for file in hub.repositories[name].values())
    return Row(name, command, seen, stored, sent, requests, dropped, expected)


def chosen(files: Mapping[str, File], number: int) -> list[Shard]:
    """Some shards: the first, the last, those of fewest and most tensors, and others at random."""
    all_of = [file for file in files.values() if isinstance(file, Shard)]
    by_count = sorted(all_of, key=lambda shard: len(shard.tensors))
    picked = [all_of[0], all_of[-1], by_count[0], by_count[-1]]
    picked += [all_of[place] for place in np.random.default_rng(1).permutation(len(all_of))[:number]]
    return list({shard.name: shard for shard in picked}.values())[:number]


def page(
    made: Mapping[str, Mapping[str, File]],
    rows: Sequence[Row],
    found: Mapping[str, list[tuple[Shard, Report]]],
    start: Observed,
) -> str:
    """The page in Markdown."""
    lines = [
        "# From afar",
        "",
        "`make bench-remote`: a server on the same machine invents two repositories as they are read, with the shapes "
        "of Llama 3.1 405B (bf16) and of DeepSeek-V3 (8-bit floats with scales by block), every byte a function of its "
        "place. `fp sketch` and `fp scan` look at them at quick depth through `hf://`, each in a process of its own, "
        f"on x86_64, {os.cpu_count()} cores, which the server shares. {DROPS:.1%} of the answers break off somewhere "
        "in the middle. Bytes and requests are the server's counts. Time is on a processor, memory the peak of "
        f"anonymous memory with the interpreter (`fp --version` alone: {start.anonymous / 1e6:.0f} MB). The bounds are "
        f"{MOST_SHARE:.0%} of the bytes and {MOST_MEMORY / 1e6:.0f} MB. No network lies between the two: over one, the "
        "time is that of the requests, of which up to 16 are under way at once.",
        "",
        "| repository | shards | tensors | GB | command | read, MB | share | requests | broken off | CPU, s | MB |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        held = [file for file in made[row.name].values() if isinstance(file, Shard)]
        tensors = sum(len(shard.tensors) for shard in held)
        cells = [row.name, f"{len(held)}", f"{tensors:,}", f"{row.stored / 1e9:.1f}", f"`fp {row.command}`"]
        cells += [f"{row.sent / 1e6:,.0f}", f"{row.sent / row.stored:.3%}", f"{row.requests:,}", f"{row.dropped:,}"]
        lines.append(f"| {' | '.join([*cells, f'{row.seen.processor:.0f}', f'{row.seen.anonymous / 1e6:.0f}'])} |")
    lines += [
        "",
        "Single shards, scanned at quick depth against the registry that holds both signatures. Found: named as the "
        "right model, with `lineage`, at `certain`.",
        "",
        "| repository | shards scanned | tensors in each | found | read, share of a shard | largest log10 p |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, of in found.items():
        counts = [len(shard.tensors) for shard, _ in of]
        shares = [report.suspect.bytes_read / report.suspect.bytes for _, report in of]
        right = sum(is_found(report, name) for _, report in of)
        worst = max((report.matches[0].log10_p for _, report in of if report.matches), default=0.0)
        lines.append(
            f"| {name} | {len(of)} | {min(counts)} to {max(counts)} | {right} | "
            f"{min(shares):.2%} to {max(shares):.2%} | {worst:.1f} |"
        )
    return "\n".join(lines) + "\n"


def is_found(report: Report, name: str) -> bool:
    if not report.matches:
        return False
    best = report.matches[0]
    return (best.model, best.link, best.confidence) == (name, "lineage", "certain")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder of the page (default: standard output)")
    parser.add_argument("--shards", type=int, default=1000, help="most shards of each repository that are scanned")
    arguments = parser.parse_args()
    made = repositories()
    rows: list[Row] = []
    found: dict[str, list[tuple[Shard, Report]]] = {}
    start = observe(["--version"])
    with tempfile.TemporaryDirectory() as temporary, VirtualHub(made, drops=DROPS) as hub:
        os.environ |= {"FP_HF_ENDPOINT": hub.url, "FP_ALLOW_PRIVATE": "1"}
        registry = str(Path(temporary) / "registry")
        for name in made:
            target = str(Path(temporary) / f"{name.rpartition('/')[2]}.fpsig")
            rows.append(run(hub, name, "sketch", ["-o", target], 0))
            observe(["register", target, "--name", name, "--registry", registry, "-q"])
            print(rows[-1], file=sys.stderr)
        for name in made:
            rows.append(run(hub, name, "scan", ["--registry", registry], 1))
            print(rows[-1], file=sys.stderr)
        options = RemoteOptions.from_environment()
        with Registry.open(registry) as opened:
            for name, files in made.items():
                found[name] = []
                for shard in chosen(files, arguments.shards):
                    location = Location(f"hf://{name}/{shard.name}", options)
                    report = scan_path(opened, location, options=ScanOptions(depth="quick"))
                    found[name].append((shard, report))
                    print(shard.name, len(shard.tensors), is_found(report, name), file=sys.stderr)
    problems = [f"{row.name}: {row.problem}" for row in rows if row.problem]
    problems += [
        f"{shard.name} of {name} is not found" for name, of in found.items() for shard, r in of if not is_found(r, name)
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    text = page(made, rows, found, start)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "remote.md").write_text(text, "utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
