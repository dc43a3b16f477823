"""Hostile ONNX files, written field by field: the library would refuse to write most of them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.hostile.case import Case, Expect, file_case

if TYPE_CHECKING:
    from collections.abc import Callable

MALFORMED, LIMIT = "MalformedFileError", "LimitExceededError"


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def field(number_: int, data: bytes, *, size: int | None = None) -> bytes:
    return varint(number_ << 3 | 2) + varint(len(data) if size is None else size) + data


def tensor(
    name: bytes = b"w", dims: tuple[int, ...] = (2, 2), code: int = 1, raw: bytes | None = bytes(16), more: bytes = b""
) -> bytes:
    body = b"".join(number(1, size) for size in dims) + number(2, code) + field(8, name) + more
    return body if raw is None else body + field(9, raw)


def model(*tensors: bytes, nodes: bytes = b"") -> bytes:
    graph = nodes + b"".join(field(5, one) for one in tensors)
    return number(1, 8) + field(7, graph)


GOOD = model(tensor())


def nested(depth: int) -> bytes:
    graph = field(5, tensor())
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph)
        graph = field(1, field(4, b"If") + field(5, attribute))
    return number(1, 8) + field(7, graph)


def node(op: bytes, inputs: tuple[bytes, ...], outputs: tuple[bytes, ...], attributes: bytes = b"") -> bytes:
    ends = b"".join(field(1, one) for one in inputs) + b"".join(field(2, one) for one in outputs)
    return field(1, ends + field(4, op) + attributes)


def circle() -> bytes:
    nodes = node(b"Identity", (b"a",), (b"b",)) + node(b"Identity", (b"b",), (b"a",)) + node(b"Cast", (b"w",), (b"w",))
    return model(tensor(), nodes=nodes)


def long_chain() -> bytes:
    nodes = b"".join(node(b"Transpose", (b"v%d" % n,), (b"v%d" % (n + 1),)) for n in range(20_000))
    return model(tensor(b"v0"), nodes=nodes + node(b"MatMul", (b"x", b"v20000"), (b"y",)))


def squared(count: int) -> bytes:
    """Every node takes one weight, and each of its results is taken by every node."""
    nodes = b"".join(node(b"MatMul", (b"y",) * 20 + (b"w",), (b"y",)) for _ in range(count))
    return model(tensor(), nodes=nodes)


def scaled(scale: tuple[int, ...], axis: int) -> bytes:
    axis_attribute = field(5, field(1, b"axis") + number(3, axis))
    nodes = node(b"DequantizeLinear", (b"w", b"s"), (b"f",), axis_attribute)
    count = 1
    for size in scale:
        count *= size
    return model(tensor(code=3, raw=bytes(4)), tensor(b"s", scale, raw=bytes(4 * count)), nodes=nodes)


def recurrent(rows: int) -> bytes:
    nodes = node(b"LSTM", (b"x", b"w", b"w", b"w"), (b"y",))
    return model(tensor(dims=(1, rows, 2), raw=bytes(8 * rows)), nodes=nodes)


def unpacked() -> bytes:
    floats = b"".join(varint(4 << 3 | 5) + struct.pack("<f", n) for n in range(4))
    return model(tensor(raw=None, more=floats))


def outside(location: bytes) -> bytes:
    entry = field(1, b"location") + field(2, location)
    return model(tensor(raw=None, more=field(13, entry) + number(14, 1)), tensor(b"other"))


def _error(name: str, data: bytes | Callable[[], bytes], detail: str = MALFORMED) -> Case:
    return file_case(f"onnx: {name}", "model.onnx", data, Expect.ERROR, detail)


def _fine(name: str, data: bytes | Callable[[], bytes]) -> Case:
    return file_case(f"onnx: {name}", "model.onnx", data, Expect.FINE)


def _partial(name: str, data: bytes) -> Case:
    return file_case(f"onnx: {name}", "model.onnx", data, Expect.PARTIAL, "unread-tensor")


ONNX_CASES: tuple[Case, ...] = (
    _error("cut off in the graph", GOOD[:-7]),
    _error("one byte", b"\x08"),
    _error("no graph", number(1, 8) + field(2, b"nobody")),
    _error("field number 0", number(1, 8) + field(7, b"\x00\x00")),
    _error("wire type 3", number(1, 8) + field(7, b"\x0b\x0c")),
    _error("number without an end", number(1, 8) + field(7, b"\x08" + b"\xff" * 11)),
    _error("field that reaches out of its message", number(1, 8) + field(7, field(5, b"", size=2**40))),
    _error("field of 2**63 bytes", number(1, 8) + field(7, field(5, b"", size=2**63))),
    _error("fewer bytes than the shape", model(tensor(raw=bytes(15)))),
    _error("more bytes than the shape", model(tensor(raw=bytes(17)))),
    _error("negative size", model(tensor(dims=(2**64 - 2, 2)))),
    _error("size of 2**62", model(tensor(dims=(2**62,)))),
    _error("sizes that multiply beyond 64 bits", model(tensor(dims=(2**31, 2**31, 2**31)))),
    _error("sizes of nothing and of 2**62", model(tensor(dims=(0, 2**62), raw=b""))),
    _error("17 axes", model(tensor(dims=(1,) * 17, raw=bytes(4))), LIMIT),
    _error("a million axes", lambda: model(tensor(dims=(1,) * 1_000_000, raw=bytes(4))), LIMIT),
    _error("a name of 5,000 bytes", model(tensor(b"w" * 5000)), LIMIT),
    _error("graphs in graphs, 17 deep", nested(17), LIMIT),
    _error("graphs in graphs, 2,000 deep", lambda: nested(2000), LIMIT),
    _error("2**18 + 1 tensors", lambda: model(*[tensor(b"%d" % n, (0,), raw=b"") for n in range(2**18 + 1)]), LIMIT),
    _error("3 million fields", lambda: model(tensor(), nodes=number(9, 1) * 3_000_000), LIMIT),
    _error("typed data that are too short", model(tensor(raw=None, more=field(4, bytes(12))))),
    _error("numbers of variable length that are too few", model(tensor(code=6, raw=None, more=field(5, b"\1\1\1")))),
    _error("numbers of variable length without an end", model(tensor(code=6, raw=None, more=field(5, b"\xff" * 16)))),
    _error("a node with 20,000 inputs", lambda: model(tensor(), nodes=node(b"Add", (b"w",) * 20_000, (b"y",))), LIMIT),
    _error("data above the folder", outside(b"../model.onnx")),
    _error("data at an absolute path", outside(b"/etc/passwd")),
    _error("data in a device", outside(b"/dev/zero")),
    _partial("data in a file that is absent", outside(b"absent")),
    _partial("data in a file with a long name", outside(b"n" * 4000)),
    _partial("no data at all", model(tensor(raw=None), tensor(b"other"))),
    _partial("unknown type", model(tensor(code=99), tensor(b"other"))),
    _partial("stored in segments", model(tensor(more=field(3, number(1, 0))), tensor(b"other"))),
    _fine("text", model(tensor(code=8, raw=None, more=field(6, b"text")), tensor(b"other"))),
    _fine("typed data, one number a field", unpacked()),
    _fine("nodes in a circle", circle()),
    _fine("20,000 transposes in a row", long_chain),
    _fine("2,000 nodes that take each other's results", lambda: squared(2000)),
    _fine("scales that do not fit", scaled((3,), 0)),
    _fine("scales along an axis that is not there", scaled((2,), 7)),
    _fine("scales along axis -2**63", scaled((2,), 2**63)),
    _fine("gates that do not divide the rows", recurrent(7)),
    _fine("recurrent weights of no rows", recurrent(0)),
)
