"""What every reader promises: the suite that each format and layout of files goes through."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tracemalloc
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.dtypes import DTYPES, to_float64
from fingerprint.errors import InputError
from fingerprint.readers import FORMATS
from fingerprint.source import MemorySource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fingerprint.tensors import TensorView

State = dict[str, torch.Tensor]


def make_state() -> State:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(6, 10, generator=generator)
    state = {
        "layers.0.weight": noise,
        "layers.0.bias": noise[0].clone(),
        "double": noise.double(),
        "half": noise.half(),
        "brain": noise.bfloat16(),
        "e4m3": noise.to(torch.float8_e4m3fn),
        "e5m2": noise.to(torch.float8_e5m2),
        "complex": torch.complex(noise, -noise),
        "integers": (noise * 1000).long(),
        "int32": (noise * 1000).int(),
        "int16": (noise * 1000).short(),
        "int8": (noise * 10).to(torch.int8),
        "uint8": (noise * 10).abs().to(torch.uint8),
        "uint16": (noise * 10).abs().to(torch.uint16),
        "uint32": (noise * 10).abs().to(torch.uint32),
        "uint64": (noise * 10).abs().to(torch.uint64),
        "mask": noise > 0,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "cube": torch.randn(3, 4, 5, generator=generator),
        "ümlaut/\U0001f600 \\ \"quoted\"": noise[:2].clone(),
    }  # fmt: skip
    return {name: tensor.contiguous() for name, tensor in state.items()}


STATE = make_state()
"""Every dtype that both libraries write, a scalar, an empty tensor, and a name with everything in it."""


def write_safetensors(folder: Path) -> Path:
    save_file(STATE, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def write_shards(folder: Path) -> Path:
    names = list(STATE)
    parts = {f"model-0000{n + 1}-of-00003.safetensors": names[n::3] for n in range(3)}
    for file, part in parts.items():
        save_file({name: STATE[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_torch(folder: Path) -> Path:
    torch.save(STATE, folder / "model.pt")
    return folder / "model.pt"


def write_legacy(folder: Path) -> Path:
    torch.save(STATE, folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


def write_legacy_shards(folder: Path) -> Path:
    names = list(STATE)
    parts = {f"pytorch_model-0000{n + 1}-of-00002.bin": names[n::2] for n in range(2)}
    for file, part in parts.items():
        torch.save({name: STATE[name] for name in part}, folder / file, _use_new_zipfile_serialization=False)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_torch_shards(folder: Path) -> Path:
    names = list(STATE)
    parts = {f"pytorch_model-0000{n + 1}-of-00002.bin": names[n::2] for n in range(2)}
    for file, part in parts.items():
        torch.save({name: STATE[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def rewrite(folder: Path, change: Callable[[str, bytes], bytes], method: int) -> Path:
    """The PyTorch file with each entry changed."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(folder / "model.pt", "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return folder / "model.pt"


def write_deflated(folder: Path) -> Path:
    return rewrite(folder, lambda _, data: data, zipfile.ZIP_DEFLATED)


def write_big_endian(folder: Path) -> Path:
    # In the order of the state, as torch numbers its storages; a complex number is two floats.
    widths = [1 if t.dtype.itemsize == 1 else t.dtype.itemsize // (2 if t.is_complex() else 1) for t in STATE.values()]

    def change(name: str, data: bytes) -> bytes:
        if name.endswith("/byteorder"):
            return b"big"
        number = name.rpartition("/data/")[2]
        return np.frombuffer(data, f"u{widths[int(number)]}").byteswap().tobytes() if number.isdigit() else data

    return rewrite(folder, change, zipfile.ZIP_STORED)


@dataclass(frozen=True, slots=True)
class Layout:
    name: str
    format: str
    write: Callable[[Path], Path]


LAYOUTS = [
    Layout("safetensors", "safetensors", write_safetensors),
    Layout("safetensors shards", "safetensors", write_shards),
    Layout("pytorch", "pytorch", write_torch),
    Layout("pytorch shards", "pytorch", write_torch_shards),
    Layout("pytorch before 1.6", "pytorch", write_legacy),
    Layout("pytorch before 1.6, shards", "pytorch", write_legacy_shards),
    Layout("pytorch deflated", "pytorch", write_deflated),
    Layout("pytorch big-endian", "pytorch", write_big_endian),
]
FILES = [layout for layout in LAYOUTS if "shards" not in layout.name]


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.name)
def layout(request: pytest.FixtureRequest) -> Layout:
    return request.param


