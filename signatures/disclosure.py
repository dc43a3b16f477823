"""Signatures that disclose less: without what is measured of neurons, attention and layers as wholes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fingerprint.records import Fingerprint
    from signatures.report import Report

LESS: Final = "disclosed-less"
"""Code of the finding that a signature which discloses less carries."""
_MESSAGE: Final = "registered with --disclose less: no samples of neurons, attention channels and layers, no claims"
_LOST: Final = "rows, gauge and even"
_SHOWN: Final = 3


def disclose_less(fingerprint: Fingerprint) -> Fingerprint:
    """The fingerprint without neurons, channels, vectors of layers, claims and moments.

    Digests, tensor sketches, sampled rows and columns, names, roles and shapes remain, and of the statistics the share
    of zeros and the grid of quantised values: the tests ``digest``, ``align`` and ``sketch``. Rewritten suspects are
    then not found.
    """
    return replace(
        fingerprint,
        tensors=tuple(
            replace(
                tensor,
                statistics=replace(tensor.statistics, mean=0.0, deviation=0.0, largest=0.0, kurtosis=0.0),
            )
            for tensor in fingerprint.tensors
        ),
        neurons=(),
        channels=(),
        grams=(),
        claims={},
        findings=(*fingerprint.findings, (LESS, _MESSAGE)),
    )


def discloses_less(fingerprint: Fingerprint) -> bool:
    """Whether a signature was made so."""
    return any(code == LESS for code, _ in fingerprint.findings)


def with_tests_lost(report: Report, registered: Iterable[tuple[str, Fingerprint]]) -> Report:
    """The report, whose power says which registered models could not be put to all tests."""
    less = [name for name, fingerprint in registered if discloses_less(fingerprint)]
    if not less:
        return report
    names = ", ".join(less[:_SHOWN]) + (f" and {len(less) - _SHOWN} more" if len(less) > _SHOWN else "")
    lost = f"{_LOST} against {names}: the signature discloses less, so that rewritten copies are not found"
    return replace(report, power=replace(report.power, not_tested=(*report.power.not_tested, lost)))
