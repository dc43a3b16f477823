"""Several sources one after the other, as one."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from fingerprint.source import Source, check_range

if TYPE_CHECKING:
    from collections.abc import Sequence


class Joined:
    """Several sources one after the other; what reaches over an edge is copied."""

    def __init__(self, sources: Sequence[Source], path: str) -> None:
        self.path = path
        self._sources = tuple(sources)
        self._starts = [0]
        for source in self._sources:
            self._starts.append(self._starts[-1] + source.size)
        self.size = self._starts[-1]

    def read(self, offset: int, length: int) -> memoryview:
        """See ``Source.read``."""
        check_range(self, offset, length)
        pieces = []
        while length:
            number = bisect_right(self._starts, offset) - 1
            begin = offset - self._starts[number]
            size = min(length, self._sources[number].size - begin)
            pieces.append(self._sources[number].read(begin, size))
            offset, length = offset + size, length - size
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    def close(self) -> None:
        """Nothing to give up: the sources are closed by their owner."""
