"""How registered models look in lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cli.render.layout import TableText, table
from cli.render.view import View
from cli.text import counted, magnitude

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from cli.console import Look
    from signatures.records import ModelRecord, Registration

MODEL_SCHEMA: Final = "fp.model/1"
COLUMNS: Final = (
    "name",
    "parameters",
    "tensors",
    "registered",
    "owner",
    "license",
    "revision",
    "base",
    "note",
    "origin",
    "claimed",
    "identity",
    "depth",
)
_CUT: Final = frozenset({"Base", "Also named", "Origin"})
_MISSED: Final = ("Tensors", "Parameters", "Registered", "Origin", "Also named", "Base")


def model_view() -> View[ModelRecord]:
    """How ``fp list`` and ``fp import`` show models."""
    return View(
        to_object=lambda record: {"schema": MODEL_SCHEMA, **model_object(record)},
        columns=COLUMNS,
        to_rows=_rows,
        to_text=lambda look: TableText(_text, look),
    )


def model_object(record: ModelRecord) -> dict[str, Any]:
    """A model with all its names."""
    return {
        "name": record.name,
        "aliases": list(record.aliases),
        "identity": record.identity,
        "parameters": record.parameters,
        "tensors": record.tensors,
        "depth": record.depth,
        "registrations": [registration_object(entry) for entry in record.registrations],
    }


def registration_object(entry: Registration) -> dict[str, Any]:
    """One name of a model and what was said about it; times in ISO 8601 (UTC)."""
    return {
        "name": entry.name,
        "owner": entry.owner,
        "license": entry.license,
        "revision": entry.revision,
        "base": entry.base,
        "note": entry.note,
        "origin": entry.origin,
        "registered": moment(entry.registered),
        "claimed": None if entry.claimed is None else moment(entry.claimed),
    }


def moment(when: datetime) -> str:
    """A time in UTC: ``2026-11-24T00:10:05Z``."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _rows(record: ModelRecord) -> Iterable[Mapping[str, Any]]:
    """A row for each name: every name has an owner and a history of its own."""
    for entry in record.registrations:
        yield {
            **registration_object(entry),
            "identity": record.identity,
            "parameters": record.parameters,
            "tensors": record.tensors,
            "depth": record.depth,
        }


def _text(records: Sequence[ModelRecord], look: Look) -> str:
    if not records:
        return ""
    columns: list[tuple[str, list[str]]] = [
        ("Name", [record.name for record in records]),
        ("Parameters", [magnitude(record.parameters) for record in records]),
        ("Tensors", [f"{record.tensors:,}" for record in records]),
        ("Registered", [record.registered.strftime("%Y-%m-%d") for record in records]),
        ("Base", [record.base or "" for record in records]),
        ("Also named", [", ".join(record.aliases) for record in records]),
        ("Origin", ["" if record.origin == "local" else record.origin for record in records]),
    ]
    shown = _fitting([(title, cells) for title, cells in columns if any(cells)], look.width)
    titles = [title for title, _ in shown]
    rows = list(zip(*(cells for _, cells in shown), strict=True))
    whole = [number for number, title in enumerate(titles) if title not in _CUT]
    right = [number for number, title in enumerate(titles) if title in {"Parameters", "Tensors"}]
    lines = table(titles, rows, look, right=right, whole=whole)
    return "\n".join([*lines, counted(len(records), "model")]) + "\n"


def _fitting(columns: list[tuple[str, list[str]]], room: int) -> list[tuple[str, list[str]]]:
    """Without the columns that can best be missed, as far as the width asks for it: names are never cut."""
    for title in _MISSED:
        widths = [min(max(map(len, [head, *cells])), 8 if head in _CUT else room) for head, cells in columns]
        if sum(widths) + 2 * (len(widths) - 1) <= room:
            break
        columns = [column for column in columns if column[0] != title]
    return columns
