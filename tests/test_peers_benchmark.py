"""The side-by-side table counts what tools say, in their own words."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.peers.__main__ import Answer, Case, page, read_cisco, read_fp, read_modeldna, run


def report(verdict: str, matches: list[dict[str, str]]) -> str:
    return json.dumps([{"verdict": verdict, "matches": matches}])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (report("match", [{"relation": "fine-tuned", "confidence": "certain"}]), ("found", "fine-tuned, certain")),
        (report("possible", [{"relation": "unclear", "confidence": "possible"}]), ("abstained", "unclear, possible")),
        (report("no-match", []), ("missed", "no-match")),
    ],
)
def test_our_reports_are_read(text, expected):
    assert read_fp(text) == expected


def test_verdicts_of_others_are_read():
    said = {verdict: read_modeldna(json.dumps({"verdict": {"verdict": verdict}}))[0]
            for verdict in ("FINE_TUNE", "NO_MATCH", "INSUFFICIENT")}  # fmt: skip
    assert said == {"FINE_TUNE": "found", "NO_MATCH": "missed", "INSUFFICIENT": "abstained"}
    scores = {"scores": {"provenance_decision": "Confirmed Match", "pipeline_score": 1.0}}
    assert read_cisco("ready\n" + json.dumps(scores)) == ("found", "Confirmed Match 1.00")


def test_a_tool_that_fails_is_an_error_and_is_counted():
    bad = run([sys.executable, "-c", "import sys; sys.exit('broken')"], read_fp)
    assert (bad.outcome, bad.words) == ("error", "broken")
    assert bad.megabytes > 1
    good = Answer("found", "x", 1.0, 2.0)
    related, stranger = Case("r", True, {}), Case("s", False, {})
    text = page({"one": [(related, good), (stranger, good)], "two": [(related, bad), (stranger, bad)]}, {"one": "9"})
    assert "| relatives found | 1 of 1 | 0 of 1 |" in text
    assert "| relatives error | 0 of 1 | 1 of 1 |" in text
    assert "| **false**: strangers found | 1 of 1 | 0 of 1 |" in text
    assert "| bytes kept of model A | 9 | - |" in text
