"""Work shared out among forked processes, which see all that their parent has read and opened.

Threads that call the interpreter between short calls of compiled code wait for one another; processes do not.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import threading
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from msgspec import Struct, field

from fingerprint.errors import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

Result = TypeVar("Result")

_LIKELY_CAUSES: Final = {
    int(signal.SIGKILL): "out of memory?",
    int(signal.SIGBUS): "was the file shortened while it was read?",
}
_AHEAD: Final = 2
"""Numbers that a process has at a time, so that it need not wait for the next."""
_LENGTH: Final = 8
"""Bytes in front of each value in a pipe that say how long it is."""
_NO_STEP: Final = object()


def can_fork() -> bool:
    """Whether this process may be forked: only Linux's way of it is known well, and no thread may hold a lock."""
    alone = threading.active_count() == 1 and threading.current_thread() is threading.main_thread()
    return alone and sys.platform == "linux"


def forked(
    function: Callable[[int], Result],
    numbers: Iterable[int],
    processes: int,
    meanwhile: Iterable[object] = (),
    *,
    helping: bool = False,
) -> Generator[tuple[int, Result], None, None]:
    """``function`` of each of ``numbers``, with its number, in the order in which they are done.

    The steps of ``meanwhile`` are taken while all processes are at work, between their answers; what is left of them
    when all is done is not. If ``helping``, this process is one of the ``processes`` and works on numbers of its own
    from then on: none of them should take much longer than the others. Results are pickled. An exception ends all and
    is raised here; so is ``WorkerLostError`` if a process is killed or cannot be started. When the generator is closed
    no process is left.
    """
    left, steps = iter(numbers), iter(meanwhile)
    own = ((number, function(number)) for number in left) if helping else iter(())
    workers: list[_Worker] = []
    try:
        for _ in range(processes - helping):
            workers.append(_begun(function, workers))
        for _ in range(_AHEAD):
            for worker in workers:
                worker.give(left)
        idle = False
        while busy := {worker.answers.descriptor: worker for worker in workers if worker.numbers}:
            ready = [busy[descriptor] for descriptor in _readable(busy, wait=idle)]
            for worker in ready:
                number, result = worker.answer()
                worker.give(left)
                yield number, result
            if not ready and next(steps, _NO_STEP) is _NO_STEP:
                done = next(own, None)
                idle = done is None
                if done is not None:
                    yield done
        yield from own
    finally:
        for worker in workers:
            worker.end()


class _End(Struct, frozen=True):
    """One end of a pipe between a process and its parent, by which values are sent one after the other."""

    descriptor: int

    def send(self, value: object) -> None:
        """Raises ``OSError`` if the other end is closed."""
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        rest = memoryview(len(data).to_bytes(_LENGTH, "little") + data)
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    def receive(self) -> Any:
        """The next value; raises ``EOFError`` if the other end was closed before all of it was sent."""
        data = self._exactly(int.from_bytes(self._exactly(_LENGTH), "little"))
        return pickle.loads(data)  # noqa: S301 - written by a process of our own

    def close(self) -> None:
        """Give the end up."""
        os.close(self.descriptor)

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = os.readv(self.descriptor, [rest])
            if not count:
                raise EOFError
            rest = rest[count:]
        return data


def _readable(descriptors: Iterable[int], *, wait: bool) -> list[int]:
    """Those from which something can be read, or that were closed at the other end; waits for one if ``wait``."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poller.poll(None if wait else 0)]


class _Worker(Struct):
    """A process, both ends of the talk with it, and the numbers that it works on."""

    pid: int
    requests: _End
    answers: _End
    numbers: list[int] = field(default_factory=list)

    def give(self, numbers: Iterator[int]) -> None:
        """Hand out the next number, if there is one."""
        for number in numbers:
            self.numbers.append(number)
            with suppress(OSError):  # one that has ended is noticed when it does not answer
                self.requests.send(number)
            return

    def answer(self) -> tuple[int, Any]:
        """The number that was done, and its result. Raises what was raised, or ``WorkerLostError``."""
        try:
            number, good, value = self.answers.receive()
        except (EOFError, OSError):
            _, status = os.waitpid(self.pid, 0)
            self.pid = 0
            raise WorkerLostError(f"a process that measured {_how_it_ended(status)}") from None
        self.numbers.remove(number)
        if not good:
            raise value
        return number, value

    def end(self) -> None:
        """Leave nothing of the process."""
        self.requests.close()
        self.answers.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _begun(function: Callable[[int], Any], others: Iterable[_Worker]) -> _Worker:
    ends: list[_End] = []
    # Ctrl-C is for the parent: until the child has said so, none arrives.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(2):
            ends += map(_End, os.pipe())
        with warnings.catch_warnings():
            # Of threads that Python does not know: those of BLAS, which end before a fork and begin anew after it.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    except OSError as error:
        for end in ends:
            end.close()
        reason = error.strerror or error
        raise WorkerLostError(f"processes cannot be started: {reason} (FP_THREADS=1 needs none)") from error
    else:
        theirs, requests, answers, mine = ends
        if not pid:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _work(function, theirs, mine, [requests, answers, *(end for one in others for end in _ends(one))])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    theirs.close()
    mine.close()
    return _Worker(pid, requests, answers)


def _ends(worker: _Worker) -> tuple[_End, _End]:
    return worker.requests, worker.answers


def _work(
    function: Callable[[int], Any],
    requests: _End,
    answers: _End,
    unused: Iterable[_End],
) -> NoReturn:
    """Answer until nobody asks any more; the process ends without what its parent would do at its end."""
    try:
        for end in unused:  # so that this process sees its parent's end, though others live
            end.close()
        while True:
            number = requests.receive()
            try:
                answer = (number, True, function(number))
            except Exception as error:  # noqa: BLE001 - it is raised again in the parent
                answer = (number, False, error)
            answers.send(answer)
    except (EOFError, OSError):
        os._exit(0)
    finally:
        os._exit(1)


def _how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if -code in _LIKELY_CAUSES:
        return f"was ended by signal {-code} ({_LIKELY_CAUSES[-code]})"
    return f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
