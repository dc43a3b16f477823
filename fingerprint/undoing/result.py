"""What undoing comes to, as data that costs no numpy to hold."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Use(StrEnum):
    """What was estimated from a tensor.

    ``FITTED``: the rotation, or an order of rows, signs and scales together with it. ``ORDERED``: nothing but the
    order, signs and scales of its own neurons or heads; the rotation comes from elsewhere. ``HELD_OUT``: nothing.
    ``TABLES``: at most the order, as of ``ORDERED``, but it is a table of tokens or positions: models that learnt the
    same text have tables that are alike up to a rotation.
    """

    FITTED = "fitted"
    TABLES = "tables"
    ORDERED = "ordered"
    HELD_OUT = "held-out"


class Residual(Struct, frozen=True):
    """``|theirs - T(ours)| / |theirs|`` of all tensors of one kind and use together.

    ``control`` is the same after giving every row the transformed row of its neighbour: what no correspondence at all
    looks like. ``kind`` is a role, or ``… circuit`` for products of two matrices that no rewrite changes.
    """

    kind: str
    use: str
    residual: float
    control: float
    tensors: int
    elements: int


class Total(Struct, frozen=True):
    """All tensors of one use together; ``None`` where there are none is told by absence."""

    residual: float
    control: float
    elements: int


class Undoing(Struct, frozen=True):
    """What was undone between A and B, and what is left.

    ``held_out`` is the residual over all tensors from which nothing was estimated: neither the rotation nor an order,
    sign or scale; ``ordered`` over those from which only the order, signs and scales of their own neurons or heads
    were; ``tables`` and ``fitted`` over the rest (``Use``). About 1.41 (the root of 2) is what unrelated weights of
    equal size leave.
    ``recovered``: whether the held-out residual is below .8 of its control, or where nothing was held out, that of
    ``ordered`` below .5, or where there is nothing but tables, theirs below .3; if it is not, what was undone means
    nothing.
    ``missing`` says why nothing could be done. ``source`` is what the rotation was first found from; ``rotation`` is
    ``as-it-was``, ``permuted`` or ``rotated``; ``angle`` is ``|R - 1| / sqrt(2 width)``, 1 for a random rotation.
    ``scale``: how much larger the residual stream is. Shares (0 to 1) of tokens, neurons and heads under another
    number, of neurons whose up and down are negated or rescaled; ``values`` and ``keys``: what was done to the channels
    inside of heads. ``layers`` are (theirs, ours).
    """

    missing: str = ""
    recovered: bool = False
    source: str = ""
    rotation: str = ""
    angle: float = 0.0
    scale: float = 1.0
    tokens_moved: float | None = None
    neurons_moved: float | None = None
    neurons_negated: float | None = None
    neurons_rescaled: float | None = None
    heads_moved: float | None = None
    values: str | None = None
    keys: str | None = None
    layers: tuple[tuple[int, int], ...] = ()
    mlps: int = 0
    attention: int = 0
    held_out: Total | None = None
    ordered: Total | None = None
    tables: Total | None = None
    fitted: Total | None = None
    residuals: tuple[Residual, ...] = ()
