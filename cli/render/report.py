"""How a report looks as an object and as rows of a table; its text is made in ``report_text``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cli.render.layout import EachText
from cli.render.part_text import part_name
from cli.render.report_text import report_text
from cli.render.view import View
from signatures.report import SCAN_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from signatures.report import KeyedCheck, Report

COLUMNS: Final = (
    "path",
    "verdict",
    "model",
    "link",
    "relation",
    "confidence",
    "log10_p",
    "similarity",
    "coverage_suspect",
    "coverage_registered",
    "undone",
    "aliases",
    "explained_by",
    "note",
    "signature",
    "error",
    "format",
    "bytes",
    "tensors",
    "parameters",
    "registry_models",
    "seconds",
    "claims",
    "parts",
    "keyed",
)


def report_view(schema: str = SCAN_SCHEMA, against: str | None = None) -> View[Report]:
    """How reports are shown; ``schema`` tells a scan from a comparison, ``against`` what was compared with."""
    return View(
        to_object=lambda report: report.to_json(schema),
        columns=COLUMNS,
        to_rows=_rows,
        to_text=lambda look: EachText(partial(report_text, against=against), look),
    )


def _rows(report: Report) -> Iterable[Mapping[str, Any]]:
    """One row a match, or one for a suspect without matches."""
    suspect = report.suspect
    shared = {
        "path": suspect.path,
        "verdict": report.verdict.value,
        "error": report.error,
        "format": suspect.format,
        "bytes": suspect.bytes,
        "tensors": suspect.tensors,
        "parameters": suspect.parameters,
        "registry_models": report.registry.models,
        "seconds": report.seconds,
        "claims": "; ".join(report.claims.statements) if report.claims is not None else None,
        "keyed": None if report.keyed is None else "; ".join(map(_keyed, report.keyed)),
    }
    if not report.matches:
        return [shared]
    return [
        {
            **shared,
            "model": match.model,
            "link": match.link.value,
            "relation": match.relation.value,
            "confidence": match.confidence.value,
            "log10_p": match.log10_p,
            "similarity": match.similarity,
            "coverage_suspect": match.coverage.suspect,
            "coverage_registered": match.coverage.registered,
            "undone": match.undone,
            "aliases": match.aliases,
            "explained_by": match.explained_by,
            "note": match.note,
            "signature": match.signature,
            "parts": "; ".join(
                f"{part_name(part)} {one.coverage:.0%}"
                for part in report.parts
                for one in part.matches
                if one.model == match.model
            ),
        }
        for match in report.matches
    ]


def _keyed(check: KeyedCheck) -> str:
    return f"{check.model} {'confirmed' if check.confirmed else 'not confirmed'} (log10 p {check.log10_p:.1f})"
