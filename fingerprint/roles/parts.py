"""Lazy parts of stored tensors: experts taken off a stack, transposes, and the pieces of fused blocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from fingerprint.roles.tables import Split
from fingerprint.tensors import Array, Reshaped, RowGather, RowSlice, Transposed, read_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fingerprint.dtypes import DType
    from fingerprint.tensors import TensorView

MOST_HEADS = 4096
HINT_PREFIXES = ("", "text_config.", "config.", "config.text_config.")
"""What stands before a field of a config among the claims of a checkpoint."""
_PIECE = 1 << 20


class EveryRow(Struct, frozen=True):
    """Rows ``first``, ``first + step``, ... of ``source``: one of ``step`` parts whose rows alternate."""

    source: TensorView
    name: str
    first: int
    step: int

    @property
    def dtype(self) -> DType:
        """Element type of the source."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return (len(range(self.first, self.source.shape[0], self.step)), *self.source.shape[1:])

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``; reads ``step`` times as much of the source, in pieces of bounded size."""
        width = math.prod(self.source.shape[1:])
        if stop <= start or not width:
            return self.source.read(0, 0)
        low, high = start // width, -(-stop // width)
        rows = max(1, _PIECE // (width * self.step))
        pieces = []
        for row in range(low, high, rows):
            last = min(row + rows, high)
            block = read_rows(self.source, self.first + row * self.step, self.first + (last - 1) * self.step + 1)
            pieces.append(block[:: self.step])
        flat = (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).reshape(-1)
        return flat[start - low * width : stop - low * width]


class Heads(Struct, frozen=True):
    """What is known of an attention block from other tensors and from hints: counts of heads, width between v and o.

    ``inner`` is the number of columns of the output projection. None where unknown.
    """

    queries: int | None
    keys: int | None
    inner: int | None
    width: int | None


def unstacked(view: TensorView, number: int) -> TensorView:
    """Matrix (or vector) ``number`` of a tensor of shape (n, ...)."""
    piece = RowSlice(view, view.name, number, number + 1)
    return Reshaped(piece, f"{view.name}[{number}]", view.shape[1:])


def transposed(view: TensorView) -> TensorView:
    """The transpose of a matrix, under the same name."""
    if isinstance(view, Transposed):
        return view.source
    return Transposed(view, view.name)


def split(view: TensorView, runs: Sequence[tuple[tuple[int, int], ...]], labels: Sequence[str]) -> list[TensorView]:
    """Parts of ``view`` along its first axis; each part is a tuple of runs (start, stop) of rows."""
    return [_part(view, part, f"{view.name}[{label}]") for part, label in zip(runs, labels, strict=True)]


def alternating(view: TensorView, labels: Sequence[str]) -> list[TensorView]:
    """Parts of ``view`` whose rows alternate."""
    return [EveryRow(view, f"{view.name}[{label}]", first, len(labels)) for first, label in enumerate(labels)]


def _part(view: TensorView, runs: tuple[tuple[int, int], ...], name: str) -> TensorView:
    if len(runs) == 1:
        return RowSlice(view, name, *runs[0])
    return RowGather(view, name, runs)


def runs_of(how: Split, rows: int, parts: int, heads: Heads) -> list[tuple[tuple[int, int], ...]] | None:
    """Where the parts of a fused block of ``rows`` rows lie; None where that cannot be known or does not fit."""
    if rows <= 0:
        return None
    if how is Split.EQUAL:
        return None if rows % parts else _in_order([rows // parts] * parts)
    if how is Split.GROUPED:
        return _grouped(rows, heads)
    if how is Split.PER_HEAD:
        return _per_group(rows, heads.queries, [1, 1, 1]) if rows == 3 * (heads.inner or heads.width or 0) else None
    if how is Split.FALCON:
        return _falcon(rows, heads)
    if how is Split.LATENT:
        return (
            None if heads.inner is None or not 0 < heads.inner < rows else _in_order([heads.inner, rows - heads.inner])
        )
    return None


def _in_order(sizes: Sequence[int]) -> list[tuple[tuple[int, int], ...]]:
    runs: list[tuple[tuple[int, int], ...]] = []
    start = 0
    for size in sizes:
        runs.append(((start, start + size),))
        start += size
    return runs


def _grouped(rows: int, heads: Heads) -> list[tuple[tuple[int, int], ...]] | None:
    """Query, then key, then value, each with all of its heads; keys may have fewer heads than queries."""
    inner = heads.inner
    if inner is not None:
        shared, rest = divmod(rows - inner, 2)
        return None if rest or shared <= 0 or inner % shared else _in_order([inner, shared, shared])
    if heads.width is not None and rows == 3 * heads.width:
        return _in_order([heads.width] * 3)
    if heads.queries and heads.keys and heads.queries % heads.keys == 0:
        size, rest = divmod(rows, heads.queries + 2 * heads.keys)
        return None if rest else _in_order([heads.queries * size, heads.keys * size, heads.keys * size])
    return None


def _per_group(rows: int, groups: int | None, heads: Sequence[int]) -> list[tuple[tuple[int, int], ...]] | None:
    """Groups one after another, each with ``heads[p]`` heads of part p."""
    if not groups or groups > MOST_HEADS or rows % (groups * sum(heads)):
        return None
    size = rows // (groups * sum(heads))
    parts: list[tuple[tuple[int, int], ...]] = []
    offset = 0
    for count in heads:
        first = [group * sum(heads) * size + offset for group in range(groups)]
        parts.append(tuple((start, start + count * size) for start in first))
        offset += count * size
    return parts


def _falcon(rows: int, heads: Heads) -> list[tuple[tuple[int, int], ...]] | None:
    """Falcon's three layouts: one key head for all (7B), groups of heads (40B, 180B), a key for each head (RW)."""
    inner, queries, keys = heads.inner, heads.queries, heads.keys
    if inner is None or not queries or inner % queries:
        return None
    size = inner // queries
    if rows == inner + 2 * size:
        return _in_order([inner, size, size])
    if rows == 3 * inner:
        return _per_group(rows, queries, [1, 1, 1])
    if keys and queries % keys == 0 and rows == (queries + 2 * keys) * size:
        return _per_group(rows, keys, [queries // keys, 1, 1])
    return None


def heads_from(hints: Mapping[str, str], width: int | None, inner: int | None) -> Heads:
    """Counts of heads as claimed beside the weights; claims that are no small positive number are not heard."""
    queries = _claimed(hints, ("num_attention_heads", "n_head", "n_heads", "num_heads"))
    keys = _claimed(hints, ("num_key_value_heads", "num_kv_heads", "n_head_kv"))
    return Heads(queries, keys, inner, width)


def _claimed(hints: Mapping[str, str], names: Sequence[str]) -> int | None:
    for prefix in HINT_PREFIXES:
        for name in names:
            text = hints.get(prefix + name, "")
            if text.isascii() and text.isdigit() and len(text) <= 4 and 0 < int(text) <= MOST_HEADS:
                return int(text)
    return None
