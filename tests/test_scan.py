"""Scans end to end, on small models of known descent: what is found, what it is called, and what is never accused."""

from __future__ import annotations

import json
import math
import zlib
from typing import TYPE_CHECKING

import gguf
import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace

from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.comparing.comparison import compare_fingerprints, with_own_frames
from fingerprint.errors import UnknownModelError
from fingerprint.quick import quick_look
from fingerprint.vocabulary import Depth
from signatures.descent import changes_in_place
from signatures.identify import compare_all
from signatures.keyed import keyed_section, make_key, with_section
from signatures.options import ScanOptions
from signatures.records import ModelRecord
from signatures.registry import Registry
from signatures.report import Confidence, Link, Relation, Report, Verdict
from signatures.scan import compare_paths, scan_path
from signatures.signature import sign, write_signature
from signatures.suspect import open_suspect
from signatures.verdict import assess
from tests.small_models import Weights, blend, disguised, low_rank_change, model, save

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from signatures.signature import Signature


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """The base A, a fine-tune of it, and two unrelated models, registered in that order."""
    folder = tmp_path_factory.mktemp("registry")
    tuned = low_rank_change(model(1), 7, 0.05)
    with Registry.open(folder / "registry", create=True) as opened:
        for name, weights in (("a/base", model(1)), ("a/tuned", tuned), ("b/base", model(2)), ("c/base", model(3))):
            path = save(weights, folder / "model.safetensors")
            with open_checkpoint(path) as checkpoint:
                opened.register(sign(fingerprint(checkpoint)), name=name)
        yield opened


def scan(registry: Registry, weights: Weights, folder: Path, **options: object) -> Report:
    report = scan_path(registry, save(weights, folder / "suspect.safetensors"), options=ScanOptions(**options))  # type: ignore[arg-type]
    json.dumps(report.to_json(), allow_nan=False)
    return report


def links(report: Report) -> dict[str, Link]:
    return {match.model: match.link for match in report.matches}


def test_a_copy_whose_norms_have_equal_gains_is_identical(tmp_path: Path) -> None:
    weights = model(1)
    norms = [name for name in weights if "norm" in name]
    weights |= dict.fromkeys(norms, weights[norms[0]])
    with Registry.open(tmp_path / "registry", create=True) as opened:
        with open_checkpoint(save(weights, tmp_path / "model.safetensors")) as checkpoint:
            opened.register(sign(fingerprint(checkpoint)), name="a/base")
        first = scan(opened, weights, tmp_path).matches[0]
    assert (first.relation, first.undone) == (Relation.IDENTICAL, ())


def test_a_copy_is_identical(registry: Registry, tmp_path: Path) -> None:
    report = scan(registry, model(1), tmp_path)
    first = report.matches[0]
    assert report.verdict is Verdict.MATCH
    assert (first.model, first.relation, first.confidence) == ("a/base", Relation.IDENTICAL, Confidence.CERTAIN)
    assert first.coverage.suspect == first.coverage.registered == 1.0
    assert first.log10_p < -50


def test_disguised_copies_are_reformatted(registry: Registry, tmp_path: Path) -> None:
    turned = {name: value.T for name, value in disguised(model(2)).items()}
    for weights in (disguised(model(2)), turned):
        report = scan(registry, weights, tmp_path)
        assert links(report) == {"b/base": Link.LINEAGE}
        assert report.matches[0].relation is Relation.REFORMATTED
        assert "renamed" in report.matches[0].undone
    assert "transposed" in report.matches[0].undone