@pytest.fixture(scope="module")
def path(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout.write(tmp_path_factory.mktemp("layout"))


@pytest.fixture
def checkpoint(path: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(path) as checkpoint:
        yield checkpoint


def whole(tensor: TensorView) -> np.ndarray:
    return tensor.read(0, math.prod(tensor.shape))


def same(array: np.ndarray, tensor: torch.Tensor) -> bool:
    """Equal to the bit, for any dtype."""
    return array.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


class TestEveryLayout:
    def test_everything_is_there(self, checkpoint: Checkpoint, layout: Layout) -> None:
        assert checkpoint.format == layout.format
        assert checkpoint.complete
        assert checkpoint.findings == ()
        assert {tensor.name: tensor.shape for tensor in checkpoint.tensors} == {
            name: tuple(tensor.shape) for name, tensor in STATE.items()
        }

    def test_values_are_those_of_the_producing_library(self, checkpoint: Checkpoint) -> None:
        for tensor in checkpoint.tensors:
            wanted = STATE[tensor.name]
            array = whole(tensor)
            assert array.dtype == tensor.dtype.numpy
            assert array.ndim == 1
            assert same(array, wanted), tensor.name
            reals = wanted.real if wanted.is_complex() else wanted
            np.testing.assert_array_equal(to_float64(array), reals.double().numpy().reshape(-1))

    def test_any_range_is_a_slice_of_the_whole(self, checkpoint: Checkpoint) -> None:
        for tensor in checkpoint.tensors:
            array = whole(tensor)
            for start in range(0, array.size + 1, 7):
                for stop in range(start, array.size + 1, 5):
                    assert tensor.read(start, stop).tobytes() == array[start:stop].tobytes()

    def test_ranges_outside_are_refused(self, checkpoint: Checkpoint) -> None:
        for tensor in checkpoint.tensors:
            size = math.prod(tensor.shape)
            for start, stop in ((-1, 0), (0, size + 1), (2, 1), (size + 1, size + 2)):
                with pytest.raises(IndexError):
                    tensor.read(start, stop)

    def test_counts_agree(self, checkpoint: Checkpoint, path: Path) -> None:
        assert checkpoint.parameters == sum(tensor.numel() for tensor in STATE.values())
        assert sum(checkpoint.dtypes.values()) == checkpoint.parameters
        assert set(checkpoint.dtypes) <= set(DTYPES)
        files = [path] if path.is_file() else [p for p in path.iterdir() if not p.name.endswith(".json")]
        assert checkpoint.bytes == sum(file.stat().st_size for file in files)
        assert len(checkpoint.files) == len(files)

    def test_nothing_is_written_beside_it(self, path: Path) -> None:
        folder = path if path.is_dir() else path.parent
        before = {(file.name, file.stat().st_mtime_ns) for file in folder.iterdir()}
        with open_checkpoint(path) as checkpoint:
            for tensor in checkpoint.tensors:
                whole(tensor)
        assert {(file.name, file.stat().st_mtime_ns) for file in folder.iterdir()} == before

    def test_values_outlive_the_checkpoint(self, path: Path) -> None:
        with open_checkpoint(path) as checkpoint:
            arrays = {tensor.name: whole(tensor) for tensor in checkpoint.tensors}
        assert same(arrays["layers.0.weight"], STATE["layers.0.weight"])

    def test_two_checkpoints_are_independent(self, path: Path) -> None:
        first, second = open_checkpoint(path), open_checkpoint(path)
        first.close()
        assert len([whole(tensor) for tensor in second.tensors]) == len(STATE)
        second.close()


@pytest.mark.parametrize("layout", FILES, ids=lambda layout: layout.name)
@pytest.mark.parametrize("name", ["model", "weights.dat", "model.json", "model.txt"])
def test_format_is_told_by_content_not_by_name(layout: Layout, name: str, tmp_path: Path) -> None:
    path = layout.write(tmp_path).rename(tmp_path / name)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == layout.format
        assert len(checkpoint.tensors) == len(STATE)


@pytest.mark.parametrize("layout", FILES, ids=lambda layout: layout.name)
def test_misleading_suffix_does_not_mislead(layout: Layout, tmp_path: Path) -> None:
    wrong = ".pt" if layout.format == "safetensors" else ".safetensors"
    path = layout.write(tmp_path).rename(tmp_path / f"model{wrong}")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == layout.format


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return {layout.name: layout.write(tmp_path_factory.mktemp("bytes")).read_bytes() for layout in FILES}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def examine(path: Path) -> None:
    """Reads everything; any error but an ``InputError`` is a defect."""
    with contextlib.suppress(InputError), open_checkpoint(path) as checkpoint:
        for tensor in checkpoint.tensors:
            whole(tensor)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([layout.name for layout in FILES]), data=st.data())
def test_no_truncation_leads_to_another_error(
    files: dict[str, bytes], scratch: Path, name: str, data: st.DataObject
) -> None:
    raw = files[name]
    length = data.draw(st.integers(0, len(raw) - 1))
    (scratch / "cut").write_bytes(raw[:length])
    with contextlib.suppress(InputError), open_checkpoint(scratch / "cut") as checkpoint:
        assert not checkpoint.complete
        assert "truncated" in {finding.code for finding in checkpoint.findings}
        for tensor in checkpoint.tensors:
            assert same(whole(tensor), STATE[tensor.name])


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from([layout.name for layout in FILES]), data=st.data())
def test_no_change_of_bytes_leads_to_another_error(
    files: dict[str, bytes], scratch: Path, name: str, data: st.DataObject
) -> None:
    raw = bytearray(files[name])
    # Headers, pickles and directories are at the ends; numbers in between may change without a word.
    near = st.integers(0, min(3000, len(raw) - 1))
    places = data.draw(st.lists(st.tuples(st.booleans(), near, st.integers(0, 255)), min_size=1, max_size=8))
    for from_end, place, value in places:
        raw[-1 - place if from_end else place] = value
    (scratch / "changed").write_bytes(raw)
    examine(scratch / "changed")


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=300), head=st.sampled_from([b"", b"PK\x03\x04", b"\x20\0\0\0\0\0\0\0{", b"\x80\x02"]))
def test_no_bytes_lead_to_another_error(scratch: Path, raw: bytes, head: bytes) -> None:
    (scratch / "random").write_bytes(head + raw)
    examine(scratch / "random")


