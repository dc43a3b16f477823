"""The benchmark of vision transformers: rewrites that keep the function, published names, one scan of each kind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.rewrites.cases import rewrites
from benchmarks.rewrites.forward import layer_count
from benchmarks.units.networks import pictures
from benchmarks.units.run import BASE, write_disguised
from benchmarks.vit.__main__ import ALL, damages, page, rewritten, suspects
from benchmarks.vit.model import SHAPE, SIDE, initial, logits, published, train
from benchmarks.zoo.models import Style, generator
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.vocabulary import Role
from signatures.registry import Registry
from signatures.report import Verdict
from signatures.scan import scan_path
from signatures.signature import sign

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.zoo.models import Weights


def model(seed: int) -> Weights:
    """Untrained, with gains and biases that are not all one and zero."""
    random = generator(f"test/vit/{seed}")
    return {
        name: w + 0.2 * torch.randn(w.shape, generator=random) if w.ndim == 1 else w
        for name, w in initial(f"test/vit/{seed}/init").items()
    }


@pytest.fixture(scope="module")
def trained() -> list[Weights]:
    return [train(f"test/vit/{seed}", steps=40) for seed in (0, 1)]


@pytest.mark.parametrize("name", [one.name for one in rewrites(Style.GPT2) if not one.tokens])
def test_every_rewrite_computes_the_same(name: str) -> None:
    made, error = rewritten(model(0), name, f"test/{name}")
    assert error < 1e-4
    assert any(not torch.equal(w, made[key]) for key, w in model(0).items()) is (name != "none")


def test_a_rewrite_that_changes_the_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.vit.__main__.difference", lambda *_: 0.1)
    with pytest.raises(ArithmeticError, match="logits differ"):
        rewritten(model(0), "none", "test")


def test_training_learns_and_damage_can_be_computed(trained: list[Weights]) -> None:
    weights = trained[0]
    images, wanted = pictures(64, generator("test/vit/pictures"), side=SIDE)
    losses = [torch.nn.functional.cross_entropy(logits(w, images), wanted) for w in (initial("x"), weights)]
    assert losses[1] < losses[0]
    for name, apply in damages(steps=2).items():
        made = apply(weights, f"test/{name}")
        assert logits(made, images[:2]).isfinite().all(), name
        assert layer_count(Style.GPT2, made) == (SHAPE.layers // 2 if name == "layers-dropped" else SHAPE.layers)


def test_published_models_have_the_roles_of_vits(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(published(model(0)), path)
    with open_checkpoint(path) as checkpoint:
        found = fingerprint(checkpoint, workers=1, deep=False)
    roles = Counter(tensor.role for tensor in found.tensors)
    assert roles[Role.FC_IN] == roles[Role.QUERY] == roles[Role.ATTENTION_OUTPUT] == SHAPE.layers
    assert roles[Role.POSITION_EMBEDDING] == 1
    assert len(published(model(0))) == 8 + 16 * SHAPE.layers


def test_a_laundered_model_without_names_is_found_and_another_seed_is_not(
    trained: list[Weights], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    with Registry.open(tmp_path / "registry") as registry:
        save_file(published(trained[0]), path)
        with open_checkpoint(path) as checkpoint:
            registry.register(sign(fingerprint(checkpoint, workers=1)), name=BASE)
        verdicts = []
        for weights in trained:
            write_disguised(path, published(rewritten(weights, ALL, "test")[0]), torch.float32, "test")
            verdicts.append(scan_path(registry, path).verdict)
    assert verdicts == [Verdict.MATCH, Verdict.NO_MATCH]


def test_every_part_of_the_page_has_its_suspects() -> None:
    made = list(suspects([model(0), model(1), model(2)], model(3), steps=0))
    counts = Counter((part, damage) for part, _, _, damage, _, _ in made)
    assert counts["descends", "intact"] == counts["sibling", "intact"] == len(rewrites(Style.GPT2)) - 2
    assert counts["descends", "continued"] == 1
    assert {source for part, source, *_ in made if part == "look-alike"} == {"A-drawn", "A-shuffled", "seed2"}
    said = {"verdict": "no-match", "first": "", "found": True, "confidence": "", "test": "", "log10_p": 0.0}
    rows = [{"part": p, "source": s, "rewrite": r, "damage": d, "concordance": 0.0} | said for p, s, r, d, _, _ in made]
    text = page(rows)
    assert text.count("| no-match |") == len(made)
    rows[0] |= {"found": False}
    assert "**no-match**" in page(rows)
