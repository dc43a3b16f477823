"""A worker process: takes items from its standard input and answers on its standard output.

Started by ``pool`` as ``python -P -m signatures.bulk.worker``. It ends with its parent, also in the midst of an item,
so that nothing is left behind by one that was killed; and so do the processes that it forks to share the work.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG: Final = 1
"""Of ``prctl`` (Linux): the signal that a process gets when the thread that started it ends."""


def main() -> None:
    """Answer until there is nothing more to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when the work ends
    requests, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    _end_with_parent(requests.fileno())
    try:
        task = requests.recv()
        while True:
            item = requests.recv()
            answers.send(_answer(task, item))
    except (EOFError, BrokenPipeError):
        os._exit(0)


def _answer(task: Any, item: Any) -> tuple[bool, Any]:
    """Whether there is a result, and the result or the exception."""
    try:
        return True, task.do(item)
    except Exception as error:  # noqa: BLE001 - it is raised again in the parent
        return False, error


def _end_with_parent(requests: int) -> None:
    """See to it that the process ends with its parent: by the system where that can be, since a process with a thread
    that watches could not be forked."""
    ask = _to_be_killed_with_parent()
    if ask is not None and ask() == 0:
        os.register_at_fork(after_in_child=ask)
        _end_if_alone(requests, wait=False)  # the parent may have ended before
    else:
        threading.Thread(target=_end_if_alone, args=(requests,), kwargs={"wait": True}, daemon=True).start()


def _to_be_killed_with_parent() -> Callable[[], int] | None:
    """What asks the system to kill the calling process when its parent ends, and gives 0 if it will; None elsewhere."""
    if sys.platform != "linux":
        return None
    import ctypes

    rest = [ctypes.c_ulong(value) for value in (signal.SIGKILL, 0, 0, 0)]
    return partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, *rest)


def _end_if_alone(requests: int, *, wait: bool) -> None:
    """End the process if nobody can send requests any more, or as soon as that is so."""
    polled = select.poll()
    polled.register(requests, 0)  # only hanging up and errors
    if polled.poll(None if wait else 0):
        os._exit(0)


if __name__ == "__main__":
    main()
