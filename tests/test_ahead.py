"""The system is asked for tensors before they are measured, and for nothing that it has."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from fingerprint import ahead
from fingerprint.dtypes import DTYPES
from fingerprint.readers.base import StoredTensor
from fingerprint.source import FileSource, MemorySource
from fingerprint.tensors import Reshaped, RowGather, RowSlice, Transposed

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 5 << 20
needs_hints = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="this system takes no hints")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(bytes(SIZE))
    return tmp_path / "data"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Ranges of bytes that the system is asked for."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, __: ranges.append((start, start + length)))
    return ranges


@needs_hints
def test_bytes_in_the_cache_are_not_asked_for(path: Path, asked: list[tuple[int, int]]):
    path.read_bytes()
    with FileSource(path) as source:
        source.expect(0, SIZE)
    assert asked == []


@needs_hints
def test_bytes_on_the_disk_are_asked_for_in_pieces_that_the_system_takes(path: Path, asked, monkeypatch):
    def not_there(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", not_there)
    with FileSource(path) as source:
        source.expect(1000, SIZE)
    assert asked[0][0] == 1000
    assert asked[-1][1] >= SIZE
    assert all(stop == start for (_, stop), (start, _) in pairwise(asked))
    assert all(stop - start <= 1 << 17 for start, stop in asked)


@needs_hints
def test_a_hint_never_fails(path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    with FileSource(path) as source:
        source.expect(SIZE + 5, 10)
        monkeypatch.setattr(os, "preadv", refused)
        monkeypatch.setattr(os, "posix_fadvise", refused)
        source.expect(0, SIZE)
        path.unlink()
        source.expect(0, SIZE)


def test_a_system_that_takes_no_hints_is_not_asked(path: Path, asked, monkeypatch):
    monkeypatch.setattr("fingerprint.source._NOWAIT", None)
    with FileSource(path) as source:
        source.expect(0, SIZE)
    assert asked == []


def test_of_a_tensor_its_own_bytes_are_asked_for_as_far_as_they_lie_together(path: Path, monkeypatch):
    wanted: list[tuple[int, int]] = []
    monkeypatch.setattr(ahead, "LEAST_EXPECTED", 200)
    monkeypatch.setattr(FileSource, "expect", lambda _, offset, length: wanted.append((offset, length)))
    with FileSource(path) as source:
        whole = StoredTensor("w", DTYPES["BF16"], (64, 32), source, 100)
        part = RowSlice(whole, "q", 16, 32)
        views = [
            whole,
            Reshaped(whole, "w", (32, 64)),
            part,
            RowSlice(Reshaped(part, "q", (8, 64)), "r", 2, 4),
            Transposed(whole, "t"),
            RowSlice(Transposed(whole, "t"), "t", 0, 8),
            RowGather(whole, "g", ((0, 8), (16, 24))),
            StoredTensor("m", DTYPES["BF16"], (64, 32), MemorySource(bytes(5000)), 0),
            RowSlice(whole, "s", 0, 3),
        ]
        numbers = ahead.in_order(views)
        assert next(numbers) == 0
        assert wanted == [(100, 4096)]
        assert list(numbers) == list(range(1, len(views)))
        assert wanted[1:] == [
            (100, 4096),
            (100 + 16 * 64, 16 * 64),
            (100 + 16 * 64 + 2 * 128, 2 * 128),
            (100, 4096),
            (100, 4096),
        ]
        wanted.clear()
        monkeypatch.setattr(ahead, "MOST_EXPECTED", 1000)
        ahead.expect(whole)
        assert wanted == [(100, 1000)]
