"""The page of formats: its tables are those that the code makes, and nothing that is read is left out of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.formats import PARTS, current
from fingerprint.quant import layouts
from fingerprint.readers import FORMATS
from fingerprint.readers.findings import FindingCode
from fingerprint.readers.limits import LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.readers.base import Reader

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "formats.md"
SOURCES = [path for path in (ROOT / "fingerprint").rglob("*.py") if path.name != "findings.py"]


def test_the_page_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == current(page), "run: python -m cli.formats"


def test_the_page_has_every_generated_part_once() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [page.count(f"<!-- {name} -->\n") for name in PARTS] == [1] * len(PARTS)


def test_a_stale_part_is_replaced_and_the_prose_stays() -> None:
    stale = "# Title\n\n<!-- limits -->\n| old | table |\n<!-- end -->\n\nProse.\n"
    made = current(stale)
    assert "| old |" not in made
    assert made.startswith("# Title\n\n<!-- limits -->\n| what | limit |\n|---|---|\n")
    assert made.endswith("<!-- end -->\n\nProse.\n")


def test_a_part_that_nothing_makes_is_an_error() -> None:
    with pytest.raises(KeyError):
        current("<!-- nobody -->\n<!-- end -->\n")


@pytest.mark.parametrize("reader", [one.reader for one in FORMATS], ids=lambda reader: reader.name)
def test_every_reader_says_what_it_reads(reader: Reader) -> None:
    assert reader.about
    for row in reader.about:
        assert row.title
        assert row.recognised
        assert row.read
        assert "|" not in "".join((row.title, row.recognised, row.read, row.unread))


def test_every_extra_that_a_reader_needs_exists() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in {row.extra for one in FORMATS for row in one.reader.about} - {""}:
        assert f"\n{extra} = [" in declared


def test_every_quantised_layout_has_a_row() -> None:
    assert {function for row in layouts.ABOUT for function in row.read_by} == layouts.layouts()


def findings_made() -> Iterator[ast.expr]:
    """The first argument of every call of ``Finding`` in the sources."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                yield node.args[0]


def test_readers_make_only_findings_of_the_closed_set() -> None:
    written = {node.value for node in findings_made() if isinstance(node, ast.Constant)}
    assert len(written) > 25
    assert written - set(FindingCode) == set()


def test_every_code_of_the_closed_set_is_made_somewhere() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert [code for code in FindingCode if f'"{code}"' not in text and f"FindingCode.{code.name}" not in text] == []


def test_limits_are_listed_once() -> None:
    assert len({what for what, _ in LIMITS}) == len(LIMITS)
