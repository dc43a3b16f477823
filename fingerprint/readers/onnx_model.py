"""ONNX files as graphs: nodes, and where the constants lie. Nothing is evaluated and no tensor is read.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Graphs are nested in the attributes of nodes (If, Loop);
exporters put weights there too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from fingerprint.errors import LimitExceededError, clipped
from fingerprint.readers.base import MAX_NAME, Catalogue
from fingerprint.readers.onnx_data import TensorProto, read_proto
from fingerprint.readers.protobuf import BYTES, VARINT, Field, Wire

if TYPE_CHECKING:
    from fingerprint.source import Source

MAX_DEPTH = 16
"""How deep graphs may be nested."""
MAX_INPUTS = 1 << 14
"""Most inputs, or outputs, of one node."""
MAX_LISTED = 64
"""Most numbers of a list attribute; longer ones are no orders of axes and are left out."""
MAX_METADATA = 64
_HEADER = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
"""The numbers of ModelProto's fields."""
_GRAPH = 7
_KEPT_NUMBERS = frozenset({
    "axis", "axes", "bits", "block_size", "direction", "hidden_size", "K", "N", "perm", "quant_type", "transA",
    "transB", "to",
})  # fmt: skip


class Constant(Struct):
    """A tensor in a graph under the ``name`` that nodes know it by; ``loose``: the value of a Constant node."""

    name: str
    proto: TensorProto
    loose: bool


