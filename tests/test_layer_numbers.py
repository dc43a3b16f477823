"""Numbers of layers read from names that say nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from fingerprint.roles.numbers import layers_in

if TYPE_CHECKING:
    import random


def found(*names: str) -> dict[str, int]:
    return {names[i]: layer for i, layer in layers_in(enumerate(names)).items()}


def test_rows_of_names_that_count_alike_are_layers() -> None:
    names = [f"f.{i}.{part}" for i in range(3) for part in ("a", "b7", "c_8")]
    assert found(*names, "emb", "f.norm") == {name: int(name.split(".")[1]) for name in names}


def test_layers_counted_from_one_start_at_zero() -> None:
    assert found("x_1_w", "x_2_w", "x_1_v", "x_2_v") == {"x_1_w": 0, "x_2_w": 1, "x_1_v": 0, "x_2_v": 1}


def test_the_layer_stands_before_the_expert() -> None:
    names = [f"m.{i}.e.{j}.{part}" for i in range(2) for j in range(4) for part in "uv"]
    assert found(*names) == {name: int(name.split(".")[1]) for name in names}


def test_a_list_of_parameters_has_no_layers() -> None:
    assert not found(*(f"p.{i}" for i in range(9)))


def test_gaps_single_rows_and_other_beginnings_are_no_layers() -> None:
    assert not found("a.0.w", "a.2.w", "a.0.v", "a.2.v")
    assert not found("a.0.w", "a.1.w", "b.0.v", "b.1.v")
    assert not found("a.0.w", "a.0.v")
    assert not found("a0.w", "a1.w", "a0.v", "a1.v")


@given(st.lists(st.text(st.sampled_from("ab.01_"), max_size=12), max_size=40), st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(names: list[str], rng: random.Random) -> None:
    numbered = list(enumerate(names))
    shuffled = list(numbered)
    rng.shuffle(shuffled)
    assert layers_in(numbered) == layers_in(shuffled)
