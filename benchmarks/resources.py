"""What a scan costs beside a checksum of the same file: time, memory, bytes read; and what starting takes.

``python -m benchmarks.resources --out docs/benchmarks``. Makes Llama-shaped bf16 checkpoints, a mixture of experts of
45,000 small tensors and a model of 20 MB in a temporary folder, deletes each when it is measured, and writes
``resources.md``. ``--sizes 1 4`` for some sizes alone. Exit status 1 if a run fails, or takes 500 MB of anonymous
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

import numpy as np

from benchmarks.observed import Observed, observe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MOST_MEMORY = 500_000_000
MOST_GIGABYTES = 16.0
WIDTH, NEURONS, SHARED, VOCABULARY = 2048, 5632, 512, 32000
_POOL = 1 << 22
_MOST_GAINS = 1 << 16
_LIMIT = 3600.0

CONFIG = {"model_type": "llama", "hidden_size": WIDTH, "num_attention_heads": 32, "num_key_value_heads": 8}
Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over some runs, in seconds on the clock and on a processor."""

    wall: float
    processor: float

    @classmethod
    def of(cls, runs: Sequence[tuple[float, float]]) -> Self:
        """The medians of pairs (wall, processor)."""
        return cls(median(wall for wall, _ in runs), median(processor for _, processor in runs))

    def __str__(self) -> str:
        return f"{self.wall:.2f} ({self.processor:.2f})"


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint: its sizes, what ``openssl`` took (None where there is none), what making its signature took, and
    what full and quick scans against a registry that holds that signature took. ``most`` is the largest anonymous
    memory of any of these, ``read`` the bytes that a full and a quick scan read, ``failures`` what went wrong."""

    title: str
    tensors: int
    stored: int
    hashed: Cost | None
    full: Cost
    quick: Cost
    made: Cost
    scan_memory: int
    made_memory: int
    read: tuple[int, int]
    signature: int
    failures: tuple[str, ...]


def llama(
    gigabytes: float,
    *,
    width: int = WIDTH,
    neurons: int = NEURONS,
    shared: int = SHARED,
    vocabulary: int = VOCABULARY,
) -> Shapes:
    """A Llama-shaped model of about that many bytes in bf16, in whole layers; ``shared`` channels are of keys."""
    layer = 2 * width * (2 * width + 2 * shared + 3 * neurons)
    layers = max(1, round((gigabytes * 1e9 - 4 * vocabulary * width) / layer))
    shapes: Shapes = [("model.embed_tokens.weight", (vocabulary, width))]
    for number in range(layers):
        for name, shape in (
            ("self_attn.q_proj", (width, width)),
            ("self_attn.k_proj", (shared, width)),
            ("self_attn.v_proj", (shared, width)),
            ("self_attn.o_proj", (width, width)),
            ("mlp.gate_proj", (neurons, width)),
            ("mlp.up_proj", (neurons, width)),
            ("mlp.down_proj", (width, neurons)),
            ("input_layernorm", (width,)),
            ("post_attention_layernorm", (width,)),
        ):
            shapes.append((f"model.layers.{number}.{name}.weight", shape))
    return [*shapes, ("model.norm.weight", (width,)), ("lm_head.weight", (vocabulary, width))]


def experts(layers: int = 58, number: int = 256, width: int = 48, neurons: int = 64) -> Shapes:
    """A mixture of experts of about 45,000 tensors, each just large enough for a sketch."""
    shapes: Shapes = [("model.embed_tokens.weight", (4096, width))]
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes += [(f"{prefix}.self_attn.{one}_proj.weight", (width, width)) for one in "qkvo"]
        shapes.append((f"{prefix}.mlp.gate.weight", (number, width)))
        for expert in range(number):
            where = f"{prefix}.mlp.experts.{expert}"
            shapes.append((f"{where}.gate_proj.weight", (neurons, width)))
            shapes.append((f"{where}.up_proj.weight", (neurons, width)))
            shapes.append((f"{where}.down_proj.weight", (width, neurons)))
    return shapes


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bf16, rounded towards zero."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write(path: Path, shapes: Shapes, seed: int = 0) -> int:
    """Write a bf16 file of those shapes and return its bytes; the numbers are windows on a pool of random ones."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    single = random.normal(0, 0.02, _POOL).astype(np.float32)
    pool = np.concatenate([_bfloat16(single)] * 2)
    gains = _bfloat16(single[:_MOST_GAINS] + np.float32(1.0))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in shapes:
            left = int(np.prod(shape))
            if len(shape) == 1:  # gains of norms are about one; others would have to be read in two ways
                file.write(gains[:left].tobytes())
                continue
            while left:
                count = min(left, _POOL)
                start = int(random.integers(1, _POOL))
                file.write(pool[start : start + count].tobytes())
                left -= count
    return path.stat().st_size


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds on the clock and on a processor of a command that must succeed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def hashed(path: Path) -> tuple[float, float] | None:
    """What ``openssl dgst -sha256`` takes; None where there is no openssl."""
    return timed(["openssl", "dgst", "-sha256", str(path)]) if shutil.which("openssl") else None


