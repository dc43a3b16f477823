"""Pages of benchmarks say which machine they were made on, and how busy others kept it."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import pytest

from benchmarks import machine

if TYPE_CHECKING:
    from pathlib import Path


def test_a_machine_is_described_in_a_line():
    told = machine.described()
    assert f"{len(os.sched_getaffinity(0))} cores" in told
    assert f"Python {platform.python_version()}, torch " in told
    assert "\n" not in told


def test_a_processor_is_called_by_its_name_and_its_widest_instructions(tmp_path: Path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: Tabulator 9\nflags\t\t: fpu avx2 avx512f\n")
    assert machine._processor(told) == f"Tabulator 9 ({platform.machine()}, avx512f)"
    told.write_text("processor\t: 0\n")
    assert machine._processor(told).endswith(f" ({platform.machine()})")
    assert machine._processor(tmp_path / "absent").endswith(f" ({platform.machine()})")


def test_a_library_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_LIBRARIES", {"a-library-that-nobody-wrote": "library", "numpy": "numpy"})
    told = machine.described()
    assert "library" not in told
    assert f"Python {platform.python_version()}, numpy " in told


def test_others_have_what_of_the_busy_time_is_not_our_own():
    start, end = machine.Busy(100.0, 40.0, 10.0), machine.Busy(120.0, 55.0, 15.0)
    assert end.others_since(start) == pytest.approx(0.5)
    assert start.others_since(start) == 0.0
