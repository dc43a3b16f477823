"""The tensors of one quantised module, by the last word of their names, and what layouts ask about them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import Struct

from fingerprint.dtypes import Kind
from fingerprint.tensors import Reshaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.tensors import TensorView

MOST_VALUES = 64
"""Most elements of a tensor that is read to learn a shape or a number."""


class NotUnderstoodError(Exception):
    """A module that looks like a layout's and has shapes or settings that it should not have; the reason is shown."""


class Module(Struct, frozen=True):
    """``leaves`` are the tensors of the module ``name`` by what follows it; ``hints`` are claims of the checkpoint."""

    name: str
    leaves: Mapping[str, TensorView]
    hints: Mapping[str, str]

    def get(self, leaf: str, *kinds: Kind, rank: int | None = None) -> TensorView | None:
        """The tensor called ``leaf``; None if there is none. Raises ``NotUnderstoodError`` for another kind or rank."""
        view = self.leaves.get(leaf)
        if view is None:
            return None
        if kinds and view.dtype.kind not in kinds:
            raise NotUnderstoodError(f"{leaf} is of type {view.dtype.name}")
        if rank is not None and len(view.shape) != rank:
            raise NotUnderstoodError(f"{leaf} has {len(view.shape)} axes")
        return view

    def need(self, leaf: str, *kinds: Kind, rank: int | None = None) -> TensorView:
        """Like ``get``, and raises ``NotUnderstoodError`` if there is none."""
        view = self.get(leaf, *kinds, rank=rank)
        if view is None:
            raise NotUnderstoodError(f"{leaf} is absent")
        return view

    def numbers(self, leaf: str) -> list[int]:
        """The few integers that the tensor ``leaf`` holds; empty without it. Raises ``NotUnderstoodError``."""
        view = self.get(leaf, Kind.INT, Kind.UINT, Kind.BOOL)
        if view is None:
            return []
        count = math.prod(view.shape)
        if count > MOST_VALUES:
            raise NotUnderstoodError(f"{leaf} has {count} elements")
        return [int(value) for value in view.read(0, count)]

    def hint(self, *keys: str) -> str:
        """The first of ``keys`` that the config's settings of quantisation claim; empty without any."""
        places = ("config.quantization_config.", "config.quantization.", "config.text_config.quantization_config.")
        return next((value for key in keys for place in places if (value := self.hints.get(place + key))), "")

    def hinted_number(self, *keys: str) -> int:
        """The same as a small positive number; 0 without any."""
        text = self.hint(*keys)
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0


class Restored(Struct, frozen=True):
    """The view that stands for a module's weight, and the leaves that it was made of."""

    view: TensorView
    leaves: frozenset[str]


def demand(condition: bool, message: str) -> None:
    """Raises ``NotUnderstoodError`` with ``message`` unless the condition holds."""
    if not condition:
        raise NotUnderstoodError(message)


def block_size(size: int, parts: int, hinted: int = 0) -> int:
    """How many of ``size`` elements share one of ``parts`` scales. Raises ``NotUnderstoodError``."""
    demand(parts > 0, "no scales")
    if parts == 1:
        return max(size, 1)
    if parts == size:
        return 1
    for block in (hinted, 128, -(-size // parts) if size % parts == 0 else 0, 64, 32, 16, 256, 512):
        if block and -(-size // block) == parts:
            return block
    raise NotUnderstoodError(f"{parts} scales for {size} elements")


def as_grid(view: TensorView, shape: tuple[int, ...]) -> TensorView:
    """Scales with the axes of the weights: ``(out,)`` as ``(out, 1)``. Raises ``NotUnderstoodError``."""
    if math.prod(view.shape) == 1:
        return Reshaped(view, view.name, (1,) * len(shape))
    if len(view.shape) == len(shape):
        grid = view.shape
    elif view.shape == shape[:-1]:
        grid = (*view.shape, 1)
    elif view.shape == shape[:-2]:
        grid = (*view.shape, 1, 1)
    else:
        raise NotUnderstoodError(f"scales of shape {list(view.shape)} for weights of shape {list(shape)}")
    demand(grid[:-2] == shape[:-2], "the scales belong to another number of matrices")
    return view if grid == view.shape else Reshaped(view, view.name, grid)
