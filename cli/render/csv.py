"""CSV for spreadsheets: a header, one row a line, and nothing that a spreadsheet would run as a formula."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any, Final, Generic

from cli.render.view import Value, View
from cli.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORMULA: Final = frozenset("=+-@|%" + "\uff1d\uff0b\uff0d\uff20")
"""Characters that begin a formula, the last four being full-width forms, which spreadsheets take too."""


class CsvRenderer(Generic[Value]):
    """Rows of the view's table."""

    def __init__(self, view: View[Value]) -> None:
        self._view = view

    def begin(self) -> str:
        """See ``Renderer.begin``."""
        return _lines([self._view.columns])

    def value(self, value: Value) -> str:
        """See ``Renderer.value``."""
        rows = self._view.to_rows(value)
        return _lines([_cell(row.get(column)) for column in self._view.columns] for row in rows)

    def end(self) -> str:
        """See ``Renderer.end``."""
        return ""


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _cell(value: Any) -> str | int | float:
    """Numbers as they are; text on one line, quoted with an apostrophe where it would begin a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return value if math.isfinite(value) else ""
    if isinstance(value, int):
        return int(value)
    text = printable(" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return f"'{text}" if text.lstrip()[:1] in _FORMULA else text
