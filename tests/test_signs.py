"""The generator of signs is pinned: the same bits on every platform, for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.signs import Stream, bits, sample_indices, sign_matrix, signs

SEED = DEFAULT_PARAMETERS.seed


def split_mix(seed: int, stream: int, index: int) -> int:
    """SplitMix64 in Python's integers, written from its published definition."""
    mask = (1 << 64) - 1
    word = (seed + (stream << 48) + (index + 1) * 0x9E3779B97F4A7C15) & mask
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return word ^ (word >> 31)


def test_golden_words() -> None:
    assert [hex(int(word)) for word in bits(SEED, Stream.SKETCH, 0, 4)] == [
        "0x8b2a06ac831379bf",
        "0xfb291cc5eaa17ef3",
        "0x1919b2e55cbc48dd",
        "0x23e04e282ed562a",
    ]
    assert hex(int(bits(SEED, Stream.FRAME, 1_000_001, 1_000_002)[0])) == "0x9c977a02e88f8730"


@given(seed=st.integers(0, 2**64 - 1), stream=st.sampled_from(list(Stream)), index=st.integers(0, 2**40))
def test_words_are_those_of_splitmix64(seed: int, stream: Stream, index: int) -> None:
    assert int(bits(seed, stream, index, index + 1)[0]) == split_mix(seed, int(stream), index)


def test_golden_signs_take_bits_from_the_lowest() -> None:
    first = signs(SEED, Stream.SKETCH, 0, 1, 16)[0]
    word = 0x8B2A06AC831379BF
    assert first.tolist() == [1.0 if word >> bit & 1 else -1.0 for bit in range(16)]


def test_a_longer_axis_keeps_the_prefix_of_a_shorter_one() -> None:
    short, long = (sign_matrix(SEED, Stream.SKETCH, size, 32) for size in (100, 1000))
    assert np.array_equal(long[:100], short)


@pytest.mark.parametrize("stream", list(Stream))
def test_signs_are_balanced_and_uncorrelated(stream: Stream) -> None:
    matrix = signs(SEED, stream, 0, 20_000, 64).astype(np.float64)
    assert np.abs(matrix.mean(axis=0)).max() < 5 / np.sqrt(20_000)
    correlation = matrix.T @ matrix / 20_000 - np.eye(64)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(20_000)


def test_streams_differ() -> None:
    words = {int(bits(SEED, stream, 0, 1)[0]) for stream in Stream}
    assert len(words) == len(Stream)


@given(size=st.integers(1, 3000), count=st.integers(1, 200))
def test_samples_are_ascending_distinct_and_inside(size: int, count: int) -> None:
    chosen = sample_indices(SEED, Stream.AXIS_SAMPLE, size, count)
    assert chosen.size == min(size, count)
    assert np.all(np.diff(chosen) > 0)
    assert chosen[0] >= 0
    assert chosen[-1] < size


def test_samples_of_a_grown_axis_overlap_as_far_as_they_can() -> None:
    short = set(sample_indices(SEED, Stream.AXIS_SAMPLE, 1000, 64).tolist())
    grown = set(sample_indices(SEED, Stream.AXIS_SAMPLE, 1064, 64).tolist())
    assert {index for index in grown if index < 1000} <= short


def test_more_than_64_signs_of_one_word_are_refused() -> None:
    with pytest.raises(ValueError, match="64 signs"):
        signs(SEED, Stream.FRAME, 0, 1, 65)
