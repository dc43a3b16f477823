"""TFLite (LiteRT) models: constant tensors of all subgraphs, dequantised, laid out as in PyTorch.

Format: tensorflow/compiler/mlir/lite/schema/schema.fbs. A tensor is a weight if its buffer has data; what the operator
that takes it is tells the order of its axes: kernels are (out, height, width, in), the rest is (out, in) already.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from fingerprint import dtypes
from fingerprint.dtypes import DType, Kind
from fingerprint.errors import LimitExceededError, MalformedFileError
from fingerprint.quant.affine import Affine, blocks_along, quantised_dtype
from fingerprint.readers.base import (
    MAX_NAME,
    MAX_RANK,
    About,
    Catalogue,
    Contents,
    Finding,
    Reader,
    StoredTensor,
    bounded,
    checked_count,
    some,
)
from fingerprint.readers.flatbuffers import Flat, Table, Vector
from fingerprint.readers.packed import Packed, Permuted
from fingerprint.tensors import Reshaped, TensorView

if TYPE_CHECKING:
    from fingerprint.source import Source

IDENTIFIER = b"TFL3"
MAX_ITEMS = 1 << 18
MAX_SUBGRAPHS = 1 << 12
MAX_SHARING = 64
"""How many times the bytes of the file all tensors together may claim."""
_I4 = DType("INT4", 8, Kind.INT, np.dtype("i1"))

_TYPES = {
    0: dtypes.F32, 1: dtypes.F16, 2: dtypes.I32, 3: dtypes.U8, 4: dtypes.I64, 6: dtypes.BOOL, 7: dtypes.I16,
    8: dtypes.C64, 9: dtypes.I8, 10: dtypes.F64, 12: dtypes.U64, 15: dtypes.U32, 16: dtypes.U16, 17: _I4,
    18: dtypes.BF16,
}  # fmt: skip
_PACKED = {17: 4}
_STRING = 5
_QUANTISED = {"I8": "INT8", "U8": "UINT8", "I16": "INT16", "U16": "UINT16", "I32": "INT32", "INT4": "INT4"}
_CONVOLUTION, _DEPTHWISE, _DEQUANTIZE, _TRANSPOSED, _CONVOLUTION_3D = 3, 4, 6, 67, 132


class _Buffer(Struct, frozen=True):
    offset: int
    size: int


def recognises(source: Source) -> bool:
    """True where the file has TFLite's identifier."""
    return source.size >= 16 and bytes(source.read(4, 4)) == IDENTIFIER


