"""Undoes what llama.cpp's conversion does to the rows of queries and keys.

Hugging Face keeps, for every head, the first halves of all rotated pairs before the second ones; llama.cpp keeps each
pair together, and for the architectures listed here its conversion therefore permutes the rows of the projections (and
biases) of queries and keys (``LlamaModel.permute`` in conversion/llama.py). Which architectures those are, and how many
heads there are, is told by the metadata: a file that lies about it has its rows in another order, and nothing else.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from fingerprint.readers.base import Contents, Finding, some
from fingerprint.tensors import LikeSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.tensors import Array, TensorView

PERMUTED = frozenset({
    "llama", "mistral3", "deci", "smollm3", "arcee", "granite", "granitemoe", "granitehybrid", "minicpm", "internlm2",
    "baichuan", "xverse", "olmo", "arctic", "deepseek", "chameleon", "bailingmoe", "llada", "eagle3",
})  # fmt: skip
"""Architectures (``general.architecture``) whose conversion permutes; those of llama.cpp's conversion/ at b10436."""
MAX_HEADS = 4096
_NAME = re.compile(r"blk\.([0-9]{1,6})\.attn_([qk])\.(?:weight|bias|weight\.lora_b)")
_PIECE = 1 << 20


class HalvesFirst(LikeSource, frozen=True):
    """``source``, whose rows hold pairs side by side in each of ``heads`` heads, with the first halves in front.

    Row ``half * size / 2 + i`` of a head of ``size`` rows is row ``2 * i + half`` of the source's.
    """

    heads: int

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``; reads at most three times as much of the source, in pieces of bounded size."""
        width = math.prod(self.shape[1:])
        if stop <= start or not width:
            return self.source.read(start, stop)
        size = self.shape[0] // self.heads
        low, high = start // width, -(-stop // width)
        if high - low >= size:
            low = low // size * size
            pieces = self._whole_heads(low, -(-high // size) * size, size * width)
        else:
            pieces = self._runs(low, high, width)
        flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return flat[start - low * width : stop - low * width]

    def _whole_heads(self, low: int, high: int, elements: int) -> list[Array]:
        size, width = self.shape[0] // self.heads, math.prod(self.shape[1:])
        step = size * max(1, _PIECE // elements)
        pieces = []
        for row in range(low, high, step):
            block = self.source.read(row * width, min(row + step, high) * width)
            pieces.append(np.ascontiguousarray(block.reshape(-1, size // 2, 2, width).swapaxes(1, 2)).reshape(-1))
        return pieces

    def _runs(self, row: int, high: int, width: int) -> list[Array]:
        pieces = []
        while row < high:
            last = min(high, self._run_end(row), row + max(1, _PIECE // (2 * width)))
            first = self._stored(row)
            block = self.source.read(first * width, (first + 2 * (last - row) - 1) * width)
            pieces.append(block.reshape(-1, width)[::2].reshape(-1))
            row = last
        return pieces

    def _run_end(self, row: int) -> int:
        """Where the half of a head that ``row`` lies in ends."""
        half = self.shape[0] // self.heads // 2
        return (row // half + 1) * half

    def _stored(self, row: int) -> int:
        size = self.shape[0] // self.heads
        head, place = divmod(row, size)
        half, pair = divmod(place, size // 2)
        return head * size + 2 * pair + half


def with_halves_first(contents: Contents) -> Contents:
    """``contents`` of a GGUF checkpoint (all its parts) with queries and keys as Hugging Face has them.

    A finding says so where the architecture demands it and the number of heads is not known or does not fit.
    """
    architecture = contents.metadata.get("general.architecture", "")
    if architecture not in PERMUTED:
        return contents
    heads = {"q": _heads(contents.metadata, f"{architecture}.attention.head_count")}
    heads["k"] = _heads(contents.metadata, f"{architecture}.attention.head_count_kv") or heads["q"]
    tensors: list[TensorView] = []
    left: list[str] = []
    for tensor in contents.tensors:
        match = _NAME.fullmatch(tensor.name)
        if match is None:
            tensors.append(tensor)
            continue
        counts = heads[match.group(2)]
        count = counts[min(int(match.group(1)), len(counts) - 1)] if counts else 0
        if count and tensor.shape and tensor.shape[0] and tensor.shape[0] % (2 * count) == 0:
            tensors.append(HalvesFirst(tensor, count))
        else:
            left.append(tensor.name)
            tensors.append(tensor)
    findings = contents.findings
    if left:
        text = f"{len(left)} queries and keys keep llama.cpp's order of rows: no fitting number of heads: {some(left)}"
        findings += (Finding("rope-order", text, left[0]),)
    return replace(contents, tensors=tuple(tensors), findings=findings)


def _heads(metadata: Mapping[str, str], key: str) -> list[int]:
    """Numbers of heads, one for all layers or one for each; empty if not claimed; 0 where a layer's is no number."""
    text = metadata.get(key, "")
    if not text or len(text) > 2**14:
        return []
    parts = text.split(",")
    return [int(part) if part.isascii() and part.isdigit() and 0 < int(part) <= MAX_HEADS else 0 for part in parts]
