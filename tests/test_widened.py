"""A copy that was widened for nothing is still a copy; what only holds a part of a model, or a stranger, is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.adversarial import attacks
from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.zoo.models import generator, logits
from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import load_weights
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.gauge.live import _joined_by, contributing, live_neurons
from signatures import Registry, scan_path, sign
from signatures.report import Confidence, Link, Verdict
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.zoo.models import Shape, Weights
    from signatures.report import Report

STEM = "quick-a-llama-48"
SPECS = family("a", quick=True)
SHAPE = next(spec.shape for spec in SPECS if spec.id == f"{STEM}-A")
IDS = torch.randint(0, SHAPE.vocabulary, (1, 2, 16), generator=generator("ids"))
WIDENED = {
    "padded": lambda w: (attacks.padded_neurons(w, SHAPE, "p", 3), SHAPE),
    "padded nine times": lambda w: (attacks.padded_neurons(w, SHAPE, "p", 8), SHAPE),
    "split": lambda w: (attacks.split_neurons(w, SHAPE, "s"), SHAPE),
    "split four times": lambda w: (attacks.split_neurons(attacks.split_neurons(w, SHAPE, "s"), SHAPE, "t"), SHAPE),
    "heads": lambda w: attacks.with_junk_heads(w, SHAPE, "h", 6),
    "layers": lambda w: attacks.with_dead_layers(w, SHAPE, "l", 3),
    "stream": lambda w: attacks.with_wider_stream(w, SHAPE, "w", 3),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return quick_zoo(tmp_path_factory, SPECS, [f"{STEM}-{one}" for one in ("A", "B", "A-copied-embeddings")])


@pytest.fixture(scope="module")
def victim(zoo) -> Weights:
    return load_weights(zoo, f"{STEM}-A")


@pytest.fixture(scope="module")
def registry(zoo, victim, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("widened")
    save_file(victim, folder / "victim.safetensors")
    with open_checkpoint(folder / "victim.safetensors") as checkpoint, Registry.open(folder / "r") as registry:
        registry.register(sign(fingerprint(checkpoint)), name="acme/victim")
    return folder / "r"


def scan(registry: Path, weights: Weights, folder: Path, *, named: bool = True) -> Report:
    order = torch.randperm(len(weights), generator=generator("names")).tolist()
    names = list(weights) if named else [f"t{number:03d}" for number in order]
    save_file(
        {new: w.contiguous() for new, w in zip(names, weights.values(), strict=True)}, folder / "suspect.safetensors"
    )
    with Registry.open(registry) as opened:
        return scan_path(opened, folder / "suspect.safetensors")


def computed(shape: Shape, weights: Weights) -> torch.Tensor:
    return logits(shape, {name: w[None] for name, w in weights.items()}, IDS)


@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
@pytest.mark.parametrize("way", WIDENED)
def test_a_copy_that_was_widened_for_nothing_is_found(way, named, registry, victim, tmp_path) -> None:
    made, shape = WIDENED[way](victim)
    assert torch.allclose(computed(shape, made), computed(SHAPE, victim), atol=1e-2)
    (match,) = scan(registry, made, tmp_path, named=named).matches
    assert (match.link, match.confidence) == (Link.LINEAGE, Confidence.CERTAIN)


@pytest.mark.parametrize("down", [1e-4, 1e-2])
def test_neurons_that_write_next_to_nothing_do_not_hide_the_others(down, registry, victim, tmp_path) -> None:
    (match,) = scan(registry, attacks.padded_neurons(victim, SHAPE, "p", 3, down), tmp_path).matches
    assert (match.link, match.confidence) == (Link.LINEAGE, Confidence.CERTAIN)


@pytest.mark.parametrize("widen", [attacks.split_neurons, attacks.padded_neurons])
def test_a_copy_may_be_rewritten_before_it_is_widened(widen, registry, victim, tmp_path) -> None:
    everything = next(one for one in rewrites(SHAPE.style) if one.name == "all-but-vocabulary")
    made = widen(rewrite(victim, SHAPE, everything, "widened").tensors, SHAPE, "w")
    (match,) = scan(registry, made, tmp_path).matches
    assert (match.link, match.confidence) == (Link.LINEAGE, Confidence.LIKELY)
    assert match.coverage.suspect > 0.7


@pytest.mark.parametrize("widen", [attacks.split_neurons, attacks.padded_neurons])
def test_a_stranger_that_was_widened_stays_one(widen, registry, zoo, tmp_path) -> None:
    assert scan(registry, widen(load_weights(zoo, f"{STEM}-B"), SHAPE, "w"), tmp_path).verdict is Verdict.NO_MATCH


@pytest.mark.parametrize("widen", [lambda w, *_: w, attacks.split_neurons, attacks.padded_neurons])
def test_frozen_embeddings_of_a_new_model_stay_a_component(widen, registry, zoo, tmp_path) -> None:
    made = widen(load_weights(zoo, f"{STEM}-A-copied-embeddings"), SHAPE, "w")
    (match,) = scan(registry, made, tmp_path).matches
    assert (match.link, match.confidence) == (Link.SHARED_COMPONENT, Confidence.POSSIBLE)


def test_a_layer_among_new_ones_stays_a_component(registry, victim, zoo, tmp_path) -> None:
    """Three of four layers are another model's, and so are the tables."""
    made = load_weights(zoo, f"{STEM}-B") | {name: w for name, w in victim.items() if ".layers.1." in name}
    (match,) = scan(registry, made, tmp_path).matches
    assert (match.link, match.confidence) == (Link.SHARED_COMPONENT, Confidence.POSSIBLE)


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("parted", ["up", "down"])
def test_parts_of_a_neuron_are_put_together_whichever_side_was_parted(parted) -> None:
    gate, up, down = (random(40, 64, seed=seed) for seed in range(3))
    noise = random(40, 64, seed=4)
    ups, downs = ([up, up], [down / 2 + noise, down / 2 - noise])
    if parted == "up":
        ups, downs = ([up / 2 + noise, up / 2 - noise], [down, down])
    found = live_neurons(np.concatenate([gate, gate]), np.concatenate(ups), np.concatenate(downs), named=True)
    assert found.up is not None
    assert len(found.rows) == 40
    order = (found.rows % 40).tolist()
    assert order == sorted(order) or sorted(order) == list(range(40))
    products = np.einsum("ij,ik->ijk", found.up, found.down)
    assert np.allclose(products, np.einsum("ij,ik->ijk", up, down)[order], atol=1e-3)


