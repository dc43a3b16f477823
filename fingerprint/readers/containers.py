"""Archives of a checkpoint (zip, tar, compressed ones): opened as a folder, with bounds on count, ratio, depth, links.

Members that are stored as they are lie as windows on the file; what is compressed goes through a bounded temporary
file. Nothing is written beside the archive.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from fingerprint.errors import InputNotFoundError, LimitExceededError, UnsupportedFormatError, clipped
from fingerprint.readers import compressed, reader_for, recognised
from fingerprint.readers.base import Finding, bounded, some, truncated
from fingerprint.readers.folder import FolderContents, is_likely, open_components, open_files
from fingerprint.readers.tars import is_tar, read_tar
from fingerprint.readers.zips import ZipArchive, is_zip
from fingerprint.source import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fingerprint.readers.base import Catalogue
    from fingerprint.readers.tars import Member
    from fingerprint.source import Source

MAX_DEPTH = 3
"""Most archives and compressions inside one another: ``.tar.gz`` in a ``.zip``."""
MAX_LINKS = 8
"""Most links that lead from one to the next."""
_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst")
_OLDEST_TORCH = {"pickle", "storages", "tensors"}
"""Members of the tar archives that torch wrote before 0.1.10."""


def container_kind(source: Source) -> str | None:
    """``zip``, ``tar``, ``gz``, ``bz2``, ``xz`` or ``zst``, told by the first bytes, or None."""
    if is_zip(source):
        return "zip"
    return compressed.kind_of(source) or ("tar" if is_tar(source) else None)


def is_container(source: Source) -> bool:
    """True for an archive that no reader takes for a file of its own format."""
    kind = container_kind(source)
    if kind is None or recognised(source) is not None:
        return False
    # A broken file of PyTorch or numpy is to be called that.
    return kind != "zip" or not is_likely(source.path)


def open_container(source: Source, catalogue: Catalogue, depth: int = 1) -> FolderContents:
    """The checkpoint in an archive. Raises ``InputError``."""
    if depth > MAX_DEPTH:
        message = f"more than {MAX_DEPTH} archives inside one another"
        raise LimitExceededError(message, path=source.path, hint="unpack it and give the folder")
    kind = container_kind(source) or ""
    if kind in {"zip", "tar"}:
        place, findings, whole = (_zip if kind == "zip" else _tar)(source)
        found = _open_tree(place, catalogue, depth)
    else:
        inner = compressed.unpack(source, _inner_name(source.path))
        findings, whole = ([truncated(source.size)] if inner.truncated else []), not inner.truncated
        found = _open_one(inner, catalogue, depth)
    contents = replace(
        found.contents,
        findings=bounded([*findings, *found.contents.findings]),
        complete=found.contents.complete and whole,
    )
    return replace(found, contents=contents, container=_joined(found.container, kind))


def _joined(inner: str, outer: str) -> str:
    if not inner:
        return outer
    return f"{inner}.{outer}" if inner == "tar" and outer != "zip" else f"{inner} in {outer}"


def _inner_name(path: str) -> str:
    """What the one file in a compressed one is called: the path without the last suffix."""
    stem, dot, suffix = path.rpartition(".")
    if suffix.lower() == "tgz":
        return f"{stem}.tar"
    return stem if dot and f".{suffix.lower()}" in _SUFFIXES else path


def _open_one(inner: Source, catalogue: Catalogue, depth: int) -> FolderContents:
    if inner.size and is_container(inner):
        return open_container(inner, catalogue, depth + 1)
    reader = reader_for(inner)
    return FolderContents(reader.name, (), reader.open(inner, catalogue), ())


def _open_tree(place: ArchivePlace, catalogue: Catalogue, depth: int) -> FolderContents:
    """The checkpoint in the tree of an archive: in its top folder, or in the folders below it."""
    folders = place.folders_with(is_likely)
    if not folders:
        nested = place.files_with(lambda name: name.lower().endswith(_SUFFIXES))
        if len(nested) == 1:
            return _open_one(place.open(nested[0]), catalogue, depth)
        if nested:
            hint = "unpack it and give one of them"
            raise UnsupportedFormatError(f"{len(nested)} archives in it: {some(nested)}", path=place.path, hint=hint)
        return open_files(place.single(), catalogue)
    top = posixpath.commonpath(folders) if len(folders) > 1 else folders[0]
    base = place.sub(top) if top else place
    if len(folders) == 1:
        return open_files(base, catalogue)
    if top not in folders:
        parts = {posixpath.relpath(folder, top or "."): place.sub(folder) for folder in folders}
        return open_components(base, parts, catalogue)
    found = open_files(base, catalogue)
    if found.components:
        return found
    below = [folder for folder in folders if folder != top]
    finding = Finding("unread-folder", f"{len(below)} folders below the checkpoint's were not read: {some(below)}")
    return replace(found, contents=replace(found.contents, findings=(*found.contents.findings, finding)))


def _zip(source: Source) -> tuple[ArchivePlace, list[Finding], bool]:
    archive = ZipArchive(source, exact=True)
    members: dict[str, Callable[[], Source]] = {}
    findings = list(archive.findings)
    links: list[str] = []
    for name, entry in archive.entries.items():
        if entry.link:
            links.append(name)
        elif not name.endswith("/"):
            members[name] = _Entry(archive, name)
    if links:
        findings.append(Finding("archive-link", f"{len(links)} links in the archive were not followed: {some(links)}"))
    if archive.truncated:
        findings.append(truncated(source.size))
    return ArchivePlace(source.path, _named(members, findings)), findings, not archive.truncated


class _Entry(Struct, frozen=True):
    """Opens an entry of a ZIP archive."""

    archive: ZipArchive
    name: str

    def __call__(self) -> Source:
        source, start, size = self.archive.locate(self.name)
        return Section(source, start, size, f"{self.archive.source.path}!/{self.name}")


def _tar(source: Source) -> tuple[ArchivePlace, list[Finding], bool]:
    archive = read_tar(source)
    by_name = {_plain(member.name): member for member in archive.members}
    if {name.rpartition("/")[2] for name in by_name} >= _OLDEST_TORCH:
        hint = "load it with PyTorch and save it anew"
        raise UnsupportedFormatError("a file of PyTorch before 0.1.10, a tar archive", path=source.path, hint=hint)
    members: dict[str, Callable[[], Source]] = {}
    findings: list[Finding] = []
    links: list[str] = []
    for name, member in by_name.items():
        found = _followed(member, by_name)
        if found is None:
            links.append(name)
            continue
        # Of a member that was cut off, the beginning is there.
        size = min(found.size, max(source.size - found.offset, 0))
        members[name] = _Window(source, found.offset, size, f"{source.path}!/{name}")
    if links:
        text = f"{len(links)} links that lead out of the archive, or nowhere, were not followed: {some(links)}"
        findings.append(Finding("archive-link", text))
    if archive.sparse:
        text = f"{len(archive.sparse)} sparse members were not read: {some(archive.sparse)}"
        findings.append(Finding("sparse-member", text))
    if archive.truncated:
        findings.append(truncated(source.size))
    return ArchivePlace(source.path, _named(members, findings)), findings, not archive.truncated and not archive.sparse


class _Window(Struct, frozen=True):
    """Opens a member that is stored as it is."""

    source: Source
    offset: int
    size: int
    path: str

    def __call__(self) -> Source:
        return Section(self.source, min(self.offset, self.source.size), self.size, self.path)


def _followed(member: Member, by_name: Mapping[str, Member]) -> Member | None:
    """The file that a member is, or that its links lead to inside the archive."""
    for _ in range(MAX_LINKS):
        if member.target is None:
            return member
        base = "" if member.hard else posixpath.dirname(_plain(member.name))
        if member.target.startswith("/"):
            return None
        found = by_name.get(_plain(posixpath.join(base, member.target)))
        if found is None:
            return None
        member = found
    return None


def _plain(name: str) -> str:
    return posixpath.normpath(name).removeprefix("./")


def _named(members: Mapping[str, Callable[[], Source]], findings: list[Finding]) -> dict[str, Callable[[], Source]]:
    """``members`` by names without tricks: none leads upwards or to the root, and none is hidden by another."""
    kept: dict[str, Callable[[], Source]] = {}
    left_out: list[str] = []
    for name, member in members.items():
        plain = _plain(name.replace("\\", "/"))
        if plain.startswith(("/", "..")) or not plain.isprintable() or plain in kept:
            left_out.append(name)
        elif not _is_junk(plain):
            kept[plain] = member
    if left_out:
        text = f"{len(left_out)} members were not read, as their names lead elsewhere or are others': {some(left_out)}"
        findings.append(Finding("odd-member-name", text))
    return kept


def _is_junk(name: str) -> bool:
    """What macOS adds to archives."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


