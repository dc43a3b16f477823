"""Workers that are processes of this machine, each with its part of the processors."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Generic

from msgspec import Struct

from fingerprint.errors import WorkerLostError
from fingerprint.threads import VARIABLE, processors, wanted_threads
from signatures.bulk.work import ATTEMPTS, Item, Result, Task

_THREAD_VARIABLES: Final = (VARIABLE, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SECONDS_TO_END: Final = 10.0


class _Process(Struct):
    """A worker: its process and both ends of the talk with it; the item that it works on."""

    process: subprocess.Popen[bytes]
    requests: Connection[Any, Any]
    answers: Connection[Any, Any]
    number: int | None = None
    answered: int = 0


class Pool(Generic[Item, Result]):
    """``jobs`` processes; a process that ends is replaced, and its item tried again.

    The processors are shared out among them, unless ``FP_THREADS`` says how many threads each has. They end with the
    thread that started them.
    """

    def __init__(self, task: Task[Item, Result], jobs: int) -> None:
        self._task = task
        self._jobs = jobs
        self._threads = wanted_threads() or max(1, processors() // jobs)
        self._processes: list[_Process] = []
        self._items: dict[int, tuple[Item, int]] = {}

    @property
    def slots(self) -> int:
        """See ``Workers.slots``."""
        return self._jobs

    @property
    def pids(self) -> list[int]:
        """The worker processes at this moment."""
        return [one.process.pid for one in self._processes]

    def start(self, number: int, item: Item) -> None:
        """See ``Workers.start``. Raises ``WorkerLostError`` if no process can be started."""
        self._items[number] = item, 1
        self._hand_out(number)

    def finished(self) -> tuple[int, Result]:
        """See ``Workers.finished``."""
        while True:
            busy = {one.answers: one for one in self._processes if one.number is not None}
            if not busy:
                raise RuntimeError("nothing was handed out")
            for answers in wait(list(busy)):
                found = self._received(busy[answers])  # type: ignore[index]
                if found is not None:
                    return found

    def close(self) -> None:
        """See ``Workers.close``."""
        for one in self._processes:
            one.process.kill()
        for one in self._processes:
            _closed(one)
            with suppress(subprocess.TimeoutExpired):
                one.process.wait(_SECONDS_TO_END)
        self._processes, self._items = [], {}

    def _received(self, worker: _Process) -> tuple[int, Result] | None:
        """What a worker that is ready has to say; None if it was lost and its item is tried again."""
        number = worker.number
        if number is None:
            raise RuntimeError("a worker speaks that has no work")
        try:
            good, value = worker.answers.recv()
        except (EOFError, OSError):
            return self._lost(worker, number)
        worker.number = None
        worker.answered += 1
        del self._items[number]
        if not good:
            raise value
        return number, value

    def _lost(self, worker: _Process, number: int) -> tuple[int, Result] | None:
        _closed(worker)
        self._processes.remove(worker)
        how = _how_it_ended(worker.process)
        item, tried = self._items[number]
        if tried >= ATTEMPTS:
            del self._items[number]
            return number, self._task.lost(item, f"its worker process {how}, {tried} times")
        self._items[number] = item, tried + 1
        self._hand_out(number)
        return None

    def _hand_out(self, number: int) -> None:
        """Give an item to a worker without work, starting one if there is none."""
        for _ in range(ATTEMPTS):
            worker = next((one for one in self._processes if one.number is None), None) or self._begun()
            try:
                worker.requests.send(self._items[number][0])
            except OSError:  # it ended while it was idle, or could not begin
                _closed(worker)
                self._processes.remove(worker)
                how = _how_it_ended(worker.process)
            else:
                worker.number = number
                return
        raise WorkerLostError(f"worker processes cannot be started: the last one {how}")

    def _begun(self) -> _Process:
        count = str(self._threads)
        search = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, count), "PYTHONPATH": search}
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "signatures.bulk.worker",
                ],  # -P: no module is taken from where suspects lie
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                process_group=0,  # Ctrl-C is for the parent alone
            )
        except OSError as error:
            raise WorkerLostError(f"worker processes cannot be started: {error}") from error
        if process.stdin is None or process.stdout is None:
            raise WorkerLostError("worker processes cannot be started: no pipes")
        requests = Connection(os.dup(process.stdin.fileno()), readable=False)
        answers = Connection(os.dup(process.stdout.fileno()), writable=False)
        process.stdin.close()
        process.stdout.close()
        worker = _Process(process, requests, answers)
        self._processes.append(worker)
        with suppress(OSError):  # told when it gets its first item
            requests.send(self._task)
        return worker


def _closed(worker: _Process) -> None:
    for end in (worker.requests, worker.answers):
        with suppress(OSError):
            end.close()


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """A clause that says how a process ended that does not answer any more."""
    try:
        status = process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "stopped to answer"
    if status == -9:
        return "was killed (signal 9: out of memory?)"
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
