"""Hostile checkpoints at the command line: the right status, one line each, nothing executed, results unspoilt."""

from __future__ import annotations

import csv
import io
import os
from typing import TYPE_CHECKING

import pytest

from tests.cli_support import Typed
from tests.hostile import CANARY, CASES, Case, Expect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli_support import Ran, Zoo

    Program = Callable[..., Ran]

pytest_plugins = ["tests.cli_fixtures"]

STATUSES = {
    Expect.ERROR: {2},
    Expect.PARTIAL: {3},
    Expect.FINDING: {0, 3},
    Expect.FINE: {0, 3},
}
"""Statuses that a scan may end with; nothing in the corpus descends from a registered model."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_suspect_is_one_line_and_the_right_status(
    case: Case, fp: Program, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = case.build(tmp_path)
    monkeypatch.setattr("sys.stdin", Typed(os.fsencode(path)))  # where a path may hold a NUL
    ran = fp("scan", "-", "--format", "json", registry=zoo.registry)
    assert ran.status in STATUSES[case.expect]
    assert len(ran.objects) == 1
    if case.expect is Expect.ERROR:
        assert ran.objects[0]["verdict"] == "error"
        assert ran.err == f"fp: error: {ran.err[11:-1]}\n"
        assert ran.err[:-1].isprintable()
        assert len(ran.err) < len(str(path)) + 2000
    assert "Traceback" not in ran.err
    assert not (tmp_path / CANARY).exists()


def test_a_heap_of_hostile_suspects_does_not_hide_the_match_among_them(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    paths = []
    for number, case in enumerate(CASES[::8]):
        (tmp_path / str(number)).mkdir()
        paths.append(case.build(tmp_path / str(number)))
    half = len(paths) // 2
    ran = fp("scan", *paths[:half], zoo.tuned, *paths[half:], "--format", "csv", registry=zoo.registry)
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert ran.status == 1
    assert len(rows) == len(paths) + 1
    assert rows[half]["model"] == "acme/base"


@pytest.mark.parametrize("case", CASES[::6], ids=lambda case: case.name)
def test_a_hostile_checkpoint_is_inspected_in_clean_text(case: Case, fp: Program, tmp_path: Path) -> None:
    ran = fp("inspect", case.build(tmp_path), "--tensors", "-v")
    assert ran.status in {0, 2, 3}
    assert {one for one in ran.out if not one.isprintable()} <= {"\n"}
    assert not (tmp_path / CANARY).exists()
