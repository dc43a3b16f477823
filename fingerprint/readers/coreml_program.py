"""ML Programs of Core ML: the constants of their functions, decompressed, as PyTorch stores the same weights.

Format: mlmodel/format/MIL.proto; operations as in coremltools/converters/mil/mil/ops/defs. What an operation does with
a constant tells whether it is a weight, and how it lies; names only label.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct, field

from fingerprint.dtypes import DType, Kind
from fingerprint.errors import LimitExceededError
from fingerprint.quant.affine import Affine, blocks_along, quantised_dtype
from fingerprint.readers.base import MAX_NAME, Catalogue, Finding, some
from fingerprint.readers.coreml_values import UnreadableError, Values
from fingerprint.readers.coreml_views import Bits, Palettised, Sparse
from fingerprint.readers.protobuf import BYTES, Field, Wire
from fingerprint.tensors import Reshaped, RowGather, TensorView, Transposed, element_count, renamed

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_NESTING: Final = 16
MAX_INPUTS: Final = 1 << 16
_SLOTS: Final = frozenset({
    "alpha", "beta", "bias", "bias_back", "gamma", "input_bias", "mean", "variance", "weight", "weight_hh",
    "weight_hh_back", "weight_ih", "weight_ih_back",
})  # fmt: skip
"""Parameters of operations that are weights, however small."""
_GATES: Final = {"lstm": (0, 1, 3, 2), "gru": (0, 2, 1)}
"""Where PyTorch's gates (i, f, g, o; r, z, n) lie among those of MIL (i, f, o, z; r, o, z)."""
_RECURRENT: Final = {
    "weight_ih": "weight_ih_l0", "weight_hh": "weight_hh_l0", "bias": "bias_l0",
    "weight_ih_back": "weight_ih_l0_reverse", "weight_hh_back": "weight_hh_l0_reverse", "bias_back": "bias_l0_reverse",
}  # fmt: skip
_ADDED: Final = re.compile(r"_(?:quantized|palettized|sparsified|to_fp16|to_fp32|promoted|cast_fp16|cast_fp32)\Z")
_LEAF: Final = re.compile(r"_(weight|bias|gamma|beta|running_mean|running_var|embedding)\Z")
_ORDINAL: Final = re.compile(r"_([0-9]{1,5})(?=_|\Z)")


class _Operation(Struct):
    kind: str = ""
    name: str = ""
    inputs: dict[str, str | Field] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, Field] = field(default_factory=dict)


class _Use(Struct, frozen=True):
    operation: _Operation
    slot: str


