"""Where results go: standard output, or a file that appears whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final, Protocol

from fingerprint.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

STANDARD: Final = "-"
_leftovers: set[str] = set()


class OutputClosedError(Exception):
    """Nobody reads the results any more (``fp list | head``): a reason to stop, quietly."""


class OutputFailedError(UsageError):
    """The results cannot be written: the disk is full, the file may not be written."""


class Sink(Protocol):
    """Takes text."""

    def write(self, text: str) -> None:
        """Hand ``text`` on at once. Raises ``OutputClosedError`` or ``OutputFailedError``."""

    @property
    def stream(self) -> IO[str] | None:
        """The stream whose abilities count (width, colours), None for a file."""


class StandardOutput:
    """Standard output; every write is passed on before it returns."""

    @property
    def stream(self) -> IO[str] | None:
        """See ``Sink.stream``."""
        return sys.stdout

    def write(self, text: str) -> None:
        """See ``Sink.write``."""
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            data = text.encode(encoding)
        except UnicodeEncodeError:
            data = text.replace("…", "...").encode(encoding, "backslashreplace")
        self.write_bytes(data)

    def write_bytes(self, data: bytes) -> None:
        """Hand ``data`` on at once."""
        if sys.stdout is None:  # started without one (``>&-``)
            raise OutputFailedError("standard output is closed; give a file with -o")
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise OutputClosedError from None
        except OSError as error:
            raise OutputFailedError(f"standard output cannot be written: {error.strerror}") from None


class FileOutput:
    """A file being written; text is UTF-8 with bytes that no UTF-8 has escaped."""

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self._path = path
        self._file = file

    @property
    def stream(self) -> IO[str] | None:
        """See ``Sink.stream``."""
        return None

    def write(self, text: str) -> None:
        """See ``Sink.write``."""
        try:
            self._file.write(text.encode("utf-8", "backslashreplace"))
            self._file.flush()
        except BrokenPipeError:
            raise OutputClosedError from None
        except OSError as error:
            raise _failed(self._path, error) from None


@contextmanager
def opened(path: str | None) -> Iterator[Sink]:
    """The sink for ``-o``: standard output for None and ``-``, else a file.

    A regular file takes its place when the block ends without an exception; until then, and if an exception ends the
    block, whatever was there stays. Devices and pipes are written to as they are. Raises ``OutputFailedError``.
    """
    if path is None or path == STANDARD:
        yield StandardOutput()
    elif _is_special(path):
        try:
            with open(path, "wb") as file:
                yield FileOutput(path, file)
        except OSError as error:
            raise _failed(path, error) from None
    else:
        yield from _replaced(path)


def _replaced(path: str) -> Iterator[Sink]:
    place = os.path.realpath(path)
    folder, name = os.path.split(place)
    # A name cut short, since the suffix must not make a long name too long.
    temporary = os.path.join(folder, f".{os.fsdecode(os.fsencode(name)[:100])}.{os.urandom(8).hex()}.tmp")
    try:
        if os.path.isdir(place):
            raise OutputFailedError(f"{path}: is a folder, where a file is to be written")
        _leftovers.add(temporary)
        with open(temporary, "xb") as file:
            yield FileOutput(path, file)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(place).st_mode))
        os.replace(temporary, place)
    except OSError as error:
        raise _failed(path, error) from None
    finally:
        with suppress(OSError):
            os.unlink(temporary)
        _leftovers.discard(temporary)


def remove_leftovers() -> None:
    """Delete unfinished files: for a program that ends at once."""
    for path in tuple(_leftovers):
        with suppress(OSError):
            os.unlink(path)


def refuse_overwriting(output: str | None, inputs: tuple[str, ...]) -> None:
    """Raise ``UsageError`` if the file to be written is one of those to be read."""
    if output is None or output == STANDARD:
        return
    for path in inputs:
        with suppress(OSError, ValueError):
            if os.path.samefile(output, path):
                raise UsageError(f"{output}: would be written over, but it is to be read")


def refuse_replacing(output: str, kind: str, *, known: bool) -> None:
    """Raise ``UsageError`` if something is at ``output`` that is not ``known`` to be of the ``kind`` to be written."""
    if os.path.lexists(output) and not known:
        raise UsageError(f"{output}: exists and is no {kind}; give another name, or --force")


def _is_special(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _failed(path: str, error: OSError) -> OutputFailedError:
    return OutputFailedError(f"{path}: cannot be written: {error.strerror or error}")
