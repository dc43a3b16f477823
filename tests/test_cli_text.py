"""Showing strangers' text and numbers to people."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.console import Look
from cli.render.layer_text import layer_lines, layer_mixture_lines, parallel_runs
from cli.text import (
    clipped_middle,
    counted,
    duration,
    file_size,
    finite,
    magnitude,
    odds,
    percent,
    printable,
    probability,
    ranges,
)

any_text = st.text(st.characters(codec=None, exclude_categories=()))


@given(any_text)
def test_printable_text_is_one_line_without_controls(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name", "plain name"),
        ("größe 模型", "größe 模型"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("right\u202eleft", "right\\u202eleft"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf\\xe9"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_what_could_move_a_cursor_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | any_text,
        lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    )
)
def test_anything_becomes_strict_json(value: object) -> None:
    text = json.dumps(finite(value), allow_nan=False, ensure_ascii=False)
    text.encode()
    json.loads(text, parse_constant=pytest.fail)


@given(st.text(max_size=60), st.integers(1, 50))
def test_clipping_keeps_to_the_width(text: str, width: int) -> None:
    clipped = clipped_middle(text, width)
    assert len(clipped) <= width
    assert len(text) > width or clipped == text


@given(st.floats(-1e6, 0))
def test_every_p_value_has_words(log10_p: float) -> None:
    assert odds(log10_p)
    assert probability(log10_p)


@pytest.mark.parametrize(
    ("log10_p", "power", "words"),
    [
        (0.0, "1", "more than 1 in 2"),
        (-1.5, "0.032", "about 1 in 32"),
        (-3.2, "10^-3.2", "about 1 in 2 thousand"),
        (-6.30103, "10^-6.3", "about 1 in 2 million"),
        (-12.0, "10^-12.0", "about 1 in 1 trillion"),
        (-312.4, "10^-312", "less than one in a thousand trillion"),
    ],
)
def test_p_values_in_figures_and_words(log10_p: float, power: str, words: str) -> None:
    assert (probability(log10_p), odds(log10_p)) == (power, words)


def test_shares_are_whole_only_where_they_are() -> None:
    assert [percent(share) for share in (0.0, 0.001, 0.5, 0.999, 1.0)] == ["0%", "<1%", "50%", ">99%", "100%"]


def test_counts_sizes_and_times() -> None:
    assert counted(1, "tensor") == "1 tensor"
    assert counted(12000, "tensor") == "12,000 tensors"
    assert [magnitude(n) for n in (950, 22_713_216, 671_000_000_000)] == ["950", "22.7 M", "671 G"]
    assert [file_size(n) for n in (12, 1500, 90_900_000)] == ["12 B", "1.50 kB", "90.9 MB"]
    assert [duration(s) for s in (0.31, 42.4, 192.0, 7260.0)] == ["0.3 s", "42 s", "3 min 12 s", "2 h 1 min"]


def test_runs_of_layers_are_joined() -> None:
    assert ranges([0, 1, 2, 5]) == "0-2, 5"
    assert parallel_runs([(0, 0), (1, 1), (2, 0), (3, 1), (4, 7)]) == [
        ((0, 1), (0, 1)),
        ((2, 3), (0, 1)),
        ((4, 4), (7, 7)),
    ]


def test_layer_maps_are_short() -> None:
    look = Look(symbols=False)
    assert layer_lines({str(i): i for i in range(32)}, look) == [
        "suspect -> registered: 0-31 -> 0-31 (each in its place)"
    ]
    assert layer_lines({"0": 0, "1": 2, "unnamed copy 1": 4}, look) == [
        "suspect -> registered: 0 -> 0, 1 -> 2, layers without numbers -> 4"
    ]
    assert layer_lines({}, look) == []


def test_mixtures_by_layer_join_layers_of_one_mixture() -> None:
    layers = {f"layer {i}": {"a/x": 1.0} if i < 4 else {"b/y": 1.0} for i in range(8)}
    assert layer_mixture_lines(layers, Look()) == ["layer 0-3: 1.0 a/x", "layer 4-7: 1.0 b/y"]
    assert layer_mixture_lines({"layer 0": {"a/x": 0.5}, "layer 1": {"a/x": 0.5}}, Look()) == []
