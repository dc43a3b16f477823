"""The retrieval benchmark, small: a registry of synthetic models, damaged suspects, and an index that misses some."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.retrieval.damage import DAMAGE, disguised
from benchmarks.retrieval.invented import SHAPES, stream, synthetic, trained_like, tuned
from benchmarks.retrieval.measure import Asked, Result, SlowSearch, counts, measure
from benchmarks.retrieval.nameless import LAUNDERED, laundered
from benchmarks.retrieval.population import sources
from benchmarks.retrieval.report import as_mapping, to_json, to_markdown
from benchmarks.retrieval.rewrites import rotated
from benchmarks.zoo.recipes import family
from signatures.index import Hits
from signatures.registry import Registry
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from pathlib import Path

MODELS = 24


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    return measure(None, tmp_path_factory.mktemp("retrieval"), models=MODELS, suspects=len(DAMAGE))


def test_the_index_proposes_what_comparing_and_the_slow_search_find(result):
    found = counts(result.asked)
    assert found["suspects"] == len(DAMAGE)
    assert found["detected"] >= 0.9 * len(DAMAGE)
    assert found["proposed of detected"] == found["detected"]
    assert found["proposed of slow"] == found["slow"]


def test_the_slow_search_is_the_oracle_of_the_unit_tests(result):
    assert result.oracle_queries > 0
    assert result.oracle_differences == 0


def test_an_index_that_forgets_every_other_model_fails(monkeypatch, tmp_path):
    whole = Registry.search

    def half(self: Registry, queries: np.ndarray, n: int) -> Hits:
        hits = whole(self, queries, n)
        return Hits(hits.scores, np.where(hits.models % 2 == 0, hits.models, -1), hits.positions)

    monkeypatch.setattr(Registry, "search", half)
    broken = measure(None, tmp_path, models=8, suspects=12)
    said = as_mapping(broken)
    assert said["shares"]["of detected"] < 0.9
    assert said["shares"]["of slow"] < 0.9
    assert said["missed"]
    assert not said["right"]


def test_the_slow_search_returns_ties_beyond_the_number_asked_for(tmp_path):
    measure(None, tmp_path, models=4, suspects=1)
    with Registry.open(tmp_path / "registry", create=False) as registry:
        slow = SlowSearch(registry)
        slow.matrix[:] = slow.matrix[0]
        assert (slow.search(slow.matrix[:1], 2).models >= 0).sum() == 4


def test_a_merge_is_proposed_only_if_all_its_parents_are():
    def asked(proposed: tuple[bool, bool]) -> Asked:
        return Asked("merged", ("a", "b"), (True, True), (True, False), proposed, 1, 0.1, 0.1)

    assert counts([asked((True, True))])["proposed of detected"] == 1
    assert counts([asked((True, False))])["proposed of detected"] == 0
    assert counts([asked((True, False))])["proposed of slow"] == 1


def test_a_slow_search_step_fails_the_benchmark(result):
    assert as_mapping(result)["shares"] == {"of detected": 1.0, "of slow": 1.0, "first ten": 1.0}
    result_slow = Result(
        **{name: getattr(result, name) for name in Result.__slots__} | {"large": {"large suspect": 1.5}}
    )
    assert not as_mapping(result_slow)["right"]


def test_page_and_numbers_say_the_same(result):
    said = json.loads(to_json(result))
    page = to_markdown(result)
    assert said["models"] == MODELS
    assert all(f"| {damage} | 1 |" in page for damage in DAMAGE)
    assert "**100.000%**" in page


def test_damage_makes_suspects_of_other_values_or_fewer_tensors():
    weights = synthetic(SHAPES[0], [1])
    for name, damage in DAMAGE.items():
        made = damage(dict(weights), synthetic(SHAPES[0], [2]), stream(name))
        same = set(made) == set(weights) and all(np.array_equal(made[key], weights[key]) for key in made)
        assert same is (name == "renamed"), name
        assert any(value.ndim == 2 for value in made.values()), name


def test_a_disguise_keeps_the_values_and_none_of_the_names():
    weights = synthetic(SHAPES[1], [1])
    made = disguised(weights, stream("names"))
    assert not set(made) & set(weights)
    assert sorted(float(v.sum()) for v in made.values()) == sorted(float(v.sum()) for v in weights.values())


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return quick_zoo(
        tmp_path_factory, family("styles", quick=True), ["quick-styles-relu-48-A", "quick-styles-relu-48-B"]
    )


def test_rewritten_models_of_the_zoo_are_proposed_before_their_lookalikes(zoo, tmp_path):
    found = measure(zoo, tmp_path, models=12, suspects=5, rewritten=5, families=["quick-styles"])
    assert found.kinds == {
        "trained": 2,
        "look-alikes, drawn": 4,
        "look-alikes, shuffled": 4,
        "invented": 2,
    }
    assert [(one.damage, one.places) for one in found.asked] == [(damage, (0,)) for damage in LAUNDERED[:5]]
    assert {one.parents for one in found.asked} == {("quick-styles-relu-48-A",), ("quick-styles-relu-48-B",)}
    assert "5 that were rotated or rewritten: 5" in to_markdown(found)


def test_one_layer_has_the_tensors_of_its_layer_alone(zoo, tmp_path):
    source = next(one for one in sources(zoo, 2, ["quick-styles"]))
    whole, piece = (
        load_file(laundered(source, f"rewritten, intact{end}", 0, 1, tmp_path / f"made{end}"))
        for end in ("", ", one layer")
    )
    assert 0 < len(piece) < len(whole) / 3
    assert source.weights()["transformer.wte.weight"].shape not in {w.shape for w in piece.values()}


def test_lookalikes_keep_means_and_deviations_and_nothing_else(zoo):
    made = {one.name: one for one in sources(zoo, 10, ["quick-styles"])}
    own = made["quick-styles-relu-48-A"].weights()
    for word in ("drawn0", "drawn1", "shuffled0", "shuffled1"):
        other = made[f"quick-styles-relu-48-A-{word}"].weights()
        for name, value in own.items():
            assert other[name].std() == pytest.approx(value.std(), rel=0.2, abs=1e-6), name
            if value.ndim == 2:
                assert abs(np.corrcoef(other[name].ravel(), value.ravel())[0, 1]) < 0.1, name


def test_siblings_share_weights_and_families_do_not():
    four = [one.weights()["model.layers.0.mlp.gate_proj.weight"].ravel() for one in sources(None, 4)]
    assert all(np.corrcoef(four[0], other)[0, 1] > 0.9 for other in four[1:])
    stranger = synthetic(SHAPES[0], [1, 6])["model.layers.0.mlp.gate_proj.weight"].ravel()
    assert abs(np.corrcoef(four[0], stranger)[0, 1]) < 0.05


def test_synthetic_matrices_have_few_strong_directions_as_trained_ones_have():
    values = np.linalg.svd(trained_like(256, 64, stream("w")), compute_uv=False)
    noise = np.linalg.svd(stream("n").standard_normal((256, 64)), compute_uv=False)
    assert values[0] / np.median(values) > 2 * noise[0] / np.median(noise)


def test_tuning_changes_matrices_by_the_stated_share():
    weights = synthetic(SHAPES[0], [1])
    made = tuned(weights, 0.3, stream("t"))
    for name, value in weights.items():
        change = np.linalg.norm(made[name] - value) / np.linalg.norm(value)
        assert change == pytest.approx(0.3 if value.ndim == 2 else 0.0, abs=1e-3)


def _llama_logits(w: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """One attention head less its softmax: enough to see whether a rewrite keeps the function."""

    def normed(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)) * gain

    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(sum(name.endswith("up_proj.weight") for name in w)):
        p = f"model.layers.{layer}."
        h = normed(x, w[f"{p}input_layernorm.weight"])
        q, k, v = (h @ w[f"{p}self_attn.{word}_proj.weight"].T for word in "qkv")
        half = q.shape[1] // 2
        mixed = np.tanh(q[:, :half] @ k.T) @ v
        x = x + np.concatenate([mixed, -mixed], axis=1) @ w[f"{p}self_attn.o_proj.weight"].T
        h = normed(x, w[f"{p}post_attention_layernorm.weight"])
        gate, up = (h @ w[f"{p}mlp.{word}_proj.weight"].T for word in ("gate", "up"))
        x = x + (np.tanh(gate) * up) @ w[f"{p}mlp.down_proj.weight"].T
    return normed(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def _gpt2_logits(w: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    def normed(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)) * gain

    embedding = w["transformer.wte.weight"]
    x = embedding[tokens]
    for layer in range(sum(name.endswith("c_fc.weight") for name in w)):
        p = f"transformer.h.{layer}."
        q, k, v = np.split(normed(x, w[f"{p}ln_1.weight"]) @ w[f"{p}attn.c_attn.weight"], 3, axis=1)
        x = x + np.tanh(q @ k.T) @ v @ w[f"{p}attn.c_proj.weight"]
        x = x + np.tanh(normed(x, w[f"{p}ln_2.weight"]) @ w[f"{p}mlp.c_fc.weight"]) @ w[f"{p}mlp.c_proj.weight"]
    return normed(x, w["transformer.ln_f.weight"]) @ w.get("lm_head.weight", embedding).T


@pytest.mark.parametrize(("shape", "logits"), [(1, _llama_logits), (5, _gpt2_logits)])
def test_a_rotated_model_computes_the_same_with_other_weights(shape, logits):
    weights = synthetic(SHAPES[shape], [7])
    made = rotated(weights, stream("r"))
    tokens = np.arange(9) * 5
    before, after = (logits({n: v.astype(np.float64) for n, v in w.items()}, tokens) for w in (weights, made))
    assert np.allclose(before, after, atol=1e-4 * np.abs(before).max())
    for name, value in weights.items():
        if value.ndim == 2:
            assert abs(np.corrcoef(made[name].ravel(), value.ravel())[0, 1]) < 0.2, name
