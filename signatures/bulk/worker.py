"""A worker process: takes items from its standard input and answers on its standard output.

Started by ``pool`` as ``python -P -m signatures.bulk.worker``. It ends when its standard input is closed, also in the
midst of an item, so that nothing is left behind by a parent that was killed.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Answer until there is nothing more to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when the work ends
    requests, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    threading.Thread(target=_end_with_parent, args=(requests.fileno(),), daemon=True).start()
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
    """End the process as soon as nobody can send requests any more."""
    waiting = select.poll()
    waiting.register(requests, 0)  # only hanging up and errors
    waiting.poll()
    os._exit(0)


if __name__ == "__main__":
    main()
