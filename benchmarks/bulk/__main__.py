"""``python -m benchmarks.bulk``: 200 small checkpoints scanned alone, by a pool and through Ray, with a worker killed.

Whether the results are the same is found out by comparing lines of JSON without ``seconds``. A second part puts the
same vectors into the files beside a registry and into embedded Milvus, and asks both the same. Exit status 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.machine import described
from signatures.engine import Mark
from signatures.engines import INDEX_VARIABLE, open_engine

BASES = 5
WIDTH, HIDDEN, TOKENS = 64, 128, 96
Weights = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Run:
    """One run over the list: what was done to it, and its results."""

    name: str
    status: int
    results: list[dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="checkpoints to be scanned")
    parser.add_argument("--vectors", type=int, default=20_000, help="vectors of the second part")
    parser.add_argument("--only", choices=("lists", "engines"))
    parser.add_argument("--out", type=Path, help="folder of the page; without it the page is printed")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good, page = True, [_head()]
        if chosen.only != "engines":
            lists, text = compare_lists(Path(folder), chosen.count)
            good, page = good and lists, [*page, text]
        if chosen.only != "lists":
            engines, text = compare_engines(Path(folder), chosen.vectors)
            good, page = good and engines, [*page, text]
    text = "\n".join(page)
    print(text)
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "bulk.md").write_text(text)
    return 0 if good else 1


def _head() -> str:
    return f"# Lists and engines\n\nWritten by `python -m benchmarks.bulk` (`make bench-bulk`) on {described()}.\n"


# Lists


def model(seed: int) -> Weights:
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (TOKENS, WIDTH)}
    shapes |= {f"model.layers.0.self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
    shapes |= {f"model.layers.0.mlp.{part}_proj.weight": (HIDDEN, WIDTH) for part in ("gate", "up")}
    shapes["model.layers.0.mlp.down_proj.weight"] = (WIDTH, HIDDEN)
    return {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def make(folder: Path, count: int) -> list[str]:
    """Write the checkpoints: half of them near a registered model, half unrelated, and one that is damaged."""
    paths: list[str] = []
    for number in range(count):
        weights = model(number % BASES if number % 2 else 1000 + number)
        if number % 2:
            random = np.random.default_rng(5000 + number)
            weights = {
                name: (value + 0.002 * random.standard_normal(value.shape)).astype(np.float32)
                for name, value in weights.items()
            }
        path = folder / f"suspect{number:03}.safetensors"
        save_file(weights, path)
        paths.append(str(path))
    damaged = Path(paths[count // 3])
    damaged.write_bytes(damaged.read_bytes()[:200])
    return paths


def compare_lists(folder: Path, count: int) -> tuple[bool, str]:
    paths = make(folder, count)
    for number in range(BASES):
        save_file(model(number), folder / f"base{number:02}.safetensors")
    bases = [str(folder / f"base{number:02}.safetensors") for number in range(BASES)]
    registry = str(folder / "registry")
    command = [sys.executable, "-m", "cli"]
    subprocess.run(
        [*command, "register", *bases, "--name", "bench/{stem}", "--registry", registry, "-q"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    scan = [*command, "scan", "-", "--registry", registry, "--format", "jsonl", "-q"]
    journal = str(folder / "journal")
    with ThreadPoolExecutor(4) as pool:  # nothing is timed here: they can run beside one another
        asked = [
            pool.submit(run, "one process", scan, paths),
            pool.submit(run, "pool of 2, a worker killed", [*scan, "--jobs", "2"], paths, kill=count // 2),
            pool.submit(
                run,
                "Ray, 2 at once, a worker killed",
                [*scan, "--executor", "ray", "--jobs", "2"],
                paths,
                kill=count // 2,
            ),
            pool.submit(resumed, [*scan, "--jobs", "2", "--resume", journal], paths, count // 2),
        ]
        runs = [one.result() for one in asked]
    alone, rows, good = runs[0], [], True
    for one in runs:
        same = one.results == alone.results and one.status == alone.status and len(one.results) == count
        good &= same
        rows.append(f"| {one.name} | {len(one.results)} | {one.status} | {'the same' if same else 'OTHER'} |")
    verdicts = [one["verdict"] for one in alone.results]
    found = ", ".join(f"{verdicts.count(word)} {word}" for word in sorted(set(verdicts)))
    return good, "\n".join(
        [
            "## Lists",
            "",
            f"{count} checkpoints of {os.path.getsize(paths[0]) / 1000:.0f} kB against {BASES} registered models "
            f"({found}). The killed worker was ended with `kill -9` when half of the results were there; the run that "
            "was resumed had been killed whole, `fp` itself, likewise. Results are compared as JSON without `seconds`, "
            "in order.",
            "",
            "| who | results | exit status | compared with one process |",
            "|---|--:|--:|---|",
            *rows,
            "",
        ]
    )


def run(name: str, command: list[str], paths: list[str], *, kill: int | None = None) -> Run:
    """Run the command over the list; after ``kill`` results one of its workers that has work is killed."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("".join(f"{path}\n" for path in paths))
    process.stdin.close()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == kill:
            victim = worker_of(process.pid)
            os.kill(victim, signal.SIGKILL)
            print(f"{name}: killed process {victim}", file=sys.stderr)
    status = process.wait()
    return Run(name, status, [_timeless(line) for line in lines])