def open_tflite(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The weights of a TFLite model. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    if not recognises(source):
        raise MalformedFileError("no TFLite model: the identifier TFL3 is not there", path=source.path, offset=4)
    root = Flat(source, "TFLite").root()
    buffers = _buffers(root, source, catalogue)
    codes = _operator_codes(root)
    reader = _Reader(source, catalogue, buffers, codes)
    graphs = root.vector(2, 4, MAX_SUBGRAPHS)
    for number in range(graphs.count):
        reader.subgraph(graphs.table(number))
    return reader.contents(root.text(3, MAX_NAME))


def _buffers(root: Table, source: Source, catalogue: Catalogue) -> list[_Buffer]:
    found = []
    vector = root.vector(4, 4, MAX_ITEMS)
    catalogue.take(100 * vector.count)
    for number in range(vector.count):
        table = vector.table(number)
        data = table.vector(0, 1, source.size)
        buffer = _Buffer(data.start, data.count)
        # Models of more than 2 GB have their data behind the table.
        offset, size = table.number(1, "Q"), table.number(2, "Q")
        if offset > 1 and size:
            if offset + size > source.size:
                message = f"a buffer ends at byte {offset + size} of a file of {source.size}"
                raise MalformedFileError(message, path=source.path, offset=offset, hint="is the file truncated?")
            buffer = _Buffer(offset, size)
        found.append(buffer)
    return found


def _operator_codes(root: Table) -> list[int]:
    vector = root.vector(1, 4, MAX_ITEMS)
    tables = [vector.table(number) for number in range(vector.count)]
    # Codes of up to 127 are in the older, narrower field as well.
    return [max(table.number(0, "b"), table.number(3, "i")) for table in tables]


class _Reader:
    def __init__(self, source: Source, catalogue: Catalogue, buffers: list[_Buffer], codes: list[int]) -> None:
        self._source = source
        self._catalogue = catalogue
        self._buffers = buffers
        self._codes = codes
        self._tensors: list[TensorView] = []
        self._findings: list[Finding] = []
        self._names: Counter[str] = Counter()
        self._read: set[int] = set()
        self._tied: list[str] = []
        self._complete = True
        self._claimed = 0

    def contents(self, description: str) -> Contents:
        """Everything that was found."""
        if self._tied:
            text = f"{len(self._tied)} tensors are others under a second name: {some(self._tied)}"
            self._findings.append(Finding("tied-tensors", text, self._tied[0]))
        metadata = {"tflite.description": description} if description else {}
        return Contents(tuple(self._tensors), bounded(self._findings), metadata, self._complete)

    def subgraph(self, graph: Table) -> None:
        """Adds the constants of a subgraph that are weights."""
        tensors = graph.vector(0, 4, MAX_ITEMS)
        takers = self._takers(graph)
        for number in range(tensors.count):
            table = tensors.table(number)
            place = table.number(2, "I")
            if place >= len(self._buffers):
                raise MalformedFileError(f"TFLite: there is no buffer {place}", path=self._source.path)
            buffer = self._buffers[place]
            if not buffer.size:
                continue
            name = table.text(3, MAX_NAME) or f"tensor.{number}"
            shape = tuple(table.vector(0, 4, MAX_RANK).numbers("i", MAX_RANK))
            code = table.number(1, "b")
            if code == _STRING or (not _is_float(code) and len(shape) < 2 and table.sub(4) is None):
                continue  # texts, shapes and indices
            if place in self._read:
                self._tied.append(name)
                continue
            self._read.add(place)
            view = self._view(name, shape, code, buffer)
            if view is None:
                continue
            view = _dequantised(view, table.sub(4), self._source)
            if view is None:
                continue
            self._add(view, takers.get(number))

    def _takers(self, graph: Table) -> dict[int, tuple[int, int]]:
        """By the number of a tensor: the code of the first operator that takes it, and as which input."""
        found: dict[int, tuple[int, int]] = {}
        moved: dict[int, int] = {}
        operators = graph.vector(3, 4, MAX_ITEMS)
        for number in range(operators.count):
            table = operators.table(number)
            index = table.number(0, "I")
            code = self._codes[index] if index < len(self._codes) else -1
            inputs = table.vector(1, 4, MAX_ITEMS).numbers("i", MAX_ITEMS)
            for place, tensor in enumerate(inputs):
                found.setdefault(tensor, (code, place))
            if code == _DEQUANTIZE and len(inputs) == 1:
                # A float16 weight is widened first; what takes the result is what matters.
                outputs = table.vector(2, 4, MAX_ITEMS).numbers("i", MAX_ITEMS)
                moved |= dict.fromkeys(outputs[:1], inputs[0])
        for output, tensor in moved.items():
            if output in found:
                found[tensor] = found[output]
        return found

    def _view(self, name: str, shape: tuple[int, ...], code: int, buffer: _Buffer) -> TensorView | None:
        path = self._source.path
        if min(shape, default=0) < 0:
            raise MalformedFileError("a negative size", path=path, tensor=name)
        dtype = _TYPES.get(code)
        if dtype is None:
            self._findings.append(Finding("unread-tensor", f"a tensor cannot be read: its type is {code}", name))
            self._complete = False
            return None
        count = checked_count(shape, path)
        bits = _PACKED.get(code, dtype.bits)
        wanted = -(-count * bits // 8)
        if wanted > buffer.size:
            message = f"{buffer.size} bytes, where {dtype.name} {list(shape)} takes {wanted}"
            raise MalformedFileError(message, path=path, tensor=name, offset=buffer.offset)
        self._claimed += wanted
        if self._claimed > MAX_SHARING * self._source.size:
            raise LimitExceededError(f"the tensors claim more than {MAX_SHARING} times the file", path=path)
        if bits == 4:
            octets = StoredTensor(name, dtypes.U8, (wanted,), self._source, buffer.offset)
            return Packed(name, dtype, shape, 4, octets)
        return StoredTensor(name, dtype, shape, self._source, buffer.offset)

    def _add(self, view: TensorView, taker: tuple[int, int] | None) -> None:
        view = _arranged(view, taker)
        self._names[view.name] += 1
        if (count := self._names[view.name]) > 1:
            view = Reshaped(view, f"{view.name}#{count}", view.shape)
        self._catalogue.add(view.name, view.shape)
        self._tensors.append(view)


def _is_float(code: int) -> bool:
    return code in {0, 1, 10, 18}


def _dequantised(view: TensorView, table: Table | None, source: Source) -> TensorView | None:
    """The numbers that a quantised tensor stands for. Raises ``InputError`` where its scales do not fit."""
    if table is None or view.dtype.kind not in {Kind.INT, Kind.UINT}:
        return view
    scales, zeros = table.vector(2, 4, source.size), table.vector(3, 8, source.size)
    if not scales.count:
        return view if view.dtype.name not in {"I32", "I64"} else None
    axis = table.number(6, "i")
    shape = view.shape
    if scales.count == 1:
        blocks = tuple(max(size, 1) for size in shape)
    elif 0 <= axis < len(shape) and scales.count == shape[axis]:
        blocks = blocks_along(shape, axis)
    else:
        message = f"{scales.count} scales along axis {axis} of {list(shape)}"
        raise MalformedFileError(message, path=source.path, tensor=view.name, offset=scales.start)
    scale = StoredTensor("", dtypes.F32, (scales.count,), source, scales.start)
    zero = _zero_points(zeros, scales.count, view, source)
    return Affine(
        view.name, quantised_dtype(_QUANTISED.get(view.dtype.name, view.dtype.name)), view, scale, zero, blocks
    )


def _zero_points(zeros: Vector, count: int, view: TensorView, source: Source) -> TensorView | None:
    if not zeros.count:
        return None
    if zeros.count not in {1, count}:
        message = f"{zeros.count} zero points for {count} scales"
        raise MalformedFileError(message, path=source.path, tensor=view.name, offset=zeros.start)
    return StoredTensor("", dtypes.I64, (zeros.count,), source, zeros.start)


def _arranged(view: TensorView, taker: tuple[int, int] | None) -> TensorView:
    """The axes in PyTorch's order, where the operator that takes the tensor is known."""
    if taker is None or math.prod(view.shape) == 0:
        return view
    code, place = taker
    rank = len(view.shape)
    if code in {_CONVOLUTION, _TRANSPOSED} and place == 1 and rank == 4:
        # (out, height, width, in); the transposed convolution of PyTorch has (in, out, height, width).
        return Permuted(view, view.name, (0, 3, 1, 2) if code == _CONVOLUTION else (3, 0, 1, 2))
    if code == _DEPTHWISE and place == 1 and rank == 4:
        return Permuted(view, view.name, (3, 0, 1, 2))
    if code == _CONVOLUTION_3D and place == 1 and rank == 5:
        return Permuted(view, view.name, (4, 3, 0, 1, 2))
    return view


_ABOUT = (
    About(
        "TFLite",
        "`TFL3`",
        "constants of all subgraphs; integers dequantised, by tensor or by channel",
        "sparse tensors",
    ),
)
READER = Reader("tflite", (".tflite",), recognises, open_tflite, _ABOUT)
