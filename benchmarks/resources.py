"""What a fingerprint of a large checkpoint takes: time beside a plain hash of the file, memory, bytes read.

``python -m benchmarks.resources --out docs/benchmarks``. Makes Llama-shaped bf16 files and a mixture of experts of
45,000 small tensors in a temporary folder, deletes each when it is measured, and writes ``resources.md``. Exit status 1
if a run fails or takes 500 MB of anonymous memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.observed import Observed, observe
from signatures.signature import read_signature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MOST_MEMORY = 500_000_000
MOST_GIGABYTES = 16.0
WIDTH, NEURONS, SHARED, VOCABULARY = 2048, 5632, 512, 32000
_POOL = 1 << 22
_MOST_GAINS = 1 << 16
_LIMIT = 3600.0

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Row:
    """One file: its sizes, what ``openssl`` took (None where it was not run), what making its signature took, and what
    scanning it against a registry that holds that signature took."""

    title: str
    tensors: int
    stored: int
    made: Observed
    scanned: Observed
    hashed: tuple[float, float] | None
    signature: int
    read: int


def llama(gigabytes: float) -> Shapes:
    """A Llama-shaped model of about that many bytes in bf16: whole layers of width 2048."""
    layer = 2 * WIDTH * (2 * WIDTH + 2 * SHARED + 3 * NEURONS)
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCABULARY * WIDTH) / layer))
    shapes: Shapes = [("model.embed_tokens.weight", (VOCABULARY, WIDTH))]
    for number in range(layers):
        for name, shape in (
            ("self_attn.q_proj", (WIDTH, WIDTH)),
            ("self_attn.k_proj", (SHARED, WIDTH)),
            ("self_attn.v_proj", (SHARED, WIDTH)),
            ("self_attn.o_proj", (WIDTH, WIDTH)),
            ("mlp.gate_proj", (NEURONS, WIDTH)),
            ("mlp.up_proj", (NEURONS, WIDTH)),
            ("mlp.down_proj", (WIDTH, NEURONS)),
            ("input_layernorm", (WIDTH,)),
            ("post_attention_layernorm", (WIDTH,)),
        ):
            shapes.append((f"model.layers.{number}.{name}.weight", shape))
    return [*shapes, ("model.norm.weight", (WIDTH,)), ("lm_head.weight", (VOCABULARY, WIDTH))]


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


def hashed(path: Path) -> tuple[float, float] | None:
    """Seconds on the clock and on a processor of ``openssl dgst -sha256``; None where there is no openssl."""
    if shutil.which("openssl") is None:
        return None
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["openssl", "dgst", "-sha256", str(path)], check=True, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(title: str, shapes: Shapes, folder: Path) -> Row:
    """Write a file, hash it, make its signature, register that, scan the file, delete all."""
    path, target, registry = folder / "model.safetensors", folder / "model.fpsig", folder / "registry"
    try:
        stored = write(path, shapes)
        plain = hashed(path)
        made = observe(["sketch", str(path), "-o", str(target), "-q"], limit=_LIMIT)
        observe(["register", str(target), "--name", "a/model", "--registry", str(registry), "-q"], limit=_LIMIT)
        scanned = observe(["scan", str(path), "--registry", str(registry), "-q"], limit=_LIMIT)
        signature = read_signature(target) if made.status == 0 else None
        return Row(
            title,
            len(shapes),
            stored,
            made,
            scanned,
            plain,
            target.stat().st_size if signature else 0,
            signature.fingerprint.bytes_read if signature else 0,
        )
    finally:
        path.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        shutil.rmtree(registry, ignore_errors=True)


def page(rows: Sequence[Row], start: Observed) -> str:
    """The page in Markdown."""
    lines = [
        "# Resources",
        "",
        "`python -m benchmarks.resources`: `fp sketch` (a full fingerprint, with the digests after rounding that a "
        "registration needs) and `fp scan` (against a registry that holds that signature), each in a process of its "
        f"own, on {os.cpu_count()} cores, beside `openssl dgst -sha256` of the same file just before. The files are "
        "bf16, Llama-shaped of width 2048, and a mixture of experts of very small tensors. Time is on the clock, and "
        "in brackets on a processor (all threads together); the ratios are to the checksum's, on the clock. Memory is "
        "the peak of anonymous memory of the whole process, interpreter included, so without the mapped file; "
        f"`fp --version` alone takes {start.anonymous / 1e6:.0f} MB. The bound is {MOST_MEMORY / 1e6:.0f} MB.",
        "",
        "| file | tensors | GB | sha256, s | sketch, s | ratio | MB | scan, s | ratio | MB | signature, MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [row.title, str(row.tensors), f"{row.stored / 1e9:.2f}"]
        cells.append(f"{row.hashed[0]:.1f} ({row.hashed[1]:.1f})" if row.hashed else "-")
        for seen in (row.made, row.scanned):
            ratio = f"{seen.wall / row.hashed[0]:.2f}" if row.hashed and row.hashed[0] else "-"
            cells += [f"{seen.wall:.1f} ({seen.processor:.1f})", ratio, f"{seen.anonymous / 1e6:.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{row.signature / 1e6:.2f}'])} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder of the page (default: standard output)")
    parser.add_argument("--sizes", type=float, nargs="*", default=[0.5, 1.0, 2.0, 4.0], help="gigabytes, up to 16")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    options = parser.parse_args()
    if any(not 0.1 <= size <= MOST_GIGABYTES for size in options.sizes):
        parser.error(f"sizes are from 0.1 to {MOST_GIGABYTES:g} GB")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        need = 1.2e9 * max([1.0, *options.sizes])
        if shutil.disk_usage(folder).free < need:
            parser.error(f"{need / 1e9:.1f} GB must be free in {folder}")
        start = observe(["--version"])
        rows = [measure(f"Llama-shaped, {size:g} GB", llama(size), folder) for size in options.sizes]
        rows.append(measure("mixture of experts", experts(), folder))
    failed = False
    for row in rows:
        for seen, expected in ((row.made, 0), (row.scanned, 1)):
            if seen.status != expected or seen.anonymous >= MOST_MEMORY or row.read != row.stored:
                last = seen.err.splitlines()[-1:] or [""]
                print(f"{row.title}: status {seen.status}, {seen.anonymous} bytes. {last[0]}", file=sys.stderr)
                failed = True
    text = page(rows, start)
    if options.out is None:
        print(text)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "resources.md").write_text(text, "utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
