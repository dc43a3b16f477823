"""Rotated parts of models, scanned end to end: one layer alone, no embeddings, channels of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.gauge.attention_samples import rotary_of
from fingerprint.gauge.channels import Rotary
from fingerprint.vocabulary import ChannelKind, Frame
from signatures.registry import Registry
from signatures.report import Confidence, Link, Verdict
from signatures.scan import scan_path
from signatures.signature import decode, sign, signed_bytes
from tests.small_models import LAYERS, NEURONS, WIDTH, Weights, gauge_of, model, save

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fingerprint.records import Fingerprint

NOISE = 0.3


def grown(seed: int) -> Weights:
    """A model whose neurons and directions differ in size, as those of trained ones do."""
    rng = np.random.default_rng(seed + 100)
    weights = model(seed)
    stream = np.exp(0.5 * rng.normal(size=WIDTH))
    for layer in range(LAYERS):
        sizes = np.exp(0.4 * rng.normal(size=(NEURONS, 1)))
        prefix = f"model.layers.{layer}.mlp."
        for part in ("gate_proj", "up_proj"):
            name = f"{prefix}{part}.weight"
            weights[name] = (weights[name] * sizes * stream).astype(np.float32)
        name = f"{prefix}down_proj.weight"
        weights[name] = (weights[name] * sizes.T * stream[:, None]).astype(np.float32)
    return weights


def laundered(weights: Weights, seed: int, *, scrambled: bool = False) -> Weights:
    """Gains folded, stream rotated, neurons permuted and rescaled, with noise on top."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    out: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        if "layernorm" in name:
            out[name] = np.ones_like(value)
            continue
        layer = name.split(".self_attn")[0].split(".mlp")[0]
        norm = "input_layernorm" if "self_attn" in name else "post_attention_layernorm"
        writes = "o_proj" in name or "down_proj" in name
        gain = 1.0 if writes or "layers" not in name else weights[f"{layer}.{norm}.weight"]
        out[name] = turn.T @ value if writes else (value * gain) @ turn
    for layer in range(LAYERS):
        order = rng.permutation(NEURONS)
        factor = np.exp(rng.normal(size=NEURONS)) * (rng.choice([-1, 1], size=NEURONS) if scrambled else 1)
        gate, up, down = (f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        out[gate], out[up] = out[gate][order], (out[up] * factor[:, None])[order]
        out[down] = (out[down] / factor)[:, order]
    noisy = {name: value + NOISE * value.std() * rng.normal(size=value.shape) for name, value in out.items()}
    return {name: value.astype(np.float32) for name, value in noisy.items()}


def parts(weights: Weights, *words: str) -> Weights:
    return {name: value for name, value in weights.items() if any(word in name for word in words)}


def measured(weights: Weights, folder: Path, *, registered: bool = False) -> Fingerprint:
    with open_checkpoint(save(weights, folder / "measured.safetensors")) as checkpoint:
        return fingerprint(checkpoint, casts=registered)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with Registry.open(folder / "registry", create=True) as opened:
        for seed in (1, 2, 3):
            opened.register(sign(measured(grown(seed), folder, registered=True)), name=f"models/{seed}")
        yield opened


@pytest.mark.parametrize(
    "words", [("layers.1.mlp",), ("layers.0.mlp", "layers.2.mlp"), ("mlp", "self_attn", "layernorm")]
)
def test_rotated_layers_without_embeddings_are_found(
    words: tuple[str, ...], registry: Registry, tmp_path: Path
) -> None:
    suspect = parts(laundered(grown(2), 7), *words)
    report = scan_path(registry, save(suspect, tmp_path / "suspect.safetensors"))
    assert report.verdict is Verdict.MATCH
    assert [match.model for match in report.matches] == ["models/2"]
    assert report.matches[0].confidence is Confidence.CERTAIN
    evidence = {one.test: one for one in report.matches[0].evidence}
    assert evidence["gauge"].detail["frame"] == Frame.SELF
    assert float(evidence["gauge"].detail["concordance"]) > 0.8
    assert {"residual-moved", "neurons-permuted"} <= set(report.matches[0].undone)


def test_a_rotated_layer_of_another_model_is_not(registry: Registry, tmp_path: Path) -> None:
    suspect = parts(laundered(grown(4), 7), "layers.1.mlp")
    report = scan_path(registry, save(suspect, tmp_path / "suspect.safetensors"))
    assert report.verdict is Verdict.NO_MATCH
    assert report.matches == ()


def test_scrambled_signs_are_likely_at_best(registry: Registry, tmp_path: Path) -> None:
    suspect = parts(laundered(grown(2), 7, scrambled=True), "layers.1.mlp")
    report = scan_path(registry, save(suspect, tmp_path / "suspect.safetensors"))
    assert [match.model for match in report.matches] == ["models/2"]
    assert report.matches[0].confidence is Confidence.LIKELY
    assert "signs-scrambled" in report.matches[0].undone


def test_attention_channels_agree_after_a_rotation(tmp_path: Path) -> None:
    ours = measured(grown(1), tmp_path, registered=True)
    theirs, others = (measured(laundered(grown(seed), 7), tmp_path) for seed in (1, 2))
    found = {(test.frame, test.kind): test.toss for test in gauge_of(ours, theirs).tests}
    for kind in (ChannelKind.VALUE_OUTPUT, ChannelKind.ROTARY):
        assert found[Frame.ANCHORS, kind].log10_p < -6
        assert found[Frame.ANCHORS, kind].groups == LAYERS
    strange = {(test.frame, test.kind): test.toss for test in gauge_of(ours, others).tests}
    assert min(toss.log10_p for toss in strange.values()) > -3


def test_samples_survive_their_signature(tmp_path: Path) -> None:
    ours = measured(grown(1), tmp_path, registered=True)
    kept = decode(signed_bytes(ours)).fingerprint
    theirs = measured(laundered(grown(1), 7), tmp_path)
    before, after = gauge_of(ours, theirs), gauge_of(kept, theirs)
    for one, two in zip(before.tests, after.tests, strict=True):
        assert (one.frame, one.kind, one.toss.coins > 0) == (two.frame, two.kind, two.toss.coins > 0)
        assert two.toss.log10_p == pytest.approx(one.toss.log10_p, rel=0.1, abs=1.0)
    assert after.concordance == pytest.approx(before.concordance, abs=0.05)


def test_pairs_are_told_by_family_and_configuration() -> None:
    assert rotary_of("llama", {}) is Rotary.HALVES
    assert rotary_of("llama", {"model_type": "cohere2"}) is Rotary.NEIGHBOURS
    assert rotary_of("llama", {"partial_rotary_factor": "0.5"}) is None
    assert rotary_of("llama_pth", {}) is Rotary.NEIGHBOURS
    assert rotary_of("gpt2", {}) is Rotary.NONE
    assert rotary_of(None, {}) is None


def test_one_moved_layer_that_is_hardly_nearer_to_a_sibling_than_to_the_base_accuses_no_sibling(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    base = grown(1)

    def change() -> Weights:
        return {
            name: 0.4 * value.std() * rng.normal(size=value.shape) for name, value in base.items() if value.ndim == 2
        }

    def plus(weights: Weights, *changes: tuple[float, Weights]) -> Weights:
        made = {
            name: value + sum(share * one.get(name, 0.0) for share, one in changes) for name, value in weights.items()
        }
        return {name: value.astype(np.float32) for name, value in made.items()}

    common, own, more = change(), change(), change()
    tuned, sibling = plus(base, (1.0, common)), plus(base, (0.57, common), (0.82, own))
    child = plus(tuned, (0.7, more))
    name = "model.layers.1.mlp.up_proj.weight"
    assert np.linalg.norm(sibling[name] - tuned[name]) < np.linalg.norm(sibling[name] - base[name])
    with Registry.open(tmp_path / "siblings", create=True) as registry:
        for label, weights in (("a/base", base), ("a/tuned", tuned)):
            with open_checkpoint(save(weights, tmp_path / "registered.safetensors")) as checkpoint:
                registry.register(sign(fingerprint(checkpoint)), name=label)
        links = []
        for suspect in (sibling, child):
            path = save(parts(laundered(suspect, 3), ".layers.1."), tmp_path / "suspect.safetensors")
            links.append({match.model: match.link for match in scan_path(registry, path).matches})
    assert links[0] == {"a/base": Link.LINEAGE, "a/tuned": Link.SIBLING}
    assert links[1]["a/tuned"] is Link.LINEAGE
