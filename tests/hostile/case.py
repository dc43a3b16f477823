"""A hostile case: how to build it, and what a reader must make of it."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CANARY = "canary"


class Expect(StrEnum):
    """What ``open_checkpoint`` must do."""

    ERROR = "error"  # raises an InputError of the class named by ``detail``
    PARTIAL = "partial"  # a checkpoint with complete=False and a finding with the code ``detail``
    FINDING = "finding"  # a complete checkpoint and a finding with the code ``detail``
    FINE = "fine"  # a complete checkpoint; only what it does not do matters


@dataclass(frozen=True, slots=True)
class Case:
    """``build`` writes the case into an empty folder and returns the path to open.

    ``live``: the pickle inside would run its payload under Python's own unpickler.
    """

    name: str
    build: Callable[[Path], Path]
    expect: Expect
    detail: str = ""
    live: bool = False


def file_case(name: str, file_name: str, data: bytes | Callable[[], bytes], expect: Expect, detail: str = "") -> Case:
    """A case of one file; ``data`` may be a function so that large ones are made only when they are needed."""

    def build(folder: Path) -> Path:
        path = folder / file_name
        path.write_bytes(data if isinstance(data, bytes) else data())
        return path

    return Case(name, build, expect, detail)


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with that header: bytes as they are, anything else as JSON; ``length`` is the length that it claims."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str = "F32", shape: list[int] | None = None, begin: int = 0, end: int = 16) -> dict[str, object]:
    """A tensor in a header; by default 2 x 2 numbers at the beginning of the data."""
    return {"dtype": dtype, "shape": [2, 2] if shape is None else shape, "data_offsets": [begin, end]}


GOOD = safetensors({"weight": entry()}, bytes(range(16)))
"""A valid file with one tensor."""
