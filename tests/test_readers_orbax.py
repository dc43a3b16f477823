"""Orbax and zarr: folders and databases that orbax-checkpoint, zarr and TensorStore wrote (tests/data/orbax)."""

from __future__ import annotations

import json
import math
import shutil
import tarfile
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.dtypes import to_float32
from fingerprint.errors import InputError, InputNotFoundError, LimitExceededError
from fingerprint.readers.base import Catalogue
from fingerprint.readers.ocdbt import Database
from fingerprint.readers.opened import Opened
from fingerprint.readers.zarr import open_zarr
from fingerprint.remote.folders import Listing, RemoteFolder
from fingerprint.remote.options import RemoteOptions
from fingerprint.remote.transfer import Transfer
from fingerprint.source import MemorySource

if TYPE_CHECKING:
    from collections.abc import Iterable

DATA = Path(__file__).parent / "data" / "orbax"
EXPECTED = dict(np.load(DATA / "expected.npz"))
TREES = ("folders", "shards", "database")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orbax")
    for path in DATA.glob("*.tar.xz"):
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    return folder


def wanted(prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in EXPECTED.items() if name.startswith(prefix)}


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {t.name: to_float32(t.read(0, math.prod(t.shape))).reshape(t.shape) for t in checkpoint.tensors}


def codes(checkpoint: Checkpoint) -> set[str]:
    return {finding.code for finding in checkpoint.findings}


def same(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    found = values(checkpoint)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float32), err_msg=name)


@pytest.mark.parametrize("name", TREES)
def test_parameters_of_orbax_are_read_and_its_optimiser_is_set_aside(name: str, folders: Path) -> None:
    with open_checkpoint(folders / name) as checkpoint:
        assert checkpoint.format == "orbax"
        assert checkpoint.complete
        assert codes(checkpoint) == {"optimiser-state"}
        same(checkpoint, wanted("params."))
        assert {tensor.dtype.name for tensor in checkpoint.tensors} == {"F32", "BF16"}


@pytest.mark.parametrize("name", TREES)
def test_archive_of_orbax_is_read(name: str) -> None:
    with open_checkpoint(DATA / f"{name}.tar.xz") as checkpoint:
        assert checkpoint.format == "orbax in tar.xz"
        assert checkpoint.complete
        same(checkpoint, wanted("params."))


@pytest.mark.parametrize("name", ["grid", "grid_database"])
def test_arrays_spread_over_four_devices_are_put_together(name: str, folders: Path) -> None:
    with open_checkpoint(folders / name) as checkpoint:
        assert checkpoint.complete
        assert checkpoint.findings == ()
        same(checkpoint, wanted("grid."))
        for tensor in checkpoint.tensors:
            flat = EXPECTED[f"grid.{tensor.name}"].reshape(-1)
            for start in range(flat.size + 1):
                for stop in range(start, flat.size + 1, 3):
                    np.testing.assert_array_equal(tensor.read(start, stop), flat[start:stop])


def test_step_of_a_manager_is_found_from_the_top(folders: Path, tmp_path: Path) -> None:
    for path in (folders / "manager", folders / "manager" / "3", folders / "manager" / "3" / "state"):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.format == "orbax"
            same(checkpoint, wanted("params."))
    shutil.copytree(folders / "manager", tmp_path / "m")
    shutil.copytree(folders / "manager" / "3", tmp_path / "m" / "7")
    with pytest.raises(InputError, match="2 steps"):
        open_checkpoint(tmp_path / "m")


def test_items_of_a_step_are_components(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "manager" / "3", tmp_path / "3")
    shutil.copytree(folders / "grid", tmp_path / "3" / "other")
    with open_checkpoint(tmp_path / "3") as checkpoint:
        assert "component" in codes(checkpoint)
        expected = {f"state.{name}": value for name, value in wanted("params.").items()}
        same(checkpoint, expected | {f"other.{name}": value for name, value in wanted("grid.").items()})


@pytest.mark.parametrize("name", ["packed_tree", "plain_tree"])
def test_tree_of_several_levels_with_values_inside_and_out(name: str, folders: Path) -> None:
    with open_checkpoint(folders / name) as checkpoint:
        assert checkpoint.complete
        same(checkpoint, wanted("tree."))
    place = open_place(folders / name)
    assert Database(place, Catalogue("d"))._nodes > 5


def open_place(path: Path) -> Opened:
    from fingerprint.readers.places import Place

    return Opened(Place(str(path)), Catalogue(str(path)))


