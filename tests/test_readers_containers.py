"""Archives: what zip, tar and the compressors of the standard library and zstandard write."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import zstandard
from safetensors.numpy import save_file

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.errors import InputError, LimitExceededError, UnsupportedFormatError
from fingerprint.readers.containers import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARRAYS = {f"layer.{n}.weight": np.random.default_rng(n).normal(size=(40, 30)).astype(np.float32) for n in range(4)}


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {t.name: t.read(0, math.prod(t.shape)).reshape(t.shape) for t in checkpoint.tensors}


def check(checkpoint: Checkpoint, wanted: dict[str, np.ndarray] = ARRAYS) -> None:
    found = values(checkpoint)
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def codes(checkpoint: Checkpoint) -> set[str]:
    return {finding.code for finding in checkpoint.findings}


def model(folder: Path) -> Path:
    """A folder with two shards, an index and a config."""
    folder.mkdir(parents=True)
    names = list(ARRAYS)
    parts = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, part in parts.items():
        save_file({name: ARRAYS[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"hidden_size": 30}')
    (folder / "README.md").write_text("hello")
    return folder


def zipped(source: Path, target: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", method) as file:
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            file.write(path, path.relative_to(source.parent))
    return target


def deflated(source: Path, target: Path) -> Path:
    return zipped(source, target, zipfile.ZIP_DEFLATED)


def tarred(source: Path, target: Path, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(target, mode, format=form) as file:  # type: ignore[call-overload] # modes are literals
        file.add(source, source.name)
    return target


def zstd(source: Path, target: Path) -> Path:
    plain = tarred(source, target.with_suffix(".plain")).read_bytes()
    target.write_bytes(zstandard.ZstdCompressor().compress(plain))
    return target


WRITERS: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "zip": ("zip", zipped),
    "deflated.zip": ("zip", deflated),
    "tar": ("tar", tarred),
    "gnu.tar": ("tar", lambda source, target: tarred(source, target, "w", tarfile.GNU_FORMAT)),
    "ustar.tar": ("tar", lambda source, target: tarred(source, target, "w", tarfile.USTAR_FORMAT)),
    "tar.gz": ("tar.gz", lambda source, target: tarred(source, target, "w:gz")),
    "tgz": ("tar.gz", lambda source, target: tarred(source, target, "w:gz")),
    "tar.bz2": ("tar.bz2", lambda source, target: tarred(source, target, "w:bz2")),
    "tar.xz": ("tar.xz", lambda source, target: tarred(source, target, "w:xz")),
    "tar.zst": ("tar.zst", zstd),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_folder_in_an_archive_is_a_folder(suffix: str, tmp_path: Path) -> None:
    kind, write = WRITERS[suffix]
    path = write(model(tmp_path / "org" / "model"), tmp_path / f"model.{suffix}")
    before = sorted(tmp_path.iterdir())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == f"safetensors in {kind}"
        assert checkpoint.complete
        assert checkpoint.findings == ()
        assert checkpoint.metadata["config.hidden_size"] == "30"
        assert [(file.path, file.bytes) for file in checkpoint.files] == [(str(path), path.stat().st_size)]
        check(checkpoint)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_name_of_the_archive_does_not_matter(suffix: str, tmp_path: Path) -> None:
    path = WRITERS[suffix][1](model(tmp_path / "model"), tmp_path / "weights.dat")
    with open_checkpoint(path) as checkpoint:
        check(checkpoint)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_one_compressed_file_is_that_file(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "m.safetensors")
    (tmp_path / "model.safetensors.packed").write_bytes(pack((tmp_path / "m.safetensors").read_bytes()))
    with open_checkpoint(tmp_path / "model.safetensors.packed") as checkpoint:
        assert checkpoint.format.startswith("safetensors in ")
        check(checkpoint)


def test_streams_one_after_the_other_are_one(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "m.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    for pack in (gzip.compress, bz2.compress, lzma.compress, zstandard.compress):
        (tmp_path / "model.gz").write_bytes(pack(raw[:7000]) + pack(raw[7000:]))
        with open_checkpoint(tmp_path / "model.gz") as checkpoint:
            check(checkpoint)


def test_file_of_torch_in_an_archive_in_an_archive(tmp_path: Path) -> None:
    torch.save({name: torch.from_numpy(array) for name, array in ARRAYS.items()}, tmp_path / "model.pt")
    inner = tarred(tmp_path / "model.pt", tmp_path / "inner.tar.gz", "w:gz")
    with open_checkpoint(zipped(inner, tmp_path / "outer.zip")) as checkpoint:
        assert checkpoint.format == "pytorch in tar.gz in zip"
        check(checkpoint)


def test_archives_inside_one_another_come_to_an_end(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "m.safetensors")
    path = tmp_path / "m.safetensors"
    for depth in range(MAX_DEPTH + 1):
        path = zipped(path, tmp_path / f"{depth}.zip")
        if depth < MAX_DEPTH:
            with open_checkpoint(path) as checkpoint:
                check(checkpoint)
    with pytest.raises(LimitExceededError, match="inside one another"):
        open_checkpoint(path)


def test_archive_that_holds_itself_comes_to_an_end(tmp_path: Path) -> None:
    raw = b""
    for _ in range(50):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("r/r.zip", raw)
        raw = buffer.getvalue()
    (tmp_path / "r.zip").write_bytes(raw)
    with pytest.raises(LimitExceededError):
        open_checkpoint(tmp_path / "r.zip")


def test_cache_in_an_archive_keeps_its_links(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "0f1e2d"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    save_file(ARRAYS, cache / "blobs" / "abcd")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abcd")
    with open_checkpoint(tarred(cache, tmp_path / "cache.tar")) as checkpoint:
        assert checkpoint.findings == ()
        check(checkpoint)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", "absent", "model.safetensors"])
def test_links_out_of_an_archive_are_not_followed(target: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    (folder / "extra.safetensors").symlink_to(target if target != "model.safetensors" else "extra.safetensors")
    with open_checkpoint(tarred(folder, tmp_path / "model.tar")) as checkpoint:
        assert "archive-link" in codes(checkpoint)
        check(checkpoint)


def test_archive_of_a_system_program_is_read(tmp_path: Path) -> None:
    model(tmp_path / ("long" * 30) / ("name" * 30))
    subprocess.run(["tar", "-czf", "model.tgz", "long" * 30], cwd=tmp_path, check=True)
    with open_checkpoint(tmp_path / "model.tgz") as checkpoint:
        check(checkpoint)


def test_several_folders_are_components(tmp_path: Path) -> None:
    save_file({"w": np.zeros(3, np.float32)}, _made(tmp_path / "m" / "a") / "model.safetensors")
    save_file({"w": np.ones(3, np.float32)}, _made(tmp_path / "m" / "b" / "c") / "model.safetensors")
    with open_checkpoint(tarred(tmp_path / "m", tmp_path / "m.tar")) as checkpoint:
        assert {name: array[0] for name, array in values(checkpoint).items()} == {"a.w": 0.0, "b.c.w": 1.0}
        assert codes(checkpoint) == {"component"}


def test_folders_below_the_checkpoint_are_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    save_file({"w": np.zeros(3, np.float32)}, _made(folder / "onnx") / "other.safetensors")
    with open_checkpoint(tarred(folder, tmp_path / "m.tar")) as checkpoint:
        assert codes(checkpoint) == {"unread-folder"}
        check(checkpoint)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_tar_of_the_oldest_torch_is_named(tmp_path: Path) -> None:
    folder = _made(tmp_path / "m")
    for name in ("sys_info", "pickle", "storages", "tensors"):
        (folder / name).write_bytes(b"x")
    with tarfile.open(tmp_path / "model.pth", "w") as file:
        for path in folder.iterdir():
            file.add(path, path.name)
    with pytest.raises(UnsupportedFormatError, match=r"0\.1\.10"):
        open_checkpoint(tmp_path / "model.pth")


def test_empty_archives_and_archives_of_something_else(tmp_path: Path) -> None:
    folder = _made(tmp_path / "m")
    (folder / "README.md").write_text("hello")
    for write in (zipped, tarred):
        with pytest.raises(InputError):
            open_checkpoint(write(folder, tmp_path / "m.archive"))


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "deflated.zip"])
def test_archive_that_was_cut_off_is_read_as_far_as_it_goes(suffix: str, tmp_path: Path) -> None:
    raw = WRITERS[suffix][1](model(tmp_path / "model"), tmp_path / f"m.{suffix}").read_bytes()
    most = 0
    for end in range(len(raw) // 3, len(raw) - 30, len(raw) // 15):
        (tmp_path / "cut").write_bytes(raw[:end])
        try:
            with open_checkpoint(tmp_path / "cut") as checkpoint:
                # The end of a tar is followed by more zeros, which are not missed.
                assert not checkpoint.complete or (suffix == "tar" and len(checkpoint.tensors) == len(ARRAYS))
                for name, array in values(checkpoint).items():
                    np.testing.assert_array_equal(array, ARRAYS[name])
                most = max(most, len(checkpoint.tensors))
        except InputError:
            continue
    assert most >= 1


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_bomb_is_refused(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "bomb.tar.gz").write_bytes(pack(bytes(100_000_000)))
    with pytest.raises(LimitExceededError, match="unpack"):
        open_checkpoint(tmp_path / "bomb.tar.gz")


def test_bomb_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/model.safetensors", bytes(100_000_000))
    with pytest.raises(LimitExceededError, match="unpack"):
        open_checkpoint(tmp_path / "bomb.zip")


def test_large_window_of_xz_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20}]
    (tmp_path / "m.xz").write_bytes(lzma.compress(b"x" * 100, filters=filters))
    with pytest.raises(InputError):
        open_checkpoint(tmp_path / "m.xz")


def test_extra_is_named_where_zstandard_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.zst").write_bytes(zstandard.compress(b"x"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UnsupportedFormatError, match=r"weightprint\[zstd\]"):
        open_checkpoint(tmp_path / "m.zst")


def test_temporary_folder_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = WRITERS["tar.gz"][1](model(tmp_path / "model"), tmp_path / "m.tar.gz")
    temporary = _made(tmp_path / "temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with open_checkpoint(path) as checkpoint:
        check(checkpoint)
        assert list(temporary.iterdir()) == []
