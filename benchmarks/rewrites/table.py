"""The page of the benchmark of rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_page(rows: list[dict[str, Any]], out: Path, family: str, *, cpu: float) -> None:
    pass
