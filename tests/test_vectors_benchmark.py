"""The benchmarks of the index at size, small: families, suspects at stated cosines, and what the pages say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.registry_100k import digests
from benchmarks.vectors import measure, report
from benchmarks.vectors.population import COUSINS, Population, near, unit
from signatures.index_folder import IndexFolder, Tuning

if TYPE_CHECKING:
    from pathlib import Path

VECTORS = 6000


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tuning, "for_memory", lambda _width: Tuning(flat_rows=2000, backlog_rows=500))


def test_models_of_a_family_are_near_and_others_are_not():
    population = Population(VECTORS)
    family = [model for model in population.models if model.family == 6]
    base = population.of(family[0])
    for model in family[1:]:
        cosines = np.sum(population.of(model) * base, axis=1)
        assert cosines == pytest.approx(np.full(len(base), COUSINS[model.member % len(COUSINS)]), abs=0.03)
    stranger = population.of(population.models[0])
    assert abs(float(np.mean(np.sum(stranger[1:3] * base[1:3], axis=1)))) < 0.25


def test_the_same_model_is_made_again():
    held = dict(Population(VECTORS))
    model = Population(VECTORS).models[-1]
    assert np.array_equal(held[model.number][1], Population(VECTORS).of(model))
    assert sum(len(positions) for positions, _ in held.values()) >= VECTORS


def test_suspects_lie_at_the_stated_cosine():
    random = np.random.default_rng(0)
    vectors, other = (unit(random.standard_normal((500, 256), np.float32)) for _ in range(2))
    assert np.mean(np.sum(near(vectors, np.float32(0.7), other) * vectors, axis=1)) == pytest.approx(0.7, abs=0.01)


@pytest.mark.usefixtures("lists")
def test_an_index_of_lists_proposes_the_true_relative(tmp_path: Path):
    made = measure.build(tmp_path / "index", VECTORS)
    assert made["kind"] == "inverted lists"
    assert IndexFolder(tmp_path / "index", "benchmark", 256).mark() == measure.MARK
    asked = measure.ask(tmp_path / "index", VECTORS, [0.7], 3, lambda _: None)
    assert asked["0.7"]["among the first ten"] == 1.0
    grown = {"build": measure.grow(tmp_path / "grown", VECTORS, 5)}
    grown["asked"] = measure.ask(tmp_path / "grown", VECTORS, [0.7], 3, lambda _: None)
    assert grown["build"]["vectors"] == made["vectors"]
    assert grown["build"]["segments"] > 1
    sizes = {
        str(VECTORS): {
            "grown": grown,
            "build": made,
            "asked": asked,
            "resident": measure.memory(),
            "recall": measure.recall(tmp_path / "index", VECTORS, [0.7], 4),
            "add": measure.add_one(tmp_path / "index", VECTORS, rounds=8),
        }
    }
    result = {"cores": 2, "memory": 24 << 30, "sizes": sizes}
    assert sizes[str(VECTORS)]["recall"]["shares"]["0.7"] > 0.9
    assert report.right(json.loads(json.dumps(result)))
    assert "**100.0%**" in report.to_markdown(result)
    for one in (asked, grown["asked"]):
        kept = one["0.7"]["among the first ten"]
        one["0.7"]["among the first ten"] = 0.9
        assert not report.right(result)
        one["0.7"]["among the first ten"] = kept


def test_digests_of_a_suspect_are_found_among_those_of_many_models(tmp_path: Path):
    digests.fill(tmp_path, 20)
    found = digests.look_up(tmp_path, 20, 2)
    assert found["found"] == digests.TENSORS / 2
