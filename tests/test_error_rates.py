"""The error-rate benchmark on a small zoo of drawn weights: true tests pass, broken ones make the command fail."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

from benchmarks.error_rates.__main__ import assemble, failures, main, replicated_pairs, run
from benchmarks.error_rates.calibrate import halves
from benchmarks.error_rates.comparisons import best_of_each, pairs_of, same_place
from benchmarks.error_rates.procedures import BROKEN
from benchmarks.error_rates.rates import Sample, rates, table
from benchmarks.error_rates.replicates import flip, flip_channels, permute
from benchmarks.zoo.models import Shape, Style
from fingerprint.comparing.align import align_samples
from fingerprint.comparing.coins import match_neurons, usable_coins
from fingerprint.comparing.gauge import compare_gauge
from fingerprint.comparing.tail import FLOOR, TAIL_START, sketch_log10_p
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.records import AxisSample
from fingerprint.sketch import MatrixSketcher
from fingerprint.vocabulary import Axis

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.error_rates.population import Model

WIDTH, NEURONS, VOCABULARY, LAYERS, SEEDS = 40, 96, 160, 2, 6


def drawn(seed: int) -> dict[str, np.ndarray]:
    """A Llama-style model of drawn weights, whose token tables share their tokens' frequencies with all others."""
    rng = np.random.default_rng([8, 1, seed])
    frequent = np.linspace(-1, 1, VOCABULARY)[:, None]
    shapes = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (WIDTH // 2, WIDTH),
        "self_attn.v_proj": (WIDTH // 2, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (NEURONS, WIDTH),
        "mlp.up_proj": (NEURONS, WIDTH),
        "mlp.down_proj": (WIDTH, NEURONS),
    }
    weights = {
        f"model.layers.{layer}.{name}.weight": 0.1 * rng.normal(size=shape)
        for layer in range(LAYERS)
        for name, shape in shapes.items()
    }
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = rng.normal(size=(VOCABULARY, WIDTH)) + 5 * frequent * rng.normal(size=(1, WIDTH))
    weights |= {
        f"model.layers.{layer}.{name}_layernorm.weight": np.ones(WIDTH)
        for layer in range(LAYERS)
        for name in ("input", "post_attention")
    }
    weights["model.norm.weight"] = np.ones(WIDTH)
    return {name: w.astype(np.float32) for name, w in weights.items()}


def manifest(seed: str, parents: list[str]) -> str:
    shape = asdict(Shape(Style.LLAMA, WIDTH, LAYERS, 4, 2, NEURONS, VOCABULARY, 64, tied=False))
    return json.dumps(
        {"parents": parents, "seed": {"init": seed}, "shape": shape, "style": "llama", "steps": 1, "data": "none"}
    )


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for seed in range(SEEDS):
        weights = drawn(seed)
        name = f"quick-a-pop-s{seed}"
        save_file(weights, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(manifest(name, []))
        if seed < 2:
            rng = np.random.default_rng([9, seed])
            tuned = {key: (w + 0.1 * rng.normal(size=w.shape)).astype(np.float32) for key, w in weights.items()}
            save_file(tuned, folder / f"{name}-ft.safetensors")
            (folder / f"{name}-ft.json").write_text(manifest("", [name]))
    return folder


@pytest.fixture(scope="module")
def models(zoo) -> list[Model]:
    return assemble(zoo, None, "a", sources=3)


def test_the_product_keeps_to_its_p_values(zoo, tmp_path, capsys) -> None:
    status = main(["--zoo", str(zoo), "--out", str(tmp_path), "--quick"])
    assert status == 0, capsys.readouterr().out
    table = json.loads((tmp_path / "error-rates.json").read_text())
    tests = {row["test"] for row in table["rows"]}
    assert {"align", "rows, one MLP", "rows, Fisher over MLPs", "sketch, all tensor pairs"} <= tests
    assert not any(rate["rejected"] for row in table["rows"] for rate in row["rates"])
    assert {"align", "rows", "sketch"} <= table["smallest"].keys()
    assert (tmp_path / "error-rates.md").read_text().startswith("# Error rates")
    assert len(list(tmp_path.glob("*.png"))) == len(tests)


def test_a_broken_test_makes_the_command_fail(zoo, tmp_path, capsys) -> None:
    assert main(["--zoo", str(zoo), "--out", str(tmp_path), "--quick", "--break", "third"]) == 1
    assert "failed: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        ("align-unshuffled", "align"),
        ("coins-weights", ("rows", "gauge")),
        ("coins-duplicates", ("rows", "gauge")),
        ("coins-one-sided", ("rows", "gauge")),
        ("sketch-gaussian", "sketch"),
    ],
)
def test_each_broken_variant_is_caught_in_its_own_tests_alone(models, broken, test) -> None:
    samples, extra = run(models, replicated_pairs(models, most=5), broken, scale=0.2)
    found = failures(table(samples), extra)
    assert found
    assert all(one.startswith(test) for one in found)


def test_every_broken_variant_is_tried() -> None:
    assert set(BROKEN) == {
        "align-unshuffled",
        "coins-weights",
        "coins-duplicates",
        "coins-one-sided",
        "sketch-gaussian",
        "third",
    }


def test_suspects_without_names_are_never_registered_and_have_strata_of_their_own(models) -> None:
    found = [one for one in pairs_of(models) if "nameless" in (one[1].kind, one[2].kind)]
    assert found
    assert all(
        registered.kind == "" and stratum == "one recipe, llama 40, nameless" for stratum, registered, _ in found
    )
    assert all(suspect.root != registered.root for _, registered, suspect in found)
    names = {tensor.name for _, _, suspect in found for tensor in suspect.suspect.tensors}
    assert not any("layers" in name or "proj" in name for name in names)


