"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The numbers of these options in glibc's ``malloc.h``."""
_KEPT: Final = 1 << 28


def give_back() -> None:
    """Give back what the allocator keeps of freed memory, which counts as the process's own; where it can be asked.

    After a stage of much scratch memory in several threads glibc keeps 15 to 60 MB.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def keep() -> None:
    """Let the allocator keep what is freed from now on, where it can be told to: for a process that asks for arrays of
    some megabytes again and again, each of which the system would have to clear, and that ends before long."""
    for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        with suppress(AttributeError, OSError, TypeError):  # another allocator, another system
            ctypes.CDLL(None).mallopt(option, _KEPT)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another allocator, another system
        return None
