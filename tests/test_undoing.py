"""A deep comparison recovers what was done to weights, and what is left is what was not a rewrite."""

from __future__ import annotations

import json
import random
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.rewrites import symmetries as sym
from benchmarks.rewrites.cases import Rewrite, Site, damages, rewrite, rewrites
from benchmarks.zoo.models import generator, initial_weights
from benchmarks.zoo.recipes import STYLES, family
from benchmarks.zoo.store import load_weights
from cli.console import Look
from cli.render.undoing_text import undoing_lines
from fingerprint.checkpoint import open_checkpoint
from fingerprint.undoing.algebra import partners, rotation_between
from fingerprint.undoing.result import Total, Use
from fingerprint.undoing.undo import _recovered, undo
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli_support import Program

pytest_plugins = ["tests.cli_fixtures"]

SPECS = {spec.id: spec for name in ("a", STYLES) for spec in family(name, quick=True)}
LLAMA, GPT2 = "quick-a-llama-48", "quick-a-gpt2-48"
GEMMA, BERT = "quick-styles-gemma-48", "quick-styles-bert-48"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    folder = quick_zoo(tmp_path_factory, list(SPECS.values()), [f"{stem}-A" for stem in (LLAMA, GPT2, GEMMA, BERT)])
    for stem in (LLAMA, GPT2):
        spec = SPECS[f"{stem}-B"]
        save_file(initial_weights(spec.shape, spec.init), folder / f"{spec.id}.safetensors")
    tuned = load_weights(folder, f"{LLAMA}-A")
    noise = generator("tuned")
    changed = {name: w + 0.1 * w.std() * torch.randn(w.shape, generator=noise) for name, w in tuned.items()}
    save_file(
        {name: w if w.ndim > 1 else tuned[name] for name, w in changed.items()}, folder / f"{LLAMA}-A-ftx.safetensors"
    )
    return folder


def saved(weights: dict[str, torch.Tensor], path: Path, *, nameless: bool = False, seed: int = 0) -> Path:
    if nameless:
        names = sorted(weights)
        random.Random(seed).shuffle(names)
        weights = {f"t{number}": weights[name] for number, name in enumerate(names)}
    save_file({name: w.contiguous() for name, w in weights.items()}, path)
    return path


def case_of(stem: str, name: str) -> Rewrite:
    return next(one for one in rewrites(SPECS[f"{stem}-A"].shape.style) if one.name == name)


def undone(folder: Path, ours, theirs, *, nameless: bool = False, seed: int = 0):
    first = saved(ours, folder / "a.safetensors")
    second = saved(theirs, folder / "b.safetensors", nameless=nameless, seed=seed)
    with open_checkpoint(first) as a, open_checkpoint(second) as b:
        return undo(a, b)


def rewritten(zoo: Path, stem: str, name: str, model: str = "A"):
    return rewrite(load_weights(zoo, f"{stem}-{model}"), SPECS[f"{stem}-A"].shape, case_of(stem, name), "test")


@pytest.mark.parametrize("stem", [LLAMA, GPT2])
@pytest.mark.parametrize(
    ("name", "nameless"), [("heads-permuted", False), ("all-but-vocabulary", False), ("all", True)]
)
def test_every_rewrite_is_undone_to_rounding(zoo, tmp_path, stem, name, nameless):
    found, _ = undone(tmp_path, load_weights(zoo, f"{stem}-A"), rewritten(zoo, stem, name).tensors, nameless=nameless)
    assert found.recovered
    assert found.held_out.residual < 2e-6
    assert found.ordered.residual < 2e-6
    assert found.held_out.control > 1.0
    assert found.rotation == ("as-it-was" if name == "heads-permuted" else "rotated")


@pytest.mark.parametrize(("stem", "rotation"), [(GEMMA, "rotated"), (BERT, "permuted")])
@pytest.mark.parametrize(("name", "nameless"), [("all-but-vocabulary", False), ("all", False), ("all", True)])
def test_models_of_other_styles_are_undone_without_a_configuration(zoo, tmp_path, stem, rotation, name, nameless):
    found, _ = undone(tmp_path, load_weights(zoo, f"{stem}-A"), rewritten(zoo, stem, name).tensors, nameless=nameless)
    assert found.recovered
    assert found.held_out.residual < 2e-6
    assert found.rotation == rotation


