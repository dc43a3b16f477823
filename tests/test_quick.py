"""Quick looks: what they read is part of what a full look keeps, and what they find is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest

from fingerprint import source
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.comparing.comparison import compare_fingerprints
from fingerprint.comparing.sampled import as_sampled
from fingerprint.quick import quick_look
from fingerprint.vocabulary import Content, Depth
from signatures import suspect as suspects
from signatures.options import ScanOptions
from signatures.registry import Registry
from signatures.report import Confidence, Link, Relation, Report, Verdict
from signatures.scan import compare_paths, scan_path
from signatures.signature import decode, encode, sign
from tests.small_models import Weights, low_rank_change, save

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fingerprint.records import Fingerprint

WIDTH, NEURONS, KEYS, VOCABULARY, LAYERS = 160, 400, 120, 900, 3


def model(seed: int, scale: float = 0.05) -> Weights:
    """Large enough that no matrix is read whole."""
    rng = np.random.default_rng([3, seed])
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (WIDTH, WIDTH),
                "self_attn.k_proj": (KEYS, WIDTH),
                "self_attn.v_proj": (KEYS, WIDTH),
                "self_attn.o_proj": (WIDTH, WIDTH),
                "mlp.gate_proj": (NEURONS, WIDTH),
                "mlp.up_proj": (NEURONS, WIDTH),
                "mlp.down_proj": (WIDTH, NEURONS),
            }.items()
        }
    weights = {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    for layer in range(LAYERS):
        weights[f"model.layers.{layer}.input_layernorm.weight"] = (1 + 0.1 * rng.normal(size=WIDTH)).astype(np.float32)
    return weights


def conv1d(seed: int) -> Weights:
    """A GPT-2-shaped model, whose matrices are stored (in, out), query, key and value in one block."""
    rng = np.random.default_rng([4, seed])
    shapes = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (128, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {
            f"h.{layer}.attn.c_attn.weight": (WIDTH, 3 * WIDTH),
            f"h.{layer}.attn.c_proj.weight": (WIDTH, WIDTH),
            f"h.{layer}.mlp.c_fc.weight": (WIDTH, 4 * WIDTH),
            f"h.{layer}.mlp.c_proj.weight": (4 * WIDTH, WIDTH),
        }
    return {name: (0.02 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def rounded(weights: Weights, bits: int, group: int = 40) -> Weights:
    """Every matrix on a symmetric grid of ``bits`` for each group of a row."""
    found = {}
    for name, value in weights.items():
        if value.ndim == 2:
            runs = value.reshape(-1, group)
            step = np.abs(runs).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
            found[name] = (np.rint(runs / step) * step).reshape(value.shape).astype(np.float32)
        else:
            found[name] = value
    return found


def looked_at(weights: Weights, path: Path, *, quick: bool) -> Fingerprint:
    with open_checkpoint(save(weights, path)) as checkpoint:
        return quick_look(checkpoint).fingerprint if quick else fingerprint(checkpoint)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Two models registered in full, two by a quick look."""
    folder = tmp_path_factory.mktemp("registry")
    with Registry.open(folder / "registry", create=True) as opened:
        for name, weights, quick in (
            ("full/llama", model(1), False),
            ("full/gpt2", conv1d(1), False),
            ("quick/llama", model(2), True),
            ("quick/gpt2", conv1d(2), True),
        ):
            opened.register(sign(looked_at(weights, folder / "model.safetensors", quick=quick)), name=name)
        yield opened


def scan(registry: Registry, weights: Weights, folder: Path, depth: str = "quick") -> Report:
    return scan_path(registry, save(weights, folder / "suspect.safetensors"), options=ScanOptions(depth=depth))


@pytest.mark.parametrize("make", [model, conv1d])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_a_quick_look_sees_what_a_full_look_keeps(make, dtype, tmp_path) -> None:
    weights = {name: value.astype(dtype) for name, value in make(5).items()}
    quick = looked_at(weights, tmp_path / "model.safetensors", quick=True)
    full = looked_at(weights, tmp_path / "model.safetensors", quick=False)
    ours, theirs = as_sampled(full, quick)
    compared = 0
    for mine, its in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.content, mine.digest, dict(mine.casts)) == (its.content, its.digest, dict(its.casts)), mine.name
        if mine.sketch is not None:
            compared += 1
            (one,), (other,) = mine.axes, its.axes
            assert np.array_equal(one.indices, other.indices)
            np.testing.assert_allclose(one.values, other.values, atol=2e-4 * np.abs(one.values).max())
    assert compared == sum(value.ndim == 2 for value in weights.values()) + (2 * LAYERS if make is conv1d else 0)


