"""What lies elsewhere: read as what lies here, a few bytes of it, from servers that fail in every way they can."""

from __future__ import annotations

import json
import socket
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
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
    LimitExceededError,
    MalformedFileError,
    UnsupportedFormatError,
    UsageError,
)
from fingerprint.remote import Location, RemoteOptions, is_remote
from fingerprint.remote.addresses import is_public
from fingerprint.remote.pages import PAGE, RangedSource
from fingerprint.remote.session import Session
from fingerprint.remote.transfer import PageCache, Transfer
from fingerprint.remote.web import open_file
from signatures.registry import Registry
from signatures.scan import ScanOptions, compare_paths, scan_path
from signatures.signature import sign
from tests.odd_server import Answer, Asked, OddServer, part_of
from tests.small_models import model

if TYPE_CHECKING:
    import io
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

    @pytest.mark.parametrize(("most", "depth"), [(1 << 28, "full"), (1000, "quick")])
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
        made = fp("sketch", *rest, "--depth", "quick", environment=environment)
        assert made.status == 0
        assert "fetched in" in made.err
        assert fp("show", tmp_path / "m.fpsig").status in {0, 2}

    @pytest.mark.parametrize("variable", ["FP_ALLOW_PRIVATE", "FP_REMOTE_TIMEOUT"])
    def test_an_environment_that_makes_no_sense_is_an_error(self, fp: Callable[..., Any], variable: str) -> None:
        assert variable in fp("inspect", "https://example.org/x", environment={variable: "perhaps"}).err


# --- servers that fail ------------------------------------------------------------------------------------------------


@contextmanager
def opened(answer: Callable[[Asked], Answer], **options: Any) -> Iterator[tuple[Callable[[], Any], OddServer]]:
    """A function that opens the file that ``answer`` serves."""
    transfer = Transfer(replace(QUICKLY, **options))
    with OddServer(answer) as server:
        try:
            session = Session(transfer)
            yield lambda: open_file(session, f"{server.url}/file", "the file"), server
        finally:
            transfer.close()


