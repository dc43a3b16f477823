"""Work shared out among forked processes, which see all that their parent has read and opened.

Threads that call the interpreter between short calls of compiled code wait for one another; processes do not.
"""

from __future__ import annotations

import os
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
    from multiprocessing.connection import Connection

Result = TypeVar("Result")

_LIKELY_CAUSES: Final = {
    int(signal.SIGKILL): "out of memory?",
    int(signal.SIGBUS): "was the file shortened while it was read?",
}
_AHEAD: Final = 2
"""Numbers that a process has at a time, so that it need not wait for the next."""


def can_fork() -> bool:
    """Whether this process may be forked: only Linux's way of it is known well, and no thread may hold a lock."""
    alone = threading.active_count() == 1 and threading.current_thread() is threading.main_thread()
    return alone and sys.platform == "linux"


def forked(
    function: Callable[[int], Result],
    numbers: Iterable[int],
    processes: int,
    meanwhile: Callable[[], object] | None = None,
) -> Generator[tuple[int, Result], None, None]:
    """``function`` of each of ``numbers``, with its number, in the order in which they are done.

    ``meanwhile`` is called when all processes are at work. Results are pickled. An exception ends all and is raised
    here; so is ``WorkerLostError`` if a process is killed or cannot be started. When the generator is closed no process
    is left.
    """
    from multiprocessing.connection import wait

    left = iter(numbers)
    workers: list[_Worker] = []
    try:
        for _ in range(processes):
            workers.append(_begun(function, workers))
        for _ in range(_AHEAD):
            for worker in workers:
                worker.give(left)
        if meanwhile is not None:
            meanwhile()
        while busy := {worker.answers: worker for worker in workers if worker.numbers}:
            for answers in wait(list(busy)):
                worker = busy[answers]  # type: ignore[index]
                number, result = worker.answer()
                worker.give(left)
                yield number, result
    finally:
        for worker in workers:
            worker.end()


class _Worker(Struct):
    """A process, both ends of the talk with it, and the numbers that it works on."""

    pid: int
    requests: Connection[Any, Any]
    answers: Connection[Any, Any]
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
            number, good, value = self.answers.recv()
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
    from multiprocessing.connection import Pipe

    try:
        theirs, requests = Pipe(duplex=False)
        answers, mine = Pipe(duplex=False)
    except OSError as error:
        raise _not_begun(error) from error
    # Ctrl-C is for the parent: until the child has said so, none arrives.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            # Of threads that Python does not know: those of BLAS, which end before a fork and begin anew after it.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _work(function, theirs, mine, [requests, answers, *(end for one in others for end in _ends(one))])
    except OSError as error:
        raise _not_begun(error) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    theirs.close()
    mine.close()
    return _Worker(pid, requests, answers)


def _not_begun(error: OSError) -> WorkerLostError:
    return WorkerLostError(f"processes cannot be started: {error.strerror or error} (FP_THREADS=1 needs none)")


def _ends(worker: _Worker) -> tuple[Connection[Any, Any], Connection[Any, Any]]:
    return worker.requests, worker.answers


def _work(
    function: Callable[[int], Any],
    requests: Connection[Any, Any],
    answers: Connection[Any, Any],
    unused: Iterable[Connection[Any, Any]],
) -> NoReturn:
    """Answer until nobody asks any more; the process ends without what its parent would do at its end."""
    try:
        for end in unused:  # so that this process sees its parent's end, though others live
            end.close()
        while True:
            number = requests.recv()
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