def test_fused_blocks_without_names_are_split(registry: Registry, tmp_path: Path) -> None:
    weights = model(2)
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        attention = [weights.pop(f"{prefix}self_attn.{part}_proj.weight") for part in "qkv"]
        weights[f"{prefix}qkv"] = np.concatenate(attention)
        gate_up = [weights.pop(f"{prefix}mlp.{part}_proj.weight") for part in ("gate", "up")]
        weights[f"{prefix}gu"] = np.concatenate(gate_up)
    report = scan(registry, disguised(weights), tmp_path)
    assert report.matches[0].model == "b/base"
    assert report.matches[0].relation is Relation.REFORMATTED
    assert "fused" in report.matches[0].undone
    assert report.matches[0].coverage.suspect == 1.0


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_casts_are_known_by_digest(registry: Registry, tmp_path: Path, dtype: type) -> None:
    cast = {name: value.astype(dtype).astype(np.float32) for name, value in disguised(model(2)).items()}
    report = scan(registry, cast, tmp_path)
    first = report.matches[0]
    assert (first.model, first.relation) == ("b/base", Relation.DTYPE_CAST)
    assert any(one.test == "digest" for one in first.evidence)


def test_quantised_pruned_and_noised_copies_are_told_apart(registry: Registry, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def four_bits(value: np.ndarray) -> np.ndarray:
        groups = value.reshape(-1, 32) if value.ndim == 2 else value.reshape(1, -1)
        scale = np.abs(groups).max(axis=1, keepdims=True) / 7
        return (np.rint(groups / scale) * scale).reshape(value.shape).astype(np.float32)

    def sparse(value: np.ndarray) -> np.ndarray:
        return np.where(np.abs(value) >= np.median(np.abs(value)), value, 0) if value.ndim == 2 else value

    def noisy(value: np.ndarray) -> np.ndarray:
        return (value + 0.2 * value.std() * rng.normal(size=value.shape)).astype(np.float32)

    for change, relation in (
        (four_bits, Relation.QUANTISED),
        (sparse, Relation.PRUNED),
        (noisy, Relation.NOISED),
    ):
        report = scan(registry, {name: change(v) for name, v in disguised(model(2)).items()}, tmp_path)
        assert links(report) == {"b/base": Link.LINEAGE}
        assert report.matches[0].relation is relation


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q4_0"])
def test_a_model_with_quantised_layers_is_called_so_in_both_directions(tmp_path: Path, kind: str) -> None:
    weights, number = model(2), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    for name, value in weights.items():
        if ".layers." in name and value.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(value, number), raw_dtype=number)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    pair = [save(weights, tmp_path / "m.safetensors"), tmp_path / "m.gguf"]
    for one, other in (pair, pair[::-1]):
        first = compare_paths(one, other).matches[0]
        assert first.relation is Relation.QUANTISED
        assert (f"quantised-{kind[1]}-bit" in first.undone) is (other.suffix == ".gguf")


def test_a_fine_tune_of_a_registered_fine_tune_is_nearest_to_it(registry: Registry, tmp_path: Path) -> None:
    tuned = low_rank_change(model(1), 7, 0.05)
    report = scan(registry, disguised(low_rank_change(tuned, 8, 0.05)), tmp_path)
    assert report.matches[0].model == "a/tuned"
    assert report.matches[0].relation is Relation.FINE_TUNED
    assert links(report)["a/base"] is Link.LINEAGE


def test_another_fine_tune_of_a_registered_base_is_a_sibling(registry: Registry, tmp_path: Path) -> None:
    report = scan(registry, disguised(low_rank_change(model(1), 9, 0.05)), tmp_path)
    assert links(report) == {"a/base": Link.LINEAGE, "a/tuned": Link.SIBLING}
    assert next(match for match in report.matches if match.model == "a/tuned").explained_by == "a/base"


def test_a_merge_names_both_parents_and_their_shares(registry: Registry, tmp_path: Path) -> None:
    report = scan(registry, disguised(blend({0.7: model(2), 0.3: model(3)})), tmp_path)
    assert links(report) == {"b/base": Link.LINEAGE, "c/base": Link.LINEAGE}
    assert report.matches[0].relation is Relation.MERGED
    assert report.mixture is not None
    assert report.mixture.coefficients == pytest.approx({"b/base": 0.7, "c/base": 0.3}, abs=0.02)
    assert report.mixture.residual < 0.02


