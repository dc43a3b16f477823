"""Bytes by range: windows on files, and what is refused before it is opened."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from fingerprint.errors import InputError, InputNotFoundError, MalformedFileError, UnsupportedFormatError
from fingerprint.source import MAX_MAPPED, FileSource, MemorySource, Source

DATA = bytes(range(256)) * 8


@pytest.fixture(params=["file", "memory"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    if request.param == "memory":
        return MemorySource(DATA)
    (tmp_path / "data").write_bytes(DATA)
    return FileSource(tmp_path / "data")


class TestEverySource:
    def test_reads_any_range(self, source: Source) -> None:
        assert source.size == len(DATA)
        for start, length in ((0, 0), (0, 1), (3, 1000), (len(DATA) - 1, 1), (len(DATA), 0), (0, len(DATA))):
            assert bytes(source.read(start, length)) == DATA[start : start + length]

    @pytest.mark.parametrize(("start", "length"), [(0, 2049), (2048, 1), (-1, 1), (0, -1), (2**63, 1), (1, 2**64)])
    def test_refuses_ranges_outside(self, source: Source, start: int, length: int) -> None:
        with pytest.raises(MalformedFileError):
            source.read(start, length)

    def test_windows_are_read_only(self, source: Source) -> None:
        assert source.read(0, 10).readonly

    def test_windows_outlive_the_source(self, source: Source) -> None:
        window = np.frombuffer(source.read(5, 100), np.uint8)
        source.close()
        source.close()
        assert window.tobytes() == DATA[5:105]


def test_closed_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    with FileSource(tmp_path / "data") as source:
        pass
    with pytest.raises(InputError, match="closed"):
        source.read(0, 1)


def test_windows_of_a_file_are_not_copies(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    with FileSource(tmp_path / "data") as source:
        whole = np.frombuffer(source.read(0, len(DATA)), np.uint8)
        part = np.frombuffer(source.read(100, 10), np.uint8)
        assert np.shares_memory(whole, part)


def test_empty_file_is_a_source_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with FileSource(tmp_path / "data") as source:
        assert source.size == 0
        assert bytes(source.read(0, 0)) == b""


def test_file_that_shrinks_is_refused_without_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA * 100)
    with FileSource(path) as source:
        os.truncate(path, 10)
        with pytest.raises(MalformedFileError, match="shortened"):
            source.read(100_000, 10)


def test_file_that_grows_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with FileSource(path) as source:
        with path.open("ab") as file:
            file.write(b"more")
        assert source.size == len(DATA)
        assert bytes(source.read(0, len(DATA))) == DATA


def test_more_files_than_descriptors(tmp_path: Path) -> None:
    count = MAX_MAPPED + 40
    for number in range(count):
        (tmp_path / str(number)).write_bytes(number.to_bytes(4, "little"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + MAX_MAPPED + 10, limits[1]))
    try:
        sources = [FileSource(tmp_path / str(number)) for number in range(count)]
        for _ in range(2):
            for number, source in enumerate(sources):
                assert int.from_bytes(source.read(0, 4), "little") == number
        for source in sources:
            source.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_file_replaced_while_it_was_not_mapped_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    (tmp_path / "other").write_bytes(DATA)
    source = FileSource(tmp_path / "data")
    crowd = [FileSource(tmp_path / "other") for _ in range(MAX_MAPPED)]
    (tmp_path / "new").write_bytes(DATA)
    (tmp_path / "new").replace(tmp_path / "data")
    with pytest.raises(InputError, match="replaced"):
        source.read(0, 1)
    for one in crowd:
        one.close()


def test_sources_left_open_hold_no_files(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("no /proc")
    before = len(list(descriptors.iterdir()))
    for _ in range(10):
        FileSource(tmp_path / "data")
    assert len(list(descriptors.iterdir())) == before


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsupportedFormatError, match="a pipe"):
        FileSource(tmp_path / "pipe")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/random", "/dev/stdin", "/dev/tty"])
def test_device_is_refused_without_being_read(device: str) -> None:
    # Standard input may be a file or a pipe, and there may be no terminal: an error in any case but the first.
    if Path(device).is_file() or not Path(device).exists():
        pytest.skip(f"{device} is not a device here")
    with pytest.raises(InputError):
        FileSource(device)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match="a folder"):
        FileSource(tmp_path)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="absent"):
        FileSource(tmp_path / "absent")


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="circle"):
        FileSource(tmp_path / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_file_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    (tmp_path / "data").chmod(0)
    with pytest.raises(InputError, match="permission"):
        FileSource(tmp_path / "data")


def test_messages_use_the_name_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    with FileSource(tmp_path / "data", "shown") as source, pytest.raises(MalformedFileError, match=r"^shown"):
        source.read(0, 10_000)
