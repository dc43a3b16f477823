"""What every reader of a format hands out: stored tensors, findings and claims."""

from __future__ import annotations

import math
import sys
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct, field

from fingerprint.dtypes import DType, decode
from fingerprint.errors import LimitExceededError, MalformedFileError, clipped
from fingerprint.source import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fingerprint.readers.places import Folder
    from fingerprint.source import Source
    from fingerprint.tensors import Array, TensorView

MAX_TENSORS = 2**18
"""Most tensors of one checkpoint; the largest public ones (671B parameters, unstacked experts) have about 100,000."""
MAX_CATALOGUE = 176 << 20
"""Most bytes of memory, by estimate, that headers and the list of a checkpoint's tensors take."""
MAX_RANK = 16
MAX_NAME = 4096
"""Most characters of a tensor's name."""
MAX_ELEMENTS = 2**59
"""Most elements of a tensor; their bytes still fit 64 bits, at up to 8 bytes each."""
MAX_FINDINGS = 64
"""Most findings of one code; the rest is counted."""


class Finding(Struct, frozen=True):
    """Something about a checkpoint that a report must mention: ``code`` for programs, ``message`` for people."""

    code: str
    message: str
    tensor: str | None = None


class FileRecord(Struct, frozen=True):
    """A file of a checkpoint: ``path`` (relative to the folder, where a folder was given) and size in ``bytes``."""

    path: str
    bytes: int


class Contents(Struct, frozen=True):
    """What a reader found in one file.

    ``metadata`` are claims of the file about itself. ``complete`` is False where the file holds tensors that could not
    be read. ``files`` and ``sources`` are further files that the tensors lie in.
    """

    tensors: tuple[TensorView, ...]
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    complete: bool = True
    files: tuple[FileRecord, ...] = ()
    sources: tuple[Source, ...] = ()


class About(Struct, frozen=True):
    """A row of the table of formats, in Markdown: what a format is called and recognised by, what is read and what not.

    ``extra`` is the extra of the package that it needs.
    """

    title: str
    recognised: str
    read: str
    unread: str = ""
    extra: str = ""


class Reader(Struct, frozen=True):
    """A format: its ``name`` in reports, the ``suffixes`` it usually has, and how to recognise and open it.

    ``recognises`` looks at a few bytes and never raises for bytes of another format. ``open`` counts the tensors in the
    catalogue of the whole checkpoint and raises ``InputError``.
    The suffixes only choose the wording of errors and which unreadable files of a folder are worth a finding.
    ``about`` says to people what is read, a row for each kind of file.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[Source], bool]
    open: Callable[[Source, Catalogue], Contents]
    about: tuple[About, ...] = ()


class StoredTensor(Struct, frozen=True):
    """A tensor stored contiguously and row-major at byte ``offset`` of ``source``; ``big_endian`` or little-endian."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    source: Source
    offset: int
    big_endian: bool = False

    @property
    def is_mapped(self) -> bool:
        """Whether what is read is a window on a mapped file, however much that is."""
        return isinstance(self.source, FileSource) and not self.big_endian and self.dtype.bits >= 8

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        total = math.prod(self.shape)
        if not 0 <= start <= stop <= total:
            raise IndexError(f"elements {start} to {stop} of a tensor of {total}")
        bits, group = self.dtype.bits, self.dtype.group
        # Sub-byte elements are read from the start of the group of whole bytes that the first one lies in.
        first = start - start % group
        last = min(-(-stop // group) * group, total)
        raw = self.source.read(self.offset + first * bits // 8, (last - first) * bits // 8)
        if self.big_endian:
            raw = swapped(raw, self.dtype)
        return decode(raw, self.dtype, stop - first)[start - first :]

    def expect(self, start: int, stop: int) -> None:
        """Ask for these elements before they are read, where they are read from a file here; see ``FileSource``."""
        if isinstance(self.source, FileSource):
            bits = self.dtype.bits
            self.source.expect(self.offset + start * bits // 8, (stop - start) * bits // 8)


def truncated(size: int, absent: int = 0, count: int = 0, first: str | None = None) -> Finding:
    """The finding about a file of ``size`` bytes that ends before all of its ``count`` tensors do.

    ``absent`` of them are not in it, as far as that is known; ``first`` is the name of one.
    """
    known = f"{absent} of {count} tensors are not, or not wholly, in it"
    text = f"the file is cut off at byte {size}: {known if absent else 'what came behind cannot be told'}"
    return Finding("truncated", text, first)


def swapped(raw: memoryview, dtype: DType) -> memoryview:
    """The bytes of whole elements of ``dtype`` with the order inside each number reversed."""
    # A complex number is two floats.
    width = dtype.numpy.itemsize // (2 if dtype.numpy.kind == "c" else 1)
    return memoryview(np.frombuffer(raw, f"u{width}").byteswap().tobytes())


def checked_count(shape: tuple[int, ...], path: str) -> int:
    """The number of elements of ``shape``. Raises ``MalformedFileError`` where no array can have that shape.

    Axes of size zero do not excuse the others: numpy refuses ``(0, 2**62)`` as well.
    """
    count = math.prod(shape)
    if (count or math.prod(size for size in shape if size)) > MAX_ELEMENTS:
        raise MalformedFileError("the shape has more elements than any file can hold", path=path)
    return count


class Catalogue:
    """Counts the tensors of a checkpoint, all its files together, against what the list of them may take in memory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.beside: Folder | None = None
        """The folder that the file lies in which is read now; None: it lies on disk, where its path says."""
        self._count = 0
        self._left = MAX_CATALOGUE

    def add(self, name: str, shape: tuple[int, ...]) -> None:
        """Counts one more tensor. Raises ``LimitExceededError``."""
        self._count += 1
        if self._count > MAX_TENSORS:
            raise LimitExceededError(f"more than {MAX_TENSORS} tensors", path=self.path)
        if len(shape) > MAX_RANK:
            raise LimitExceededError(f"more than {MAX_RANK} axes", path=self.path, tensor=name)
        # The view, its entries in lists and sets, and a number for each axis; the name comes on top.
        self.add_name(name, 300 + 40 * len(shape))

    def add_name(self, name: str, size: int = 100) -> None:
        """Counts a name that is kept, with ``size`` bytes around it. Raises ``LimitExceededError``."""
        if len(name) > MAX_NAME:
            raise LimitExceededError(f"a name of more than {MAX_NAME} characters", path=self.path, tensor=name)
        self.take(size + sys.getsizeof(name))

    def take(self, size: int) -> None:
        """Counts ``size`` bytes of anything else: headers and what they were read into."""
        self._left -= size
        if self._left < 0:
            raise LimitExceededError("the names and shapes of the tensors take too much memory", path=self.path)


def bounded(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """``findings`` with at most ``MAX_FINDINGS`` of one code; one more says how many were left out."""
    counts: Counter[str] = Counter()
    kept: list[Finding] = []
    for finding in findings:
        counts[finding.code] += 1
        if counts[finding.code] <= MAX_FINDINGS:
            kept.append(finding)
    more = ((code, count - MAX_FINDINGS) for code, count in counts.items() if count > MAX_FINDINGS)
    return (*kept, *(Finding(code, f"{count} more of this kind") for code, count in more))


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first few of ``names``, quoted and clipped, for a message."""
    listed = list(names)
    text = ", ".join(repr(clipped(name)) for name in listed[:shown])
    return text if len(listed) <= shown else f"{text}, …"