def test_a_frankenmerge_says_which_layer_is_whose(registry: Registry, tmp_path: Path) -> None:
    b, c = model(2), model(3)
    weights = {name: c[name] if ".layers.1." in name else b[name] for name in b}
    report = scan(registry, weights, tmp_path)
    assert links(report) == {"b/base": Link.LINEAGE, "c/base": Link.LINEAGE}
    assert report.mixture is not None
    assert set(report.mixture.layers["1"]) == {"c/base"}
    assert set(report.mixture.layers["0"]) == set(report.mixture.layers["2"]) == {"b/base"}


def test_layers_dropped_repeated_and_swapped_are_mapped(registry: Registry, tmp_path: Path) -> None:
    weights = model(2)

    def with_layers(order: list[int]) -> Weights:
        kept = {name: value for name, value in weights.items() if ".layers." not in name}
        for new, old in enumerate(order):
            prefix = f"model.layers.{old}."
            kept |= {
                name.replace(prefix, f"model.layers.{new}."): value
                for name, value in weights.items()
                if name.startswith(prefix)
            }
        return kept

    for order, relation in (
        ([0, 2], Relation.PRUNED),
        ([0, 1, 1, 2], Relation.DEPTH_UPSCALED),
        ([1, 0, 2], Relation.REFORMATTED),
    ):
        report = scan(registry, with_layers(order), tmp_path)
        assert report.matches[0].relation is relation
        assert report.matches[0].layers == {str(new): old for new, old in enumerate(order)}
        assert ("layers-reordered" in report.matches[0].undone) is (order != sorted(order))
        nameless = scan(registry, disguised(with_layers(order)), tmp_path)
        assert sorted(nameless.matches[0].layers.values()) == sorted(order)


def test_permuted_neurons_are_found_and_said(registry: Registry, tmp_path: Path) -> None:
    weights, rng = model(2), np.random.default_rng(0)
    for layer in range(3):
        order = rng.permutation(160)
        for part in ("gate", "up"):
            weights[f"model.layers.{layer}.mlp.{part}_proj.weight"] = weights[
                f"model.layers.{layer}.mlp.{part}_proj.weight"
            ][order]
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        weights[name] = weights[name][:, order]
    report = scan(registry, weights, tmp_path)
    first = report.matches[0]
    assert (first.model, first.relation) == ("b/base", Relation.REWRITTEN)
    assert "neurons-permuted" in first.undone
    assert first.coverage.suspect > 0.95


@pytest.mark.parametrize("factor", [1.01, 3.0, -1.0])
def test_rescaled_weights_are_found_and_said(registry: Registry, tmp_path: Path, factor: float) -> None:
    weights = {name: value * np.float32(factor) for name, value in model(2).items()}
    first = scan(registry, disguised(weights), tmp_path).matches[0]
    assert (first.model, first.relation, first.confidence) == ("b/base", Relation.REWRITTEN, Confidence.CERTAIN)
    assert "rescaled" in first.undone


