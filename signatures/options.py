"""How to scan."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from fingerprint.errors import UsageError
from fingerprint.vocabulary import Depth

AUTO: Final = "auto"
"""The depth that is quick first, and deeper as long as nothing is explained."""
DEPTHS: Final = (AUTO, *(one.value for one in Depth))


class ScanOptions(Struct, frozen=True):
    """How to scan. ``base`` names models that are declared to be the suspect's base; ``include`` and ``exclude`` are
    globs over stored tensor names; ``top_k`` bounds the matches in the report, not what is compared."""

    top_k: int = 10
    base: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    depth: str = AUTO

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"at least one match must be allowed in the report, not {self.top_k}")
        if self.depth not in DEPTHS:
            raise UsageError(f"depth {self.depth!r} is not one of {', '.join(DEPTHS)}")
