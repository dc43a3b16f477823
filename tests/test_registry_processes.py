"""Several processes use one registry at once, and being killed leaves it as before a change or as after it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import crash_safety
from benchmarks.synthetic import small_model
from fingerprint.errors import RegistryBusyError
from signatures.registry import Registry
from signatures.signature import sign

ROOT = Path(__file__).parents[1]
PROCESSES = 8
ROUNDS = 3


def test_eight_processes_register_and_search_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("registry_worker.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", script, str(folder), str(number), str(ROUNDS)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(1, PROCESSES + 1)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, "\n".join(errors)
    with Registry.open(folder, create=False) as registry:
        assert len(registry.models()) == 1 + PROCESSES * (ROUNDS - 1)
        assert len(registry.get("shared/model").aliases) == PROCESSES
        assert registry.check() == ()
        registry.search(crash_safety.vectors_of(registry, registry.models()[0]), 1)
        assert registry.index_status().current
        assert registry.check_index(50).problems == ()


def test_a_killed_change_is_whole_or_absent(tmp_path: Path) -> None:
    outcome = crash_safety.run(tmp_path, kills=12, seed=3, longest=0.2)
    assert outcome.problems == []
    assert outcome.kills == 12
    assert outcome.interrupted, "no kill fell into a change: the test showed nothing"


def test_a_registry_that_is_held_too_long_says_so(tmp_path: Path) -> None:
    with Registry.open(tmp_path, timeout=0) as registry:
        other = sqlite3.connect(tmp_path / "registry.sqlite3", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryBusyError, match="another process"):
            registry.register(sign(small_model(1)), name="org/model")
        assert registry.models() == ()
        other.execute("ROLLBACK")
        other.close()
        registry.register(sign(small_model(1)), name="org/model")


@pytest.mark.parametrize("known", [True, False])
def test_what_a_killed_writer_left_is_settled_by_the_next_one(tmp_path: Path, known: bool) -> None:
    """Both halves of a change: a file that the database mentions is kept, one that it does not mention goes."""
    with Registry.open(tmp_path) as registry:
        record = registry.register(sign(small_model(1)), name="org/model")
        number = record.identity.removeprefix("sha256:")
        place = tmp_path / "signatures" / number[:2] / f"{number}.fpsig"
        pending = tmp_path / "pending" / (place.name if known else f"{'0' * 64}.fpsig")
        place.rename(pending)
        if not known:
            place.write_bytes(pending.read_bytes())
        assert registry.load_signature(record).identity == record.identity
        registry.register(sign(small_model(2)), name="org/other")
        assert not pending.exists()
        assert place.exists()
        assert registry.check() == ()