@pytest.mark.parametrize("version", ["second", "third"])
def test_every_codec_and_order_of_zarr(version: str, folders: Path) -> None:
    with open_checkpoint(folders / version) as checkpoint:
        assert checkpoint.format == "zarr"
        same(checkpoint, wanted(f"{version}."))
        unread = [(f.code, f.tensor) for f in checkpoint.findings]
        assert unread == ([("unread-tensor", "bz2")] if version == "second" else [])
        assert checkpoint.complete is (version == "third")
        for tensor in checkpoint.tensors:
            flat = EXPECTED[f"{version}.{tensor.name}"].reshape(-1)
            for start in range(0, flat.size + 1, 7):
                for stop in range(start, flat.size + 1, 5):
                    np.testing.assert_array_equal(to_float32(tensor.read(start, stop)), flat[start:stop])


def test_array_alone_is_a_checkpoint(folders: Path) -> None:
    with open_checkpoint(folders / "third" / "b" / "zstd") as checkpoint:
        assert [tensor.name for tensor in checkpoint.tensors] == ["array"]
        np.testing.assert_array_equal(values(checkpoint)["array"], EXPECTED["third.b.zstd"])


def test_chunk_that_is_not_there_is_a_fault_of_orbax(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "grid", tmp_path / "m")
    (tmp_path / "m" / "rows" / "1.0").unlink()
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert not checkpoint.complete
        assert codes(checkpoint) == {"absent-shard"}
        assert set(values(checkpoint)) == {"both", "columns"}


def test_array_that_the_tree_promises_is_missed(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "grid", tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "rows")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert not checkpoint.complete
        assert codes(checkpoint) == {"absent-tensor"}


def test_folders_of_t5x_are_read(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "folders", tmp_path / "m")
    (tmp_path / "m" / "_METADATA").rename(tmp_path / "m" / "checkpoint")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert checkpoint.format == "orbax"
        same(checkpoint, wanted("params."))


def test_link_out_of_the_folder_is_not_followed(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "grid", tmp_path / "m")
    (tmp_path / "outside").write_bytes((tmp_path / "m" / "rows" / "0.0").read_bytes())
    (tmp_path / "m" / "rows" / "0.0").unlink()
    (tmp_path / "m" / "rows" / "0.0").symlink_to("../../outside")
    shutil.move(tmp_path / "m" / "both", tmp_path / "both")
    (tmp_path / "m" / "both").symlink_to("../both")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert not checkpoint.complete
        assert set(values(checkpoint)) == {"columns"}
        assert codes(checkpoint) == {"unread-tensor", "absent-tensor"}


def test_database_that_was_cut_off_is_refused(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "plain_tree", tmp_path / "m")
    (path,) = (tmp_path / "m" / "d").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        open_checkpoint(tmp_path / "m")


def write_array(folder: Path, stored: dict[str, bytes], **fields: Any) -> Path:
    folder.mkdir(parents=True)
    told = {"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "<f4", "compressor": None, "filters": None}
    told |= {"fill_value": 0, "order": "C", **fields}
    (folder / ".zarray").write_text(json.dumps(told))
    for key, raw in stored.items():
        (folder / key).write_bytes(raw)
    return folder


def test_large_chunk_is_unpacked_in_little_memory(tmp_path: Path) -> None:
    flat = np.random.default_rng(0).integers(0, 9, 6 << 20).astype(np.float32)
    write_array(
        tmp_path / "m",
        {"0": zlib.compress(flat.tobytes(), 1)},
        shape=[6 << 20],
        chunks=[6 << 20],
        compressor={"id": "zlib"},
    )
    tracemalloc.start()
    try:
        with open_checkpoint(tmp_path / "m") as checkpoint:
            [tensor] = checkpoint.tensors
            np.testing.assert_array_equal(tensor.read(5 << 20, (5 << 20) + 99), flat[5 << 20 :][:99])
            np.testing.assert_array_equal(tensor.read(7, 99), flat[7:99])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": [["a", "<f4"]]},
        {"dtype": "|O"},
        {"filters": [{"id": "delta"}]},
        {"compressor": {"id": "lz4"}},
        {"order": "A"},
        {"fill_value": "x"},
        {"dimension_separator": "\0"},
        {"zarr_format": 4},
    ],
)
def test_array_in_another_form_is_reported(fields: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / ".zgroup").write_text("{}")
    write_array(tmp_path / "a", {"0": bytes(16)}, **fields)
    write_array(tmp_path / "b", {"0": bytes(16)})
    with open_checkpoint(tmp_path) as checkpoint:
        assert not checkpoint.complete
        assert [tensor.name for tensor in checkpoint.tensors] == ["b"]
        assert [(f.code, f.tensor) for f in checkpoint.findings] == [("unread-tensor", "a")]


