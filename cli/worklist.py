"""Lists of models to be registered: paths with a template of names, or a table with a row for each model."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import fields

from cli.paths import MAX_PATH, STANDARD
from fingerprint.errors import UsageError, clipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MOST_ROWS: Final = 10_000_000
_PLACES: Final = ("stem", "folder")
_PLACE: Final = re.compile(r"\{([^{}]*)\}")


class Entry(Struct, frozen=True):
    """A model to be registered: where it is, and what is said about it."""

    path: str
    name: str
    owner: str | None = None
    license: str | None = None
    revision: str | None = None
    base: str | None = None
    note: str | None = None


_COLUMNS: Final = tuple(one.name for one in fields(Entry))


def named(path: str, template: str) -> str:
    """The name that a template gives to a path.

    ``{stem}`` is the last part of the path without what follows its last dot (of a folder, all of it), ``{folder}`` the
    part before it. Raises ``UsageError`` for another place.
    """
    whole = os.path.abspath(path)
    last = os.path.basename(whole)
    values = {
        "stem": last if os.path.isdir(whole) else os.path.splitext(last)[0],
        "folder": os.path.basename(os.path.dirname(whole)),
    }
    for place in _PLACE.findall(template):
        if place not in _PLACES:
            raise UsageError(f"--name has the place {{{clipped(place)}}}; there are {{stem}} and {{folder}}")
    return _PLACE.sub(lambda found: values[found[1]], template)


def has_places(template: str) -> bool:
    """Whether a template gives different names to different paths."""
    return _PLACE.search(template) is not None


def from_table(source: str, template: str | None, labels: Mapping[str, str | None]) -> list[Entry]:
    """The rows of a table in a file, or of standard input for ``-``: JSON objects, one a line, or columns set apart by
    tabs with a line of headings.

    Keys and headings are the fields of ``Entry``. What a row leaves out comes from ``template`` and ``labels``. Raises
    ``UsageError`` for a table that cannot be read; what is wrong with one name or path is found when it is its turn.
    """
    rows = list(_rows(source))
    return [_entry(f"{source}, line {line}", row, template, labels) for line, row in rows]


def _entry(where: str, row: Mapping[str, Any], template: str | None, labels: Mapping[str, str | None]) -> Entry:
    for column, value in row.items():
        if column not in _COLUMNS:
            raise UsageError(f"{where}: {clipped(column)!r} is none of {', '.join(_COLUMNS)}")
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{where}: {column} is no text")
    given = {column: value for column, value in row.items() if value}
    path = given.pop("path", None)
    if path is None:
        raise UsageError(f"{where}: there is no path")
    name = given.pop("name", None) or (named(path, template) if template else None)
    if name is None:
        raise UsageError(f"{where}: there is no name, and no --name that gives one")
    return Entry(path, name, **{**labels, **given})


def _rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    headings: list[str] | None = None
    as_objects: bool | None = None
    for line, text in enumerate(_lines(source), 1):
        where = f"{source}, line {line}"
        if not text.strip():
            continue
        if line > MOST_ROWS:
            raise UsageError(f"{source}: has more than {MOST_ROWS:,} lines")
        if as_objects is None:
            as_objects = text.lstrip().startswith("{")
        if as_objects:
            yield line, _object(where, text)
        elif headings is None:
            headings = [one.strip().lower() for one in text.split("\t")]
            if "path" not in headings or len(set(headings)) != len(headings):
                raise UsageError(f"{where}: is neither a JSON object nor a line of headings with 'path' among them")
        else:
            cells = text.split("\t")
            if len(cells) > len(headings):
                raise UsageError(f"{where}: has {len(cells)} columns, and the headings {len(headings)}")
            yield line, {head: cell.strip() for head, cell in zip(headings, cells, strict=False)}


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{where}: is no JSON object")
    return value


def _lines(source: str) -> Iterable[str]:
    if source == STANDARD:
        if sys.stdin is None:
            raise UsageError("standard input is closed; it was to give a list of models")
        yield from _decoded(source, sys.stdin.buffer)
        return
    try:
        with open(source, "rb") as file:
            yield from _decoded(source, file)
    except OSError as error:
        raise UsageError(f"{source}: cannot be read: {error.strerror}") from error


def _decoded(source: str, stream: Any) -> Iterator[str]:
    while line := stream.readline(MAX_PATH + 1):
        if len(line) > MAX_PATH:
            raise UsageError(f"{source}: has a line of more than {MAX_PATH} bytes: this is no list of models")
        yield os.fsdecode(line).rstrip("\r\n").removeprefix("\ufeff")
