"""Distributed checkpoints: what torch.distributed.checkpoint writes, in one process and in four."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.dtypes import F32, to_float32
from fingerprint.errors import InputError
from fingerprint.readers.base import StoredTensor
from fingerprint.readers.chunked import Chunk, Chunked
from fingerprint.readers.distributed import _overlap
from fingerprint.source import MemorySource
from tests.hostile import CANARY

if TYPE_CHECKING:
    from pathlib import Path

FOUR = """
import os, sys, warnings
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
warnings.simplefilter("ignore")
folder = sys.argv[1]
rank = 0
for other in (1, 2, 3):
    if os.fork() == 0:
        rank = other
        break
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
whole = torch.arange(7 * 10, dtype=torch.float32).reshape(7, 10)
cube = torch.arange(4 * 6 * 5, dtype=torch.bfloat16).reshape(4, 6, 5)
state = {
    "rows": distribute_tensor(whole, mesh["a"], [Shard(0)]),
    "columns": distribute_tensor(whole + 1000, mesh["a"], [Shard(1)]),
    "both": distribute_tensor(whole + 2000, mesh, [Shard(0), Shard(1)]),
    "middle": distribute_tensor(cube, mesh, [Shard(1), Replicate()]),
    "plain": whole + 3000,
    "step": 7,
}
dcp.save({"model": state}, checkpoint_id=f"{folder}/checkpoint")
dist.destroy_process_group()
if rank == 0:
    sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3)))
"""
"""One program that splits into four before torch starts threads: importing torch takes seconds."""


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-c", FOUR, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module and its optimiser, saved by one process."""
    folder = tmp_path_factory.mktemp("one") / "checkpoint"
    net = module()
    optimiser = torch.optim.AdamW(net.parameters())
    net(torch.ones(3)).sum().backward()
    optimiser.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": module().state_dict(), "anything": optimiser.state_dict(), "epoch": 3}, checkpoint_id=folder)
    return folder


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2).half().float())


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {t.name: to_float32(t.read(0, math.prod(t.shape))).reshape(t.shape) for t in checkpoint.tensors}


def codes(checkpoint: Checkpoint) -> set[str]:
    return {finding.code for finding in checkpoint.findings}


WHOLE = np.arange(70, dtype=np.float32).reshape(7, 10)
WANTED = {
    "rows": WHOLE,
    "columns": WHOLE + 1000,
    "both": WHOLE + 2000,
    "middle": np.arange(120, dtype=np.float32).reshape(4, 6, 5),
    "plain": WHOLE + 3000,
}


def test_tensors_of_four_processes_are_put_together(four: Path) -> None:
    assert len(list(four.glob("*.distcp"))) == 4
    with open_checkpoint(four) as checkpoint:
        assert checkpoint.format == "pytorch-distributed"
        assert checkpoint.complete
        assert checkpoint.findings == ()
        assert len(checkpoint.files) == 4
        found = values(checkpoint)
        assert set(found) == set(WANTED)
        for name, wanted in WANTED.items():
            np.testing.assert_array_equal(found[name], wanted)


def test_any_range_of_a_chunked_tensor(four: Path) -> None:
    with open_checkpoint(four) as checkpoint:
        for tensor in checkpoint.tensors:
            wanted = WANTED[tensor.name].reshape(-1)
            for start in range(0, wanted.size + 1, 3):
                for stop in range(start, wanted.size + 1, 4):
                    np.testing.assert_array_equal(to_float32(tensor.read(start, stop)), wanted[start:stop])
            with pytest.raises(IndexError):
                tensor.read(0, wanted.size + 1)


def test_module_is_read_and_its_optimiser_set_aside(one: Path) -> None:
    with open_checkpoint(one) as checkpoint:
        wanted = module().state_dict()
        assert checkpoint.complete
        assert codes(checkpoint) == {"optimiser-state"}
        found = values(checkpoint)
        assert set(found) == set(wanted)
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(found[name], tensor.numpy())


def test_absent_file_is_named(four: Path, tmp_path: Path) -> None:
    shutil.copytree(four, tmp_path / "m")
    (tmp_path / "m" / "__3_0.distcp").unlink()
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert not checkpoint.complete
        assert codes(checkpoint) == {"absent-shard"}
        assert "both" not in values(checkpoint)


