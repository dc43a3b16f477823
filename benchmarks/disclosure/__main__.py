"""Command: reconstruct weights from signatures, alone and with a public sibling at hand; writes the page."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.disclosure.reconstruct import centred, explained, reconstruct
from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import build, weights_path
from fingerprint.assemble import Measured, measure_checkpoint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.dtypes import to_float32
from fingerprint.gauge.frames import find_frames
from fingerprint.measure import matrix_shape
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.tensors import element_count
from fingerprint.vocabulary import Content, Role
from signatures import sign
from signatures.disclosure import disclose_less
from signatures.signature import encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64 = NDArray[np.float64]

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "disclosure.md"
STEM = "a-llama-128"
KINDS = (("sketch",), ("sketch", "slices"), ("sketch", "slices", "neurons"))
MOST_ELEMENTS = 1 << 24
HEAD = """# What a signature discloses

The matrix nearest to what is known beforehand that has all samples of the signature (`make bench-disclosure`); see
[privacy](../privacy.md). *Explained*: share of the squares left by the trivial predictor (the means of rows and
columns, given for free; or the sibling) that the reconstruction explains: 0% is nothing, 100% everything. *Numbers*:
numbers that the signature holds of the matrix, over its elements: what of random numbers could be explained at best.
"""


def values_of(measured: Measured, position: int) -> Float64:
    view = measured.tensors[position].view
    flat = to_float32(view.read(0, element_count(view.shape))).astype(np.float64)
    return flat.reshape(matrix_shape(view.shape))


def matrices(measured: Measured, most: int) -> dict[str, list[int]]:
    """Positions of weight matrices by role, up to ``most`` of each, spread over the layers."""
    found: dict[str, list[int]] = defaultdict(list)
    for position, record in enumerate(measured.fingerprint.tensors):
        small = record.elements <= MOST_ELEMENTS
        if record.content is Content.WEIGHTS and record.sketch is not None and small and len(record.shape) == 2:
            found[record.role.value].append(position)
    return {role: places[:: -(-len(places) // most)] for role, places in found.items()}


def alone(path: Path, most: int) -> list[str]:
    """Rows: role, shape, numbers, explained by sketch, by slices too, by neurons too; by less; with frames known."""
    with open_checkpoint(path) as checkpoint:
        measured = measure_checkpoint(checkpoint)
        kept = sign(measured.fingerprint).fingerprint
        less = sign(disclose_less(measured.fingerprint)).fingerprint
        contents = [record.content for record in kept.tensors]
        width = next((matrix_shape(t.shape)[1] for t in kept.tensors if t.role is Role.TOKEN_EMBEDDING), 0)
        frames = find_frames(measured.tensors, contents, width, DEFAULT_PARAMETERS) if width else []
        known = {frame.name.value: frame.directions.T for frame in frames}
        lines = []
        for role, places in matrices(measured, most).items():
            shares: dict[str, list[float]] = defaultdict(list)
            for position in places:
                truth = values_of(measured, position)
                trivial = truth - centred(truth)
                for kinds in KINDS:
                    found, numbers = reconstruct(kept, position, kinds=kinds)
                    shares[kinds[-1]].append(explained(truth, centred(found) + trivial, trivial))
                shares["numbers"].append(numbers / truth.size)
                found, _ = reconstruct(less, position)
                shares["less"].append(explained(truth, centred(found) + trivial, trivial))
                if role in {"down", "fc-out"}:
                    found, _ = reconstruct(kept, position, frames=known)
                    shares["frames"].append(explained(truth, centred(found) + trivial, trivial))
            shape = " x ".join(map(str, kept.tensors[places[0]].shape))
            cells = [f"{np.mean(shares[name]):.2%}" if shares[name] else "-"
                     for name in ("numbers", "sketch", "slices", "neurons", "less", "frames")]  # fmt: skip
            lines.append(f"| {role} | {shape} | {len(places)} | " + " | ".join(cells) + " |")
    return lines


TABLE = (
    "| matrix | shape | looked at | numbers | sketch alone | and rows and columns | and neurons | `--disclose less` | "
    "whoever has the embeddings |\n|---|---|---|---|---|---|---|---|---|"
)


def with_sibling(secret: Path, public: Path) -> list[str]:
    """Rows: role, relative difference from the sibling, share of the difference that the signature explains."""
    lines = []
    with open_checkpoint(secret) as one, open_checkpoint(public) as other:
        ours, theirs = measure_checkpoint(one), measure_checkpoint(other)
        kept = sign(ours.fingerprint).fingerprint
        for role, places in matrices(ours, 4).items():
            gained, sizes = [], []
            for position in places:
                truth, guess = values_of(ours, position), values_of(theirs, position)
                found, _ = reconstruct(kept, position, guess)
                gained.append(explained(truth, found, guess))
                sizes.append(float(np.linalg.norm(truth - guess) / np.linalg.norm(truth)))
            lines.append(f"| {role} | {len(places)} | {np.mean(sizes):.3f} | {np.mean(gained):.2%} |")
    return lines


def random_layer(folder: Path, width: int, neurons: int) -> Path:
    """One gated MLP and embeddings of random numbers, at a realistic size."""
    random = torch.Generator().manual_seed(width)
    shapes = {
        "model.embed_tokens.weight": (4096, width),
        "model.layers.0.self_attn.o_proj.weight": (width, width),
        "model.layers.0.mlp.gate_proj.weight": (neurons, width),
        "model.layers.0.mlp.up_proj.weight": (neurons, width),
        "model.layers.0.mlp.down_proj.weight": (width, neurons),
    }
    path = folder / f"random-{width}.safetensors"
    save_file({name: torch.randn(shape, generator=random) * 0.02 for name, shape in shapes.items()}, path)
    return path


def sizes_of(path: Path) -> str:
    with open_checkpoint(path) as checkpoint:
        whole = measure_checkpoint(checkpoint).fingerprint
    numbers = [len(encode(sign(one))) for one in (whole, disclose_less(whole))]
    return f"Signature of {whole.elements:,} parameters: {numbers[0]:,} bytes, {numbers[1]:,} with `--disclose less`.\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disclosure", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / ".cache" / "zoo")
    parser.add_argument("--real", type=Path, action="append", default=[], help="a checkpoint of real weights")
    parser.add_argument("--quick", action="store_true", help="tiny models and sizes")
    parser.add_argument("-o", "--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.process_time()
    stem = "quick-a-llama-48" if options.quick else STEM
    specs = family("a", quick=options.quick)
    build(
        options.zoo, specs, [f"{stem}-{model}" for model in ("A", "A-ftx")], lambda line: print(line, file=sys.stderr)
    )
    ours, tuned = (weights_path(options.zoo, f"{stem}-{model}") for model in ("A", "A-ftx"))
    lines = [HEAD, f"## Trained, narrow: {stem}\n", sizes_of(ours), TABLE, *alone(ours, 4), ""]
    with tempfile.TemporaryDirectory() as name:
        for width, neurons in ((96, 256),) if options.quick else ((1024, 2816), (2048, 5632)):
            path = random_layer(Path(name), width, neurons)
            lines += [f"## Random numbers, {width:,} channels\n", sizes_of(path), TABLE, *alone(path, 1), ""]
    for path in options.real:
        lines += [f"## Real weights: {path.name}\n", sizes_of(path), TABLE, *alone(path, 3), ""]
    lines += [
        "## With a public sibling at hand\n",
        f"The secret is {tuned.stem}, a fine-tune; the reader has {ours.stem}, which it was made from.\n",
        "| matrix | looked at | difference from the sibling | of which explained |",
        "|---|---|---|---|",
        *with_sibling(tuned, ours),
        f"\n{time.process_time() - started:.0f} s of CPU time, x86_64, 2 cores.",
    ]
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
