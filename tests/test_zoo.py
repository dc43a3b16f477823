"""The model zoo: its text, its architectures, and the training of models of known descent."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.zoo import text
from benchmarks.zoo.__main__ import main
from benchmarks.zoo.models import Shape, Style, initial_weights, logits, tensor_shapes
from benchmarks.zoo.recipes import Spec, family, gpt2_shape, llama_shape
from benchmarks.zoo.store import build, is_cached, load_manifest, load_weights, weights_path
from benchmarks.zoo.train import train

STEM = "quick-a-llama-48"
SHAPES = [llama_shape(48, layers=2, vocabulary=512), gpt2_shape(48, layers=2, vocabulary=512)]
TIED = llama_shape(48, layers=2, vocabulary=512, tied=True)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def specs() -> dict[str, Spec]:
    return {spec.id: spec for spec in family("a", quick=True)}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, specs):
    folder = tmp_path_factory.mktemp("zoo")
    wanted = [f"{STEM}-{m}" for m in ("A", "B", "A-ftx", "A-sameinit", "A-copied-embeddings")]
    build(folder, list(specs.values()), wanted, lambda _: None)
    return folder


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = (a - a.mean()).flatten(), (b - b.mean()).flatten()
    return float(x @ y / (x.norm() * y.norm()))


def _short(spec: Spec, steps: int) -> Spec:
    return dataclasses.replace(spec, schedule=dataclasses.replace(spec.schedule, steps=steps))


def test_the_families_share_no_module():
    used = {name: text.dataset_of(name) for name in text.modules()}
    assert set(used.values()) == set(text.DATASETS)
    assert sum(text.DATASETS.values()) <= 1 + 1e-9


def test_tests_and_code_tables_are_left_out_of_the_text():
    assert not any({"test", "tests", "encodings"} & set(name.split(".")) for name in text.modules())


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_the_tokenizer_gives_any_text_back(sample):
    encoder = text.tokenizer(512)
    assert encoder.decode(encoder.encode(sample)) == sample


def test_the_tokenizer_shortens_its_own_text():
    encoder = text.tokenizer(512)
    assert encoder.size == 512
    source = text.modules()["argparse"]
    assert len(encoder.encode(source)) < 0.7 * len(source)


def test_names_and_layouts_are_those_of_hugging_face():
    llama = dict(tensor_shapes(llama_shape(192)))
    assert llama["model.layers.3.self_attn.k_proj.weight"] == (64, 192)
    assert llama["model.layers.0.mlp.down_proj.weight"] == (192, 512)
    assert "lm_head.weight" in llama
    assert "lm_head.weight" not in dict(tensor_shapes(TIED))
    gpt2 = dict(tensor_shapes(gpt2_shape(192)))
    assert gpt2["transformer.h.3.attn.c_attn.weight"] == (192, 576)
    assert gpt2["transformer.h.0.mlp.c_fc.weight"] == (192, 768)


@pytest.mark.parametrize("shape", [*SHAPES, TIED], ids=["llama", "gpt2", "llama-tied"])
def test_a_logit_does_not_see_later_tokens(shape: Shape):
    weights = {name: w[None] for name, w in initial_weights(shape, "key").items()}
    ids = torch.arange(20).view(1, 1, 20)
    changed = ids.clone()
    changed[..., 12:] += 100
    before, after = logits(shape, weights, ids)[0], logits(shape, weights, changed)[0]
    torch.testing.assert_close(before[:12], after[:12], rtol=0, atol=1e-6)
    assert (before[12:] - after[12:]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("shape", SHAPES, ids=["llama", "gpt2"])
def test_the_order_of_tokens_matters(shape: Shape):
    weights = {name: w[None] * 3 for name, w in initial_weights(shape, "key").items()}
    ids = torch.arange(20).view(1, 1, 20)
    swapped = ids.clone()
    swapped[..., [3, 7]] = ids[..., [7, 3]]
    assert (logits(shape, weights, ids) - logits(shape, weights, swapped))[0, -1].abs().max() > 1e-4


@pytest.mark.parametrize("shape", SHAPES, ids=["llama", "gpt2"])
def test_stacked_models_give_the_logits_of_each_alone(shape: Shape):
    models = [initial_weights(shape, key) for key in ("one", "two")]
    stacked = {name: torch.stack([m[name] for m in models]) for name in models[0]}
    ids = torch.randint(0, 512, (2, 3, 16), generator=torch.Generator().manual_seed(1))
    together = logits(shape, stacked, ids)
    for i, model in enumerate(models):
        alone = logits(shape, {n: w[None] for n, w in model.items()}, ids[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-5)


def test_models_of_two_widths_have_no_initial_numbers_in_common():
    # One stream drawn for both shapes would make relatives of strangers.
    name = "model.embed_tokens.weight"
    first = initial_weights(llama_shape(192), "a-llama-192/seed1")[name].flatten()
    second = initial_weights(llama_shape(128), "a-llama-128/seed1")[name].flatten()
    assert len(np.intersect1d(first.numpy(), second.numpy())) < 0.05 * len(second)
    assert abs(_cosine(first[: len(second)], second)) < 0.02


def test_initialisation_is_symmetric_about_zero():
    weights = initial_weights(llama_shape(192), "key")
    matrix = weights["model.layers.0.mlp.up_proj.weight"]
    assert abs(float(matrix.mean())) < 4 * 0.04 / math.sqrt(matrix.numel())
    assert abs(float(matrix.std()) - 0.04) < 0.001


def test_a_model_learns_more_than_the_frequencies_of_tokens(zoo):
    manifest = load_manifest(zoo, f"{STEM}-A")
    data = text.tokens("a-pre-small", 512)
    counts = np.bincount(data.train, minlength=512) + 0.5
    unigram = -np.log(counts / counts.sum())[data.validation].mean()
    assert manifest["validation_loss"] < unigram - 0.2


def test_training_twice_gives_the_same_file(zoo, tmp_path, specs):
    build(tmp_path, list(specs.values()), [f"{STEM}-B"], lambda _: None)
    assert weights_path(tmp_path, f"{STEM}-B").read_bytes() == weights_path(zoo, f"{STEM}-B").read_bytes()


def test_a_model_that_is_there_is_not_trained_again(zoo, specs):
    lines: list[str] = []
    build(zoo, list(specs.values()), [f"{STEM}-A-ftx"], lines.append)
    assert lines == []


def test_another_recipe_makes_a_cached_model_and_its_children_stale(zoo, specs):
    name, child = f"{STEM}-A", f"{STEM}-A-ftx"
    changed = specs | {name: _short(specs[name], 7)}
    assert is_cached(zoo, specs[child], specs)
    assert not is_cached(zoo, changed[name], changed)
    assert not is_cached(zoo, changed[child], changed)


def test_relatives_are_as_near_as_they_should_be(zoo):
    name = "model.layers.1.mlp.gate_proj.weight"
    base = load_weights(zoo, f"{STEM}-A")[name]
    near = {m: _cosine(base, load_weights(zoo, f"{STEM}-{m}")[name]) for m in ("A-ftx", "A-sameinit", "B")}
    assert near["A-ftx"] > 0.98
    assert 0.2 < near["A-sameinit"] < 0.9
    assert abs(near["B"]) < 0.08


def test_copied_embeddings_stay_as_they_are_and_all_else_is_new(zoo):
    donor, model = load_weights(zoo, f"{STEM}-A"), load_weights(zoo, f"{STEM}-A-copied-embeddings")
    assert torch.equal(donor["model.embed_tokens.weight"], model["model.embed_tokens.weight"])
    for name in donor:
        if donor[name].ndim == 2 and name != "model.embed_tokens.weight":
            assert abs(_cosine(donor[name], model[name])) < 0.2, name


def test_a_manifest_names_parents_data_and_loss(zoo):
    manifest = load_manifest(zoo, f"{STEM}-A-ftx")
    assert manifest["parents"] == [f"{STEM}-A"]
    assert manifest["data"] == "a-x-small"
    assert manifest["style"] == "llama"
    assert math.isfinite(manifest["validation_loss"])


def test_stacking_changes_the_training_of_no_member(specs):
    members = [_short(specs[f"quick-a-pop-llama-48-s{i:02d}"], 3) for i in range(3)]
    together = train(members, {}, lambda _: None)
    for spec, stacked in zip(members, together, strict=True):
        (alone,) = train([spec], {}, lambda _: None)
        for name, w in alone.items():
            torch.testing.assert_close(stacked[name], w, rtol=1e-3, atol=1e-4)
    assert abs(_cosine(*(t["model.layers.0.mlp.up_proj.weight"] for t in together[:2]))) < 0.08


def test_unlike_models_are_not_trained_together(specs):
    with pytest.raises(ValueError, match="must be alike"):
        train([specs[f"{STEM}-A"], specs[f"{STEM}-A-sameinit"]], {}, lambda _: None)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_family_lists_parents_before_children_and_ids_once(name, quick):
    seen: set[str] = set()
    for spec in family(name, quick=quick):
        assert set(spec.parents) <= seen
        assert spec.id not in seen
        assert spec.data.startswith(f"{name}-")
        seen.add(spec.id)


def test_no_two_models_share_a_stream_unless_they_are_meant_to():
    specs = [s for f in ("a", "b") for s in family(f)]
    new = [s for s in specs if s.parent is None]
    same = [s for s in new if sum(t.init == s.init for t in new) > 1]
    assert {s.id.rsplit("-", 1)[1] for s in same} == {"A", "sameinit"}
    assert len({s.order for s in specs}) == len(specs)


def test_a_population_has_forty_of_each_style():
    for style in (Style.LLAMA, Style.GPT2):
        members = [s for s in family("a") if s.kind == "population" and s.shape.style is style]
        assert len(members) == 40


def test_the_command_lists_what_is_there(zoo, capsys):
    assert main(["--family", "a", "--quick", "--out", str(zoo), "--list", "--only", f"{STEM}-*"]) == 0
    rows = dict(line.split("\t")[::3] for line in capsys.readouterr().out.splitlines())
    assert rows[f"{STEM}-A"] == "there"
    assert rows[f"{STEM}-A-cont"] == "absent"


def test_the_command_refuses_a_name_that_is_no_model(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--only", "nothing"])
    assert "no model of family a" in capsys.readouterr().err
