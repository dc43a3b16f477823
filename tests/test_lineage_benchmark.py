"""The lineage benchmark, on tiny models: deriving, registering, scanning in another process, scoring, the table."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from benchmarks.lineage import freeze
from benchmarks.lineage.distributions import Kin
from benchmarks.lineage.registries import plan, stem_of
from benchmarks.lineage.run import RulesChangedError, main, outcomes, run
from benchmarks.lineage.score import FOUND, NAMED, NEVER, LayerMap, Outcome, score
from benchmarks.zoo.recipes import family
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from pathlib import Path

"""What all of these tests look at takes minutes to make: one worker makes it, once."""

STEM = "quick-a-llama-48"
TINY = {
    "layers-swapped": "a map without numbers of layers does not say their order",
    "layers-reversed": "a map without numbers of layers does not say their order",
    "neurons-pruned-by-norm": "64 of 128 neurons are left: too few to see that they were pruned",
    "sibling": "fine-tunes of so small a model have half of their changes in common",
}
"""Cases that these models are too small for, and why."""


class Done(NamedTuple):
    """A run: its folders, and what came out."""

    zoo: Path
    work: Path
    out: Path
    found: list[Outcome]

    @property
    def truth(self) -> dict[str, Any]:
        return json.loads((self.work / "derived" / "truth" / "truth.json").read_text())

    @property
    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.work / "reports.jsonl").read_text().splitlines()]

    def case(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The truth about a case, and the report."""
        path, truth = next((p, t) for p, t in self.truth["suspects"].items() if t["case"] == name)
        return truth, next(r for r in self.reports if r["suspect"]["path"].endswith(path))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    work, out = (tmp_path_factory.mktemp(name) for name in ("work", "out"))
    specs = family("a", quick=True)
    # The suspects' shape whole, a model of the other style, and eight look-alikes, which are trained together.
    wanted = [s.id for s in specs if stem_of(s.id) == STEM] + ["quick-a-gpt2-48-A", "quick-a-pop-llama-48-s00"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    zoo = quick_zoo(tmp_path_factory, specs, wanted)
    found = run(family_name="a", zoo=zoo, out=out, work=work, quick=True, models=[STEM])
    torch.set_num_threads(threads)
    return Done(zoo, work, out, found)


def test_every_case_is_right_but_those_that_are_too_small(done):
    wrong = {one.case: one.problems for one in done.found if not one.right}
    assert set(wrong) <= set(TINY), wrong


def test_no_unrelated_model_is_at_possible_or_above(done):
    never = [one for one in done.found if one.group == NEVER]
    assert len(never) >= 15
    assert all(one.right and not one.first for one in never)
    assert not any(one.others for one in done.found)


def test_the_summary_counts_every_group(done):
    written = json.loads((done.out / "lineage-quick-a.json").read_text())
    groups = written["summary"]
    assert set(groups) == {FOUND, NAMED, NEVER}
    assert sum(one["of"] for one in groups.values()) == len(done.truth["suspects"]) == len(written["cases"])
    assert groups[FOUND]["right"] >= groups[FOUND]["of"] - len(TINY)
    assert groups[NEVER]["right"] == groups[NEVER]["of"]


def test_the_page_has_a_row_for_every_case_and_the_plot_is_there(done):
    page = (done.out / "lineage-quick-a.md").read_text()
    assert all(f"| {one.case} | {one.verdict} |" in page for one in done.found)
    plot = done.out / "lineage-quick-a-scores.png"
    assert plot.name in page
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_scores_of_relatives_and_of_others_are_kept_apart(done):
    rows = json.loads((done.out / "lineage-quick-a.json").read_text())["scores"]
    median = {(row["statistic"], row["kin"]): row["quantiles"][2] for row in rows}
    for statistic in ("similarity", "minus_log10_p", "landed", "sketch", "agreement", "concordance"):
        assert median[statistic, Kin.RELATIVE] > median[statistic, Kin.NONE]


def test_the_scanning_process_is_told_nothing_but_paths(done):
    jobs = json.loads((done.work / "jobs.json").read_text())
    assert sum(len(job["suspects"]) for job in jobs) == len(done.found)
    assert all(set(job) == {"registry", "suspects"} for job in jobs)
    told = json.dumps(jobs)
    assert "truth" not in told
    assert not any(case in told for case in {one.case for one in done.found} if len(case) > 6)


def test_models_of_the_suspects_shape_are_registered_only_where_the_truth_says_so(done):
    plans = plan(done.truth, done.zoo)
    assert sorted(path for one in plans for path in one.suspects) == sorted(done.truth["suspects"])
    for one in plans:
        assert STEM not in one.lookalikes
        for path in one.suspects:
            suspect = done.truth["suspects"][path]
            assert set(one.registered) == set(suspect["registered"])
            assert ("quick-a-gpt2-48" in one.lookalikes) == (suspect["case"] != "other-style")
            assert "quick-a-pop-llama-48" in one.lookalikes


def test_bases_are_registered_before_their_fine_tunes(done):
    orders = [[model.removeprefix(f"{STEM}-") for model in one.registered] for one in plan(done.truth, done.zoo)]
    assert ["A", "B", "A-ftx", "A-fty"] in orders


# --- the scorer ---------------------------------------------------------------------------------------------------


def test_the_first_match_must_be_a_parent_and_its_relation_the_true_one(done):
    truth, report = done.case("fine-tuned")
    assert score(truth, report).right
    other = deepcopy(report)
    other["matches"][0]["relation"] = "noised"
    assert not score(truth, other).relation
    assert not score(truth, other).right
    other = deepcopy(report)
    other["matches"] = []
    assert score(truth, other).model is False


def test_possible_is_not_found(done):
    truth, report = done.case("copy")
    report["matches"][0]["confidence"] = "possible"
    assert any("only possible" in problem for problem in score(truth, report).problems)


def test_an_unrelated_match_fails_the_case_whatever_its_link(done):
    truth, report = done.case("copy")
    extra = deepcopy(report["matches"][0]) | {"model": "quick-a-pop-llama-48-s00", "link": "same-initialisation"}
    report["matches"].append(extra)
    outcome = score(truth, report)
    assert outcome.others == ("quick-a-pop-llama-48-s00",)
    assert not outcome.right


def test_inconclusive_is_right_where_there_is_nothing_in_the_suspect_and_nowhere_else(done):
    for case, right in (("zeros", True), ("constants", True), ("shuffled", False)):
        truth, report = done.case(case)
        assert score(truth, report | {"verdict": "inconclusive", "matches": []}).right is right


def test_what_is_named_must_not_be_more_than_possible(done):
    truth, report = done.case("same-initialisation")
    assert score(truth, report).right
    report["matches"][0]["confidence"] = "likely"
    assert not score(truth, report).right
    report["matches"][0] |= {"confidence": "possible", "link": "lineage"}
    assert not score(truth, report).right


@pytest.mark.parametrize(("off", "right"), [(0.0, True), (0.019, True), (0.021, False), (-0.021, False)])
def test_coefficients_are_right_within_two_hundredths_of_least_squares(done, off, right):
    truth, report = done.case("merge-linear")
    solved = truth["mixtures"][0]["coefficients"]
    report["mixture"]["coefficients"] = {model: weight + off for model, weight in solved.items()}
    assert score(truth, report).mixture is right


def test_a_merge_with_one_parent_missing_is_wrong(done):
    truth, report = done.case("merge-foreign")
    assert score(truth, report).right
    report["matches"] = [match for match in report["matches"] if not match["model"].endswith("-B")]
    assert any("not matched" in problem for problem in score(truth, report).problems)


@pytest.mark.parametrize(
    ("layers", "mark"),
    [
        ({"0": 0, "1": 2, "2": 1, "3": 3}, LayerMap.EXACT),
        ({"unnamed 0": 0, "unnamed 1": 1, "unnamed 2": 2, "unnamed 3": 3}, LayerMap.UNORDERED),
        ({"0": 0, "1": 1, "2": 2, "3": 3}, LayerMap.WRONG),
        ({"unnamed 0": 0, "unnamed 1": 1, "unnamed 3": 3}, LayerMap.WRONG),
        ({}, LayerMap.WRONG),
    ],
)
def test_reordered_layers_are_right_only_if_the_map_says_the_order(done, layers, mark):
    truth, report = done.case("layers-swapped")
    report["matches"][0]["layers"] = layers
    outcome = score(truth, report)
    assert outcome.layers is mark
    assert any("layer map" in problem for problem in outcome.problems) is (mark is not LayerMap.EXACT)


def test_layers_of_a_frankenmerge_must_be_said_to_be_whose_they_are(done):
    truth, report = done.case("frankenmerge")
    a, b = f"{STEM}-A", f"{STEM}-B"
    for layers, right in (
        ({"0": {a: 1.0}, "1": {b: 1.0}, "2": {a: 1.0}, "3": {b: 0.99}, "outside layers": {a: 1.0}}, True),
        ({f"unnamed {i} of {m}": {m: 1.0} for i, m in enumerate((a, b, a, b))}, True),
        ({"0": {a: 1.0}, "1": {a: 1.0}, "2": {a: 1.0}, "3": {b: 1.0}}, False),
        ({"0": {a: 1.0}, "1": {b: 0.9, a: 0.1}, "2": {a: 1.0}, "3": {b: 1.0}}, False),
        ({"0": {a: 1.0}, "1": {b: 1.0}, "2": {a: 1.0}}, False),
    ):
        report["mixture"]["layers"] = layers
        assert score(truth, report).mixture_layers is right


def test_a_suspect_that_was_not_scanned_is_noticed(done):
    with pytest.raises(KeyError):
        outcomes(done.truth, done.work / "derived", done.reports[1:])


# --- the command and the frozen rules -----------------------------------------------------------------------------


def test_the_exit_status_tells_whether_a_case_failed(done, tmp_path, capsys):
    arguments = ["--quick", "--zoo", str(done.zoo), "--models", STEM, "--out", str(tmp_path)]
    assert main([*arguments, "--only", "copy", "--only", "shuffled"]) == 0
    assert "Found at likely or better: 1 of 1 right" in capsys.readouterr().out
    assert main([*arguments, "--only", "layers-swapped"]) == int(
        "layers-swapped" in {one.case for one in done.found if not one.right}
    )
    assert main([*arguments, "--only", "no-such-case"]) == 2


@pytest.fixture
def rules(tmp_path) -> Path:
    """A root with a file for every pattern of rules."""
    root = tmp_path / "root"
    for pattern in freeze.RULES:
        path = root / pattern.replace("*", "one")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("LIMIT = 3\n")
    return root


def test_a_changed_threshold_is_noticed(rules, tmp_path):
    frozen = tmp_path / "frozen.json"
    assert freeze.state(frozen, rules) == (None, [])
    date = freeze.freeze(frozen, rules)["date"]
    assert freeze.state(frozen, rules) == (date, [])
    (rules / "signatures" / "verdict.py").write_text("LIMIT = 4\n")
    assert freeze.state(frozen, rules) == (date, ["signatures/verdict.py"])
    (rules / "fingerprint" / "comparing" / "new.py").write_text("LIMIT = 5\n")
    assert freeze.state(frozen, rules)[1] == ["fingerprint/comparing/new.py", "signatures/verdict.py"]


def test_rules_are_frozen_once(rules, tmp_path):
    freeze.freeze(tmp_path / "frozen.json", rules)
    with pytest.raises(FileExistsError, match="frozen"):
        freeze.freeze(tmp_path / "frozen.json", rules)


def test_a_file_of_rules_that_is_gone_is_no_frozen_rule(rules):
    (rules / "signatures" / "relation.py").unlink()
    with pytest.raises(FileNotFoundError, match="relation"):
        freeze.digests(rules)


@pytest.mark.parametrize(("state", "said"), [((None, []), "not frozen"), (("2026-01-01", ["a.py"]), "a.py")])
def test_the_second_family_is_not_scored_with_other_rules(monkeypatch, tmp_path, state, said):
    monkeypatch.setattr("benchmarks.lineage.run.state", lambda _: state)
    with pytest.raises(RulesChangedError, match=said):
        run(family_name="b", zoo=tmp_path, out=tmp_path, work=tmp_path)


def test_the_table_says_that_rules_changed(done, monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.lineage.run.state", lambda _: ("2026-01-01", ["signatures/verdict.py"]))
    run(family_name="a", zoo=done.zoo, out=tmp_path, work=tmp_path, quick=True, models=[STEM], only=["copy"])
    page = (tmp_path / "lineage-quick-a.md").read_text()
    assert "**Rules changed since they were frozen** (2026-01-01): `signatures/verdict.py`" in page


def test_stems_of_ids():
    assert stem_of("a-pop-gpt2-64-s03-ftx") == "a-pop-gpt2-64"
    assert stem_of("quick-a-llamatied-48-A-ftx-ft2") == "quick-a-llamatied-48"
    with pytest.raises(ValueError, match="no id"):
        stem_of("reference")


def test_each_held_out_family_has_a_freeze_of_its_own():
    files = {freeze.frozen_file(one) for one in freeze.HELD_OUT}
    assert len(files) == len(freeze.HELD_OUT)
    assert freeze.frozen_file("a") in files
