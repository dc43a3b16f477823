"""Which engine keeps a registry's vectors: the files beside it, or what the variable ``FP_INDEX`` names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from fingerprint.errors import UsageError, clipped

if TYPE_CHECKING:
    from pathlib import Path

    from signatures.engine import Engine

INDEX_VARIABLE: Final = "FP_INDEX"


def open_engine(folder: Path, key: str, width: int) -> Engine:
    """The engine of the vectors of ``width`` numbers of the registry ``key``.

    ``folder`` is where files would lie; its name is that of the kind of vectors. Raises ``UsageError`` if ``FP_INDEX``
    names no engine that there is.
    """
    url = os.environ.get(INDEX_VARIABLE, "")
    if url not in {"", "local"}:
        raise UsageError(f"{INDEX_VARIABLE}={clipped(url)} names no engine of vectors that this program knows")
    from signatures.index_folder import IndexFolder

    return IndexFolder(folder, key, width)
