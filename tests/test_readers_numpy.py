"""numpy's files: what numpy.save, savez and savez_compressed write."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import InputError, UnsupportedFormatError
from fingerprint.readers.numpy_files import open_npy
from fingerprint.source import MemorySource
from tests.test_readers_legacy import ARRAYS, codes, same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRITERS: dict[str, Callable[..., None]] = {"stored": np.savez, "deflated": np.savez_compressed}
PLAIN = {name: array for name, array in ARRAYS.items() if name != "bfloat16"}


@pytest.mark.parametrize("writer", WRITERS)
def test_archive_of_arrays_is_read(writer: str, tmp_path: Path) -> None:
    WRITERS[writer](tmp_path / "model.npz", **PLAIN)
    with open_checkpoint(tmp_path / "model.npz") as checkpoint:
        assert checkpoint.format == "npz"
        assert checkpoint.complete
        assert checkpoint.findings == ()
        same(checkpoint, PLAIN)


@pytest.mark.parametrize("name", PLAIN)
def test_single_array_is_read_under_the_name_of_its_file(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", PLAIN[name])
    with open_checkpoint(tmp_path / "embeddings.npy") as checkpoint:
        assert checkpoint.format == "npy"
        assert checkpoint.findings == ()
        same(checkpoint, {"embeddings": PLAIN[name]})


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header_is_read(version: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, PLAIN["float32"], version)
    [tensor] = open_npy(MemorySource(buffer.getvalue(), "a.npy")).tensors
    np.testing.assert_array_equal(tensor.read(0, 24), PLAIN["float32"].reshape(-1))


def test_header_of_python_2_is_read() -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 2L), }\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(16)
    [tensor] = open_npy(MemorySource(data, "a.npy")).tensors
    assert tensor.shape == (2, 2)


@settings(max_examples=150, deadline=None)
@given(
    array=arrays(
        st.sampled_from(["<f4", ">f4", "<f2", "<f8", "i1", ">i2", "<u4", "<c8", "?"]),
        array_shapes(min_dims=0, min_side=0),
    ),
    fortran=st.booleans(),
    data=st.data(),
)
def test_any_array_is_read_as_it_was_written(array: np.ndarray, fortran: bool, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array, order="F" if fortran else "C"))
    [tensor] = open_npy(MemorySource(buffer.getvalue(), "a.npy")).tensors
    assert tensor.shape == array.shape
    start = data.draw(st.integers(0, array.size))
    stop = data.draw(st.integers(start, array.size))
    wanted = array.astype(array.dtype.newbyteorder("<")).reshape(-1)[start:stop]
    assert tensor.read(start, stop).tobytes() == wanted.tobytes()


def test_bfloat16_is_told_by_its_size_and_said_to_be_assumed(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", w=ARRAYS["bfloat16"])
    with open_checkpoint(tmp_path / "model.npz") as checkpoint:
        assert codes(checkpoint) == {"bfloat16-assumed"}
        assert checkpoint.dtypes == {"BF16": 6}
        same(checkpoint, {"w": ARRAYS["bfloat16"]})


def test_one_byte_without_a_type_is_not_guessed_at(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", w=np.arange(6).astype(ml_dtypes.float8_e4m3fn), rest=ARRAYS["float32"])
    with open_checkpoint(tmp_path / "model.npz") as checkpoint:
        assert not checkpoint.complete
        assert [(f.code, f.tensor) for f in checkpoint.findings] == [("unread-tensor", "w")]
        same(checkpoint, {"rest": ARRAYS["float32"]})


def test_objects_structures_and_labels(tmp_path: Path) -> None:
    pairs = np.zeros(3, [("a", "f4"), ("b", "i2")])
    np.savez(tmp_path / "model.npz", o=np.array([{}], object), s=pairs, u=np.array(["x"]), w=ARRAYS["float32"])
    with open_checkpoint(tmp_path / "model.npz") as checkpoint:
        assert [f.tensor for f in checkpoint.findings if f.code == "unread-tensor"] == ["o", "s"]
        assert [tensor.name for tensor in checkpoint.tensors] == ["w"]
    np.save(tmp_path / "o.npy", np.array([{}], object))
    with pytest.raises(UnsupportedFormatError, match="objects"):
        open_checkpoint(tmp_path / "o.npy")


def test_other_archives_are_no_npz(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.bin.zip", "w") as file:
        file.writestr("a.npy", b"x")
        file.writestr("readme.txt", b"x")
    with pytest.raises(InputError, match=r"a\.npy: no array"):
        open_checkpoint(tmp_path / "model.bin.zip")


def test_compressed_columns_are_unpacked_once_and_in_little_memory(tmp_path: Path) -> None:
    """Column-major order asks for the whole array again and again."""
    array = np.asfortranarray(np.random.default_rng(0).integers(0, 9, (1024, 4096)).astype(np.float32))
    np.savez_compressed(tmp_path / "model.npz", w=array)
    tracemalloc.start()
    try:
        with open_checkpoint(tmp_path / "model.npz") as checkpoint:
            [tensor] = checkpoint.tensors
            for start in range(0, array.size, 1 << 19):
                piece = tensor.read(start, start + (1 << 19))
                np.testing.assert_array_equal(piece, array[start >> 12 : (start >> 12) + 128].reshape(-1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20


def test_archive_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    for writer in WRITERS.values():
        writer(tmp_path / "model.npz", **{f"w{n}": np.full((500,), n, np.float32) for n in range(5)})
        raw = (tmp_path / "model.npz").read_bytes()
        seen = set()
        for end in range(60, len(raw) - 1, len(raw) // 40):
            (tmp_path / "cut.npz").write_bytes(raw[:end])
            with open_checkpoint(tmp_path / "cut.npz") as checkpoint:
                assert not checkpoint.complete
                assert "truncated" in codes(checkpoint)
                for tensor in checkpoint.tensors:
                    assert set(tensor.read(0, 500).tolist()) == {float(tensor.name[1:])}
                seen.add(len(checkpoint.tensors))
        assert seen >= set(range(5))