class Program(Struct):
    """The weights of a program; ``read`` fills them in."""

    wire: Wire
    values: Values
    catalogue: Catalogue
    tensors: list[TensorView] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    complete: bool = True
    _constants: dict[str, TensorView] = field(default_factory=dict)
    _integers: dict[str, Field] = field(default_factory=dict)
    _uses: dict[str, list[_Use]] = field(default_factory=dict)
    _absorbed: set[str] = field(default_factory=set)
    _prefix: str = ""

    def read(self, message: Field, prefix: str = "") -> None:
        """Reads all functions of a ``Program``. Raises ``InputError``."""
        self._prefix = prefix
        for one in self.wire.message(message):
            for function in self._entries(one) if one.number == 2 else ():
                for part in self.wire.message(function):
                    for block in self._entries(part) if part.number == 3 else ():
                        self._block(block, 0)
                        self._collect()

    def _entries(self, entry: Field) -> Iterator[Field]:
        """The value of an entry of a map."""
        if entry.wire == BYTES:
            yield from (one for one in self.wire.message(entry) if one.number == 2 and one.wire == BYTES)

    def _block(self, message: Field, depth: int) -> None:
        if depth > MAX_NESTING:
            text = f"Core ML: blocks nested deeper than {MAX_NESTING}"
            raise LimitExceededError(text, path=self.wire.source.path, offset=message.start)
        for one in self.wire.message(message):
            if one.number != 3 or one.wire != BYTES:
                continue
            operation, blocks = self._operation(one)
            self._visit(operation)
            for block in blocks:
                self._block(block, depth + 1)

    def _operation(self, message: Field) -> tuple[_Operation, list[Field]]:
        operation = _Operation()
        blocks: list[Field] = []
        for one in self.wire.message(message):
            if one.number == 1:
                operation.kind = self.wire.text(one, MAX_NAME)
            elif one.number in {2, 5}:
                key, value = self._entry(one)
                if value is None or len(operation.inputs) + len(operation.attributes) > MAX_INPUTS:
                    continue
                if one.number == 5:
                    operation.attributes[key] = value
                elif (bound := self._bound(value)) is not None:
                    operation.inputs[key] = bound
            elif one.number == 3:
                names = [self.wire.text(part, MAX_NAME) for part in self.wire.message(one) if part.number == 1]
                operation.outputs += names[:1]
            elif one.number == 4:
                blocks.append(one)
        if "name" in operation.attributes:
            operation.name = self.values.text(operation.attributes["name"])
        size = 400 + 200 * (len(operation.inputs) + len(operation.attributes) + len(operation.outputs))
        self.catalogue.add_name(operation.name, size + sum(map(len, operation.outputs)))
        return operation, blocks

    def _entry(self, message: Field) -> tuple[str, Field | None]:
        key, value = "", None
        for one in self.wire.message(message):
            if one.number == 1:
                key = self.wire.text(one, MAX_NAME)
            elif one.number == 2:
                value = one
        return key, value

    def _bound(self, argument: Field) -> str | Field | None:
        """What the first binding of an argument is: a name, or a value."""
        for binding in self.wire.message(argument):
            for one in self.wire.message(binding) if binding.number == 1 else ():
                return self.wire.text(one, MAX_NAME) if one.number == 1 else one
        return None

    # --- constants ----------------------------------------------------------------------------------------------------

    def _visit(self, operation: _Operation) -> None:
        made = operation.outputs[0] if operation.outputs else operation.name
        if operation.kind == "const":
            if (value := operation.attributes.get("val")) is not None:
                self._define(made, value)
            return
        if operation.kind.startswith("constexpr_"):
            try:
                self._constants[made] = self._decompressed(made, operation)
            except UnreadableError as reason:
                self._unread(made, reason)
            return
        for slot, bound in operation.inputs.items():
            name = bound if isinstance(bound, str) else f"{operation.name}.{slot}"
            if isinstance(bound, Field):
                self._define(name, bound)
                operation.inputs[slot] = name
            if name in self._constants:
                self._uses.setdefault(name, []).append(_Use(operation, slot))

    def _define(self, name: str, value: Field) -> None:
        try:
            view = self.values.view(value, name)
        except UnreadableError as reason:
            self._unread(name, reason)
            return
        if view is None or not view.shape:
            self._integers[name] = value
            self.catalogue.take(200)
        if view is not None:
            self._constants[name] = view
            self.catalogue.take(600)

    def _unread(self, name: str, reason: object) -> None:
        self.findings.append(Finding("unread-tensor", f"a tensor cannot be read: {reason}", name))
        self.complete = False

    def _decompressed(self, name: str, operation: _Operation) -> TensorView:
        """What a ``constexpr`` operation makes. Raises ``UnreadableError``."""
        given: dict[str, TensorView] = {}
        numbers: dict[str, list[int]] = {}
        for slot, bound in {**operation.attributes, **operation.inputs}.items():
            if isinstance(bound, str):
                self._absorbed.add(bound)
                if bound in self._constants:
                    given[slot] = self._constants[bound]
                if bound in self._integers:
                    numbers[slot] = self.values.integers(self._integers[bound])
            elif slot != "name":
                if (view := self.values.view(bound, f"{name}.{slot}")) is not None:
                    given[slot] = view
                if slot in {"axis", "shape", "vector_axis"}:
                    numbers[slot] = self.values.integers(bound)
        self.catalogue.take(600 * len(given))
        kind = operation.kind.removeprefix("constexpr_")
        makers = {
            "affine_dequantize": _affine, "blockwise_shift_scale": _blockwise, "lut_to_dense": _palettised,
            "sparse_to_dense": _sparse,
        }  # fmt: skip
        if kind == "cast" and "source_val" in given:
            return renamed(given["source_val"], name)
        if kind not in makers:
            raise UnreadableError(f"the operation {operation.kind!r} is not known"[:100])
        try:
            return makers[kind](name, given, numbers)
        except KeyError as error:
            raise UnreadableError(f"{error} is absent") from error

    # --- weights ------------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Takes over the constants of a function that are weights, and forgets the rest."""
        set_aside: list[str] = []
        taken: Counter[str] = Counter(tensor.name for tensor in self.tensors)
        for name, view in self._constants.items():
            if name in self._absorbed:
                continue
            uses = self._uses.get(name, [])
            is_slot = any(use.slot in _SLOTS for use in uses)
            if not view.shape or view.dtype.kind is not Kind.FLOAT or (element_count(view.shape) == 1 and not is_slot):
                set_aside.append(name)
                continue
            found = self._turned(name, view, uses)
            label = f"{self._prefix}{found.name}"[-MAX_NAME:]
            taken[label] += 1
            label = label if taken[label] == 1 else f"{label}#{taken[label]}"
            self.catalogue.add(label, found.shape)
            self.tensors.append(renamed(found, label))
        if set_aside:
            text = f"{len(set_aside)} constants of the program (scalars, shapes) are no weights: {some(set_aside)}"
            self.findings.append(Finding("graph-constants", text))
        self._constants, self._integers, self._uses, self._absorbed = {}, {}, {}, set()

    def _turned(self, name: str, view: TensorView, uses: list[_Use]) -> TensorView:
        """A weight in PyTorch's order, under a name like PyTorch's."""
        for use in uses:
            kind = use.operation.kind
            if kind in _GATES and use.slot in _RECURRENT and view.shape[0] % len(_GATES[kind]) == 0:
                height = view.shape[0] // len(_GATES[kind])
                runs = tuple((gate * height, (gate + 1) * height) for gate in _GATES[kind])
                return RowGather(view, f"{use.operation.name}.{_RECURRENT[use.slot]}", runs)
            if kind == "matmul" and use.slot == "y" and len(view.shape) == 2:
                told = use.operation.inputs.get("transpose_y")
                value = self._integers.get(told) if isinstance(told, str) else None
                if value is None or self.values.integers(value, 1) != [1]:
                    return Transposed(view, _label(name))
        return renamed(view, _label(name))


