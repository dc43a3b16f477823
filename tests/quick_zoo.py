"""Quick models of the zoo, trained once in a run of the tests, whichever modules and workers want them."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

from benchmarks.zoo.store import build

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from benchmarks.zoo.recipes import Spec


def quick_zoo(factory: pytest.TempPathFactory, specs: Sequence[Spec], wanted: Sequence[str]) -> Path:
    """A folder of its own with the models ``wanted`` and those that they were made from or trained together with."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "zoo-of-all"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with FileLock(f"{shared}.lock"):
        build(shared, specs, wanted, lambda _: None)
        folder = factory.mktemp("zoo")
        for path in shared.iterdir():
            if path.stem in _with_relatives(specs, wanted) or path.name.startswith("tokenizer-"):
                shutil.copy(path, folder)
    torch.set_num_threads(threads)
    return folder


def _with_relatives(specs: Sequence[Spec], wanted: Sequence[str]) -> set[str]:
    needed = set(wanted)
    for spec in reversed(specs):
        if spec.id in needed:
            needed.update(spec.parents)
            needed.update(one.id for one in specs if spec.group and one.group == spec.group)
    return needed