def test_a_copy_among_other_weights_is_an_accusation(registry: Registry, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    padding = {f"g{i}": rng.normal(scale=0.02, size=(400, 400)).astype(np.float32) for i in range(4)}
    report = scan(registry, {**model(2), **padding}, tmp_path)
    first = report.matches[0]
    assert report.verdict is Verdict.MATCH
    assert (first.link, first.relation, first.coverage.registered) == (Link.LINEAGE, Relation.EXTENDED, 1.0)
    assert first.coverage.suspect < 0.5
    assert "tensors-added" in first.undone


def test_shrinking_and_drowning_in_noise_is_no_common_initialisation(registry: Registry, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    weights = {
        name: (0.7 * value + 0.7 * value.std() * rng.normal(size=value.shape)).astype(np.float32)
        if value.ndim > 1
        else value
        for name, value in model(2).items()
    }
    first = scan(registry, disguised(weights), tmp_path).matches[0]
    assert (first.model, first.link, first.relation) == ("b/base", Link.LINEAGE, Relation.NOISED)
    assert first.similarity < 0.75


@pytest.mark.parametrize(("by", "relation"), [(-1, Relation.PRUNED), (1, Relation.EXTENDED)])
def test_matrices_cut_or_padded_along_both_axes_are_found(
    registry: Registry, tmp_path: Path, by: int, relation: Relation
) -> None:
    weights = {
        name: np.pad(value, (0, by)) if by > 0 else value[(slice(by),) * value.ndim] for name, value in model(2).items()
    }
    first = scan(registry, disguised(weights), tmp_path).matches[0]
    assert (first.model, first.link, first.relation) == ("b/base", Link.LINEAGE, relation)


def test_changed_values_are_never_called_identical(registry: Registry, tmp_path: Path) -> None:
    weights = {name: value + np.float32(1) for name, value in model(2).items()}
    first = scan(registry, weights, tmp_path).matches[0]
    assert (first.model, first.confidence) == ("b/base", Confidence.CERTAIN)
    assert first.relation is not Relation.IDENTICAL


def test_dead_neurons_of_huge_weights_do_not_hide_a_copy(registry: Registry, tmp_path: Path) -> None:
    weights, rng = model(2), np.random.default_rng(7)
    for name, value in weights.items():
        if value.ndim > 1:
            junk = rng.normal(scale=1000 * value.std(), size=(2, value.shape[1])).astype(np.float32)
            weights[name] = np.concatenate([value, junk])
    first = scan(registry, disguised(weights), tmp_path).matches[0]
    assert (first.model, first.link, first.confidence) == ("b/base", Link.LINEAGE, Confidence.CERTAIN)


def test_numbers_of_layers_in_scrambled_names_are_used(registry: Registry, tmp_path: Path) -> None:
    order, weights = [2, 0, 1], model(2)
    renamed: Weights = {}
    for name, value in weights.items():
        *_, tail = name.split(".layers.")
        number, _, rest = tail.partition(".")
        scrambled = f"x{zlib.crc32(rest.encode()):08x}"
        renamed[f"q.{order.index(int(number))}.{scrambled}" if ".layers." in name else scrambled + name[-3:]] = value
    first = scan(registry, renamed, tmp_path).matches[0]
    assert first.layers == {str(new): old for new, old in enumerate(order)}
    assert "layers-reordered" in first.undone


def test_one_layer_and_one_matrix_alone_are_found(registry: Registry, tmp_path: Path) -> None:
    layer = {name: value for name, value in model(2).items() if ".layers.1." in name}
    matrix = {"x": model(2)["model.embed_tokens.weight"]}
    for weights in (disguised(layer), matrix):
        report = scan(registry, weights, tmp_path)
        assert links(report) == {"b/base": Link.LINEAGE}
        assert report.matches[0].relation is Relation.PARTIAL
        assert report.matches[0].confidence is Confidence.CERTAIN


def test_copied_embeddings_are_a_shared_component_and_no_accusation(registry: Registry, tmp_path: Path) -> None:
    weights = model(50, layers=12)
    weights["model.embed_tokens.weight"] = model(2)["model.embed_tokens.weight"]
    report = scan(registry, disguised(weights), tmp_path)
    assert links(report) == {"b/base": Link.SHARED_COMPONENT}
    assert report.matches[0].confidence is Confidence.POSSIBLE
    assert report.strongest_accusation is None


def test_a_common_initialisation_is_named_and_not_accused(registry: Registry, tmp_path: Path) -> None:
    other = low_rank_change(blend({0.5: model(2)}), 77, 1.7, rank=40)
    report = scan(registry, disguised(other), tmp_path)
    assert links(report) == {"b/base": Link.SAME_INITIALISATION}
    assert report.verdict is Verdict.POSSIBLE
    assert report.strongest_accusation is None


def _with_moments_of(weights: Weights) -> Weights:
    rng = np.random.default_rng(5)
    return {n: (v.mean() + v.std() * rng.normal(size=v.shape)).astype(np.float32) for n, v in weights.items()}


def _shuffled(weights: Weights) -> Weights:
    rng = np.random.default_rng(6)
    return {name: rng.permutation(value.ravel()).reshape(value.shape) for name, value in weights.items()}


def _with_gains_of(weights: Weights) -> Weights:
    return {name: weights[name] if value.ndim == 1 else value for name, value in model(60).items()}


@pytest.mark.parametrize(
    "weights",
    [model(51), _with_moments_of(model(2)), _shuffled(model(2)), _with_gains_of(model(2))],
    ids=["unrelated", "same moments", "shuffled", "same gains"],
)
def test_look_alikes_are_never_matched(registry: Registry, tmp_path: Path, weights: Weights) -> None:
    report = scan(registry, weights, tmp_path)
    assert report.matches == ()
    assert report.verdict is Verdict.NO_MATCH


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan, math.inf])
def test_files_without_trained_numbers_are_inconclusive(registry: Registry, tmp_path: Path, value: float) -> None:
    report = scan(registry, {name: np.full_like(one, value) for name, one in model(2).items()}, tmp_path)
    assert report.matches == ()
    assert report.verdict is Verdict.INCONCLUSIVE


