"""Comparisons whose own tests contradict each other: weights made to match a public signature look like that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.comparing.evidence import Test

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.comparing.evidence import Evidence

_NONE: Final = -3.0
_STRONG: Final = -6.0
_NO_CONCORDANCE: Final = 0.2
"""In the frame where it is largest; .101 was seen between unrelated models."""
_HALF: Final = 0.5
_OF_NEURONS: Final = (Test.ROWS, Test.GAUGE, Test.EVEN)


def contradiction(comparison: Comparison, evidence: Sequence[Evidence]) -> str:
    """What is wrong with a match by rows in place whose neurons are strangers, "" if nothing is.

    ``evidence`` is that of the comparison, corrected. Public rows and sketches of a model can be written into another
    one at little cost; its neurons stay what they are. Those of relatives agree wherever most of the weights do.
    """
    by_test = {one.test: one for one in evidence}
    align = by_test.get(Test.ALIGN)
    if align is None or align.log10_p > _STRONG or Test.DIGEST in by_test or not comparison.all_neurons:
        return ""
    if comparison.suspect_coverage < _HALF:
        return ""
    if any(by_test[test].log10_p <= _NONE for test in _OF_NEURONS if test in by_test):
        return ""
    in_place = [match.agreement for match in comparison.neurons]
    found = max(float(np.mean(in_place)) if in_place else 0.0, comparison.gauge.concordance)
    if found >= _NO_CONCORDANCE:
        return ""
    return (
        f"rows agree in place, yet the neurons are other ones (concordance {found:.2f}): so look weights that were "
        "made to match a public signature, or whose gains were replaced and not recognised. Compare the files "
        "(fp compare --deep), or use a key"
    )
