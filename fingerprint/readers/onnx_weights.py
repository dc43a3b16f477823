"""From the constants of ONNX graphs to weights: dequantised, turned as PyTorch stores them, and named.

Exporters transpose the weights of ``MatMul`` and call them ``onnx::MatMul_123``, reorder the gates of recurrent layers,
and quantisers replace a weight by integers, scales and zero points. What the nodes do with a constant tells all that;
names only label.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from fingerprint import dtypes
from fingerprint.dtypes import Kind
from fingerprint.quant.affine import Affine, blocks_along, blocks_of, quantised_dtype
from fingerprint.readers.base import Finding, some
from fingerprint.readers.onnx_contrib import four_bit_floats, quantised_gates
from fingerprint.readers.onnx_data import UnreadableError
from fingerprint.readers.onnx_uses import Scope, Use, Value, is_factor, is_parameter, views_of
from fingerprint.readers.packed import Cropped, Packed, Repeated
from fingerprint.tensors import Reshaped, TensorView, Transposed, element_count

if TYPE_CHECKING:
    from fingerprint.readers.onnx_data import Data
    from fingerprint.readers.onnx_model import Constant, Graph, Model, Node

_THROUGH = frozenset({"Cast", "CastLike", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Unsqueeze"})
"""Operations behind which a constant is still the same weight."""
_QUANTISED = {
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5)), "QLinearConv": ((0, 1, 2), (3, 4, 5)), "QGemm": ((0, 1, 2), (3, 4, 5)),
    "QLinearAdd": ((0, 1, 2), (3, 4, 5)), "QLinearMul": ((0, 1, 2), (3, 4, 5)), "DynamicQuantizeMatMul": ((1, 2, 3),),
    "MatMulIntegerToFloat": ((0, 2, 4), (1, 3, 5)), "QAttention": ((0, 3, 6), (1, 4, 7)),
    "DequantizeLinear": ((0, 1, 2),),
}  # fmt: skip
"""Inputs that are integers, their scale and their zero point."""
_SUMS = {"QLinearConv": (8, 1, 4), "QGemm": (6, 1, 4)}
"""The bias of an integer operation, and the two scales whose product is its own."""
_INTEGER = {"MatMulInteger": 3, "ConvInteger": 3}
"""The input that is the zero point of input 1; the scale comes later in the graph."""
_PARAMETERS = {
    **{op: tuple(place for triple in places for place in triple[1:]) for op, places in _QUANTISED.items()},
    "ConvInteger": (2, 3), "MatMulInteger": (2, 3), "QuantizeLinear": (1, 2),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7), "QLinearConv": (1, 2, 4, 5, 6, 7), "QGemm": (1, 2, 4, 5, 7, 8),
    "QLinearAdd": (1, 2, 4, 5, 6, 7), "QLinearMul": (1, 2, 4, 5, 6, 7),
}  # fmt: skip
"""The inputs that are scales and zero points, of weights or of activations."""
_ONNX_NAMES = {"I8": "INT8", "U8": "UINT8", "I16": "INT16", "U16": "UINT16", "I32": "INT32"}
_MOST_HOPS = 5
_MOST_TAKERS = 4
_COUNTING = frozenset({"I64", "I32", "U64", "U32", "BOOL"})


class Weights(Struct):
    """What came out: weights in the order of the file, findings, and whether everything could be read."""

    tensors: list[TensorView] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    complete: bool = True


class Collector:
    """Walks the graphs of ``model``."""

    def __init__(self, model: Model, data: Data) -> None:
        self._model = model
        self._data = data
        self._constants: list[Constant] = []
        self._uses: dict[int, list[Use]] = {}
        self._latest: dict[int, Value] = {}
        self._absorbed: set[int] = set()
        self._result = Weights()

    def collect(self) -> Weights:
        """All weights. Raises ``InputError``."""
        result = self._result
        for graph in self._model.graphs:
            self._walk(graph, None)
        set_aside: list[str] = []
        numbers: Counter[str] = Counter()
        for index, constant in enumerate(self._constants):
            uses = self._uses.get(index, [])
            if index not in self._latest or (index in self._absorbed and not any(map(is_factor, uses))):
                continue
            value = self._latest[index]
            if not any(map(is_parameter, uses)) and _is_no_weight(value.view, constant):
                set_aside.append(constant.name)
                continue
            for view in views_of(value, constant, uses):
                numbers[view.name] += 1
                count = numbers[view.name]
                result.tensors.append(view if count == 1 else Reshaped(view, f"{view.name}#{count}", view.shape))
        if set_aside:
            text = (
                f"{len(set_aside)} constants of the graph (scalars, shapes, indices) are no weights: {some(set_aside)}"
            )
            result.findings.append(Finding("graph-constants", text))
        return result

    def _walk(self, graph: Graph, parent: Scope | None) -> None:
        scope = Scope(graph, parent)
        for constant in graph.constants:
            self._define(scope, constant)
        if graph.sparse:
            text = f"{graph.sparse} sparse tensors of the graph cannot be read"
            self._result.findings.append(Finding("unread-tensor", text))
            self._result.complete = False
        for node in graph.nodes:
            for name in node.outputs:
                scope.makers[name] = node
            for name in node.inputs:
                scope.takers.setdefault(name, []).append(node)
        for node in graph.nodes:
            self._visit(scope, node)
        for child in graph.children:
            self._walk(child, scope)

    def _define(self, scope: Scope, constant: Constant) -> None:
        index = len(self._constants)
        self._constants.append(constant)
        if constant.proto.is_text:
            return
        try:
            view = self._data.view(constant.name or "constant", constant.proto)
        except UnreadableError as reason:
            text = f"a tensor cannot be read: {reason}"
            self._result.findings.append(Finding("unread-tensor", text, constant.name))
            self._result.complete = False
            return
        value = Value(index, view, constant.name)
        self._latest[index] = value
        scope.values.setdefault(constant.name, value)

    def _visit(self, scope: Scope, node: Node) -> None:
        inputs = [scope.value(name) if name else None for name in node.inputs]
        if not any(inputs):
            return
        folded = self._folded(node, inputs)
        if folded is not None and node.outputs:
            folded = replace(folded, name=node.outputs[0])
            scope.values[node.outputs[0]] = folded
            self._latest[folded.constant] = folded
            return
        self._dequantise(scope, node, inputs)
        for place, value in enumerate(inputs):
            if value is not None and value.constant not in self._absorbed:
                self._uses.setdefault(value.constant, []).append(Use(value, node, place, scope))

    # --- operations on constants alone ------------------------------------------------------------------------------

    def _folded(self, node: Node, inputs: list[Value | None]) -> Value | None:
        """What the node makes of constants alone, if that is a weight in another form."""
        first, second = inputs[0], inputs[1] if len(inputs) > 1 else None
        if node.op in _THROUGH:
            return first
        if node.op == "Transpose" and first is not None:
            if len(first.view.shape) == 2 and node.lists.get("perm", (1, 0)) == (1, 0) and first.zero is None:
                view = first.view
                turned = view.source if isinstance(view, Transposed) else Transposed(view, view.name)
                return replace(first, view=turned)
            return first
        if node.op == "DequantizeLinear" and first is not None and second is not None:
            return self._affine(first, second, inputs[2] if len(inputs) > 2 else None, node)
        if first is None or second is None:
            return None
        if node.op == "Mul":
            for numbers, scale in ((first, second), (second, first)):
                if _is_integer(numbers) and not _is_integer(scale):
                    return self._affine(numbers, scale, numbers.zero, None)
        if node.op == "Sub" and _is_integer(first) and first.zero is None and _fits(first, second):
            self._absorbed.add(second.constant)
            return replace(first, zero=second.view)
        return None

    def _affine(self, numbers: Value, scale: Value, zero: Value | TensorView | None, node: Node | None) -> Value | None:
        """``numbers`` dequantised, or None if the scale does not fit them."""
        zero_view = zero.view if isinstance(zero, Value) else zero
        if numbers.view.dtype.kind is Kind.FLOAT and numbers.view.dtype.bits > 8:
            return numbers  # a weight in full, which only the running network quantises
        widest = scale.view
        if zero_view is not None and element_count(scale.view.shape) == 1:
            widest = zero_view
        blocks = _blocks(numbers.view, widest, node)
        if blocks is None:
            return None
        view = Affine(
            numbers.view.name,
            quantised_dtype(_ONNX_NAMES.get(numbers.view.dtype.name, numbers.view.dtype.name)),
            numbers.view,
            scale.view,
            zero_view,
            blocks,
        )
        if {element_count(one.shape) for one in (scale.view, zero_view) if one} - {1, math.prod(view.grid)}:
            return None
        self._absorbed.add(scale.constant)
        if isinstance(zero, Value):
            self._absorbed.add(zero.constant)
        return replace(numbers, view=view, zero=None)

    def _dequantise(self, scope: Scope, node: Node, inputs: list[Value | None]) -> None:
        """Puts dequantised weights in the place of the integers that an integer operation takes."""

        def at(place: int) -> Value | None:
            return inputs[place] if place < len(inputs) else None

        for place in _PARAMETERS.get(node.op, ()):
            if (parameter := at(place)) is not None:
                self._absorbed.add(parameter.constant)
        if node.op == "MatMulNBits":
            self._dequantise_nbits(node, inputs)
            return
        if node.op == "MatMulBnb4" and (codes := at(1)) is not None and (absmax := at(2)) is not None:
            self._replace(inputs, 1, four_bit_floats(node, codes.view, absmax.view), absmax)
            return
        if node.op == "DynamicQuantizeLSTM":
            for place, next_to in ((1, 8), (2, 10)):
                gates, step, offset = at(place), at(next_to), at(next_to + 1)
                if gates is not None and step is not None:
                    found = quantised_gates(gates.view, step.view, offset.view if offset is not None else None)
                    self._replace(inputs, place, found, step, offset)
            return
        if node.op in _SUMS:
            place, *scales = _SUMS[node.op]
            self._put(inputs, place, self._summed(at(place), [at(scale) for scale in scales]))
        for place, scale, zero in _QUANTISED.get(node.op, ()):
            self._put(inputs, place, self._tried(at(place), at(scale), at(zero), node))
        if node.op in _INTEGER:
            scale_value = self._later_scale(scope, node, at(1))
            self._put(inputs, 1, self._tried(at(1), scale_value, at(_INTEGER[node.op]), node))
        elif node.op == "Gather" and (table := at(0)) is not None and _is_integer(table):
            self._put(inputs, 0, self._tried(table, *self._scale_of_rows(scope, node, table), None))

    def _replace(
        self, inputs: list[Value | None], place: int, view: TensorView | None, *parameters: Value | None
    ) -> None:
        """Puts ``view`` in the place of an input, if there is one; ``parameters`` are no weights then."""
        old = inputs[place]
        if view is not None and old is not None:
            self._put(inputs, place, replace(old, view=view))
            self._absorbed.update(one.constant for one in parameters if one is not None)

    def _put(self, inputs: list[Value | None], place: int, value: Value | None) -> None:
        if value is not None:
            inputs[place] = self._latest[value.constant] = value

    def _tried(self, numbers: Value | None, scale: Value | None, zero: Value | None, node: Node | None) -> Value | None:
        if numbers is None or scale is None or not _is_integer(numbers):
            return None
        return self._affine(numbers, scale, zero, node)

    def _summed(self, numbers: Value | None, scales: list[Value | None]) -> Value | None:
        """A bias in integers, whose scale is the product of those of what is multiplied."""
        first, second = scales
        if numbers is None or first is None or second is None or not _is_integer(numbers):
            return None
        if element_count(first.view.shape) != 1 or element_count(second.view.shape) not in {1, *numbers.view.shape}:
            return None
        kind = quantised_dtype(_ONNX_NAMES.get(numbers.view.dtype.name, numbers.view.dtype.name))
        shape = numbers.view.shape
        each = tuple(1 if element_count(second.view.shape) > 1 else max(size, 1) for size in shape)
        view = Affine(numbers.view.name, kind, numbers.view, second.view, None, each)
        whole = tuple(max(size, 1) for size in shape)
        return replace(numbers, view=Affine(view.name, kind, view, first.view, None, whole))

    def _later_scale(self, scope: Scope, node: Node, numbers: Value | None) -> Value | None:
        """The scale of the weight of an integer operation: a constant factor of what its result is multiplied by."""
        name = node.outputs[0] if node.outputs else ""
        wanted = _scale_name(numbers)
        for _ in range(_MOST_HOPS):
            takers = scope.takers.get(name, [])[:_MOST_TAKERS]
            product = next((taker for taker in takers if taker.op == "Mul"), None)
            if product is not None:
                factors = [one for other in product.inputs if other != name for one in _factors(scope, other)]
                told = [one for one in factors if one.name == wanted]
                # Those of the activations come first.
                return next(iter(told or factors[::-1]), None)
            cast = next((taker for taker in takers if taker.op == "Cast" and taker.outputs), None)
            if cast is None:
                return None
            name = cast.outputs[0]
        return None

    def _scale_of_rows(self, scope: Scope, node: Node, table: Value) -> tuple[Value | None, Value | None]:
        """Scale and zero point of a table: those of the operation that takes the rows which were looked up."""
        name = node.outputs[0] if node.outputs else ""
        for taker in scope.takers.get(name, [])[:_MOST_TAKERS]:
            for place, scale, zero in _QUANTISED.get(taker.op, ()):
                if place < len(taker.inputs) and taker.inputs[place] == name and scale < len(taker.inputs):
                    zeros = scope.value(taker.inputs[zero]) if zero < len(taker.inputs) else None
                    return scope.value(taker.inputs[scale]), zeros
            if taker.op in _INTEGER and taker.inputs[0] == name:
                zeros = scope.value(taker.inputs[2]) if len(taker.inputs) > 2 else None
                return scope.value(_scale_name(table)), zeros
        return None, None

    def _dequantise_nbits(self, node: Node, inputs: list[Value | None]) -> None:
        """MatMulNBits of ONNX Runtime: blocks of K elements for each of N rows, low bits first."""
        bits, block = node.numbers.get("bits", 4), node.numbers.get("block_size", 0)
        rows, columns = node.numbers.get("N", 0), node.numbers.get("K", 0)
        numbers, scale = inputs[1] if len(inputs) > 1 else None, inputs[2] if len(inputs) > 2 else None
        if numbers is None or scale is None or bits not in {2, 4, 8} or min(block, rows, columns) <= 0:
            return
        blocks = -(-columns // block)
        width = blocks * block
        if element_count(numbers.view.shape) * 8 != rows * width * bits or numbers.view.dtype.name != "U8":
            return
        if element_count(scale.view.shape) != rows * blocks:
            return
        octets = Reshaped(numbers.view, numbers.view.name, (element_count(numbers.view.shape),))
        kind = quantised_dtype(f"UINT{bits}")
        whole: TensorView
        if bits == 8:
            whole = Reshaped(octets, octets.name, (rows, width))
        else:
            whole = Packed(octets.name, replace(dtypes.U8, name=kind.name), (rows, width), bits, octets)
        zero = inputs[3] if len(inputs) > 3 else None
        zero_view: TensorView | None = Repeated("", dtypes.U8, (rows * blocks,), 1 << (bits - 1))
        if zero is not None:
            zero_view = _packed_zero(zero.view, rows, blocks, bits)
            if zero_view is None:
                return
            self._absorbed.add(zero.constant)
        view: TensorView = Affine(whole.name, kind, whole, scale.view, zero_view, (1, block))
        if width != columns:
            view = Cropped(view, view.name, columns)
        self._absorbed.add(scale.constant)
        inputs[1] = self._latest[numbers.constant] = replace(numbers, view=view)


def _packed_zero(view: TensorView, rows: int, blocks: int, bits: int) -> TensorView | None:
    """Zero points of MatMulNBits: a row of packed numbers for each row, or one number of the scales' type a block."""
    if view.dtype.name != "U8":
        return view if element_count(view.shape) == rows * blocks else None
    octets = -(-blocks * bits // 8)
    if element_count(view.shape) != rows * octets:
        return None
    flat = Reshaped(view, view.name, (rows * octets,))
    whole = Packed(view.name, dtypes.U8, (rows, octets * 8 // bits), bits, flat) if bits < 8 else None
    return Reshaped(view, view.name, (rows, blocks)) if whole is None else Cropped(whole, view.name, blocks)


def _scale_name(value: Value | None) -> str:
    """What quantisers call the scale of a constant: ``W_quantized``, ``W_scale``."""
    return "" if value is None else f"{value.name.removesuffix('_quantized')}_scale"


def _factors(scope: Scope, name: str) -> list[Value]:
    """The constants whose product ``name`` is, as far as they are known."""
    if (value := scope.value(name)) is not None:
        return [value]
    maker = scope.makers.get(name)
    if maker is None or maker.op != "Mul":
        return []
    return [value for one in maker.inputs if (value := scope.value(one)) is not None]


def _is_integer(value: Value) -> bool:
    return value.view.dtype.kind in {Kind.INT, Kind.UINT}


def _fits(numbers: Value, other: Value) -> bool:
    return element_count(other.view.shape) == 1 or blocks_of(numbers.view.shape, other.view.shape) is not None


def _blocks(view: TensorView, scale: TensorView, node: Node | None) -> tuple[int, ...] | None:
    """How ``scale`` divides ``view``; None if it does not."""
    shape, count = view.shape, element_count(scale.shape)
    if count == 1:
        return tuple(max(size, 1) for size in shape)
    if not shape:
        return None
    op = node.op if node is not None else ""
    if node is not None and op == "DequantizeLinear":
        axis = node.numbers.get("axis", 1)
        if not -len(shape) <= axis < len(shape):
            return None
        axis %= len(shape)
        block = node.numbers.get("block_size", 0)
        if len(scale.shape) == 1 and not block:
            return blocks_along(shape, axis) if count == shape[axis] else None
        if len(scale.shape) != len(shape) or block < 0:
            return None
        runs = scale.shape[axis]
        block = block or -(-shape[axis] // max(runs, 1))
        return tuple(block if place == axis else 1 for place in range(len(shape)))
    if "Conv" in op:
        return blocks_along(shape, 0) if count == shape[0] else None
    if op == "QGemm" and node is not None and node.numbers.get("transB"):
        return blocks_along(shape, 0) if count == shape[0] else None
    if op and count == shape[-1]:
        return blocks_along(shape, len(shape) - 1)
    return blocks_of(shape, scale.shape)


def _is_no_weight(view: TensorView, constant: Constant) -> bool:
    """Scalars, and whole numbers that are the shapes and indices of a graph."""
    if isinstance(view, Affine):
        return False
    if not view.shape or (constant.loose and element_count(view.shape) <= 1):
        return True
    return view.dtype.name in _COUNTING and (constant.loose or len(view.shape) <= 1)
