"""The suspects of the lineage benchmark: each is what its truth says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.lineage import derive_ops as ops
from benchmarks.lineage.derive import derive_all, main
from benchmarks.lineage.derive_builders import check_equal_logits
from benchmarks.lineage.derive_cases import Link, Names, Verdict
from benchmarks.lineage.derive_table import all_cases
from benchmarks.lineage.derive_write import disguise, shards
from benchmarks.zoo.models import Style, generator
from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import load_weights
from tests.quick_zoo import quick_zoo

STEMS = {Style.LLAMA: "quick-a-llama-48", Style.GPT2: "quick-a-gpt2-48"}
MODELS = ("quick-a-llama-48", "quick-a-gpt2-48", "quick-a-llamatied-48")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    specs = family("a", quick=True)
    return quick_zoo(tmp_path_factory, specs, [s.id for s in specs if "-pop-" not in s.id])


class Derived:
    """The folder of suspects, its truth, and the suspects under their old names."""

    def __init__(self, zoo: Path, out: Path, truth: Path) -> None:
        self.zoo, self.out = zoo, out
        self.suspects = json.loads(truth.read_text())["suspects"]

    def truth(self, style: Style, case: str) -> dict:
        return self.find(style, case)[1]

    def find(self, style: Style, case: str) -> tuple[Path, dict]:
        found = [(p, t) for p, t in self.suspects.items() if t["case"] == case and t["stem"] == STEMS[style]]
        assert len(found) == 1
        return self.out / found[0][0], found[0][1]

    def tensors(self, style: Style, case: str) -> dict[str, torch.Tensor]:
        path, truth = self.find(style, case)
        return {truth["tensors"][name]: w for name, w in _load(path).items()}

    def model(self, style: Style, model: str) -> dict[str, torch.Tensor]:
        return load_weights(self.zoo, f"{STEMS[style]}-{model}")


def _load(path: Path) -> dict[str, torch.Tensor]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: w for file in files for name, w in load_file(file).items()}


@pytest.fixture(scope="module")
def derived(zoo, tmp_path_factory) -> Derived:
    out = tmp_path_factory.mktemp("derived")
    return Derived(zoo, out, derive_all(zoo, "a", out, quick=True))


@pytest.fixture(scope="module")
def shape():
    specs = {s.id: s for s in family("a", quick=True)}
    return {style: specs[f"{stem}-A"].shape for style, stem in STEMS.items()}


both = pytest.mark.parametrize("style", list(STEMS), ids=[s.value for s in STEMS])


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = (a.double() - a.double().mean()).flatten(), (b.double() - b.double().mean()).flatten()
    return float(x @ y / (x.norm() * y.norm()).clamp(min=1e-30))


def test_every_suspect_is_written_with_the_tensors_that_the_truth_lists(derived):
    for path, truth in derived.suspects.items():
        assert set(_load(derived.out / path)) == set(truth["tensors"]), truth["case"]


def test_the_truth_is_consistent(derived):
    for truth in derived.suspects.values():
        assert set(truth["links"]) == set(truth["registered"])
        assert set(truth["parents"]) <= set(truth["registered"])
        accused = {m for m, link in truth["links"].items() if link == Link.LINEAGE}
        assert accused == set(truth["parents"])
        if truth["verdict"] == Verdict.NO_MATCH:
            assert set(truth["links"].values()) <= {Link.NONE}
        assert truth["registered"], truth["case"]


def test_every_case_is_made_for_some_model_and_the_table_names_each_once(derived):
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)
    # Tiny models have no matrix that large, and one width.
    assert {t["case"] for t in derived.suspects.values()} == set(names) - {"one-matrix", "other-width"}


def test_a_model_without_the_needed_relatives_has_fewer_cases(derived):
    counts = Counter(t["stem"] for t in derived.suspects.values())
    assert counts["quick-a-llamatied-48"] < counts["quick-a-llama-48"]


def test_two_runs_write_the_same_bytes(zoo, derived, tmp_path):
    derive_all(zoo, "a", tmp_path, quick=True)
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(derived.out) for p in derived.out.rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / file).read_bytes() == (derived.out / file).read_bytes(), file


def test_another_seed_gives_other_names_and_other_noise(zoo, derived, tmp_path):
    other = Derived(zoo, tmp_path, derive_all(zoo, "a", tmp_path, quick=True, seed=2, only=["noise-20"]))
    assert not set(other.suspects) & set(derived.suspects)
    name = "transformer.h.0.mlp.c_fc.weight"
    one, two = (d.tensors(Style.GPT2, "noise-20")[name] for d in (derived, other))
    assert not torch.equal(one, two)


def test_scrambled_names_tell_nothing_and_structured_ones_only_the_layer(derived):
    for truth in derived.suspects.values():
        for name, was in truth["tensors"].items():
            if truth["names"] == Names.SCRAMBLED:
                assert name.isalnum()
                assert len(name) == 10
            elif truth["names"] == Names.STRUCTURED:
                assert not set(name.split(".")) & (set(was.split(".")) - {str(ops.layer_of(was))})
            else:
                assert name == was


@both
def test_a_copy_and_a_renamed_one_hold_the_same_values(derived, style):
    for case in ("copy", "renamed", "reordered", "resharded", "resharded-renamed"):
        tensors = derived.tensors(style, case)
        base = derived.model(style, "A")
        assert set(tensors) == set(base)
        assert all(torch.equal(w, base[name]) for name, w in tensors.items()), case


@both
def test_shards_are_all_in_the_index(derived, style):
    folder, truth = derived.find(style, "resharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(truth["tensors"])
    assert len(set(index["weight_map"].values())) == 3
    for name, file in index["weight_map"].items():
        assert name in load_file(folder / file)


@both
@pytest.mark.parametrize(
    ("case", "dtype", "error"),
    [
        ("cast-bf16", torch.bfloat16, 2**-8),
        ("cast-fp16", torch.float16, 2**-10),
        ("cast-fp8-e4m3", torch.float8_e4m3fn, 2**-3),
        ("cast-fp8-e5m2", torch.float8_e5m2, 2**-2),
    ],
)
def test_a_cast_has_the_type_and_its_precision(derived, style, case, dtype, error):
    base = derived.model(style, "A")
    for name, w in derived.tensors(style, case).items():
        assert w.dtype == dtype
        assert torch.allclose(w.float(), base[name], rtol=error, atol=2**-9), name


@both
@pytest.mark.parametrize("case", [c.name for c in all_cases() if c.name.startswith("quantised-") and "bit" in c.name])
def test_a_quantised_group_has_as_many_values_as_its_bits_allow(derived, style, case):
    bits, group = int(case.split("-")[1][0]), int(case.rsplit("-", 1)[1])
    base = derived.model(style, "A")
    for name, w in derived.tensors(style, case).items():
        if not ops.is_layer_matrix(name, w):
            assert torch.equal(w, base[name])
            continue
        assert not torch.equal(w, base[name])
        assert _cosine(w, base[name]) > {8: 0.9999, 4: 0.98, 3: 0.9}[bits]
        rows = w if style is Style.LLAMA else w.T
        levels = max(len(part.unique()) for row in rows[:8] for part in row.split(group))
        assert levels <= 1 << bits


@both
def test_the_codebook_has_sixteen_values_a_group(derived, style):
    base = derived.model(style, "A")
    for name, w in derived.tensors(style, "quantised-nf4-64").items():
        if ops.is_layer_matrix(name, w):
            rows = w if style is Style.LLAMA else w.T
            assert max(len(part.unique()) for row in rows[:8] for part in row.split(64)) <= 16
            assert _cosine(w, base[name]) > 0.98


@both
@pytest.mark.parametrize(("case", "share"), [("pruned-50", 0.5), ("pruned-80", 0.8)])
def test_the_smallest_weights_are_pruned(derived, style, case, share):
    base = derived.model(style, "A")
    for name, w in derived.tensors(style, case).items():
        if w.ndim == 2:
            zeros = w == 0
            assert abs(float(zeros.float().mean()) - share) < 0.01
            assert base[name][zeros].abs().max() <= base[name][~zeros].abs().min()
            assert torch.equal(w[~zeros], base[name][~zeros])


@both
@pytest.mark.parametrize(("case", "share"), [("noise-1", 0.01), ("noise-20", 0.2), ("noise-100", 1.0)])
def test_noise_has_its_share_of_the_deviation(derived, style, case, share):
    base = derived.model(style, "A")
    for name, w in derived.tensors(style, case).items():
        if w.ndim == 2:
            assert float((w - base[name]).std() / base[name].std()) == pytest.approx(share, rel=0.1)


@both
def test_trained_suspects_are_the_models_of_the_zoo(derived, style):
    for case, model in {
        "fine-tuned": "A-ftx",
        "fine-tuned-twice": "A-ftx-ft2",
        "continued": "A-cont",
        "sibling": "A-fty",
        "same-initialisation": "A-sameinit",
        "copied-embeddings": "A-copied-embeddings",
        "other-seed": "B",
        "other-seed-fine-tuned": "B-ftx",
    }.items():
        tensors, model_weights = derived.tensors(style, case), derived.model(style, model)
        assert all(torch.equal(w, model_weights[name]) for name, w in tensors.items()), case
        assert derived.truth(style, case)["registered"].count(f"{STEMS[style]}-{model}") == 0


@both
def test_least_squares_gives_the_coefficients_of_linear_merges(derived, style):
    def coefficients(case: str, basis: int) -> tuple[dict[str, float], float]:
        mixture = derived.truth(style, case)["mixtures"][basis]
        by_model = {m.removeprefix(STEMS[style] + "-"): c for m, c in mixture["coefficients"].items()}
        return by_model, mixture["residual"]

    halves, residual = coefficients("merge-linear", 0)
    assert halves == pytest.approx({"A-ftx": 0.5, "A-fty": 0.5}, abs=1e-4)
    assert residual < 1e-5
    with_base, residual = coefficients("merge-linear", 1)
    assert with_base == pytest.approx({"A": 0, "A-ftx": 0.5, "A-fty": 0.5}, abs=1e-4)
    foreign, residual = coefficients("merge-foreign", 0)
    assert foreign == pytest.approx({"A": 0.7, "B": 0.3}, abs=1e-4)
    assert residual < 1e-5
    arc, residual = coefficients("merge-slerp", 0)
    assert arc == pytest.approx({"A-ftx": 0.7, "A-fty": 0.3}, abs=0.02)
    assert residual < 1e-3
    ties, residual = coefficients("merge-ties", 1)
    assert ties["A-ftx"] > 0.3
    assert ties["A-fty"] > 0.3
    assert 0 < residual < 0.1


def test_slerp_keeps_the_norm_between_orthogonal_vectors():
    first, second = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}
    assert float(ops.slerp(first, second, 0.3)["w"].norm()) == pytest.approx(2.0, rel=1e-6)


def test_ties_trims_elects_and_averages():
    base = {"w": torch.zeros(4)}
    tuned = [{"w": torch.tensor([4.0, -3.0, 0.1, 0.2])}, {"w": torch.tensor([2.0, 5.0, 0.3, -0.1])}]
    assert ops.ties(base, tuned, 0.5)["w"].tolist() == [3.0, 5.0, 0.0, 0.0]


@both
@pytest.mark.parametrize(
    "case",
    [
        "frankenmerge", "frankenmerge-fine-tune", "frankenmerge-stacked", "layers-dropped", "layers-dropped-half",
        "layers-repeated", "layers-doubled", "layers-swapped", "layers-reversed",
    ],
)  # fmt: skip
def test_each_layer_is_the_one_that_the_layer_map_says(derived, style, case):
    tensors, truth = derived.tensors(style, case), derived.truth(style, case)
    present = {ops.layer_of(name) for name in tensors} - {None}
    assert [row["suspect"] for row in truth["layers"]] == sorted(present)
    for row in truth["layers"]:
        source = load_weights(derived.zoo, row["model"])
        for name, w in tensors.items():
            if ops.layer_of(name) == row["suspect"]:
                assert torch.equal(w, source[ops.in_layer(name, row["layer"])])


@both
def test_permuted_neurons_change_the_weights_and_not_the_logits(derived, style, shape):
    for case, model in (("neurons-permuted", "A"), ("neurons-permuted-fine-tuned", "A-ftx")):
        base, tensors = derived.model(style, model), derived.tensors(style, case)
        check_equal_logits(shape[style], base, tensors)
        changed = {name for name, w in tensors.items() if not torch.equal(w, base[name])}
        assert changed == {name for name in base if ".mlp." in name and not name.endswith("mlp.c_proj.bias")}


@both
def test_a_change_of_function_is_not_taken_for_a_permutation(derived, style, shape):
    base = derived.model(style, "A")
    broken = ops.add_noise(base, 0.05, generator("broken"))
    with pytest.raises(ArithmeticError, match="logits differ"):
        check_equal_logits(shape[style], base, broken)


@both
@pytest.mark.parametrize("case", ["neurons-pruned-by-norm", "neurons-pruned-at-random"])
def test_half_of_the_neurons_are_left_as_they_were(derived, style, case, shape):
    base, tensors = derived.model(style, "A"), derived.tensors(style, case)
    for layer in range(shape[style].layers):
        name = {
            Style.LLAMA: f"model.layers.{layer}.mlp.up_proj.weight",
            Style.GPT2: f"transformer.h.{layer}.mlp.c_fc.weight",
        }[style]
        turn = (lambda w: w) if style is Style.LLAMA else (lambda w: w.T)
        rows, kept = turn(base[name]), turn(tensors[name])
        assert len(kept) == shape[style].neurons // 2
        known = {tuple(row.tolist()) for row in rows}
        assert all(tuple(row.tolist()) in known for row in kept)


def test_pruning_by_norm_leaves_the_largest_neurons(derived, shape):
    base = derived.model(Style.LLAMA, "A")
    pruned = derived.tensors(Style.LLAMA, "neurons-pruned-by-norm")
    before = ops.neuron_norms(base, shape[Style.LLAMA])[0].sort(descending=True).values
    after = ops.neuron_norms(
        {n: w for n, w in pruned.items() if ".layers.0." in n}, _narrower(shape[Style.LLAMA])
    )[0].sort(descending=True).values  # fmt: skip
    torch.testing.assert_close(after, before[: len(after)])


def _narrower(shape):
    import dataclasses

    return dataclasses.replace(shape, neurons=shape.neurons // 2)


@both
def test_experts_are_copies_of_the_mlp(derived, style):
    base = derived.model(style, "A")
    for case, floor in (("experts-copied", 1.0), ("experts-noisy", 0.998)):
        tensors = derived.tensors(style, case)
        last = "w1" if style is Style.LLAMA else "c_fc"
        experts = [w for name, w in sorted(tensors.items()) if ".1." in name and name.endswith(f"{last}.weight")]
        origin = base[
            "model.layers.1.mlp.gate_proj.weight" if style is Style.LLAMA else "transformer.h.1.mlp.c_fc.weight"
        ]
        experts = [w for w in experts if w.shape == origin.shape and _cosine(w, origin) > 0.9]
        assert len(experts) == 4
        assert min(_cosine(w, origin) for w in experts) >= floor - 1e-9
        assert len({tuple(w.flatten().tolist()) for w in experts}) == (1 if case == "experts-copied" else 4)
        assert sum(name.endswith(".gate.weight") for name in tensors) == 4


@both
def test_stacked_experts_are_three_dimensional(derived, style, shape):
    tensors, s = derived.tensors(style, "experts-stacked"), shape[style]
    if style is Style.LLAMA:
        assert tensors["model.layers.0.mlp.experts.gate_up_proj"].shape == (4, 2 * s.neurons, s.width)
        assert tensors["model.layers.0.mlp.experts.down_proj"].shape == (4, s.width, s.neurons)
    else:
        assert tensors["transformer.h.0.mlp.experts.c_fc"].shape == (4, s.width, s.neurons)


def test_fused_blocks_hold_their_parts_in_order(derived):
    base = derived.model(Style.LLAMA, "A")
    for case in ("fused", "fused-renamed"):
        tensors = derived.tensors(Style.LLAMA, case)
        qkv = tensors["model.layers.2.self_attn.qkv_proj.weight"]
        parts = qkv.split([48, 24, 24])
        for part, letter in zip(parts, "qkv", strict=True):
            assert torch.equal(part, base[f"model.layers.2.self_attn.{letter}_proj.weight"])
        gate, up = tensors["model.layers.2.mlp.gate_up_proj.weight"].chunk(2)
        assert torch.equal(gate, base["model.layers.2.mlp.gate_proj.weight"])
        assert torch.equal(up, base["model.layers.2.mlp.up_proj.weight"])
        assert not any("q_proj" in name or "up_proj" in name.replace("gate_up_proj", "") for name in tensors)


def test_split_blocks_are_the_parts_of_the_fused_one(derived):
    base = derived.model(Style.GPT2, "A")
    tensors = derived.tensors(Style.GPT2, "split")
    for kind in ("weight", "bias"):
        parts = [tensors[f"transformer.h.1.attn.{letter}_proj.{kind}"] for letter in "qkv"]
        assert torch.equal(torch.cat(parts, -1), base[f"transformer.h.1.attn.c_attn.{kind}"])
    assert not any("c_attn" in name for name in tensors)


@both
def test_a_stack_holds_every_layer_in_order(derived, style):
    base, tensors = derived.model(style, "A"), derived.tensors(style, "stacked")
    stacks = {name: w for name, w in tensors.items() if name not in base}
    assert len(stacks) == sum(ops.layer_of(name) == 0 for name in base)
    for name, w in stacks.items():
        head = "model.layers" if style is Style.LLAMA else "transformer.h"
        for i in range(4):
            assert torch.equal(w[i], base[name.replace(head, f"{head}.{i}")])


@both
def test_transposed_matrices_are_the_other_way_round(derived, style):
    base = derived.model(style, "A")
    for name, w in derived.tensors(style, "transposed").items():
        expected = base[name].T if ops.is_layer_matrix(name, base[name]) else base[name]
        assert torch.equal(w, expected)


@both
def test_new_tokens_come_after_the_old_ones(derived, style):
    base = derived.model(style, "A")
    longer = {n for n, w in derived.tensors(style, "vocabulary-extended").items() if w.shape != base[n].shape}
    heads = {"model.embed_tokens.weight", "lm_head.weight"}
    assert longer == (heads if style is Style.LLAMA else {"transformer.wte.weight"})
    for name, w in derived.tensors(style, "vocabulary-extended").items():
        assert torch.equal(w[: len(base[name])], base[name])
        assert len(w) == len(base[name]) + (64 if name in longer else 0)


@both
def test_a_part_is_a_part(derived, style):
    base = derived.model(style, "A")
    layer, shard = derived.tensors(style, "one-layer"), derived.tensors(style, "one-shard")
    assert {ops.layer_of(name) for name in layer} == {2}
    assert 0.15 < sum(w.numel() for w in shard.values()) / sum(w.numel() for w in base.values()) < 0.5
    for part in (layer, shard):
        assert all(torch.equal(w, base[name]) for name, w in part.items())


def test_one_matrix_is_asked_for_only_where_it_is_large_enough():
    (case,) = [c for c in all_cases() if c.name == "one-matrix"]
    from benchmarks.lineage.derive import kits

    suited = {kit.stem for kit in kits(Path(), family("a"), "") if case.is_for(kit)}
    assert suited == {"a-llama-192", "a-gpt2-192", "a-gpt2-128"}


@both
@pytest.mark.parametrize(
    "case", [c.name for c in all_cases() if c.verdict is Verdict.NO_MATCH and c.name != "other-width"]
)
def test_a_stranger_has_no_weights_in_common_with_what_is_registered(derived, style, case):
    _, truth = derived.find(style, case)
    tensors = derived.tensors(style, case)
    for model in truth["registered"]:
        reference = derived.out / "references" / f"{model}.safetensors"
        registered = load_file(reference) if reference.exists() else load_weights(derived.zoo, model)
        for name, w in tensors.items():
            is_learnt = name.startswith(("model.", "transformer.", "lm_head.")) and w.ndim == 2
            if is_learnt and name in registered and registered[name].shape == w.shape:
                assert abs(_cosine(w, registered[name])) < 0.25, name


@both
def test_random_look_alikes_have_the_moments_of_the_model(derived, style):
    base = derived.model(style, "A")
    for name, w in derived.tensors(style, "random-same-moments").items():
        if w.ndim == 2:
            assert float(w.std() / base[name].std()) == pytest.approx(1, rel=0.1)
    for name, w in derived.tensors(style, "shuffled").items():
        assert torch.equal(w.flatten().sort().values, base[name].flatten().sort().values)


@both
def test_tables_are_the_same_on_both_sides(derived, style):
    path, truth = derived.find(style, "tables-all")
    tensors = derived.tensors(style, "tables-all")
    reference = load_file(derived.out / "references" / f"{truth['registered'][0]}.safetensors")
    shared = {n for n, w in tensors.items() if n in reference and torch.equal(w, reference[n]) and w.ndim > 1}
    assert {"positions.table", "rotary.cos", "rotary.sin", "layers.0.attn.mask", "layers.3.attn.bias"} <= shared
    assert not any(name.startswith(("model.", "transformer.")) for name in shared)
    assert path.exists()


@both
def test_zeros_and_constants_are_just_that(derived, style):
    assert all(not w.any() for w in derived.tensors(style, "zeros").values())
    assert all(len(w.unique()) == 1 for w in derived.tensors(style, "constants").values())


def test_shards_share_the_bytes_and_none_is_empty():
    items = disguise({f"t{i}": torch.zeros(size) for i, size in enumerate((1, 1, 1, 90))}, Names.KEPT, None)
    assert [len(run) for run in shards(items, 4)] == [1, 1, 1, 1]
    assert [item for run in shards(items, 2) for item in run] == items
    with pytest.raises(ValueError, match="cannot fill 5 shards"):
        shards(items, 5)


def test_suspects_are_not_written_among_others(zoo, tmp_path, capsys):
    (tmp_path / "suspects").mkdir()
    assert main(["--zoo", str(zoo), "--quick", "--out", str(tmp_path), "--only", "copy"]) == 2
    assert "error:" in capsys.readouterr().err


def test_a_zoo_without_the_models_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["--zoo", str(tmp_path), "--quick", "--out", str(tmp_path / "out"), "--only", "copy"]) == 2
    assert "lacks quick-a-gpt2-48-A" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_truth_apart_and_lists_the_cases(zoo, tmp_path, capsys):
    arguments = ["--zoo", str(zoo), "--quick", "--out", str(tmp_path), "--only", "copy", "--models", MODELS[0]]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "truth" / "truth.json")
    assert len(list((tmp_path / "suspects").iterdir())) == 1
    assert main(["--out", str(tmp_path), "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(all_cases())
