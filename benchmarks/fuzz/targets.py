"""The parsers, one target each: what it is given to begin from, and what is done with the bytes.

A target may raise ``WeightprintError`` and nothing else. Imported with atheris' instrumentation by ``one``.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.fuzz import seeds
from fingerprint.errors import InputNotFoundError
from fingerprint.readers import (
    compressed,
    containers,
    coreml,
    distributed,
    flax,
    gguf,
    index,
    keras,
    marks,
    numpy_files,
    onnx,
    orbax,
    plain_pickle,
    pytorch,
    safetensors,
    tensorflow,
    tfjs,
    tflite,
    zarr,
)
from fingerprint.readers.base import Catalogue, Contents
from fingerprint.readers.marks import ZARR_2, ZARR_3
from fingerprint.readers.pickles import read_pickle
from fingerprint.readers.restore import restored
from fingerprint.source import MemorySource
from signatures import bundle
from signatures.container import Section, pack, unpack
from signatures.records import Registration
from signatures.signature import decode
from tests.hostile.orbax_cases import NODE_MAGIC, manifest, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fingerprint.readers.base import Reader
    from fingerprint.source import Source

MOST_READ = 64
"""Tensors of an input that are read."""


@dataclass(frozen=True, slots=True)
class MemoryFolder:
    """A folder of files that are in memory; see ``places.Folder``."""

    files: Mapping[str, bytes]
    path: str = "memory"
    distant = False

    def file_names(self) -> list[str]:
        return sorted(name for name in self.files if "/" not in name)

    def folder_names(self) -> list[str]:
        return sorted({name.partition("/")[0] for name in self.files if "/" in name})

    def present(self, names: Iterable[str]) -> set[str]:
        return set(self.file_names()).intersection(names)

    def open(self, name: str) -> Source:
        if name not in self.files:
            raise InputNotFoundError("no such file or folder", path=name)
        return MemorySource(self.files[name], name)

    def sub(self, name: str) -> MemoryFolder:
        start = f"{name}/"
        inner = {key.removeprefix(start): value for key, value in self.files.items() if key.startswith(start)}
        if not inner:
            raise InputNotFoundError("no such file or folder", path=name)
        return MemoryFolder(inner, name)


@dataclass(frozen=True, slots=True)
class Target:
    """A parser: the files to begin from, and what is run on an input."""

    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], None]
    parser: str


def _read(contents: Contents) -> None:
    """The beginning, middle and end of the first tensors."""
    for tensor in itertools.islice(contents.tensors, MOST_READ):
        count = math.prod(tensor.shape)
        for start in {0, count // 2, max(count - 50, 0)}:
            tensor.read(start, min(start + 50, count))


def _reader(reader: Reader, name: str, make: Callable[[], dict[str, bytes]] | None = None) -> Callable[[bytes], None]:
    """Recognises, opens, puts together, and reads; ``make`` makes the files beside it, once."""
    beside: list[MemoryFolder] = []

    def run(data: bytes) -> None:
        if not beside:
            beside.append(MemoryFolder(make() if make is not None else {}))
        source = MemorySource(data, name)
        reader.recognises(source)
        catalogue = Catalogue(name)
        catalogue.beside = beside[0]
        _read(restored(reader.open(source, catalogue), reader.name))

    return run


def _container(data: bytes) -> None:
    source = MemorySource(data, "upload.bin")
    if data and containers.is_container(source):
        _read(containers.open_container(source, Catalogue("upload.bin")).contents)


def _stream(data: bytes) -> None:
    source = MemorySource(data, "upload.bin")
    if data and containers.container_kind(source) not in {None, "zip", "tar"}:
        compressed.unpack(source, "upload")


def _index(data: bytes) -> None:
    source = MemorySource(data, "model.safetensors.index.json")
    index.is_index(source)
    index.read_index(source, Catalogue("index"))


def _pickle(data: bytes) -> None:
    read_pickle(data, "model.pkl")
    _read(plain_pickle.open_pickle(MemorySource(data, "model.pkl")))


_SHARDS: dict[str, bytes] = {}


def _distributed(data: bytes) -> None:
    if not _SHARDS:
        _SHARDS.update(seeds.distributed_beside())
    place = MemoryFolder(_SHARDS | {marks.DISTRIBUTED: data})
    contents, _ = distributed.open_distributed(place, Catalogue("dcp"))
    _read(contents)


@dataclass(frozen=True, slots=True)
class OneArray:
    """A folder of an array of zarr, all of whose chunks are the same; see ``places.Folder``."""

    metadata: bytes
    chunk: bytes
    path: str = "memory"
    distant = False

    def file_names(self) -> list[str]:
        return [ZARR_3 if b"node_type" in self.metadata else ZARR_2]

    def folder_names(self) -> list[str]:
        return []

    def present(self, names: Iterable[str]) -> set[str]:
        return set(names)

    def open(self, name: str) -> Source:
        return MemorySource(self.metadata if name in {ZARR_2, ZARR_3} else self.chunk, name)

    def sub(self, name: str) -> OneArray:
        return self


def _zarr(data: bytes) -> None:
    metadata, _, chunk = data.partition(b"\0")
    contents, _ = zarr.open_zarr(OneArray(metadata, chunk), Catalogue("zarr"))
    _read(contents)


def _orbax(name: str, make: Callable[[], dict[str, bytes]]) -> Callable[[bytes], None]:
    """Opens a folder in which the file ``name`` is the input; ``make`` makes the files beside it, once."""
    beside: dict[str, bytes] = {}

    def run(data: bytes) -> None:
        if not beside:
            beside.update(make())
        contents, _ = orbax.open_orbax(MemoryFolder(beside | {name: data}), Catalogue("orbax"))
        _read(contents)

    return run


_DATABASE: dict[str, bytes] = {}


def _ocdbt_node(data: bytes) -> None:
    """The root of a database behind its header, whose length a changed node would never fit."""
    if not _DATABASE:
        _DATABASE.update(seeds.ocdbt_beside())
    if len(data) < 2:
        return
    packed, height = data[:2]
    node = wrapped(NODE_MAGIC, data[2:], packed=packed)
    files = {"node": node, marks.OCDBT: manifest(b"node", 0, len(node), height)}
    contents, _ = orbax.open_orbax(MemoryFolder(_DATABASE | files), Catalogue("ocdbt"))
    _read(contents)


def signature_seeds() -> list[bytes]:
    return [(seeds.DATA / "golden.fpsig").read_bytes()]


def _signature(data: bytes) -> None:
    decode(data)


def section_seeds() -> list[bytes]:
    """A byte that says which section is replaced, and by what."""
    envelope = unpack(signature_seeds()[0])
    return [bytes([number]) + section.data for number, section in enumerate(envelope.sections)]


_ENVELOPE = []


def _section(data: bytes) -> None:
    """The contents of a section behind its checksum, which a damaged file never gets to."""
    if not _ENVELOPE:
        _ENVELOPE.append(unpack(signature_seeds()[0]))
    envelope = _ENVELOPE[0]
    if not data:
        return
    place = data[0] % len(envelope.sections)
    sections = [
        Section(one.kind, data[1:] if number == place else one.data, one.essential)
        for number, one in enumerate(envelope.sections)
    ]
    packed, _ = pack(envelope.header, sections, created=envelope.created, tool=envelope.tool)
    decode(packed)


def bundle_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.fpbundle"
        registration = Registration("a/b", None, None, None, None, None, "", datetime.fromtimestamp(0, UTC), None)
        entry = bundle.BundleEntry("sha256:" + "0" * 64, (registration,), b"data")
        bundle.write_bundle(path, 1, [entry])
        return [path.read_bytes()]


def _bundle(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        for _ in bundle._entries(file, "x.fpbundle", "somebody"):
            pass


TARGETS: dict[str, Target] = {
    "safetensors": Target(seeds.safetensors, _reader(safetensors.READER, "m.safetensors"), "header of safetensors"),
    "index": Target(seeds.shards_index, _index, "index of shards (bounded JSON)"),
    "pickle": Target(seeds.pickles, _pickle, "pickle machine, plain pickles"),
    "torch-zip": Target(lambda: seeds.pytorch(zipped=True), _reader(pytorch.READER, "m.pt"), "PyTorch, ZIP"),
    "torch-legacy": Target(lambda: seeds.pytorch(zipped=False), _reader(pytorch.READER, "m.pt"), "PyTorch before 1.6"),
    "distributed": Target(seeds.distributed, _distributed, "PyTorch distributed checkpoints"),
    "npy": Target(seeds.npy, _reader(numpy_files.NPY_READER, "m.npy"), "npy"),
    "npz": Target(seeds.npz, _reader(numpy_files.NPZ_READER, "m.npz"), "npz"),
    "flax": Target(seeds.flax, _reader(flax.READER, "m.msgpack"), "Flax, MessagePack"),
    "gguf": Target(seeds.gguf_files, _reader(gguf.READER, "m.gguf"), "GGUF"),
    "onnx": Target(seeds.onnx, _reader(onnx.READER, "m.onnx"), "ONNX, protocol buffers"),
    "coreml": Target(
        seeds.coreml_programs, _reader(coreml.READER, "m.mlmodel", seeds.coreml_beside), "Core ML, ML Programs"
    ),
    "coreml-network": Target(seeds.coreml_networks, _reader(coreml.READER, "m.mlmodel"), "Core ML, neural networks"),
    "tflite": Target(seeds.tflite, _reader(tflite.READER, "m.tflite"), "TFLite, FlatBuffers"),
    "hdf5": Target(seeds.hdf5, _reader(keras.READER, "m.h5"), "Keras and HDF5 (h5py is not instrumented)"),
    "keras": Target(seeds.keras_zip, _reader(keras.READER, "m.keras"), "Keras, ZIP"),
    "tensorflow": Target(
        seeds.tensorflow,
        _reader(tensorflow.READER, "model.index", seeds.tensorflow_beside),
        "TensorFlow, LevelDB table",
    ),
    "tfjs": Target(seeds.tfjs, _reader(tfjs.READER, "model.json", seeds.tfjs_beside), "TensorFlow.js"),
    "zarr": Target(seeds.zarr, _zarr, "zarr, an array and its chunk"),
    "orbax": Target(seeds.orbax, _orbax(marks.ORBAX, seeds.orbax_beside), "Orbax, the list of its tree"),
    "ocdbt": Target(seeds.ocdbt_manifests, _orbax(marks.OCDBT, seeds.ocdbt_beside), "OCDBT, manifests"),
    "ocdbt-node": Target(seeds.ocdbt_nodes, _ocdbt_node, "OCDBT, nodes behind their headers"),
    "zip": Target(seeds.zips, _container, "ZIP archives"),
    "tar": Target(seeds.tars, _container, "tar archives"),
    "streams": Target(seeds.streams, _stream, "gzip, bzip2, xz, Zstandard"),
    "layouts": Target(seeds.layouts, _reader(safetensors.READER, "m.safetensors"), "quantised layouts"),
    "adapters": Target(seeds.adapters, _reader(safetensors.READER, "m.safetensors"), "low-rank adapters"),
    "signature": Target(signature_seeds, _signature, "signature files"),
    "section": Target(section_seeds, _section, "sections of signatures, behind their checksums"),
    "bundle": Target(bundle_seeds, _bundle, "bundles of signatures"),
}
