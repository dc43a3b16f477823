"""Indexes of shards (``*.index.json``): which tensor is in which file, as claimed, and how the claim holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fingerprint.errors import LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import MAX_TENSORS, Catalogue, Finding, some
from fingerprint.readers.bounded_json import JsonCursor
from fingerprint.readers.findings import FindingCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.source import Source

MAX_INDEX = 64 << 20
"""Most bytes of an index."""
SUFFIXES = (".safetensors.index.json", ".bin.index.json", ".msgpack.index.json")
"""How the names of indexes end, the preferred kind first."""


def is_index(source: Source) -> bool:
    """True for a file named ``*.json`` that holds a JSON object: no checkpoint format looks like that."""
    return source.path.endswith(".json") and bytes(source.read(0, min(64, source.size))).lstrip()[:1] == b"{"


def read_index(source: Source, catalogue: Catalogue) -> dict[str, str]:
    """The ``weight_map`` of an index: tensor name to name of the shard, which is a plain file name.

    The names are counted in ``catalogue``. Raises ``InputError``, also for shards that are paths.
    """
    if source.size > MAX_INDEX:
        raise LimitExceededError(f"an index of {source.size} bytes; {MAX_INDEX} are allowed", path=source.path)
    catalogue.take(source.size)
    cursor = JsonCursor(source.read(0, source.size), path=source.path, what="index")
    weight_map: dict[str, str] = {}
    for key in cursor.members():
        if key == "weight_map":
            weight_map = _weight_map(cursor, catalogue)
        else:
            cursor.value()
    cursor.end()
    if not weight_map:
        raise MalformedFileError("no weight_map with tensors in it", path=source.path, hint="not an index of shards?")
    return weight_map


def _weight_map(cursor: JsonCursor, catalogue: Catalogue) -> dict[str, str]:
    weight_map: dict[str, str] = {}
    shards: dict[str, str] = {}
    for name in cursor.members():
        catalogue.add_name(name)
        if len(weight_map) == MAX_TENSORS:
            cursor.limit(f"more than {MAX_TENSORS} tensors")
        shard = cursor.string()
        if shard not in shards:
            if not is_plain_name(shard):
                cursor.fail(f"a shard must be a plain file name, not {clipped(shard)!r}")
            shards[shard] = shard
        weight_map[name] = shards[shard]  # one string object for all tensors of a shard
    return weight_map


def is_plain_name(name: str) -> bool:
    """True for what can only be a file beside the index, on every platform: no separators, drives, dots alone, NUL."""
    return (
        0 < len(name) <= 255
        and name not in {".", ".."}
        and not any(mark in name for mark in "/\\:")
        and name.isprintable()
    )


def compare_index(weight_map: Mapping[str, str], homes: Mapping[str, str]) -> list[Finding]:
    """Where the index and the shards that were read contradict each other.

    ``homes`` has the name of the shard that each tensor was read from. The code ``absent-tensor`` means that something
    is not there to be measured; the others do not.
    """
    absent = [name for name in weight_map if name not in homes]
    misplaced = [name for name, shard in weight_map.items() if homes.get(name, shard) != shard]
    unlisted = [name for name in homes if name not in weight_map]
    texts = (
        (FindingCode.ABSENT_TENSOR, absent, "tensors of the index are in no shard that was read"),
        (FindingCode.MISPLACED_TENSOR, misplaced, "tensors are in another shard than the index says"),
        (FindingCode.UNLISTED_TENSOR, unlisted, "tensors are not in the index"),
    )
    return [Finding(code, f"{len(names)} {text}: {some(names)}", names[0]) for code, names, text in texts if names]
