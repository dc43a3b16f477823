"""Progress on a terminal's standard error: bytes, rate and time left of each checkpoint, items of a list."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli.text import clipped_middle, shown_path
from fingerprint.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import ProgressColumn

    from cli.console import Console

    Advance = Callable[[int], None]

_LABEL_WIDTH = 28
_SECONDS_BETWEEN = 0.1


@contextmanager
def reading(console: Console, *paths: str) -> Iterator[Advance | None]:
    """A function that takes the number of bytes read since its last call, for the block; None where nothing is drawn.

    The bar is gone when the block ends.
    """
    if not console.animates:
        yield None
        return
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    label = ", ".join(os.path.basename(os.path.normpath(path)) for path in paths)
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with _bar(console, clipped_middle(shown_path(label), _LABEL_WIDTH), _size(paths), *columns) as advance:
        yield advance


@contextmanager
def listing(console: Console, total: int | None) -> Iterator[Advance | None]:
    """A function that takes the number of items of a list that were done since its last call; None: nothing is drawn.

    ``total`` is None where the length of the list is not known. Nothing is drawn where the results themselves appear on
    the terminal.
    """
    if not console.animates or (sys.stdout is not None and sys.stdout.isatty()):
        yield None
        return
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    with _bar(console, "list", total, MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as advance:
        yield advance


@contextmanager
def _bar(console: Console, label: str, total: int | None, *columns: ProgressColumn) -> Iterator[Advance]:
    """A bar that is drawn as it advances and not by a thread of its own, beside which nothing could be forked."""
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        *columns,
        console=RichConsole(stderr=True, no_color=not console.colour_allowed, highlight=False),
        auto_refresh=False,
        transient=True,
        expand=True,
    )
    drawn = time.monotonic()

    def advance(done: int) -> None:
        nonlocal drawn
        bar.advance(task, done)
        if (now := time.monotonic()) - drawn >= _SECONDS_BETWEEN:
            drawn = now
            bar.refresh()

    with bar:
        task = bar.add_task(label, total=total)
        bar.refresh()
        yield advance


def _size(paths: tuple[str, ...]) -> int | None:
    """Bytes to be read; None if that is not known (a signature, what lies elsewhere, a file that will be an error)."""
    from fingerprint.checkpoint import open_checkpoint
    from fingerprint.urls import is_remote

    total = 0
    for path in paths:
        if is_remote(path):
            return None
        try:
            with open_checkpoint(path) as checkpoint:
                total += checkpoint.bytes
        except InputError:
            return None
    return total
