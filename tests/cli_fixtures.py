"""Fixtures of the tests of the command line: a little zoo, a registry of it, and the program run in this process."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from safetensors.numpy import save_file

from cli.main import run
from tests.cli_support import Ran, Zoo, tuned, weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    folder = tmp_path_factory.mktemp("zoo")
    base = weights(1)
    models = {
        "base": base,
        "tuned": tuned(base, 2),
        "sibling": tuned(base, 3),
        "unrelated": weights(4),
        "other": weights(5),
    }
    for name, held in models.items():
        save_file(held, folder / f"{name}.safetensors")
    part = {f"renamed.{i}": value for i, (name, value) in enumerate(models["tuned"].items()) if "layers.1" in name}
    save_file(part, folder / "part.safetensors")
    # Cut off in its header: what is cut off behind it is read as far as it goes.
    (folder / "broken.safetensors").write_bytes((folder / "base.safetensors").read_bytes()[:100])
    registry = folder / "registry"
    for name, model in (("acme/base", "base"), ("acme/alias", "base"), ("other/model", "other")):
        assert (
            run(["register", str(folder / f"{model}.safetensors"), "--name", name, "--registry", str(registry), "-q"])
            == 0
        )

    def path(name: str) -> str:
        return str(folder / f"{name}.safetensors")

    return Zoo(
        folder,
        registry,
        *(path(name) for name in ("base", "tuned", "sibling", "unrelated", "part", "broken", "absent")),
    )


@pytest.fixture
def fp(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the program in this process, with the environment free of its variables."""
    for name in os.environ:
        if name.startswith("FP_") or name in {"NO_COLOR", "COLUMNS"}:
            monkeypatch.delenv(name)

    def call(*arguments: object, registry: Path | None = None, environment: dict[str, str] | None = None) -> Ran:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            for name, value in (environment or {}).items():
                patch.setenv(name, value)
            if registry is not None:
                patch.setenv("FP_REGISTRY", str(registry))
            status = run([str(one) for one in arguments])
        sys.stdout.flush()
        captured = capfd.readouterr()
        return Ran(int(status), captured.out, captured.err)

    return call


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who never registered anything."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path
