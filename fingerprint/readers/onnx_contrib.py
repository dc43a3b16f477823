"""Quantised operations of ONNX Runtime's own: 4-bit floats of ``MatMulBnb4``, integers of ``DynamicQuantizeLSTM``.

Format: docs/ContribOperators.md of ONNX Runtime 1.32, and blockwise_quant_block_bnb4.h for the values of the codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from fingerprint.dtypes import F32, DType, Kind
from fingerprint.quant.affine import Affine, quantised_dtype
from fingerprint.quant.flat import Bnb4
from fingerprint.readers.packed import Permuted
from fingerprint.tensors import Reshaped, element_count

if TYPE_CHECKING:
    from fingerprint.readers.onnx_model import Node
    from fingerprint.tensors import Array, TensorView

MAX_BLOCK: Final = 1 << 20
_HALF_FP4: Final = (0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
_TABLES: Final = {
    0: np.array([*_HALF_FP4, *(-one for one in _HALF_FP4)], np.float32),
    1: np.array(
        [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
         -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
         0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
        np.float32,
    ),
}  # fmt: skip
"""By ``quant_type``: FP4 and NF4, as bitsandbytes has them."""


class _Table(Struct, frozen=True):
    """The values of the codes, as a tensor."""

    values: Array
    name: str = ""

    @property
    def dtype(self) -> DType:
        return F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        return self.values[start:stop]


def four_bit_floats(node: Node, codes: TensorView, absmax: TensorView) -> TensorView | None:
    """The weight of a ``MatMulBnb4`` as (out, in); None if its parts do not fit together."""
    rows, columns = node.numbers.get("N", 0), node.numbers.get("K", 0)
    block, table = node.numbers.get("block_size", 0), _TABLES.get(node.numbers.get("quant_type", -1))
    if table is None or min(rows, columns) <= 0 or not 0 < block <= MAX_BLOCK:
        return None
    count = rows * columns
    if codes.dtype.name != "U8" or element_count(codes.shape) != -(-count // 2) or absmax.dtype.kind is not Kind.FLOAT:
        return None
    if element_count(absmax.shape) != -(-count // block):
        return None
    kind = ("FP4", "NF4")[node.numbers["quant_type"]]
    return Bnb4(codes.name, kind, (rows, columns), codes, _Table(table), absmax, block, None)


def quantised_gates(numbers: TensorView, scale: TensorView, zero: TensorView | None) -> TensorView | None:
    """W or R of a ``DynamicQuantizeLSTM``, (directions, in, gates), as an LSTM has it; None if it does not fit."""
    shape = numbers.shape
    if len(shape) != 3 or min(shape) <= 0 or numbers.dtype.kind not in {Kind.INT, Kind.UINT}:
        return None
    directions, inputs, gates = shape
    count = element_count(scale.shape)
    if count not in {directions, directions * gates} or (zero is not None and element_count(zero.shape) != count):
        return None
    blocks = (1, inputs, 1 if count == directions * gates else gates)
    zeros = None if zero is None else _flat(zero)
    view = Affine(numbers.name, quantised_dtype("INT8"), numbers, _flat(scale), zeros, blocks)
    return Permuted(view, numbers.name, (0, 2, 1))


def _flat(view: TensorView) -> TensorView:
    return Reshaped(view, view.name, (element_count(view.shape),))
