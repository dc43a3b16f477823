"""Folders and indexes of shards: which files belong to the checkpoint, and which of them are not there.

An index names files and a folder holds links, and both may be hostile: a shard is a plain file name, beside the index,
and a link leads to a place inside the folder or, in a snapshot of a Hugging Face cache, to the cache's own blobs.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, UnsupportedFormatError, clipped
from fingerprint.readers import READERS, reader_for, recognised
from fingerprint.readers.base import MAX_NAME, MAX_TENSORS, Contents, FileRecord, Finding
from fingerprint.readers.bounded_json import JsonCursor
from fingerprint.source import FileSource, os_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

MAX_ENTRIES = 10_000
"""Most entries of a folder that are looked at."""
MAX_SHARDS = 4096
MAX_INDEX = 64 << 20
"""Most bytes of an index file."""
MAX_CONFIG = 1 << 20
MAX_CONFIG_FIELDS = 128
INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
SHOWN = 3
"""Names that a message lists."""


@dataclass(frozen=True, slots=True)
class FolderContents:
    """What a folder or an index holds: the joined contents of its shards."""

    format: str
    files: tuple[FileRecord, ...]
    contents: Contents
    sources: tuple[Source, ...]


def is_index(source: Source) -> bool:
    """True for a JSON file that is named as an index of shards is."""
    return source.path.endswith(".json") and source.size > 0 and bytes(source.read(0, min(64, source.size))).lstrip()[:1] == b"{"


def open_folder(path: str) -> FolderContents:
    """The checkpoint of a folder: by its index of shards, otherwise every file of one format. Raises ``InputError``."""
    place = _Place(path)
    names = place.names()
    for suffix in INDEX_SUFFIXES:
        indexes = [name for name in names if name.endswith(suffix)]
        if len(indexes) > 1:
            raise InputError(f"{len(indexes)} indexes of shards", path=path, hint="give one of them as the path")
        if indexes:
            with place.open(indexes[0]) as source:
                return _indexed(place, _read_index(source), names, [])
    return _unindexed(place, names)


def open_index(source: Source) -> FolderContents:
    """The checkpoint that an index of shards describes. Raises ``InputError``."""
    place = _Place(os.path.dirname(source.path) or ".")
    weight_map = _read_index(source)
    source.close()
    return _indexed(place, weight_map, place.names(), [])


class _Place:
    """A folder out of which nothing leads, except to the blobs of the cache that it is a snapshot of."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.real = os.path.realpath(path)
        self.roots = [self.real]
        parent, grandparent = os.path.dirname(self.real), os.path.dirname(os.path.dirname(self.real))
        if os.path.basename(parent) == "snapshots":
            self.roots.append(os.path.join(grandparent, "blobs"))

    def names(self) -> list[str]:
        try:
            with os.scandir(self.real) as entries:
                names = []
                for entry in entries:
                    if len(names) == MAX_ENTRIES:
                        raise LimitExceededError(f"more than {MAX_ENTRIES} entries in a folder", path=self.path)
                    names.append(entry.name)
        except OSError as error:
            raise os_error(error, self.path) from error
        return sorted(names)

    def open(self, name: str) -> FileSource:
        shown = os.path.join(self.path, name)
        joined = os.path.join(self.real, name)
        try:
            real = os.path.realpath(joined, strict=True)
        except (OSError, ValueError) as error:
            raise os_error(error, shown) from error
        if not any(real.startswith(root + os.sep) for root in self.roots):
            raise InputError("a symbolic link that leads out of the folder is not followed", path=shown)
        source = FileSource(real)
        source.path = shown
        return source


def _unindexed(place: _Place, names: Iterable[str]) -> FolderContents:
    found: dict[str, list[str]] = {}
    findings: list[Finding] = []
    damaged: list[InputError] = []
    suffixes = tuple(suffix for reader in READERS for suffix in reader.suffixes)
    for name in names:
        likely = name.lower().endswith(suffixes)
        try:
            mode = os.lstat(os.path.join(place.real, name)).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
                continue
            with place.open(name) as source:
                reader = reader_for(source) if likely else recognised(source)
        except InputError as error:
            if likely:
                damaged.append(error)
                findings.append(_unreadable(name, error))
            continue
        if reader is not None:
            found.setdefault(reader.name, []).append(name)
    chosen = next((reader for reader in READERS if reader.name in found), None)
    if chosen is None:
        if damaged:
            raise damaged[0]
        raise UnsupportedFormatError("no file of this folder can be read as a checkpoint", path=place.path)
    for other, files in found.items():
        if other != chosen.name:
            findings.append(Finding("other-format", f"{len(files)} files in the format {other} were not read: {_some(files)}"))
    return _read_shards(place, found[chosen.name], {}, findings, damaged)


def _indexed(
    place: _Place, weight_map: Mapping[str, str], names: Iterable[str], findings: list[Finding]
) -> FolderContents:
    expected = Counter(weight_map.values())
    present = set(names)
    for shard in sorted(expected):
        if shard not in present:
            findings.append(Finding("absent-shard", f"the shard {clipped(shard)!r} with {expected[shard]} tensors is not there"))
    shards = [shard for shard in sorted(expected) if shard in present]
    if not shards:
        raise InputError(f"none of the {len(expected)} shards of the index is there", path=place.path)
    suffixes = tuple(suffix for reader in READERS for suffix in reader.suffixes)
    unlisted = [name for name in names if name.lower().endswith(suffixes) and name not in expected]
    if unlisted:
        findings.append(Finding("unlisted-file", f"{len(unlisted)} files are not in the index and were not read: {_some(unlisted)}"))
    return _read_shards(place, shards, weight_map, findings, [])