def opened_bytes(files: dict[str, bytes]) -> Opened:
    class Memory:
        """A folder of these files."""

        distant = False
        path = "memory"

        def __init__(self, prefix: str = "") -> None:
            self.prefix = prefix

        def file_names(self) -> list[str]:
            return sorted(name for name in self._below() if "/" not in name)

        def folder_names(self) -> list[str]:
            return sorted({name.partition("/")[0] for name in self._below() if "/" in name})

        def present(self, names: Iterable[str]) -> set[str]:
            return set(self.file_names()).intersection(names)

        def open(self, name: str) -> MemorySource:
            if self.prefix + name not in files:
                raise InputError("not there", path=name)
            return MemorySource(files[self.prefix + name], name)

        def sub(self, name: str) -> Memory:
            return Memory(f"{self.prefix}{name}/")

        def _below(self) -> list[str]:
            return [name.removeprefix(self.prefix) for name in files if name.startswith(self.prefix)]

    return Opened(Memory(), Catalogue("memory"))


@pytest.fixture(scope="module")
def plain_files(folders: Path) -> dict[str, bytes]:
    top = folders / "plain_tree"
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_database_leads_to_another_error(data: st.DataObject, plain_files: dict[str, bytes]) -> None:
    files = {}
    for name, whole in plain_files.items():
        raw = bytearray(whole)
        for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
            raw[place] = data.draw(st.integers(0, 255))
        files[name] = bytes(raw)
    try:
        database = Database(opened_bytes(files), Catalogue("d"))
        for key in database.names():
            database.get(key)
    except InputError:
        pass


ARRAY = {
    "zarr_format": 3, "node_type": "array", "shape": [4, 4], "data_type": "float32", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}, "codecs": [{"name": "bytes"}],
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.sampled_from(["name", "bytes", "transpose", "NaN", "c", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ARRAY, "name", "order"]), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(ARRAY)), JSON, max_size=2))
def test_no_metadata_lead_to_another_error(changes: dict[str, Any]) -> None:
    from fingerprint.readers.zarr import Arrays

    raw = json.dumps(ARRAY | changes).encode()
    files = {"zarr.json": raw, **{f"c/{row}/{column}": bytes(16) for row in "01" for column in "01"}}
    opened = opened_bytes(files)
    arrays = Arrays(opened, Catalogue("m"), "m", strict=False)
    try:
        view = arrays.open("zarr.json", "a")
        if view is not None:
            view.read(0, math.prod(view.shape))
    except InputError:
        pass


def test_too_many_chunks_are_refused(tmp_path: Path) -> None:
    write_array(tmp_path / "a", {}, shape=[2**40], chunks=[1])
    with pytest.raises(LimitExceededError, match="chunks"):
        open_checkpoint(tmp_path / "a")


class Elsewhere:
    """A store of files on another machine, which answers about chunks two at a time or not at all."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.pair = threading.Barrier(2)

    def listing(self, prefix: str) -> Listing:
        start = f"{prefix}/" if prefix else ""
        below = [name.removeprefix(start) for name in self.files if name.startswith(start)]
        if not below:
            raise InputNotFoundError("there is nothing", path=prefix)
        names = frozenset(name for name in below if "/" not in name)
        return Listing(names, frozenset(name.partition("/")[0] for name in below if "/" in name))

    def open(self, name: str) -> MemorySource:
        if not name.endswith(("zarr.json", ".zarray")):
            self.pair.wait(timeout=10)
        return MemorySource(self.files[name], name)

    def shown(self, name: str) -> str:
        return name


@pytest.mark.parametrize("separator", [".", "/"])
def test_chunks_that_are_elsewhere_are_opened_together(separator: str) -> None:
    told = {"zarr_format": 2, "shape": [3, 8], "chunks": [1, 2], "dtype": "<f4", "compressor": None, "fill_value": 2}
    told |= {"order": "C", "dimension_separator": separator}
    # The last row of chunks is not there.
    chunks = {f"a/{row}{separator}{column}": bytes(8) for row in range(2) for column in range(4)}
    store = Elsewhere({"a/.zarray": json.dumps(told).encode(), **chunks})
    transfer = Transfer(RemoteOptions())
    try:
        contents, files = open_zarr(RemoteFolder(store, transfer), Catalogue("m"))
        [tensor] = contents.tensors
        np.testing.assert_array_equal(tensor.read(0, 24), [0] * 16 + [2] * 8)
        assert {file.path for file in files} == {"a/.zarray", *chunks}
    finally:
        transfer.close()
