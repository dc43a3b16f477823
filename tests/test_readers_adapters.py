"""Adapters: products as PEFT's published formula has them, whatever range asks for them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fingerprint.checkpoint import Checkpoint, open_checkpoint
from fingerprint.dtypes import F32, to_float32
from fingerprint.readers import adapters
from fingerprint.readers.adapters import LowRank
from fingerprint.readers.base import StoredTensor
from fingerprint.source import MemorySource

if TYPE_CHECKING:
    from pathlib import Path

Q = "base_model.model.model.layers.0.self_attn.q_proj"
V = "base_model.model.model.layers.0.self_attn.v_proj"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def adapter(folder: Path, state: dict[str, torch.Tensor], *, torch_file: bool = False, **config: Any) -> Checkpoint:
    """A folder as PEFT writes it."""
    if torch_file:
        torch.save(state, folder / "adapter_model.bin")
    else:
        save_file(state, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "base_model_name_or_path": "org/base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return open_checkpoint(folder)


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {t.name: to_float32(t.read(0, math.prod(t.shape))).reshape(t.shape) for t in checkpoint.tensors}


def codes(checkpoint: Checkpoint) -> set[str]:
    return {finding.code for finding in checkpoint.findings}


def linear(module: str = Q, rank: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": noise(rank, 24).to(dtype),
        f"{module}.lora_B.weight": noise(40, rank, seed=1).to(dtype),
    }


def product(state: dict[str, torch.Tensor], module: str = Q) -> np.ndarray:
    wanted = state[f"{module}.lora_B.weight"].double() @ state[f"{module}.lora_A.weight"].double()
    return wanted.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("torch_file", [True, False])
def test_product_has_the_name_of_the_base_and_the_scale_of_the_config(
    dtype: torch.dtype, torch_file: bool, tmp_path: Path
) -> None:
    state = linear(dtype=dtype)
    with adapter(tmp_path, state, torch_file=torch_file) as checkpoint:
        [tensor] = checkpoint.tensors
        assert tensor.name == "model.layers.0.self_attn.q_proj.weight"
        assert (tensor.shape, tensor.dtype.name) == ((40, 24), "LORA")
        np.testing.assert_allclose(values(checkpoint)[tensor.name], 4 * product(state), rtol=1e-6, atol=1e-6)
        assert codes(checkpoint) == {"adapter"}
        assert checkpoint.complete
        assert checkpoint.metadata["adapter.base_model_name_or_path"] == "org/base"


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    state = linear()
    with adapter(tmp_path, state, use_rslora=True) as checkpoint:
        [array] = values(checkpoint).values()
        np.testing.assert_allclose(array, 8 * product(state), rtol=1e-6, atol=1e-6)


def test_ranks_and_scales_of_single_modules(tmp_path: Path) -> None:
    state = linear() | linear(V, 8)
    with adapter(tmp_path, state, rank_pattern={"v_proj": 8}, alpha_pattern={"v_proj": 2, "(a+)+$": 9}) as checkpoint:
        found = values(checkpoint)
        q, v = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.weight"
        np.testing.assert_allclose(found[q], 4 * product(state), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found[v], 0.25 * product(state, V), rtol=1e-6, atol=1e-6)
        assert codes(checkpoint) == {"adapter", "adapter-scale"}


def test_transposed_base(tmp_path: Path) -> None:
    state = linear()
    with adapter(tmp_path, state, fan_in_fan_out=True) as checkpoint:
        [array] = values(checkpoint).values()
        np.testing.assert_allclose(array, 4 * product(state).T, rtol=1e-6, atol=1e-6)


def test_embedding(tmp_path: Path) -> None:
    module = "base_model.model.model.embed_tokens"
    first, second = noise(4, 50), noise(24, 4)
    state = {f"{module}.lora_embedding_A": first, f"{module}.lora_embedding_B": second}
    with adapter(tmp_path, state) as checkpoint:
        wanted = 4 * (second.double() @ first.double()).T.numpy()
        found = values(checkpoint)
        assert list(found) == ["model.embed_tokens.weight"]
        np.testing.assert_allclose(found["model.embed_tokens.weight"], wanted, rtol=1e-6, atol=1e-6)


def test_convolution(tmp_path: Path) -> None:
    first, second = noise(4, 6, 3, 3), noise(10, 4, 1, 1)
    state = {f"{Q}.lora_A.weight": first, f"{Q}.lora_B.weight": second}
    with adapter(tmp_path, state) as checkpoint:
        wanted = 4 * torch.einsum("or,rikl->oikl", second[:, :, 0, 0].double(), first.double()).numpy()
        [array] = values(checkpoint).values()
        np.testing.assert_allclose(array, wanted, rtol=1e-6, atol=1e-6)


def test_magnitudes_biases_and_whole_modules_are_kept(tmp_path: Path) -> None:
    state = linear() | {
        f"{Q}.lora_magnitude_vector": noise(40),
        f"{Q}.bias": noise(41),
        "base_model.model.lm_head.weight": noise(5, 24),
    }
    with adapter(tmp_path, state, use_dora=True) as checkpoint:
        assert set(values(checkpoint)) == {
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
            "model.layers.0.self_attn.q_proj.bias",
            "lm_head.weight",
        }
        assert codes(checkpoint) == {"adapter", "adapter-magnitudes"}


@pytest.mark.parametrize(("down", "up"), [("lora_down", "lora_up"), ("lora.down", "lora.up")])
def test_pairs_of_other_trainers(down: str, up: str, tmp_path: Path) -> None:
    first, second = noise(4, 24), noise(40, 4)
    state = {f"unet_q.{down}.weight": first, f"unet_q.{up}.weight": second, "unet_q.alpha": torch.tensor(2.0)}
    save_file(state, tmp_path / "lora.safetensors")
    with open_checkpoint(tmp_path / "lora.safetensors") as checkpoint:
        found = values(checkpoint)
        assert list(found) == ["unet_q.weight"]
        wanted = 0.5 * (second.double() @ first.double()).numpy()
        np.testing.assert_allclose(found["unet_q.weight"], wanted, rtol=1e-6, atol=1e-6)
        assert codes(checkpoint) == {"adapter"}


def test_file_without_its_config_has_no_scale(tmp_path: Path) -> None:
    state = linear()
    save_file(state, tmp_path / "adapter_model.safetensors")
    with open_checkpoint(tmp_path / "adapter_model.safetensors") as checkpoint:
        [array] = values(checkpoint).values()
        np.testing.assert_allclose(array, product(state), rtol=1e-6, atol=1e-6)
        assert codes(checkpoint) == {"adapter", "adapter-scale"}


def test_factors_that_do_not_fit_are_left_as_they_are(tmp_path: Path) -> None:
    state = linear() | {f"{V}.lora_A.weight": noise(4, 24), f"{V}.lora_B.weight": noise(40, 5)}
    state |= {"alone.lora_A.weight": noise(4, 24)}
    with adapter(tmp_path, state) as checkpoint:
        assert set(values(checkpoint)) == {
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.v_proj.lora_A.weight",
            "model.layers.0.self_attn.v_proj.lora_B.weight",
            "alone.lora_A.weight",
        }
        assert codes(checkpoint) == {"adapter", "adapter-factors"}


def test_small_factors_of_a_huge_product_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MAX_PRODUCTS", 900)
    with adapter(tmp_path, linear()) as checkpoint:
        assert len(checkpoint.tensors) == 2
        assert codes(checkpoint) == {"adapter-factors"}


@pytest.mark.parametrize("alpha", ["nan", 1e300, "x", None, 0, [1]])
def test_hostile_scales_are_not_used(alpha: Any, tmp_path: Path) -> None:
    with adapter(tmp_path, linear(), lora_alpha=alpha) as checkpoint:
        assert "adapter-scale" in codes(checkpoint)
        assert np.isfinite(next(iter(values(checkpoint).values()))).all()


def view(rows: int, rank: int, columns: int) -> tuple[LowRank, np.ndarray]:
    random = np.random.default_rng(rows + rank)
    up = random.normal(size=(rows, rank)).astype(np.float32)
    down = random.normal(size=(rank, columns)).astype(np.float32)
    stored = [StoredTensor("x", F32, a.shape, MemorySource(a.tobytes()), 0) for a in (up, down)]
    return LowRank("w", (rows, columns), stored[0], stored[1], 0.5), 0.5 * (up.astype(float) @ down.astype(float))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 50), st.sampled_from([1 << 21, 40]), st.data())
def test_an_element_is_the_same_whatever_range_asks_for_it(
    rows: int, rank: int, columns: int, tile: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "_TILE", tile)
        tensor, wanted = view(rows, rank, columns)
        whole = tensor.read(0, rows * columns)
        np.testing.assert_allclose(whole, wanted.reshape(-1), rtol=1e-5, atol=1e-6)
        start = data.draw(st.integers(0, whole.size))
        stop = data.draw(st.integers(start, whole.size))
        assert tensor.read(start, stop).tobytes() == whole[start:stop].tobytes()


def test_ranges_outside_are_refused() -> None:
    tensor, _ = view(3, 2, 4)
    for start, stop in ((-1, 0), (0, 13), (2, 1)):
        with pytest.raises(IndexError):
            tensor.read(start, stop)