def _read_shards(
    place: _Place,
    shards: list[str],
    weight_map: Mapping[str, str],
    findings: list[Finding],
    damaged: list[InputError],
) -> FolderContents:
    if len(shards) > MAX_SHARDS:
        raise LimitExceededError(f"more than {MAX_SHARDS} shards", path=place.path)
    metadata: dict[str, str] = _config(place)
    files: list[FileRecord] = []
    formats: set[str] = set()
    tensors: dict[str, TensorView] = {}
    home: dict[str, str] = {}
    duplicates: list[str] = []
    complete = not damaged and not any(finding.code == "absent-shard" for finding in findings)
    with ExitStack() as stack:
        for shard in shards:
            try:
                source = place.open(shard)
                stack.callback(source.close)
                reader = reader_for(source)
                contents = reader.open(source)
            except InputError as error:
                damaged.append(error)
                findings.append(_unreadable(shard, error))
                complete = False
                continue
            formats.add(reader.name)
            files.append(FileRecord(shard, source.size))
            complete = complete and contents.complete
            findings += (replace(f, message=f"{clipped(shard)}: {f.message}") for f in contents.findings)
            for key, value in contents.metadata.items():
                metadata.setdefault(key, value)
            for tensor in contents.tensors:
                if tensor.name in tensors:
                    duplicates.append(tensor.name)
                    if weight_map.get(tensor.name) != shard:
                        continue
                elif len(tensors) == MAX_TENSORS:
                    raise LimitExceededError(f"more than {MAX_TENSORS} tensors", path=place.path)
                tensors[tensor.name] = tensor
                home[tensor.name] = shard
        if not files:
            raise damaged[0]
        if duplicates:
            findings.append(Finding("duplicate-tensor", f"{len(duplicates)} tensors are in several files and were read from one: {_some(duplicates)}", duplicates[0]))
            complete = complete and bool(weight_map)
        if weight_map:
            more, whole = _compare_index(weight_map, home)
            findings += more
            complete = complete and whole
        sources = tuple(callback for callback in ())
        kept = stack.pop_all()
    del sources
    return FolderContents(
        "+".join(sorted(formats)),
        tuple(files),
        Contents(tuple(tensors.values()), tuple(findings), metadata, complete),
        (_Stack(place.path, kept),),
    )


class _Stack:
    """The files of all shards, closed together."""

    def __init__(self, path: str, stack: ExitStack) -> None:
        self.path = path
        self.size = 0
        self._stack = stack

    def read(self, offset: int, length: int) -> memoryview:
        raise IndexError("shards are read one by one")

    def close(self) -> None:
        self._stack.close()


def _compare_index(weight_map: Mapping[str, str], home: Mapping[str, str]) -> tuple[list[Finding], bool]:
    findings = []
    absent = [name for name in weight_map if name not in home]
    misplaced = [name for name, shard in weight_map.items() if home.get(name, shard) != shard]
    unlisted = [name for name in home if name not in weight_map]
    if absent:
        findings.append(Finding("absent-tensor", f"{len(absent)} tensors of the index are in no shard that was read: {_some(absent)}", absent[0]))
    if misplaced:
        findings.append(Finding("misplaced-tensor", f"{len(misplaced)} tensors are in another shard than the index says: {_some(misplaced)}", misplaced[0]))
    if unlisted:
        findings.append(Finding("unlisted-tensor", f"{len(unlisted)} tensors are not in the index: {_some(unlisted)}", unlisted[0]))
    return findings, not absent


def _read_index(source: Source) -> dict[str, str]:
    if source.size > MAX_INDEX:
        raise LimitExceededError(f"an index of {source.size} bytes; {MAX_INDEX} are allowed", path=source.path)
    cursor = JsonCursor(source.read(0, source.size), path=source.path, what="index", max_values=1 << 16)
    weight_map: dict[str, str] | None = None
    for key in cursor.members():
        if key != "weight_map":
            cursor.value()
            continue
        weight_map = {}
        for name in cursor.members():
            if len(weight_map) == MAX_TENSORS:
                cursor.limit(f"more than {MAX_TENSORS} tensors")
            if len(name) > MAX_NAME:
                cursor.limit(f"a tensor's name is longer than {MAX_NAME} characters")
            shard = cursor.string()
            if not is_plain_name(shard):
                cursor.fail(f"a shard must be a plain file name, not {clipped(shard)!r}")
            weight_map[name] = shard
    cursor.end()
    if not weight_map:
        raise MalformedFileError("no weight_map with tensors in it", path=source.path, hint="not an index of shards?")
    return weight_map


def is_plain_name(name: str) -> bool:
    """True for the name of a file in the same folder on every platform: no separators, drives, dots alone, or NUL."""
    return (
        bool(name)
        and len(name) <= 255
        and name not in {".", ".."}
        and not any(mark in name for mark in "/\\:")
        and name.isprintable()
    )


def _config(place: _Place) -> dict[str, str]:
    """The scalar fields of ``config.json``: claims, kept for the report. A config that cannot be read claims nothing."""
    try:
        with place.open("config.json") as source:
            if source.size > MAX_CONFIG:
                return {}
            cursor = JsonCursor(source.read(0, source.size), path=source.path, what="config", max_values=1 << 16)
            value = cursor.value()
    except InputError:
        return {}
    if not isinstance(value, dict):
        return {}
    scalars = {f"config.{key}": str(item) for key, item in value.items() if isinstance(item, str | int | float)}
    return {key: clipped(item, MAX_NAME) for key, item in list(scalars.items())[:MAX_CONFIG_FIELDS]}


def _unreadable(name: str, error: InputError) -> Finding:
    return Finding("unreadable-file", f"{clipped(name)!r} cannot be read: {clipped(str(error), 400)}")


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(clipped(name)) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, …"
