"""Neuron coins: fair under their null, blind where they must be, and exact in the far tail."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerprint.comparing.coins import fisher, log10_p_signed_sum, match_neurons, toss, usable_coins
from fingerprint.records import NeuronSample

WIDTH = 64


def neurons(
    gate: np.ndarray, up: np.ndarray | None, down: np.ndarray, *, activation: str = "silu", layer: int = 0
) -> NeuronSample:
    count = len(gate)
    return NeuronSample(
        layer=layer,
        expert=None,
        frame="fixed",
        activation=activation,
        size=count,
        tensors=(0, -1 if up is None else 1, 2),
        indices=np.arange(count),
        gate=gate.astype(np.float32),
        up=None if up is None else up.astype(np.float32),
        down=down.astype(np.float32),
    )


def mlp(seed: int, count: int = 128) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(count, WIDTH)) for _ in range(3))  # type: ignore[return-value]


def log10_p(registered: list[NeuronSample], suspect: list[NeuronSample]) -> float:
    return toss(match_neurons(registered, suspect), usable_coins(registered)).log10_p


def test_a_permuted_rescaled_copy_is_found() -> None:
    gate, up, down = mlp(0)
    order = np.random.default_rng(1).permutation(128)
    suspect = neurons(gate[order] * 3, up[order] / 2, down[order] * 2)
    ours = [neurons(gate, up, down)]
    (match,) = match_neurons(ours, [suspect])
    assert np.array_equal(order[match.partners], np.arange(128))
    assert match.concordance == 1.0
    assert match.moved > 0.9
    assert log10_p(ours, [suspect]) == pytest.approx(-127 * math.log10(2))


def test_negating_every_pair_is_found_too() -> None:
    gate, up, down = mlp(0)
    ours = [neurons(gate, up, down)]
    assert log10_p(ours, [neurons(gate, -up, -down)]) < -30


def test_scrambled_signs_leave_concordance_and_no_coin() -> None:
    gate, up, down = mlp(0)
    flip = np.random.default_rng(1).choice([-1.0, 1.0], size=(128, 1))
    ours, theirs = [neurons(gate, up, down)], [neurons(gate, up * flip, down * flip)]
    (match,) = match_neurons(ours, theirs)
    assert match.concordance == 1.0
    assert log10_p(ours, theirs) > -3


def test_flipping_the_registered_coins_is_an_exact_null() -> None:
    rng = np.random.default_rng(5)
    gate, up, down = mlp(0, 48)
    suspect = [neurons(gate + 0.1 * rng.normal(size=gate.shape), up, down)]
    found = []
    for _ in range(500):
        flip = rng.choice([-1.0, 1.0], size=(48, 1))
        found.append(log10_p([neurons(gate, up * flip, down * flip)], suspect))
    for alpha in (0.1, 0.01):
        share = np.mean(np.array(found) <= math.log10(alpha))
        assert share <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / len(found))


def test_unrelated_mlps_do_not_agree() -> None:
    found = [log10_p([neurons(*mlp(seed))], [neurons(*mlp(seed + 100))]) for seed in range(40)]
    assert min(found) > -4


def test_projections_without_names_are_tried_both_ways() -> None:
    gate, up, down = mlp(0)
    ours = [neurons(gate, up, down)]
    assert log10_p(ours, [neurons(up, gate, down, activation="unknown")]) < -30


def test_copied_experts_share_one_coin() -> None:
    gate, up, down = mlp(0)
    copies = [neurons(gate, up, down, layer=layer) for layer in range(4)]
    assert [int(mask.sum()) for mask in usable_coins(copies)] == [128, 0, 0, 0]
    near = [neurons(gate + 0.1 * layer, up, down, layer=layer) for layer in range(3)]
    assert [int(mask.sum()) for mask in usable_coins(near)][1:] == [0, 0]


def test_an_mlp_whose_coins_are_not_fair_has_none() -> None:
    gate, up, down = mlp(0)
    for sample in (neurons(gate, up, down, activation="offset-glu"), neurons(gate, up, down, activation="")):
        assert not usable_coins([sample])[0].any()
    assert not usable_coins([neurons(gate, None, down)])[0].any()
    assert log10_p([neurons(gate, up, down, activation="offset-glu")], [neurons(gate, up, down)]) == 0.0


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=9), total=st.integers(0, 90))
def test_signed_sums_are_exact(weights: list[int], total: int) -> None:
    sums = [abs(sum(w * s for w, s in zip(weights, signs, strict=True)))
            for signs in itertools.product((-1, 1), repeat=len(weights))]  # fmt: skip
    expected = np.mean([one >= total for one in sums])
    found = log10_p_signed_sum(total, np.array(weights))
    if expected > 0:
        assert found == pytest.approx(math.log10(expected), abs=1e-9)


def test_the_bound_for_many_coins_is_above_the_exact_value() -> None:
    weights = np.full(300, 64)
    for agreeing in (170, 200, 290):
        total = (2 * agreeing - 300) * 64
        exact = log10_p_signed_sum(total, weights)
        more = log10_p_signed_sum(total + 0, np.concatenate([weights, np.ones(150, np.int64)]))
        assert more >= exact - 0.2


def test_log_space_does_not_underflow() -> None:
    weights = np.full(5000, 64)
    assert log10_p_signed_sum(int(weights.sum()), weights) == pytest.approx(-4999 * math.log10(2), rel=1e-3)
    assert fisher([-400.0] * 30) < -11_000


def test_fisher_agrees_with_the_chi_squared_tail() -> None:
    from scipy.stats import chi2

    for logs in ([-1.0, -1.0], [-0.2, -3.0, -0.01], [-5.0] * 6):
        expected = math.log10(chi2.sf(-2 * math.log(10) * sum(logs), 2 * len(logs)))
        assert fisher(logs) == pytest.approx(expected, abs=1e-9)
