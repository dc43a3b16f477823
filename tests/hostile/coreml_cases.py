"""Hostile Core ML models: programs with lies about blobs and shapes, deep nesting, layers that do not fit."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.hostile.case import Case, Expect, file_case

if TYPE_CHECKING:
    from pathlib import Path

MALFORMED, LIMIT, UNSUPPORTED = "MalformedFileError", "LimitExceededError", "UnsupportedFormatError"
F32, F16 = 11, 10


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, data: bytes | int) -> bytes:
    if isinstance(data, int):
        return varint(number << 3) + varint(data)
    return varint(number << 3 | 2) + varint(len(data)) + data


def entry(key: str, value: bytes) -> bytes:
    """An entry of a map."""
    return field(1, key.encode()) + field(2, value)


def tensor_type(*sizes: int, code: int = F32) -> bytes:
    """A ``ValueType``."""
    axes = b"".join(field(3, field(1, field(1, size))) for size in sizes)
    return field(1, field(1, code) + field(2, len(sizes)) + axes)


def blob(weight: str, offset: int, *sizes: int, code: int = F32) -> bytes:
    """A ``Value`` in a file of blobs."""
    return field(2, tensor_type(*sizes, code=code)) + field(5, field(1, weight.encode()) + field(2, offset))


def constant(name: str, value: bytes) -> bytes:
    return field(1, b"const") + field(3, field(1, name.encode())) + field(5, entry("val", value))


def program(*operations: bytes) -> bytes:
    """A model with one function of these operations."""
    block = b"".join(field(3, one) for one in operations)
    function = field(3, entry("CoreML5", block))
    return field(1, 7) + field(2, b"") + field(502, field(1, 1) + field(2, entry("main", function)))


def model(*, weight: str = "@model_path/weights/weight.bin", offset: int = 64) -> bytes:
    """A program with one constant of four numbers in a blob."""
    return program(constant("w", blob(weight, offset, 4)))


def network(*layers: bytes) -> bytes:
    return field(1, 4) + field(2, b"") + field(500, b"".join(field(1, field(1, b"layer") + one) for one in layers))


def inner_product(inputs: int, outputs: int, weights: bytes) -> bytes:
    return field(140, field(1, inputs) + field(2, outputs) + field(20, weights))


def blobs(sentinel: int = 0xDEADBEEF, code: int = 2, size: int = 16, offset: int = 128, data: int = 16) -> bytes:
    """A file of one blob."""
    head = struct.pack("<II", 1, 2).ljust(64, b"\0")
    return head + struct.pack("<IIQQQ", sentinel, code, size, offset, 0).ljust(64, b"\0") + bytes(range(data))


def _beside(title: str, weights: bytes, expect: Expect, detail: str = "", data: bytes | None = None) -> Case:
    def build(folder: Path) -> Path:
        (folder / "weights").mkdir()
        (folder / "weights" / "weight.bin").write_bytes(weights)
        (folder / "model.mlmodel").write_bytes(model() if data is None else data)
        return folder / "model.mlmodel"

    return Case(f"Core ML: {title}", build, expect, detail)


def _alone(title: str, data: bytes, expect: Expect, detail: str = "") -> Case:
    return file_case(f"Core ML: {title}", "model.mlmodel", data, expect, detail)


def _nested(depth: int) -> bytes:
    block = b""
    for _ in range(depth):
        block = field(3, field(1, b"while_loop") + field(4, block))
    function = field(3, entry("CoreML5", block))
    return field(1, 7) + field(502, field(2, entry("main", function)))


def _pipelines(depth: int) -> bytes:
    inner = network(inner_product(2, 2, field(1, struct.pack("<4f", 1, 2, 3, 4))))
    for _ in range(depth):
        inner = field(1, 4) + field(2, b"") + field(202, field(1, inner))
    return inner


_FLOATS = field(1, struct.pack("<4f", 1, 2, 3, 4))

COREML_CASES: tuple[Case, ...] = (
    _beside("blob beyond the file", blobs(), Expect.PARTIAL, "unread-tensor", model(offset=2**40)),
    _beside("blob that ends beyond the file", blobs(size=16, data=7), Expect.PARTIAL, "unread-tensor"),
    _beside("no blob where one is said to be", blobs(sentinel=1), Expect.ERROR, MALFORMED),
    _beside("blob of another type", blobs(code=1), Expect.ERROR, MALFORMED),
    _beside("blob of another size", blobs(size=12), Expect.ERROR, MALFORMED),
    _beside("blob of 2**64 - 1 bytes", blobs(size=2**64 - 1), Expect.PARTIAL, "unread-tensor"),
    _beside(
        "shape of 2**60", blobs(), Expect.ERROR, MALFORMED,
        program(constant("w", blob("@model_path/weights/weight.bin", 64, 2**30, 2**30))),
    ),
    _alone("file of weights outside the folder", model(weight="@model_path/../secret"), Expect.ERROR, MALFORMED),
    _alone("file of weights at the root", model(weight="/etc/passwd"), Expect.ERROR, MALFORMED),
    _alone("blocks nested 2,000 deep", _nested(2_000), Expect.ERROR, LIMIT),
    _alone("pipelines nested 30 deep", _pipelines(30), Expect.ERROR, LIMIT),
    _alone("trees, which are no network", field(1, 4) + field(2, b"") + field(302, b""), Expect.ERROR, UNSUPPORTED),
    _alone("layer of 2**60 inputs", network(inner_product(2**60, 2**60, _FLOATS)), Expect.PARTIAL, "unread-tensor"),
    _alone("layer with too few weights", network(inner_product(3, 3, _FLOATS)), Expect.ERROR, MALFORMED),
    _alone("layer of no size", network(inner_product(0, 4, _FLOATS)), Expect.PARTIAL, "unread-tensor"),
    _alone(
        "quantised layer without a scale",
        network(inner_product(2, 2, field(30, b"abcd") + field(40, field(1, 8)))), Expect.PARTIAL, "unread-tensor",
    ),
    _alone(
        "quantised layer of 200 bits",
        network(inner_product(2, 2, field(30, b"abcd") + field(40, field(1, 200)))), Expect.PARTIAL, "unread-tensor",
    ),
)  # fmt: skip
