"""A checkpoint: tensors of one file, or of the shards of one folder, whatever the format."""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from msgspec import Struct, field
from msgspec.structs import replace

from fingerprint.readers import GGUF, containers, folder, reader_for
from fingerprint.readers.base import Catalogue, Contents, FileRecord, Finding
from fingerprint.readers.index import is_index
from fingerprint.readers.places import folder_of
from fingerprint.readers.restore import restored
from fingerprint.source import FileSource, stat_path
from fingerprint.urls import is_remote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.readers.places import Folder
    from fingerprint.remote.transfer import Transfer
    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

__all__ = ["Checkpoint", "FileRecord", "Finding", "open_checkpoint"]


class Checkpoint(Struct, frozen=True):
    """Tensors that belong together, read on demand.

    ``path`` as it was given; ``format`` the reader's name; ``metadata`` the checkpoint's claims about itself, never
    evidence; ``complete`` False where tensors are known to be absent or unreadable (the findings say which).
    ``transfer`` fetches what lies elsewhere, None for what lies here. A context manager; ``close`` gives up the files.
    """

    path: str
    format: str
    files: tuple[FileRecord, ...]
    tensors: tuple[TensorView, ...]
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    complete: bool = True
    sources: tuple[Source, ...] = ()
    transfer: Transfer | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def dtypes(self) -> dict[str, int]:
        """Elements by the name of their dtype, the most frequent first."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.dtype.name] += math.prod(tensor.shape)
        return dict(counts.most_common())

    def close(self) -> None:
        """Gives up the files; windows that were read before stay valid."""
        for source in self.sources:
            source.close()
        if self.transfer is not None:
            self.transfer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a file, a folder or an archive of one checkpoint, a snapshot of a Hugging Face cache, an index of shards.

    ``path`` may be a URL too (``https://``, ``hf://``, ``s3://``, ``gs://``), or a ``remote.Location``, which says how
    to fetch; then only what is needed is fetched. The format is told by content. ``path`` itself may be a symbolic
    link; links inside a folder are followed inside it (in a cache's snapshot also to the cache's own blobs) and nowhere
    else. Raises ``InputError``, and ``UsageError`` for an environment that cannot be followed.
    """
    if is_remote(path):
        return _of_remote(path)
    name = os.fspath(path)
    if stat.S_ISDIR(stat_path(name).st_mode):
        return _of_folder(name, folder.open_folder(name))
    return _of_file(name, FileSource(name), None)


def _of_remote(path: str | os.PathLike[str]) -> Checkpoint:
    from fingerprint.remote.location import Location, locate

    location = Location.of(path)
    found = locate(location)
    name = str(location)
    try:
        if found.name is None:
            opened = _of_folder(name, folder.open_files(found.folder, Catalogue(name)))
        else:
            opened = _of_file(name, found.folder.open(found.name), found.folder)
    except BaseException:
        found.transfer.close()
        raise
    return replace(opened, transfer=found.transfer)


def _of_file(name: str, source: Source, beside: Folder | None) -> Checkpoint:
    """The checkpoint of one file. ``beside``: the folder that it lies in, None for the one on disk."""
    try:
        if is_index(source) and not _is_tfjs(source):
            found = folder.open_index(source, folder_of(source, beside))
            source.close()
            return _of_folder(name, found)
        if source.size and containers.is_container(source):
            return _of_archive(name, containers.open_container(source, Catalogue(name)), source)
        reader = reader_for(source)
        if reader.name == GGUF and folder.numbered_parts(source.path):
            # Only the first part has the metadata that all of them need.
            source.close()
            return _of_folder(name, folder.open_parts(source.path, folder_of(source, beside)))
        catalogue = Catalogue(name)
        catalogue.beside = beside
        contents = reader.open(source, catalogue)
    except BaseException:
        source.close()
        raise
    claims = folder.claims_of(folder_of(source, beside))
    contents = replace(contents, metadata=claims | dict(contents.metadata))
    return _checkpoint(name, reader.name, (FileRecord(name, source.size),), contents, (source,))


def _is_tfjs(source: Source) -> bool:
    """Whether what looks like an index of shards is a model of TensorFlow.js."""
    from fingerprint.readers import tfjs

    return tfjs.recognises(source)


def _of_folder(name: str, found: folder.FolderContents) -> Checkpoint:
    return _checkpoint(name, found.format, found.files, found.contents, found.sources)


def _of_archive(name: str, found: folder.FolderContents, source: Source) -> Checkpoint:
    """A checkpoint in an archive has one file: the archive."""
    files = (FileRecord(name, source.size),)
    opened = _checkpoint(name, found.format, files, found.contents, (source, *found.sources))
    return replace(opened, format=f"{found.format} in {found.container}", files=files)


def _checkpoint(
    name: str, file_format: str, files: tuple[FileRecord, ...], contents: Contents, sources: tuple[Source, ...]
) -> Checkpoint:
    contents = restored(contents, file_format)
    findings = contents.findings
    if not contents.tensors:
        findings += (Finding("no-tensors", "there is not one tensor in it"),)
    return Checkpoint(
        path=name,
        format=file_format,
        files=files + contents.files,
        tensors=contents.tensors,
        findings=findings,
        metadata=MappingProxyType(dict(contents.metadata)),
        complete=contents.complete,
        sources=sources + contents.sources,
    )
