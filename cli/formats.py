"""Writes what the code knows into the page of formats: ``python -m cli.formats``, from the top of the source tree.

The page is written by hand, except what lies between a line ``<!-- name -->`` and the next ``<!-- end -->``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fingerprint.dtypes import DTYPES
from fingerprint.quant import layouts
from fingerprint.readers import FORMATS, distributed, orbax, zarr
from fingerprint.readers.findings import FindingCode
from fingerprint.readers.limits import LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

PAGE: Final = Path("docs", "formats.md")
_PART: Final = re.compile(r"(<!-- ([a-z]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def current(page: str) -> str:
    """``page`` with all generated parts as the code has them. Raises ``KeyError`` for a part that nothing makes."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[3]}", page)


def _formats() -> str:
    about = [row for one in FORMATS for row in one.reader.about]
    about += (distributed.ABOUT, orbax.ABOUT, zarr.ABOUT)
    rows = [
        (f"{row.title} (extra `{row.extra}`)" if row.extra else row.title, row.recognised, row.read, row.unread)
        for row in about
    ]
    return _table(("format", "recognised by", "read", "not read"), rows)


def _types() -> str:
    return ", ".join(f"`{name}`" for name in DTYPES) + ".\n"


def _layouts() -> str:
    rows = [(row.title, row.tensors, row.shown) for row in layouts.ABOUT]
    return _table(("layout", "tensors of a module", "shown as"), rows)


def _findings() -> str:
    return _table(
        ("code", "meaning", "incomplete"), [(f"`{code}`", code.meaning, code.incomplete) for code in FindingCode]
    )


def _limits() -> str:
    return _table(("what", "limit"), LIMITS)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_line(header), "|" + "---|" * len(header), *map(_line, rows)]
    return "".join(f"{line}\n" for line in lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


PARTS: Final[dict[str, Callable[[], str]]] = {
    "formats": _formats,
    "types": _types,
    "layouts": _layouts,
    "findings": _findings,
    "limits": _limits,
}
"""What makes each part of the page."""

if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
