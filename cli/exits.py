"""Exit statuses: what each one means, which report gives which, and which one wins among several suspects."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from signatures.report import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from signatures.report import Confidence, Report


class Exit(IntEnum):
    """Exit statuses of every command."""

    OK = 0
    """Done; of a scan: scanned whole, and nothing at or above ``--fail-on``."""
    MATCH = 1
    """A match at or above ``--fail-on``."""
    ERROR = 2
    """Unreadable or malformed file, bad usage, broken registry."""
    INCONCLUSIVE = 3
    """Scanned but not whole, or inconclusive, and nothing matched."""
    INTERRUPTED = 130
    """Interrupted by the user or asked to end."""


_STRONGEST_FIRST: Final = (Exit.INTERRUPTED, Exit.MATCH, Exit.ERROR, Exit.INCONCLUSIVE, Exit.OK)


def of_report(report: Report, fail_on: Confidence) -> Exit:
    """The status that one suspect's report gives.

    Only a match whose link accuses (lineage) counts: siblings, shared components and common initialisation do not.
    """
    accusation = report.strongest_accusation
    if accusation is not None and accusation.rank >= fail_on.rank:
        return Exit.MATCH
    if report.verdict is Verdict.ERROR:
        return Exit.ERROR
    if report.verdict is Verdict.INCONCLUSIVE or not report.suspect.complete:
        return Exit.INCONCLUSIVE
    return Exit.OK


def strongest(statuses: Iterable[Exit]) -> Exit:
    """The one status for several suspects: a match beats an error, an error beats inconclusive, that beats none."""
    return min(statuses, key=_STRONGEST_FIRST.index, default=Exit.OK)