def later(first: Callable[[Asked], Answer], then: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """``first`` answers for the beginning of the file, ``then`` for what comes after."""
    return lambda asked: first(asked) if asked.start == 0 else then(asked)


def right(asked: Asked) -> Answer:
    return part_of(DATA, asked)


class TestLostConnections:
    def test_a_body_is_taken_up_where_it_broke_off(self) -> None:
        def cut(asked: Asked) -> Answer:
            answer = part_of(DATA, asked)
            answer.cut = 70_000 if asked.start == 100_000 else None
            return answer

        with opened(cut) as (open_it, server):
            assert bytes(open_it().read(100_000, 150_000)) == DATA[100_000:250_000]
            assert [(one.start, one.stop) for one in server.asked[1:]] == [(100_000, 250_000), (170_000, 250_000)]
            assert server.asked[2].headers["If-Range"] == '"one"'

    def test_a_beginning_that_broke_off_is_fetched_again(self) -> None:
        answers = iter([9000, None, None, None])

        def cut(asked: Asked) -> Answer:
            answer = part_of(DATA, asked)
            answer.cut = next(answers)
            return answer

        with opened(cut) as (open_it, _):
            assert bytes(open_it().read(5_000, 20_000)) == DATA[5_000:25_000]

    def test_a_few_bytes_each_time_are_no_progress(self) -> None:
        def drip(asked: Asked) -> Answer:
            answer = part_of(DATA, asked)
            answer.cut = 10
            return answer

        with opened(later(right, drip)) as (open_it, server):
            with pytest.raises(InputError, match="lost, 3 times in a row"):
                open_it().read(100_000, 150_000)
            assert len(server.asked) == 4

    def test_nor_are_answers_of_a_few_bytes(self) -> None:
        with opened(later(right, lambda asked: part_of(DATA[: asked.start + 3], asked))) as (open_it, server):
            with pytest.raises(InputError, match="replaced"):
                open_it().read(100_000, 150_000)

        def little(asked: Asked) -> Answer:
            stop = min(asked.start + (80_000 if asked.start < 250_000 else 3), asked.stop)
            said = f"bytes {asked.start}-{stop - 1}/{len(DATA)}"
            return Answer(206, {"Content-Range": said}, DATA[asked.start : stop])

        with opened(later(right, little)) as (open_it, server):
            source = open_it()
            assert bytes(source.read(70_000, 180_000)) == DATA[70_000:250_000]
            with pytest.raises(InputError, match="3 times in a row"):
                source.read(250_000, 50_000)
            assert len(server.asked) == 7

    def test_nobody_at_home(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        with pytest.raises(InputError, match="refuses connections, 3 times"):
            open_checkpoint(at(f"http://127.0.0.1:{port}/m.safetensors"))

    @pytest.mark.parametrize("where", ["head", "body"])
    def test_silence_ends_with_the_timeout(self, where: str) -> None:
        def silent(_: Asked) -> Answer:
            def raw(out: io.BufferedIOBase) -> None:
                if where == "body":
                    out.write(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-65535/300000\r\n\r\n")
                    out.flush()
                server.done.wait()

            return Answer(raw=raw)

        with (
            opened(silent, timeout=0.05) as (open_it, server),
            pytest.raises(InputError, match="took too long, 3 times"),
        ):
            open_it().read(0, 9)

    @pytest.mark.parametrize("where", ["head", "body"])
    def test_drops_of_an_answer_end_with_it_too(self, where: str) -> None:
        def slow(asked: Asked) -> Answer:
            def raw(out: io.BufferedIOBase) -> None:
                part = f"206 Partial Content\r\nContent-Range: bytes {asked.start}-{asked.stop - 1}/300000\r\n"
                out.write(f"HTTP/1.1 {part}{'X: ' if where == 'head' else chr(13) + chr(10)}".encode())
                while not server.done.wait(0.005):
                    out.write(b"x")
                    out.flush()

            return Answer(raw=raw)

        with opened(slow, timeout=0.05) as (open_it, server), pytest.raises(InputError, match="too long, 3 times"):
            open_it().read(0, 9)


class TestStatuses:
    @pytest.mark.parametrize(
        ("status", "kind", "said"),
        [
            (404, InputNotFoundError, "nothing"),
            (410, InputNotFoundError, "nothing"),
            (401, InputError, "denies access"),
            (403, InputError, "denies access"),
            (418, InputError, "status 418"),
            (416, MalformedFileError, "refuses"),
        ],
    )
    def test_an_error_is_said_at_once(self, status: int, kind: type[InputError], said: str) -> None:
        with opened(lambda _: Answer(status)) as (open_it, server):
            with pytest.raises(kind, match=said):
                open_it()
            assert len(server.asked) == 1

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_what_may_pass_is_tried_again(self, status: int) -> None:
        answers = iter([Answer(status), Answer(status)])
        with opened(lambda asked: next(answers, None) or right(asked)) as (open_it, server):
            assert open_it().size == len(DATA)
            assert len(server.asked) == 3

    def test_it_waits_as_long_as_it_is_asked_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited: list[float] = []
        monkeypatch.setattr("fingerprint.remote.transfer.time.sleep", waited.append)
        answers = iter(
            [Answer(503, {"Retry-After": "7"}), Answer(429, {"Retry-After": formatdate(2**33, usegmt=True)})]
        )
        with opened(lambda _: next(answers)) as (open_it, _), pytest.raises(InputError, match="asks to wait"):
            open_it()
        assert waited == [7.0]

    def test_it_waits_longer_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited: list[float] = []
        monkeypatch.setattr("fingerprint.remote.transfer.time.sleep", waited.append)
        with (
            opened(lambda _: Answer(503, {"Retry-After": "soon"}), backoff=1.0, attempts=6) as (open_it, _),
            pytest.raises(InputError, match="6 times"),
        ):
            open_it()
        assert [round(one / 2**power, 1) for power, one in enumerate(waited)] == pytest.approx([1] * 4, abs=0.3)

    def test_an_empty_file(self) -> None:
        with opened(lambda _: Answer(416, {"Content-Range": "bytes */0"})) as (open_it, _):
            assert open_it().size == 0


class TestLies:
    @pytest.mark.parametrize(
        "said",
        [
            "",
            "bytes 0-99/100000000000000000000000",
            "bytes 1-65536/300000",
            "bytes 0-65535/*",
            "bytes 0-65535/100",
            "bytes 0-99/300000",
            "bytes 99-0/300000",
            "bytes 0-70000/300000",
            "items 0-65535/300000",
        ],
    )
    def test_another_range_at_the_beginning(self, said: str) -> None:
        with (
            opened(lambda asked: replace(part_of(DATA, asked), headers={"Content-Range": said})) as (open_it, _),
            pytest.raises(MalformedFileError),
        ):
            open_it()

    @pytest.mark.parametrize("said", ["", "bytes 0-9/300000", "bytes 100000-290000/300000"])
    def test_another_range_later(self, said: str) -> None:
        wrong = later(right, lambda asked: replace(part_of(DATA, asked), headers={"Content-Range": said}))
        with opened(wrong) as (open_it, _), pytest.raises(MalformedFileError, match="another range"):
            open_it().read(100_000, 100_000)

    def test_a_file_shorter_than_it_is_said_to_be(self) -> None:
        def lying(asked: Asked) -> Answer:
            stop = min(asked.stop, 10**12)
            return Answer(206, {"Content-Range": f"bytes {asked.start}-{stop - 1}/{10**12}"}, DATA[asked.start : stop])

        with opened(lying) as (open_it, _):
            source = open_it()
            assert source.size == 10**12
            with pytest.raises(InputError, match="lost"):
                source.read(10**11, 70_000)

    def test_more_than_was_asked_for_is_not_taken(self) -> None:
        def more(asked: Asked) -> Answer:
            answer = part_of(DATA, asked)
            return replace(answer, body=answer.body + b"more" * 1000)

        with opened(more) as (open_it, _):
            assert bytes(open_it().read(0, len(DATA))) == DATA

    @pytest.mark.parametrize(
        "changed",
        [
            lambda asked: part_of(DATA, asked, '"two"'),
            lambda asked: part_of(DATA + b"!", asked, ""),
            lambda _: Answer(200, {"ETag": '"two"'}, DATA),
            lambda _: Answer(416),
        ],
    )
    def test_a_file_that_is_replaced_while_it_is_read(self, changed: Callable[[Asked], Answer]) -> None:
        with (
            opened(later(right, changed)) as (open_it, _),
            pytest.raises(InputError, match="replaced while it was read"),
        ):
            open_it().read(100_000, 100_000)

    @pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
    def test_encoded_answers_are_not_taken(self, encoding: str) -> None:
        with (
            opened(lambda asked: part_of(DATA, asked, **{"Content-Encoding": encoding})) as (open_it, _),
            pytest.raises(MalformedFileError, match="encoded"),
        ):
            open_it()

    def test_headers_without_end(self) -> None:
        def endless(_: Asked) -> Answer:
            def raw(out: io.BufferedIOBase) -> None:
                try:
                    while True:
                        out.write(b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 10_000 + b"\r\n\r\n")
                except OSError:
                    pass

            return Answer(raw=raw)

        with opened(endless) as (open_it, _), pytest.raises(InputError, match="lost, 3 times"):
            open_it()

    def test_a_read_of_gigabytes_is_refused_before_it_is_made(self) -> None:
        transfer = Transfer(QUICKLY)
        source = RangedSource("f", 1 << 40, lambda *_: pytest.fail("fetched"), transfer)
        with pytest.raises(LimitExceededError, match="in one piece"):
            source.read(0, 1 << 35)
        transfer.close()


class TestWithoutRanges:
    def test_a_small_file_is_taken_whole(self) -> None:
        with opened(lambda _: Answer(200, {}, DATA)) as (open_it, server):
            source = open_it()
            assert bytes(source.read(100_000, 200_000)) == DATA[100_000:]
            assert len(server.asked) == 1

    @pytest.mark.parametrize("told", [True, False])
    def test_a_large_one_needs_an_option(self, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
        monkeypatch.setattr("fingerprint.remote.web.SMALL", 1000)
        headers = {} if told else {"Content-Length": "", "Connection": "close"}
        answer = Answer(200, headers, DATA, None if told else len(DATA))
        with (
            opened(lambda _: answer) as (open_it, _),
            pytest.raises(InputError, match=r"no ranges of bytes \(--download"),
        ):
            open_it()
        with opened(lambda _: answer, download=True) as (open_it, _):
            source = open_it()
            assert source.size == len(DATA)
            assert bytes(source.read(1000, 200_000)) == DATA[1000:201_000]

    @pytest.mark.parametrize("told", [True, False])
    def test_a_download_is_bounded(self, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
        monkeypatch.setattr("fingerprint.remote.web.SMALL", 1000)
        monkeypatch.setattr("fingerprint.remote.web.MAX_SCRATCH", 100_000)
        monkeypatch.setattr("fingerprint.readers.scratch.MAX_SCRATCH", 100_000)
        headers = {} if told else {"Content-Length": "", "Connection": "close"}
        answer = Answer(200, headers, DATA, None if told else len(DATA))
        with opened(lambda _: answer, download=True) as (open_it, _), pytest.raises(LimitExceededError):
            open_it()

    def test_whole_files_are_held_in_memory_up_to_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fingerprint.remote.transfer.WHOLE_BYTES", 2 * len(DATA))
        with opened(lambda _: Answer(200, {}, DATA)) as (open_it, _):
            held = [open_it(), open_it()]
            assert [bytes(one.read(0, len(DATA))) for one in held] == [DATA, DATA]
            with pytest.raises(InputError, match="no ranges"):
                open_it()

    def test_downloads_share_one_temporary_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fingerprint.remote.web.SMALL", 1000)
        monkeypatch.setattr("fingerprint.remote.session._PIECE", 10_000)
        with opened(lambda _: Answer(200, {}, DATA), download=True) as (open_it, _):
            held: list[Any] = []
            threads = [threading.Thread(target=lambda: held.append(open_it())) for _ in range(3)]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            for at in (0, 9_999, 250_001):
                assert all(bytes(one.read(at, 49_999)) == DATA[at : at + 49_999] for one in held)
            assert len({id(one._scratch) for one in held}) == 1

    def test_a_download_that_breaks_off_begins_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fingerprint.remote.web.SMALL", 1000)
        answers = iter([None, 5000])
        with opened(lambda _: Answer(200, {}, DATA, next(answers, None)), download=True) as (open_it, _):
            assert bytes(open_it().read(0, len(DATA))) == DATA


# --- where a link may lead --------------------------------------------------------------------------------------------

PRIVATE = [
    *("127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
    *("255.255.255.255", "224.0.0.1", "240.0.0.1", "198.18.0.1", "::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::"),
    *("2001:0:7f00:1::", "2001:db8::1", "no address"),
]


class TestAddresses:
    @pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
    def test_public(self, address: str) -> None:
        assert is_public(address)

    @pytest.mark.parametrize("address", PRIVATE)
    def test_not_public(self, address: str) -> None:
        assert not is_public(address)

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "0"])
    def test_this_machine_by_any_name(self, host: str) -> None:
        with pytest.raises(InputError, match=r"not a public address|not known"):
            open_checkpoint(at(f"http://{host}:9/m.safetensors", allow_private=False))

    def test_a_name_is_judged_by_what_is_connected_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name may resolve to something else the second time: there is none."""
        answers = iter(["93.184.216.34", "127.0.0.1"])
        reached: list[str] = []

        def resolved(*_: object, **__: object) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), 80))]

        def connect(_: socket.socket, place: tuple[str, int]) -> None:
            reached.append(place[0])
            raise ConnectionRefusedError

        monkeypatch.setattr("fingerprint.remote.session.socket.getaddrinfo", resolved)
        monkeypatch.setattr("fingerprint.remote.session.socket.socket", _Socket)
        monkeypatch.setattr(_Socket, "connect", connect)
        with pytest.raises(InputError, match=r"is at 127.0.0.1"):
            open_checkpoint(at("http://rebinding.test/m.safetensors", allow_private=False))
        assert reached == ["93.184.216.34"]

    def test_one_private_address_among_several_is_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("93.184.216.34", "10.0.0.1")]
        monkeypatch.setattr("fingerprint.remote.session.socket.getaddrinfo", lambda *_, **__: places)
        with pytest.raises(InputError, match=r"is at 10.0.0.1"):
            open_checkpoint(at("http://both.test/m.safetensors", allow_private=False))

    def test_a_redirect_is_judged_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fingerprint.remote.session.is_public", lambda address: address == "127.0.0.1")
        with OddServer(lambda _: Answer(302, {"Location": "http://127.0.0.2:9/latest/meta-data"})) as server:
            with pytest.raises(InputError, match=r"127.0.0.2 is at 127.0.0.2"):
                open_checkpoint(at(f"{server.url}/m.safetensors", allow_private=False))
            assert len(server.asked) == 1


class _Socket(socket.socket):
    pass


class TestRedirects:
    def test_what_they_lead_to_is_remembered_until_it_ends(self) -> None:
        ended: set[str] = set()

        def answer(asked: Asked) -> Answer:
            if asked.path == "/file":
                return Answer(302, {"Location": f"/signed{len(ended)}"})
            if asked.path in ended:
                return Answer(403)
            return part_of(DATA, asked)

        with opened(answer) as (open_it, server):
            source = open_it()
            source.read(100_000, 70_000)
            ended.add("/signed0")
            assert bytes(source.read(200_000, 70_000)) == DATA[200_000:270_000]
        assert [one.path for one in server.asked] == ["/file", "/signed0", "/signed0", "/signed0", "/file", "/signed1"]

    def test_a_circle(self) -> None:
        with opened(lambda _: Answer(307, {"Location": "/file"})) as (open_it, server):
            with pytest.raises(LimitExceededError, match="redirects"):
                open_it()
            assert len(server.asked) == 6

    @pytest.mark.parametrize(
        "target",
        [
            "",
            "file:///etc/passwd",
            "ftp://example.org/",
            "http://a:b@example.org/",
            "http://" + "a" * 9000,
            "http://[::",
        ],
    )
    def test_nowhere(self, target: str) -> None:
        with opened(lambda _: Answer(301, {"Location": target})) as (open_it, _), pytest.raises(InputError):
            open_it()

    def test_from_https_to_http(self, monkeypatch: pytest.MonkeyPatch) -> None:
        transfer = Transfer(QUICKLY)
        session = Session(transfer)

        class Reply:
            status = 302

            class response:  # noqa: N801
                headers = {"Location": "http://example.org/x"}  # noqa: RUF012

            def close(self) -> None:
                pass

        monkeypatch.setattr(Session, "_once", lambda *_: Reply())
        with pytest.raises(InputError, match="from https to http"):
            session.get("https://example.org/x", {}, shown="x")
        transfer.close()


class TestSecrets:
    def test_the_token_goes_to_the_hub_alone(self, folder: Path) -> None:
        data = (folder / "files" / "model.safetensors").read_bytes()
        with OddServer(lambda asked: part_of(data, asked)) as elsewhere:

            def answer(asked: Asked) -> Answer:
                if "/revision/" in asked.path:
                    return Answer(200, {}, b'{"sha": "%s"}' % (b"a" * 40))
                if "/tree/" in asked.path:
                    return Answer(200, {}, b'[{"type": "file", "path": "m.safetensors"}]')
                return Answer(302, {"Location": f"{elsewhere.url}/m.safetensors"})

            with OddServer(answer) as server:
                with open_checkpoint(at(f"hf://{NAME}/m.safetensors", hub=server.url, token="secret")):
                    pass
                assert [one.headers.get("Authorization") for one in server.asked] == ["Bearer secret"] * 3
                assert all("/resolve/" + "a" * 40 in one.path for one in server.asked[2:])
            assert elsewhere.asked
            assert all("Authorization" not in one.headers for one in elsewhere.asked)

    def test_the_token_is_not_sent_in_the_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[dict[str, str]] = []
        transfer = Transfer(replace(QUICKLY, hub="http://hub.test", token="secret"))
        session = Session(transfer)

        def urlopen(_: object, *__: object, headers: dict[str, str], **___: object) -> None:
            sent.append(headers)
            raise OSError

        monkeypatch.setattr("urllib3.HTTPConnectionPool.urlopen", urlopen)
        with pytest.raises(InputError):
            session.text("http://hub.test/api", 10, shown="x")
        assert sent
        assert all("Authorization" not in one for one in sent)
        transfer.close()

    def test_messages_show_no_queries(self) -> None:
        with OddServer(lambda _: Answer(404)) as server:
            location = at(f"{server.url}/m.safetensors?signature=secret")
            with pytest.raises(InputNotFoundError) as caught:
                open_checkpoint(location)
        assert "secret" not in str(caught.value)
        assert "secret" not in str(location)
        assert "secret" not in repr(RemoteOptions(token="secret"))

    def test_passwords_in_urls_are_not_taken(self) -> None:
        with pytest.raises(InputError, match="password") as caught:
            open_checkpoint("https://me:secret@example.org/m.safetensors")
        assert "secret" not in str(caught.value)


# --- lists of files ---------------------------------------------------------------------------------------------------


def api(tree: Callable[[Asked], Answer], sha: object = "a" * 40) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        if "/revision/" in asked.path:
            return Answer(200, {}, json.dumps({"siblings": [], "sha": sha}).encode())
        return tree(asked) if "/tree/" in asked.path else Answer(404)

    return answer


def entries(*paths: str) -> bytes:
    return json.dumps([{"type": "file", "path": path, "size": 1} for path in paths]).encode()


class TestLists:
    def listed(self, answer: Callable[[Asked], Answer]) -> list[str]:
        from fingerprint.remote.hub import HubStore, Repository

        transfer = Transfer(QUICKLY)
        with OddServer(answer) as server:
            transfer.options = replace(QUICKLY, hub=server.url)
            try:
                return sorted(HubStore(Session(transfer), Repository.parse(f"hf://{NAME}")).listing("").files)
            finally:
                transfer.close()

    def test_pages_are_followed(self) -> None:
        def tree(asked: Asked) -> Answer:
            if "cursor" in asked.path:
                return Answer(200, {}, entries("b"))
            return Answer(200, {"Link": f'<{asked.path}?cursor=1>; rel="next"'}, entries("a"))

        assert self.listed(api(tree)) == ["a", "b"]

    def test_pages_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fingerprint.remote.hub.MAX_PAGES", 4)
        with pytest.raises(LimitExceededError, match="pages"):
            self.listed(api(lambda asked: Answer(200, {"Link": f'<{asked.path}>; rel="next"'}, entries("a"))))

    def test_pages_elsewhere(self) -> None:
        link = {"Link": '<http://127.0.0.1:9/tree>; rel="next"'}
        with pytest.raises(InputError, match="another server"):
            self.listed(api(lambda _: Answer(200, link, entries("a"))))

    def test_names_that_lead_elsewhere_are_left_out(self) -> None:
        names = ("a", "../b", "b/c", "/d", "", "e\nf", "..", "g\\h")
        assert self.listed(api(lambda _: Answer(200, {}, entries(*names)))) == ["a"]

    def test_more_entries_than_a_folder_may_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fingerprint.remote.hub.MAX_ENTRIES", 2)
        with pytest.raises(LimitExceededError, match="entries"):
            self.listed(api(lambda _: Answer(200, {}, entries("a", "b", "c"))))

    @pytest.mark.parametrize(
        "body",
        [b"[" * 100, b"[1, null]x", b"\xff", b'[{"path": "' + b"x" * 100_000 + b'"}]', b"", b"[" + b"1," * 10**5],
    )
    def test_answers_that_make_no_sense(self, body: bytes) -> None:
        with pytest.raises(InputError):
            self.listed(api(lambda _: Answer(200, {}, body)))

    def test_an_answer_that_is_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fingerprint.remote.hub.MAX_ANSWER", 1000)
        with pytest.raises(LimitExceededError, match="more than 1000 bytes"):
            self.listed(api(lambda _: Answer(200, {}, entries("a" * 2000))))

    @pytest.mark.parametrize("sha", [None, 7, "main", "../../x", "A" * 40])
    def test_a_commit_that_is_none(self, sha: object) -> None:
        with pytest.raises(MalformedFileError, match="commit"):
            self.listed(api(lambda _: Answer(200, {}, b"[]"), sha))


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
            if name == "fingerprint.remote.session":
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
