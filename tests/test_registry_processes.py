"""Several processes use one registry at once, and being killed leaves it as before a change or as after it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import crash_safety
from benchmarks.synthetic import small_model
from fingerprint.errors import RegistryBusyError
from signatures.registry import Registry
from signatures.scan import scan_path
from signatures.search import find_candidates
from signatures.signature import sign, write_signature

if TYPE_CHECKING:
    from signatures.search import Candidate

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


def test_a_scan_goes_on_while_models_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signatures.registry._CACHED_SIGNATURES", 0)  # every look goes to the disk
    folder, suspect = tmp_path / "registry", tmp_path / "suspect.fpsig"
    write_signature(suspect, sign(small_model(0, layers=1)))
    with Registry.open(folder) as registry:
        registry.register(sign(small_model(0, layers=1)), name="staying/model")
        command = [sys.executable, "-W", "error", str(Path(__file__).with_name("registry_churn.py")), str(folder), "12"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        scans = 0
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                report = scan_path(registry, suspect)
                assert report.error is None
                assert "staying/model" in {match.model for match in report.matches}
                scans += 1
            assert process.stderr is not None
            errors = process.stderr.read()
        assert (process.returncode, errors) == (0, "")
        assert scans > 1
        assert registry.index_status().current
        assert registry.check() == ()


def test_a_candidate_that_is_removed_before_it_is_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, suspect = tmp_path / "registry", tmp_path / "suspect.fpsig"
    write_signature(suspect, sign(small_model(0, layers=1)))
    with Registry.open(folder) as registry:
        for layers in (1, 2):
            registry.register(sign(small_model(0, layers=layers)), name=f"org/of-{layers}")

    def then_removed(registry: Registry, *rest: Any) -> list[Candidate]:
        found = find_candidates(registry, *rest)
        assert [one.model.name for one in found] == ["org/of-1", "org/of-2"]
        with Registry.open(folder) as other:
            other.remove("org/of-1")
        return found

    monkeypatch.setattr("signatures.scan._FEW_MODELS", 0)
    monkeypatch.setattr("signatures.identify.find_candidates", then_removed)
    with Registry.open(folder) as registry:
        report = scan_path(registry, suspect)
    assert (report.error, [match.model for match in report.matches]) == (None, ["org/of-2"])


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


def test_the_disk_has_every_folder_that_leads_to_a_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[Path] = set()
    for module in ("files", "database", "signature_files"):
        monkeypatch.setattr(f"signatures.{module}.flush_folder", flushed.add)
    folder = tmp_path / "new" / "registry"
    with Registry.open(folder) as registry:
        place = registry._store.place(registry.register(sign(small_model(1)), name="org/model").identity)
        assert {tmp_path, folder.parent, folder, folder / "pending", place.parent.parent, place.parent} <= flushed


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
