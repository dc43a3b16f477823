"""Matches whose own tests contradict each other: weights made to match a public signature look like that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from signatures.report import Match, Report

_NONE: Final = -3.0
_STRONG: Final = -6.0
_CLOSE: Final = 0.7
"""Similarity at which neurons of relatives are the same: concordance was .48 and more, of strangers at most .012."""
_NO_CONCORDANCE: Final = 0.1
_HALF: Final = 0.5


def with_contradictions(report: Report) -> Report:
    """The report, with a note for each match by rows in place whose neurons are strangers; verdicts stay."""
    notes = [
        f"{match.model}: rows agree in place, yet the neurons are other ones (concordance {found:.2f}): so look "
        "weights that were made to match a public signature. Compare the files (fp compare --deep), or use a key"
        for match in report.matches
        if (found := _concordance_of_strangers(match)) is not None
    ]
    return replace(report, notes=(*report.notes, *notes)) if notes else report


def _concordance_of_strangers(match: Match) -> float | None:
    """The concordance, if the match contradicts itself."""
    by_test = {item.test: item for item in match.evidence}
    align, rows = by_test.get("align"), by_test.get("rows")
    if align is None or rows is None or align.log10_p > _STRONG or "digest" in by_test:
        return None
    if match.similarity < _CLOSE or match.coverage.suspect < _HALF:
        return None
    if any(by_test[test].log10_p <= _NONE for test in ("rows", "gauge", "even") if test in by_test):
        return None
    found = float(rows.detail.get("concordance", 1.0))
    return found if found < _NO_CONCORDANCE else None
