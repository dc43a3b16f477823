"""Feeds damaged safetensors, PyTorch, numpy, Flax and archive files to the readers.

``python -m benchmarks.fuzz.weight_files --executions 20000 --seed 1`` damages small files of the producing libraries in
the ways of ``benchmarks.fuzz.model_files``, opens each and reads the beginning, middle and end of every tensor. Only
``InputError`` may come out. What else does, or takes more than five seconds, is written to ``--keep``.
"""

from __future__ import annotations

import argparse
import bz2
import faulthandler
import gzip
import io
import lzma
import pickle
import random
import shutil
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
import torch.distributed.checkpoint as dcp
import zstandard
from safetensors.numpy import save

from benchmarks.fuzz.model_files import DATA, SLOW, Seed, damaged, examine

ARRAYS = {
    "layer.0.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "layer.0.bias": np.arange(4, dtype=np.float16),
    "layer.1.weight": np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
    "layer.1.bias": np.arange(3).astype(ml_dtypes.bfloat16),
}


def seeds(folder: Path) -> list[Seed]:
    """Small good files of every format; ``folder`` is for those that need a place to be written to."""
    plain = {name: array for name, array in ARRAYS.items() if array.dtype.kind != "V"}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in plain.items()}
    tensors["tied"] = tensors["view"] = tensors["layer.0.weight"].T
    weights = save({name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}, {"format": "np"})
    found = [Seed("safetensors", "model.safetensors", weights)]
    for zipped in (True, False):
        for protocol in (2, 4):
            buffer = io.BytesIO()
            state = {"state_dict": tensors, "arrays": plain, "epoch": 3}
            torch.save(state, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            found.append(Seed("pytorch", "model.pt", buffer.getvalue()))
    found += [Seed("pickle", "model.pkl", pickle.dumps(ARRAYS, protocol)) for protocol in (2, 4, 5)]
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **ARRAYS)
        found.append(Seed("npz", "model.npz", buffer.getvalue()))
    for array in ARRAYS.values():
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append(Seed("npy", "model.npy", buffer.getvalue()))
    found.append(Seed("flax", "model.msgpack", (DATA / "flax.msgpack").read_bytes()))
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
            for name in ("m/model.safetensors", "m/" + "long" * 30 + "/model.safetensors"):
                info = tarfile.TarInfo(name)
                info.size = len(weights)
                file.addfile(info, io.BytesIO(weights))
            link = tarfile.TarInfo("m/link.safetensors")
            link.type, link.linkname = tarfile.SYMTYPE, "model.safetensors"
            file.addfile(link)
        raw = buffer.getvalue()
        found.append(Seed("tar", "model.tar", raw))
        packers = (gzip.compress, bz2.compress, lzma.compress, zstandard.compress)
        found += [Seed("compressed", "model.tar.x", pack(raw)) for pack in packers]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("m/model.safetensors", weights)
            archive.writestr("m/config.json", '{"hidden_size": 6}')
        found.append(Seed("zip", "model.zip", buffer.getvalue()))
    dcp.save({"model": tensors}, checkpoint_id=folder / "dcp", no_dist=True)
    shards = tuple((folder / "dcp").glob("*.distcp"))
    found.append(Seed("distributed", ".metadata", (folder / "dcp" / ".metadata").read_bytes(), shards))
    return found


def main() -> None:
    """Runs, and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", action="append")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    faulthandler.enable()
    chance = random.Random(arguments.seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest: dict[str, float] = {}
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by_format: dict[str, list[Seed]] = {}
        for one in seeds(folder):
            if not arguments.format or one.format in arguments.format:
                by_format.setdefault(one.format, []).append(one)
        for number in range(arguments.executions):
            kind = sorted(by_format)[number % len(by_format)]
            seed, other = chance.choice(by_format[kind]), chance.choice(by_format[kind])
            place = folder / "case"
            place.mkdir()
            for beside in seed.beside:
                shutil.copy(beside, place)
            (place / seed.name).write_bytes(damaged(seed.data, other.data, chance))
            path = place if seed.beside else place / seed.name
            started = time.perf_counter()
            try:
                outcome = examine(path)
            except Exception:  # noqa: BLE001 - the very thing that is looked for
                outcome = "FAULT"
                traceback.print_exc()
            took = time.perf_counter() - started
            slowest[kind] = max(slowest.get(kind, 0.0), took)
            if outcome == "FAULT" or took > SLOW:
                faults += 1
                shutil.copytree(place, arguments.keep / f"{kind}-{arguments.seed}-{number}")
            outcomes[kind, outcome] += 1
            shutil.rmtree(place)
    for kind in sorted(by_format):
        counts = ", ".join(f"{what} {count}" for (k, what), count in sorted(outcomes.items()) if k == kind)
        print(f"{kind}: {counts}; slowest {slowest[kind]:.2f} s")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
