"""Disguise of suspects (names, order, files) and their writing as safetensors, independent of any reader."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from benchmarks.lineage.derive_cases import Names
from benchmarks.lineage.derive_ops import in_layer, layer_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from random import Random

    from torch import Tensor

    from benchmarks.zoo.models import Weights

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
}


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor as it is written. was: its name before the disguise."""

    name: str
    was: str
    tensor: Tensor


def disguise(tensors: Weights, names: Names, random: Random) -> list[Item]:
    """Give the tensors other names, or not; in the order of their old names."""
    words: dict[str, str] = {}

    def word(key: str) -> str:
        while key not in words:
            new = f"{random.getrandbits(40):010x}"
            if new not in words.values():
                words[key] = new
        return words[key]

    def renamed(name: str) -> str:
        layer = layer_of(name)
        if names is Names.KEPT:
            return name
        if names is Names.STRUCTURED and layer is not None:
            return f"{word('')}.{layer}.{word(in_layer(name, 0))}"
        return word(name)

    return [Item(renamed(name), name, tensors[name]) for name in sorted(tensors)]


def shards(items: Sequence[Item], count: int) -> list[list[Item]]:
    """Cut the items in `count` runs of about as many bytes; every run has one item or more."""
    if count > len(items):
        raise ValueError(f"{len(items)} tensors cannot fill {count} shards")
    total = sum(item.tensor.nbytes for item in items)
    runs: list[list[Item]] = [[]]
    written = 0
    for i, item in enumerate(items):
        is_full = written >= total * len(runs) / count
        must_open = len(items) - i <= count - len(runs)
        if runs[-1] and len(runs) < count and (is_full or must_open):
            runs.append([])
        runs[-1].append(item)
        written += item.tensor.nbytes
    return runs


def write_file(path: Path, items: Sequence[Item]) -> None:
    """Write one safetensors file, tensors in the given order."""
    header: dict[str, object] = {}
    position = 0
    for item in items:
        end = position + item.tensor.nbytes
        header[item.name] = {
            "dtype": _DTYPES[item.tensor.dtype],
            "shape": list(item.tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for item in items:
            file.write(item.tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def write_folder(folder: Path, runs: Sequence[Sequence[Item]]) -> None:
    """Write shards and their index as Hugging Face names them."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for number, run in enumerate(runs, start=1):
        name = f"model-{number:05d}-of-{len(runs):05d}.safetensors"
        write_file(folder / name, run)
        weight_map.update({item.name: name for item in run})
    total = sum(item.tensor.nbytes for run in runs for item in run)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
