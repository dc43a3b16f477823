"""The benchmark of networks without a residual stream: who goes through what, and what counts as right."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.rewrites.table import page
from benchmarks.units.networks import Kind, batch, train
from benchmarks.units.networks import Network as Net
from benchmarks.units.rewrites import drop_layer, random_like, shuffle, spare_layer
from benchmarks.units.run import BASE, RECIPES, SIBLING, alike, damages, score, suspects
from benchmarks.zoo.models import generator
from signatures.report import Confidence, Link, Relation, Verdict

RECIPE = {one.name: one for one in RECIPES}
OTHERS = ("A-fty", "A-drawn", "A-shuffled", "seed2")


def untrained(name: str, seed: int = 0):
    one = RECIPE[name]
    return train(one.kind, f"benchmark/{name}/{seed}", steps=0, channels=one.channels)


def outputs(weights, kind: Kind):
    inputs, _ = batch(kind, generator("test"), "a-x-small", 2)
    with torch.no_grad():
        return Net.of(kind, weights).eval()(inputs)


def test_convolutions_of_one_recipe_have_no_layer_to_spare_those_of_the_other_do():
    assert spare_layer(untrained("cnn"), Kind.CNN) is None
    deeper = untrained("cnn-deeper")
    assert spare_layer(deeper, Kind.CNN) == 3
    less = drop_layer(deeper, Kind.CNN)
    assert torch.equal(less["conv3.weight"], deeper["conv4.weight"])
    assert torch.equal(less["bn3.running_var"], deeper["bn4.running_var"])
    assert len(less) == len(deeper) - 6
    assert outputs(less, Kind.CNN).shape == outputs(deeper, Kind.CNN).shape


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_cells_lose_their_last_level(name: str):
    weights, kind = untrained(name), RECIPE[name].kind
    less = drop_layer(weights, kind)
    assert spare_layer(less, kind) is None
    assert outputs(less, kind).shape == outputs(weights, kind).shape


def test_stand_ins_can_be_computed():
    weights = untrained("cnn")
    for change in (random_like, shuffle):
        made = change(weights, generator("test"))
        assert made.keys() == {name for name, w in weights.items() if w.dtype.is_floating_point}
        assert bool(outputs(made, Kind.CNN).isfinite().all())


def test_changes_of_fine_tunes_are_compared_not_their_weights():
    base = {"w": torch.full((4,), 100.0), "count": torch.tensor(3)}
    one, other = (base | {"w": base["w"] + torch.tensor(change)} for change in ([1.0, 0, 0, 0], [0, 1.0, 0, 0]))
    assert alike(base, one, other) == pytest.approx(0)
    assert alike(base, one, one) == pytest.approx(1)


@pytest.mark.parametrize("name", RECIPE)
def test_siblings_and_look_alikes_go_through_every_damage_that_relatives_do(name: str):
    networks = [untrained(name, seed) for seed in range(4)]
    through: dict[str, set[tuple[str, str]]] = {}
    for one in suspects(networks, networks[0], RECIPE[name].kind):
        through.setdefault(one.source, set()).add((one.rewrite, one.damage.name))
    every = {damage for _, damage in through["A"]}
    assert every == {one.name for one in damages()} - ({"layer-dropped"} if name == "cnn" else set())
    assert through["A"] == through["A-fty"]
    assert all({damage for _, damage in through[source]} == every for source in OTHERS)
    assert {damage for _, damage in through["seed3"]} == {"intact"}


def match(model: str, link: Link):
    confidence, relation = Confidence.LIKELY, Relation.REWRITTEN
    return SimpleNamespace(
        model=model, link=link, confidence=confidence, relation=relation, log10_p=-9.0, evidence=(NOTED,), undone=()
    )


NOTED = SimpleNamespace(test="even", log10_p=-9.0, statistic=0.5)


def said(*matches):
    return SimpleNamespace(verdict=Verdict.MATCH if matches else Verdict.NO_MATCH, matches=matches)


@pytest.mark.parametrize(
    ("part", "matches", "found", "accused"),
    [
        ("descends", [match(BASE, Link.LINEAGE)], True, False),
        ("descends", [match(BASE, Link.LINEAGE), match("other", Link.SIBLING)], False, False),
        ("sibling", [match(BASE, Link.LINEAGE), match(SIBLING, Link.SIBLING)], True, False),
        ("sibling", [match(BASE, Link.LINEAGE), match(SIBLING, Link.LINEAGE)], False, True),
        ("sibling", [match(SIBLING, Link.SIBLING)], False, False),
        ("look-alike", [], True, False),
        ("look-alike", [match(BASE, Link.LINEAGE)], False, False),
    ],
)
def test_what_is_right(part, matches, found, accused):
    row = score(said(*matches), part)
    assert (row["found"], row["accused"]) == (found, accused)


def test_the_page_says_which_siblings_are_accused():
    about = {"kind": "cnn", "rewrite": "permuted", "damage": "4bit", "alike": 0.25}
    rows = [
        about | {"part": "descends", "source": "A"} | score(said(match(BASE, Link.LINEAGE)), "descends"),
        about | {"part": "sibling", "source": "A-fty"} | score(said(match(SIBLING, Link.LINEAGE)), "sibling"),
        *(about | {"part": "look-alike", "source": source} | score(said(), "look-alike") for source in OTHERS[1:]),
    ]
    text = page([], rows)
    assert (
        "| permuted | 4bit | likely, even 10^-9, 0.50 | rewritten |  | **likely, even 10^-9, 0.50**; **lineage** |"
        in text
    )
    assert "1 of 1 found; of the sibling 0 of 1, and called its\ndescendant 1 of 1:" in text
    assert "cosine of\n0.25." in text
    assert "| 4bit | none of 1 | none of 1 | none of 1 |" in text
