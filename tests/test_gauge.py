"""Frames that move with the residual stream: what a rewrite cannot change is found, and strangers are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace
from scipy.stats import nbinom

from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import load_weights
from fingerprint.assemble import fingerprint
from fingerprint.canonical import lay_out
from fingerprint.checkpoint import open_checkpoint
from fingerprint.comparing.calibration import RATES, concordance_log10_p
from fingerprint.comparing.coins import NeuronMatch, match_neurons, toss, usable_coins
from fingerprint.comparing.comparison import compare_fingerprints
from fingerprint.comparing.evidence import Test
from fingerprint.comparing.gauge import NEURONS as NEURONS_KIND
from fingerprint.comparing.gauge import FrameMatch, Gauge
from fingerprint.gauge.fold import find_gains
from fingerprint.gauge.frames import anchor_ids
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.signs import Stream
from fingerprint.vocabulary import Axis, Depth, Frame, Role
from signatures.change import Change
from signatures.options import ScanOptions
from signatures.registry import Registry
from signatures.report import Confidence, Link, Relation, Verdict
from signatures.rewriting import Rewriting
from signatures.scan import scan_path
from signatures.signature import sign
from signatures.suspect import open_suspect
from tests.quick_zoo import quick_zoo
from tests.small_models import LAYERS, NEURONS, WIDTH, Weights, gauge_of, model, save

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fingerprint.comparing.evidence import Evidence
    from fingerprint.records import Fingerprint

SPECS = {spec.id: spec for spec in family("a", quick=True)}
STEMS = ("quick-a-llama-48", "quick-a-gpt2-48")


def measured(weights: Mapping[str, np.ndarray], folder: Path, *, suspect: bool = False) -> Fingerprint:
    """A suspect's fingerprint, or a registered model's as its signature keeps it."""
    with open_checkpoint(save(weights, folder / "model.safetensors")) as checkpoint:
        made = fingerprint(checkpoint, casts=not suspect, workers=1)
    return made if suspect else sign(made).fingerprint


# --- rewrites of a Llama-shaped model, apart from the benchmark's -----------------------------------------------------


def _layers(weights: Weights, change: Callable[[Weights, str], None]) -> Weights:
    out = dict(weights)
    for layer in range(LAYERS):
        change(out, f"model.layers.{layer}.")
    return out


def _each_neuron(weights: Weights, order: np.ndarray, scale: np.ndarray) -> Weights:
    def change(w: Weights, p: str) -> None:
        w[p + "mlp.gate_proj.weight"] = w[p + "mlp.gate_proj.weight"][order]
        w[p + "mlp.up_proj.weight"] = (w[p + "mlp.up_proj.weight"] * scale[:, None])[order]
        w[p + "mlp.down_proj.weight"] = (w[p + "mlp.down_proj.weight"] / scale)[:, order]

    return _layers(weights, change)


def _regained(weights: Weights, gains: np.ndarray) -> Weights:
    """Gains replaced by others, and what reads them adapted."""

    def change(w: Weights, p: str) -> None:
        readers = {"input_layernorm": ("q", "k", "v"), "post_attention_layernorm": ("gate", "up")}
        for norm, parts in readers.items():
            old = w[f"{p}{norm}.weight"]
            for part in parts:
                block = "mlp" if part in {"gate", "up"} else "self_attn"
                name = f"{p}{block}.{part}_proj.weight"
                w[name] = w[name] * (old / gains)
            w[f"{p}{norm}.weight"] = gains

    return _layers(weights, change)


def _rotated(weights: Weights, turn: np.ndarray) -> Weights:
    """The residual stream times an orthogonal matrix, gains folded before."""
    out = _regained(weights, np.ones(WIDTH))
    for name, value in out.items():
        if value.ndim == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            out[name] = turn.T @ value if writes else value @ turn
    return out


RANDOM = np.random.default_rng(5)
TURN = np.linalg.qr(RANDOM.normal(size=(WIDTH, WIDTH)))[0]
ORDER = RANDOM.permutation(NEURONS)
SCALES = np.exp(0.7 * RANDOM.normal(size=NEURONS))
SIGNS = RANDOM.choice([-1.0, 1.0], NEURONS)
ONES = np.ones(NEURONS)
SAME = np.arange(NEURONS)
REWRITES: dict[str, tuple[Callable[[Weights], Weights], set[str]]] = {
    "neurons-permuted": (lambda w: _each_neuron(w, ORDER, ONES), {"neurons-permuted"}),
    "neurons-rescaled": (lambda w: _each_neuron(w, SAME, SCALES), {"neurons-rescaled"}),
    "signs-scrambled": (lambda w: _each_neuron(w, SAME, SIGNS), {"signs-scrambled"}),
    "signs-negated": (lambda w: _each_neuron(w, SAME, -ONES), {"signs-negated"}),
    "gains-folded": (lambda w: _regained(w, np.ones(WIDTH)), {"gains-folded"}),
    "gains-scrambled": (lambda w: _regained(w, SCALES[:WIDTH] * SIGNS[:WIDTH]), set()),
    "rotated": (lambda w: _rotated(w, TURN), {"residual-rotated", "gains-folded"}),
    "permuted stream": (lambda w: _rotated(w, np.eye(WIDTH)[:, ::-1]), {"residual-permuted", "gains-folded"}),
    "all": (
        lambda w: _rotated(_each_neuron(w, ORDER, SCALES * SIGNS), TURN),
        {"residual-rotated", "gains-folded", "neurons-permuted", "neurons-rescaled", "signs-scrambled"},
    ),
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    return measured(model(1), tmp_path_factory.mktemp("ours"))


@pytest.mark.parametrize("name", REWRITES)
def test_no_rewrite_changes_what_is_seen_in_the_frame_of_anchors(name: str, ours: Fingerprint, tmp_path: Path) -> None:
    change, _ = REWRITES[name]
    gauge = gauge_of(ours, measured(change(model(1)), tmp_path, suspect=True))
    frame = gauge.frame(Frame.ANCHORS)
    assert frame is not None
    assert len(frame.matches) == LAYERS
    assert frame.concordance == 1.0
    assert min(one.score for one in frame.matches) > 0.999
    (test,) = (one for one in gauge.tests if (one.frame, one.kind) == (Frame.ANCHORS, NEURONS_KIND))
    scrambled = "signs-scrambled" in REWRITES[name][1]
    assert (test.toss.log10_p < -80) != scrambled
    assert scrambled == (test.toss.log10_p > -3)


@pytest.mark.parametrize("name", REWRITES)
def test_a_scan_finds_the_rewritten_model_and_says_what_was_undone(
    name: str, registry: Registry, tmp_path: Path
) -> None:
    change, undone = REWRITES[name]
    report = scan_path(registry, save(change(model(1)), tmp_path / "suspect.safetensors"))
    assert report.verdict is Verdict.MATCH
    best = report.matches[0]
    assert (best.model, best.link) == ("us/1", Link.LINEAGE)
    assert [match.model for match in report.matches] == ["us/1"]
    assert undone <= set(best.undone)
    if undone:
        assert best.relation is Relation.REWRITTEN
    # Attention was left alone, so that its coins are there where those of the neurons are not.
    assert best.confidence is Confidence.CERTAIN
    assert {"gauge", "even"} <= set(report.power.tested)


@pytest.mark.parametrize(("other", "relation"), [(0.0, Relation.REWRITTEN), (0.6, Relation.CONTINUED_TRAINING)])
def test_neurons_whose_partners_were_not_sampled_are_no_training(
    other: float, relation: Relation, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("MOST_NEURONS", "LEAST_OF_ONE"):
        monkeypatch.setattr(f"fingerprint.gauge.sample.{bound}", 1)
    mixed = {name: value + other * model(77)[name] for name, value in model(1).items()}
    suspect = save(_rotated(_each_neuron(mixed, ORDER, SCALES), TURN), tmp_path / "suspect.safetensors")
    with open_suspect(suspect) as opened:
        theirs = opened.at(Depth.FULL).fingerprint
    assert all(one.indices.size < one.size for one in theirs.neurons if one.frame == Frame.ANCHORS)
    (best,) = scan_path(registry, suspect, options=ScanOptions(depth="full")).matches
    assert best.model == "us/1"
    assert best.relation is relation


def test_attention_whose_heads_are_not_known_counts_neither_for_nor_against(ours: Fingerprint, tmp_path: Path) -> None:
    change, _ = REWRITES["all"]
    theirs = measured(change(model(1)), tmp_path, suspect=True)
    for kept, untested in ((theirs.grams, False), (tuple(g for g in theirs.grams if g.circuit == "down-up"), True)):
        found = compare_fingerprints(ours, replace(theirs, grams=kept))
        assert (Role.VALUE in found.untested) is untested
        assert Change(found).unmatched_registered == ()
        assert found.registered_coverage > 0.99


@pytest.mark.parametrize("name", ["rotated", "all"])
def test_what_is_projected_of_a_large_model_stands_for_the_rest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fingerprint.gauge.sample.MOST_ATTENTION", 1)
    for module, bound in (("gauge.sample", "CHANNEL_LAYERS"), ("gauge.sample", "MOST_MLPS")):
        monkeypatch.setattr(f"fingerprint.{module}.{bound}", 1)
        monkeypatch.setattr(f"fingerprint.comparing.comparison.{bound}", 1)
    base = measured(model(1), tmp_path)
    assert len({one.layer for one in base.grams if one.frame == Frame.ANCHORS}) < LAYERS
    found = compare_fingerprints(base, measured(REWRITES[name][0](model(1)), tmp_path, suspect=True))
    assert (found.registered_coverage, found.suspect_coverage) == pytest.approx((1.0, 1.0), abs=0.01)
    assert Change(found).unmatched_registered == ()
    stranger = compare_fingerprints(base, measured(_rotated(model(99), TURN), tmp_path, suspect=True))
    assert stranger.registered_coverage < 0.1


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry.open(folder / "registry", create=True)
    for seed in range(6):
        with open_checkpoint(save(model(seed), folder / "model.safetensors")) as checkpoint:
            registry.register(sign(fingerprint(checkpoint, workers=1)), name=f"us/{seed}")
    return registry


def test_a_rotated_stranger_is_no_match(registry: Registry, tmp_path: Path) -> None:
    report = scan_path(registry, save(_rotated(model(99), TURN), tmp_path / "suspect.safetensors"))
    assert report.verdict is Verdict.NO_MATCH
    assert report.matches == ()


def test_gains_are_not_taken_for_folded_where_no_axis_tells_their_length(ours: Fingerprint, tmp_path: Path) -> None:
    for weights, folded in ((model(1), False), (_regained(model(1), np.ones(WIDTH)), True)):
        found = measured(weights, tmp_path, suspect=True)
        nameless = [
            replace(
                one,
                role=Role.OTHER,
                axes=tuple(replace(axis, axis=Axis.UNKNOWN) for axis in one.axes),
            )
            for one in found.tensors
        ]
        comparison = compare_fingerprints(ours, replace(found, tensors=tuple(nameless)))
        assert ("gains-folded" in Rewriting(comparison).undone) == folded


# --- the coins ------------------------------------------------------------------------------------------------------


def _flipped(made: Fingerprint, rng: np.random.Generator) -> tuple[Fingerprint, list[np.ndarray]]:
    """The registered model with up and down of random neurons negated together."""
    signs = [rng.choice([-1.0, 1.0], sample.indices.size).astype(np.float32) for sample in made.neurons]
    samples = tuple(
        replace(sample, up=sample.up * one[:, None], down=sample.down * one[:, None])
        for sample, one in zip(made.neurons, signs, strict=True)
        if sample.up is not None
    )
    return replace(made, neurons=samples), signs


def _same_but_for_coins(one: NeuronMatch, other: NeuronMatch, signs: np.ndarray) -> None:
    assert (one.registered, one.suspect, one.moved) == (other.registered, other.suspect, other.moved)
    for name in ("partners", "scores", "concordant"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert np.array_equal(one.coins * signs, other.coins)


@pytest.mark.parametrize("seed", [1, 2])
def test_flipping_registered_neurons_changes_their_coins_and_nothing_else(
    seed: int, ours: Fingerprint, tmp_path: Path
) -> None:
    suspect = measured(_rotated(model(seed), TURN), tmp_path, suspect=True)
    before = match_neurons(ours.neurons, suspect.neurons, Frame.ANCHORS)
    masks = usable_coins(ours.neurons)
    for turn in range(20):
        flipped, signs = _flipped(ours, np.random.default_rng(turn))
        after = match_neurons(flipped.neurons, suspect.neurons, Frame.ANCHORS)
        for one, other in zip(before, after, strict=True):
            _same_but_for_coins(one, other, signs[one.registered])
        assert all(np.array_equal(a, b) for a, b in zip(masks, usable_coins(flipped.neurons), strict=True))


def test_flipped_weights_are_sampled_as_the_weights_are(tmp_path: Path) -> None:
    one, other = (measured(w, tmp_path) for w in (model(1), _each_neuron(model(1), SAME, SIGNS)))
    for mine, its in zip(one.neurons, other.neurons, strict=True):
        assert np.array_equal(mine.indices, its.indices)
        if mine.frame == Frame.ANCHORS:
            assert mine.up is not None
            assert its.up is not None
            assert np.array_equal(mine.up * SIGNS[mine.indices, None].astype(np.float32), its.up)


def test_coins_of_random_models_are_fair(ours: Fingerprint, tmp_path: Path) -> None:
    suspect = measured(model(2), tmp_path, suspect=True)
    matches = match_neurons(ours.neurons, suspect.neurons, Frame.ANCHORS)
    masks = usable_coins(ours.neurons)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        flipped = [replace(one, coins=one.coins * rng.choice([-1.0, 1.0], one.coins.size)) for one in matches]
        found.append(toss(flipped, masks).log10_p)
    assert 0.03 <= np.mean(np.array(found) <= -1) <= 0.17  # four standard deviations
    assert np.mean(np.array(found) <= -2) <= 0.03


def test_strangers_are_not_concordant(ours: Fingerprint, tmp_path: Path) -> None:
    for seed in range(2, 6):
        gauge = gauge_of(ours, measured(model(seed), tmp_path, suspect=True))
        assert gauge.concordance < 0.06
        assert gauge.evidence[1].log10_p > -3
        assert not gauge.agrees


# --- small trained models -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = [f"{stem}-{one}" for stem in STEMS for one in ("A", "B")]
    return quick_zoo(tmp_path_factory, list(SPECS.values()), wanted)


def _trained(zoo: Path, stem: str, one: str) -> Weights:
    return {name: value.numpy() for name, value in load_weights(zoo, f"{stem}-{one}").items()}


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", ["laundered", "all-but-vocabulary"])
def test_rewritten_trained_models_are_found_and_the_other_seed_is_not(
    stem: str, name: str, zoo: Path, tmp_path: Path
) -> None:
    shape = SPECS[f"{stem}-A"].shape
    case = next(one for one in rewrites(shape.style) if one.name == name)
    registry = Registry.open(tmp_path / "registry", create=True)
    for one in ("A", "B"):
        registry.register(sign(measured(_trained(zoo, stem, one), tmp_path)), name=f"zoo/{one}")
    made = rewrite(load_weights(zoo, f"{stem}-A"), shape, case, "test").tensors
    path = save({name: value.numpy() for name, value in made.items()}, tmp_path / "suspect.safetensors")
    report = scan_path(registry, path)
    assert [(match.model, match.link) for match in report.matches] == [("zoo/A", Link.LINEAGE)]
    assert report.verdict is Verdict.MATCH
    assert {"residual-rotated", "neurons-permuted"} <= set(report.matches[0].undone)
    stranger = compare_fingerprints(
        measured(_trained(zoo, stem, "B"), tmp_path), measured(_trained(zoo, stem, "A"), tmp_path, suspect=True)
    )
    assert stranger.gauge.concordance < 0.2
    assert min((one.log10_p for one in stranger.gauge.evidence), default=0.0) > -3


def test_a_layer_norm_model_has_a_second_frame_and_forgets_the_mean(zoo: Path, tmp_path: Path) -> None:
    """What a LayerNorm subtracts carries nothing, and may be filled with anything."""
    weights = _trained(zoo, STEMS[1], "A")
    ours = measured(weights, tmp_path)
    filled = dict(weights)
    rng = np.random.default_rng(3)
    for name in weights:
        if name.endswith(("wte.weight", "wpe.weight", "mlp.c_proj.weight")):
            filled[name] = weights[name] + rng.normal(size=(len(weights[name]), 1)).astype(np.float32)
        elif name.endswith("c_fc.weight"):
            gain = weights[name.replace("mlp.c_fc", "ln_2")]
            filled[name] = weights[name] + rng.normal(size=weights[name].shape[1]).astype(np.float32) / gain[:, None]
    gauge = gauge_of(ours, measured(filled, tmp_path, suspect=True))
    assert {Frame.ANCHORS, Frame.POSITIONS} <= {frame.frame for frame in gauge.frames}
    for frame in gauge.frames[:2]:
        assert frame.concordance == 1.0
        assert min(one.score for one in frame.matches) > 0.999


# --- gains, frames, calibration -------------------------------------------------------------------------------------


def _stored_less_one(weights: Weights) -> Weights:
    return {name: value - 1 if value.ndim == 1 else value for name, value in weights.items()}


def test_gains_that_are_stored_less_one_are_read_as_such(ours: Fingerprint, tmp_path: Path) -> None:
    gauge = gauge_of(ours, measured(_stored_less_one(model(1)), tmp_path, suspect=True))
    assert gauge.concordance == 1.0
    assert min(one.score for one in gauge.frames[0].matches) > 0.999


def test_a_layer_whose_gains_are_folded_leaves_the_others_to_be_read_as_stored_less_one(
    ours: Fingerprint, tmp_path: Path
) -> None:
    def raised(weights: Weights) -> Weights:
        """No gain below one, so that nothing but the folded ones tells."""
        gains = 1.05 + np.abs(RANDOM.normal(size=WIDTH))
        folded, others = _regained(weights, np.ones(WIDTH)), _regained(weights, gains)
        return {name: (folded if ".layers.0." in name else others)[name] for name in weights}

    gauge = gauge_of(ours, measured(_stored_less_one(raised(model(1))), tmp_path, suspect=True))
    assert min(one.score for one in gauge.frames[0].matches) > 0.999


@pytest.mark.parametrize(
    ("gains", "says", "offsets"),
    [
        ([[0.9, 1.1, 1.0]], None, (0.0,)),
        ([[-0.1, 0.1, 0.2]], None, (1.0, 0.0)),
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], None, (1.0,)),
        ([[0.0, 0.0, 0.0]], False, (1.0,)),
        ([[0.0, 0.0, 0.0], [0.2, 0.1, 0.3], [0.1, 0.1, 0.4]], None, (0.0, 1.0)),
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.4]], None, (1.0, 0.0)),
        ([[0.0, 0.0, 0.0], [0.9, 1.1, 1.0]], False, (0.0, 1.0)),
        ([[0.0, 0.1, 0.2]], None, (0.0, 1.0)),
        ([[0.9, 1.1, 1.0]], True, (1.0, 0.0)),
        ([], None, (0.0,)),
    ],
)
def test_stored_zeros_and_negative_numbers_tell_gains_that_lack_a_one(
    gains: list[list[float]], says: bool | None, offsets: tuple[float, ...], tmp_path: Path
) -> None:
    weights = {f"model.layers.{i}.input_layernorm.weight": np.array(one, np.float32) for i, one in enumerate(gains)}
    path = save(weights | {"model.embed_tokens.weight": np.ones((8, 3), np.float32)}, tmp_path / "model.safetensors")
    with open_checkpoint(path) as checkpoint:
        layout = lay_out(checkpoint.tensors, checkpoint.metadata)
        positions = [i for i, tensor in enumerate(layout.tensors) if "norm" in tensor.name]
        assert find_gains(layout, dict(enumerate(positions)), offset=says).offsets == offsets


def test_constant_and_absent_gains_count_as_folded(tmp_path: Path) -> None:
    folded = _regained(model(1), np.ones(WIDTH))
    without = {name: value for name, value in folded.items() if value.ndim == 2}
    twice = {name: 2 * value if value.ndim == 1 else value for name, value in folded.items()}
    ours = measured(folded, tmp_path)
    for other in (without, twice):
        gauge = gauge_of(ours, measured(other, tmp_path, suspect=True))
        assert min(one.score for one in gauge.frames[0].matches) > 0.9999


def test_a_vocabulary_that_grew_has_the_same_anchors() -> None:
    one, other = (anchor_ids(rows, Stream.ANCHOR_TOKEN, DEFAULT_PARAMETERS) for rows in (50_257, 50_304))
    assert np.array_equal(one, other)
    assert len(one) == DEFAULT_PARAMETERS.frame_width
    assert len(set(one.tolist())) == len(one)
    assert one.min() >= 256
    assert one.max() < 4096
    few = anchor_ids(40, Stream.ANCHOR_TOKEN, DEFAULT_PARAMETERS)
    assert few.tolist() == list(range(40))


@pytest.mark.parametrize("neurons", [1, 8, 96, 384, 8256, 500_000])
@pytest.mark.parametrize("gated", [True, False])
def test_the_tail_is_that_of_the_negative_binomial_law(neurons: int, gated: bool) -> None:
    for share in (0.001, 0.01, 0.03, 0.1, 0.3, 0.9, 1.0):
        rate = RATES[Frame.ANCHORS, gated]
        found = concordance_log10_p(Frame.ANCHORS, share * neurons, neurons, gated=gated)
        if share * neurons < 1:
            assert found == 0.0
            continue
        doubled = 2 * rate.dispersion
        dispersion = max(2.0, doubled, 1 + (doubled - 1) * neurons / rate.number)
        size = 1.5 * rate.mean * neurons / (dispersion - 1)
        tail = float(nbinom.sf(int(share * neurons) - 1, size, 1 / dispersion))
        assert found < -290 if tail == 0.0 else found == pytest.approx(np.log10(tail), rel=1e-6, abs=1e-9)


def test_the_calibrated_p_falls_with_concordance_and_stays_above_its_floor_as_evidence(
    ours: Fingerprint, tmp_path: Path
) -> None:
    values = [concordance_log10_p(Frame.ANCHORS, share * 384, 384, gated=True) for share in np.linspace(0, 1, 30)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 0.0
    assert values[-1] < -30
    assert concordance_log10_p("another", 40, 384, gated=True) > concordance_log10_p(Frame.ANCHORS, 40, 384, gated=True)
    assert concordance_log10_p(Frame.ANCHORS, 0.35 * 192, 192, gated=True) < -6
    evidence = gauge_of(ours, measured(model(1), tmp_path, suspect=True)).evidence
    assert {one.test: one.log10_p for one in evidence}[Test.EVEN] == -9.0


def _frame(name: Frame, share: float, count: int = 96) -> FrameMatch:
    concordant = np.arange(count) < share * count
    match = NeuronMatch(0, 0, np.arange(count), np.ones(count), np.ones(count), concordant, 0.0)
    return FrameMatch(name, (match,) * 4, gated=True, theirs=4)


def test_two_frames_must_agree_unless_the_tokens_were_renumbered() -> None:
    assert Gauge((_frame(Frame.ANCHORS, 0.5),)).agrees
    assert not Gauge((_frame(Frame.ANCHORS, 0.3),)).agrees
    assert not Gauge(()).agrees
    assert Gauge((_frame(Frame.ANCHORS, 0.9), _frame(Frame.SELF, 0.9))).agrees
    assert not Gauge((_frame(Frame.ANCHORS, 0.9), _frame(Frame.SELF, 0.01))).agrees
    assert Gauge((_frame(Frame.ANCHORS, 0.01), _frame(Frame.SELF, 0.9))).agrees


# --- what a hostile suspect can send ----------------------------------------------------------------------------------


def _with(name: str, value: np.ndarray) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {key: value for key in weights if key.endswith(name)}


def _embedded(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {EMBEDDINGS: change(weights[EMBEDDINGS])}


def _each_matrix(part: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Weights], Weights]:
    return lambda weights: {n: change(v) if v.ndim == 2 and part in n else v for n, v in weights.items()}


EMBEDDINGS = "model.embed_tokens.weight"
HOSTILE: dict[str, Callable[[Weights], Weights]] = {
    "no embeddings": lambda weights: {name: v for name, v in weights.items() if name != EMBEDDINGS},
    "three tokens": _embedded(lambda table: table[:3]),
    "embeddings of NaN": _embedded(lambda table: np.full_like(table, np.nan)),
    "a few NaN": _embedded(lambda table: np.where(np.eye(*table.shape) > 0, np.nan, 1.0)),
    "one token": _embedded(lambda table: np.tile(table[:1], (len(table), 1))),
    "huge embeddings": _embedded(lambda table: table * np.float32(1e36)),
    "huge gains": _with("layernorm.weight", np.full(WIDTH, 3e38, np.float32)),
    "gains of NaN": _with("layernorm.weight", np.full(WIDTH, np.nan, np.float32)),
    "gains of another length": _with("input_layernorm.weight", np.ones(7, np.float32)),
    "zero gates": _with("gate_proj.weight", np.zeros((NEURONS, WIDTH), np.float32)),
    "rows of zeros": _each_matrix("", lambda v: np.where(np.arange(len(v))[:, None] % 2 == 0, 0, v)),
    "equal neurons": _each_matrix("mlp", lambda v: np.tile(v[:1], (len(v), 1))),
    "a wide down": _with("down_proj.weight", np.ones((WIDTH, 3 * NEURONS), np.float32)),
    "values of odd sizes": _with("v_proj.weight", RANDOM.normal(size=(7, WIDTH)).astype(np.float32)),
    "huge values": _each_matrix("proj", lambda v: v * np.float32(1e37)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_strange_suspects_are_measured_and_match_nobody(name: str, ours: Fingerprint, tmp_path: Path) -> None:
    weights = {key: np.asarray(value, np.float32) for key, value in HOSTILE[name](model(7)).items()}
    suspect = measured(weights, tmp_path, suspect=True)
    for sample in suspect.neurons:
        assert np.isfinite(sample.gate).all()
        assert np.isfinite(sample.down).all()
    assert all(np.isfinite(gram.values).all() for gram in suspect.grams)
    evidence: tuple[Evidence, ...] = compare_fingerprints(ours, suspect).evidence
    assert all(one.log10_p > -3 for one in evidence)
    # Even as a registered model, which a stranger may have sent, it accuses nobody.
    assert all(one.log10_p > -3 for one in compare_fingerprints(sign(suspect).fingerprint, ours).evidence)
    if name in {"no embeddings", "three tokens"}:
        assert dict(suspect.findings)["gauge-missing"] == "no embeddings"