def test_it_reads_no_more_than_it_says(tmp_path, monkeypatch) -> None:
    path = save(model(6), tmp_path / "model.safetensors")
    read = 0
    whole = source.FileSource.read

    def counted(self: source.FileSource, offset: int, length: int) -> memoryview:
        nonlocal read
        read += length
        return whole(self, offset, length)

    with open_checkpoint(path) as checkpoint:
        monkeypatch.setattr(source.FileSource, "read", counted)
        looked = quick_look(checkpoint).fingerprint
    # Small tensors are read once more for what their sketches are cut to.
    assert looked.bytes_read <= read <= 1.2 * looked.bytes_read
    assert looked.bytes_read < 0.25 * looked.stored_bytes
    assert looked.depth == Depth.QUICK
    assert not looked.neurons


@pytest.mark.parametrize("name", ["full/llama", "full/gpt2", "quick/llama", "quick/gpt2"])
@pytest.mark.parametrize(
    ("damage", "relation"),
    [
        (lambda weights: weights, Relation.IDENTICAL),
        (lambda weights: {k: v.astype(ml_dtypes.bfloat16) for k, v in weights.items()}, Relation.DTYPE_CAST),
        (lambda weights: rounded(weights, 4), Relation.QUANTISED),
        (lambda weights: low_rank_change(weights, 9, 0.05), Relation.FINE_TUNED),
    ],
)
def test_honest_derivatives_are_found_and_named(registry, name, damage, relation, tmp_path) -> None:
    make, seed = (model if "llama" in name else conv1d), (1 if "full" in name else 2)
    report = scan(registry, damage(make(seed)), tmp_path)
    (match,) = report.matches
    assert (report.verdict, match.model, match.link) == (Verdict.MATCH, name, Link.LINEAGE)
    assert match.relation is relation
    assert report.suspect.depth == Depth.QUICK
    assert any("a quick look" in note for note in report.notes)


@pytest.mark.parametrize("name", ["quick/llama", "quick/gpt2"])
def test_a_model_registered_by_a_quick_look_is_found_by_a_full_scan(registry, name, tmp_path) -> None:
    make = model if "llama" in name else conv1d
    report = scan(registry, low_rank_change(make(2), 9, 0.05), tmp_path, depth="full")
    assert [match.model for match in report.matches] == [name]
    assert report.suspect.depth == Depth.FULL


def test_one_layer_is_enough(registry, tmp_path) -> None:
    for seed, name in ((1, "full/llama"), (2, "quick/llama")):
        layer = {f"w{i}": value for i, (key, value) in enumerate(model(seed).items()) if ".1." in key}
        report = scan(registry, layer, tmp_path)
        assert [match.model for match in report.matches] == [name]
        assert report.verdict is Verdict.MATCH


def test_a_transpose_without_a_name_is_found(registry, tmp_path) -> None:
    turned = {f"w{i}": value.T for i, (key, value) in enumerate(model(1).items()) if "gate" in key or "k_proj" in key}
    (match,) = scan(registry, turned, tmp_path).matches
    assert match.model == "full/llama"
    assert "transposed" in match.undone


@pytest.mark.parametrize("make", [model, conv1d])
def test_strangers_are_not_matched(registry, make, tmp_path) -> None:
    drawn = np.random.default_rng(0)
    lookalike = {k: drawn.normal(v.mean(), v.std(), v.shape).astype(np.float32) for k, v in make(1).items()}
    shuffled = {k: drawn.permutation(v.reshape(-1)).reshape(v.shape) for k, v in make(1).items()}
    for weights in (make(7), lookalike, shuffled):
        assert scan(registry, weights, tmp_path).verdict is Verdict.NO_MATCH


def test_no_pair_of_strangers_comes_near_a_match(tmp_path) -> None:
    looks = [
        looked_at(make(seed), tmp_path / "m.safetensors", quick=True) for make in (model, conv1d) for seed in range(8)
    ]
    smallest = min(
        compare_fingerprints(ours, theirs).log10_p for ours in looks for theirs in looks if ours is not theirs
    )
    assert smallest > -2


def test_slices_of_zeros_are_no_equal_contents(tmp_path) -> None:
    """Pruned neurons: the first slices of both models are nothing but zeros."""
    both = []
    for seed in (1, 2):
        weights = {name: value for name, value in model(seed).items() if "gate" in name}
        for value in weights.values():
            value[: NEURONS - 8] = 0
        both.append(looked_at(weights, tmp_path / "m.safetensors", quick=True))
    comparison = compare_fingerprints(*both)
    assert not any(match.digest for match in comparison.matches)
    assert comparison.log10_p > -3


