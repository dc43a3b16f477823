"""Products on a device of PyTorch: the same fingerprint within the rounding of float32, and an error without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from cli.main import run
from fingerprint import device
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import UsageError
from tests.small_models import model, save

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def torch_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every product on PyTorch's own processor device; the sizes of their left factors."""
    sizes: list[int] = []
    made = device.TorchDevice("cpu")

    class Counting:
        def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
            sizes.append(left.size)
            return made.product(left, right)

    monkeypatch.setattr(device, "LEAST", 1)
    monkeypatch.setattr(device, "chosen", Counting)
    return sizes


def test_the_fingerprint_is_the_same(torch_products: list[int], tmp_path: Path) -> None:
    path = save(model(1), tmp_path / "model.safetensors")
    with open_checkpoint(path) as checkpoint:
        found = fingerprint(checkpoint, casts=False)
        assert torch_products
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device, "chosen", lambda: None)
            wanted = fingerprint(checkpoint, casts=False)
    for one, other in zip(found.tensors, wanted.tensors, strict=True):
        assert (one.digest, one.content, one.statistics) == (other.digest, other.content, other.statistics)
        if one.sketch is not None and other.sketch is not None:
            assert np.linalg.norm(one.sketch - other.sketch) <= 1e-5 * np.linalg.norm(other.sketch)
    assert [one.frame for one in found.neurons] == [other.frame for other in wanted.neurons]
    for one, other in zip(found.neurons, wanted.neurons, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        assert np.linalg.norm(one.gate - other.gate) <= 1e-4 * np.linalg.norm(other.gate)


def test_factors_that_lie_elsewhere_are_not_mistaken_for_those_kept() -> None:
    made = device.TorchDevice("cpu")
    rng = np.random.default_rng(0)
    left = rng.normal(size=(50, 40)).astype(np.float32)
    for _ in range(30):
        right = rng.normal(size=(40, 8)).astype(np.float32)
        np.testing.assert_allclose(made.product(left, right), left @ right, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(made.product(left[:, :20], right[::2]), left[:, :20] @ right[::2], atol=1e-4)


@pytest.mark.parametrize("name", ["nonsense", "meta", "cuda:99", "hpu"])
def test_a_device_that_is_not_there_is_an_error_of_usage(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(device.VARIABLE, "")  # put back afterwards
    with pytest.raises(UsageError, match=f"no device {name}: "):
        device.TorchDevice(name)
    assert run(["scan", "--device", name, str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.startswith(f"fp: error: no device {name}: ")


def test_small_products_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.VARIABLE, "nonsense")
    small = np.ones((4, 4), np.float32)
    np.testing.assert_array_equal(device.product(small, small), small @ small)
    with pytest.raises(UsageError):
        device.product(np.ones((256, 256), np.float32), np.ones((256, 2), np.float32))
