"""Work shared among forked processes: the same results, errors and interruptions as in one, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing, suppress
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING

import pytest

from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import MalformedFileError, WorkerLostError
from fingerprint.forks import can_fork, forked
from signatures.signature import sign
from tests.small_models import model, save

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


def children() -> set[int]:
    with open(f"/proc/self/task/{threading.get_native_id()}/children", encoding="ascii") as file:
        return {int(pid) for pid in file.read().split()}


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_number_comes_back_once_with_its_result(processes: int, count: int) -> None:
    before = children()
    offset = [1000]  # as it is at the moment of the fork
    found = dict(forked(lambda number: (number + offset[0], os.getpid()), range(count), processes))
    assert {number: result for number, (result, _) in found.items()} == {one: one + 1000 for one in range(count)}
    pids = {pid for _, pid in found.values()}
    assert os.getpid() not in pids
    assert len(pids) == min(processes, count)
    assert children() == before


def test_something_else_is_done_meanwhile_and_once() -> None:
    began = os.getpid()
    order: list[object] = []
    for number, pid in forked(lambda _: os.getpid(), range(5), 2, lambda: order.append("meanwhile")):
        order.append(number)
        assert pid != began
    assert order[0] == "meanwhile"
    assert sorted(order[1:]) == [0, 1, 2, 3, 4]  # type: ignore[type-var]


def test_what_fails_meanwhile_leaves_no_process() -> None:
    before = children()
    with pytest.raises(ZeroDivisionError):
        list(forked(lambda number: number, range(5), 2, lambda: 1 // 0))
    assert children() == before


def test_an_exception_comes_back_as_it_was() -> None:
    before = children()

    def fail(number: int) -> int:
        if number == 3:
            raise MalformedFileError("of no use", path="x", tensor="t", offset=7, hint="mend it")
        return number

    with pytest.raises(MalformedFileError) as raised:
        list(forked(fail, range(100), 2))
    error = raised.value
    assert (error.message, error.path, error.tensor, error.offset, error.hint) == ("of no use", "x", "t", 7, "mend it")
    assert children() == before


@pytest.mark.parametrize("answer", [lambda: os.kill(os.getpid(), signal.SIGKILL), threading.Lock])
def test_a_process_that_cannot_answer_is_an_error(answer: object) -> None:
    before = children()
    with pytest.raises(WorkerLostError, match=r"signal 9 \(out of memory\?\)|ended with status 1"):
        list(forked(lambda number: answer() if number == 5 else number, range(10), 2))  # type: ignore[operator]
    assert children() == before


@pytest.mark.parametrize("failing", ["os.fork", "multiprocessing.connection.Pipe"])
def test_what_the_system_refuses_is_an_error(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, calls = children(), (os.fork, Pipe)[failing != "os.fork"], []

    def refused(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        if len(calls) > 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(*arguments, **named)  # type: ignore[operator]

    monkeypatch.setattr(failing, refused)
    with pytest.raises(WorkerLostError, match=r"cannot be started: Resource temporarily unavailable \(FP_THREADS=1"):
        list(forked(str, range(10), 2))
    assert children() == before


def test_nothing_is_left_when_it_is_closed_early() -> None:
    before = children()
    with closing(forked(lambda number: time.sleep(60.0 if number else 0.0), range(10), 2)) as results:
        assert next(results) == (0, None)
        assert len(children() - before) == 2
    assert children() == before


def test_no_fork_beside_other_threads() -> None:
    assert can_fork() == (threading.active_count() == 1)
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        assert not can_fork()
    finally:
        release.set()
        thread.join()


def test_a_checkpoint_is_measured_alike_by_processes_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(model(1), tmp_path / "model.safetensors")
    seen: dict[bool, tuple[object, int]] = {}
    used = []

    def watched(*arguments: object) -> object:
        used.append(arguments)
        return forked(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("fingerprint.assemble.forked", watched)
    monkeypatch.setattr("fingerprint.assemble.FORKED_BYTES", 0)
    for apart in (False, True):
        monkeypatch.setattr("fingerprint.assemble.can_fork", lambda apart=apart: apart)
        read: list[int] = []
        with open_checkpoint(path) as checkpoint:
            seen[apart] = sign(fingerprint(checkpoint, workers=2, progress=read.append)).identity, sum(read)
        assert bool(used) is apart
    assert seen[True] == seen[False]


def test_processes_end_with_a_parent_that_is_killed() -> None:
    program = """
        import os, sys, time
        from fingerprint.forks import forked

        def work(number):
            os.write(1, b"%d\\n" % os.getpid())
            time.sleep(0.2)

        list(forked(work, range(1000), 2))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = {int(parent.stdout.readline()) for _ in range(2)}
        parent.kill()
        deadline = time.monotonic() + 20.0
        while any(map(_lives, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [pid for pid in pids if _lives(pid)]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not left


def _lives(pid: int) -> bool:
    """Whether it runs: one that has ended but was not waited for by whoever adopted it does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
