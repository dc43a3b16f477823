"""Core ML models: ML Programs with their file of weights, neural networks, and pipelines of both.

Format: mlmodel/format/Model.proto of coremltools 9. A package (``.mlpackage``) is a folder whose manifest names the
model (see ``folder``); compiled models (``.mlmodelc``) are not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fingerprint.errors import InputError, LimitExceededError, UnsupportedFormatError
from fingerprint.readers.base import About, Catalogue, Contents, Finding, Reader, bounded
from fingerprint.readers.coreml_network import Network
from fingerprint.readers.coreml_program import Program
from fingerprint.readers.coreml_values import Values
from fingerprint.readers.protobuf import BYTES, VARINT, Field, Wire
from fingerprint.tensors import element_count

if TYPE_CHECKING:
    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

MAX_MODELS: Final = 64
MAX_SHARING: Final = 64
"""How many times the bytes of all files all tensors together may claim."""
_NETWORKS: Final = frozenset({303, 403, 500})
_PIPELINES: Final = {200: True, 201: True, 202: False}
"""Pipelines by number; True where the pipeline is a field of another message."""
_PROGRAM: Final = 502
_OTHERS: Final = frozenset({
    300, 301, 302, 304, 400, 401, 402, 404, 501, 555, 556, 560, 600, 601, 602, 603, 604, 606, 607, 609, 610, 900,
    *range(2000, 2007), 3000,
})  # fmt: skip
"""Models without the weights of a network: trees, scalers, and those that are other files."""
_MOST_LOOKED_AT: Final = 16


def recognises(source: Source) -> bool:
    """True where the file is a message with a version and a model of one of Core ML's kinds."""
    if source.size < 4 or source.read(0, 1)[0] != 0x08:
        return False
    wire = Wire(source, "Core ML")
    version = False
    try:
        for count, one in enumerate(wire.fields(0, source.size)):
            if count == _MOST_LOOKED_AT:
                return False
            if one.number == 1 and one.wire == VARINT:
                version = 0 < one.value < 100
            elif one.number in _NETWORKS or one.number in _PIPELINES or one.number in _OTHERS or one.number == _PROGRAM:
                return version and one.wire == BYTES
            elif one.number not in {2, 10}:
                return False
    except InputError:
        return False
    return False


def open_coreml(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The weights of a Core ML model. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    wire = Wire(source, "Core ML")
    values = Values(wire, catalogue.beside)
    network, program = Network(wire, catalogue), Program(wire, values, catalogue)
    try:
        others = _read(wire, 0, source.size, network, program, "", [0])
        tensors = (*network.tensors, *program.tensors)
        _check(tensors, others, values.size, source.path)
    except BaseException:
        values.close()
        raise
    findings = [*network.findings, *program.findings]
    if others:
        findings.append(Finding("other-graphs", f"{others} models of a pipeline are no networks and were not read"))
    complete = network.complete and program.complete
    return Contents(tensors, bounded(findings), {}, complete, tuple(values.records), values.sources)


def _check(tensors: tuple[TensorView, ...], others: int, size: int, path: str) -> None:
    # An element takes a bit at least.
    if sum(element_count(tensor.shape) for tensor in tensors) > 8 * MAX_SHARING * size:
        raise LimitExceededError(f"the tensors claim more than {MAX_SHARING} times the files", path=path)
    if others and not tensors:
        raise UnsupportedFormatError("Core ML: a model without the weights of a network", path=path)


def _read(wire: Wire, start: int, stop: int, network: Network, program: Program, prefix: str, count: list[int]) -> int:
    """Reads one model and, of a pipeline, all in it; returns the number of those that are no networks."""
    count[0] += 1
    if count[0] > MAX_MODELS or prefix.count(".") > 8:
        raise LimitExceededError(f"Core ML: more than {MAX_MODELS} models, or nested too deep", path=wire.source.path)
    others = 0
    for one in wire.fields(start, stop):
        if one.wire != BYTES:
            continue
        if one.number in _NETWORKS:
            network.read(one, prefix)
        elif one.number == _PROGRAM:
            program.read(one, prefix)
        elif one.number in _PIPELINES:
            for pipeline in wire.message(one) if _PIPELINES[one.number] else (one,):
                if pipeline.number != 1 and pipeline is not one:
                    continue
                models: list[Field] = [part for part in wire.message(pipeline) if part.number == 1]
                for place, model in enumerate(models[: MAX_MODELS + 1]):
                    others += _read(wire, model.start, model.stop, network, program, f"{prefix}{place}.", count)
        elif one.number in _OTHERS:
            others += 1
    return others


_ABOUT = (
    About(
        "Core ML: `.mlmodel`, `.mlpackage`",
        "fields of a `Model` with one of its kinds; a folder with `Manifest.json` and `Data/com.apple.CoreML`",
        "ML Programs with their blobs: floats, integers of 8 and 4 bits with scales by axis or block, palettes of 1 to "
        "8 bits, sparse constants; neural networks, also quantised; pipelines of both",
        "compiled models (`.mlmodelc`), sparse constants that are quantised as well, simple recurrent layers",
    ),
)
READER = Reader("coreml", (".mlmodel",), recognises, open_coreml, _ABOUT)
