"""Servers that fail in every way they can, lead elsewhere, or lie."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fingerprint import open_checkpoint
from fingerprint.errors import (
    InputError,
    InputNotFoundError,
    LimitExceededError,
    MalformedFileError,
)
from fingerprint.remote import Location, RemoteOptions
from fingerprint.remote.addresses import is_public
from fingerprint.remote.pages import RangedSource
from fingerprint.remote.session import Session
from fingerprint.remote.transfer import Transfer
from fingerprint.remote.web import open_file
from tests.odd_server import Answer, Asked, OddServer, part_of
from tests.small_models import model, save

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator
    from pathlib import Path

QUICKLY = RemoteOptions(allow_private=True, backoff=0.0, attempts=3, timeout=10.0, parallel=4)
DATA = np.random.default_rng(7).bytes(300_000)
NAME = "org/model"


def at(url: str, **options: Any) -> Location:
    return Location(url, replace(QUICKLY, **options))


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
        def little(asked: Asked) -> Answer:
            stop = min(asked.start + (80_000 if asked.start < 200_000 else 3), asked.stop)
            said = f"bytes {asked.start}-{stop - 1}/{len(DATA)}"
            return Answer(206, {"Content-Range": said}, DATA[asked.start : stop])

        with opened(later(right, little)) as (open_it, server):
            source = open_it()
            assert bytes(source.read(70_000, 130_000)) == DATA[70_000:200_000]
            with pytest.raises(InputError, match="3 times in a row"):
                source.read(200_000, 100_000)
            assert len(server.asked) == 6

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

    @pytest.mark.parametrize("tag", ["", 'W/"weak"'])
    def test_a_file_of_another_date_was_replaced_where_no_tag_tells(self, tag: str) -> None:
        def dated(day: str) -> Callable[[Asked], Answer]:
            return lambda asked: part_of(DATA, asked, tag, **{"Last-Modified": f"{day} Jan 2026 00:00:00 GMT"})

        with opened(dated("Thu, 01")) as (open_it, _):
            assert bytes(open_it().read(100_000, 100_000)) == DATA[100_000:200_000]
        with (
            opened(later(dated("Thu, 01"), dated("Fri, 02"))) as (open_it, _),
            pytest.raises(InputError, match="replaced while it was read"),
        ):
            open_it().read(100_000, 100_000)

    def test_an_equal_tag_tells_more_than_dates(self) -> None:
        def dated(day: str) -> Callable[[Asked], Answer]:
            return lambda asked: part_of(DATA, asked, **{"Last-Modified": f"{day} Jan 2026 00:00:00 GMT"})

        with opened(later(dated("Thu, 01"), dated("Fri, 02"))) as (open_it, _):
            assert bytes(open_it().read(100_000, 100_000)) == DATA[100_000:200_000]

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
            threads = [threading.Thread(target=lambda: held.append(open_it())) for _ in range(8)]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            assert len(held) == len(threads)
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

        monkeypatch.setattr("fingerprint.remote.connections.socket.getaddrinfo", resolved)
        monkeypatch.setattr("fingerprint.remote.connections.socket.socket", _Socket)
        monkeypatch.setattr(_Socket, "connect", connect)
        with pytest.raises(InputError, match=r"is at 127.0.0.1"):
            open_checkpoint(at("http://rebinding.test/m.safetensors", allow_private=False))
        assert reached == ["93.184.216.34"]

    def test_one_private_address_among_several_is_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("93.184.216.34", "10.0.0.1")]
        monkeypatch.setattr("fingerprint.remote.connections.socket.getaddrinfo", lambda *_, **__: places)
        with pytest.raises(InputError, match=r"is at 10.0.0.1"):
            open_checkpoint(at("http://both.test/m.safetensors", allow_private=False))

    def test_a_redirect_is_judged_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fingerprint.remote.connections.is_public", lambda address: address == "127.0.0.1")
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
    def test_the_token_goes_to_the_hub_alone(self, tmp_path: Path) -> None:
        data = save(model(1), tmp_path / "m.safetensors").read_bytes()
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
            assert not any("Authorization" in one.headers for one in elsewhere.asked)
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
