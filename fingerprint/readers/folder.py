"""Folders and indexes of shards: which files make up the checkpoint, which are absent, and their tensors together."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from fingerprint.errors import InputError, LimitExceededError, UnsupportedFormatError, clipped
from fingerprint.readers import FORMATS, GGUF, marks, reader_for, recognised
from fingerprint.readers.adapters import CLAIMS, CONFIG
from fingerprint.readers.base import MAX_NAME, Catalogue, Contents, FileRecord, Finding, bounded, some
from fingerprint.readers.bounded_json import Json, JsonCursor
from fingerprint.readers.cards import claims_beside
from fingerprint.readers.index import SUFFIXES, compare_index, read_index
from fingerprint.readers.places import Place
from fingerprint.tensors import renamed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fingerprint.readers.places import Folder
    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

MAX_SHARDS = 4096
MAX_CONFIG = 1 << 20
"""Most bytes of a ``config.json`` that is read."""
MAX_CONFIG_FIELDS = 128
MAX_ADAPTER_FIELDS = 1024
MAX_COMPONENTS = 64
"""Most folders that are components of one checkpoint."""
_PIPELINE, _MODULES = "model_index.json", "modules.json"
"""What lies beside the components of a pipeline of diffusers, and beside those of sentence-transformers."""
_SAVED_MODEL = "saved_model.pb"
"""What TensorFlow puts beside the folder of its variables."""
_MANIFEST, _PACKAGED = "Manifest.json", ("Data", "com.apple.CoreML")
"""The manifest of a Core ML package, and the folder in it where its model lies."""
MAX_CONFIG_DEPTH = 4
MAX_CONFIG_LIST = 8
NESTED = ("quantization_config", "quantization", "text_config", "architectures")
"""Objects of a ``config.json`` whose fields are read as well."""
_ORIGINS = ("config._name_or_path", f"{CLAIMS}base_model_name_or_path")
_NUMBERED = re.compile(r"(.{0,200})-([0-9]{5})-of-([0-9]{5})\.([a-z]{2,16})")
_USUAL_SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)


class FolderContents(Struct, frozen=True):
    """What a folder or an index holds: the contents of its shards together.

    ``container`` is the archive that it lies in, if any; ``components`` are folders of a composite checkpoint.
    """

    format: str
    files: tuple[FileRecord, ...]
    contents: Contents
    sources: tuple[Source, ...]
    container: str = ""
    components: tuple[str, ...] = ()


def open_folder(path: str) -> FolderContents:
    """The checkpoint of a folder on disk. Raises ``InputError``."""
    return open_files(Place(path), Catalogue(path))


def open_files(place: Folder, catalogue: Catalogue) -> FolderContents:
    """The checkpoint of a folder: its components, if it says that it has some; otherwise by its index of shards, or
    every file of one format. Raises ``InputError``.
    """
    names = place.file_names()
    if _SAVED_MODEL in names and "variables" in place.folder_names():
        return open_files(place.sub("variables"), catalogue)
    if _MANIFEST in names and _PACKAGED[0] in place.folder_names():
        inner = place.sub(_PACKAGED[0])
        if _PACKAGED[1] in inner.folder_names():
            return open_files(inner.sub(_PACKAGED[1]), catalogue)
    likely = any(map(is_likely, names))
    if not likely or not marks.FOLDERS.isdisjoint(names):
        found = _of_arrays(place, catalogue, names, likely=likely)
        if found is not None:
            return found
    parts = _components(place, names)
    if parts:
        return open_components(place, parts, catalogue)
    for suffix in SUFFIXES:
        indexes = [name for name in names if name.endswith(suffix)]
        if len(indexes) > 1:
            hint = "give one of them as the path"
            raise InputError(f"{len(indexes)} indexes of shards: {some(indexes)}", path=place.path, hint=hint)
        if indexes:
            source = place.open(indexes[0])
            try:
                weight_map = read_index(source, catalogue)
            finally:
                source.close()
            return _open_indexed(place, catalogue, weight_map)
    return _open_unindexed(place, catalogue, names)


def _of_arrays(place: Folder, catalogue: Catalogue, names: list[str], *, likely: bool) -> FolderContents | None:
    """The checkpoint of a folder that holds each tensor in files of its own, or folders of such; None for any other.

    ``likely``: one of its files looks as if it held weights. Raises ``InputError``.
    """
    from fingerprint.readers import distributed, orbax, zarr

    if marks.DISTRIBUTED in names:
        contents, files = distributed.open_distributed(place, catalogue)
        return FolderContents(distributed.FORMAT, files, contents, ())
    if orbax.is_orbax(place, names):
        contents, files = orbax.open_orbax(place, catalogue)
        return FolderContents(orbax.FORMAT, files, _with_claims(contents, place), ())
    if zarr.is_zarr(names):
        contents, files = zarr.open_zarr(place, catalogue)
        return FolderContents(zarr.FORMAT, files, _with_claims(contents, place), ())
    items = {} if likely else orbax.items(place, names)
    if not items:
        return None
    if len(items) > 1:
        return open_components(place, items, catalogue)
    return open_files(next(iter(items.values())), catalogue)


def _with_claims(contents: Contents, place: Folder) -> Contents:
    """``contents`` with what the texts beside the weights say."""
    return replace(contents, metadata=_config(place) | claims_beside(place) | dict(contents.metadata))


def open_components(place: Folder, parts: Mapping[str, Folder], catalogue: Catalogue) -> FolderContents:
    """The checkpoints of several folders as one; the names of tensors begin with the folder's. Raises ``InputError``.

    ``""`` stands for ``place`` itself.
    """
    if len(parts) > MAX_COMPONENTS:
        hint = "give one of them as the path"
        raise LimitExceededError(f"{len(parts)} components; {MAX_COMPONENTS} are allowed", path=place.path, hint=hint)
    joined = _Joined(place, catalogue, {})
    joined.metadata.update(claims_beside(place))
    opened: list[str] = []
    try:
        for name, part in parts.items():
            try:
                found = _open_unindexed(part, catalogue, part.file_names()) if not name else open_files(part, catalogue)
            except InputError as error:
                joined.damaged(name or ".", error)
                continue
            opened.append(name or ".")
            joined.add_component(name, found)
    except BaseException:
        joined.close()
        raise
    if not opened:
        raise joined.errors[0]
    return joined.together(tuple(opened))


def _components(place: Folder, names: Iterable[str]) -> dict[str, Folder]:
    """The folders that a composite checkpoint says it consists of, as far as they hold weights."""
    present = set(names)
    if _PIPELINE in present:
        folders = place.folder_names()
        parts = {name: place.sub(name) for name in folders[: MAX_COMPONENTS + 1]}
    elif _MODULES in present:
        folders = [name for name in place.folder_names() if name in _modules(place)]
        parts = {"": place, **{name: place.sub(name) for name in folders[: MAX_COMPONENTS + 1]}}
    else:
        return {}
    found = {name: part for name, part in parts.items() if any(is_likely(file) for file in part.file_names())}
    return {} if set(found) <= {""} else found


def _modules(place: Folder) -> set[str]:
    """The folders that ``modules.json`` lists."""
    value = _json(place, _MODULES)
    listed = value if isinstance(value, list) else []
    return {str(module.get("path")) for module in listed if isinstance(module, dict)}


def open_index(source: Source, place: Folder) -> FolderContents:
    """The checkpoint that an index of shards describes; they lie beside it in ``place``. Raises ``InputError``."""
    catalogue = Catalogue(source.path)
    return _open_indexed(place, catalogue, read_index(source, catalogue))


def numbered_parts(path: str) -> bool:
    """True for the name of one of several parts, such as ``model-00001-of-00003.gguf``."""
    match = _NUMBERED.fullmatch(os.path.basename(path))
    return match is not None and int(match.group(3)) > 1


def open_parts(path: str, place: Folder) -> FolderContents:
    """The checkpoint that the file ``path`` is a numbered part of; the others lie beside it in ``place``.

    Raises ``InputError``.
    """
    name = os.path.basename(path)
    joined = _Joined(place, Catalogue(path), {})
    siblings = _numbered_siblings([name])
    present = place.present(siblings)
    joined.expect(siblings, present)
    return joined.read(sorted(present | {name}))


def _open_indexed(place: Folder, catalogue: Catalogue, weight_map: Mapping[str, str]) -> FolderContents:
    expected = Counter(weight_map.values())
    present = place.present(expected)
    joined = _Joined(place, catalogue, weight_map)
    joined.expect(expected, present)
    shards = [shard for shard in sorted(expected) if shard in present]
    if not shards:
        raise InputError(f"none of the {len(expected)} shards of the index is there", path=place.path)
    if unlisted := [name for name in place.file_names() if _is_likely(name) and name not in expected]:
        text = f"{len(unlisted)} files are not in the index and were not read: {some(unlisted)}"
        joined.findings.append(Finding("unlisted-file", text))
    return joined.read(shards)


def _open_unindexed(place: Folder, catalogue: Catalogue, names: Iterable[str]) -> FolderContents:
    joined = _Joined(place, catalogue, {})
    if place.distant:
        names = sorted(place.present(filter(_is_likely, names)))
    by_format: dict[str, list[str]] = {}
    sure: set[str] = set()
    for name in names:
        try:
            source = place.open(name)
            try:
                reader = recognised(source)
                if reader is not None:
                    sure.add(reader.name)
                elif _is_likely(name):
                    reader = reader_for(source)
            finally:
                source.close()
        except InputError as error:
            # A file that nobody would take for a checkpoint may be unreadable without a word.
            if _is_likely(name):
                joined.damaged(name, error)
            continue
        if reader is not None:
            by_format.setdefault(reader.name, []).append(name)
    chosen = next((one.name for one in FORMATS if one.name in (sure or by_format)), None)
    if chosen is None:
        if joined.errors:
            raise joined.errors[0]
        hint = "give the file, or the subfolder of the component"
        raise UnsupportedFormatError("no file of the folder can be read as a checkpoint", path=place.path, hint=hint)
    shards = by_format.pop(chosen)
    joined.others = by_format
    if chosen == GGUF:
        _check_one_gguf(shards, place)
    joined.expect(_numbered_siblings(shards), set(shards))
    return joined.read(shards)


def _check_one_gguf(shards: Iterable[str], place: Folder) -> None:
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


def is_likely(name: str) -> bool:
    """True for the usual name of a file with weights, or of an index of such files."""
    return name.lower().endswith(SUFFIXES) or name in {marks.DISTRIBUTED, marks.ORBAX} or _is_likely(name)


def _is_likely(name: str) -> bool:
    return name.lower().endswith(_USUAL_SUFFIXES)


class _Joined(Struct):
    """The shards of a folder while they are read one after the other."""

    place: Folder
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
    others: dict[str, list[str]] = field(default_factory=dict)

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
        self.metadata.update(_config(self.place) | _adapter_config(self.place) | claims_beside(self.place))
        try:
            for shard in shards:
                self._read_shard(shard)
        except BaseException:
            self.close()
            raise
        if not self.files:
            self.close()
            raise self.errors[0]
        self._note_others()
        self._note_contradictions()
        return self.together()

    def together(self, components: tuple[str, ...] = ()) -> FolderContents:
        """Everything that was read."""
        contents = Contents(tuple(self.tensors.values()), bounded(self.findings), self.metadata, self.complete)
        formats = "+".join(sorted(self.formats))
        return FolderContents(formats, tuple(self.files), contents, tuple(self.sources), components=components)

    def add_component(self, name: str, found: FolderContents) -> None:
        """Takes in the checkpoint of the folder ``name`` (``""``: the folder itself), its tensors under that name."""
        prefix = f"{name.replace('/', '.')}." if name else ""
        contents = found.contents
        self.formats |= set(found.format.split("+"))
        self.files += (FileRecord(f"{name}/{file.path}" if name else file.path, file.bytes) for file in found.files)
        self.sources += found.sources
        self.complete = self.complete and contents.complete
        parameters = sum(math.prod(tensor.shape) for tensor in contents.tensors)
        text = f"component {name or '.'}: {found.format}, {len(contents.tensors)} tensors, {parameters:,} parameters"
        self.findings.append(Finding("component", text))
        self.findings += (replace(f, message=f"{name or '.'}: {f.message}") for f in contents.findings)
        self.metadata |= {f"{prefix}{key}": value for key, value in contents.metadata.items()}
        for tensor in contents.tensors:
            full = f"{prefix}{tensor.name}"
            self.catalogue.add_name(full)
            self.tensors[full] = renamed(tensor, full)

    def close(self) -> None:
        """Gives up the files that were opened."""
        for source in self.sources:
            source.close()

    def _read_shard(self, shard: str) -> None:
        try:
            source = self.place.open(shard)
            self.sources.append(source)
            reader = reader_for(source)
            self.catalogue.beside = self.place
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

    def _note_others(self) -> None:
        """Notes the files of other formats, as far as they are no data of those that were read."""
        read = {file.path for file in self.files}
        for other, files in self.others.items():
            if left := [name for name in files if name not in read]:
                text = f"{len(left)} files in the format {other} were not read: {some(left)}"
                self.findings.append(Finding("other-format", text))

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


def _config(place: Folder) -> dict[str, str]:
    """The scalar fields of ``config.json``: claims for the report. A config that cannot be read claims nothing.

    Of objects in it, those about the language model and about quantisation are read too, as ``config.object.field``.
    """
    value = _json(place, "config.json")
    if not isinstance(value, dict):
        return {}
    fields = [pair for key, item in value.items() for pair in _scalars(f"config.{key}", item, key in NESTED, 1)]
    return {key: clipped(text, MAX_NAME) for key, text in fields[:MAX_CONFIG_FIELDS]}


def _adapter_config(place: Folder) -> dict[str, str]:
    """The scalars of an adapter's config, those in objects too: its scales are among them."""
    value = _json(place, CONFIG)
    if not isinstance(value, dict):
        return {}
    fields = [pair for key, item in value.items() for pair in _scalars(f"{CLAIMS}{key}", item, nested=True, depth=1)]
    return {key: clipped(text, MAX_NAME) for key, text in fields[:MAX_ADAPTER_FIELDS]}


