"""Writes checkpoints of given shapes: bf16, with random numbers."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.resources.shapes import Llama

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.resources.shapes import Shapes

WEIGHTS: Final = "model.safetensors"
_DEVIATION: Final = 0.02
_POOL: Final = 1 << 22
_MOST_GAINS: Final = 1 << 16


def write(folder: Path, model: Llama | Shapes, seed: int = 0, *, moved: float = 0.0) -> int:
    """Write the weights into a folder, which is made if need be, with the configuration of a Llama beside them; return
    the bytes of the weights.

    The numbers are windows on a pool of random ones, of a gain about one. All of them are ``moved`` by other random
    numbers of that share of their deviation: what training a little further does.
    """
    folder.mkdir(exist_ok=True)
    if isinstance(model, Llama):
        (folder / "config.json").write_text(json.dumps(model.config), "utf-8")
    return _weights(folder / WEIGHTS, shapes_of(model), seed, moved)


def shapes_of(model: Llama | Shapes) -> Shapes:
    """Names and shapes of its tensors."""
    return model.shapes if isinstance(model, Llama) else model


def bytes_of(model: Llama | Shapes) -> int:
    """Bytes of its tensors in bf16."""
    return sum(2 * math.prod(shape) for _, shape in shapes_of(model))


def _weights(path: Path, shapes: Shapes, seed: int, moved: float) -> int:
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes:
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    single = random.normal(0, _DEVIATION, _POOL).astype(np.float32)
    if moved:
        other = np.random.default_rng([seed, 1]).normal(0, moved * _DEVIATION, _POOL)
        single += other.astype(np.float32)
    pool = np.concatenate([_bfloat16(single)] * 2)
    gains = _bfloat16(single[:_MOST_GAINS] + np.float32(1.0))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in shapes:
            left = math.prod(shape)
            if len(shape) == 1:  # gains of norms are about one; others would have to be read in two ways
                file.write(gains[:left].tobytes())
                continue
            while left:
                count = min(left, _POOL)
                start = int(random.integers(1, _POOL))
                file.write(pool[start : start + count].tobytes())
                left -= count
    return path.stat().st_size


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bf16, rounded towards zero."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)