def test_auto_looks_quickly_first_and_reads_on_only_where_nothing_is_explained(registry, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(suspects, "AUTO_WHOLE", 0)
    assert scan(registry, model(1), tmp_path, depth="auto").suspect.depth == Depth.QUICK
    order = np.random.default_rng(1).permutation(NEURONS)
    rearranged = {
        name: value[order] if "gate" in name or "up" in name else value[:, order] if "down" in name else value
        for name, value in model(1).items()
        if "mlp" in name
    }
    # A quick look sees nothing of permuted MLPs, and a full one all of their neurons.
    report = scan(registry, rearranged, tmp_path, depth="auto")
    assert report.suspect.depth == Depth.FULL
    assert [(match.model, match.link) for match in report.matches] == [("full/llama", Link.LINEAGE)]
    assert report.matches[0].coverage.suspect > 0.9


def test_small_checkpoints_are_read_whole_at_once(registry, tmp_path) -> None:
    assert scan(registry, model(1), tmp_path, depth="auto").suspect.depth == Depth.FULL


def test_one_model_registered_at_both_depths_is_no_merge_with_itself(tmp_path) -> None:
    with Registry.open(tmp_path / "registry", create=True) as opened:
        for name, quick in (("a/full", False), ("a/quick", True)):
            opened.register(sign(looked_at(model(1), tmp_path / "model.safetensors", quick=quick)), name=name)
        report = scan(opened, model(1), tmp_path)
    assert [match.relation for match in report.matches] == [Relation.IDENTICAL, Relation.IDENTICAL]
    assert list(report.mixture.coefficients) == ["a/full"]


def test_two_checkpoints_are_compared_at_quick_depth(tmp_path) -> None:
    base, tuned = save(model(1), tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    save(low_rank_change(model(1), 9, 0.05), tuned)
    report = compare_paths(base, tuned, options=ScanOptions(depth="quick"))
    assert report.matches[0].relation is Relation.FINE_TUNED
    assert "gauge" not in report.power.tested


def test_the_signature_of_a_quick_look_comes_back_from_its_file(tmp_path) -> None:
    signed = sign(looked_at(model(1), tmp_path / "m.safetensors", quick=True))
    again = decode(encode(signed))
    assert again.identity == signed.identity
    assert again.fingerprint.depth == Depth.QUICK
    samples = [sample for tensor in again.fingerprint.tensors for sample in tensor.axes]
    assert all(len(sample.digest) == 32 and len(sample.casts) == 4 for sample in samples)


def test_the_index_of_slices_follows_the_registry(registry) -> None:
    found = registry.check_index()
    assert found.problems == ()
    assert found.status.current
    assert found.queries == 400


def test_what_is_not_read_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("fingerprint.quick.MOST_REGISTERED", 4)
    looked = looked_at(model(1), tmp_path / "m.safetensors", quick=True)
    unread = [tensor for tensor in looked.tensors if tensor.content is Content.UNREAD]
    assert len([tensor for tensor in looked.tensors if tensor.axes]) == 4
    assert len(unread) == 7 * LAYERS + 2 - 4
    assert not any(tensor.digest for tensor in unread)


def experts(seed: int, layers: int = 2, number: int = 16) -> dict[str, np.ndarray]:
    """The experts of a mixture, each of three matrices too large to be read whole."""
    rng = np.random.default_rng(seed)
    shapes = {"gate_proj": (192, 96), "up_proj": (192, 96), "down_proj": (96, 192)}
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight": (rng.normal(size=shape) * 0.05).astype(np.float32)
        for layer in range(layers)
        for expert in range(number)
        for part, shape in shapes.items()
    }


def test_a_part_is_no_component_because_of_what_nobody_looked_at(tmp_path, monkeypatch) -> None:
    """Of thousands of experts a quick look sees some: that the others of a shard match nothing says nothing."""
    for module in ("fingerprint.quick", "fingerprint.comparing.sampled"):
        monkeypatch.setattr(f"{module}.MOST_REGISTERED", 30)
    whole = experts(1)
    ours = looked_at(whole, tmp_path / "whole.safetensors", quick=True)
    read = {tensor.name for tensor in ours.tensors if tensor.axes}
    assert len(read) == 30
    shard = {name: value for name, value in whole.items() if "layers.1.mlp.experts.1" in name}
    seen = read & set(shard)
    assert 0 < len(seen) < len(shard) / 2
    with Registry.open(tmp_path / "registry") as opened:
        opened.register(sign(ours), name="acme/mixture")
        (match,) = scan(opened, shard, tmp_path, depth="quick").matches
        assert (match.link, match.relation, match.confidence) == (Link.LINEAGE, Relation.PARTIAL, Confidence.CERTAIN)
        # Of the experts that were looked at all but one are others now: that is a component.
        kept = sorted(seen)[:1]
        changed = experts(2) | {name: whole[name] for name in kept}
        (match,) = scan(opened, {name: changed[name] for name in shard}, tmp_path, depth="quick").matches
        assert match.link is Link.SHARED_COMPONENT