def test_neurons_of_an_ungated_mlp_that_read_the_same_are_one() -> None:
    first, last = random(40, 64), random(40, 64, seed=2)
    found = live_neurons(np.concatenate([first, first]), None, np.concatenate([0.3 * last, 0.7 * last]), named=True)
    assert np.allclose(found.down, last[found.rows % 40], atol=1e-5)


def test_of_different_neurons_none_is_left_out() -> None:
    found = live_neurons(random(300, 64), random(300, 64, seed=2), random(300, 64, seed=3), named=False)
    assert len(found.rows) == 300


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_neurons_and_zeros_are_no_trouble(rows) -> None:
    zeros = np.zeros((rows, 64), np.float32)
    assert len(live_neurons(zeros, zeros, zeros, named=False).rows) <= rows


@pytest.mark.parametrize("ungated", [True, False])
def test_neurons_of_one_gate_may_be_as_large_as_they_like(ungated) -> None:
    huge = np.full((40, 64), 3e38, np.float32)
    found = live_neurons(huge, None if ungated else huge, huge, named=False)
    assert np.isfinite(found.down).all()


def test_small_neurons_are_left_out_by_what_they_have_together() -> None:
    assert contributing(np.array([1.0, 1e-3, 2.0, 1e-3])).tolist() == [0, 2]
    assert contributing(np.array([1.0, 0.1])).tolist() == [0, 1]
    many = np.concatenate([np.ones(4), np.full(10_000, 1e-3)])
    assert len(contributing(many)) > 4


@pytest.mark.parametrize("pairs", [0, 1, 20, 60, 200, 1000])
def test_what_is_joined_is_one_group_as_scipy_has_it(pairs: int) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        left, right = random.integers(0, 97, (2, pairs))
        links = coo_array((np.ones(pairs, np.bool_), (left, right)), shape=(97, 97))
        count, groups = connected_components(links, directed=False)
        found = _joined_by(left, right, 97)
        assert found.max() == count - 1
        assert len(set(zip(groups.tolist(), found.tolist(), strict=True))) == count


def test_a_long_chain_is_one_group() -> None:
    order = np.random.default_rng(0).permutation(5000)
    assert not _joined_by(order[:-1], order[1:], 5000).any()
