"""Tasks for worker processes of the tests; they are imported there, and cheap to import."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Squares:
    """Squares numbers; text is a defect."""

    def do(self, item: int) -> tuple[int, int]:
        return item * item, os.getpid()

    def lost(self, item: int, reason: str) -> tuple[int, int]:
        return -item, 0


@dataclass(frozen=True, slots=True)
class Threads:
    """Says how many threads a worker may use."""

    def do(self, item: int) -> tuple[str, ...]:
        from fingerprint.threads import thread_count

        return str(thread_count()), os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]

    def lost(self, item: int, reason: str) -> tuple[str, ...]:
        return (reason,)


@dataclass(frozen=True, slots=True)
class Waits:
    """Says on standard error that it has begun, and never ends."""

    def do(self, item: int) -> None:
        os.write(2, b"waits\n")
        signal.pause()

    def lost(self, item: int, reason: str) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Forks:
    """Says whether a worker may fork, for 0. Else forks two processes that never end; they and the worker tell their
    numbers on standard error, and for 2 one of them kills the worker when the other has begun."""

    def do(self, item: int) -> bool:
        from fingerprint.forks import can_fork, forked

        if not item:
            return can_fork()
        worker = os.getpid()
        begun, begins = os.pipe()

        def wait(number: int) -> None:
            tell(os.getpid())
            if number == 0:
                os.write(begins, b"x")
            elif item == 2 and os.read(begun, 1):
                os.kill(worker, signal.SIGKILL)
            signal.pause()

        tell(worker)
        list(forked(wait, range(2), 2))
        return False

    def lost(self, item: int, reason: str) -> bool:
        return True


def tell(number: int) -> None:
    os.write(2, b"%d\n" % number)


@dataclass(frozen=True, slots=True)
class Dies:
    """Is killed with every item below zero as often as the item says, counted by files in ``folder``."""

    folder: str

    def do(self, item: int) -> str:
        died = len(list(Path(self.folder).glob(f"{item}.*")))
        if item < -died:
            (Path(self.folder) / f"{item}.{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return f"done {item}"

    def lost(self, item: int, reason: str) -> str:
        return f"lost {item}: {reason}"
