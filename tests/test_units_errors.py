"""The error rates of networks without a residual stream, on untrained ones: true tests pass, broken ones fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.units.null import BROKEN, EVEN, LAYER, NETWORK, main
from benchmarks.units.populations import POPULATIONS, quick
from benchmarks.units.run import build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("units")
    before = torch.get_num_threads()
    for one in quick(POPULATIONS):
        build(folder, one.kind, one.last, channels=one.channels, steps=0)
    yield folder
    torch.set_num_threads(before)


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


@pytest.mark.parametrize(("broken", "test"), [("even-twentieth", EVEN), ("coins-weights", LAYER)])
def test_a_broken_test_makes_the_command_fail(
    broken: str, test: str, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--zoo", str(zoo), "--out", str(tmp_path), "--quick", "--break", broken]) == 1
    assert f"failed: {test}, " in capsys.readouterr().out
    table = json.loads((tmp_path / f"units-errors-broken-{broken}.json").read_text())
    wrong = {row["test"] for row in table["rows"] if any(rate["rejected"] for rate in row["rates"])}
    assert wrong <= ({EVEN} if test == EVEN else {LAYER, NETWORK})


def test_every_broken_variant_has_a_page_of_its_own() -> None:
    assert set(BROKEN) == {"even-twentieth", "coins-weights", "coins-one-sided"}