@pytest.mark.parametrize("seed", range(4))
def test_queries_and_keys_that_nothing_tells_apart_find_their_layer_either_way_round(zoo, tmp_path, seed):
    ours, theirs = load_weights(zoo, f"{BERT}-A"), rewritten(zoo, BERT, "laundered").tensors
    found, _ = undone(tmp_path, ours, theirs, nameless=True, seed=seed)
    assert {one.kind for one in found.residuals} >= {"query", "key"}
    assert found.held_out.residual < 2e-6


def test_tokens_that_have_much_in_common_are_seen_to_have_moved(zoo, tmp_path):
    weights, table = load_weights(zoo, f"{LLAMA}-A"), "model.embed_tokens.weight"
    spread, numbers = weights[table].std(), generator("common")
    weights[table] += 3 * spread * torch.randn(weights[table].shape[1], generator=numbers)
    order = torch.randperm(len(weights[table]), generator=numbers)
    trained = weights[table] + spread * torch.randn(weights[table].shape, generator=numbers)
    found, _ = undone(tmp_path, weights, weights | {table: trained[order]})
    assert found.tokens_moved > 0.9
    kept, _ = undone(tmp_path, weights, weights | {table: trained})
    assert kept.tokens_moved == 0.0


@pytest.mark.parametrize("name", ["gains-folded", "rotated", "laundered"])
def test_gains_stored_less_one_are_read_as_such_where_folding_left_zeros(zoo, tmp_path, name):
    made = rewritten(zoo, GEMMA, name).tensors
    assert not made["model.layers.0.input_layernorm.weight"].any()
    found, _ = undone(tmp_path, load_weights(zoo, f"{GEMMA}-A"), made)
    assert found.recovered
    assert found.held_out.residual < 2e-6
    assert found.ordered.residual < 2e-6


PARTLY: dict[str, Callable[[int, torch.Tensor], torch.Tensor]] = {
    "those of the layers": lambda norm, gain: gain if norm < 6 else torch.ones_like(gain),
    "all but one, which has none below one": lambda norm, gain: gain if norm else gain.clamp(max=1.0),
    "channels with a gain below one": lambda _, gain: gain.clamp(max=1.0),
    "every second channel": lambda _, gain: torch.where(torch.arange(len(gain)) % 2 == 0, gain, 1.0),
}


@pytest.mark.parametrize("which", PARTLY)
def test_gains_stored_less_one_that_are_folded_in_part_are_read_as_such(zoo, tmp_path, which):
    def fold(weights, shape, _):
        number = count()
        return sym._divide_gains(weights, shape, lambda gain: PARTLY[which](next(number), gain))

    weights, shape = load_weights(zoo, f"{GEMMA}-A"), SPECS[f"{GEMMA}-A"].shape
    made = rewrite(weights, shape, Rewrite(which, "", (fold, sym.permute_residual)), "test").tensors
    found, _ = undone(tmp_path, weights, made)
    assert found.rotation == "permuted"
    assert found.held_out.residual < 2e-6
    assert found.ordered.residual < 2e-6


@pytest.mark.parametrize("folded", [False, True])
def test_gains_that_are_zero_and_lack_no_one_are_left_so(zoo, tmp_path, folded):
    weights, shape = load_weights(zoo, f"{LLAMA}-A"), SPECS[f"{LLAMA}-A"].shape
    dead = "model.layers.1."
    weights[f"{dead}post_attention_layernorm.weight"].zero_()
    case = Rewrite("one", "", (sym.permute_neurons, sym.permute_residual))
    made = rewrite(weights, shape, case, "test").tensors
    if folded:
        for name in ("gate_proj", "up_proj"):
            made[f"{dead}mlp.{name}.weight"].zero_()
        made[f"{dead}post_attention_layernorm.weight"].fill_(1.0)
    found, _ = undone(tmp_path, weights, made)
    # What the dead neurons would write has no order that anything tells.
    assert found.rotation == "permuted"
    left = {(one.kind, one.use): one.residual for one in found.residuals if one.kind != "down"}
    assert max(left.values()) < 2e-6


