"""Branches of residual networks: which kernels meet, and coordinates that no order and no scale of channels changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.units import residual
from benchmarks.units.networks import Kind
from benchmarks.units.rewrites import REWRITES, rewrite
from fingerprint.assemble import measure_checkpoint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.gauge import branches
from fingerprint.gauge.branches import _factors
from fingerprint.gauge.unit_rows import composed_shape
from tests.test_units import network

if TYPE_CHECKING:
    from pathlib import Path

INSIDE = {(f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.conv2") for stage in (1, 2) for block in (0, 1)}
STREAM = {("layer2.0.downsample.0", "layer2.0.conv2"), ("layer2.0.downsample.0", "fc")}


def pairs(
    weights: dict[str, torch.Tensor], path: Path, names: dict[str, str] | None = None, *, registered: bool = False
) -> set[tuple[str, str]]:
    """The kernels in front of and behind the units that are sampled, by their true names."""
    true = names or {name: name for name in weights}
    save_file({given: weights[name].contiguous() for given, name in true.items()}, path)
    with open_checkpoint(path) as checkpoint:
        measured = measure_checkpoint(checkpoint, casts=registered, deep=False, workers=1)
    name = [true[tensor.name].removesuffix(".weight") for tensor in measured.tensors]
    return {(name[one.tensors[0]], name[one.tensors[2]]) for one in measured.fingerprint.neurons}


@pytest.mark.parametrize("how", REWRITES[Kind.RESNET])
def test_kernels_that_meet_are_told_by_their_channels(how: str, tmp_path: Path) -> None:
    weights, _ = rewrite(network(Kind.RESNET, 1), Kind.RESNET, REWRITES[Kind.RESNET][how], "test")
    assert pairs(weights, tmp_path / "named.safetensors") == INSIDE | STREAM
    shuffled = sorted(weights, key=lambda name: name[::-1])
    names = {f"t{number}": name for number, name in enumerate(shuffled)}
    assert pairs(weights, tmp_path / "nameless.safetensors", names) == INSIDE | STREAM


def bottleneck() -> dict[str, torch.Tensor]:
    """Two blocks of three kernels, with a shortcut, whose channels resemble each other space by space."""
    random = torch.Generator().manual_seed(0)

    def space(size: int) -> torch.Tensor:
        return torch.randn(size, 6, generator=random)

    def kernel(written: torch.Tensor, read: torch.Tensor, side: int) -> torch.Tensor:
        mixing = torch.randn(6, 6, side, side, generator=random)
        made = torch.einsum("of,fgxy,ig->oixy", written, mixing, read)
        return made + made.std() * torch.randn(made.shape, generator=random)

    first, stream = space(32), space(64)
    weights = {"conv1": kernel(first, space(3), 3), "layer1.0.downsample.0": kernel(stream, first, 1)}
    for number, read in enumerate((first, stream)):
        near, far = space(16), space(24)
        block = f"layer1.{number}"
        weights |= {f"{block}.conv1": kernel(near, read, 1), f"{block}.conv2": kernel(far, near, 3)}
        weights[f"{block}.conv3"] = kernel(stream, far, 1)
    weights["fc"] = torch.randn(10, 64, generator=random)
    return {f"{name}.weight": w for name, w in weights.items()}


def test_a_branch_may_have_spaces_one_behind_the_other(tmp_path: Path) -> None:
    blocks = [f"layer1.{number}" for number in (0, 1)]
    inside = {(f"{one}.conv{i}", f"{one}.conv{i + 1}") for one in blocks for i in (1, 2)}
    stream = {("layer1.0.downsample.0", "layer1.0.conv3"), ("layer1.0.downsample.0", "fc")}
    assert pairs(bottleneck(), tmp_path / "bottleneck.safetensors") == inside | stream


def separable() -> dict[str, torch.Tensor]:
    """Two blocks that widen the stream, look at each channel alone, and narrow it: nothing tells who meets there."""
    random = torch.Generator().manual_seed(0)
    stream, mixing = torch.randn(24, 6, generator=random), torch.randn(6, 3, 3, 3, generator=random)
    weights = {"features.0.weight": torch.einsum("of,fixy->oixy", stream, mixing)}
    for block in (1, 2):
        wide, narrow = (torch.randn(64, 6, generator=random) for _ in range(2))
        one = f"features.{block}.conv"
        weights[f"{one}.0.weight"] = (wide @ stream.T + torch.randn(64, 24, generator=random))[:, :, None, None]
        weights[f"{one}.3.weight"] = torch.randn(64, 1, 3, 3, generator=random)
        weights[f"{one}.6.weight"] = (stream @ narrow.T + torch.randn(24, 64, generator=random))[:, :, None, None]
    return weights


def test_where_nothing_tells_the_order_of_names_does_or_all_pairs_are_tried(tmp_path: Path) -> None:
    weights = separable()
    inside = {(f"features.{block}.conv.0", f"features.{block}.conv.6") for block in (1, 2)}
    crossed = {("features.1.conv.0", "features.2.conv.6"), ("features.2.conv.0", "features.1.conv.6")}
    registered = pairs(weights, tmp_path / "named.safetensors", registered=True)
    assert inside <= registered
    assert not crossed & registered
    names = {f"t{number}": name for number, name in enumerate(sorted(weights, key=lambda name: name[::-1]))}
    assert inside | crossed <= pairs(weights, tmp_path / "nameless.safetensors", names)


def test_a_balanced_kernel_is_the_same_whatever_its_rows_and_columns_were_multiplied_by() -> None:
    random = np.random.default_rng(0)
    kernel = random.normal(size=(24, 32)) ** 2
    rows, columns = _factors(kernel)
    balanced = kernel * np.outer(rows, columns) ** 2
    np.testing.assert_allclose(balanced.sum(axis=0), balanced.sum(axis=0).mean(), rtol=1e-6)
    np.testing.assert_allclose(balanced.sum(axis=1), balanced.sum(axis=1).mean(), rtol=1e-6)
    scaled = kernel * np.outer(np.exp(random.normal(size=24)), np.exp(random.normal(size=32)))
    rows, columns = _factors(scaled)
    again = scaled * np.outer(rows, columns) ** 2
    np.testing.assert_allclose(again / again.sum(), balanced / balanced.sum(), rtol=1e-5)


def test_of_dead_channels_nothing_is_made(tmp_path: Path) -> None:
    weights = network(Kind.RESNET, 1)
    weights["layer1.0.conv1.weight"][:5] = 0.0
    weights["layer1.0.conv2.weight"][:, :5] = 0.0
    assert pairs(weights, tmp_path / "dead.safetensors") >= INSIDE
    weights["layer1.0.conv1.weight"][:] = 0.0
    assert INSIDE - {("layer1.0.conv1", "layer1.0.conv2")} <= pairs(weights, tmp_path / "deader.safetensors")


def test_numbers_that_are_not_finite_harm_no_other_kernel(tmp_path: Path) -> None:
    weights = network(Kind.RESNET, 1)
    weights["layer1.0.conv1.weight"][3] = float("nan")
    weights["layer1.1.conv1.weight"][3] = 1e30
    assert {pair for pair in INSIDE if "layer2" in pair[0]} <= pairs(weights, tmp_path / "bad.safetensors")


def test_kernels_without_a_way_from_the_input_give_nothing(tmp_path: Path) -> None:
    weights = {name: w for name, w in network(Kind.RESNET, 1).items() if not name.startswith(("conv1", "bn1"))}
    assert not pairs(weights, tmp_path / "headless.safetensors")


def test_no_more_kernels_are_read_than_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "MOST_NUMBERS", 40_000)
    found = pairs(network(Kind.RESNET, 1), tmp_path / "some.safetensors")
    assert found
    assert found <= INSIDE | STREAM | {("layer1.0.conv2", "layer1.1.conv1")}
    assert not any("layer2" in first for first, _ in found)


@pytest.mark.parametrize("shape", [(16, 1, 3, 3), (32, 32, 3), (16, 16, 1, 1), (17, 300, 3, 3)])
def test_odd_kernels_are_no_error(shape: tuple[int, ...], tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    weights = {f"w{number}.weight": torch.randn(shape, generator=random) for number in range(3)}
    pairs(weights, tmp_path / "odd.safetensors")


def test_the_benchmark_knows_every_kernel() -> None:
    """Each writes one space and reads one, but for what reads the picture."""
    weights = network(Kind.RESNET, 1)
    writers, readers = (sorted(name for space in residual.spaces(weights) for name in space[side]) for side in (0, 1))
    kernels = sorted(name.removesuffix(".weight") for name, w in weights.items() if w.ndim == 4)
    assert writers == kernels
    assert readers == sorted([*(name for name in kernels if name != "conv1"), "fc"])


def test_compositions_are_bounded_by_their_size_and_by_their_products() -> None:
    assert composed_shape((64, 32, 3, 3), (32, 3, 5, 5)) == (64, 3, 7, 7)
    assert composed_shape((64, 64, 11, 11), (64, 8, 31, 31)) is None  # 7 billion products
    assert composed_shape((512, 16, 1, 1), (16, 16, 64, 64)) is None  # 34 million numbers
