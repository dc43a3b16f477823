"""The journal of a list: what is done already, one JSON object a line, so that a killed run goes on where it stopped.

The first line names the format. Every other line is an item that is done: ``work`` is what was done (a digest of task
and settings), ``path`` and ``state`` of what it was done with, ``result`` what came of it. A line counts only if these
three are the same again; of several the last one counts. What else tells items of one path apart is ``about``. A line
that was cut short by the end of a run is dropped.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Final, Self

from fingerprint.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMAT: Final = "weightprint.work/1"
_HEAD: Final = json.dumps({"format": FORMAT}).encode() + b"\n"
_MOST_FILES: Final = 1_000_000

Key = tuple[str, str, str, str]


class Journal:
    """Belongs to one run at a time. ``work`` tells tasks and settings apart."""

    def __init__(self, file: IO[bytes], work: str, results: dict[Key, Any]) -> None:
        self._file = file
        self._work = work
        self._results = results
        self._states: dict[str, str | None] = {}

    @classmethod
    def open(cls, path: str, settings: Mapping[str, Any]) -> Self:
        """Open or make the journal at ``path``; ``settings`` are whatever results depend on besides the item.

        Raises ``UsageError`` if it cannot be written, is used by another run, or is some other file.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            file = os.fdopen(descriptor, "r+b")
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            _hold(file, path)
            results = _read(file, path)
        except BaseException:
            file.close()
            raise
        work = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        return cls(file, work, results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def result(self, path: str, about: str = "") -> Any:
        """The result of an item that is done and has not changed since, else None.

        The item's state at this moment is the one that ``add`` writes down: a change while it is in work is noticed
        by the next run.
        """
        state = self._states[path] = state_of(path)
        return None if state is None else self._results.get((self._work, path, about, state))

    def add(self, path: str, result: Any, about: str = "") -> None:
        """Write down what came of an item; it is on the disk when this returns. Raises ``UsageError``."""
        state = self._states.get(path)
        if state is None:
            return
        line = {"work": self._work, "path": path, "about": about, "state": state, "result": result}
        try:
            self._file.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UsageError(f"{self._file.name}: the journal cannot be written: {error.strerror}") from error


def state_of(path: str) -> str | None:
    """What tells whether a checkpoint has changed: a digest of sizes and times of its files.

    Of a folder all files below it count, of an index of shards (JSON) all files beside it. An address (``scheme://``)
    is taken to stand for the same contents always. None if there is nothing, or too much: such items are always done.
    """
    if "://" in path:
        return "address"
    digest = hashlib.sha256()
    try:
        for name, found in _files(path):
            digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    except (OSError, ValueError):
        return None
    return digest.hexdigest()[:32]


def _files(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Files that a checkpoint may consist of, in a fixed order; raises ``OSError``."""
    found = os.stat(path)
    count = 0
    if stat.S_ISDIR(found.st_mode):
        for folder, folders, names in os.walk(path, onerror=_raise):
            folders.sort()
            count += len(names)
            if count > _MOST_FILES:
                raise OSError(errno.EFBIG, "too many files")
            for name in sorted(names):
                place = os.path.join(folder, name)
                with suppress(FileNotFoundError):  # a link to nowhere: as if it were not there
                    yield os.path.relpath(place, path), os.stat(place)
    elif path.endswith(".json"):
        with os.scandir(os.path.dirname(path) or ".") as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                with suppress(FileNotFoundError):
                    if entry.is_file():
                        yield entry.name, entry.stat()
    else:
        yield "", found


def _raise(error: OSError) -> None:
    raise error


def _hold(file: IO[bytes], path: str) -> None:
    """Keep other runs from the journal for as long as it is open; systems without such locks go without."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            raise UsageError(f"{path}: another run uses this journal") from error


def _read(file: IO[bytes], path: str) -> dict[Key, Any]:
    """All results; leaves the file ready to be added to. Raises ``UsageError`` if it is no journal."""
    results: dict[Key, Any] = {}
    end = 0
    file.seek(0)
    for number, line in enumerate(file):
        if not line.endswith(b"\n") and number:
            break
        if number == 0:
            if line != _HEAD and not _HEAD.startswith(line):
                raise UsageError(f"{path}: is no journal of a list of work; give another name to --resume")
            if line != _HEAD:
                break
        else:
            try:
                values = json.loads(line)
                key = tuple(str(values[part]) for part in ("work", "path", "about", "state"))
                results[key] = values["result"]  # type: ignore[index]
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{path}: line {number + 1} of the journal is damaged; delete the file") from error
        end += len(line)
    file.truncate(end)
    if end == 0:
        file.write(_HEAD)
        file.flush()
    file.seek(0, os.SEEK_END)
    return results
