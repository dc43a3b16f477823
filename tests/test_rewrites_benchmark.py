"""The benchmark of rewrites on the quick zoo: which suspects are scanned by which parts, and what the page says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.lineage import derive_ops as ops
from benchmarks.rewrites.cases import damages, further
from benchmarks.rewrites.make import STAND_INS
from benchmarks.rewrites.parts import DEGREES, PARTS, USUAL, is_right, plan_all
from benchmarks.rewrites.run import main, run
from benchmarks.rewrites.table import main as write_page
from benchmarks.rewrites.table import page
from benchmarks.zoo.recipes import family
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from pathlib import Path

SPECS = list(family("a", quick=True))
STEM = "quick-a-llama-48"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return quick_zoo(tmp_path_factory, SPECS, [f"{STEM}-{one}" for one in ("A", "B", "A-ftx", "A-fty", "A-cont")])


def planned(*parts: str, only: str = "*"):
    return plan_all("a", quick=True, models=[STEM], only=[only], parts=parts or ["*"])


@pytest.fixture(scope="module")
def rows(zoo):
    wanted = ["laundered/intact", "laundered/sparse-90", "laundered/neurons-12.5"]
    return run(
        zoo,
        family_name="a",
        quick=True,
        models=[STEM],
        only=wanted,
        parts=["[!o]*", "one layer*"],
        report=lambda _: None,
    )


def test_everything_that_relatives_go_through_siblings_and_another_seed_do():
    through = {}
    for job, parts in planned():
        for part in parts:
            through.setdefault((part.name, part.source), set()).add((job.rewrite.name, job.damage.name))
    relatives = through["each alone", "A"] | through["damaged", "A"]
    assert {damage for _, damage in relatives} == {one.name for one in damages()} == set(USUAL)
    assert relatives == through["look-alikes", "B"]
    assert relatives < through["siblings", "A-fty"]
    assert {damage for _, damage in through["siblings", "A-fty"] - relatives} == {"tuned-alike"}
    for source in STAND_INS:
        after_all = {one for one in relatives if one[1] == "intact" or one[0] == "all"}
        assert through["look-alikes", source] == after_all
    for piece in ("one layer", "one MLP"):
        alone = through[piece, "A"]
        assert len(alone) == len(USUAL) - 1
        assert all(through[f"{piece} of a look-alike", source] == alone for source in ("B", *STAND_INS))
        assert through[f"{piece} of a sibling", "A-fty"] - alone == {("laundered", "tuned-alike")}


def test_every_suspect_is_made_once_and_for_all_its_parts():
    found = planned()
    assert len({job.key for job, _ in found}) == len(found)
    (parts,) = [parts for job, parts in found if job.key == f"{STEM}/A/laundered/sparse-50"]
    assert [part.name for part in parts] == ["damaged", "one layer", "one MLP", *["limits"] * 4]
    assert [part.layer for part in parts if part.name == "limits"] == [0, 1, 2, 3]


def test_degrees_are_damages():
    assert {name for names in DEGREES.values() for name in names} <= {one.name for one in (*damages(), *further())}
    assert {part.name for part in PARTS if part.layer >= 0} == {"limits", "limits, trained on"}


def test_rows_say_what_siblings_are_called_and_which_layer_was_alone(rows):
    siblings = [row for row in rows if row["part"] == "siblings"]
    assert siblings
    assert all(row["source"] == "A-fty" and row["links"].get("A-ftx") != "lineage" for row in siblings)
    descendants = [row for row in rows if row["part"] == "descendants"]
    assert descendants
    for row in descendants:
        assert (row["source"], row["first"], row["accused"]) == ("A-ftx", "A-ftx", [])
        assert row["links"] == {"A-ftx": "lineage", "A": "lineage"}
    limits = [row for row in rows if row["part"] == "limits" and row["damage"] == "intact"]
    assert [(row["source"], row["layer"]) for row in limits] == [(one, i) for one in "AB" for i in range(4)]
    look_alikes = [row for row in rows if "look-alike" in row["part"]]
    assert {row["source"] for row in look_alikes} == {"B", *STAND_INS}
    assert all(map(is_right, look_alikes))


def test_the_page_has_a_table_for_each_part(rows):
    text = page(rows, [])
    assert "| rewrite | model | said | relation | undone |" in text
    (alone,) = (row for row in rows if row["part"] == "each alone")
    assert f"| {alone['relation']} | {', '.join(alone['undone'])} |" in text
    assert "Called a descendant of its sibling: 0 of 1." in text
    assert "`A-ftx`, of which they were made, was listed as: lineage 1." in text
    assert f"| damage | {STEM} | {STEM}, trained on |" in text
    assert "| neurons-12.5 | " in text
    assert "none of 3" in text


def test_an_accused_sibling_and_a_matched_look_alike_stand_out(rows):
    accused = [row | {"accused": ["x"], "links": {"A-ftx": "lineage"}} for row in rows if row["part"] == "siblings"]
    matched = [row | {"found": False, "verdict": "possible"} for row in rows if row["part"] == "look-alikes"]
    text = page(accused + matched, [])
    assert "Called a descendant of its sibling: 1 of 1. The sibling was listed as: lineage 1." in text
    assert "**lineage**" in text
    assert "**A-drawn: possible**" in text
    assert f"0 of {len(matched)} not matched." in text


def test_the_command_keeps_rows_that_the_page_is_made_of(zoo, tmp_path, capsys):
    kept, units, out = tmp_path / "rows", tmp_path / "units", tmp_path / "page.md"
    arguments = ["--zoo", str(zoo), "--quick", "--models", STEM, "--only", "none/intact", "--rows", str(kept)]
    assert main([*arguments, "--part", "each alone"]) == main([*arguments, "--part", "each alone"]) == 0
    assert "1 of 1 as they must be" in capsys.readouterr().out
    assert [json.loads(line)["first"] for line in kept.read_text().splitlines()] == ["A", "A"]
    units.write_text("[]")
    assert write_page(["--rows", str(kept), "--units", str(units), "--out", str(out)]) == 0
    assert "1 of 1 found." in out.read_text()


def test_stand_ins_keep_means_and_deviations():
    weights = {"w": torch.arange(600.0).reshape(20, 30)}
    for change in (ops.random_like, ops.shuffle):
        made = change(weights, torch.Generator().manual_seed(1))["w"]
        assert not torch.equal(made, weights["w"])
        assert float(made.mean()) == pytest.approx(299.5, rel=0.1)
        assert float(made.std()) == pytest.approx(float(weights["w"].std()), rel=0.1)
