"""The result of laying out a checkpoint: canonical tensors, and the MLPs that they form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from fingerprint.tensors import TensorView
    from fingerprint.vocabulary import Axis, Role

OFFSET_GLU = "offset-glu"
"""gpt-oss's ``(clip(up) + 1) * gate * sigmoid(1.702 gate)``: not odd in ``up``, so its neurons carry no coin."""


class CanonicalTensor(Struct, frozen=True):
    """One tensor of the network, split out of what is stored and turned to (out, in) where that is known.

    ``name`` is the stored name, with the part in brackets where a stored tensor was split
    (``…qkv_proj.weight[query]``). ``axes`` are those of the rows and of the columns (everything after the first axis;
    ``UNKNOWN`` for vectors). ``oriented`` is false where the orientation is only as stored and the transpose has to be
    tried too. ``stack`` tells stacks of layers apart (``encoder``, ``vision``); empty if there is one.
    """

    view: TensorView
    name: str
    role: Role
    layer: int | None
    expert: int | None
    axes: tuple[Axis, Axis]
    oriented: bool
    stack: str


class Mlp(Struct, frozen=True):
    """One MLP, as positions in ``Layout.tensors``.

    ``gate`` is (neurons, width), or fc-in of an ungated MLP, whose ``up`` is None; ``down`` is (width, neurons).
    ``activation`` is its name where the family or the configuration tells, else empty.
    """

    layer: int | None
    expert: int | None
    gate: int
    up: int | None
    down: int
    activation: str


class Layout(Struct, frozen=True):
    """A checkpoint laid out.

    Every stored element is in exactly one of ``tensors``, which are in the order of the checkpoint. ``family`` names
    the table of names that most tensors follow, ``width`` is the width of the (largest) residual stream, ``notes``
    tell what was left whole, contradicted its name, or was found transposed.
    """

    tensors: tuple[CanonicalTensor, ...]
    mlps: tuple[Mlp, ...]
    family: str | None
    width: int | None
    notes: tuple[str, ...]