def resumed(command: list[str], paths: list[str], kill: int) -> Run:
    """Kill the whole run after ``kill`` results, and run it again."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("".join(f"{path}\n" for path in paths))
    process.stdin.close()
    for _ in range(kill):
        process.stdout.readline()
    process.kill()
    process.stdout.close()
    process.wait()
    return run(f"pool of 2, killed after {kill} results and resumed", command, paths)


def worker_of(program: int) -> int:
    """A process below ``program`` that works on an item: of Ray one that is called so, of a pool any."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    while True:
        for place in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(place.name)] = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
                titles[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
        below = [pid for pid in parents if program in _ancestors(pid, parents)]
        found = [
            pid for pid in below if titles[pid].startswith("ray::_done") or "signatures.bulk.worker" in titles[pid]
        ]
        if found:
            return found[0]


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    found = []
    while (pid := parents.get(pid, 0)) > 1:
        found.append(pid)
    return found


def _timeless(line: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(line)
    del values["seconds"]
    return values


# Engines


def compare_engines(folder: Path, count: int, width: int = 256, per_model: int = 50) -> tuple[bool, str]:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((count, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    models = [
        (at // per_model, (np.arange(per_model), vectors[at : at + per_model])) for at in range(0, count, per_model)
    ]
    queries = vectors[:: max(1, count // 64)][:64] + 0.06 * random.standard_normal((64, width), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    rows, answers = [], []
    for name, url in (("files (FAISS)", ""), ("embedded Milvus", f"milvus://{folder}/vectors.db")):
        os.environ[INDEX_VARIABLE] = url
        engine = open_engine(folder / "index", "bench", width)
        began = time.process_time()
        engine.rebuild(iter(models), Mark(1, "a"))
        built = time.process_time() - began
        one = (len(models), (np.arange(per_model), vectors[:per_model]))
        began = time.process_time()
        engine.update([], [one], Mark(1, "a"), Mark(2, "b"))
        added = time.process_time() - began
        engine.mark()
        times = []
        for _ in range(3):
            began = time.process_time()
            hits = engine.search(queries, 16)
            times.append(time.process_time() - began)
        answers.append([set(row[row >= 0].tolist()) for row in hits.models])
        rows.append(f"| {name} | {built:.2f} | {added:.3f} | {sorted(times)[1]:.3f} |")
    same = sum(len(one & two) for one, two in zip(*answers, strict=True)) / sum(len(one) for one in answers[0])
    return same == 1.0, "\n".join(
        [
            "## Engines",
            "",
            f"{count:,} vectors of {width} numbers, {per_model} a model; {len(queries)} queries for 16 models each "
            f"(median of 3). Seconds of processor. {same:.1%} of the models that the files find are found by Milvus.",
            "",
            "| engine | fill | one model more | search |",
            "|---|--:|--:|--:|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
