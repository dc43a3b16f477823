"""What a scan costs beside a checksum of the same file: time, memory, bytes read; and what starting takes.

``python -m benchmarks.resources --out docs/benchmarks``. Makes bf16 checkpoints in the shapes of published models, one
that is deeper and narrower than any, a mixture of experts of 45,000 small tensors and a model of 20 MB in a temporary
folder, deletes each when it is measured, and writes ``resources.md``. ``--only Qwen3-4B`` for some of them alone;
``--modeldna`` names that program, in an environment of its own, to be raced against. Exit status 1 if a run fails, or
takes 500 MB of anonymous memory.
"""

from __future__ import annotations

import argparse
import json
import math
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

from benchmarks.observed import Observed, environment, observe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MOST_MEMORY = 500_000_000
_POOL = 1 << 22
_MOST_GAINS = 1 << 16
_LIMIT = 3600.0

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Llama:
    """A Llama-shaped model: ``heads`` of ``head`` channels read ``shared`` ones of keys and values; ``tied``: its head
    is its table of tokens; ``normed``: queries and keys have norms of their own."""

    layers: int
    width: int
    neurons: int
    heads: int
    shared: int
    head: int
    vocabulary: int
    tied: bool = True
    normed: bool = False

    @property
    def config(self) -> dict[str, object]:
        """What lies beside the weights."""
        return {
            "model_type": "qwen3" if self.normed else "llama",
            "hidden_size": self.width,
            "head_dim": self.head,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.shared,
            "tie_word_embeddings": self.tied,
        }

    @property
    def shapes(self) -> Shapes:
        """Names and shapes of its tensors, in their order."""
        wide, narrow = self.heads * self.head, self.shared * self.head
        shapes: Shapes = [("model.embed_tokens.weight", (self.vocabulary, self.width))]
        for number in range(self.layers):
            of_layer: Shapes = [
                ("self_attn.q_proj", (wide, self.width)),
                ("self_attn.k_proj", (narrow, self.width)),
                ("self_attn.v_proj", (narrow, self.width)),
                ("self_attn.o_proj", (self.width, wide)),
                ("mlp.gate_proj", (self.neurons, self.width)),
                ("mlp.up_proj", (self.neurons, self.width)),
                ("mlp.down_proj", (self.width, self.neurons)),
                ("input_layernorm", (self.width,)),
                ("post_attention_layernorm", (self.width,)),
            ]
            if self.normed:
                of_layer += [("self_attn.q_norm", (self.head,)), ("self_attn.k_norm", (self.head,))]
            shapes += [(f"model.layers.{number}.{name}.weight", shape) for name, shape in of_layer]
        shapes.append(("model.norm.weight", (self.width,)))
        return shapes if self.tied else [*shapes, ("lm_head.weight", (self.vocabulary, self.width))]


MODELS = {
    "SmolLM2-135M": Llama(30, 576, 1536, 9, 3, 64, 49152),
    "SmolLM2-360M": Llama(32, 960, 2560, 15, 5, 64, 49152),
    "Qwen2.5-0.5B": Llama(24, 896, 4864, 14, 2, 64, 151936),
    "Llama-3.2-1B": Llama(16, 2048, 8192, 32, 8, 64, 128256),
    "Qwen3-1.7B": Llama(28, 2048, 6144, 16, 8, 128, 151936, tied=False, normed=True),
    "Qwen3-4B": Llama(36, 2560, 9728, 32, 8, 128, 151936, normed=True),
    "Llama-3.1-8B": Llama(32, 4096, 14336, 32, 8, 128, 128256, tied=False),
}
"""Shapes of published models, whose weights are not needed to measure time."""
STRANGER = "Qwen3-4B"
"""The one that is also scanned against a registry that holds another model of its shapes instead."""
DEEP = Llama(86, 2048, 5632, 32, 8, 64, 32000, tied=False)
"""8 GB in more and smaller matrices than a published model of that size has."""
SMALL = Llama(8, 256, 704, 32, 16, 8, 8000, tied=False)


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


