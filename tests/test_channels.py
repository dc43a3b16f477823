"""Coins of attention channels: fair under their null, blind where they must be, found whatever the order of heads."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from msgspec.structs import replace

from fingerprint.comparing.channel_coins import match_channels, usable_channels
from fingerprint.comparing.coins import toss
from fingerprint.gauge.attention import Attention, Block, with_heads
from fingerprint.gauge.attention_samples import CHANNEL_LAYERS
from fingerprint.gauge.channels import (
    Rotary,
    choose_channels,
    query_key,
    rotary_pairs,
    value_output,
)
from fingerprint.gauge.sample import MOST_ATTENTION, _some_blocks
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.records import ChannelSample
from fingerprint.vocabulary import ChannelKind, Frame

if TYPE_CHECKING:
    from fingerprint.gauge.setting import Setting

WIDTH, HEAD, HEADS, GROUP = 64, 16, 4, 2
KINDS = list(ChannelKind)


def attention(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and output columns, or keys and queries."""
    rng = np.random.default_rng(seed)
    shapes = ((HEADS * HEAD, WIDTH), (HEADS * GROUP * HEAD, WIDTH))
    first, last = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return first, last


def sample(
    kind: ChannelKind, first: np.ndarray, last: np.ndarray, chosen: np.ndarray | None = None, layer: int = 0
) -> ChannelSample:
    head = HEAD
    if kind is ChannelKind.ROTARY:
        parts, head = rotary_pairs(first, last, HEAD, Rotary.HALVES), HEAD // 2
    elif kind is ChannelKind.QUERY_KEY:
        parts = query_key(first, last, HEAD)
    else:
        parts = value_output(first, last, HEAD)
    size = parts.shape[1]
    indices = np.arange(size) if chosen is None else chosen
    return ChannelSample(
        layer=layer,
        frame=Frame.ANCHORS,
        kind=kind,
        size=size,
        head=head,
        tensors=(0, 1),
        indices=indices,
        parts=parts[:, indices],
    )


def units(kind: ChannelKind) -> int:
    return HEADS * HEAD // (2 if kind is ChannelKind.ROTARY else 1)