def test_what_was_done_is_told_and_given_explicitly(zoo, tmp_path):
    weights, shape = load_weights(zoo, f"{LLAMA}-A"), SPECS[f"{LLAMA}-A"].shape
    turn = sym._orthogonal(generator("turn"), shape.width)
    case = Rewrite("one", "", (sym.permute_neurons, sym.scramble_signs, sym.mix_values, sym.change_keys))
    made = rewrite(weights, shape, case, "test").tensors
    found, transform = undone(tmp_path, weights, made)
    assert (found.rotation, found.values, found.keys) == ("as-it-was", "mixed", "pairs-turned")
    assert found.neurons_moved > 0.9
    assert 0.3 < found.neurons_negated < 0.7
    assert not found.heads_moved
    text = " ".join(" ".join(undoing_lines(found, Look())).split())
    assert "residual stream as it was" in text
    assert "keys inside of heads pairs turned" in text
    assert "held out" in text
    for number, mlp in enumerate(transform.mlps):
        gate = f"model.layers.{number}.mlp.gate_proj.weight"
        assert np.allclose(weights[gate].numpy()[mlp.order], made[gate].numpy(), atol=1e-6)
        assert set(np.sign(mlp.scale)) == {-1.0, 1.0}
    table = weights["model.embed_tokens.weight"].double()
    rotated = (table @ turn).float().numpy()
    rotation = rotation_between([(table.float().numpy(), rotated)], shape.width)
    assert np.allclose(rotation, turn.numpy(), atol=1e-4)


@pytest.mark.parametrize(("stem", "end"), [(LLAMA, "up_proj.weight"), (GPT2, "c_fc.weight")])
def test_after_rounding_to_four_bits_what_is_left_is_the_rounding(zoo, tmp_path, stem, end):
    made = rewritten(zoo, stem, "laundered")
    spec = SPECS[f"{stem}-A"]
    site = Site(spec.shape, generator("damage"), made.order, dict, "a-x-small", "b-x-small", 5, spec.schedule)
    (four_bits,) = (one for one in damages() if one.name == "4bit")
    damaged = four_bits.apply(made.tensors, site)
    names = [name for name in damaged if name.endswith(end)]
    error = sum(float((damaged[name] - made.tensors[name]).square().sum()) for name in names)
    size = sum(float(made.tensors[name].square().sum()) for name in names)
    found, _ = undone(tmp_path, load_weights(zoo, f"{stem}-A"), damaged)
    kind = "up" if stem == LLAMA else "fc-in"
    (left,) = (one.residual for one in found.residuals if (one.kind, one.use) == (kind, "ordered"))
    assert found.recovered
    assert 0.8 < left / (error / size) ** 0.5 < 1.3


def test_a_rewritten_change_is_as_large_as_the_change(zoo, tmp_path):
    weights, tuned = (load_weights(zoo, f"{LLAMA}-{model}") for model in ("A", "A-ftx"))
    straight, _ = undone(tmp_path, weights, tuned)
    laundered, _ = undone(tmp_path, weights, rewritten(zoo, LLAMA, "all", "A-ftx").tensors)
    assert straight.recovered
    assert laundered.recovered
    assert 0.5 < laundered.held_out.residual / straight.held_out.residual < 2.0


@pytest.mark.parametrize(("stem", "name"), [(LLAMA, "none"), (GPT2, "rotated")])
def test_nothing_is_recovered_from_another_seed(zoo, tmp_path, stem, name):
    found, _ = undone(tmp_path, load_weights(zoo, f"{stem}-A"), rewritten(zoo, stem, name, "B").tensors)
    assert not found.recovered
    assert found.held_out.residual > 1.0
    assert "nothing corresponds" in " ".join(" ".join(undoing_lines(found, Look())).split())