def measure(title: str, shapes: Shapes, folder: Path, runs: int) -> Row:
    """Write a checkpoint, register it; hash and scan it in turns; delete all."""
    model, target, registry = folder / "model", folder / "model.fpsig", folder / "registry"
    path = model / "model.safetensors"
    model.mkdir()
    try:
        stored = write(path, shapes)
        (model / "config.json").write_text(json.dumps(CONFIG), "utf-8")
        made = observe(["sketch", str(model), "-o", str(target), "-q"], limit=_LIMIT)
        observe(["register", str(target), "--name", "a/model", "--registry", str(registry), "-q"], limit=_LIMIT)
        scan = ["scan", str(model), "--registry", str(registry), "--format", "json", "-q", "--depth"]
        sums, full, quick = [], [], []
        for _ in range(runs):
            sums.append(hashed(path))
            full.append(observe([*scan, "full"], limit=_LIMIT))
            quick.append(observe([*scan, "quick"], limit=_LIMIT))
        seen = [made, *full, *quick]
        failed = [one for one, wanted in zip(seen, [0] + [1] * (len(seen) - 1), strict=True) if one.status != wanted]
        failures = [f"status {one.status}: {(one.err.splitlines() or [''])[-1]}" for one in failed]
        failures += [f"{one.anonymous} bytes of memory" for one in seen if one.anonymous >= MOST_MEMORY]
        return Row(
            title=title,
            tensors=len(shapes),
            stored=stored,
            hashed=None if None in sums else Cost.of([one for one in sums if one is not None]),
            full=Cost.of([(one.wall, one.processor) for one in full]),
            quick=Cost.of([(one.wall, one.processor) for one in quick]),
            made=Cost(made.wall, made.processor),
            scan_memory=max(one.anonymous for one in [*full, *quick]),
            made_memory=made.anonymous,
            read=(_bytes_read(full[-1]), _bytes_read(quick[-1])),
            signature=target.stat().st_size if target.exists() else 0,
            failures=tuple(failures),
        )
    finally:
        shutil.rmtree(model, ignore_errors=True)
        target.unlink(missing_ok=True)
        shutil.rmtree(registry, ignore_errors=True)


def _bytes_read(scan: Observed) -> int:
    try:
        return int(json.loads(scan.out)[0]["suspect"]["bytes_read"])
    except (ValueError, LookupError):
        return 0


