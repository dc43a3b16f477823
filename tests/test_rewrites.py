"""Rewrites of models compute the same function; damages on top of them are what they say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.rewrites import symmetries as sym
from benchmarks.rewrites.cases import Rewrite, damages, difference, further, rewrite, rewrites
from benchmarks.rewrites.forward import logits
from benchmarks.rewrites.make import main, make_all, plan
from benchmarks.zoo import models as zoo_models
from benchmarks.zoo.models import generator
from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import load_weights
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from pathlib import Path

SPECS = {spec.id: spec for spec in family("a", quick=True)}
STEMS = ("quick-a-llama-48", "quick-a-gpt2-48", "quick-a-llamatied-48")
CASES = [(stem, one) for stem in STEMS for one in rewrites(SPECS[f"{stem}-A"].shape.style)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    wanted = [f"{stem}-{model}" for stem in STEMS for model in ("A", "A-fty")]
    return quick_zoo(tmp_path_factory, list(SPECS.values()), wanted)


def _original(zoo: Path, stem: str):
    return load_weights(zoo, f"{stem}-A"), SPECS[f"{stem}-A"].shape


@pytest.mark.parametrize("stem", STEMS)
def test_the_forward_pass_agrees_with_the_zoo(zoo, stem):
    weights, shape = _original(zoo, stem)
    ids = torch.randint(0, shape.vocabulary, (2, 20), generator=generator("test"))
    theirs = zoo_models.logits(shape, {name: w[None] for name, w in weights.items()}, ids[None])[0]
    assert torch.allclose(logits(shape, weights, ids).flatten(0, 1), theirs, atol=1e-4)


@pytest.mark.parametrize(("stem", "case"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_rewrite_changes_weights_and_keeps_the_function(zoo, stem, case):
    weights, shape = _original(zoo, stem)
    made = rewrite(weights, shape, case, "test")
    assert made.error < 1e-5
    changed = [name for name in weights if not torch.equal(weights[name], made.tensors[name])]
    assert bool(changed) == bool(case.steps or case.tokens)


def test_the_zoos_own_forward_pass_sees_the_same_function(zoo):
    weights, shape = _original(zoo, "quick-a-llama-48")
    (case,) = (one for one in rewrites(shape.style) if one.name == "all-but-vocabulary")
    made = rewrite(weights, shape, case, "test")
    ids = torch.randint(0, shape.vocabulary, (1, 2, 20), generator=generator("test"))
    one, two = (zoo_models.logits(shape, {n: w[None] for n, w in m.items()}, ids) for m in (weights, made.tensors))
    assert torch.allclose(one, two, atol=1e-3)


def test_a_rewrite_that_breaks_the_function_is_refused(zoo):
    weights, shape = _original(zoo, "quick-a-llama-48")
    broken = Rewrite("broken", "", (lambda w, _s, _r: w | {"model.norm.weight": w["model.norm.weight"] * 1.01},))
    with pytest.raises(ArithmeticError, match="differ"):
        rewrite(weights, shape, broken, "test")


def test_rotation_leaves_no_weight_in_place_and_gains_of_one(zoo):
    weights, shape = _original(zoo, "quick-a-llama-48")
    case = Rewrite("rotated", "", (sym.rotate_residual,))
    made = rewrite(weights, shape, case, "test").tensors
    for name, w in made.items():
        if w.ndim == 1:
            assert torch.equal(w, torch.ones_like(w))
        elif name in weights:
            cosine = torch.nn.functional.cosine_similarity(w.flatten(), weights[name].flatten(), 0)
            assert abs(cosine) < 0.2


def test_two_models_are_rewritten_alike_under_one_key(zoo):
    weights, shape = _original(zoo, "quick-a-llama-48")
    sibling = load_weights(zoo, "quick-a-llama-48-A-fty")
    (case,) = (one for one in rewrites(shape.style) if one.name == "all")
    one, two = (rewrite(w, shape, case, "test") for w in (weights, sibling))
    assert torch.equal(one.order, two.order)
    name = "model.layers.1.mlp.down_proj.weight"
    cosine = torch.nn.functional.cosine_similarity(one.tensors[name].flatten(), two.tensors[name].flatten(), 0)
    assert cosine > 0.8


@pytest.mark.parametrize("stem", STEMS[:2])
def test_every_damage_is_written_under_random_names(zoo, tmp_path, stem):
    jobs = plan("a", quick=True, models=[stem], sources=["A"], only=["all"], after=["*"])
    truth = json.loads(make_all(zoo, jobs, tmp_path / "out", family_name="a", quick=True).read_text())["suspects"]
    assert sorted(one["damage"] for one in truth.values()) == sorted(one.name for one in (*damages(), *further()))
    shape = SPECS[f"{stem}-A"].shape
    weights = load_weights(zoo, f"{stem}-A")
    (intact,) = (t for t in truth.values() if t["damage"] == "intact")
    for path, one in truth.items():
        found = load_file(tmp_path / "out" / path)
        assert set(found) == set(one["tensors"])
        assert not set(found) & set(one["tensors"].values())
        tensors = {one["tensors"][name]: w.float() for name, w in found.items()}
        layers = {"layers-dropped": shape.layers // 2}.get(one["damage"], shape.layers)
        shares = {"neurons-75": 0.75, "neurons-halved": 0.5, "neurons-25": 0.25, "neurons-12.5": 0.125}
        neurons = int(shape.neurons * shares.get(one["damage"], 1))
        mlps = {n: w for n, w in tensors.items() if n.endswith(("gate_proj.weight", "c_fc.weight"))}
        assert len(mlps) == layers
        assert {max(neurons, shape.width) for _ in mlps} == {max(w.shape) for w in mlps.values()}
        if one["damage"].startswith("sparse-"):
            zero = int(one["damage"].removeprefix("sparse-")) / 100
            assert all(float((w == 0).float().mean()) == pytest.approx(zero, abs=0.05) for w in mlps.values())
        if layers == shape.layers and neurons == shape.neurons:
            case = next(c for c in rewrites(shape.style) if c.name == "all")
            order = rewrite(weights, shape, case, f"rewrite/1/{stem}/all").order
            error = difference(shape, weights, tensors, order)
            assert (error < 1e-5) == (one is intact)


def test_the_same_seed_writes_the_same_files(zoo, tmp_path):
    jobs = plan("a", quick=True, models=["*-llama-48"], sources=["A"], only=["all"], after=["noise-5", "fine-tuned"])
    first, second = (make_all(zoo, jobs, tmp_path / name, family_name="a", quick=True) for name in ("one", "two"))
    assert first.read_text() == second.read_text()
    for path in json.loads(first.read_text())["suspects"]:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_the_command_lists_cases_and_reports_errors(zoo, tmp_path, capsys):
    assert main(["--list"]) == 0
    assert "keys-changed" in capsys.readouterr().out
    assert main(["--zoo", str(tmp_path), "--quick", "--out", str(tmp_path / "out")]) == 2
    assert "lacks" in capsys.readouterr().err
    assert main(["--zoo", str(zoo), "--quick", "--out", str(tmp_path / "out"), "--only", "nothing"]) == 2
    arguments = ["--zoo", str(zoo), "--quick", "--models", "*llama-48", "--only", "rotated", "--damage", "bf16"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out" / "suspects").iterdir()
    assert {w.dtype for w in load_file(path).values()} == {torch.bfloat16}
