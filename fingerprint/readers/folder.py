"""Folders and indexes of shards: which files make up the checkpoint, which are absent, and their tensors together."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fingerprint.errors import InputError, LimitExceededError, UnsupportedFormatError, clipped
from fingerprint.readers import READERS, gguf, reader_for, recognised
from fingerprint.readers.base import MAX_NAME, Catalogue, Contents, FileRecord, Finding, bounded, some
from fingerprint.readers.bounded_json import JsonCursor
from fingerprint.readers.index import SUFFIXES, compare_index, read_index
from fingerprint.readers.places import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

MAX_SHARDS = 4096
MAX_CONFIG = 1 << 20
"""Most bytes of a ``config.json`` that is read."""
MAX_CONFIG_FIELDS = 128
_NUMBERED = re.compile(r"(.{0,200})-([0-9]{5})-of-([0-9]{5})\.([a-z]{2,16})")
_USUAL_SUFFIXES = tuple(suffix for reader in READERS for suffix in reader.suffixes)


@dataclass(frozen=True, slots=True)
class FolderContents:
    """What a folder or an index holds: the contents of its shards together."""

    format: str
    files: tuple[FileRecord, ...]
    contents: Contents
    sources: tuple[Source, ...]


def open_folder(path: str) -> FolderContents:
    """The checkpoint of a folder: by its index of shards, otherwise every file of one format. Raises ``InputError``."""
    place, catalogue = Place(path), Catalogue(path)
    names = place.file_names()
    for suffix in SUFFIXES:
        indexes = [name for name in names if name.endswith(suffix)]
        if len(indexes) > 1:
            hint = "give one of them as the path"
            raise InputError(f"{len(indexes)} indexes of shards: {some(indexes)}", path=path, hint=hint)
        if indexes:
            with place.open(indexes[0]) as source:
                weight_map = read_index(source, catalogue)
            return _open_indexed(place, catalogue, weight_map, names)
    return _open_unindexed(place, catalogue, names)


def open_index(source: Source) -> FolderContents:
    """The checkpoint that an index of shards describes; the shards lie beside it. Raises ``InputError``."""
    place, catalogue = Place(os.path.dirname(source.path) or "."), Catalogue(source.path)
    return _open_indexed(place, catalogue, read_index(source, catalogue), place.file_names())


def numbered_parts(path: str) -> bool:
    """True for the name of one of several parts, such as ``model-00001-of-00003.gguf``."""
    match = _NUMBERED.fullmatch(os.path.basename(path))
    return match is not None and int(match.group(3)) > 1


def open_parts(path: str) -> FolderContents:
    """The checkpoint that the file ``path`` is a numbered part of; the others lie beside it. Raises ``InputError``."""
    name = os.path.basename(path)
    place, catalogue = Place(os.path.dirname(path) or "."), Catalogue(path)
    joined = _Joined(place, catalogue, {})
    siblings, present = _numbered_siblings([name]), set(place.file_names())
    joined.expect(siblings, present)
    return joined.read(sorted(siblings.keys() & present | {name}))


def _open_indexed(
    place: Place, catalogue: Catalogue, weight_map: Mapping[str, str], names: Iterable[str]
) -> FolderContents:
    expected = Counter(weight_map.values())
    present = set(names)
    joined = _Joined(place, catalogue, weight_map)
    joined.expect(expected, present)
    shards = [shard for shard in sorted(expected) if shard in present]
    if not shards:
        raise InputError(f"none of the {len(expected)} shards of the index is there", path=place.path)
    if unlisted := [name for name in names if _is_likely(name) and name not in expected]:
        text = f"{len(unlisted)} files are not in the index and were not read: {some(unlisted)}"
        joined.findings.append(Finding("unlisted-file", text))
    return joined.read(shards)


def _open_unindexed(place: Place, catalogue: Catalogue, names: Iterable[str]) -> FolderContents:
    joined = _Joined(place, catalogue, {})
    by_format: dict[str, list[str]] = {}
    for name in names:
        try:
            with place.open(name) as source:
                reader = reader_for(source) if _is_likely(name) else recognised(source)
        except InputError as error:
            # A file that nobody would take for a checkpoint may be unreadable without a word.
            if _is_likely(name):
                joined.damaged(name, error)
            continue
        if reader is not None:
            by_format.setdefault(reader.name, []).append(name)
    chosen = next((reader.name for reader in READERS if reader.name in by_format), None)
    if chosen is None:
        if joined.errors:
            raise joined.errors[0]
        hint = "give the file, or the subfolder of the component"
        raise UnsupportedFormatError("no file of the folder can be read as a checkpoint", path=place.path, hint=hint)
    for other, files in by_format.items():
        if other != chosen:
            text = f"{len(files)} files in the format {other} were not read: {some(files)}"
            joined.findings.append(Finding("other-format", text))
    shards = by_format[chosen]
    if chosen == gguf.READER.name:
        _check_one_gguf(shards, place)
    joined.expect(_numbered_siblings(shards), set(shards))
    return joined.read(shards)


def _check_one_gguf(shards: Iterable[str], place: Place) -> None:
    """Raises ``InputError`` where a folder holds several GGUF checkpoints, which are mostly quantisations of one.

    Projectors of vision models (``mmproj``) are parts of the checkpoint.
    """
    heads: dict[str, str] = {}
    for shard in shards:
        match = _NUMBERED.fullmatch(shard)
        if "mmproj" not in shard.lower():
            heads.setdefault(shard if match is None else match.group(1), shard)
    if len(heads) > 1:
        hint = "give one of them as the path"
        raise InputError(f"{len(heads)} GGUF checkpoints: {some(heads.values())}", path=place.path, hint=hint)


def _numbered_siblings(shards: Iterable[str]) -> dict[str, int]:
    """The names that ``model-00002-of-00005.safetensors`` implies, with an unknown number of tensors (0) each."""
    siblings: dict[str, int] = {}
    for shard in shards:
        if (match := _NUMBERED.fullmatch(shard)) is not None and len(siblings) <= MAX_SHARDS:
            stem, _, count, suffix = match.groups()
            numbers = range(1, min(int(count), MAX_SHARDS) + 1)
            siblings.update((f"{stem}-{number:05}-of-{count}.{suffix}", 0) for number in numbers)
    return siblings


def _is_likely(name: str) -> bool:
    return name.lower().endswith(_USUAL_SUFFIXES)


@dataclass(slots=True)
class _Joined:
    """The shards of a folder while they are read one after the other."""

    place: Place
    catalogue: Catalogue
    weight_map: Mapping[str, str]
    complete: bool = True
    findings: list[Finding] = field(default_factory=list)
    errors: list[InputError] = field(default_factory=list)
    files: list[FileRecord] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)
    tensors: dict[str, TensorView] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def expect(self, counts: Mapping[str, int], present: set[str]) -> None:
        """Notes the shards that are not there; ``counts`` has the number of tensors of each, 0 if unknown."""
        for shard in sorted(counts.keys() - present):
            count = f", with {counts[shard]} tensors," if counts[shard] else ""
            self.findings.append(Finding("absent-shard", f"the shard {clipped(shard)!r}{count} is not there"))
            self.complete = False

    def damaged(self, name: str, error: InputError) -> None:
        """Notes a file that should be a shard and cannot be read."""
        self.errors.append(error)
        text = f"{clipped(name)!r} cannot be read: {clipped(str(error), 400)}"
        self.findings.append(Finding("unreadable-file", text))
        self.complete = False

    def read(self, shards: list[str]) -> FolderContents:
        """The tensors of ``shards`` together. Raises ``InputError`` if not one of them can be read."""
        if len(shards) > MAX_SHARDS:
            raise LimitExceededError(f"more than {MAX_SHARDS} shards", path=self.place.path)
        self.metadata.update(_config(self.place))
        try:
            for shard in shards:
                self._read_shard(shard)
        except BaseException:
            self.close()
            raise
        if not self.files:
            self.close()
            raise self.errors[0]
        self._note_contradictions()
        contents = Contents(tuple(self.tensors.values()), bounded(self.findings), self.metadata, self.complete)
        return FolderContents("+".join(sorted(self.formats)), tuple(self.files), contents, tuple(self.sources))

    def close(self) -> None:
        """Gives up the files that were opened."""
        for source in self.sources:
            source.close()

    def _read_shard(self, shard: str) -> None:
        try:
            source = self.place.open(shard)
            self.sources.append(source)
            reader = reader_for(source)
            contents = reader.open(source, self.catalogue)
        except InputError as error:
            self.damaged(shard, error)
            return
        self.formats.add(reader.name)
        self.files += (FileRecord(shard, source.size), *contents.files)
        self.sources += contents.sources
        self.complete = self.complete and contents.complete
        self.findings += (replace(f, message=f"{clipped(shard)}: {f.message}") for f in contents.findings)
        self.metadata = {**contents.metadata, **self.metadata}
        for tensor in contents.tensors:
            if tensor.name in self.tensors:
                self.duplicates.append(tensor.name)
                if self.weight_map.get(tensor.name) != shard:
                    continue
            self.tensors[tensor.name] = tensor
            self.homes[tensor.name] = shard

    def _note_contradictions(self) -> None:
        if names := self.duplicates:
            text = f"{len(names)} tensors are in several files and were read from one: {some(names)}"
            self.findings.append(Finding("duplicate-tensor", text, names[0]))
            # An index says which of them counts; without one, something is left unmeasured.
            self.complete = self.complete and bool(self.weight_map)
        if self.weight_map:
            contradictions = compare_index(self.weight_map, self.homes)
            self.findings += contradictions
            self.complete = self.complete and all(f.code != "absent-tensor" for f in contradictions)


def _config(place: Place) -> dict[str, str]:
    """The scalar fields of ``config.json``: claims for the report. A config that cannot be read claims nothing."""
    try:
        with place.open("config.json") as source:
            if source.size > MAX_CONFIG:
                return {}
            value = JsonCursor(source.read(0, source.size), path=source.path, what="config").value()
    except InputError:
        return {}
    if not isinstance(value, dict):
        return {}
    scalars = {f"config.{key}": str(item) for key, item in value.items() if isinstance(item, str | int | float)}
    return {key: clipped(item, MAX_NAME) for key, item in list(scalars.items())[:MAX_CONFIG_FIELDS]}