def starts(folder: Path, runs: int) -> list[tuple[str, Cost]]:
    """What whole processes take: help, a list, and a scan of a model of 20 MB."""
    path, registry = folder / "small.safetensors", folder / "registry"
    fp = [sys.executable, "-m", "cli"]
    try:
        write(path, llama(0.02, width=256, neurons=704, shared=128, vocabulary=8000))
        timed([*fp, "register", str(path), "--name", "a/small", "--registry", str(registry), "-q"])
        scan = "import sys, cli.main; sys.exit(int(cli.main.run(sys.argv[1:])) != 1)"  # a match is what is expected
        commands = {
            "`fp --help`": [*fp, "--help"],
            "`fp list`": [*fp, "list", "--registry", str(registry)],
            "`fp scan`, 20 MB": [sys.executable, "-c", scan, "scan", str(path), "--registry", str(registry), "-q"],
        }
        return [(name, Cost.of([timed(command) for _ in range(runs)])) for name, command in commands.items()]
    finally:
        path.unlink(missing_ok=True)
        shutil.rmtree(registry, ignore_errors=True)


def page(rows: Sequence[Row], started: Sequence[tuple[str, Cost]], runs: int) -> str:
    """The page in Markdown."""
    lines = [
        "# Resources",
        "",
        f"`python -m benchmarks.resources` on {platform.machine()}, {os.cpu_count()} cores. The checkpoints are bf16, "
        "Llama-shaped of width 2048 with a configuration beside them, and a mixture of experts of very small tensors, "
        "all in the page cache. Each is hashed by one thread of `openssl dgst -sha256` and scanned at full and at "
        f"quick depth, in turns, against a registry that holds it; medians of {runs} runs. Seconds are on the clock, "
        "and in brackets on a processor (all threads together), both with the start of the process. The first ratio "
        "is that of a full scan to the checksum on the clock, the second on the processor: with both cores at work "
        "twice as much may be spent there. Memory is the peak of anonymous memory of all its processes, without the "
        f"mapped file; the bound is {MOST_MEMORY / 1e6:.0f} MB. `sketch` makes a signature for registration, with the "
        "digests after rounding: one run.",
        "",
        "| file | tensors | GB | sha256, s | full scan, s | ratios | MB | quick scan, s | read, MB | sketch, s | MB | "
        "signature, MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        plain = row.hashed
        ratios = "-"
        if plain is not None:
            ratios = f"{row.full.wall / plain.wall:.2f}, {row.full.processor / plain.processor:.2f}"
        cells = [row.title, f"{row.tensors}", f"{row.stored / 1e9:.2f}", "-" if plain is None else f"{plain}"]
        cells += [f"{row.full}", ratios, f"{row.scan_memory / 1e6:.0f}", f"{row.quick}", f"{row.read[1] / 1e6:.1f}"]
        cells += [f"{row.made}", f"{row.made_memory / 1e6:.0f}", f"{row.signature / 1e6:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| start | s |", "|---|--:|", *(f"| {name} | {cost} |" for name, cost in started)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder of the page (default: standard output)")
    parser.add_argument("--sizes", type=float, nargs="*", default=[0.5, 1, 2, 4, 8, 16], help="gigabytes, up to 16")
    parser.add_argument("--runs", type=int, default=3, help="runs that medians are of")
    parser.add_argument("--no-experts", action="store_true", help="leave the mixture of experts out")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    options = parser.parse_args()
    if any(not 0.1 <= size <= MOST_GIGABYTES for size in options.sizes):
        parser.error(f"sizes are from 0.1 to {MOST_GIGABYTES:g} GB")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        need = 1.2e9 * max([1.0, *options.sizes])
        if shutil.disk_usage(folder).free < need:
            parser.error(f"{need / 1e9:.1f} GB must be free in {folder}")
        rows = [measure(f"Llama-shaped, {size:g} GB", llama(size), folder, options.runs) for size in options.sizes]
        if not options.no_experts:
            rows.append(measure("mixture of experts", experts(), folder, 1))
        started = starts(folder, options.runs)
    failed = False
    for row in rows:
        unread = [] if row.read[0] == row.stored else [f"{row.read[0]} of {row.stored} bytes were read"]
        for failure in (*row.failures, *unread):
            print(f"{row.title}: {failure}", file=sys.stderr)
            failed = True
    text = page(rows, started, options.runs)
    if options.out is None:
        print(text)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "resources.md").write_text(text, "utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