def _label(name: str) -> str:
    """``layers_0_fc_weight_to_fp16_palettized`` as ``layers.0.fc.weight``: MIL has no dots in names."""
    short = name
    while (cut := _ADDED.sub("", short)) != short:
        short = cut
    return _ORDINAL.sub(r".\1", _LEAF.sub(r".\1", short)).replace("._", ".") or name


# --- compressed constants -------------------------------------------------------------------------------------------

_Given = dict[str, TensorView]
_Numbers = dict[str, list[int]]


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise UnreadableError(message)


def _affine(name: str, given: _Given, numbers: _Numbers) -> TensorView:
    data, scale, zero = given["quantized_data"], given["scale"], given.get("zero_point")
    rank = len(data.shape)
    axis = numbers["axis"][0] if numbers.get("axis") else 0
    _demand(-rank <= axis < rank, f"axis {axis}")
    counts = {element_count(one.shape) for one in (scale, zero) if one is not None} - {1}
    _demand(counts <= {data.shape[axis]}, f"{sorted(counts)} scales for {list(data.shape)}")
    blocks = blocks_along(data.shape, axis) if counts else tuple(max(size, 1) for size in data.shape)
    return Affine(name, quantised_dtype("INT8"), data, scale, zero, blocks)


def _blockwise(name: str, given: _Given, _: _Numbers) -> TensorView:
    data, scale, zero = given["data"], given["scale"], given.get("offset")
    grid = scale.shape
    _demand(len(grid) == len(data.shape) and min(grid, default=0) > 0, "scales of another rank")
    _demand(
        all(not size % parts for size, parts in zip(data.shape, grid, strict=True)), f"scales of shape {list(grid)}"
    )
    _demand(zero is None or zero.shape == grid, "offsets of another shape")
    blocks = tuple(max(size // parts, 1) for size, parts in zip(data.shape, grid, strict=True))
    kind = quantised_dtype(data.dtype.name if isinstance(data, Bits) else f"INT{data.dtype.bits}")
    return Affine(name, kind if data.dtype.bits <= 8 else data.dtype, data, scale, zero, blocks)


def _palettised(name: str, given: _Given, numbers: _Numbers) -> TensorView:
    indices, palette = given["indices"], given["lut"]
    axis = 0
    if len(palette.shape) == 1:
        shape = tuple(numbers["shape"]) if numbers.get("shape") else _shape(given["shape"])
        bits = max(palette.shape[0] - 1, 1).bit_length()
        _demand(palette.shape[0] == 1 << bits and bits <= 8, f"a palette of {palette.shape[0]}")
        _demand(min(shape, default=0) > 0, f"shape {list(shape)}")
        count = math.prod(shape)
        _demand(
            element_count(indices.shape) == -(-count * bits // 8) and indices.dtype.name == "U8", "codes do not fit"
        )
        whole = Bits(name, quantised_dtype("UINT8"), shape, bits, indices)
        indices = Bits(name, DType(f"UINT{bits}", 8, Kind.UINT, np.dtype("u1")), whole.shape, bits, indices)
        palette = Reshaped(palette, palette.name, (*[1] * len(shape), palette.shape[0], 1))
    else:
        grid, (colours, width) = palette.shape[:-2], palette.shape[-2:]
        _demand(len(grid) == len(indices.shape) > 0 and min(*grid, colours, width) > 0, "a palette of another rank")
        _demand(all(not s % p for s, p in zip(indices.shape, grid, strict=True)), f"palettes of shape {list(grid)}")
        axis = numbers["vector_axis"][0] if numbers.get("vector_axis") else 0
        _demand(-len(grid) <= axis < len(grid) and colours <= 256, f"axis {axis}")
        axis %= len(grid)
        bits = max(colours - 1, 1).bit_length()
    _demand(palette.dtype.kind is Kind.FLOAT and indices.dtype.kind is Kind.UINT, "elements of another type")
    return Palettised(name, quantised_dtype(f"PALETTE_{bits}"), indices, palette, axis)


def _sparse(name: str, given: _Given, numbers: _Numbers) -> TensorView:
    values, mask = given["nonzero_data"], given["mask"]
    _demand(len(values.shape) == 1, "values of another rank")
    if "shape" in given or numbers.get("shape"):
        shape = tuple(numbers["shape"]) if numbers.get("shape") else _shape(given["shape"])
        _demand(min(shape, default=0) > 0, f"shape {list(shape)}")
        count = math.prod(shape)
        _demand(element_count(mask.shape) == -(-count // 8) and mask.dtype.name == "U8", "a mask of another size")
        mask = Bits(name, mask.dtype, shape, 1, mask)
    return Sparse(name, values.dtype, mask.shape, mask, values)


def _shape(view: TensorView) -> tuple[int, ...]:
    count = element_count(view.shape)
    _demand(0 < count <= 16, "a shape of too many axes")
    return tuple(int(size) for size in view.read(0, count))