def test_one_range_of_a_huge_file_takes_little_memory(tmp_path: Path) -> None:
    rows, columns = 1 << 20, 1 << 14  # 64 GiB of float32, without a block on disk
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]}})
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 4 * rows * columns)
    tracemalloc.start()
    try:
        with open_checkpoint(tmp_path / "huge.safetensors") as checkpoint:
            [tensor] = checkpoint.tensors
            for start in (0, rows * columns // 2, rows * columns - (1 << 20)):
                assert not tensor.read(start, start + (1 << 20)).any()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_readers_are_declared_once() -> None:
    assert len({one.name for one in FORMATS}) == len(FORMATS)
    for one in FORMATS:
        assert (one.name, one.suffixes) == (one.reader.name, one.reader.suffixes)
    suffixes = [suffix for one in FORMATS for suffix in one.suffixes]
    assert len(set(suffixes)) == len(suffixes)


@pytest.mark.parametrize("name", [one.name for one in FORMATS if one.first is not None])
def test_a_reader_recognises_nothing_that_begins_with_another_byte(name: str) -> None:
    [one] = [one for one in FORMATS if one.name == name]
    assert one.first
    rest = b"{ PK\x03\x04data.pkl\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b'"weightsManifest": []}' + bytes(64)
    for byte in set(range(256)) - one.first:
        for text in (bytes([byte]) + rest, bytes([byte]) + rest[1:], bytes([byte]) * 100):
            assert not one.reader.recognises(MemorySource(text))
