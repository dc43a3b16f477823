"""Command: reconstruct weights from signatures, alone and with a public sibling at hand; writes the page."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.disclosure.grid import quantised, with_grid
from benchmarks.disclosure.study import COLUMNS, alone, with_sibling
from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import build, weights_path
from fingerprint.assemble import measure_checkpoint
from fingerprint.checkpoint import open_checkpoint
from signatures import sign
from signatures.disclosure import disclose_less
from signatures.keyed import keyed_section, make_key, public_identity, with_section
from signatures.signature import encode

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "disclosure.md"
TRAINED = (
    ("e", "e-llama-152"),
    ("styles", "styles-gpt2-64"),
    ("styles", "styles-gemma-64"),
    ("styles", "styles-bert-64"),
)
QUICKLY = (("a", "quick-a-llama-48"),)
HEAD = """# What a signature discloses

The best predictor of a matrix that is linear in what the signature holds of it (`make bench-disclosure`); see
[privacy](../privacy.md). All cells but *numbers* are shares of the squares left by the trivial predictor (the means of
rows and columns, given for free; or the sibling) that the reconstruction explains, over all entries: 0% is nothing,
100% everything, below 0% worse than the trivial predictor.

- *numbers*: numbers that the signature holds of the matrix, in all frames, over its elements.
- *sketch alone*, *and rows and columns*, *and neurons in the fixed frame*: whoever has the signature and nothing else.
- *and all else, translated*: the same reader, who learns from neurons that are written down in two frames what neurons
  and attention channels in the other frames (of embeddings, of positions, of the layer itself) are in the fixed one,
  and what the frames themselves are, from which follow the 64 rows of embeddings that each was made of.
- *with embeddings*: whoever has the embeddings and norm gains too, and so knows the frames made of embeddings and of
  positions: neurons and attention channels in them. *And all else*: neurons in frames of the layer itself.
- `--disclose less`, `--depth quick`: signatures made so. There is nothing in other frames in them, so that embeddings
  do not help.

Rows of attention channels are kept with length 1; the reader guesses their lengths from the deviation of the matrix.
Not used: vectors by which layers are looked up (256 numbers of a product of two matrices), descriptors of neurons
(not linear in the weights), digests. A better attack may exist: the cells are what this one explains, and no bound.
"""


TABLE = "| matrix | shape | looked at | " + " | ".join(COLUMNS.values()) + " |\n" + "|---" * (3 + len(COLUMNS)) + "|"


def table(path: Path, most: int) -> list[str]:
    """The lines of a table of what is explained of one checkpoint."""
    print(path.name, file=sys.stderr)
    return [TABLE, *(outcome.row() for outcome in alone(path, most)), ""]


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
    """A line about the sizes of the signatures, with and without ``--disclose less`` and with a second sketch under a
    key, which must leave all other sections as they are."""
    with open_checkpoint(path) as checkpoint:
        whole = measure_checkpoint(checkpoint).fingerprint
        signature = sign(whole)
        keyed = with_section(signature, keyed_section(checkpoint, make_key(bytes(range(64))), signature))
    if public_identity(keyed) != signature.identity:
        raise ValueError(f"{path.name}: a key changed what is open to all")
    sizes = [len(encode(one)) for one in (signature, sign(disclose_less(whole)), keyed)]
    return (
        f"Signature of {whole.elements:,} parameters: {sizes[0]:,} bytes, {sizes[1]:,} with `--disclose less`, "
        f"{sizes[2]:,} with `--key`: without the key the same but for a sealed section.\n"
    )


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
    trained = QUICKLY if options.quick else TRAINED
    for name in dict.fromkeys(name for name, _ in trained):
        wanted = [f"{stem}-{model}" for one, stem in trained if one == name for model in ("A", "A-ftx")]
        build(options.zoo, family(name, quick=options.quick), wanted, lambda line: print(line, file=sys.stderr))
    lines = [HEAD]
    for _, stem in trained:
        path = weights_path(options.zoo, f"{stem}-A")
        lines += [f"## Trained: {path.stem}\n", sizes_of(path), *table(path, 2 if stem == trained[0][1] else 1)]
    with tempfile.TemporaryDirectory() as folder:
        for width, neurons in ((96, 256),) if options.quick else ((1024, 2816), (2048, 5632)):
            path = random_layer(Path(folder), width, neurons)
            lines += [f"## Random numbers, {width:,} channels\n", sizes_of(path), *table(path, 1)]
    for path in options.real:
        lines += [f"## Real weights: {path.name}\n", sizes_of(path), *table(path, 2)]
    lines += [
        "## Knowing a grid of 4 bits\n",
        "Matrices rounded to 15 values in runs of 32; the reader has embeddings and norm gains, and is given the scale "
        "of every run for free, which no signature holds (it tells the bits).\n",
    ]
    for _, stem in trained[:2]:
        with tempfile.TemporaryDirectory() as folder:
            path = quantised(weights_path(options.zoo, f"{stem}-A"), Path(folder))
            lines += [f"### {path.stem}\n", "| matrix | bits told | explained | with the grid |", "|---|---|---|---|"]
            lines += [*with_grid(path), ""]
    lines.append("## With a public sibling at hand\n")
    for _, stem in trained[:2]:
        secret, public = (weights_path(options.zoo, f"{stem}-{model}") for model in ("A-ftx", "A"))
        lines += [
            f"The secret is {secret.stem}, a fine-tune; the reader has {public.stem}, which it was made from.\n",
            "| matrix | looked at | difference from the sibling | of which explained, as alone | "
            "and in the sibling's frames |",
            "|---|---|---|---|---|",
            *(one.row() for one in with_sibling(secret, public, 2)),
            "",
        ]
    lines.append(f"{time.process_time() - started:.0f} s of CPU time, x86_64.")
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
