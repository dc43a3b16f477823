"""The benchmark of one model of full size, on a tiny one: what is found, what is not, and that the page says which."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from msgspec.structs import replace

from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.rewrites.forward import ZOO, Constants, logits
from benchmarks.rewrites.full_size import CASES, LOOK_ALIKES, Case, Model, fill, look_alike, scan_all
from benchmarks.rewrites.full_size_page import STATED, is_right, page
from benchmarks.zoo.models import generator
from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import load_weights
from signatures.registry import Registry
from tests.quick_zoo import quick_zoo

SPECS = {spec.id: spec for spec in family("a", quick=True)}
SOURCE = "quick-a-llamatied-48-A"
MODELS = 8
TRIED = (Case("", "laundered", "none"), Case("", *STATED), Case("random-3", "laundered", "4bit"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    zoo = quick_zoo(tmp_path_factory, list(SPECS.values()), [SOURCE])
    return Model("tiny", load_weights(zoo, SOURCE), SPECS[SOURCE].shape, ZOO)


@pytest.fixture(scope="module")
def filled(model, tmp_path_factory) -> Registry:
    work = tmp_path_factory.mktemp("filled")
    with Registry.open(work / "registry") as registry:
        assert fill(registry, model, None, "a", MODELS, work) == 0
        yield registry


@pytest.fixture(scope="module")
def rows(model, filled, tmp_path_factory):
    return list(scan_all(filled, model, TRIED, tmp_path_factory.mktemp("suspects")))


def test_the_registry_holds_the_model_its_look_alikes_and_others(filled, model, tmp_path):
    assert filled.count() == MODELS
    before = filled.digest
    fill(filled, model, None, "a", MODELS, tmp_path)
    assert filled.digest == before
    assert {model.name, *LOOK_ALIKES} <= {record.name for record in filled.models()}


def test_rewritten_and_rounded_suspects_are_found_and_a_look_alike_is_not_matched(rows, model):
    assert [is_right(row) for row in rows] == [True, True, True]
    assert [row.place for row in rows[:2]] == [0, 0]
    text = page(rows, model.shape, trained=0, look_alikes=len(LOOK_ALIKES), kept=1)
    assert "it is found (match, certain" in text
    assert "2 of 2 suspects found;\n1 of 1 rewritten look-alikes" in text
    assert "**no**" not in text


def test_a_model_that_is_not_registered_is_not_found_and_the_page_says_so(filled, model, rows, tmp_path):
    with Registry.open(tmp_path / "registry") as without:
        fill(without, model, None, "a", MODELS, tmp_path)
        without.remove(model.name)
        (row,) = scan_all(without, model, [Case("", *STATED)], tmp_path)
    assert not is_right(row)
    assert row.place is None
    text = page([row, rows[2]], model.shape, trained=0, look_alikes=len(LOOK_ALIKES), kept=1)
    assert "it is not found (no-match)" in text
    assert "0 of 1 suspects found" in text
    assert "**no**" in text


def test_a_matched_look_alike_and_a_second_model_in_the_list_are_wrong(rows):
    assert not is_right(dataclasses.replace(rows[0], expected=""))
    assert not is_right(dataclasses.replace(rows[2], expected="tiny"))
    twice = replace(rows[0].report, matches=rows[0].report.matches * 2)
    assert not is_right(dataclasses.replace(rows[0], report=twice))


def test_look_alikes_have_the_shapes_and_nothing_of_the_order(model):
    for name in LOOK_ALIKES:
        made = look_alike(model.weights, name)
        for key, w in model.weights.items():
            assert made[key].shape == w.shape
            if w.ndim == 2:
                assert made[key].std() == pytest.approx(float(w.std()), rel=0.05)
                assert abs(float(torch.corrcoef(torch.stack([made[key].flatten(), w.flatten()]))[0, 1])) < 0.1
    shuffled = look_alike(model.weights, "shuffled-1")
    assert all(
        torch.equal(shuffled[k].flatten().sort().values, w.flatten().sort().values) for k, w in model.weights.items()
    )


def test_the_cases_hold_the_one_that_the_page_is_about():
    assert Case("", *STATED) in CASES
    assert not {case.of for case in CASES} & set(LOOK_ALIKES)


def test_the_check_of_the_function_is_made_with_the_models_own_constants(model, monkeypatch):
    own = Constants(rotary_base=1e5, epsilon=1e-2)
    ids = torch.randint(0, model.shape.vocabulary, (1, 20), generator=generator("test"))
    assert not torch.allclose(*(logits(model.shape, model.weights, ids, one) for one in (ZOO, own)), atol=1e-3)
    seen = []
    monkeypatch.setattr("benchmarks.rewrites.cases.logits", lambda *a: seen.append(a[3]) or logits(*a))
    rewrite(model.weights, model.shape, rewrites(model.shape.style)[0], "test", own)
    assert seen == [own, own]
