"""How many threads measuring may use: the processors of this process, or what the environment says."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from threadpoolctl import ThreadpoolController

VARIABLE: Final = "FP_THREADS"
"""Sets the number; worker processes that share a machine get their part of it in this way."""


def thread_count() -> int:
    """A number from 1 on: that of ``FP_THREADS`` if it is one, else of the processors that this process may run on."""
    return wanted_threads() or processors()


def wanted_threads() -> int | None:
    """The number from 1 on that ``FP_THREADS`` is, None if it is none."""
    with suppress(ValueError):
        if (wanted := int(os.environ.get(VARIABLE, ""))) > 0:
            return wanted
    return None


def processors() -> int:
    """Processors that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def single_blas() -> AbstractContextManager[object]:
    """While it is entered products of numpy take one thread each: the threads of BLAS would wait for those that share
    the work, and the last digits must not depend on how many processors there are."""
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


@cache
def _libraries() -> ThreadpoolController:
    """The libraries that were loaded when it was first asked: finding them takes a millisecond."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
