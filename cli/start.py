"""Entry point of ``fp``: makes an interruption quiet before anything that takes time is imported."""

from __future__ import annotations

import gc
import os
import signal
from contextlib import suppress
from typing import NoReturn

_INTERRUPTED = 130  # that of cli.exits, which is not imported yet


def main() -> NoReturn:
    """Run the program; ends the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    # The matrices are small, and threads and processes share the work already: those of BLAS only wait for one another.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Hundreds of thousands of headers hold no cycles and are needed to the end: to look for some is a fifth of reading.
    gc.set_threshold(100_000, 50, 50)
    from cli.main import main as program

    program()


def _end(number: int, frame: object) -> None:
    """End at once: nothing is open yet, and an exception could be taken for a failed import."""
    with suppress(OSError):  # it may be closed
        os.write(2, b"fp: error: interrupted\n")
    os._exit(_INTERRUPTED)