def _scalars(key: str, value: Json, nested: bool, depth: int) -> Iterator[tuple[str, str]]:
    """The scalars in ``value`` under names joined with dots; of objects and short lists only if ``nested``."""
    if isinstance(value, str | int | float):
        yield key, str(value)
    elif nested and depth <= MAX_CONFIG_DEPTH:
        items: Iterable[tuple[object, Json]] = ()
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list) and len(value) <= MAX_CONFIG_LIST:
            items = enumerate(value)
        for inner, item in items:
            yield from _scalars(f"{key}.{inner}", item, nested, depth + 1)


def claims_of(place: Folder) -> dict[str, str]:
    """What the folder that one file lies in says about where the weights come from: cards, and names in configs.

    A server that does not list its files is not asked for them one by one.
    """
    if place.distant and not place.file_names():
        return {}
    beside = {**_config(place), **_adapter_config(place)}
    return {key: value for key, value in beside.items() if key in _ORIGINS} | claims_beside(place)


def _json(place: Folder, name: str) -> Json:
    """What a small file of JSON holds; None where it cannot be read."""
    try:
        source = place.open(name)
        try:
            if source.size > MAX_CONFIG:
                return None
            return JsonCursor(source.read(0, source.size), path=source.path, what="config").value()
        finally:
            source.close()
    except InputError:
        return None