def flipped(kind: ChannelKind, first: np.ndarray, last: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same attention with the channels (frequency pairs) of every head negated where ``signs`` says."""
    by_head = signs.reshape(HEADS, -1)
    if kind is ChannelKind.ROTARY:
        by_head = np.concatenate([by_head, by_head], axis=1)
    last_signs = np.repeat(by_head[:, None], GROUP, axis=1)
    return (
        (first * by_head.reshape(-1, 1)).astype(np.float32),
        (last * last_signs.reshape(-1, 1)).astype(np.float32),
    )


def log10_p(ours: list[ChannelSample], theirs: list[ChannelSample]) -> float:
    return toss(match_channels(ours, theirs, Frame.ANCHORS, ours[0].kind), usable_channels(ours)).log10_p


def reordered(kind: ChannelKind, first: np.ndarray, last: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Heads, query heads within their groups and, but for frequency pairs, channels within heads in another order."""
    rng = np.random.default_rng(seed)
    heads = rng.permutation(HEADS)
    one = first.reshape(HEADS, HEAD, WIDTH)[heads]
    two = last.reshape(HEADS, GROUP, HEAD, WIDTH)[heads][:, rng.permutation(GROUP)]
    if kind is not ChannelKind.ROTARY:
        inner = rng.permutation(HEAD)
        one, two = one[:, inner], two[:, :, inner]
    return one.reshape(first.shape), two.reshape(last.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_in_another_order_is_found_from_a_sample(kind: ChannelKind) -> None:
    first, last = attention(0)
    chosen = choose_channels(units(kind), units(kind) // HEADS, 32, DEFAULT_PARAMETERS)
    ours = sample(kind, first, last, chosen)
    theirs = sample(kind, *reordered(kind, first * 3, last / 2, 1))
    (match,) = match_channels([ours], [sample(kind, *attention(9)), theirs], Frame.ANCHORS, kind)
    assert match.suspect == 1
    assert match.score > 0.99
    assert match.concordance == 1.0
    assert log10_p([ours], [theirs]) == pytest.approx(-(len(chosen) - 1) * math.log10(2))


@pytest.mark.parametrize("kind", KINDS)
def test_flipping_registered_channels_flips_their_coins_and_nothing_else(kind: ChannelKind) -> None:
    rng = np.random.default_rng(3)
    first, last = attention(0)
    noisy = [(one + rng.normal(size=one.shape)).astype(np.float32) for one in (first, last)]
    for other in (attention(1), tuple(noisy)):
        suspect = [sample(kind, *other)]
        (before,) = match_channels([sample(kind, first, last)], suspect, Frame.ANCHORS, kind)
        for _ in range(20):
            signs = rng.choice([-1.0, 1.0], size=units(kind))
            (after,) = match_channels([sample(kind, *flipped(kind, first, last, signs))], suspect, Frame.ANCHORS, kind)
            assert np.array_equal(after.partners, before.partners)
            assert np.array_equal(after.scores, before.scores)
            assert np.array_equal(after.concordant, before.concordant)
            assert np.array_equal(after.coins, before.coins * signs)


@pytest.mark.parametrize("kind", KINDS)
def test_flips_of_the_registered_channels_are_an_exact_null(kind: ChannelKind) -> None:
    rng = np.random.default_rng(5)
    first, last = attention(0)
    suspect = [sample(kind, (first + 0.3 * rng.normal(size=first.shape)).astype(np.float32), last)]
    found = [
        log10_p([sample(kind, *flipped(kind, first, last, rng.choice([-1.0, 1.0], size=units(kind))))], suspect)
        for _ in range(300)
    ]
    for alpha in (0.1, 0.01):
        share = np.mean(np.array(found) <= math.log10(alpha))
        assert share <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / len(found))


@pytest.mark.parametrize("kind", KINDS)
def test_unrelated_attention_does_not_agree(kind: ChannelKind) -> None:
    found = [log10_p([sample(kind, *attention(i))], [sample(kind, *attention(i + 50))]) for i in range(30)]
    assert min(found) > -4


@pytest.mark.parametrize("kind", KINDS)
def test_repeated_layers_share_their_coins(kind: ChannelKind) -> None:
    first, last = attention(0)
    copies = [sample(kind, first, last, layer=layer) for layer in range(3)]
    assert [int(mask.sum()) for mask in usable_channels(copies)] == [units(kind), 0, 0]


def test_a_turned_frequency_pair_has_no_coin_left() -> None:
    first, last = attention(0)
    angles = np.random.default_rng(2).uniform(0, 2 * np.pi, size=(HEADS, HEAD // 2))

    def turned(rows: np.ndarray) -> np.ndarray:
        parts = rows.reshape(HEADS, -1, 2, HEAD // 2, WIDTH)
        turn = np.exp(1j * angles)[:, None, :, None]
        out = (parts[:, :, 0] + 1j * parts[:, :, 1]) * turn
        return np.stack([out.real, out.imag], axis=2).reshape(rows.shape).astype(np.float32)

    theirs = sample(ChannelKind.ROTARY, turned(first), turned(last))
    assert log10_p([sample(ChannelKind.ROTARY, first, last)], [theirs]) > -3


def test_neighbours_and_halves_are_the_same_pairs_in_another_order() -> None:
    first, last = attention(0)
    order = np.arange(HEAD).reshape(2, HEAD // 2).T.reshape(-1)
    one = first.reshape(HEADS, HEAD, WIDTH)[:, order].reshape(first.shape)
    two = last.reshape(-1, HEAD, WIDTH)[:, order].reshape(last.shape)
    halves = rotary_pairs(first, last, HEAD, Rotary.HALVES)
    assert np.allclose(rotary_pairs(one, two, HEAD, Rotary.NEIGHBOURS), halves)


def test_rows_that_are_zero_or_absent_do_no_harm() -> None:
    first, last = attention(0)
    first[:20], last[:33] = 0.0, 0.0
    for kind in KINDS:
        ours = sample(kind, first, last)
        assert log10_p([ours], [sample(kind, first * 0, last * 0)]) == 0.0
        none = sample(kind, first, last, np.zeros(0, np.int64))
        assert match_channels([ours], [none], Frame.ANCHORS, kind) == []
        assert match_channels([none], [ours], Frame.ANCHORS, kind) == []


def test_of_very_large_models_some_blocks_are_projected_and_those_kept_of_a_registered_one_among_them() -> None:
    width, number = 4096, 80
    shapes = [(width, width), (width // 8, width), (width // 8, width), (width, width)]
    tensors = [SimpleNamespace(view=SimpleNamespace(shape=shape)) for _ in range(number) for shape in shapes]
    blocks = [Block(i, 4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3, None) for i in range(number)]
    setting = cast(
        "Setting", SimpleNamespace(tensors=tensors, width=width, variants=(None,), parameters=DEFAULT_PARAMETERS)
    )
    chosen = _some_blocks(setting, blocks)
    numbers = len(chosen) * (2 * width + 2 * (width // 8)) * DEFAULT_PARAMETERS.frame_width
    assert CHANNEL_LAYERS < len(chosen) < number
    assert numbers <= MOST_ATTENTION
    kept = {round(place) for place in np.linspace(0, number - 1, CHANNEL_LAYERS)}
    assert kept <= {block.layer for block in chosen}
    assert _some_blocks(setting, blocks[:10]) == blocks[:10]
    assert _some_blocks(setting, []) == []


# --- the size of heads ------------------------------------------------------------------------------------------------


def _projected(seed: int, head: int, likeness: float, *, queries: int | None = None, told: int = 0) -> Attention:
    """Values of five heads and the outputs of two query heads for each; ``likeness`` is the cosine of partners."""
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(5 * head, WIDTH))
    partners = np.repeat(value.reshape(5, head, WIDTH), 2, axis=0).reshape(-1, WIDTH)
    output = likeness * partners + math.sqrt(1 - likeness**2) * rng.normal(size=partners.shape)
    block = Block(layer=seed, query=-1, key=-1, value=0, output=1, queries=queries, head=told)
    return Attention(block, None, None, value.astype(np.float32), output.astype(np.float32))


@pytest.mark.parametrize("head", [16, 24, 64])
def test_all_blocks_agree_on_the_size_of_heads(head: int) -> None:
    blocks = [_projected(seed, head, 0.05) for seed in range(12)]
    alone = [with_heads([block])[0].heads[0] for block in blocks]
    assert any(size != head for size in alone)
    assert all(block.heads[0] == head for block in with_heads(blocks))


def test_neither_rotation_nor_scale_changes_the_size_that_is_found() -> None:
    rng = np.random.default_rng(0)
    blocks = [_projected(seed, 24, 0.05) for seed in range(12)]
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)

    def moved(side: np.ndarray | None) -> np.ndarray:
        assert side is not None
        return (side * np.exp(rng.normal(size=(len(side), 1))) @ turn).astype(np.float32)

    rewritten = [replace(block, value=moved(block.value), output=moved(block.output)) for block in blocks]
    assert [block.heads for block in with_heads(rewritten)] == [block.heads for block in with_heads(blocks)]


def test_claims_come_before_what_weights_told_and_that_before_the_vote() -> None:
    claimed, told, other = _projected(0, 24, 0.5, queries=20), _projected(1, 24, 0.5, told=40), _projected(2, 24, 0.5)
    found = with_heads([claimed, told, other])
    assert found[0].heads == (12,)
    assert [block.heads[:2] for block in found[1:]] == [(40, 24)] * 2
    one_for_each = replace(other, output=other.value)
    assert with_heads([one_for_each])[0].heads == ()
