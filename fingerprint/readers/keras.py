"""Keras: ``.h5`` of any version, ``.weights.h5``, ``.keras``: the weights; no layer is built, no code is loaded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError
from fingerprint.readers.base import About, Catalogue, Contents, Finding, Reader, bounded, some
from fingerprint.readers.hdf5 import Dataset, is_hdf5, read_datasets
from fingerprint.readers.keras_layout import as_in_torch
from fingerprint.readers.zips import MAX_RATIO, ZipArchive, find_directory, is_zip
from fingerprint.source import MemorySource, Section, Source
from fingerprint.tensors import Reshaped, TensorView, element_count

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_UNPACKED = 256 << 20
"""Most bytes of a compressed file of weights; Keras does not compress."""
_OPTIMISERS = frozenset({"optimizer_weights", "optimizer", "_optimizer"})
_NO_WEIGHTS = frozenset({"seed_generator", "metrics", "_metrics", "compile_metrics", "_compile_metrics"})


def recognises(source: Source) -> bool:
    """True for HDF5, and for an archive with a file of weights in HDF5."""
    if is_hdf5(source):
        return True
    if not is_zip(source):
        return False
    try:
        offset, size, _ = find_directory(source)
        return b".weights.h5" in bytes(source.read(offset, size))
    except InputError:
        return False


def open_keras(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The variables of all layers, as PyTorch stores them. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    findings: list[Finding] = []
    if is_zip(source):
        archive = ZipArchive(source)
        files = [_file(archive, key) for key in archive.entries if key.endswith(".weights.h5")]
        if not files:
            raise MalformedFileError("the archive has no weights of Keras", path=source.path)
        findings += archive.findings
    else:
        files = [source]
    found = [dataset for file in files for dataset in read_datasets(file, catalogue)]
    contents = contents_of(found, catalogue, findings)
    check_claim(contents, source)
    return contents


def _file(archive: ZipArchive, key: str) -> Source:
    source, start, size = archive.locate(key)
    if source is archive.source:
        return Section(source, start, size)
    if size > MAX_UNPACKED:
        message = f"{key!r} unpacks to {size} bytes; {MAX_UNPACKED} are allowed"
        raise LimitExceededError(message, path=source.path, hint="unpack it and give the file inside")
    return MemorySource(bytes(source.read(start, size)), source.path)


def check_claim(contents: Contents, source: Source) -> None:
    """Raises ``LimitExceededError`` where the tensors claim more bytes than ``source`` can unpack to."""
    claimed = sum(element_count(view.shape) * view.dtype.bits // 8 for view in contents.tensors)
    if claimed > MAX_RATIO * source.size:
        message = f"the tensors claim {claimed} bytes, more than {MAX_RATIO} times the file"
        raise LimitExceededError(message, path=source.path)


def contents_of(found: Iterable[Dataset], catalogue: Catalogue, findings: list[Finding]) -> Contents:
    """The variables among ``found``; those of optimisers are set aside. Raises ``InputError``."""
    tensors: list[TensorView] = []
    numbers: Counter[str] = Counter()
    optimisers: set[str] = set()
    complete = True
    for dataset in found:
        if dataset.path[0] in _OPTIMISERS:
            optimisers.add(dataset.path[0])
            continue
        if any(word.startswith(tuple(_NO_WEIGHTS)) for word in dataset.path):
            continue
        if dataset.view is None:
            text = f"a tensor cannot be read: {dataset.reason}"
            findings.append(Finding("unread-tensor", text, "/".join(dataset.path)[:200]))
            complete = False
            continue
        view = as_in_torch(dataset.view, dataset.path)
        numbers[view.name] += 1
        if (count := numbers[view.name]) > 1:
            view = Reshaped(view, f"{view.name}#{count}", view.shape)
        catalogue.add(view.name, view.shape)
        tensors.append(view)
    if optimisers:
        text = f"the state of the optimiser was set aside: {some(sorted(optimisers))}"
        findings.append(Finding("optimiser-state", text))
    return Contents(tuple(tensors), bounded(findings), {}, complete)


_ABOUT = (
    About(
        "Keras: `.h5` of any version, `.weights.h5`, `.keras`",
        "the signature of HDF5; a ZIP archive with `.weights.h5` in it",
        "contiguous, compact and chunked data (deflate, shuffle, Fletcher's checksum); no layer is built, no code"
        " loaded",
        "links, external or virtual datasets",
        extra="keras",
    ),
)
READER = Reader("keras", (".h5", ".hdf5", ".keras"), recognises, open_keras, _ABOUT)
