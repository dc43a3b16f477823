"""The self frame: found after any rotation, blind to the coins, and at chance between unrelated layers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fingerprint.comparing.coins import NeuronMatch, toss, usable_coins
from fingerprint.comparing.procrustes import match_self_frames
from fingerprint.gauge.descriptors import GATED_DESCRIPTORS, NORMS, UNGATED_DESCRIPTORS, neuron_descriptors
from fingerprint.gauge.live import Neurons
from fingerprint.gauge.own import _sample
from fingerprint.gauge.self_frame import SELF_WIDTH, layer_vector, self_coordinates
from fingerprint.neurons import Projections
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.records import NeuronSample
from fingerprint.vocabulary import Frame

WIDTH, NEURONS = 96, 160

Matrices = tuple[np.ndarray, np.ndarray | None, np.ndarray]


def layer(seed: int, *, gated: bool = True) -> Matrices:
    """Neurons of very different sizes in a stream of unequal directions, as trained ones are."""
    rng = np.random.default_rng(seed)
    stream = np.exp(rng.normal(size=WIDTH) * 0.7)
    shared = rng.normal(size=(12, WIDTH)) * stream

    def matrix() -> np.ndarray:
        common = rng.normal(size=(NEURONS, 12)) @ shared * 0.3
        rows = (rng.normal(size=(NEURONS, WIDTH)) * stream + common) * np.exp(rng.normal(size=(NEURONS, 1)) * 0.4)
        return rows.astype(np.float32)

    gate, down = matrix(), matrix()
    return gate, matrix() if gated else None, down


def sample(matrices: Matrices, *, number: int = 0) -> NeuronSample:
    gate, up, down = matrices
    found = self_coordinates(gate, up, down)
    return NeuronSample(
        layer=number,
        expert=None,
        frame=Frame.SELF,
        activation="silu",
        size=len(gate),
        tensors=(3 * number, -1 if up is None else 3 * number + 1, 3 * number + 2),
        indices=np.arange(len(gate)),
        gate=found.gate,
        up=found.up,
        down=found.down,
        descriptors=found.descriptors.standard,
    )


def mapped(matrices: Matrices, change: np.ndarray | None = None, order: np.ndarray | None = None) -> Matrices:
    """The residual stream times ``change``, the neurons in another ``order``."""
    turn = np.eye(WIDTH) if change is None else change
    rows = np.arange(len(matrices[0])) if order is None else order
    return tuple(None if one is None else (one @ turn)[rows].astype(np.float32) for one in matrices)  # type: ignore[return-value]


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)))[0]


def noisy(matrices: Matrices, seed: int, share: float) -> Matrices:
    rng = np.random.default_rng(seed)
    return tuple(
        None if one is None else (one + share * one.std() * rng.normal(size=one.shape)).astype(np.float32)
        for one in matrices
    )  # type: ignore[return-value]


def flipped(matrices: Matrices, signs: np.ndarray) -> Matrices:
    gate, up, down = matrices
    assert up is not None
    return gate, (up * signs[:, None]).astype(np.float32), (down * signs[:, None]).astype(np.float32)


def only(found: list[NeuronMatch]) -> NeuronMatch:
    (match,) = found
    return match


def log10_p(ours: list[NeuronSample], theirs: list[NeuronSample]) -> float:
    return toss(match_self_frames(ours, theirs), usable_coins(ours)).log10_p


@pytest.mark.parametrize("gated", [True, False])
def test_a_rotated_permuted_noisy_layer_is_found(gated: bool) -> None:
    ours = layer(0, gated=gated)
    order = np.random.default_rng(1).permutation(NEURONS)
    theirs = sample(mapped(noisy(ours, 2, 0.2), rotation(3), order), number=1)
    found = only(match_self_frames([sample(ours)], [sample(layer(5, gated=gated)), theirs]))
    assert found.suspect == 1
    assert found.concordance > 0.9
    assert np.mean(order[found.partners] == np.arange(NEURONS)) > 0.9
    assert found.moved > 0.9
    assert log10_p([sample(ours)], [theirs]) < -30 if gated else log10_p([sample(ours)], [theirs]) == 0.0


def test_a_noisy_layer_is_found_among_many() -> None:
    ours = layer(0)
    theirs = [sample(layer(seed)) for seed in range(1, 30)]
    theirs.insert(23, sample(mapped(noisy(ours, 2, 0.5), rotation(3)), number=23))
    assert only(match_self_frames([sample(ours)], theirs)).suspect == 23


def test_flipping_registered_neurons_flips_their_coins_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    ours = layer(0)
    for other in (layer(1), mapped(noisy(ours, 2, 0.5), rotation(3))):
        suspect = [sample(other)]
        before = only(match_self_frames([sample(ours)], suspect))
        for _ in range(10):
            signs = rng.choice([-1.0, 1.0], size=NEURONS)
            after = only(match_self_frames([sample(flipped(ours, signs))], suspect))
            assert np.array_equal(after.partners, before.partners)
            assert np.array_equal(after.concordant, before.concordant)
            assert np.allclose(after.scores, before.scores, atol=1e-5)
            assert np.array_equal(after.coins, before.coins * signs)


def test_flips_of_registered_neurons_are_an_exact_null() -> None:
    rng = np.random.default_rng(5)
    ours = layer(0)
    suspect = [sample(mapped(noisy(ours, 2, 0.5), rotation(3)))]
    found = [log10_p([sample(flipped(ours, rng.choice([-1.0, 1.0], size=NEURONS)))], suspect) for _ in range(100)]
    for alpha in (0.1, 0.01):
        share = np.mean(np.array(found) <= math.log10(alpha))
        assert share <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / len(found))


@pytest.mark.parametrize("gated", [True, False])
def test_unrelated_layers_neither_agree_nor_concord(gated: bool) -> None:
    pairs = [([sample(layer(i, gated=gated))], [sample(layer(i + 50, gated=gated))]) for i in range(12)]
    assert min(log10_p(*pair) for pair in pairs) > -3.5
    assert max(only(match_self_frames(*pair)).concordance for pair in pairs) < 0.2


def test_scrambled_signs_leave_concordance_and_no_coin() -> None:
    ours = layer(0)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=NEURONS)
    theirs = sample(mapped(flipped(ours, signs), rotation(3)))
    assert only(match_self_frames([sample(ours)], [theirs])).concordance > 0.95
    assert log10_p([sample(ours)], [theirs]) > -3


def test_descriptors_survive_rotation_scale_and_sign() -> None:
    gate, up, down = layer(0)
    assert up is not None
    rng = np.random.default_rng(1)
    factors = (np.exp(rng.normal(size=(NEURONS, 1))) * rng.choice([-1, 1], size=(NEURONS, 1))).astype(np.float32)
    plain = neuron_descriptors(gate, up, down)
    turn = rotation(2).astype(np.float32)
    moved = neuron_descriptors(gate @ turn, up @ turn * factors, down @ turn / factors)
    assert plain.standard.shape == (NEURONS, GATED_DESCRIPTORS)
    assert np.allclose(plain.standard, moved.standard, atol=5e-3)
    assert np.allclose(plain.means[NORMS:], moved.means[NORMS:], atol=1e-4)
    assert np.allclose(plain.spreads[NORMS:], moved.spreads[NORMS:], atol=1e-4)
    ungated = neuron_descriptors(gate, None, down)
    assert ungated.standard.shape == (NEURONS, UNGATED_DESCRIPTORS)
    assert np.allclose(ungated.standard.std(axis=0), 1.0, atol=1e-3)


@pytest.mark.parametrize("gated", [True, False])
def test_a_moved_layer_is_nearer_by_its_vector_than_others_of_its_kind(gated: bool) -> None:
    def vector(matrices: Matrices) -> np.ndarray:
        found = layer_vector(self_coordinates(*matrices).descriptors, DEFAULT_PARAMETERS)
        assert found is not None
        return found

    ours = vector(layer(0, gated=gated))
    order = np.random.default_rng(3).permutation(NEURONS)
    moved = vector(mapped(layer(0, gated=gated), rotation(2), order))
    others = [vector(layer(seed, gated=gated)) for seed in range(1, 5)]
    assert 1 - ours @ moved < 0.1 * min(1 - ours @ other for other in others)


def test_a_layer_of_relu_is_as_near_when_its_neurons_are_rescaled() -> None:
    gate, _, down = layer(0, gated=False)
    factors = np.exp(np.random.default_rng(3).normal(size=(NEURONS, 1))).astype(np.float32)
    plain, moved = (
        layer_vector(self_coordinates(one, None, other).descriptors, DEFAULT_PARAMETERS)
        for one, other in ((gate, down), (gate * factors, down / factors))
    )
    assert plain is not None
    assert moved is not None
    assert plain @ moved == pytest.approx(1.0, abs=1e-2)


def test_a_constant_layer_has_no_vector() -> None:
    ones = np.ones((NEURONS, WIDTH), np.float32)
    assert layer_vector(self_coordinates(ones, ones, ones).descriptors, DEFAULT_PARAMETERS) is None


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_layer_of_any_size_has_coordinates_of_one_width(rows: int) -> None:
    gate, up, down = layer(0)
    assert up is not None
    found = self_coordinates(gate[:rows, :20], up[:rows, :20], down[:rows, :20])
    assert found.gate.shape == (rows, SELF_WIDTH)
    assert all(np.isfinite(part).all() for part in (found.gate, found.up, found.down, *found.descriptors[:3]))


@pytest.mark.parametrize("value", [0.0, 1.0, 3e38])
def test_hostile_numbers_do_no_harm(value: float) -> None:
    gate, up, down = layer(0)
    assert up is not None
    constant = np.full_like(gate, value)
    for matrices in (
        (constant, up, down),
        (gate, constant, down),
        (gate, up, constant),
        (constant, constant, constant),
    ):
        theirs = sample(matrices)
        assert np.isfinite(theirs.gate).all()
        assert np.isfinite(theirs.descriptors).all()
        match_self_frames([sample(layer(1))], [theirs])
        match_self_frames([theirs], [sample(layer(1))])


def test_layers_that_cannot_be_aligned_are_left_out() -> None:
    ours = sample(layer(0))
    few = sample(mapped(layer(0), order=np.arange(20)))
    assert match_self_frames([ours], [few]) == []
    assert match_self_frames([ours], [sample(layer(0, gated=False))]) == []
    assert match_self_frames([ours], []) == []


def test_half_of_a_layer_is_as_near_by_the_vector_of_its_larger_half() -> None:
    gate, up, down = layer(0)
    assert up is not None
    whole = Neurons(np.arange(NEURONS), gate, up, down)
    sizes = np.prod([np.linalg.norm(part, axis=1) for part in (gate, up, down)], axis=0)
    kept = np.sort(np.argsort(-sizes)[: NEURONS // 2])
    half = neuron_descriptors(gate[kept], up[kept], down[kept])
    mlp = Projections(0, None, (0, False), (1, False), (2, False), "silu")
    _, described = _sample(mlp, NEURONS, whole, suspect=False)
    vectors = [layer_vector(one, DEFAULT_PARAMETERS) for one in (*described, half)]
    assert vectors[1] is not None
    assert vectors[1] @ vectors[2] == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] @ vectors[2] < 0.999
    assert len(_sample(mlp, NEURONS, whole, suspect=True)[1]) == 1
