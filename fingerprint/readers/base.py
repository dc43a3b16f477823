"""What every reader of a format hands out: stored tensors, findings and claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from fingerprint.dtypes import DType, decode

if TYPE_CHECKING:
    from fingerprint.source import Source
    from fingerprint.tensors import Array, TensorView

MAX_TENSORS = 2**18
"""Most tensors of one checkpoint; the largest public ones (671B parameters, experts apart) have about 100,000."""
MAX_RANK = 64
MAX_NAME = 4096
"""Most characters of a tensor's name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a checkpoint that a report must mention: ``code`` for programs, ``message`` for people."""

    code: str
    message: str
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a reader found in one file.

    ``metadata`` are claims of the file about itself. ``complete`` is False where the file holds tensors that could not
    be read.
    """

    tensors: tuple[TensorView, ...]
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Reader:
    """A format: its ``name`` in reports, the ``suffixes`` it usually has, and how to recognise and open it.

    ``recognises`` looks at a few bytes and never raises for bytes of another format; ``open`` raises ``InputError``.
    The suffixes only choose the wording of errors and which unreadable files of a folder are worth a finding.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[Source], bool]
    open: Callable[[Source], Contents]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor stored contiguously, row-major and little-endian at byte ``offset`` of ``source``."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    source: Source
    offset: int

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        total = math.prod(self.shape)
        if not 0 <= start <= stop <= total:
            raise IndexError(f"elements {start} to {stop} of a tensor of {total}")
        bits = self.dtype.bits
        # Sub-byte elements are read from the start of the group of whole bytes that the first one lies in.
        first = start - start % self.dtype.group
        offset = self.offset + first * bits // 8
        groups = -(-(stop - first) // self.dtype.group)
        raw = self.source.read(offset, min(groups * self.dtype.group, total - first) * bits // 8)
        return decode(raw, self.dtype, stop - first)[start - first :]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a checkpoint: ``path`` (relative to the folder, where a folder was given) and size in ``bytes``."""

    path: str
    bytes: int