def test_related_models_are_never_paired(models) -> None:
    pairs = pairs_of(models)
    assert len(pairs) > 100
    assert all(registered.root != suspect.root for _, registered, suspect in pairs)
    tuned = next(one for one in models if one.id.endswith("-ft"))
    assert tuned.root == tuned.id.removesuffix("-ft")


def test_relatives_share_a_half_of_the_calibration(models) -> None:
    first, second = halves(models)
    assert {one.root for one in first}.isdisjoint(one.root for one in second)
    assert len(first) + len(second) == len(models)


def test_flipped_channels_leave_what_is_matched_and_halve_the_coins(models) -> None:
    a, b = models[0], models[1]
    flipped = flip_channels(a.registered, np.random.default_rng(0))
    usable = usable_coins(a.registered.neurons)
    for before, after in zip(a.registered.channels, flipped.channels, strict=True):
        signs = np.sign(np.sum(before.parts * after.parts, axis=2))
        assert np.allclose(np.abs(before.parts), np.abs(after.parts))
        assert (signs == signs[0]).all()
        assert {-1.0, 1.0} <= set(signs[0].tolist())
    for before, after in zip(
        *(compare_gauge(one, b.suspect, usable, own_frames=False).tests for one in (a.registered, flipped)), strict=True
    ):
        assert (before.frame, before.kind, before.toss.coins) == (after.frame, after.kind, after.toss.coins)


def test_flips_leave_the_matching_and_the_choice_of_coins_as_they_are(models) -> None:
    a, b = models[0], models[1]
    flipped = flip(a.registered.neurons, np.random.default_rng(0), together=False)
    for before, after in zip(
        match_neurons(a.registered.neurons, b.suspect.neurons), match_neurons(flipped, b.suspect.neurons), strict=True
    ):
        assert np.array_equal(before.partners, after.partners)
        assert np.allclose(before.scores, after.scores)
        assert not np.array_equal(before.coins, after.coins)
    for one, other in zip(usable_coins(a.registered.neurons), usable_coins(flipped), strict=True):
        assert np.array_equal(one, other)


def test_the_best_single_matches_are_the_choice_among_all(models) -> None:
    a, b = models[0].registered.neurons, models[2].suspect.neurons
    single = [
        replace(match, registered=i, suspect=j)
        for i, ours in enumerate(a)
        for j, theirs in enumerate(b)
        for match in match_neurons([ours], [theirs])
    ]
    chosen = [(one.registered, one.suspect, one.partners.tolist()) for one in best_of_each(single)]
    assert chosen == [(one.registered, one.suspect, one.partners.tolist()) for one in match_neurons(a, b)]


def test_a_permuted_axis_lands_no_more_even_in_a_copy(models) -> None:
    ours, theirs = same_place(models[0].registered.tensors, models[0].suspect.tensors)[0]
    rng = np.random.default_rng(0)
    found = [align_samples(permute(ours.axes[0], rng), theirs.axes[0]).landed for _ in range(200)]
    assert align_samples(ours.axes[0], theirs.axes[0]).landed == ours.axes[0].indices.size
    assert np.mean(found) == pytest.approx(1.0, abs=0.3)


def rows_of(matrix: np.ndarray) -> AxisSample:
    sketcher = MatrixSketcher(*matrix.shape, DEFAULT_PARAMETERS)
    sketcher.update(0, matrix.astype(np.float32))
    sketch = sketcher.finish()
    return AxisSample(Axis.RESIDUAL, 0, len(matrix), sketch.row_indices, sketch.rows)


@pytest.mark.parametrize("columns", [64, 72])
def test_unrelated_matrices_of_rank_one_do_not_land(columns) -> None:
    rng = np.random.default_rng([7, 1])

    def matrix() -> np.ndarray:
        return np.outer(rng.normal(size=64), rng.normal(size=columns))

    assert max(align_samples(rows_of(matrix()), rows_of(matrix())).landed for _ in range(40)) <= 7


def uniform(models: int, each: int, seed: int, power: float = 1.0) -> Sample:
    rng = np.random.default_rng(seed)
    sample = Sample()
    for i in range(models):
        for j in range(models):
            if i != j:
                sample.add(f"m{i}", f"m{j}", power * np.log10(rng.random(each)))
    return sample


def test_uniform_p_values_are_accepted_and_smaller_ones_are_not() -> None:
    assert not any(one.rejected for one in rates(uniform(20, 30, 0)))
    assert all(one.rejected for one in rates(uniform(20, 30, 0, power=1.5)))


def test_one_model_with_small_p_values_widens_the_interval() -> None:
    sample = uniform(12, 30, 1)
    even = rates(sample)[1]
    for place, name in enumerate(sample.registered):
        if name == "m0":
            sample.log10_p[place] = np.full(30, -2.5)
    uneven = rates(sample)[1]
    assert uneven.share > 0.05
    assert uneven.high - uneven.low > 4 * (even.high - even.low)


def test_the_tail_of_the_sketch_is_a_p_value() -> None:
    values = [sketch_log10_p(x, 1) for x in np.linspace(0, 100, 200)]
    assert values == sorted(values, reverse=True)
    assert sketch_log10_p(TAIL_START, 1) == 0.0
    assert sketch_log10_p(1e6, 1) == FLOOR
    assert sketch_log10_p(12.0, 100) == pytest.approx(sketch_log10_p(12.0, 1) + 2)
