"""The same weights in every container, each written by its library, have the same digests; and quantised layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from benchmarks.containers.plain import PLAIN
from benchmarks.corpus_pairs import command
from fingerprint.checkpoint import open_checkpoint
from fingerprint.measure import measure_digest
from fingerprint.parameters import Parameters

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, NEURONS = 24, 40


def bert_state() -> dict[str, torch.Tensor]:
    """A tiny BERT of one layer, under the names of Hugging Face."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (50, WIDTH), "embeddings.position_embeddings.weight": (16, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }  # fmt: skip
    layer = "encoder.layer.0"
    linear = {f"{layer}.attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
    linear |= {f"{layer}.attention.output.dense": (WIDTH, WIDTH), f"{layer}.intermediate.dense": (NEURONS, WIDTH)}
    linear |= {f"{layer}.output.dense": (WIDTH, NEURONS), "pooler.dense": (WIDTH, WIDTH)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        shapes |= {f"{name}.LayerNorm.weight": (WIDTH,), f"{name}.LayerNorm.bias": (WIDTH,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


STATE = bert_state()


def digests(path: Path) -> list[bytes]:
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.complete
        return sorted(measure_digest(tensor, Parameters()) for tensor in checkpoint.tensors)


@pytest.mark.parametrize("title", PLAIN)
def test_every_container_has_the_digests_of_the_weights(title: str, tmp_path: Path) -> None:
    (tmp_path / "wanted").mkdir()
    (tmp_path / "found").mkdir()
    wanted = digests(PLAIN["safetensors"](STATE, tmp_path / "wanted"))
    assert len(set(wanted)) == len(STATE)
    assert digests(PLAIN[title](STATE, tmp_path / "found")) == wanted


def test_embeddings_in_half_precision_do_not_hide_that_the_layers_are_quantised(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    table = random.normal(0, 0.05, (900, 64)).astype(np.float32)
    layers = {f"layers.{n}.mlp.up.weight": random.normal(0, 0.05, (64, 64)).astype(np.float32) for n in range(6)}
    save_file({"embed.weight": table, **layers}, tmp_path / "ours.safetensors")
    stored: dict[str, np.ndarray] = {"embed.weight": table.astype(np.float16)}
    for name, weight in layers.items():
        scale = np.abs(weight).max(1, keepdims=True) / 7
        stored |= {name: np.round(weight / scale).astype(np.int8), f"{name}_scale": scale}
    save_file(stored, tmp_path / "theirs.safetensors")
    (report,) = command("compare", str(tmp_path / "ours.safetensors"), str(tmp_path / "theirs.safetensors"))
    (match,) = report["matches"]
    assert match["confidence"] == "certain"
    assert match["relation"] == "quantised"
    assert "cast-to-f16" in match["undone"]
