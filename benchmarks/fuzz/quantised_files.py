"""Feeds damaged GGUF files, and modules of quantised layouts that were tampered with, to the readers.

``python -m benchmarks.fuzz.quantised_files --executions 20000 --seed 1``. GGUF files of the gguf package's writer are
damaged byte by byte, as in ``model_files``. Of the modules in ``tests/data/quantised``, tensors are dropped, doubled
under other names, given other shapes, types and values, and taken from one another. Only ``InputError`` may come out.
What else does, or takes more than five seconds, is written to ``--keep``.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.fuzz.model_files import DATA, SLOW, damaged, examine
from fingerprint.dtypes import DTYPES

KINDS = ("Q8_0", "Q4_1", "MXFP4", "TQ2_0")
SIZES = (0, 1, 2, 3, 4, 8, 16, 31, 32, 64, 127, 128, 4096, 2**31, 2**40)
Tensors = dict[str, tuple[str, list[int], bytes]]


def gguf_seeds(folder: Path) -> list[bytes]:
    """Small files with every kind of metadata, plain and quantised tensors, in both byte orders."""
    random_ = np.random.default_rng(0)
    found = []
    for order in gguf.GGUFEndian:
        path = folder / "seed.gguf"
        writer = gguf.GGUFWriter(path, "llama", endianess=order)
        writer.add_name("seed")
        writer.add_head_count([2, 4])
        writer.add_head_count_kv(2)
        writer.add_token_list(["a", "bc"])
        writer.add_array("numbers", [1, 2, 3])
        writer.add_float32("f", 0.5)
        writer.add_tensor("blk.0.attn_q.weight", random_.normal(size=(16, 8)).astype(np.float32))
        writer.add_tensor("blk.1.attn_k.bias", random_.normal(size=16).astype(np.float16))
        for kind in KINDS:
            number = gguf.GGMLQuantizationType[kind]
            values = random_.normal(size=(2, 256)).astype(np.float32)
            writer.add_tensor(f"blk.0.{kind}.weight", gguf.quants.quantize(values, number), raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found.append(path.read_bytes())
    return found


def modules() -> list[Tensors]:
    """The tensors of the vectors: type, shape and bytes by name."""
    found = []
    for path in sorted((DATA / "quantised").glob("*.safetensors")):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        header.pop("__metadata__", None)
        tensors: Tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], raw[start + begin : start + end])
        tensors.pop("expected")
        found.append(tensors)
    return found


def tampered(tensors: Tensors, other: Tensors, chance: random.Random) -> bytes:
    """A well-formed safetensors file of ``tensors`` after one to four changes."""
    tensors = dict(tensors)
    for _ in range(chance.choice((1, 1, 2, 4))):
        name = chance.choice(sorted(tensors))
        dtype, shape, data = tensors[name]
        what = chance.randrange(7)
        if what == 0 and len(tensors) > 1:
            del tensors[name]
        elif what == 1:
            key = chance.choice(sorted(other))
            tensors[chance.choice((name, key))] = other[key]
        elif what == 2 and shape:
            shape = list(shape)
            shape[chance.randrange(len(shape))] = chance.choice(SIZES)
        elif what == 3:
            shape = shape[1:] if chance.random() < 0.5 else [1, *shape]
        elif what == 4:
            dtype = chance.choice(sorted(DTYPES))
        elif what == 5:
            out = bytearray(data)
            for _ in range(8):
                if out:
                    out[chance.randrange(len(out))] = chance.choice((0, 1, 127, 128, 255, 34, 125))
            data = bytes(out)
        else:
            shape = shape[::-1]
        if name in tensors and what in range(2, 7):
            tensors[name] = (dtype, shape, data)
    header: dict[str, Any] = {}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        size = DTYPES[dtype].nbytes(int(np.prod(np.array(shape, object)))) or 0
        if size > 1 << 20:
            continue
        filled = (data * (size // max(len(data), 1) + 1))[:size] if data else bytes(size)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + size]}
        body += filled
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def main() -> None:
    """Runs the stated number of executions and says what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    faulthandler.enable()
    chance = random.Random(arguments.seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        seeds, vectors = gguf_seeds(Path(folder)), modules()
        for number in range(arguments.executions):
            if number % 2:
                kind, path = "gguf", Path(folder) / "model.gguf"
                data = damaged(chance.choice(seeds), chance.choice(seeds), chance)
            else:
                kind, path = "layouts", Path(folder) / "model.safetensors"
                data = tampered(chance.choice(vectors), chance.choice(vectors), chance)
            path.write_bytes(data)
            started = time.perf_counter()
            try:
                outcome = examine(path)
            except Exception:  # noqa: BLE001 - whatever comes out that should not is what is looked for
                outcome = "CRASH"
                traceback.print_exc()
            took = time.perf_counter() - started
            slowest[kind] = max(slowest.get(kind, 0.0), took)
            outcomes[kind, outcome] += 1
            if outcome == "CRASH" or took > SLOW:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, arguments.keep / f"{number}-{path.name}")
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:8} {outcome:24} {count:8,}")
    print("slowest, s:", {kind: round(took, 3) for kind, took in slowest.items()})


if __name__ == "__main__":
    main()
