"""Paths of suspects as given: arguments, and lists on standard input."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from fingerprint.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STANDARD: Final = "-"
MAX_PATH: Final = 1 << 16
"""Longest path that is taken from a list, in bytes: no system has longer ones."""


def expanded(paths: Sequence[str], *, null: bool) -> Iterator[str]:
    """The paths, with ``-`` replaced by those on standard input as they come.

    One a line (blank lines are skipped), or separated by NUL with ``null``: file names may hold line breaks. Raises
    ``UsageError`` for what cannot be a list of paths.
    """
    if paths.count(STANDARD) > 1:
        raise UsageError("'-' reads standard input, which can be done once; a file of that name is ./-")
    for path in paths:
        if path == STANDARD:
            yield from _listed(b"\0" if null else b"\n")
        else:
            yield path


def _listed(separator: bytes) -> Iterator[str]:
    if sys.stdin is None:
        raise UsageError("standard input is closed; it was to give a list of paths")
    for entry in _entries(separator):
        text = entry if separator == b"\0" else entry.rstrip(b"\r")
        if text if separator == b"\0" else text.strip():
            yield os.fsdecode(text)


def _entries(separator: bytes) -> Iterator[bytes]:
    rest = b""
    stream: Any = sys.stdin.buffer
    while piece := stream.read1(MAX_PATH):  # what is there, without waiting for more
        *whole, rest = (rest + piece).split(separator)
        yield from whole
        if len(rest) > MAX_PATH:
            raise UsageError(f"standard input has an entry of more than {MAX_PATH} bytes: this is no list of paths")
    if rest:
        yield rest
