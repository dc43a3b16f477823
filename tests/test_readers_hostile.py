"""Hostile checkpoints: one clear error or an honest finding each, little memory, and nothing executed."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest

import fingerprint.errors
from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import InputError
from tests.hostile import CANARY, CASES, Case, Expect

if TYPE_CHECKING:
    from pathlib import Path

MAX_MEMORY = 150 << 20
"""Bytes that Python may take beyond what it has when a case is opened."""
UNTRACED = ("2**18", "2**30 ways", "MB of", " million", "2**17")
"""Cases of millions of small steps, which tracing slows down too much; benchmarks measure their memory."""


def examine(path: Path) -> tuple[bool, set[str]]:
    """Opens a checkpoint and reads the beginning of each tensor; completeness and the codes of the findings."""
    with open_checkpoint(path) as checkpoint:
        for tensor in checkpoint.tensors:
            count = min(math.prod(tensor.shape), 1000)
            assert tensor.read(0, count).size == count
        return checkpoint.complete, {finding.code for finding in checkpoint.findings}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_case_is_refused_or_reported(case: Case, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    if case.expect is Expect.ERROR:
        with pytest.raises(InputError) as caught:
            examine(path)
        assert type(caught.value) is getattr(fingerprint.errors, case.detail)
        message = str(caught.value).replace(str(path), "PATH")
        assert message.isprintable()
        assert len(message) < 1000
    else:
        complete, codes = examine(path)
        assert complete is (case.expect is not Expect.PARTIAL)
        assert not case.detail or case.detail in codes
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("case", [c for c in CASES if not any(s in c.name for s in UNTRACED)], ids=lambda c: c.name)
def test_hostile_case_takes_little_memory(case: Case, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    tracemalloc.start()
    try:
        examine(path)
    except InputError:
        assert case.expect is Expect.ERROR
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MAX_MEMORY


def test_names_of_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


UNPICKLE = """
import io, pickle, sys, zipfile

class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if module.startswith("torch"):
            raise ImportError(module)
        return super().find_class(module, name)

for path in sys.argv[1:]:
    try:
        Unpickler(io.BytesIO(zipfile.ZipFile(path).read("archive/data.pkl"))).load()
    except Exception:
        pass
"""


def test_payloads_are_live_under_an_ordinary_unpickler(tmp_path: Path) -> None:
    """Without this, the canary would prove nothing."""
    live = [case for case in CASES if case.live]
    folders = [tmp_path / str(number) for number in range(len(live))]
    for folder in folders:
        folder.mkdir()
    paths = [str(case.build(folder)) for case, folder in zip(live, folders, strict=True)]
    subprocess.run([sys.executable, "-c", UNPICKLE, *paths], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    dead = [case.name for case, folder in zip(live, folders, strict=True) if not (folder / CANARY).exists()]
    assert len(live) >= 25
    assert dead == []


def test_readers_import_no_unpickler() -> None:
    code = "import sys; import fingerprint.checkpoint; print('pickle' in sys.modules, '_pickle' in sys.modules)"
    # numpy imports pickle for its own files; what matters is that no reader refers to it.
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).returncode == 0
    # Forked processes send what they found to their parent, which holds nothing that a file said in pickled form.
    readers = [
        module
        for name, module in sys.modules.items()
        if name.startswith("fingerprint.") and name != "fingerprint.forks"
    ]
    assert len(readers) > 5
    assert not [module for module in readers if any(value is pickle for value in vars(module).values())]