def test_some_nans_do_not_hide_a_copy(registry: Registry, tmp_path: Path) -> None:
    weights = model(2)
    for value in weights.values():
        value.flat[0] = np.nan
    assert scan(registry, weights, tmp_path).matches[0].model == "b/base"


def test_p_values_are_corrected_for_the_number_of_models(registry: Registry, tmp_path: Path) -> None:
    path = save(model(2), tmp_path / "b.safetensors")
    alone = compare_paths(path, path).matches[0]
    among = scan(registry, model(2), tmp_path).matches[0]
    assert among.log10_p == pytest.approx(alone.log10_p + math.log10(len(registry.models())), abs=0.1)


def test_a_signature_stands_in_for_a_suspect(registry: Registry, tmp_path: Path) -> None:
    with open_checkpoint(save(disguised(model(2)), tmp_path / "m.safetensors")) as checkpoint:
        write_signature(tmp_path / "m.fpsig", sign(fingerprint(checkpoint)))
    report = scan_path(registry, tmp_path / "m.fpsig")
    assert links(report) == {"b/base": Link.LINEAGE}
    assert any("signature" in reason for reason in report.power.not_tested)


def test_an_empty_registry_proves_nothing(tmp_path: Path) -> None:
    with Registry.open(tmp_path / "empty", create=True) as empty:
        assert scan(empty, model(2), tmp_path).verdict is Verdict.INCONCLUSIVE


