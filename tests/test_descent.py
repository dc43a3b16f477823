"""Angles between the changes of three models: what goes on from a fine-tune, and what turned off at its base."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace

from fingerprint.comparing.coins import NeuronMatch
from fingerprint.comparing.gauge import FrameMatch, Gauge
from fingerprint.records import NeuronSample
from fingerprint.vocabulary import Frame
from signatures.descent import Changes
from signatures.registry import Registry
from signatures.report import Link
from signatures.rewriting import Rewriting
from tests.test_scan import disguised, links, low_rank_change, model, scan, sign_of, with_permuted_neurons

if TYPE_CHECKING:
    from pathlib import Path

    from tests.test_scan import Weights

SIZE = 20_000


def changes(suspect: np.ndarray, registered: np.ndarray) -> Changes:
    """Of changes from the base, as vectors."""
    return Changes(float(suspect @ suspect), float(registered @ registered), float(suspect @ registered))


def directions(cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two directions at that cosine, and one that is independent."""
    one, other, third = np.random.default_rng(1).standard_normal((3, SIZE)) / np.sqrt(SIZE)
    return one, cosine * one + np.sqrt(1 - cosine**2) * other, third


@pytest.mark.parametrize(
    ("cosine", "length"), [(0.0, 0.8), (0.0, 1.25), (0.3, 0.8), (0.3, 1.0), (0.3, 1.25), (0.6, 1.0), (0.8, 1.0)]
)
def test_another_fine_tune_turned_off(cosine: float, length: float) -> None:
    registered, suspect, _ = directions(cosine)
    assert changes(length * suspect, registered).turned_off


@pytest.mark.parametrize("further", [0.0, 0.3, 1.0, 3.0, 10.0])
def test_what_was_trained_further_goes_on(further: float) -> None:
    registered, _, own = directions(0.0)
    assert not changes(registered + further * own, registered).turned_off


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("cosine", [0.0, 0.3])
def test_an_average_with_the_base_or_half_of_another_fine_tune_goes_on(share: float, cosine: float) -> None:
    registered, other, _ = directions(cosine)
    assert not changes(share * registered, registered).turned_off
    assert not changes((registered + other) / 2, registered).turned_off


def test_a_pruned_fine_tune_goes_on() -> None:
    rng = np.random.default_rng(2)
    base, registered = rng.standard_normal(SIZE), 0.03 * rng.standard_normal(SIZE)
    weights = base + registered
    kept = np.abs(weights) > np.median(np.abs(weights))
    assert not changes(weights * kept - base, registered).turned_off


def test_what_is_kept_of_a_change_tells_descent_from_two_changes_alike() -> None:
    registered, alike, own = directions(0.6)

    def of_units(suspect: np.ndarray) -> Changes:
        return replace(changes(suspect, registered), units=True)

    assert of_units(registered + 3.0 * own).kept == pytest.approx(1.0, abs=0.05)
    assert not of_units(registered + 3.0 * own).turned_off
    sibling = of_units(1.1 * alike + 2.0 * own)  # so much of its own that it hardly points back
    assert sibling.kept == pytest.approx(0.66, abs=0.05)
    assert sibling.turned_off
    assert not replace(sibling, units=False).turned_off
    assert of_units(registered + 6.0 * own).kept is None
    assert of_units(registered + 6.0 * own).too_little
    assert not of_units(registered + 3.0 * own).too_little
    assert replace(sibling, units=False).kept is None
    assert not of_units(0.7 * registered + 0.3 * alike).turned_off
    assert not replace(of_units(0.7 * registered + 0.3 * alike), own=True).turned_off
    moved = of_units(0.4 * registered + 0.6 * alike + 0.25 * own)  # tuned on the text of the registered one
    assert not moved.turned_off
    assert replace(moved, own=True).turned_off  # less is known in own frames, and nobody is accused
    assert not of_units(0.99 * registered).turned_off


