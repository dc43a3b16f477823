"""ONNX models: the weights in their graphs and beside them, laid out as in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fingerprint.errors import LimitExceededError
from fingerprint.readers.base import About, Catalogue, Contents, Finding, Reader, bounded
from fingerprint.readers.onnx_data import Data
from fingerprint.readers.onnx_model import looks_like_onnx, read_model
from fingerprint.readers.onnx_weights import Collector, Weights
from fingerprint.tensors import element_count

if TYPE_CHECKING:
    from fingerprint.source import Source

MAX_SHARING = 64
"""How many times the bytes of all files all tensors together may claim: tied tensors, but no multiplication."""


def open_onnx(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The weights of an ONNX model. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    model = read_model(source, catalogue)
    data = Data(source, catalogue.beside)
    try:
        weights = Collector(model, data).collect()
        _check(weights, catalogue, data.size)
    except BaseException:
        data.close()
        raise
    findings = weights.findings
    if model.trains:
        findings.append(Finding("other-graphs", "the graphs that describe training were not read"))
    return Contents(
        tuple(weights.tensors),
        bounded(findings),
        model.metadata,
        weights.complete,
        tuple(data.records),
        data.sources,
    )


def _check(weights: Weights, catalogue: Catalogue, size: int) -> None:
    claimed = 0
    for tensor in weights.tensors:
        catalogue.add(tensor.name, tensor.shape)
        claimed += element_count(tensor.shape)
    # An element takes two bits at least.
    if claimed > 4 * MAX_SHARING * size:
        raise LimitExceededError(f"the tensors claim more than {MAX_SHARING} times the files", path=catalogue.path)


_ABOUT = (
    About(
        "ONNX",
        "fields of a `ModelProto` with a graph among them",
        "initialisers and constants of all graphs and functions, raw, typed, or in files beside the model inside "
        "its folder. Weights are laid out as PyTorch stores them: see [below](#laid-out-as-in-pytorch)",
        "strings, complex128, sparse tensors",
    ),
)
READER = Reader("onnx", (".onnx",), looks_like_onnx, open_onnx, _ABOUT)
