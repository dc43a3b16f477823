"""Small good files to begin from, of the libraries that write them and of ``tests/data``, by target."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import torch
import torch.distributed.checkpoint as dcp
import zstandard
from safetensors.numpy import save

from tests.hostile.onnx_cases import GOOD, circle, nested, recurrent, scaled, squared, unpacked
from tests.hostile.orbax_cases import NODE_MAGIC
from tests.hostile.pickle_cases import PICKLE_CASES

DATA = Path(__file__).parent.parent.parent / "tests" / "data"
ARRAYS: dict[str, Any] = {
    "layer.0.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "layer.0.bias": np.arange(4, dtype=np.float16),
    "layer.1.weight": np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
    "layer.1.bias": np.arange(3).astype(ml_dtypes.bfloat16),
}
PLAIN = {name: array for name, array in ARRAYS.items() if array.dtype.kind != "V"}
WEIGHTS = save({name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}, {"format": "np"})


def safetensors() -> list[bytes]:
    return [WEIGHTS]


def shards_index() -> list[bytes]:
    index = {"metadata": {"total_size": 9}, "weight_map": {"a.b": "x-1.bin", "\u00fc\n": "x-2.bin"}}
    return [json.dumps(index, indent=indent).encode() for indent in (None, 2)]


def _tensors() -> dict[str, Any]:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in PLAIN.items()}
    tensors["tied"] = tensors["view"] = tensors["layer.0.weight"].T
    return tensors


def pytorch(*, zipped: bool) -> list[bytes]:
    found = []
    for protocol in (2, 4):
        buffer = io.BytesIO()
        state = {"state_dict": _tensors(), "arrays": PLAIN, "epoch": 3}
        torch.save(state, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        found.append(buffer.getvalue())
    return found


def pickles() -> list[bytes]:
    """Pickles alone, those of the hostile corpus among them."""
    found = [pickle.dumps(PLAIN, protocol) for protocol in (2, 4, 5)]
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(PICKLE_CASES):
            place = Path(folder) / str(number)
            place.mkdir()
            path = case.build(place)
            if path.is_file() and path.stat().st_size < 1 << 16 and zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    found += [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    return found


def npz() -> list[bytes]:
    found = []
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **PLAIN)
        found.append(buffer.getvalue())
    return found


def npy() -> list[bytes]:
    found = []
    for array in ARRAYS.values():
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append(buffer.getvalue())
    return found


def flax() -> list[bytes]:
    return [(DATA / "flax.msgpack").read_bytes()]


def gguf_files() -> list[bytes]:
    """With every kind of metadata, plain and quantised tensors, in both byte orders."""
    random = np.random.default_rng(0)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for order in gguf.GGUFEndian:
            path = Path(folder) / "seed.gguf"
            writer = gguf.GGUFWriter(path, "llama", endianess=order)
            writer.add_name("seed")
            writer.add_head_count([2, 4])
            writer.add_head_count_kv(2)
            writer.add_token_list(["a", "bc"])
            writer.add_array("numbers", [1, 2, 3])
            writer.add_float32("f", 0.5)
            writer.add_tensor("blk.0.attn_q.weight", random.normal(size=(16, 8)).astype(np.float32))
            writer.add_tensor("blk.1.attn_k.bias", random.normal(size=16).astype(np.float16))
            for kind in ("Q8_0", "Q4_1", "MXFP4", "TQ2_0"):
                number = gguf.GGMLQuantizationType[kind]
                values = random.normal(size=(2, 256)).astype(np.float32)
                writer.add_tensor(f"blk.0.{kind}.weight", gguf.quants.quantize(values, number), raw_dtype=number)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            found.append(path.read_bytes())
    return found


def onnx() -> list[bytes]:
    made = (GOOD, nested(5), circle(), unpacked(), scaled((2,), 0), scaled((1, 2), 1), recurrent(8), squared(3))
    return [*(path.read_bytes() for path in sorted(DATA.glob("onnx/**/*.onnx"))), *made]


def tflite() -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / "tensorflow").glob("*.tflite"))]


def hdf5() -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / "tensorflow").glob("*.h5"))]


def keras_zip() -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / "tensorflow").glob("*.keras"))]


def tensorflow() -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / "tensorflow").glob("**/*.index"))]


def tensorflow_beside() -> dict[str, bytes]:
    path = next((DATA / "tensorflow").glob("*/*.data-*"))
    return {"model.data-00000-of-00001": path.read_bytes()}


def tfjs() -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / "tensorflow").glob("*/*/model.json"))]


def tfjs_beside() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (DATA / "tensorflow").glob("*/*/*.bin")}


def coreml_programs() -> list[bytes]:
    found = []
    for path in sorted((DATA / "coreml").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            found.append(archive.read("model.mlpackage/Data/com.apple.CoreML/model.mlmodel"))
    return found


def coreml_beside() -> dict[str, bytes]:
    with zipfile.ZipFile(DATA / "coreml" / "blocks4.zip") as archive:
        return {"weights/weight.bin": archive.read("model.mlpackage/Data/com.apple.CoreML/weights/weight.bin")}


def coreml_networks() -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / "coreml").glob("*.mlmodel"))]


def _distributed(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it runs in one process
        dcp.save({"model": _tensors()}, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


def distributed() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [(_distributed(Path(folder)) / ".metadata").read_bytes()]


def distributed_beside() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return {path.name: path.read_bytes() for path in _distributed(Path(folder)).glob("*.distcp")}


def _tree(*names: str) -> dict[str, bytes]:
    """The files of folders of zarr and Orbax, by their paths below them."""
    files: dict[str, bytes] = {}
    for name in names:
        with tarfile.open(DATA / "orbax" / f"{name}.tar.xz") as archive:
            for member in archive.getmembers():
                if (file := archive.extractfile(member)) is not None:
                    files[member.name.partition("/")[2]] = file.read()
    return files


def zarr() -> list[bytes]:
    """The metadata of an array, a byte of zero, and a chunk of it."""
    found = []
    for name in ("second", "third"):
        files = _tree(name)
        for path, metadata in files.items():
            above, _, last = path.rpartition("/")
            beginnings = (f"{above}/c/", f"{above}/0") if last == "zarr.json" else (f"{above}/0",)
            chunks = [files[other] for other in files if other.startswith(beginnings)]
            if last in {".zarray", "zarr.json"} and chunks:
                found.append(metadata + b"\0" + chunks[0])
    return found


def orbax() -> list[bytes]:
    return [_tree(name)["_METADATA"] for name in ("grid", "folders")]


def orbax_beside() -> dict[str, bytes]:
    return _tree("grid")


def ocdbt_manifests() -> list[bytes]:
    return [_tree(name)["manifest.ocdbt"] for name in ("plain_tree", "packed_tree", "database", "grid_database")]


def ocdbt_nodes() -> list[bytes]:
    """What is said of the compression of a node, the height of it, and its body as it is stored."""
    found = []
    for name in ("plain_tree", "packed_tree", "database", "grid_database"):
        magic = struct.pack(">I", NODE_MAGIC)
        for path, raw in _tree(name).items():
            place = raw.find(magic) if path.startswith("d/") else -1
            while place >= 0:
                (size,) = struct.unpack_from("<Q", raw, place + len(magic))
                packed, body = raw[place + 13], raw[place + 14 : place + size - 4]
                height = (zstandard.ZstdDecompressor().decompressobj().decompress(body) if packed else body)[0]
                found.append(bytes([packed, height]) + body)
                place = raw.find(magic, place + size)
    return found


def ocdbt_beside() -> dict[str, bytes]:
    """The data files of databases, whose names no two of them share."""
    files = _tree("plain_tree", "packed_tree", "database", "grid_database")
    return {path: raw for path, raw in files.items() if path.startswith(("d/", "ocdbt.process_0/d/"))}


def zips() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("m/model.safetensors", WEIGHTS)
            archive.writestr("m/config.json", '{"hidden_size": 6}')
        found.append(buffer.getvalue())
    return found


def tars() -> list[bytes]:
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
            for name in ("m/model.safetensors", "m/" + "long" * 30 + "/model.safetensors"):
                info = tarfile.TarInfo(name)
                info.size = len(WEIGHTS)
                file.addfile(info, io.BytesIO(WEIGHTS))
            link = tarfile.TarInfo("m/link.safetensors")
            link.type, link.linkname = tarfile.SYMTYPE, "model.safetensors"
            file.addfile(link)
        found.append(buffer.getvalue())
    return found


def streams() -> list[bytes]:
    packers = (gzip.compress, bz2.compress, lzma.compress, zstandard.compress)
    return [pack(raw) for pack in packers for raw in (tars()[1], WEIGHTS)]


def layouts() -> list[bytes]:
    """Modules of quantised layouts, without what they are expected to be."""
    found = []
    for path in sorted((DATA / "quantised").glob("*.safetensors")):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        header.pop("expected")
        # Values tell a parser little; files of a kilobyte or two are mutated where it matters.
        body = b""
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = [len(body), len(body) + end - begin]
            body += raw[start + begin : start + end]
        text = json.dumps(header).encode()
        found.append(len(text).to_bytes(8, "little") + text + body)
    return found


def adapters() -> list[bytes]:
    down, up = np.ones((2, 6), np.float32), np.ones((4, 2), np.float32)
    one = {
        "base_model.model.layer.0.q_proj.lora_A.weight": down, "base_model.model.layer.0.q_proj.lora_B.weight": up,
        "base_model.model.layer.0.q_proj.lora_magnitude_vector": np.ones(4, np.float32),
    }  # fmt: skip
    two = {
        "lora_unet_down_0.lora_down.weight": down, "lora_unet_down_0.lora_up.weight": up,
        "lora_unet_down_0.alpha": np.array(4.0, np.float32),
    }  # fmt: skip
    return [save(one), save(two)]