class ArchivePlace:
    """A folder in an archive, as ``fingerprint.readers.places.Folder``."""

    distant = False

    def __init__(self, archive: str, members: Mapping[str, Callable[[], Source]], prefix: str = "") -> None:
        """``members`` by their path in the archive; ``prefix`` is that of the folder, empty or with a slash behind."""
        self.path = f"{archive}!/{prefix}".removesuffix("!/").removesuffix("/")
        self._archive = archive
        self._members = members
        self._prefix = prefix

    def file_names(self) -> list[str]:
        """See ``Folder``."""
        return sorted(name for name in self._below() if "/" not in name)

    def folder_names(self) -> list[str]:
        """See ``Folder``."""
        return sorted({name.partition("/")[0] for name in self._below() if "/" in name})

    def present(self, names: Iterable[str]) -> set[str]:
        """See ``Folder``."""
        return set(self.file_names()).intersection(names)

    def open(self, name: str) -> Source:
        """See ``Folder``."""
        member = self._members.get(self._prefix + name)
        if member is None:
            raise InputNotFoundError("no such member", path=f"{self._archive}!/{self._prefix}{clipped(name)}")
        return member()

    def sub(self, name: str) -> ArchivePlace:
        """See ``Folder``."""
        return ArchivePlace(self._archive, self._members, f"{self._prefix}{name}/")

    def single(self) -> ArchivePlace:
        """The first folder on the way down that holds more than one folder."""
        place = self
        while not place.file_names() and len(place.folder_names()) == 1:
            place = place.sub(place.folder_names()[0])
        return place

    def files_with(self, test: Callable[[str], bool]) -> list[str]:
        """Paths of the files below whose names pass ``test``."""
        return sorted(name for name in self._below() if test(name.rpartition("/")[2]))

    def folders_with(self, test: Callable[[str], bool]) -> list[str]:
        """Paths of the folders, ``""`` for this one, that hold files whose names pass ``test``."""
        return sorted({posixpath.dirname(name) for name in self.files_with(test)})

    def _below(self) -> list[str]:
        length = len(self._prefix)
        return [name[length:] for name in self._members if name.startswith(self._prefix)]