def test_nothing_is_said_without_a_change() -> None:
    nothing, registered = np.zeros(4), np.ones(4)
    assert not changes(nothing, registered).turned_off
    assert not changes(registered, nothing).turned_off
    assert changes(nothing, registered).cosine == 0.0


@pytest.mark.parametrize("moved", [False, True])
def test_fine_tunes_that_changed_alike_are_siblings_and_what_goes_on_is_not(tmp_path: Path, moved: bool) -> None:
    base, alike = model(1), low_rank_change(model(1), 20, 0.05)

    def tuned(seed: int, start: Weights) -> Weights:
        own = low_rank_change(base, seed, 0.04)
        return {name: start[name] + own[name] - base[name] for name in base}

    def written(weights: Weights) -> Weights:
        return disguised(with_permuted_neurons(weights) if moved else weights)

    one, other = tuned(21, alike), tuned(22, alike)
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.linalg.norm(one[name] - other[name]) < np.linalg.norm(other[name] - base[name])
    with Registry.open(tmp_path / "registry") as registry:
        registry.register(sign_of(base, tmp_path), name="a/base")
        registry.register(sign_of(one, tmp_path), name="a/tuned")
        assert links(scan(registry, written(other), tmp_path)) == {"a/base": Link.LINEAGE, "a/tuned": Link.SIBLING}
        report = scan(registry, written(tuned(23, one)), tmp_path)
        assert report.matches[0].model == "a/tuned"
        assert links(report)["a/tuned"] is Link.LINEAGE


def matched(scores: dict[tuple[Frame, str], float]) -> Rewriting:
    """A comparison whose MLPs, by frame and the name of their gate, have these scores; below 1/2 they do not agree."""
    names = sorted({name for _, name in scores})
    samples, matches = [], []
    for frame, name in scores:
        rows = np.ones((4, 3), np.float32)
        place = (names.index(name), -1, 0)
        samples.append(NeuronSample(0, None, frame, "gelu", 4, place, np.arange(4), rows, None, rows))
    for at, (frame, name) in enumerate(scores):
        score = scores[frame, name]
        same = np.full(4, score >= 0.5)
        matches.append((frame, NeuronMatch(at, at, np.arange(4), np.full(4, score), np.zeros(4), same, 0.0)))
    frames = dict.fromkeys(frame for frame, _ in scores)
    gauge = Gauge(
        tuple(FrameMatch(f, tuple(m for where, m in matches if where == f), False, len(names)) for f in frames)
    )
    side = SimpleNamespace(tensors=[SimpleNamespace(name=name) for name in names], neurons=tuple(samples))
    return Rewriting(SimpleNamespace(gauge=gauge, registered=side, suspect=side, neurons=()))  # type: ignore[arg-type]


def test_distances_are_taken_in_one_frame_and_over_the_same_layers() -> None:
    base = matched({(Frame.ANCHORS, "a"): 0.9, (Frame.ANCHORS, "b"): 0.6, (Frame.SELF, "a"): 0.7})
    tuned = matched({(Frame.ANCHORS, "a"): 0.8, (Frame.ANCHORS, "b"): 0.1})
    assert base.score < tuned.score
    both = tuned.beside(base)
    assert both is not None
    assert [one.score for one in both] == pytest.approx([0.8, 0.9])
    assert all(set(one.held) == {"a"} for one in both)


def test_a_frame_in_which_one_of_them_disagrees_is_not_taken() -> None:
    base = matched({(Frame.ANCHORS, "a"): 0.2, (Frame.SELF, "a"): 0.7})
    tuned = matched({(Frame.ANCHORS, "a"): 0.95, (Frame.SELF, "a"): 0.6})
    both = tuned.beside(base)
    assert both is not None
    assert {one.wanted for one in both} == {Frame.SELF}
    assert [one.score for one in both] == pytest.approx([0.6, 0.7])
    apart = matched({(Frame.ANCHORS, "b"): 0.9})
    assert tuned.beside(apart) is None
