"""Transformers whose stream was rotated and whose tensors were all renamed are found end to end; strangers are not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.rewrites.forward import logits
from benchmarks.rewrites.make import make_all, plan
from benchmarks.zoo import models as zoo_models
from benchmarks.zoo.models import Style, generator, initial_weights
from benchmarks.zoo.recipes import STYLES, family
from benchmarks.zoo.store import weights_path
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.vocabulary import Frame, Role
from signatures.registry import Registry
from signatures.report import Confidence, Link, Verdict
from signatures.scan import scan_path
from signatures.signature import sign
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from signatures.report import Report

STEM = "quick-a-llama-48"
STYLED = {spec.shape.style: spec for spec in family(STYLES, quick=True) if spec.id.endswith("-A")}
CASES = [(style, one) for style in (Style.GEMMA, Style.BERT) for one in rewrites(style)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_zoo(tmp_path_factory, family("a", quick=True), [f"{STEM}-A", f"{STEM}-B"])


@pytest.fixture(scope="module")
def registry(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with Registry.open(folder / "registry", create=True) as opened:
        with open_checkpoint(weights_path(zoo, f"{STEM}-A")) as checkpoint:
            opened.register(sign(fingerprint(checkpoint, workers=1)), name="ours/A")
        yield opened


def suspect(zoo: Path, source: str, case: str, damage: str, folder: Path) -> Path:
    jobs = plan("a", quick=True, models=[STEM], sources=[source], only=[case], after=[damage])
    make_all(zoo, jobs, folder / "out", family_name="a", quick=True)
    (path,) = (folder / "out" / "suspects").iterdir()
    return path


def scanned(registry: Registry, path: Path) -> Report:
    report = scan_path(registry, path)
    assert all(match.link is Link.LINEAGE for match in report.matches)
    return report


@pytest.mark.parametrize(
    ("case", "damage", "confidence", "undone"),
    [
        ("laundered", "4bit", Confidence.CERTAIN, {"residual-rotated", "neurons-permuted", "gains-folded"}),
        ("all-but-vocabulary", "intact", Confidence.LIKELY, {"residual-rotated", "signs-scrambled"}),
        ("all", "fine-tuned", Confidence.LIKELY, {"residual-rotated", "vocabulary-permuted", "signs-scrambled"}),
    ],
)
def test_a_renamed_and_rotated_model_is_found(
    case: str, damage: str, confidence: Confidence, undone: set[str], zoo: Path, registry: Registry, tmp_path: Path
) -> None:
    report = scanned(registry, suspect(zoo, "A", case, damage, tmp_path))
    assert report.verdict is Verdict.MATCH
    assert [match.model for match in report.matches] == ["ours/A"]
    assert report.matches[0].confidence is confidence
    assert undone <= set(report.matches[0].undone)


@pytest.mark.parametrize("case", ["laundered", "all"])
def test_a_look_alike_is_not(case: str, zoo: Path, registry: Registry, tmp_path: Path) -> None:
    report = scanned(registry, suspect(zoo, "B", case, "intact", tmp_path))
    assert report.verdict is Verdict.NO_MATCH
    assert report.matches == ()


@pytest.mark.parametrize(("source", "found"), [("A", True), ("B", False)])
def test_one_renamed_and_rotated_mlp_is_found(
    source: str, found: bool, zoo: Path, registry: Registry, tmp_path: Path
) -> None:
    whole = suspect(zoo, source, "laundered", "intact", tmp_path)
    truth = json.loads((tmp_path / "out" / "truth" / "truth.json").read_text())["suspects"]
    was = next(iter(truth.values()))["tensors"]
    save_file({name: w for name, w in load_file(whole).items() if ".2.mlp." in was[name]}, tmp_path / "part")
    report = scanned(registry, tmp_path / "part")
    assert [match.model for match in report.matches] == (["ours/A"] if found else [])


def test_tables_and_attention_get_their_roles_by_values(zoo: Path, tmp_path: Path) -> None:
    with open_checkpoint(suspect(zoo, "A", "rotated", "intact", tmp_path)) as checkpoint:
        found = fingerprint(checkpoint, casts=False, workers=1)
    roles = [tensor.role for tensor in found.tensors]
    layers = STYLED[Style.GEMMA].shape.layers
    assert roles.count(Role.TOKEN_EMBEDDING) == roles.count(Role.OUTPUT_HEAD) == 1
    assert roles.count(Role.VALUE) >= layers
    assert {sample.frame for sample in found.neurons} == {Frame.FIXED, Frame.ANCHORS, Frame.SELF}
    assert found.channels


@pytest.mark.parametrize(("style", "case"), CASES, ids=lambda value: getattr(value, "name", value))
def test_rewrites_of_other_styles_keep_the_function(style: Style, case: object) -> None:
    shape = STYLED[style].shape
    weights = {
        name: w + 0.1 * torch.randn(w.shape, generator=generator(name)) if w.ndim == 1 else 5 * w
        for name, w in initial_weights(shape, "test").items()
    }
    made = rewrite(weights, shape, case, "test")
    assert made.error < 1e-5
    changed = [name for name in weights if not torch.equal(weights[name], made.tensors[name])]
    assert bool(changed) == bool(case.steps or case.tokens)


@pytest.mark.parametrize("style", [Style.GEMMA, Style.BERT])
def test_the_forward_pass_of_other_styles_agrees_with_the_zoo(style: Style) -> None:
    shape = STYLED[style].shape
    weights = initial_weights(shape, "test")
    ids = torch.randint(0, shape.vocabulary, (2, 20), generator=generator("test"))
    theirs = zoo_models.logits(shape, {name: w[None] for name, w in weights.items()}, ids[None])[0]
    assert torch.allclose(logits(shape, weights, ids).flatten(0, 1), theirs, atol=1e-4)
