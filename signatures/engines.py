"""Which engine keeps a registry's vectors: the files beside it, or what the variable ``FP_INDEX`` names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from fingerprint.errors import UsageError, clipped

if TYPE_CHECKING:
    from pathlib import Path

    from signatures.engine import Engine
    from signatures.milvus import Place

INDEX_VARIABLE: Final = "FP_INDEX"
TOKEN_VARIABLE: Final = "FP_INDEX_TOKEN"


def open_engine(folder: Path, key: str, width: int) -> Engine:
    """The engine of the vectors of ``width`` numbers of the registry ``key``.

    ``folder`` is where files would lie; its name is that of the kind of vectors. Raises ``UsageError`` if ``FP_INDEX``
    names no engine that there is.
    """
    if (place := _milvus()) is not None:
        from signatures.milvus import MilvusEngine

        return MilvusEngine(place, folder, key, width)
    from signatures.index_folder import IndexFolder

    return IndexFolder(folder, key, width)


def chosen_engine() -> str:
    """What ``FP_INDEX`` says; empty for the files."""
    name = os.environ.get(INDEX_VARIABLE, "")
    return "" if name == "local" else name


def serves_one_process() -> bool:
    """Whether only one process at a time can search: true of embedded Milvus."""
    place = _milvus()
    return place is not None and place.file is not None


def _milvus() -> Place | None:
    """The Milvus that ``FP_INDEX`` names, None for the files; raises ``UsageError`` for what is neither."""
    url = chosen_engine()
    if not url:
        return None
    from signatures.milvus import place_of

    place = place_of(url)
    if place is None:
        raise UsageError(
            f"{INDEX_VARIABLE}={clipped(url)} names no engine of vectors that this program knows: give "
            "http://HOST:PORT of a Milvus server, or milvus:///FILE.db for embedded Milvus"
        )
    return place
