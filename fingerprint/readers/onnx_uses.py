"""What the nodes of ONNX graphs do with a constant, and what follows: its orientation, its gates and its name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct, field

from fingerprint.readers.base import MAX_NAME
from fingerprint.tensors import Reshaped, RowGather, TensorView, Transposed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.readers.onnx_model import Constant, Graph, Node

_FACTORS = {
    "MatMul": 1, "Gemm": 1, "FusedMatMul": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3, "QGemm": 3, "Attention": 1, "QAttention": 1, "FusedGemm": 1, "GemmFloat8": 1,
}  # fmt: skip
"""The input that is the weight, stored (in, out) unless ``transB`` says otherwise."""
_TABLES = frozenset({"Gather", "GatherElements", "GatherND", "EmbedLayerNormalization"})
_CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "ConvTranspose", "FusedConv", "QLinearConv"})
_GATES = {"LSTM": (0, 2, 3, 1), "DynamicQuantizeLSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where PyTorch's gates (i, f, g, o; r, z, n) lie among those of ONNX (i, o, f, c; z, r, h)."""
_UNTOLD = re.compile(
    r"(?:onnx::\w{1,64}|val|_v|t|tensor|const\w{0,32}|weight|w|b|bias|arg\w{0,16}|\w{0,64}_initializer|_inlfunc.{0,64})?"
    r"[._]?[0-9]*"
)
"""Names that exporters make up."""
_SUFFIXES = re.compile(
    r"(?:_quantized|_q|_qdq|_int8|_DequantizeLinear_Output|_dequantized|_Q4G?[0-9]*|_[Tt]ransposed)\Z"
)
_BIASES = {"Add": (0, 1), "Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "QLinearConv": (8,), "QGemm": (6,)}
"""The inputs that are biases."""
_MOST_HOPS = 5
_MOST_TAKERS = 4


class Value(Struct, frozen=True):
    """A constant behind some operations: what it stands for, and ``zero``, already taken off it."""

    constant: int
    view: TensorView
    name: str
    zero: TensorView | None = None


class Use(Struct, frozen=True):
    """Input ``place`` of ``node``, in ``scope``, is a constant."""

    value: Value
    node: Node
    place: int
    scope: Scope


class Scope(Struct, eq=False):
    """A graph while it is walked: its constants by name, who makes a value and who takes it."""

    graph: Graph
    parent: Scope | None
    values: dict[str, Value] = field(default_factory=dict)
    makers: dict[str, Node] = field(default_factory=dict)
    takers: dict[str, list[Node]] = field(default_factory=dict)

    def value(self, name: str) -> Value | None:
        """The constant that ``name`` stands for here."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            if name in scope.makers:
                return None
            scope = scope.parent
        return None


def is_factor(use: Use) -> bool:
    """Whether a node multiplies by the constant, convolves with it, or looks rows of it up."""
    op = use.node.op
    return (
        _FACTORS.get(op) == use.place
        or (op in _CONVOLUTIONS and use.place in {1, 3})
        or (op in _TABLES and use.place == 0)
        or (op in _GATES and use.place in {1, 2, 3})
        or (op == "MatMul" and use.place == 0)
    )


def is_parameter(use: Use) -> bool:
    """Whether the constant is a factor, or the bias of an operation with one."""
    op = use.node.op
    return is_factor(use) or (op not in {"Add", "MatMul"} and use.place in _BIASES.get(op, ()))


def views_of(value: Value, constant: Constant, uses: Sequence[Use]) -> list[TensorView]:
    """The weight as PyTorch stores it, under its name; both weights and both biases of a recurrent layer apart."""
    for use in uses:
        if use.node.op in _GATES and use.place in {1, 2, 3} and (parts := _recurrent(use, constant)):
            return parts
    return [_renamed(_oriented(value, uses), _label(constant, value, uses))]


def _oriented(value: Value, uses: Sequence[Use]) -> TensorView:
    """A matrix as (out, in), where the nodes tell; a table that is also an output matrix stays a table."""
    turned: TensorView | None = None
    for use in uses:
        view = use.value.view
        if _FACTORS.get(use.node.op) == use.place and len(view.shape) == 2 and not use.node.numbers.get("transB", 0):
            turned = turned or (view.source if isinstance(view, Transposed) else Transposed(view, view.name))
        elif is_factor(use):
            return view
    return turned or value.view


def _renamed(view: TensorView, name: str) -> TensorView:
    return view if view.name == name else Reshaped(view, name, view.shape)


# --- gates ----------------------------------------------------------------------------------------------------------


def _recurrent(use: Use, constant: Constant) -> list[TensorView] | None:
    """The parts of W, R or B of a recurrent layer, with the gates in PyTorch's order; None if the shape is another."""
    view, gates = use.value.view, _GATES[use.node.op]
    shape = view.shape
    is_bias = use.place == 3
    while len(shape) > (2 if is_bias else 3) and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == (1 if is_bias else 2):
        shape = (1, *shape)
    if len(shape) != (2 if is_bias else 3) or min(shape) <= 0:
        return None
    directions, rows = shape[:2]
    blocks = 2 if is_bias else 1
    height, rest = divmod(rows, blocks * len(gates))
    if rest or directions > 2:
        return None
    flat = Reshaped(view, view.name, (directions * rows, *shape[2:]))
    base, layer = _module(use.node.name, keep_number=True)
    base = base or constant.name
    parts: list[TensorView] = []
    for direction in range(directions):
        for block in range(blocks):
            what = f"bias_{('ih', 'hh')[block]}" if is_bias else f"weight_{('ih', 'hh')[use.place - 1]}"
            first = direction * rows + block * len(gates) * height
            runs = tuple((first + gate * height, first + (gate + 1) * height) for gate in gates)
            name = f"{base}.{what}_l{layer}{'_reverse' if direction else ''}"[-MAX_NAME:]
            parts.append(RowGather(flat, name, runs))
    return parts


# --- names ----------------------------------------------------------------------------------------------------------


def _label(constant: Constant, value: Value, uses: Sequence[Use]) -> str:
    """A name for people and for the tables of names: the stored one where it tells something, else the module's."""
    for name in (constant.name, value.name):
        told = _SUFFIXES.sub("", _SUFFIXES.sub("", name))
        if told and not _UNTOLD.fullmatch(told):
            return told
    for use in uses:
        if _FACTORS.get(use.node.op) == use.place and (module := _module_of_bias(use)):
            return f"{module}.weight"[-MAX_NAME:]
    for use in uses:
        if module := _module(use.node.name)[0]:
            what = "bias" if use.place in _BIASES.get(use.node.op, ()) else "weight"
            return f"{module}.{what}"[-MAX_NAME:]
    return constant.name or "constant"


def _module_of_bias(use: Use) -> str:
    """The module whose bias is added to the product, or empty."""
    name = use.node.outputs[0] if use.node.outputs else ""
    for _ in range(_MOST_HOPS):
        takers = use.scope.takers.get(name, [])[:_MOST_TAKERS]
        for taker in takers:
            if taker.op == "Add":
                for other in taker.inputs:
                    bias = use.scope.value(other)
                    if other != name and bias is not None and bias.name.endswith(".bias"):
                        return bias.name[: -len(".bias")]
        behind = next((taker for taker in takers if taker.op in {"Cast", "Mul", "Reshape"} and taker.outputs), None)
        if behind is None:
            return ""
        name = behind.outputs[0]
    return ""


def _module(node: str, *, keep_number: bool = False) -> tuple[str, int]:
    """``/encoder/layer.0/query/MatMul_1`` as ``encoder.layer.0.query`` and 1; empty where there is no path."""
    path, _, operation = node.strip("/").rpartition("/")
    number = operation.rpartition("_")[2]
    layer = int(number) if keep_number and number.isascii() and number.isdigit() and len(number) < 5 else 0
    return path.replace("/", "."), layer
