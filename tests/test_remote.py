"""What lies elsewhere: read as what lies here, and little of it."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import onnx
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import save_file

from benchmarks.virtual_hub.invented import Plain
from benchmarks.virtual_hub.server import VirtualHub
from fingerprint import open_checkpoint
from fingerprint.errors import (
    InputError,
    InputNotFoundError,
    UnsupportedFormatError,
    UsageError,
)
from fingerprint.remote import Location, RemoteOptions
from fingerprint.remote.pages import PAGE, RangedSource
from fingerprint.remote.transfer import PageCache, Transfer
from fingerprint.urls import is_remote
from signatures.keyed import make_key
from signatures.keyed_check import check_comparison
from signatures.options import ScanOptions
from signatures.registry import Registry
from signatures.scan import compare_paths, scan_path
from signatures.signature import sign
from tests.odd_server import Answer, OddServer, part_of
from tests.small_models import model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytest_plugins = ["tests.cli_fixtures"]

QUICKLY = RemoteOptions(allow_private=True, backoff=0.0, attempts=3, timeout=10.0, parallel=4)
DATA = np.random.default_rng(7).bytes(300_000)
NAME = "org/model"


# --- the same as here -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: shards with an index and a config; beside it single files of several formats."""
    top = tmp_path_factory.mktemp("repository")
    weights = model(1)
    names = list(weights)
    shards = {f"model-0000{n + 1}-of-00003.safetensors": names[n::3] for n in range(3)}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, top / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (top / "model.safetensors.index.json").write_text(json.dumps(index))
    (top / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    (top / "README.md").write_text("# A model")
    files = top / "files"
    files.mkdir()
    save_file(weights, files / "model.safetensors")
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, files / "model.bin")
    np.savez(files / "model.npz", **weights)
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(weights[n], n) for n in names[:4]])
    onnx.save(onnx.helper.make_model(graph), files / "model.onnx", save_as_external_data=True, location="data.bin")
    return top


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[VirtualHub]:
    files = {str(path.relative_to(folder)): Plain(path.name, path.read_bytes()) for path in folder.rglob("*.*")}
    with VirtualHub({NAME: files}) as served:
        yield served


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same in the memory of fsspec, under the name of a store whose package is not installed here."""

    class Store(MemoryFileSystem):
        protocol = "s3"
        store: dict[str, Any] = {}  # noqa: RUF012 - as fsspec has it
        pseudo_dirs: list[str] = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("s3://").strip("/")

    monkeypatch.setitem(fsspec.registry.target, "s3", Store) if hasattr(fsspec.registry, "target") else None
    fsspec.register_implementation("s3", Store, clobber=True)
    files = Store()
    for path in folder.rglob("*.*"):
        files.pipe_file(f"/bucket/models/{path.relative_to(folder)}", path.read_bytes())
    return "s3://bucket/models"


def at(url: str, **options: Any) -> Location:
    return Location(url, replace(QUICKLY, **options))


def same(found: Any, path: Path) -> None:
    """Both checkpoints have the same tensors, claims and findings."""
    with found as theirs, open_checkpoint(path) as ours:
        assert theirs.format == ours.format
        assert theirs.metadata == ours.metadata
        assert [f.code for f in theirs.findings] == [f.code for f in ours.findings]
        assert [(t.name, t.shape, t.dtype) for t in theirs.tensors] == [
            (t.name, t.shape, t.dtype) for t in ours.tensors
        ]
        for one, other in zip(theirs.tensors, ours.tensors, strict=True):
            count = int(np.prod(one.shape))
            assert np.array_equal(one.read(0, count), other.read(0, count))
        assert theirs.bytes == ours.bytes
        assert theirs.transfer.bytes > 0


FILES = ["model.safetensors", "model.bin", "model.npz", "model.onnx"]


class TestTheSameAsHere:
    def test_a_repository(self, hub: VirtualHub, folder: Path) -> None:
        same(open_checkpoint(at(f"hf://{NAME}", hub=hub.url)), folder)

    def test_a_page_of_the_hub(self, hub: VirtualHub, folder: Path) -> None:
        same(open_checkpoint(at(f"{hub.url}/{NAME}/tree/main", hub=hub.url)), folder)

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_of_a_repository(self, hub: VirtualHub, folder: Path, name: str) -> None:
        same(open_checkpoint(at(f"hf://{NAME}@v1/files/{name}", hub=hub.url)), folder / "files" / name)

    @pytest.mark.parametrize("name", ["model.safetensors.index.json", *(f"files/{name}" for name in FILES)])
    def test_a_file_of_a_web_server(self, hub: VirtualHub, folder: Path, name: str) -> None:
        same(open_checkpoint(at(f"{hub.url}/files/{NAME}/{name}?token=1")), folder / name)

    def test_a_prefix_of_a_bucket(self, bucket: str, folder: Path) -> None:
        same(open_checkpoint(bucket), folder)

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_of_a_bucket(self, bucket: str, folder: Path, name: str) -> None:
        same(open_checkpoint(f"{bucket}/files/{name}"), folder / "files" / name)

    def test_its_signature_does_not_tell_where_it_lay(self, hub: VirtualHub, folder: Path) -> None:
        from fingerprint.quick import quick_look

        with open_checkpoint(at(f"hf://{NAME}", hub=hub.url)) as theirs, open_checkpoint(folder) as ours:
            assert sign(quick_look(theirs).fingerprint).identity == sign(quick_look(ours).fingerprint).identity

    def test_lost_connections_change_nothing(self, hub: VirtualHub, folder: Path) -> None:
        with VirtualHub(hub.repositories, drops=0.3, seed=2) as flaky:
            found = open_checkpoint(at(f"hf://{NAME}", hub=flaky.url, attempts=12))
            same(found, folder)
        assert flaky.counts.dropped > 0
        assert found.transfer is not None
        assert found.transfer.retries > 0

    def test_absent_shards_are_noted(self, hub: VirtualHub) -> None:
        files = {path: file for path, file in hub.repositories[NAME].items() if "00002" not in path}
        with VirtualHub({NAME: files}) as partial:
            for url in (f"hf://{NAME}", f"{partial.url}/files/{NAME}/model.safetensors.index.json"):
                with open_checkpoint(at(url, hub=partial.url)) as found:
                    assert "absent-shard" in {finding.code for finding in found.findings}
                    assert not found.complete

    def test_only_the_beginning_of_a_large_file_is_fetched_to_open_it(self, tmp_path: Path) -> None:
        save_file({"w": np.zeros((1 << 10, 1 << 10), np.float32)}, tmp_path / "m.safetensors")
        data = (tmp_path / "m.safetensors").read_bytes()
        with OddServer(lambda asked: part_of(data, asked)) as server:
            with open_checkpoint(at(f"{server.url}/m.safetensors")) as found:
                assert found.bytes == len(data)
                assert found.transfer is not None
                assert found.transfer.bytes <= 1 << 16
            assert len(server.asked) == 1


# --- scans ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(hub: VirtualHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    from fingerprint.quick import quick_look

    with Registry.open(tmp_path_factory.mktemp("registry")) as opened:
        with open_checkpoint(at(f"hf://{NAME}", hub=hub.url)) as found:
            opened.register(sign(quick_look(found).fingerprint), name="acme/model")
        yield opened


class TestScans:
    @pytest.mark.parametrize("shard", [1, 2, 3])
    def test_any_shard_of_a_repository_is_found(self, hub: VirtualHub, registry: Registry, shard: int) -> None:
        url = f"hf://{NAME}/model-0000{shard}-of-00003.safetensors"
        report = scan_path(registry, at(url, hub=hub.url), options=ScanOptions(depth="quick"))
        (match,) = report.matches
        assert (match.model, match.relation, match.confidence) == ("acme/model", "partial", "certain")
        assert report.suspect.path == url

    def test_what_was_fetched_is_what_was_read(self, hub: VirtualHub, registry: Registry) -> None:
        before = hub.counts.sent
        report = scan_path(registry, at(f"hf://{NAME}", hub=hub.url), options=ScanOptions(depth="quick"))
        assert report.suspect.bytes_read == pytest.approx(hub.counts.sent - before, abs=4096)  # but for the API
        assert any("fetched in" in note for note in report.notes)

    @pytest.mark.parametrize(("most", "depth"), [(1 << 28, "deep"), (1000, "quick")])
    def test_auto_fetches_a_large_one_by_sample_alone(
        self, hub: VirtualHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, depth: str
    ) -> None:
        monkeypatch.setattr("signatures.suspect.AUTO_WHOLE", most)
        with Registry.open(tmp_path / "registry") as other:
            report = scan_path(other, at(f"hf://{NAME}", hub=hub.url))
        assert report.suspect.depth == depth

    def test_a_large_one_is_compared_by_sample_alone(
        self, hub: VirtualHub, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("signatures.suspect.AUTO_WHOLE", 1000)
        report = compare_paths(at(f"hf://{NAME}", hub=hub.url), folder / "files" / "model.bin")
        assert report.suspect.depth == "quick"
        assert report.matches[0].confidence == "certain"

    def test_a_key_does_not_fetch_a_large_one_whole(
        self, hub: VirtualHub, folder: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("signatures.keyed_check.AUTO_WHOLE", 1000)
        place, options = at(f"hf://{NAME}", hub=hub.url), ScanOptions(depth="quick")
        report = scan_path(registry, place, options=options)
        with pytest.raises(UsageError, match="--depth full"):
            check_comparison(report, folder / "files" / "model.bin", place, make_key(DATA[:32]))

    def test_a_server_that_fails_gives_a_report_of_an_error(self, registry: Registry) -> None:
        with OddServer(lambda _: Answer(500)) as server:
            report = scan_path(registry, at(f"{server.url}/m.safetensors"))
        assert report.verdict == "error"
        assert "status 500, 3 times in a row" in str(report.error)


class TestCommands:
    def test_private_addresses_need_an_option(self, hub: VirtualHub, fp: Callable[..., Any]) -> None:
        url = f"{hub.url}/files/{NAME}/files/model.safetensors"
        refused = fp("inspect", url)
        assert refused.status == 2
        assert "127.0.0.1 is at 127.0.0.1, which is not a public address" in refused.err
        assert "--allow-private" in refused.err
        assert fp("inspect", url, "--allow-private").status == 0
        assert fp("inspect", url, environment={"FP_ALLOW_PRIVATE": "1"}).status == 0
        assert fp("inspect", url, environment={"FP_INSPECT_ALLOW_PRIVATE": "1"}).status == 0

    def test_a_large_one_is_not_fetched_whole_by_accident(
        self, hub: VirtualHub, tmp_path: Path, fp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("signatures.suspect.AUTO_WHOLE", 1000)
        rest = (f"hf://{NAME}", "-o", tmp_path / "m.fpsig", "--allow-private")
        environment = {"FP_HF_ENDPOINT": hub.url}
        refused = fp("sketch", *rest, environment=environment)
        assert refused.status == 2
        assert "--depth quick" in refused.err
        (tmp_path / "key").write_bytes(DATA[:32])
        keyed = fp("sketch", *rest, "--key", tmp_path / "key", environment=environment)
        assert (keyed.status, "leave out --key" in keyed.err) == (2, True)
        contrary = fp("sketch", *rest, "--depth", "quick", "--key", tmp_path / "key", environment=environment)
        assert (contrary.status, "leave out --depth quick" in contrary.err) == (2, True)
        made = fp("sketch", *rest, "--depth", "quick", environment=environment)
        assert made.status == 0
        assert "fetched in" in made.err
        assert fp("show", tmp_path / "m.fpsig").status in {0, 2}

    @pytest.mark.parametrize("variable", ["FP_ALLOW_PRIVATE", "FP_REMOTE_TIMEOUT"])
    def test_an_environment_that_makes_no_sense_is_an_error(self, fp: Callable[..., Any], variable: str) -> None:
        assert variable in fp("inspect", "https://example.org/x", environment={variable: "perhaps"}).err


# --- URLs -------------------------------------------------------------------------------------------------------------


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "name", "revision", "path"),
        [
            ("hf://a/b", "a/b", "main", ""),
            ("hf://a/b/", "a/b", "main", ""),
            ("hf://a/b@v1.0", "a/b", "v1.0", ""),
            ("hf://a/b@feature%2Fx/c/d.bin", "a/b", "feature/x", "c/d.bin"),
            ("hf://a/b@refs/pr/3", "a/b", "refs/pr/3", ""),
            ("hf://a/b@refs/pr/3/c.bin", "a/b", "refs/pr/3", "c.bin"),
        ],
    )
    def test_repositories(self, url: str, name: str, revision: str, path: str) -> None:
        from fingerprint.remote.hub import Repository

        assert Repository.parse(url) == Repository(name, revision, path)

    @pytest.mark.parametrize(
        "url",
        [
            "hf://",
            "hf://a",
            "hf://a/",
            "hf:///b",
            "hf://a/b@",
            "hf://datasets/a/b",
            "hf://../b",
            "hf://a/b/../c",
            "hf://a/b//c",
        ],
    )
    def test_no_repositories(self, url: str) -> None:
        with pytest.raises(InputError):
            open_checkpoint(at(url))

    @pytest.mark.parametrize("url", ["ftp://a/b", "file:///etc/passwd", "simplecache::s3://a/b", "memory://a/b"])
    def test_other_schemes(self, url: str) -> None:
        with pytest.raises((UnsupportedFormatError, InputNotFoundError)):
            open_checkpoint(url)

    @pytest.mark.parametrize("url", ["https://example.org", "https://example.org/", "https://example.org/models/?x=1"])
    def test_folders_of_web_servers(self, url: str) -> None:
        with pytest.raises(UnsupportedFormatError, match="does not list"):
            open_checkpoint(url)

    @pytest.mark.parametrize("path", ["a:b", "C:/models/x", "C:\\x", "models/a://b", "://x", "-", "."])
    def test_paths_of_this_machine(self, path: str) -> None:
        assert not is_remote(path)

    @pytest.mark.parametrize(
        ("url", "package", "extra"),
        [("s3://a/b", "s3fs", "s3"), ("gs://a/b", "gcsfs", "gs"), ("https://example.org/x.bin", "urllib3", "remote")],
    )
    def test_a_package_that_is_absent_is_named(
        self, monkeypatch: pytest.MonkeyPatch, url: str, package: str, extra: str
    ) -> None:
        for name in list(sys.modules):
            if name in {"fingerprint.remote.session", "fingerprint.remote.connections"}:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setattr(fsspec, "filesystem", _absent) if package != "urllib3" else None
        with pytest.raises(InputError, match=rf"{package}.*weightprint\[{extra}\]"):
            open_checkpoint(url)

    def test_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("HF_ENDPOINT", "https://a/"), ("HF_TOKEN", "t"), ("FP_REMOTE_TIMEOUT", "2.5")):
            monkeypatch.setenv(name, value)
        found = RemoteOptions.from_environment()
        assert (found.hub, found.token, found.timeout, found.allow_private) == ("https://a", "t", 2.5, False)
        monkeypatch.setenv("FP_HF_ENDPOINT", "https://b")
        assert RemoteOptions.from_environment().hub == "https://b"
        monkeypatch.setenv("FP_DOWNLOAD", "perhaps")
        with pytest.raises(UsageError, match="FP_DOWNLOAD"):
            RemoteOptions.from_environment()


def _absent(*_: object, **__: object) -> None:
    raise ImportError("Install it")


# --- pages ------------------------------------------------------------------------------------------------------------


class TestPages:
    @pytest.fixture
    def transfer(self) -> Iterator[Transfer]:
        made = Transfer(QUICKLY)
        yield made
        made.close()

    def test_small_steps_fetch_ahead(self, transfer: Transfer) -> None:
        fetched: list[tuple[int, int]] = []

        def fetch(offset: int, length: int) -> bytes:
            fetched.append((offset, length))
            return DATA[offset : offset + length]

        source = RangedSource("f", len(DATA), fetch, transfer)
        read = b"".join(bytes(source.read(at, min(100, len(DATA) - at))) for at in range(0, len(DATA), 100))
        assert read == DATA
        assert len(fetched) < 10
        assert sum(length for _, length in fetched) == len(DATA)

    def test_single_rows_fetch_little_more_than_themselves(self, transfer: Transfer) -> None:
        lengths: list[int] = []

        def fetch(offset: int, length: int) -> bytes:
            lengths.append(length)
            return bytes(length)

        source = RangedSource("f", 1 << 30, fetch, transfer)
        for row in (5, 77, 9000, 4):
            source.read(1 << 20 | row * 7000, 7000)
        assert max(lengths) <= 7000 + 2 * PAGE

    def test_two_threads_fetch_a_page_once(self, transfer: Transfer) -> None:
        both, calls = threading.Barrier(2), []

        def fetch(offset: int, length: int) -> bytes:
            calls.append(offset)
            return DATA[offset : offset + length]

        source = RangedSource("f", len(DATA), fetch, transfer)
        got: list[bytes] = []

        def read() -> None:
            both.wait()
            got.append(bytes(source.read(200_000, 50)))

        threads = [threading.Thread(target=read) for _ in range(2)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert got == [DATA[200_000:200_050]] * 2
        assert len(calls) == 1

    def test_an_error_reaches_all_who_wait_and_is_not_kept(self, transfer: Transfer) -> None:
        answers: list[Any] = [InputError("no"), DATA[:PAGE]]

        def fetch(*_: int) -> bytes:
            one = answers.pop(0)
            if isinstance(one, Exception):
                raise one
            return bytes(one)

        source = RangedSource("f", PAGE, fetch, transfer)
        with pytest.raises(InputError, match="no"):
            source.read(0, 9)
        assert bytes(source.read(0, 9)) == DATA[:9]

    def test_the_cache_is_bounded(self) -> None:
        cache = PageCache(100)
        for page in range(20):
            cache.put(1, page, bytes(10))
            cache.get(1, 0)
        assert sum(cache.get(1, page) is not None for page in range(20)) == 10
        assert cache.get(1, 0) is not None

    def test_nothing_is_read_after_the_end(self, transfer: Transfer) -> None:
        source = RangedSource("f", 10, lambda *_: bytes(10), transfer)
        transfer.close()
        with pytest.raises(InputError, match="closed"):
            source.read(0, 5)
