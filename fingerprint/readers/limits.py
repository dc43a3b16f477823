"""The limits of the readers in words, each with the constant that sets it; the page of formats lists them."""

from __future__ import annotations

from typing import Final

from fingerprint.readers import (
    adapters,
    base,
    bounded_yaml,
    cards,
    compressed,
    containers,
    coreml,
    coreml_program,
    coreml_values,
    distributed,
    flatbuffers,
    flax,
    folder,
    gguf_header,
    hdf5,
    index,
    leveldb,
    ocdbt,
    onnx,
    onnx_model,
    opened,
    orbax,
    pickles,
    places,
    protobuf,
    safetensors,
    scratch,
    tars,
    tensorflow,
    tfjs,
    tflite,
    torch_views,
    torch_zip,
    zarr,
    zarr_array,
    zips,
)
from fingerprint.remote import connections, hub, pages, session, transfer


def _size(number: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >> power and not number % (1 << power):
            return f"{number >> power:,} {unit}"
    return f"{number:,} bytes"


def _power(number: int) -> str:
    return f"2^{number.bit_length() - 1}" if number & (number - 1) == 0 else f"{number:,}"


LIMITS: Final = (
    ("header of safetensors", f"{_size(safetensors.MAX_HEADER)} (the library's own)"),
    (
        "header of GGUF",
        f"{_size(gguf_header.MAX_HEADER)}, {gguf_header.MAX_ENTRIES:,} entries, {gguf_header.MAX_ITEMS:,} items of "
        "arrays",
    ),
    (
        "tensors of a checkpoint",
        f"{base.MAX_TENSORS:,}, and {_size(base.MAX_CATALOGUE)} for headers and the list of them",
    ),
    (
        "entries of `__metadata__`",
        f"{safetensors.MAX_METADATA_READ:,}, of which {safetensors.MAX_METADATA} are kept",
    ),
    ("name of a tensor; axes", f"{base.MAX_NAME:,} characters; {base.MAX_RANK}"),
    ("shards; entries of a folder that are looked at", f"{folder.MAX_SHARDS:,}; {places.MAX_ENTRIES:,}"),
    ("index of shards", _size(index.MAX_INDEX)),
    (
        "pickle",
        f"{pickles.MAX_OPCODES:,} opcodes, {_size(pickles.MAX_MEMORY)} of what it describes; a compressed one unpacks "
        f"to {_size(torch_zip.MAX_PICKLE)}; strings of over {_size(pickles.MAX_INLINE)} stay in the file",
    ),
    ("ZIP archive", f"{zips.MAX_ENTRIES:,} entries, a directory of {_size(zips.MAX_DIRECTORY)}"),
    ("compressed entry", f"unpacks to {_size(zips.MAX_UNSUSPICIOUS)}, or to {zips.MAX_RATIO} times its size"),
    ("chunks of a distributed checkpoint; its files", f"{distributed.MAX_CHUNKS:,}; {distributed.MAX_FILES:,}"),
    (
        "zarr: chunks of a checkpoint, files; metadata of an array; groups in one another",
        f"{zarr.MAX_CHUNKS:,}, {opened.MAX_FILES:,}; {_size(zarr_array.MAX_METADATA)}; {zarr.MAX_LEVELS}",
    ),
    (
        "zarr: a chunk; all arrays",
        f"{zips.MAX_RATIO} times its packed size, or {_size(zips.MAX_UNSUSPICIOUS)}, and {_size(zarr.MAX_BLOSC)} of "
        f"Blosc; {zips.MAX_RATIO} times what is stored",
    ),
    (
        "OCDBT: nodes, one of them, all; keys, one of them",
        f"{ocdbt.MAX_NODES:,}, {_size(ocdbt.MAX_NODE)}, {_size(ocdbt.MAX_NODE_BYTES)}; {ocdbt.MAX_KEYS:,}, "
        f"{ocdbt.MAX_KEY:,} bytes",
    ),
    ("Orbax: `_METADATA`; steps and items", f"{_size(orbax.MAX_METADATA)}; {orbax.MAX_STEPS:,}"),
    ("Flax tree", f"{flax.MAX_ITEMS:,} values, {flax.MAX_NESTING} levels"),
    (
        "product of an adapter; all products",
        f"{_power(adapters.MAX_PRODUCT)} elements; {_power(adapters.MAX_PRODUCTS)}",
    ),
    (
        "front matter of a card, recipe of mergekit",
        f"{_size(bounded_yaml.MAX_YAML)}, {bounded_yaml.MAX_YAML_DEPTH} levels, {bounded_yaml.MAX_YAML_VALUES:,} "
        f"values, {bounded_yaml.MAX_DOCUMENTS} documents; {cards.MAX_NAMED} models, names of {cards.MAX_NAMED_LENGTH} "
        "characters",
    ),
    ("archives in one another; components", f"{containers.MAX_DEPTH}; {folder.MAX_COMPONENTS}"),
    ("tar archive", f"{tars.MAX_MEMBERS:,} members, a header of {_size(tars.MAX_EXTENDED)} for one"),
    (
        "compressed stream",
        f"unpacks to {_size(zips.MAX_UNSUSPICIOUS)}, or to {zips.MAX_RATIO} times its size; a window of "
        f"{_size(compressed.MAX_WINDOW)}",
    ),
    (
        "what is unpacked for one archive",
        f"{_size(scratch.MAX_SCRATCH)}, in a temporary file without a name that leaves {_size(scratch.MIN_FREE)} free",
    ),
    ("bytes that all tensors of a PyTorch file claim together", f"{torch_views.MAX_SHARING} times the file"),
    (
        "ONNX",
        f"{protobuf.MAX_FIELDS:,} fields of messages, graphs nested {onnx_model.MAX_DEPTH} deep, tensors that claim "
        f"{onnx.MAX_SHARING} times the files",
    ),
    (
        "HDF5",
        f"{hdf5.MAX_OBJECTS:,} objects nested {hdf5.MAX_DEPTH} deep, chunks of {_size(hdf5.MAX_CHUNK)}, tensors that "
        f"claim {zips.MAX_RATIO} times the file",
    ),
    (
        "Core ML: models in one another; blocks nested; files of blobs",
        f"{coreml.MAX_MODELS}; {coreml_program.MAX_NESTING}; {coreml_values.MAX_BLOB_FILES}, tensors that claim "
        f"{coreml.MAX_SHARING} times the file",
    ),
    (
        "TFLite",
        f"{flatbuffers.MAX_STEPS:,} numbers that are looked at, tensors that claim {tflite.MAX_SHARING} times the file",
    ),
    (
        "TensorFlow: index; shards",
        f"{leveldb.MAX_ENTRIES:,} entries, blocks of {_size(leveldb.MAX_BLOCK)}; {tensorflow.MAX_SHARDS:,}",
    ),
    ("TensorFlow.js: `model.json`; shards", f"{_size(tfjs.MAX_MODEL)}; {tfjs.MAX_SHARDS:,}"),
    (
        "fetched: redirects; headers of an answer; pages of a list of files, bytes of one",
        f"{session.MAX_REDIRECTS}; {_size(connections.MAX_HEAD)}; {hub.MAX_PAGES}, {_size(hub.MAX_ANSWER)}",
    ),
    (
        "fetched: one read; kept in memory of all files",
        f"{_size(pages.MOST)}; {_size(transfer.CACHE_BYTES)}, and {_size(transfer.WHOLE_BYTES)} of files that come "
        "whole",
    ),
)
"""What, and how much of it at most."""