@pytest.mark.parametrize("stem", [LLAMA, GPT2])
def test_tables_of_tokens_alone_do_not_make_a_recovery(zoo, tmp_path, stem):
    """Models that learnt the same text may have tables as alike as copies; here they are copies."""
    ours, theirs = (load_weights(zoo, f"{stem}-{model}") for model in ("A", "B"))
    tables = {name: w for name, w in ours.items() if "embed" in name or "wte" in name or "wpe" in name}
    assert tables
    for name, table in tables.items():
        theirs[name] = table * 30.0
        ours[name] = table * 30.0
    found, _ = undone(tmp_path, ours, theirs)
    assert not found.recovered
    assert found.held_out.residual > 0.8 * found.held_out.control
    assert {one.use for one in found.residuals if "embedding" in one.kind} <= {"tables", "fitted"}


def test_what_was_estimated_least_decides_whether_anything_was_recovered():
    low, high = Total(0.1, 1.4, 9), Total(1.3, 1.4, 9)
    none = dict.fromkeys(Use)
    for use in (Use.HELD_OUT, Use.ORDERED, Use.TABLES):
        assert _recovered(none | {use: low})
        assert not _recovered(none | {use: high})
    assert not _recovered(none | {Use.FITTED: low})
    assert not _recovered(none | {Use.HELD_OUT: high, Use.ORDERED: low, Use.TABLES: low})
    assert _recovered(none | {Use.HELD_OUT: low, Use.ORDERED: high, Use.TABLES: high})
    assert not _recovered(none | {Use.TABLES: Total(0.74, 1.17, 9)})  # two models that learnt the same text


def test_streams_of_different_width_are_said_to_be(zoo, tmp_path):
    wide = {name: torch.cat([w, w], -1) for name, w in load_weights(zoo, f"{GPT2}-A").items()}
    found, transform = undone(tmp_path, load_weights(zoo, f"{GPT2}-A"), wide)
    assert "width" in found.missing or "recognised" in found.missing
    assert transform is None


@pytest.mark.parametrize("value", [0.0, 3e38, float("nan")])
def test_a_hostile_suspect_leaves_a_residual_and_no_traceback(zoo, tmp_path, value):
    weights = load_weights(zoo, f"{LLAMA}-A")
    hostile = {name: torch.full_like(w, value) for name, w in weights.items()}
    found, _ = undone(tmp_path, weights, hostile)
    assert not found.recovered
    mixed = {name: w.clone() for name, w in weights.items()}
    for w in mixed.values():
        w.view(-1)[::7] = value
    found, _ = undone(tmp_path, weights, mixed)
    assert all(np.isfinite(one.residual) for one in found.residuals)


def test_partners_are_mutual_first_and_then_assigned():
    numbers = np.random.default_rng(1)
    rows = numbers.standard_normal((40, 16)).astype(np.float32)
    order = numbers.permutation(40)
    found, value = partners([rows], [rows[order][:30]], fixed=(True,))
    assert np.array_equal(found, order[:30])
    assert np.allclose(value, 1.0, atol=1e-5)
    # Rows without a partner among fewer are told.
    found, _ = partners([rows[:10]], [rows], fixed=(True,))
    assert sorted(found[found >= 0].tolist()) == list(range(10))
    assert (found < 0).sum() == 30


def test_the_command_reports_and_writes_the_transformation(zoo, tmp_path, fp: Program):
    a = saved(load_weights(zoo, f"{LLAMA}-A"), tmp_path / "a.safetensors")
    b = saved(rewritten(zoo, LLAMA, "all-but-vocabulary").tensors, tmp_path / "b.safetensors")
    target = tmp_path / "undone.npz"
    ran = fp("compare", "--deep", a, b, "--transform", target, "--format", "json")
    (report,) = json.loads(ran.out)
    assert report["undoing"]["recovered"]
    assert report["undoing"]["held_out"]["residual"] < 2e-6
    with np.load(target) as arrays:
        assert arrays["rotation"].shape == (48, 48)
        assert {"tokens", "mlp.0.order", "mlp.0.scale"} <= set(arrays)
    assert fp("compare", a, b, "--transform", target).status == 2
    assert fp("sketch", a, "-o", tmp_path / "a.fpsig").status == 0
    assert fp("compare", "--deep", tmp_path / "a.fpsig", b).status == 2
