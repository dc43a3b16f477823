"""Laying out checkpoints: canonical tensors from names and from shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fingerprint import dtypes
from fingerprint.canonical import lay_out
from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from fingerprint.tensors import Array


@dataclass(frozen=True)
class Shape:
    """A view that has only a name and a shape: laying out reads no values."""

    name: str
    shape: tuple[int, ...]
    dtype: dtypes.DType = dtypes.BF16

    def read(self, start: int, stop: int) -> Array:
        raise AssertionError("values were read")


def test_gpt2_block_is_split_and_turned() -> None:
    tensors = [
        Shape("wte.weight", (50257, 768)),
        Shape("h.0.attn.c_attn.weight", (768, 2304)),
        Shape("h.0.attn.c_proj.weight", (768, 768)),
        Shape("h.0.mlp.c_fc.weight", (768, 3072)),
        Shape("h.0.mlp.c_proj.weight", (3072, 768)),
    ]
    layout = lay_out(tensors, {})
    shapes = {one.role: one.view.shape for one in layout.tensors}
    assert shapes[Role.QUERY] == shapes[Role.VALUE] == (768, 768)
    assert shapes[Role.FC_IN] == (3072, 768)
    assert layout.tensors[1].axes == (Axis.CHANNEL, Axis.RESIDUAL)
    assert [(mlp.gate, mlp.up, mlp.down) for mlp in layout.mlps] == [(5, None, 6)]
