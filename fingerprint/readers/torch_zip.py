"""PyTorch's zip files (``torch.save`` since 1.6): a pickle that describes, and one entry of bytes for each storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import Catalogue, Contents, Finding, some, truncated
from fingerprint.readers.pickles import read_pickle_at
from fingerprint.readers.torch_views import AbsentError, Storages, assembled, described
from fingerprint.readers.zips import ZipArchive, find_directory, first_name, is_zip
from fingerprint.source import Section

if TYPE_CHECKING:
    from fingerprint.readers.torch_objects import Found
    from fingerprint.source import Source

MAX_PICKLE = 32 << 20
"""Most bytes that a compressed pickle may unpack to."""


def recognises(source: Source) -> bool:
    """True for a ZIP archive with a ``data.pkl`` in its directory; one that was cut off is told by its first entry."""
    if not is_zip(source):
        return False
    try:
        offset, size, _ = find_directory(source)
    except InputError:
        return "/data" in first_name(source).lower()
    return b"/data.pkl" in bytes(source.read(offset, size)).lower()


def open_torch_zip(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The tensors of a PyTorch zip file, under the names of its state dict. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    archive = ZipArchive(source)
    prefix = _prefix(archive)
    found, findings = _described(archive, f"{prefix}/data.pkl", catalogue)

    def locate(key: str) -> tuple[Source, int, int]:
        name = f"{prefix}/data/{key}".lower()
        if archive.truncated and (name not in archive.entries or name == archive.cut):
            raise AbsentError
        return archive.locate(name)

    storages = Storages(source.path, locate, big_endian=_byte_order(archive, prefix) == "big")
    contents = assembled(found, storages, catalogue, source.size, [*archive.findings, *findings])
    if not archive.truncated or not contents.complete:
        return contents
    return replace(
        contents, findings=(*contents.findings, truncated(source.size, 0, len(contents.tensors))), complete=False
    )


def _prefix(archive: ZipArchive) -> str:
    """The folder in the archive that everything lies in: that of its first entry, as in torch's reader."""
    if not archive.entries:
        raise MalformedFileError("the archive is empty", path=archive.source.path)
    prefix = next(iter(archive.entries)).split("/", 1)[0]
    if f"{prefix}/data.pkl" == archive.cut:
        message = f"the file is cut off at byte {archive.source.size}, before the end of {clipped(prefix)}/data.pkl"
        raise MalformedFileError(message, path=archive.source.path)
    if f"{prefix}/data.pkl" not in archive.entries:
        raise MalformedFileError(f"the archive has no {clipped(prefix)}/data.pkl", path=archive.source.path)
    return prefix


def _described(archive: ZipArchive, name: str, catalogue: Catalogue) -> tuple[Found, list[Finding]]:
    source, start, size = archive.locate(name)
    if source is not archive.source and size > MAX_PICKLE:
        message = f"{name!r} has {size} bytes; {MAX_PICKLE} are allowed"
        raise LimitExceededError(message, path=archive.source.path)
    entry = Section(source, start, size)
    archive.check_crc(name, entry)
    pickle = read_pickle_at(entry)
    found, findings = described(pickle, size, catalogue)
    if pickle.end < size:
        findings.append(Finding("trailing-bytes", f"{size - pickle.end} bytes follow the end of the pickle"))
    others = [e.name for key, e in archive.entries.items() if key.endswith((".pkl", ".pickle")) and key != name]
    if others:
        findings.append(Finding("other-pickles", f"{len(others)} more pickles were not read: {some(others)}"))
    return found, findings


def _small(archive: ZipArchive, name: str, most: int) -> bytes:
    source, start, size = archive.locate(name)
    if size > most:
        raise LimitExceededError(f"{name!r} has {size} bytes; {most} are allowed", path=archive.source.path)
    return bytes(source.read(start, size))


def _byte_order(archive: ZipArchive, prefix: str) -> str:
    name = f"{prefix}/byteorder"
    if name not in archive.entries:
        return "little"
    order = _small(archive, name, 16)
    if order not in {b"little", b"big"}:
        raise MalformedFileError(f"unknown byte order {clipped(repr(order))}", path=archive.source.path)
    return order.decode()
