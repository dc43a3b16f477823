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
from typing import TYPE_CHECKING

import pytest

from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import MalformedFileError, WorkerLostError
from fingerprint.forks import can_fork, forked
from signatures.signature import sign
from tests.small_models import model, save

if TYPE_CHECKING:
    from collections.abc import Iterator
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


class Gate:
    """Where processes wait until somebody opens it: so that tests do not depend on how fast anything is."""

    def __init__(self) -> None:
        self._waiting, self._opening = os.pipe()

    def opened(self, times: int) -> None:
        """Let as many through."""
        os.write(self._opening, b"x" * times)

    def passed(self, number: int) -> int:
        """``number``, when one may pass."""
        assert os.read(self._waiting, 1)
        return number

    def close(self) -> None:
        os.close(self._waiting)
        os.close(self._opening)


@pytest.fixture
def gate() -> Iterator[Gate]:
    with closing(Gate()) as made:
        yield made


def test_something_else_is_done_meanwhile_step_by_step(gate: Gate) -> None:
    steps = []

    def taken() -> Iterator[None]:
        for one in range(10):
            steps.append(one)
            yield gate.opened(1)

    found = dict(forked(gate.passed, range(10), 2, taken()))
    assert found == {one: one for one in range(10)}
    assert steps == list(range(10))


def test_no_step_is_waited_for_when_all_is_done(gate: Gate) -> None:
    def taken() -> Iterator[None]:
        yield gate.opened(5)
        while True:
            yield

    assert len(list(forked(gate.passed, range(5), 2, taken()))) == 5


def test_what_fails_meanwhile_leaves_no_process(gate: Gate) -> None:
    before = children()
    with pytest.raises(ZeroDivisionError):
        list(forked(gate.passed, range(5), 2, (1 // one for one in range(1))))
    assert children() == before


def test_this_process_may_be_one_of_those_that_work(gate: Gate) -> None:
    before, began, steps, done = children(), os.getpid(), [], []

    def work(number: int) -> int:
        if os.getpid() == began:
            done.append(number)
            if len(done) == 15:
                gate.opened(40)
        else:
            gate.passed(number)
        return os.getpid()

    found = dict(forked(work, range(40), 2, (steps.append(one) for one in range(3)), helping=True))
    assert sorted(found) == list(range(40))
    assert steps == [0, 1, 2]
    pids = list(found.values())
    assert len(set(pids)) == 2
    assert 15 <= pids.count(began) <= 38
    assert children() == before


def test_where_it_is_the_only_one_it_does_all() -> None:
    found = dict(forked(lambda _: os.getpid(), range(3), 1, helping=True))
    assert found == dict.fromkeys(range(3), os.getpid())


def test_the_first_numbers_are_for_the_other_process() -> None:
    found = dict(forked(lambda _: os.getpid(), range(3), 2, helping=True))
    assert len(found) == 3
    assert os.getpid() not in {found[0], found[1]}


def test_what_fails_in_this_process_leaves_no_other(gate: Gate) -> None:
    before, own = children(), os.getpid()

    def fail(number: int) -> int:
        return 1 // 0 if os.getpid() == own else gate.passed(number)

    with pytest.raises(ZeroDivisionError):
        list(forked(fail, range(100), 2, helping=True))
    assert children() == before


def test_large_results_arrive_whole() -> None:
    found = dict(forked(lambda number: bytes([number]) * 3_000_000, range(6), 2))
    assert found == {number: bytes([number]) * 3_000_000 for number in range(6)}


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


@pytest.mark.parametrize("failing", ["os.fork", "os.pipe"])
def test_what_the_system_refuses_is_an_error(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, calls = children(), (os.fork, os.pipe)[failing == "os.pipe"], []
    descriptors = os.listdir("/proc/self/fd")

    def refused(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        if len(calls) > 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(*arguments, **named)  # type: ignore[operator]

    monkeypatch.setattr(failing, refused)
    with pytest.raises(WorkerLostError, match=r"cannot be started: Resource temporarily unavailable \(FP_THREADS=1"):
        list(forked(str, range(10), 2))
    assert children() == before
    assert os.listdir("/proc/self/fd") == descriptors


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

    def watched(*arguments: object, **named: bool) -> object:
        used.append(arguments)
        return forked(*arguments, **named)  # type: ignore[arg-type]

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