def test_an_unreadable_suspect_is_a_report_of_an_error(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    report = scan_path(registry, tmp_path / "bad.safetensors")
    assert report.verdict is Verdict.ERROR
    assert report.error
    assert "bad.safetensors" in report.error


def test_included_and_excluded_tensors(registry: Registry, tmp_path: Path) -> None:
    report = scan(registry, model(2), tmp_path, include=("*.mlp.*",), exclude=("*down*",))
    assert report.suspect.tensors == 6
    assert report.matches[0].model == "b/base"


def test_top_k_bounds_the_report_only(registry: Registry, tmp_path: Path) -> None:
    report = scan(registry, low_rank_change(model(1), 9, 0.05), tmp_path, top_k=1)
    assert [match.model for match in report.matches] == ["a/base"]


def test_a_budgeted_signature_still_covers_a_fine_tune(tmp_path: Path) -> None:
    weights = model(9, layers=12)
    with open_checkpoint(save(weights, tmp_path / "m.safetensors")) as checkpoint:
        whole = fingerprint(checkpoint)
    kept = [replace(t, sketch=None, axes=()) if i % 5 else t for i, t in enumerate(whole.tensors)]
    with Registry.open(tmp_path / "r", create=True) as registry:
        registry.register(sign(replace(whole, tensors=tuple(kept), neurons=())), name="a/sampled")
        report = scan(registry, disguised(low_rank_change(weights, 3, 0.05)), tmp_path)
    assert links(report) == {"a/sampled": Link.LINEAGE}
    assert report.matches[0].coverage.suspect > 0.9
    assert report.matches[0].coverage.registered > 0.9


def test_a_fused_block_alone_is_split_as_the_registered_model_is(tmp_path: Path) -> None:
    weights = model(2)
    for layer in range(3):
        parts = [weights.pop(f"model.layers.{layer}.self_attn.{part}_proj.weight") for part in "qkv"]
        weights[f"model.layers.{layer}.self_attn.qkv_proj.weight"] = np.concatenate(parts)
    with Registry.open(tmp_path / "r", create=True) as registry:
        with open_checkpoint(save(weights, tmp_path / "m.safetensors")) as checkpoint:
            registry.register(sign(fingerprint(checkpoint)), name="d/fused")
        block = weights["model.layers.1.self_attn.qkv_proj.weight"]
        for values in (block, np.concatenate([block, block * 0 + model(3)["model.embed_tokens.weight"][:128]])[:128].T):
            report = scan(registry, {"x": values}, tmp_path)
            assert links(report) == {"d/fused": Link.LINEAGE}
            assert report.matches[0].coverage.suspect == 1.0
            assert report.suspect.tensors == 3


def test_fine_tunes_whose_embeddings_moved_alike_are_siblings_and_no_merge(tmp_path: Path) -> None:
    base, alike = model(1), low_rank_change(model(1), 20, 0.05)
    tables = ("model.embed_tokens.weight", "lm_head.weight")

    def tuned(seed: int) -> Weights:
        weights = low_rank_change(base, seed, 0.05)
        moved = {name: alike[name] + 0.8 * (weights[name] - base[name]) for name in tables}
        return weights | {name: value.astype(np.float32) for name, value in moved.items()}

    one, other = tuned(21), tuned(22)
    for name in tables:
        assert np.linalg.norm(one[name] - other[name]) < np.linalg.norm(other[name] - base[name])
    with Registry.open(tmp_path / "registry") as registry:
        registry.register(sign_of(base, tmp_path), name="a/base")
        registry.register(sign_of(one, tmp_path), name="a/tuned")
        report = scan(registry, disguised(other), tmp_path)
    assert links(report) == {"a/base": Link.LINEAGE, "a/tuned": Link.SIBLING}
    assert report.matches[0].relation is Relation.FINE_TUNED


def test_mlps_whose_neurons_were_permuted_count_in_distances_and_embeddings_alone_do_not(tmp_path: Path) -> None:
    base, alike = model(1), low_rank_change(model(1), 20, 0.05)
    tables = {name: alike[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    tuned = {number: low_rank_change(base, number, 0.05) | tables for number in (21, 22)}
    with open_checkpoint(save(with_permuted_neurons(tuned[22]), tmp_path / "suspect.safetensors")) as checkpoint:
        suspect = fingerprint(checkpoint, casts=False, deep=False)
    with_base, with_tuned = (
        compare_fingerprints(sign_of(weights, tmp_path).fingerprint, suspect) for weights in (base, tuned[21])
    )
    record = ModelRecord(1, "sha256:0", "full", 1, 1, None, None, ())
    near, far = (assess(record, one, 1) for one in (with_base, with_tuned))
    assert near is not None
    assert far is not None
    by_place = near.change.residual / far.change.residual  # attention, and embeddings that are the same
    assert by_place > 1.2
    assert near.distance / far.distance < 0.9 * by_place
    assert abs(changes_in_place(with_tuned, with_base).cosine) < 0.2


def test_own_frames_that_are_added_are_what_they_would_have_been(tmp_path: Path) -> None:
    base = sign_of(model(1), tmp_path).fingerprint
    with open_checkpoint(save(with_permuted_neurons(low_rank_change(model(1), 7, 0.05)), tmp_path / "a")) as checkpoint:
        suspect = fingerprint(checkpoint, casts=False)
    assert suspect.depth == "deep"
    at_once, before = (compare_fingerprints(base, suspect, own_frames=own) for own in (True, False))
    added = with_own_frames(before)
    assert {one.frame for one in added.gauge.frames} - {one.frame for one in before.gauge.frames} == {"self"}
    assert added.evidence == at_once.evidence
    assert (added.suspect_coverage, added.covered) == (at_once.suspect_coverage, at_once.covered)


@pytest.mark.parametrize("depth", ["quick", "full", "deep"])
def test_what_comparisons_with_strangers_keep_is_small(registry: Registry, tmp_path: Path, depth: str) -> None:
    with open_suspect(save(model(9), tmp_path / "suspect.safetensors")) as opened:
        suspect = opened.at(Depth(depth))
    known = [registry.load_signature(record).fingerprint for record in registry.models()]
    for one in compare_all(suspect, known):
        for side in (one.registered, one.suspect):
            assert not side.neurons
            assert not any(part.axes or part.sketch for part in side.tensors)
            assert side.tensors


def test_a_model_that_is_removed_between_two_depths_is_no_longer_compared(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry").mkdir()
    with Registry.open(tmp_path / "registry") as held:
        for record in registry.models():
            held.register(registry.load_signature(record), name=record.name)
        real = held.load_signature

        def removed_meanwhile(record: ModelRecord) -> Signature:
            if record.name == "a/base":
                raise UnknownModelError("it is gone")
            return real(record)

        monkeypatch.setattr(held, "load_signature", removed_meanwhile)
        report = scan(held, low_rank_change(model(1), 8, 0.05), tmp_path)
    assert set(links(report)) == {"a/tuned"}


def with_permuted_neurons(weights: Weights) -> Weights:
    """The same function with the neurons of every MLP in another order."""
    found = dict(weights)
    for name in weights:
        if name.endswith("mlp.up_proj.weight"):
            order = np.random.default_rng(zlib.crc32(name.encode())).permutation(len(weights[name]))
            stem = name.removesuffix("up_proj.weight")
            found |= {f"{stem}{one}_proj.weight": weights[f"{stem}{one}_proj.weight"][order] for one in ("gate", "up")}
            found[f"{stem}down_proj.weight"] = weights[f"{stem}down_proj.weight"][:, order]
    return found


def test_a_declared_base_is_named_and_not_accused(registry: Registry, tmp_path: Path) -> None:
    weights = disguised(low_rank_change(model(1), 9, 0.05))
    report = scan(registry, weights, tmp_path, base=("A/Base",))
    assert report.matches[0].model == "a/base"
    assert report.matches[0].declared_base
    assert report.strongest_accusation is None
    assert scan(registry, weights, tmp_path).strongest_accusation is Confidence.CERTAIN


def test_registrations_of_the_same_weights_are_no_siblings_and_the_fullest_comes_first(tmp_path: Path) -> None:
    key = make_key(np.random.default_rng(1).bytes(32))
    path = save(model(1), tmp_path / "model.safetensors")
    with Registry.open(tmp_path / "registry") as registry, open_checkpoint(path) as checkpoint:
        registry.register(sign(quick_look(checkpoint).fingerprint), name="a/quick")
        plain = sign(fingerprint(checkpoint))
        registry.register(with_section(plain, keyed_section(checkpoint, key, plain)), name="z/keyed")
        registry.register(plain, name="b/plain")
        tuned = low_rank_change(model(1), 7, 0.05)
        for weights in (model(1), tuned):
            for depth in ("quick", "full"):
                report = scan(registry, weights, tmp_path, depth=depth)
                assert set(links(report).values()) == {Link.LINEAGE}
                assert list(links(report)) == ["b/plain", "z/keyed", "a/quick"]
        registry.register(sign_of(tuned, tmp_path), name="c/tuned")
        found = links(scan(registry, low_rank_change(model(1), 8, 0.05), tmp_path, depth="full"))
        assert found["c/tuned"] is Link.SIBLING


def sign_of(weights: Weights, folder: Path) -> Signature:
    with open_checkpoint(save(weights, folder / "other.safetensors")) as checkpoint:
        return sign(fingerprint(checkpoint))
