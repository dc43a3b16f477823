"""Pieces of text for people: wrapped fields under a label, and tables that fit the width."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final, Generic

from cli.render.view import Value
from cli.text import clipped_middle, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cli.console import Look

LABEL: Final = 16
INDENT: Final = 2
_NARROWEST_COLUMN: Final = 8


class EachText(Generic[Value]):
    """Shows each value by a function, with an empty line between values."""

    def __init__(self, show: Callable[[Value, Look], str], look: Look) -> None:
        self._show = show
        self._look = look
        self._first = True

    def begin(self) -> str:
        """See ``Renderer.begin``."""
        return ""

    def value(self, value: Value) -> str:
        """See ``Renderer.value``."""
        lead = "" if self._first else "\n"
        self._first = False
        return lead + self._show(value, self._look)

    def end(self) -> str:
        """See ``Renderer.end``."""
        return ""


class TableText(Generic[Value]):
    """Collects all values and shows one table of them, made by a function."""

    def __init__(self, show: Callable[[Sequence[Value], Look], str], look: Look) -> None:
        self._show = show
        self._look = look
        self._values: list[Value] = []

    def begin(self) -> str:
        """See ``Renderer.begin``."""
        return ""

    def value(self, value: Value) -> str:
        """See ``Renderer.value``."""
        self._values.append(value)
        return ""

    def end(self) -> str:
        """See ``Renderer.end``."""
        return self._show(self._values, self._look)


def field(label: str, text: str, look: Look) -> list[str]:
    """``text`` wrapped beside a label: lines of at most the width."""
    head = " " * INDENT + f"{label:<{LABEL}}"
    return textwrap.wrap(
        text,
        width=look.width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    ) or [head.rstrip()]


def fields(pairs: Sequence[tuple[str, str]], look: Look) -> list[str]:
    """Several labelled fields; those without text are left out, and a label is not repeated. Text is made printable."""
    shown = [(label, text) for label, text in pairs if text]
    labels = ["", *(label for label, _ in shown)]
    return [
        line
        for (label, text), before in zip(shown, labels, strict=False)
        for line in field("" if label == before else label, printable(text), look)
    ]


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    look: Look,
    *,
    right: Sequence[int] = (),
    whole: Sequence[int] = (),
    indent: int = 0,
) -> list[str]:
    """Aligned columns; columns numbered in ``right`` are set to the right.

    Cells are made printable. If the table is too wide, the widest columns are cut in the middle, except those numbered
    in ``whole``, which hold what somebody may want to copy.
    """
    cells = [[printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    room = look.width - indent - 2 * (len(header) - 1)
    can_shrink = [column for column in range(len(header)) if column not in whole]
    while sum(widths) > room and can_shrink:
        widest = max(can_shrink, key=lambda column: widths[column])
        if widths[widest] <= _NARROWEST_COLUMN:
            break
        widths[widest] -= 1
    lines = []
    for number, row in enumerate(cells):
        parts = [
            f"{clipped_middle(cell, width):>{width}}" if column in right else f"{clipped_middle(cell, width):<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = " " * indent + "  ".join(parts).rstrip()
        lines.append(look.styled(line, dim=True) if number == 0 else line)
    return lines