def _bytes(shapes: Shapes) -> int:
    return sum(2 * math.prod(shape) for _, shape in shapes)


def write(path: Path, shapes: Shapes, seed: int = 0) -> int:
    """Write a bf16 file of those shapes and return its bytes; the numbers are windows on a pool of random ones."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes:
        size = 2 * math.prod(shape)
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


def timed(command: Sequence[str], status: int = 0) -> tuple[float, float]:
    """Seconds on the clock and on a processor of a command that must end with ``status``."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, env=environment())
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    if done.returncode != status:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def program() -> list[str]:
    """The program as it is started by everybody: the script beside this interpreter, else its module."""
    script = Path(sys.executable).with_name("fp")
    return [str(script)] if script.exists() else [sys.executable, "-m", "cli"]


def hashed(path: Path) -> tuple[float, float] | None:
    """What ``openssl dgst -sha256`` takes; None where there is no openssl."""
    return timed(["openssl", "dgst", "-sha256", str(path)]) if shutil.which("openssl") else None


def measure(title: str, model: Llama | Shapes, folder: Path, runs: int, *, registered: int = 0) -> Row:
    """Write a checkpoint, register it, or one of the same shapes with other numbers for another seed ``registered``;
    hash and scan it in turns; delete all."""
    where, target, registry = folder / "model", folder / "model.fpsig", folder / "registry"
    path = where / "model.safetensors"
    shapes = model.shapes if isinstance(model, Llama) else model
    where.mkdir()
    try:
        stored = write(path, shapes, registered)
        if isinstance(model, Llama):
            (where / "config.json").write_text(json.dumps(model.config), "utf-8")
        made = observe(["sketch", str(where), "-o", str(target), "-q"], limit=_LIMIT)
        observe(["register", str(target), "--name", "a/model", "--registry", str(registry), "-q"], limit=_LIMIT)
        if registered:
            write(path, shapes)
        scan = ["scan", str(where), "--registry", str(registry), "--format", "json", "-q", "--depth"]
        match = 0 if registered else 1
        # Memory is watched in runs of their own: a process whose pages are counted waits for that.
        full, quick = ([observe([*scan, depth], limit=_LIMIT)] for depth in ("full", "quick"))
        sums, taken = [], {"full": list[tuple[float, float]](), "quick": list[tuple[float, float]]()}
        for _ in range(runs):
            sums.append(hashed(path))
            for depth, times in taken.items():
                times.append(timed([*program(), *scan, depth], match))
        seen = [made, *full, *quick]
        failed = [
            one for one, wanted in zip(seen, [0] + [match] * (len(seen) - 1), strict=True) if one.status != wanted
        ]
        failures = [f"status {one.status}: {(one.err.splitlines() or [''])[-1]}" for one in failed]
        failures += [f"{one.anonymous} bytes of memory" for one in seen if one.anonymous >= MOST_MEMORY]
        return Row(
            title=title,
            tensors=len(shapes),
            stored=stored,
            hashed=None if None in sums else Cost.of([one for one in sums if one is not None]),
            full=Cost.of(taken["full"]),
            quick=Cost.of(taken["quick"]),
            made=Cost(made.wall, made.processor),
            scan_memory=max(one.anonymous for one in [*full, *quick]),
            made_memory=made.anonymous,
            read=(_bytes_read(full[-1]), _bytes_read(quick[-1])),
            signature=target.stat().st_size if target.exists() else 0,
            failures=tuple(failures),
        )
    finally:
        shutil.rmtree(where, ignore_errors=True)
        target.unlink(missing_ok=True)
        shutil.rmtree(registry, ignore_errors=True)


def _bytes_read(scan: Observed) -> int:
    try:
        return int(json.loads(scan.out)[0]["suspect"]["bytes_read"])
    except (ValueError, LookupError):
        return 0


