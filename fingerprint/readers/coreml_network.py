"""Neural networks of Core ML, its format before ML Programs: the weights of their layers as PyTorch stores them.

Format: mlmodel/format/NeuralNetwork.proto of coremltools 9. Layers have weights of their own, quantised ones with a
scale and an offset for each output channel, or a palette.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct, field

from fingerprint import dtypes
from fingerprint.dtypes import DType, Kind
from fingerprint.errors import MalformedFileError
from fingerprint.quant.affine import Affine, blocks_along, quantised_dtype
from fingerprint.readers.base import MAX_ELEMENTS, MAX_NAME, MAX_RANK, Catalogue, Finding, StoredTensor
from fingerprint.readers.coreml_views import Bits, Palettised
from fingerprint.readers.protobuf import BYTES, VARINT, Field, Wire
from fingerprint.tensors import Chained, Reshaped, TensorView, Transposed, element_count, renamed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.tensors import Array

_CONVOLUTION, _INNER, _EMBEDDING, _BATCHNORM, _SCALE, _BIAS = 100, 140, 150, 160, 245, 250
_CONSTANT, _GRU, _LSTM, _BILSTM, _EMBEDDING_ND = 290, 410, 420, 430, 1040
_MATMUL, _CONSTANT_ND, _LAYERNORM = 1045, 1070, 1350
_WITH_WEIGHTS: Final = frozenset({
    _CONVOLUTION, 130, _INNER, _EMBEDDING, _BATCHNORM, _SCALE, _BIAS, _CONSTANT, 400, _GRU, _LSTM, _BILSTM,
    _EMBEDDING_ND, _MATMUL, _CONSTANT_ND, _LAYERNORM, 1471, 500,
})  # fmt: skip
_VECTORS: Final = {
    _BATCHNORM: {15: "weight", 16: "bias", 17: "running_mean", 18: "running_var"},
    _SCALE: {2: "weight", 5: "bias"}, _BIAS: {2: "bias"}, _CONSTANT: {2: "data"}, _CONSTANT_ND: {2: "data"},
    _LAYERNORM: {3: "weight", 4: "bias"},
}  # fmt: skip
"""Weights whose shape is that of the layer, or one axis."""


class _OddError(Exception):
    """A layer that cannot be read; the message says why."""


class Network(Struct):
    """The weights of a network; ``read`` fills them in."""

    wire: Wire
    catalogue: Catalogue
    tensors: list[TensorView] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    complete: bool = True
    _names: Counter[str] = field(default_factory=Counter)

    def read(self, message: Field, prefix: str = "") -> None:
        """Reads all layers of a ``NeuralNetwork``, or of one that classifies. Raises ``InputError``."""
        for one in self.wire.message(message):
            if one.number == 1 and one.wire == BYTES:
                self._layer(one, prefix)

    def _layer(self, message: Field, prefix: str) -> None:
        name, found = "", None
        for one in self.wire.message(message):
            if one.number == 1:
                name = self.wire.text(one, MAX_NAME)
            elif one.number in _WITH_WEIGHTS and one.wire == BYTES:
                found = one
        if found is None:
            return
        fields: dict[int, list[Field]] = {}
        for one in self.wire.message(found):
            self.catalogue.take(100)
            fields.setdefault(one.number, []).append(one)
        try:
            for leaf, view in self._weights(found.number, fields):
                self._add(f"{prefix}{name}.{leaf}"[-MAX_NAME:], view)
        except _OddError as reason:
            self.findings.append(Finding("unread-tensor", f"a layer cannot be read: {reason}", f"{prefix}{name}"))
            self.complete = False

    def _add(self, name: str, view: TensorView) -> None:
        self._names[name] += 1
        label = name if self._names[name] == 1 else f"{name}#{self._names[name]}"
        self.catalogue.add(label, view.shape)
        self.tensors.append(renamed(view, label))

    def _weights(self, kind: int, fields: Mapping[int, list[Field]]) -> list[tuple[str, TensorView]]:
        """The weights of a layer, by the last word of their names."""

        def number(key: int) -> int:
            one = fields.get(key, [None])[0]
            value = one.value if one is not None and one.wire == VARINT else 0
            if value > MAX_ELEMENTS:
                raise _OddError(f"a size of {value}")
            return value

        def weight(key: int, *shape: int) -> TensorView | None:
            return self._array(fields[key][0], shape) if key in fields else None

        found: list[tuple[str, TensorView | None]] = []
        if kind == _CONVOLUTION:
            kernel = self._sizes(fields.get(20, [])) or (3, 3)
            outputs, groups = number(1), max(number(10), 1)
            # A transposed convolution keeps its inputs in front, as PyTorch does.
            shape = (number(2), outputs // groups) if number(60) else (outputs, number(2))
            found = [("weight", weight(90, *shape, *kernel)), ("bias", weight(91, outputs))]
        elif kind == 1471:
            shape = (number(1), number(2) // max(number(10), 1))
            kernel = (number(20), number(21), number(22))
            found = [("weight", weight(60, *shape, *kernel)), ("bias", weight(61, number(1)))]
        elif kind == _INNER:
            found = [("weight", weight(20, number(2), number(1))), ("bias", weight(21, number(2)))]
        elif kind in {_EMBEDDING, _EMBEDDING_ND}:
            table = weight(20, number(2), number(1))
            turned = Transposed(table, table.name) if table is not None else None
            found = [("weight", turned), ("bias", weight(21, number(2)))]
        elif kind == _MATMUL:
            # (in, out) in column-major order.
            found = [("weight", weight(8, number(6), number(5))), ("bias", weight(9, number(6)))]
        elif kind in _VECTORS:
            shape_key = {_SCALE: {2: 1, 5: 4}, _BATCHNORM: {}}.get(kind, dict.fromkeys(_VECTORS[kind], 1))
            for key, leaf in _VECTORS[kind].items():
                told = self._sizes(fields.get(shape_key.get(key, 0), []))
                found.append((leaf, weight(key, *told) if told else self._flat(fields, key)))
        elif kind == _GRU:
            found = self._gates(fields, number(1), number(2), ((31, 30, 32), (51, 50, 52), (71, 70, 72)), "")
        elif kind in {_LSTM, _BILSTM}:
            for direction, one in enumerate(fields.get(20, [])[:2]):
                held: dict[int, list[Field]] = {}
                for part in self.wire.message(one):
                    held.setdefault(part.number, []).append(part)
                keys = ((1, 2, 3, 4), (20, 21, 22, 23), (40, 41, 42, 43))
                found += self._gates(held, number(1), number(2), keys, "_reverse" if direction else "")
        elif kind == 130:
            # The only activation with weights of a size: PReLU.
            for one in (part for key in fields for part in fields[key] if part.number == 25 and part.wire == BYTES):
                inner = {part.number: [part] for part in self.wire.message(one)}
                found.append(("weight", self._flat(inner, 1)))
        else:
            raise _OddError("layers of this kind are not read")
        return [(leaf, view) for leaf, view in found if view is not None]

    def _gates(
        self, fields: Mapping[int, list[Field]], inputs: int, outputs: int, keys: tuple[tuple[int, ...], ...], end: str
    ) -> list[tuple[str, TensorView | None]]:
        """Matrices and biases of the gates, joined in PyTorch's order."""
        found: list[tuple[str, TensorView | None]] = []
        for leaf, numbers, shape in zip(
            ("weight_ih_l0", "weight_hh_l0", "bias_l0"), keys, ((outputs, inputs), (outputs, outputs), (outputs,)),
            strict=True,
        ):  # fmt: skip
            if all(key in fields for key in numbers):
                parts = tuple(self._array(fields[key][0], shape) for key in numbers)
                if len({part.dtype for part in parts}) > 1:
                    raise _OddError("gates of several types")
                found.append((f"{leaf}{end}", Chained(leaf, (len(parts) * outputs, *shape[1:]), parts)))
        return found

    def _sizes(self, fields: list[Field]) -> tuple[int, ...]:
        sizes = [size for one in fields[:MAX_RANK] for size in self.wire.numbers(one, MAX_RANK)]
        if len(sizes) > MAX_RANK or any(not 0 < size <= MAX_ELEMENTS for size in sizes):
            raise _OddError("sizes that are none")
        return tuple(sizes)

    def _flat(self, fields: Mapping[int, list[Field]], key: int) -> TensorView | None:
        """A vector that is as long as it is."""
        if key not in fields:
            return None
        held = {one.number: one for one in self.wire.message(fields[key][0])}
        if 1 in held and held[1].wire == BYTES:
            return self._array(fields[key][0], (held[1].size // 4,))
        if 2 in held:
            return self._array(fields[key][0], (held[2].size // 2,))
        raise _OddError("a vector in a form that is not known")

    def _array(self, message: Field, shape: tuple[int, ...]) -> TensorView:
        """A ``WeightParams`` as a tensor of ``shape``."""
        count = math.prod(shape)
        if not 0 < count <= MAX_ELEMENTS:
            raise _OddError(f"weights of shape {list(shape)}")
        held: dict[int, Field] = {}
        for one in self.wire.message(message):
            if one.number in held and one.number in {1, 2, 30, 31}:
                raise _OddError("weights in pieces")
            held[one.number] = one
        for key, dtype in ((1, dtypes.F32), (2, dtypes.F16)):
            if key in held and held[key].wire == BYTES and held[key].size:
                return self._stored(held[key], dtype, count, shape)
        if 30 in held and 40 in held and held[30].wire == held[40].wire == BYTES:
            return self._quantised(held[30], held[40], shape)
        raise _OddError("weights in a form that is not known")

    def _stored(self, one: Field, dtype: DType, count: int, shape: tuple[int, ...]) -> TensorView:
        if dtype.nbytes(count) != one.size:
            message = f"Core ML: {one.size} bytes of weights, where {list(shape)} takes {dtype.nbytes(count)}"
            raise MalformedFileError(message, path=self.wire.source.path, offset=one.start)
        return StoredTensor("", dtype, shape, self.wire.source, one.start)

    def _quantised(self, raw: Field, settings: Field, shape: tuple[int, ...]) -> TensorView:
        held = {one.number: one for one in self.wire.message(settings)}
        bits = held[1].value if 1 in held and held[1].wire == VARINT else 0
        count = math.prod(shape)
        if not 1 <= bits <= 8 or raw.size != -(-count * bits // 8):
            raise _OddError(f"{raw.size} bytes of {bits} bits for {list(shape)}")
        octets = StoredTensor("", dtypes.U8, (raw.size,), self.wire.source, raw.start)
        codes = Bits("", DType(f"UINT{bits}", 8, Kind.UINT, np.dtype("u1")), shape, bits, octets, high_first=True)
        if 102 in held:
            palette = self._floats(held[102], 1)
            if palette is None or palette.shape[0] > 256:
                raise _OddError("a palette that is none")
            grid = (*[1] * len(shape), palette.shape[0], 1)
            view = Reshaped(palette, "", grid)
            return Palettised("", quantised_dtype(f"PALETTE_{bits}"), codes, view)
        scale = self._floats(held[101], 1) if 101 in held else None
        bias = self._floats(held[101], 2) if 101 in held else None
        if scale is None or element_count(scale.shape) not in {1, shape[0]}:
            raise _OddError("no scale, or another number of scales")
        rows = element_count(scale.shape) > 1
        blocks = blocks_along(shape, 0) if rows else shape
        if bias is None:
            return Affine("", quantised_dtype(f"UINT{bits}"), codes, scale, None, blocks)
        if bias.shape != scale.shape:
            raise _OddError("another number of offsets")
        return _Shifted("", quantised_dtype(f"UINT{bits}"), codes, scale, bias)

    def _floats(self, message: Field, key: int) -> TensorView | None:
        one = next((part for part in self.wire.message(message) if part.number == key and part.wire == BYTES), None)
        if one is None or not one.size or one.size % 4:
            return None
        return StoredTensor("", dtypes.F32, (one.size // 4,), self.wire.source, one.start)


class _Shifted(Struct, frozen=True):
    """``numbers * scale + bias``, one of each for all or for each row."""

    name: str
    dtype: DType
    numbers: TensorView
    scale: TensorView
    bias: TensorView

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers."""
        return self.numbers.shape

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        values: Array = self.numbers.read(start, stop).astype(np.float32)
        many = element_count(self.scale.shape) > 1
        width = element_count(self.shape) // (self.shape[0] if many else 1)
        low, high = start // width, -(-stop // width)
        if low >= high:
            return values
        rows = np.arange(start, stop) // width - low
        with np.errstate(all="ignore"):
            values *= self.scale.read(low, high)[rows]
            values += self.bias.read(low, high)[rows]
        return values