def test_file_that_was_cut_off_is_read_as_far_as_it_goes(one: Path, tmp_path: Path) -> None:
    shutil.copytree(one, tmp_path / "m")
    path = tmp_path / "m" / "__0_0.distcp"
    raw = path.read_bytes()
    places = [info for index, info in metadata(one).storage_data.items() if index.fqn.startswith("model.")]
    path.write_bytes(raw[: sorted(place.offset + place.length for place in places)[1]])
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert not checkpoint.complete
        assert "truncated" in codes(checkpoint)
        assert len(checkpoint.tensors) == 2


def test_archive_of_one_is_read(four: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar", "w") as file:
        file.add(four, "m/checkpoint")
    with open_checkpoint(tmp_path / "m.tar") as checkpoint:
        assert set(values(checkpoint)) == set(WANTED)


def metadata(folder: Path) -> Any:
    return dcp.FileSystemReader(folder).read_metadata()


def rewritten(one: Path, folder: Path, change: Any) -> Path:
    """The checkpoint with changed metadata."""
    shutil.copytree(one, folder)
    found = metadata(one)
    change(found)
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    return folder


def _first(found: Any) -> Any:
    return next(info for index, info in found.storage_data.items() if index.fqn == "model.0.weight")


def _path(found: Any) -> None:
    _first(found).relative_path = "../../etc/passwd"


def _negative(found: Any) -> None:
    _first(found).offset = -5


def _huge(found: Any) -> None:
    found.state_dict_metadata["model.0.weight"].chunks[0].sizes = torch.Size([2**31, 2**31])


def _missing(found: Any) -> None:
    found.state_dict_metadata = None


@pytest.mark.parametrize("change", [_path, _negative, _huge, _missing])
def test_hostile_metadata_is_refused(change: Any, one: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_checkpoint(rewritten(one, tmp_path / "m", change))


def _elsewhere(found: Any) -> None:
    _first(found).offset = 10


def test_chunk_that_is_no_file_of_torch_is_refused(one: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.0\.weight"):
        open_checkpoint(rewritten(one, tmp_path / "m", _elsewhere))


def _other(found: Any) -> None:
    found.state_dict_metadata["model.0.weight"].size = torch.Size([4, 4])


def _smaller(found: Any) -> None:
    found.state_dict_metadata["model.0.weight"].size = torch.Size([3, 4])
    found.state_dict_metadata["model.0.weight"].chunks[0].sizes = torch.Size([3, 4])


def _twice(found: Any) -> None:
    found.state_dict_metadata["model.0.weight"].chunks *= 2
    found.state_dict_metadata["model.0.weight"].size = torch.Size([8, 3])


@pytest.mark.parametrize("change", [_other, _smaller, _twice])
def test_chunks_that_do_not_make_up_a_tensor_are_reported(change: Any, one: Path, tmp_path: Path) -> None:
    with open_checkpoint(rewritten(one, tmp_path / "m", change)) as checkpoint:
        assert not checkpoint.complete
        assert [f.tensor for f in checkpoint.findings if f.code == "unread-tensor"] == ["model.0.weight"]
        assert len(checkpoint.tensors) == 3


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path / CANARY}'",)


def test_metadata_executes_nothing(one: Path, tmp_path: Path) -> None:
    def change(found: Any) -> None:
        found.planner_data = Evil(tmp_path)

    with open_checkpoint(rewritten(one, tmp_path / "m", change)) as checkpoint:
        assert "unknown-global" in codes(checkpoint)
    assert not (tmp_path / CANARY).exists()


def test_overlapping_boxes_are_seen() -> None:
    grid = [((r * 2, c * 3), (2, 3)) for r in range(12) for c in range(12)]
    assert not _overlap(grid)
    assert not _overlap(grid[:30])
    assert _overlap([*grid, ((1, 1), (1, 1))])
    assert _overlap([*grid[:5], grid[0]])


def test_rows_of_chunks_are_read_in_place() -> None:
    data = np.arange(24, dtype=np.float32)
    parts = [StoredTensor("w", F32, (4, 3), MemorySource(data[n * 12 :].tobytes()), 0) for n in range(2)]
    view = Chunked("w", (4, 6), (Chunk((0, 0), parts[0]), Chunk((0, 3), parts[1])))
    wanted = np.hstack([data[:12].reshape(4, 3), data[12:].reshape(4, 3)]).reshape(-1)
    for start in range(25):
        for stop in range(start, 25):
            np.testing.assert_array_equal(view.read(start, stop), wanted[start:stop])
