"""What is said of a rewritten model is what was done to it: each rewrite alone, all together, and training beside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from benchmarks.lineage import derive_ops
from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.zoo.models import generator
from benchmarks.zoo.recipes import STYLES, family
from benchmarks.zoo.store import load_weights, weights_path
from cli.console import Look
from cli.render.report_text import report_text
from cli.schemas import schema
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.records import TensorRecord, TensorStatistics
from fingerprint.vocabulary import Content, Role
from signatures.registry import Registry
from signatures.reordered import same_values
from signatures.report import Relation
from signatures.scan import scan_path
from signatures.signature import sign
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.zoo.models import Weights
    from signatures.report import Match

GPT2, BERT = "quick-a-gpt2-48-A", "quick-styles-bert-48-A"
SPECS = {spec.id: spec for spec in (*family("a", quick=True), *family(STYLES, quick=True))}
STORED = {"renamed", "reordered", "transposed", "split", "fused"}
"""What names, order and layout say, which every suspect lost."""

SAID = {
    GPT2: {
        "neurons-permuted": {"neurons-permuted"},
        "heads-permuted": {"heads-permuted"},
        "values-rescaled": {"values-rescaled"},
        "values-mixed": {"values-mixed"},
        "keys-changed": {"keys-changed"},
        "gains-folded": {"gains-folded"},
        "gains-scrambled": {"gains-changed"},
        "residual-permuted": {"residual-permuted"},
        "rotated": {"residual-rotated", "gains-folded"},
        "vocabulary-permuted": {"vocabulary-permuted"},
        "all-but-vocabulary": {
            "residual-rotated",
            "gains-changed",
            "neurons-permuted",
            "values-mixed",
            "keys-changed",
        },
        "all": {"residual-rotated", "gains-changed", "neurons-permuted", "vocabulary-moved"},
    },
    BERT: {
        "neurons-permuted": {"neurons-permuted"},
        "heads-permuted": {"heads-permuted"},
        "values-mixed": {"values-mixed"},
        "keys-changed": {"keys-changed"},
        "residual-permuted": {"residual-permuted"},
        "residual-negated": {"rescaled"},
        "vocabulary-permuted": {"vocabulary-permuted"},
        "all-but-vocabulary": {"residual-permuted", "neurons-permuted", "values-mixed", "keys-changed"},
        "all": {"residual-permuted", "neurons-permuted", "vocabulary-permuted"},
    },
}
CASES = [(stem, name) for stem, cases in SAID.items() for name in cases]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        GPT2: quick_zoo(tmp_path_factory, family("a", quick=True), [GPT2]),
        BERT: quick_zoo(tmp_path_factory, family(STYLES, quick=True), [BERT]),
    }


@pytest.fixture(scope="module")
def registry(zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry.open(tmp_path_factory.mktemp("registry") / "registry", create=True) as opened:
        for stem, folder in zoo.items():
            with open_checkpoint(weights_path(folder, stem)) as checkpoint:
                opened.register(sign(fingerprint(checkpoint, workers=1)), name=stem)
        yield opened


def rewritten(weights: Weights, stem: str, name: str) -> Weights:
    shape = SPECS[stem].shape
    case = next(one for one in rewrites(shape.style) if one.name == name)
    return rewrite(weights, shape, case, "test").tensors


def matched(registry: Registry, weights: Weights, stem: str, folder: Path) -> Match:
    """The match of a suspect without names."""
    path = folder / "suspect.safetensors"
    save_file({f"t{number}": weights[name].contiguous() for number, name in enumerate(sorted(weights))}, path)
    (match,) = scan_path(registry, path).matches
    assert match.model == stem
    return match


def tuned(weights: Weights, part: str = "") -> Weights:
    """Matrices with a name that has ``part`` in it with a tenth of their size added along a few directions."""
    random = generator("tuned")
    out = dict(weights)
    for name, w in weights.items():
        if w.ndim == 2 and part in name:
            change = torch.randn(len(w), 4, generator=random) @ torch.randn(4, w.shape[1], generator=random)
            out[name] = w + 0.1 * w.std() * change / change.std()
    return out


@pytest.mark.parametrize(("stem", "name"), CASES)
def test_a_rewrite_is_called_what_it_is(
    stem: str, name: str, zoo: dict[str, Path], registry: Registry, tmp_path: Path
) -> None:
    match = matched(registry, rewritten(load_weights(zoo[stem], stem), stem, name), stem, tmp_path)
    assert match.relation is Relation.REWRITTEN
    assert set(match.undone) - STORED == SAID[stem][name]
    measured = SAID[stem][name] - {"rescaled"}
    assert set(match.measured) == measured
    assert all(share > 0.9 for entry, share in match.measured.items() if entry != "heads-permuted")


@pytest.mark.parametrize("stem", [GPT2, BERT])
def test_nothing_done_is_no_rewrite(stem: str, zoo: dict[str, Path], registry: Registry, tmp_path: Path) -> None:
    match = matched(registry, load_weights(zoo[stem], stem), stem, tmp_path)
    assert match.relation is Relation.REFORMATTED
    assert not match.measured


@pytest.mark.parametrize("name", ["none", "heads-permuted", "values-mixed", "keys-changed", "residual-permuted"])
@pytest.mark.parametrize("stem", [GPT2, BERT])
def test_a_trained_copy_is_not_only_rewritten(
    stem: str, name: str, zoo: dict[str, Path], registry: Registry, tmp_path: Path
) -> None:
    match = matched(registry, rewritten(tuned(load_weights(zoo[stem], stem)), stem, name), stem, tmp_path)
    assert match.relation is Relation.FINE_TUNED
    assert set(match.measured) == {"none": set(), "residual-permuted": {"residual-moved"}}.get(name, {name})


def test_trained_attention_is_fine_tuned(zoo: dict[str, Path], registry: Registry, tmp_path: Path) -> None:
    match = matched(registry, tuned(load_weights(zoo[GPT2], GPT2), "c_attn"), GPT2, tmp_path)
    assert match.relation is Relation.FINE_TUNED
    assert not match.measured


@pytest.mark.parametrize("name", ["heads-permuted", "all-but-vocabulary"])
def test_rounding_after_a_rewrite_shows(name: str, zoo: dict[str, Path], registry: Registry, tmp_path: Path) -> None:
    made = rewritten(load_weights(zoo[BERT], BERT), BERT, name)
    rounded = derive_ops.quantise(made, SPECS[BERT].shape.style, 4, 32, symmetric=False)
    match = matched(registry, rounded, BERT, tmp_path)
    assert match.relation is Relation.QUANTISED
    assert "quantised-4-bit" in match.undone


def test_the_share_stands_beside_what_was_undone(zoo: dict[str, Path], registry: Registry, tmp_path: Path) -> None:
    made = rewritten(load_weights(zoo[GPT2], GPT2), GPT2, "keys-changed")
    matched(registry, made, GPT2, tmp_path)
    report = scan_path(registry, tmp_path / "suspect.safetensors")
    text = report_text(report, Look())
    assert "keys-changed (100%)" in text
    assert max(map(len, text.splitlines()[1:])) <= 80
    (found,) = json.loads(json.dumps(report.to_json()))["matches"]
    assert found["measured"] == {"keys-changed": 1.0}
    listed = schema("fp.scan/1")["properties"]["matches"]["items"]["properties"]
    assert listed["measured"]["additionalProperties"]["maximum"] == 1


def record(**changes: Any) -> TensorRecord:
    statistics = replace(TensorStatistics(0.01, 1.0, 4.0, 3.1, 0.0, 0, 0), **changes)
    return TensorRecord(
        "w", Role.OTHER, None, None, (40, 60), True, "F32", Content.WEIGHTS, b"", {}, statistics, None, ()
    )


@pytest.mark.parametrize("changed", [{"deviation": 1.001}, {"largest": 4.01}, {"kurtosis": 3.11}, {"mean": 0.02}])
def test_values_are_the_same_in_any_order_and_orientation_but_no_others(changed: dict[str, Any]) -> None:
    assert same_values(record(), replace(record(deviation=1 + 1e-8), shape=(60, 40)))
    assert same_values(record(), record(mean=-0.01))
    assert not same_values(record(), record(**changed))
    assert not same_values(record(), replace(record(), shape=(30, 80)))
