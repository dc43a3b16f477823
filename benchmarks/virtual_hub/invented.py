"""Repositories of any size without their bytes: every byte is a function of the repository, the tensor, and its place.

A tensor's numbers are those of a counter through SplitMix64 (https://prng.di.unimi.it/splitmix64.c), each taken through
a table of quantiles of a normal distribution, so that any range costs what it is long.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from scipy.special import ndtri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.virtual_hub.shapes import Tensor

_QUANTILES = ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))
_TABLES = {
    "matrix BF16": (_QUANTILES * 0.02).astype(ml_dtypes.bfloat16).view(np.uint16),
    "vector BF16": (1 + _QUANTILES * 0.1).astype(ml_dtypes.bfloat16).view(np.uint16),
    "matrix F8_E4M3": (_QUANTILES[128::256] * 100).astype(ml_dtypes.float8_e4m3fn).view(np.uint8),
    "matrix F32": (2e-4 * np.exp(_QUANTILES * 0.1)).astype(np.float32).view(np.uint32),
    "vector F32": (_QUANTILES * 0.02).astype(np.float32).view(np.uint32),
}
_WORD = 8


def words(seed: int, start: int, stop: int) -> np.ndarray:
    """64-bit random words ``start`` to ``stop`` of the stream ``seed``."""
    with np.errstate(over="ignore"):
        state = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


def tensor_bytes(seed: int, tensor: Tensor, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` of a tensor; ``seed`` is that of its stream."""
    table = _TABLES[f"{'matrix' if len(tensor.shape) > 1 else 'vector'} {tensor.dtype}"]
    width = table.dtype.itemsize
    picks = np.dtype(np.uint8) if len(table) == 256 else np.dtype(np.uint16)
    each = _WORD // picks.itemsize
    first, last = start // width, -(-stop // width)
    low, high = first // each, -(-last // each)
    chosen = words(seed, low, high).view(picks)[first - low * each : last - low * each]
    return table[chosen].tobytes()[start - first * width : stop - first * width]


@dataclass(frozen=True)
class Shard:
    """A safetensors file that nobody wrote."""

    name: str
    tensors: Sequence[Tensor]
    seed: str

    @cached_property
    def header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for tensor in self.tensors:
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [position, position + tensor.bytes],
            }
            position += tensor.bytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each tensor begins in the file, and the end."""
        return np.cumsum([len(self.header), *(tensor.bytes for tensor in self.tensors)])

    @property
    def size(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> bytes:
        pieces = [self.header[start:stop]]
        place = max(int(np.searchsorted(self.starts, start, "right")) - 1, 0)
        while place < len(self.tensors) and (begin := int(self.starts[place])) < stop:
            low, high = max(start, begin), min(stop, int(self.starts[place + 1]))
            if low < high:
                tensor = self.tensors[place]
                pieces.append(tensor_bytes(self._stream(tensor.name), tensor, low - begin, high - begin))
            place += 1
        return b"".join(pieces)

    def _stream(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Plain:
    """A file whose bytes are at hand."""

    name: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]


def repository(groups: Sequence[Sequence[Tensor]], seed: str, config: dict[str, object]) -> dict[str, Shard | Plain]:
    """The files of a repository by name: shards, their index, a config."""
    files: dict[str, Shard | Plain] = {}
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(groups, start=1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        files[name] = Shard(name, tensors, seed)
        weight_map |= dict.fromkeys((tensor.name for tensor in tensors), name)
    total = sum(tensor.bytes for tensors in groups for tensor in tensors)
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    for name, text in (("model.safetensors.index.json", index), ("config.json", json.dumps(config))):
        files[name] = Plain(name, text.encode())
    return files
