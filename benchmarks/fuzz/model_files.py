"""Feeds damaged ONNX, Keras, TFLite, TensorFlow and TensorFlow.js files to the readers.

``python -m benchmarks.fuzz.model_files --executions 20000 --seed 1`` damages whole files of ``tests/data`` (and hostile
ones) in the ways that parsers stumble over: bytes, lengths and offsets overwritten by edge values, parts cut out,
doubled or moved from another file, ends cut off. Each is opened and the beginning, middle and end of every tensor are
read. Only ``InputError`` may come out. What else does, or takes more than five seconds, is written to ``--keep``.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import random
import shutil
import struct
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import InputError
from tests.hostile.onnx_cases import GOOD, circle, nested, recurrent, scaled, squared, unpacked

DATA = Path(__file__).parent.parent.parent / "tests" / "data"
EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
SLOW = 5.0


@dataclass(frozen=True, slots=True)
class Seed:
    """A whole file: its format, the ``name`` it is written under, its bytes, and files that lie beside it."""

    format: str
    name: str
    data: bytes
    beside: tuple[Path, ...] = ()


def seeds() -> list[Seed]:
    found = [Seed("onnx", "model.onnx", path.read_bytes()) for path in sorted(DATA.glob("onnx/*.onnx"))]
    made = (GOOD, nested(5), circle(), unpacked(), scaled((2,), 0), scaled((1, 2), 1), recurrent(8), squared(3))
    found += [Seed("onnx", "model.onnx", data) for data in made]
    folder = DATA / "tensorflow"
    found += [Seed("keras", "model.h5", path.read_bytes()) for path in sorted(folder.glob("*.h5"))]
    found += [Seed("keras", "model.keras", path.read_bytes()) for path in sorted(folder.glob("*.keras"))]
    found += [Seed("tflite", "model.tflite", path.read_bytes()) for path in sorted(folder.glob("*.tflite"))]
    for path in (*sorted(folder.glob("*/*.index")), *sorted(folder.glob("*/*/*.index"))):
        found.append(Seed("tensorflow", path.name, path.read_bytes(), tuple(path.parent.glob("*.data-*"))))
    for path in sorted(folder.glob("*/*/model.json")):
        found.append(Seed("tfjs", "model.json", path.read_bytes(), tuple(path.parent.glob("*.bin"))))
    return found


def damaged(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """``data`` with one to eight things done to it; mostly near its beginning or end, where the structure is."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        if not out:
            break
        place = chance.randrange(len(out))
        if chance.random() < 0.5:
            place = min(int(chance.expovariate(1 / 400)), len(out) - 1)
            place = place if chance.random() < 0.7 else len(out) - 1 - place
        what = chance.randrange(8)
        if what == 0:
            out[place] = chance.randrange(256)
        elif what == 1:
            out[place] ^= 1 << chance.randrange(8)
        elif what == 2:
            width = chance.choice((1, 2, 4, 8))
            value = chance.choice(EDGES) & (1 << 8 * width) - 1
            out[place : place + width] = value.to_bytes(width, "little")
        elif what == 3:
            size = struct.unpack_from("<B", out, place)[0]
            out[place] = (size + chance.choice((-1, 1))) & 255
        elif what == 4:
            del out[place : place + chance.choice((1, 4, 16, 200))]
        elif what == 5:
            size = chance.choice((1, 4, 16, 200))
            out[place:place] = out[place : place + size]
        elif what == 6:
            start = chance.randrange(max(len(other), 1))
            out[place : place + 64] = other[start : start + 64]
        elif chance.random() < 0.3:
            del out[place:]
    return bytes(out)


def examine(path: Path) -> str:
    """What happened: ``read``, or the kind of error."""
    try:
        with open_checkpoint(path) as checkpoint:
            for tensor in checkpoint.tensors:
                count = math.prod(tensor.shape)
                for start in {0, count // 2, max(count - 50, 0)}:
                    tensor.read(start, min(start + 50, count))
    except InputError as error:
        return type(error).__name__
    return "read"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", action="append")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    faulthandler.enable()
    chance = random.Random(arguments.seed)
    by_format: dict[str, list[Seed]] = {}
    for one in seeds():
        if not arguments.format or one.format in arguments.format:
            by_format.setdefault(one.format, []).append(one)
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest: dict[str, float] = {}
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.executions):
            kind = list(by_format)[number % len(by_format)]
            seed, other = chance.choice(by_format[kind]), chance.choice(by_format[kind])
            place = Path(folder) / "case"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for path in seed.beside:
                shutil.copy(path, place / path.name)
            data = damaged(seed.data, other.data, chance)
            (place / seed.name).write_bytes(data)
            start = time.perf_counter()
            try:
                outcome = examine(place / seed.name)
            except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
                outcome = "DEFECT"
                print(traceback.format_exc())
            took = time.perf_counter() - start
            slowest[kind] = max(slowest.get(kind, 0.0), took)
            outcomes[kind, outcome] += 1
            if outcome == "DEFECT" or took > SLOW:
                bad += 1
                arguments.keep.mkdir(exist_ok=True)
                (arguments.keep / f"{kind}-{arguments.seed}-{number}-{seed.name}").write_bytes(data)
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:12} {outcome:24} {count}")
    for kind, took in slowest.items():
        print(f"{kind:12} slowest {took:.2f} s")
    print(f"{arguments.executions} executions, {bad} findings")


if __name__ == "__main__":
    main()
