"""Checkpoints of several files: folders, indexes, caches, links, and what configs claim."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.errors import InputError, InputNotFoundError
from fingerprint.readers import base, folder, index, pickles, places, safetensors, torch_views, torch_zip, zips
from fingerprint.readers.base import MAX_FINDINGS, Finding, bounded
from fingerprint.readers.index import is_plain_name

ARRAYS = {name: np.full((2, 3), number, np.float32) for number, name in enumerate("abcd")}


def read_all(checkpoint: Checkpoint) -> dict[str, float]:
    return {tensor.name: float(tensor.read(0, 1)[0]) for tensor in checkpoint.tensors}


def shards(folder: Path, index: dict[str, str] | None = None) -> Path:
    """Four tensors in two shards, with an index."""
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({name: ARRAYS[name] for name in "ab"}, folder / one)
    save_file({name: ARRAYS[name] for name in "cd"}, folder / two)
    weight_map = {"a": one, "b": one, "c": two, "d": two} if index is None else index
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def cache(folder: Path) -> Path:
    """A repository in a Hugging Face cache, with links into its blobs; gives the snapshot."""
    shards(folder)
    repository = folder / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "0f1e2d"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
        file.rename(repository / "blobs" / f"{number:064}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064}")
    return snapshot


ALL = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}


def test_indexed_folder_is_one_checkpoint(tmp_path: Path) -> None:
    with open_checkpoint(shards(tmp_path)) as checkpoint:
        assert read_all(checkpoint) == ALL
        assert checkpoint.complete
        assert checkpoint.findings == ()
        assert checkpoint.path == str(tmp_path)
        assert [file.path for file in checkpoint.files] == sorted(p.name for p in tmp_path.glob("*.safetensors"))
        assert checkpoint.dtypes == {"F32": 24}


def test_index_itself_is_a_path(tmp_path: Path) -> None:
    with open_checkpoint(shards(tmp_path) / "model.safetensors.index.json") as checkpoint:
        assert read_all(checkpoint) == ALL


def test_index_in_the_present_folder_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    with open_checkpoint("model.safetensors.index.json") as checkpoint:
        assert read_all(checkpoint) == ALL
    with open_checkpoint(".") as checkpoint:
        assert read_all(checkpoint) == ALL


def test_folder_without_an_index_is_all_its_files(tmp_path: Path) -> None:
    (shards(tmp_path) / "model.safetensors.index.json").unlink()
    with open_checkpoint(tmp_path) as checkpoint:
        assert read_all(checkpoint) == ALL
        assert checkpoint.complete


def test_file_of_a_folder_need_not_have_the_usual_suffix(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "weights")
    (tmp_path / "README.md").write_text("{ not a checkpoint }")
    with open_checkpoint(tmp_path) as checkpoint:
        assert read_all(checkpoint) == ALL
        assert checkpoint.findings == ()


def test_absent_shard_is_named_with_its_number_of_tensors(tmp_path: Path) -> None:
    (shards(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with open_checkpoint(tmp_path) as checkpoint:
        assert read_all(checkpoint) == {"a": 0.0, "b": 1.0}
        assert not checkpoint.complete
        [shard, tensors] = checkpoint.findings
        assert (shard.code, tensors.code) == ("absent-shard", "absent-tensor")
        assert "'model-00002-of-00002.safetensors'" in shard.message
        assert "2 tensors" in shard.message


def test_index_decides_between_two_places(tmp_path: Path) -> None:
    shards(tmp_path)
    save_file({"a": ARRAYS["d"], "c": ARRAYS["c"], "d": ARRAYS["d"]}, tmp_path / "model-00002-of-00002.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert read_all(checkpoint) == ALL
        assert [finding.code for finding in checkpoint.findings] == ["duplicate-tensor"]
        assert checkpoint.complete


def test_safetensors_come_before_pytorch(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "safetensors"
        assert read_all(checkpoint) == ALL
        [finding] = checkpoint.findings
        assert finding.code == "other-format"
        assert "pytorch_model.bin" in finding.message


def test_snapshot_of_a_cache_is_followed_to_its_blobs(tmp_path: Path) -> None:
    snapshot = cache(tmp_path)
    for path in (snapshot, snapshot / "model.safetensors.index.json"):
        with open_checkpoint(path) as checkpoint:
            assert read_all(checkpoint) == ALL
    with open_checkpoint(snapshot / "model-00001-of-00002.safetensors") as checkpoint:
        assert read_all(checkpoint) == {"a": 0.0, "b": 1.0}


def test_snapshot_through_a_link_is_the_same_snapshot(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(cache(tmp_path))
    with open_checkpoint(tmp_path / "elsewhere") as checkpoint:
        assert read_all(checkpoint) == ALL


def test_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    save_file(ARRAYS, tmp_path / "sub" / "real")
    (tmp_path / "model.safetensors").symlink_to("sub/real")
    with open_checkpoint(tmp_path) as checkpoint:
        assert read_all(checkpoint) == ALL


def test_given_path_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    save_file(ARRAYS, tmp_path / "a" / "real")
    (tmp_path / "b" / "link").symlink_to("../a/real")
    with open_checkpoint(tmp_path / "b" / "link") as checkpoint:
        assert read_all(checkpoint) == ALL


def test_blobs_of_no_snapshot_are_outside(tmp_path: Path) -> None:
    snapshot = cache(tmp_path)
    other = snapshot.parent.parent / "elsewhere" / "0f1e2d"
    shutil.copytree(snapshot, other, symlinks=True)
    with pytest.raises(InputError):
        open_checkpoint(other)


def test_config_and_metadata_are_claims(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"format": "np"})
    config = {"model_type": "llama", "hidden_size": 64, "tie": True, "rope": {"theta": 1}, "long": "x" * 10_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_checkpoint(tmp_path) as checkpoint:
        claims = checkpoint.metadata
        assert claims["format"] == "np"
        assert claims["config.model_type"] == "llama"
        assert claims["config.hidden_size"] == "64"
        assert "config.rope" not in claims
        assert len(claims["config.long"]) < 5_000
        with pytest.raises(TypeError):
            claims["format"] = "other"  # type: ignore[index] # that is what is tested


def test_broken_config_is_no_obstacle(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with open_checkpoint(tmp_path) as checkpoint:
        assert read_all(checkpoint) == ALL
        assert dict(checkpoint.metadata) == {}


def test_order_of_shards_and_files_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    shards(tmp_path / "one")
    save_file(dict(reversed(ARRAYS.items())), tmp_path / "two" / "model.safetensors")
    with open_checkpoint(tmp_path / "one") as one, open_checkpoint(tmp_path / "two") as two:
        assert read_all(one) == read_all(two)
        assert one.parameters == two.parameters


def test_many_shards_need_few_descriptors(tmp_path: Path) -> None:
    for number in range(200):
        save_file({f"t{number}": np.full(3, number, np.float32)}, tmp_path / f"{number}.safetensors")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    with open_checkpoint(tmp_path) as checkpoint:
        assert read_all(checkpoint) == {f"t{number}": float(number) for number in range(200)}
        if descriptors.exists():
            assert len(list(descriptors.iterdir())) - before < 100
    if descriptors.exists():
        assert len(list(descriptors.iterdir())) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_folder_without_permission_is_one_error(tmp_path: Path) -> None:
    shards(tmp_path)
    tmp_path.chmod(0)
    try:
        with pytest.raises(InputError, match="permission"):
            open_checkpoint(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_nothing_at_the_path_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        open_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("name", ["a.safetensors", "model-00001-of-00002.safetensors", "ümlaut", "a b", "..."])
def test_plain_names_are_accepted(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "C:a", "a\0", "a\nb", "x" * 256])
def test_paths_are_not_plain_names(name: str) -> None:
    assert not is_plain_name(name)


def test_findings_of_one_code_are_bounded() -> None:
    findings = [Finding("a", str(n)) for n in range(1_000)] + [Finding("b", "one")]
    kept = bounded(findings)
    assert len([f for f in kept if f.code == "a"]) == MAX_FINDINGS + 1
    assert kept[-1] == Finding("a", f"{1_000 - MAX_FINDINGS} more of this kind")
    assert Finding("b", "one") in kept


def test_every_finding_is_documented() -> None:
    root = Path(__file__).parent.parent
    sources = [*(root / "fingerprint" / "readers").glob("*.py"), root / "fingerprint" / "checkpoint.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    codes = set(re.findall(r'(?<!decode)\("([a-z]+(?:-[a-z]+)+)",', text))
    documented = (root / "docs" / "formats.md").read_text(encoding="utf-8")
    assert len(codes) >= 20
    assert [code for code in sorted(codes) if f"`{code}`" not in documented] == []


def test_every_limit_is_documented_as_it_is() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
    limits = [
        safetensors.MAX_HEADER, base.MAX_TENSORS, base.MAX_NAME, folder.MAX_SHARDS, places.MAX_ENTRIES,
        pickles.MAX_OPCODES, zips.MAX_ENTRIES,
    ]  # fmt: skip
    assert [limit for limit in limits if f"{limit:,}" not in documented] == []
    sizes = [base.MAX_CATALOGUE, index.MAX_INDEX, torch_zip.MAX_PICKLE, pickles.MAX_MEMORY, zips.MAX_DIRECTORY]
    assert [size for size in sizes if f"{size >> 20} MiB" not in documented] == []
    assert f"| {torch_views.MAX_SHARING} times the file |" in documented
