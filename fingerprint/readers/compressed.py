"""Compressed streams (gzip, bzip2, xz, Zstandard): unpacked once, with a bound, into a temporary file."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from typing import IO, TYPE_CHECKING, Any, Final, cast

from fingerprint.errors import LimitExceededError, MalformedFileError, UnsupportedFormatError
from fingerprint.readers.scratch import MAX_SCRATCH, Scratch
from fingerprint.readers.zips import MAX_RATIO, MAX_UNSUSPICIOUS
from fingerprint.source import check_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fingerprint.source import Source

MAX_WINDOW = 128 << 20
"""Most bytes of memory that a stream may ask of its decompressor."""
_PIECE = 1 << 18
_OUT = 1 << 20


class _Zlib:
    """zlib's decompressor with the interface of the others, which keep what they did not use."""

    def __init__(self, kind: int = 16) -> None:
        """``kind``: 16 for gzip, 32 to tell gzip and zlib by their first bytes."""
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | kind)
        self._kept = b""

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail and not self._kept

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        # Input may be used up while output waits inside: a full piece says so.
        self._kept = b"x" if len(piece) == max_length and not self._inflate.eof else b""
        return piece


_KINDS: Final[tuple[tuple[bytes, str, Callable[[], Any] | None], ...]] = (
    (b"\x1f\x8b\x08", "gz", _Zlib),
    (b"BZh", "bz2", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW)),
    (b"\x28\xb5\x2f\xfd", "zst", None),
)


def kind_of(source: Source) -> str | None:
    """``gz``, ``bz2``, ``xz`` or ``zst``, or None for anything else."""
    head = bytes(source.read(0, min(8, source.size)))
    return next((name for magic, name, _ in _KINDS if head.startswith(magic)), None)


class Unpacked:
    """A stream that was unpacked; ``truncated`` where its end is not there."""

    def __init__(self, path: str, size: int, scratch: Scratch, *, truncated: bool) -> None:
        self.path = path
        self.size = size
        self.truncated = truncated
        self._scratch = scratch

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        return memoryview(self._scratch.read(offset, length) if length else b"")

    def close(self) -> None:
        """Nothing to give up: the temporary file goes with the last view."""


def unpack(source: Source, path: str) -> Unpacked:
    """All of a compressed source, called ``path``. Raises ``InputError``, also for what unpacks to implausibly much."""
    scratch = Scratch(source.path)
    size, truncated = 0, False
    make = next(make for magic, name, make in _KINDS if name == kind_of(source))
    for piece, taken in _zstandard(source) if make is None else _streams(source, make):
        if piece is None:
            truncated = True
            break
        if size + len(piece) > max(MAX_UNSUSPICIOUS, MAX_RATIO * taken) or size + len(piece) > MAX_SCRATCH:
            message = f"{taken} bytes of it unpack to more than {size}"
            hint = f"at most {MAX_RATIO} times its size is unpacked, and {MAX_SCRATCH >> 30} GiB"
            raise LimitExceededError(message, path=source.path, hint=hint)
        scratch.write(scratch.reserve(len(piece)), piece)
        size += len(piece)
    return Unpacked(path, size, scratch, truncated=truncated)


def pieces(source: Source, kind: str) -> Iterator[bytes]:
    """What ``source`` unpacks to; ``kind`` is ``gz`` (zlib too) or ``zst``.

    Raises ``InputError``, also for what was cut off. How much it may be is for the caller to watch.
    """
    for piece, _ in _zstandard(source) if kind == "zst" else _streams(source, lambda: _Zlib(32)):
        if piece is None:
            raise MalformedFileError("it is cut off inside what is compressed", path=source.path)
        yield piece


def unpacked(source: Source, kind: str, most: int) -> bytes:
    """All that ``source`` unpacks to (see ``pieces``), ``most`` bytes at most. Raises ``InputError``."""
    found, size = [], 0
    for piece in pieces(source, kind):
        size += len(piece)
        if size > most:
            raise LimitExceededError(f"it unpacks to more than {most} bytes", path=source.path)
        found.append(piece)
    return b"".join(found)


def _streams(source: Source, make: Callable[[], Any]) -> Iterator[tuple[bytes | None, int]]:
    """Pieces of what is unpacked, each with the number of bytes taken so far; None where the source was cut off."""
    inner, position = make(), 0
    while True:
        data = b""
        if inner.needs_input:
            data = bytes(source.read(position, min(_PIECE, source.size - position)))
            position += len(data)
        try:
            piece = inner.decompress(data, _OUT)
        except (lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
            raise _unpackable(source, position, error) from error
        if piece:
            yield piece, position
        if inner.eof:
            position -= len(inner.unused_data)
            if not _another(source, position):
                return
            inner = make()
        elif not piece and not data and inner.needs_input:
            yield None, position
            return


def _zstandard(source: Source) -> Iterator[tuple[bytes | None, int]]:
    try:
        import zstandard
    except ImportError as error:
        hint = "pip install 'weightprint[zstd]'"
        message = "Zstandard needs a package that is not there"
        raise UnsupportedFormatError(message, path=source.path, hint=hint) from error
    file = _File(source)
    inner = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    with (
        file,
        inner.stream_reader(
            cast("IO[bytes]", file), read_size=_PIECE, read_across_frames=True, closefd=False
        ) as stream,
    ):
        while True:
            try:
                piece = stream.read(_OUT)
            except zstandard.ZstdError as error:
                raise _unpackable(source, file.position, error) from error
            if not piece:
                # It does not say whether its last frame was whole; what is inside will tell.
                return
            yield piece, file.position


class _File(io.RawIOBase):
    """A source as a file that is read from front to back."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.position = 0
        self._source = source

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills ``buffer`` as far as there are bytes."""
        piece = self._source.read(self.position, min(len(buffer), self._source.size - self.position))
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)


def _another(source: Source, position: int) -> bool:
    """True where one stream follows another, as in files that were compressed in parts."""
    head = bytes(source.read(position, min(8, source.size - position)))
    return any(head.startswith(magic) for magic, _, _ in _KINDS) and len(head) == 8


def _unpackable(source: Source, position: int, error: Exception) -> MalformedFileError:
    return MalformedFileError(f"it cannot be unpacked: {error}", path=source.path, offset=position)
