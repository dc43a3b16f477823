"""The error rates of networks without a residual stream, on untrained ones: true tests pass, broken ones fail."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.error_rates.__main__ import failures
from benchmarks.error_rates.rates import table
from benchmarks.units.networks import PICTURES
from benchmarks.units.null import BROKEN, EVEN, LAYER, NETWORK, main, run
from benchmarks.units.populations import OTHER_CELLS, POPULATIONS, members, quick, relatives, strangers
from benchmarks.units.run import build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.units.populations import Member


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("units")
    for one in quick(POPULATIONS):
        build(folder, one.kind, one.last, channels=one.channels, steps=0)
    yield folder
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cells(zoo: Path) -> list[Member]:
    return members(zoo, [replace(one, last=1) for one in quick(POPULATIONS) if one.kind not in PICTURES])


def test_the_product_keeps_to_its_p_values(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--zoo", str(zoo), "--out", str(tmp_path), "--quick"])
    assert status == 0, capsys.readouterr().out
    table = json.loads((tmp_path / "units-errors.json").read_text())
    assert {row["test"] for row in table["rows"]} == {EVEN, LAYER, NETWORK}
    assert not any(rate["rejected"] for row in table["rows"] for rate in row["rates"])
    assert all(row["of"] > 0 for row in table["rows"])
    assert {"even", "gauge", "rows"} <= table["smallest"].keys()
    page = (tmp_path / "units-errors.md").read_text()
    assert "no `--corpus` was given" in page
    assert len(list(tmp_path.glob("*.png"))) == page.count("![QQ plot](") == 3


def test_a_broken_test_makes_the_command_fail(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--zoo", str(zoo), "--out", str(tmp_path), "--quick", "--break", "even-twentieth"]) == 1
    assert "failed: even, " in capsys.readouterr().out
    assert not (tmp_path / "units-errors.json").exists()


@pytest.mark.parametrize("broken", sorted(BROKEN.keys() - {"even-twentieth"}))
def test_coins_looked_at_too_early_are_found_out(broken: str, cells: list[Member]) -> None:
    found, extra = run([], relatives(cells, 1), broken, 60)
    wrong = failures(table(found.samples), extra)
    assert any(one.startswith(NETWORK) for one in wrong)


def test_networks_of_one_seed_are_never_paired(cells: list[Member]) -> None:
    pairs = strangers(cells)
    assert {stratum for stratum, _, _ in pairs} == {OTHER_CELLS}
    assert all(registered.root != suspect.root for _, registered, suspect in pairs)