def starts(folder: Path, runs: int, modeldna: Path | None) -> list[tuple[str, Cost]]:
    """What whole processes take, in turns: help, a list, scans of a model of 20 MB; and ``modeldna compare`` of it."""
    models, registry = [folder / "one", folder / "other"], folder / "registry"
    fp = program()
    try:
        for seed, model in enumerate(models):
            model.mkdir()
            write(model / "model.safetensors", SMALL.shapes, seed)
            (model / "config.json").write_text(json.dumps(SMALL.config), "utf-8")
        path = models[0] / "model.safetensors"
        timed([*fp, "register", str(path), "--name", "a/small", "--registry", str(registry), "-q"])
        scan = [*fp, "scan", str(path), "--registry", str(registry), "-q"]
        commands = {
            "`fp --help`": ([*fp, "--help"], 0),
            "`fp list`": ([*fp, "list", "--registry", str(registry)], 0),
            "`fp scan`, 20 MB": (scan, 1),  # a match
            "`fp scan --depth quick`, 20 MB": ([*scan, "--depth", "quick"], 1),
        }
        if modeldna is not None:
            commands["`modeldna compare`, twice 20 MB"] = ([str(modeldna), "compare", *map(str, models)], 0)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, (command, status) in commands.items():
                taken[name].append(timed(command, status))
        return [(name, Cost.of(those)) for name, those in taken.items()]
    finally:
        for one in (*models, registry):
            shutil.rmtree(one, ignore_errors=True)


_ABOUT = """`python -m benchmarks.resources` on {machine}, {cores} cores. The checkpoints are bf16, in the shapes of
published models with a configuration beside them, of one that is deeper and narrower, and of a mixture of experts of
very small tensors; all in the page cache. Each is hashed by one thread of `openssl dgst -sha256` and scanned at full
and at quick depth, in turns, against a registry that holds it (once another model of the same shapes in its place);
medians of {runs} runs. Seconds are on the clock, and in brackets on a processor (all threads together), both with the
start of the process. The first ratio is that of a full scan to the checksum on the clock, the second on the processor:
with both cores at work twice as much may be spent there. Memory is the peak of anonymous memory of all its processes,
without the mapped file, in runs of their own; the bound is {most:.0f} MB. `sketch` makes a signature for registration,
with the digests after rounding, a file of the size in the last column: one run.
"""
_HEADS = """
| shapes | tensors | GB | sha256, s | full, s | ratios | MB | quick, s | read, MB | sketch, s | MB | file, MB |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
""".strip()


def page(rows: Sequence[Row], started: Sequence[tuple[str, Cost]], runs: int) -> str:
    """The page in Markdown."""
    about = _ABOUT.format(machine=platform.machine(), cores=os.cpu_count(), runs=runs, most=MOST_MEMORY / 1e6)
    lines = ["# Resources", "", about, _HEADS]
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
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS), help="of these models alone")
    parser.add_argument("--runs", type=int, default=3, help="runs that medians are of")
    parser.add_argument("--no-others", action="store_true", help="leave out the deep model and the mixture of experts")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    parser.add_argument("--modeldna", type=Path, help="that program, to be raced against")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        need = 1.2 * max([1 << 20, *(_bytes(MODELS[one].shapes) for one in options.only)])
        if shutil.disk_usage(folder).free < need:
            parser.error(f"{need / 1e9:.1f} GB must be free in {folder}")
        rows = [measure(one, MODELS[one], folder, options.runs) for one in options.only]
        if STRANGER in options.only:
            rows.append(measure(f"{STRANGER}, not registered", MODELS[STRANGER], folder, options.runs, registered=1))
        if not options.no_others:
            rows.append(measure(f"{DEEP.layers} layers of width {DEEP.width}", DEEP, folder, options.runs))
            rows.append(measure("mixture of experts", experts(), folder, 1))
        started = starts(folder, 2 * options.runs + 1, options.modeldna)
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