class Node(Struct):
    """An operation. Of its attributes only whole numbers, short lists of them, and short texts are kept."""

    op: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    lists: dict[str, tuple[int, ...]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


class Graph(Struct, eq=False):
    """A graph; names that it does not define are those of its ``parent``."""

    parent: Graph | None
    nodes: list[Node] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    children: list[Graph] = field(default_factory=list)
    sparse: int = 0


class Model(Struct):
    """The graphs of a file: the main one, then those of its functions; and what it says about itself."""

    graphs: list[Graph] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    trains: bool = False


def looks_like_onnx(source: Source) -> bool:
    """True where the file is a message of ModelProto's fields with a graph in it; never raises."""
    if source.size < 8:
        return False
    wire = Wire(source, "ONNX")
    found = False
    position = 0
    try:
        for number, one in enumerate(wire.fields(0, source.size)):
            if one.number not in _HEADER or number > 4096:
                return False
            if one.number in {1, 5} and one.wire != VARINT:
                return False
            found = found or (one.number == _GRAPH and one.wire == BYTES and one.size > 1)
            position = one.stop
    except Exception:  # noqa: BLE001 - bytes of another format may do anything here
        return _is_cut_off(source, position)
    return found


def _is_cut_off(source: Source, position: int) -> bool:
    """Whether the field that reaches beyond the end is the graph of a model with a version: a truncated file."""
    try:
        return position > 1 and bytes(source.read(0, 1)) == b"\x08" and bytes(source.read(position, 1)) == b"\x3a"
    except Exception:  # noqa: BLE001 - the same
        return False


def read_model(source: Source, catalogue: Catalogue) -> Model:
    """Reads all graphs. Raises ``InputError``."""
    parser = _Parser(Wire(source, "ONNX"), catalogue)
    model = Model()
    opsets: list[str] = []
    for one in parser.wire.fields(0, source.size):
        if one.number == _GRAPH:
            model.graphs.insert(0, parser.graph(one, None, 0))
        elif one.number == 25:
            model.graphs.append(parser.function(one))
        elif one.number == 20:
            model.trains = True
        elif one.number in {2, 3} and one.wire == BYTES:
            key = "producer" if one.number == 2 else "producer_version"
            model.metadata[f"onnx.{key}"] = clipped(parser.wire.text(one, MAX_NAME))
        elif one.number == 8:
            opsets.append(_opset(parser.wire, one))
        elif one.number == 14 and len(model.metadata) < MAX_METADATA:
            texts = {two.number: parser.wire.text(two, 1 << 20) for two in parser.wire.message(one)}
            model.metadata[clipped(f"onnx.{texts.get(1, '')}")] = clipped(texts.get(2, ""), MAX_NAME)
    if opsets:
        model.metadata["onnx.opset"] = clipped(" ".join(opsets[:16]))
    if not model.graphs:
        raise parser.wire.error("there is no graph in it", 0)
    return model


def _opset(wire: Wire, message: Field) -> str:
    domain, version = "", 0
    for one in wire.message(message):
        if one.number == 1:
            domain = wire.text(one, MAX_NAME)
        elif one.number == 2:
            version = one.value
    return f"{domain}:{version}" if domain else str(version)


class _Parser:
    def __init__(self, wire: Wire, catalogue: Catalogue) -> None:
        self.wire = wire
        self._catalogue = catalogue

    def graph(self, message: Field, parent: Graph | None, depth: int) -> Graph:
        if depth > MAX_DEPTH:
            text = f"graphs nested more than {MAX_DEPTH} deep"
            raise LimitExceededError(text, path=self.wire.source.path, offset=message.start)
        graph = Graph(parent)
        self._catalogue.take(500)
        for one in self.wire.message(message):
            if one.number == 1:
                self._node(one, graph, depth)
            elif one.number == 5:
                proto = self._proto(one)
                graph.constants.append(Constant(proto.name, proto, loose=False))
            elif one.number == 15:
                graph.sparse += 1
        return graph

    def function(self, message: Field) -> Graph:
        """A FunctionProto, as a graph of its own."""
        graph = Graph(None)
        for one in self.wire.message(message):
            if one.number == 7:
                self._node(one, graph, 0)
        return graph

    def _proto(self, message: Field) -> TensorProto:
        proto = read_proto(self.wire, message)
        self._catalogue.add_name(proto.name, 800 + 200 * len(proto.external))
        self._catalogue.take(150 * sum(map(len, proto.typed.values())))
        return proto

    def _node(self, message: Field, graph: Graph, depth: int) -> None:
        node = Node()
        values: list[TensorProto] = []
        for one in self.wire.message(message):
            if one.number in {1, 2}:
                ends = node.inputs if one.number == 1 else node.outputs
                ends.append(self.wire.text(one, MAX_NAME))
                self._catalogue.add_name(ends[-1])
                if len(ends) > MAX_INPUTS:
                    text = f"a node with more than {MAX_INPUTS} inputs or outputs"
                    raise LimitExceededError(text, path=self.wire.source.path, offset=one.start)
            elif one.number == 3:
                node.name = self.wire.text(one, MAX_NAME)
            elif one.number == 4:
                node.op = self.wire.text(one, MAX_NAME)
            elif one.number == 5:
                self._attribute(one, node, values, graph, depth)
        self._catalogue.add_name(node.name, 600 + len(node.op))
        if node.op == "Constant":
            if values and node.outputs:
                graph.constants.append(Constant(node.outputs[0], values[0], loose=True))
            return
        graph.nodes.append(node)
        # A tensor in an attribute of any other node: of the fill of ConstantOfShape, or of operations of one's own.
        for number, proto in enumerate(values):
            name = proto.name or f"{node.name or node.op}.{number}"
            graph.constants.append(Constant(name, proto, loose=True))

    def _attribute(self, message: Field, node: Node, values: list[TensorProto], graph: Graph, depth: int) -> None:
        name = ""
        numbers: list[int] = []
        for one in self.wire.message(message):
            if one.number == 1:
                name = self.wire.text(one, MAX_NAME)
            elif one.number == 3 and name in _KEPT_NUMBERS:
                node.numbers[name] = self.wire.numbers(one, 1)[0]
            elif one.number == 4 and name in _KEPT_NUMBERS:
                node.texts[name] = self.wire.text(one, 1 << 20)[:64]
            elif one.number in {5, 10}:
                values.append(self._proto(one))
            elif one.number in {6, 11}:
                graph.children.append(self.graph(one, graph, depth + 1))
            elif one.number == 8 and name in _KEPT_NUMBERS and len(numbers) <= MAX_LISTED:
                numbers += self.wire.numbers(one, MAX_LISTED)
        if numbers:
            node.lists[name] = tuple(numbers)
