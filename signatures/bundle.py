"""Bundles: signatures and what is said about them, in one file for another registry.

Layout, little-endian: 8 bytes of magic, major and minor version (u16 each), number of entries (u32); then for each
entry length and CRC-32 of its record (u32 each), length of its signature file (u64), the record (JSON) and the file.
A record is ``{"identity": "sha256:...", "names": [{"name", "owner", "license", "revision", "base", "note", "origin",
"registered"}]}`` with times in seconds since 1970. Entries are read one at a time; a bundle is as hostile as a suspect.
"""

from __future__ import annotations

import os
import struct
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO, Final

from msgspec import Struct

from fingerprint.errors import InputNotFoundError, MalformedSignatureError, SignatureVersionError, UsageError
from signatures.container import MAX_FILE_BYTES, canonical_json, parse_object
from signatures.files import written_atomically
from signatures.records import MAX_NOTE, Registration, require_label, require_name, require_origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from fingerprint.readers.bounded_json import Json

MAGIC: Final = b"\x89FPBUN\r\n"
MAJOR: Final = 1
MINOR: Final = 0
MAX_RECORD_BYTES: Final = 1 << 20
MAX_NAMES: Final = 1000
_PREAMBLE: Final = struct.Struct("<8sHHI")
_ENTRY: Final = struct.Struct("<IIQ")
_LABELS: Final = ("owner", "license", "revision", "base", "note")
_LAST_MOMENT: Final = 253402300799


class BundleEntry(Struct, frozen=True):
    """One model of a bundle: its identity and names as the record states them, and the signature file, unchecked."""

    identity: str
    registrations: tuple[Registration, ...]
    data: bytes


def write_bundle(path: Path, count: int, entries: Iterable[BundleEntry]) -> None:
    """Write ``count`` entries to ``path``, whole or not at all; raises ``UsageError`` if it cannot be written."""
    with written_atomically(path) as file:
        file.write(_PREAMBLE.pack(MAGIC, MAJOR, MINOR, count))
        for entry in entries:
            names = [_to_mapping(registration) for registration in entry.registrations]
            record = canonical_json({"identity": entry.identity, "names": names})
            if len(record) > MAX_RECORD_BYTES or len(names) > MAX_NAMES:
                raise UsageError(f"{entry.registrations[0].name} has too many names for a bundle")
            file.write(_ENTRY.pack(len(record), zlib.crc32(record), len(entry.data)))
            file.write(record)
            file.write(entry.data)


def read_bundle(path: Path, origin: str) -> Iterator[BundleEntry]:
    """The entries of a bundle, one at a time, as registrations of ``origin``.

    Raises ``MalformedSignatureError``, ``SignatureVersionError``, ``InputNotFoundError``.
    """
    try:
        if not path.is_file():
            raise InputNotFoundError("there is no such file", path=str(path))
        with path.open("rb") as file:
            yield from _entries(file, str(path), origin)
    except OSError as error:
        raise InputNotFoundError(f"the file cannot be read: {error.strerror}", path=str(path)) from None


def is_bundle(path: Path) -> bool:
    """Whether there is a regular file at ``path`` that begins as a bundle does."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _entries(file: BinaryIO, path: str, origin: str) -> Iterator[BundleEntry]:
    left = os.fstat(file.fileno()).st_size
    magic, major, _, count = _PREAMBLE.unpack(_take(file, _PREAMBLE.size, path))
    if magic != MAGIC:
        raise MalformedSignatureError(f"{path}: this is not a bundle of signatures")
    if major != MAJOR:
        raise SignatureVersionError(
            f"{path}: version {major} of the bundle format is not one that this program reads; use a newer release"
        )
    left -= _PREAMBLE.size
    for _ in range(count):
        length, checksum, size = _ENTRY.unpack(_take(file, _ENTRY.size, path))
        left -= _ENTRY.size + length + size
        if length > MAX_RECORD_BYTES or size > MAX_FILE_BYTES or left < 0:
            raise MalformedSignatureError(f"{path}: an entry is larger than the format or the file allows")
        record = _take(file, length, path)
        if zlib.crc32(record) != checksum:
            raise MalformedSignatureError(f"{path}: the checksum of a record does not agree: the file is damaged")
        values = parse_object(record, path=path, what="record")
        registrations = _registrations(values, path, origin)
        yield BundleEntry(_text(values.get("identity"), path), registrations, _take(file, size, path))
    if left:
        raise MalformedSignatureError(f"{path}: something follows the last entry")


def _take(file: BinaryIO, size: int, path: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise MalformedSignatureError(f"{path}: the file ends too early")
    return data


def _registrations(values: dict[str, Json], path: str, origin: str) -> tuple[Registration, ...]:
    names = values.get("names")
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_NAMES or set(values) != {"identity", "names"}:
        raise MalformedSignatureError(f"{path}: a record does not hold an identity and names")
    try:
        return tuple(_registration(name, path, origin) for name in names)
    except UsageError as error:
        raise MalformedSignatureError(f"{path}: {error}") from None


def _registration(values: Json, path: str, origin: str) -> Registration:
    if not isinstance(values, dict) or set(values) != {"name", "origin", "registered", *_LABELS}:
        raise MalformedSignatureError(f"{path}: a name of a record does not have the members that it should")
    claimed = values["registered"]
    if isinstance(claimed, bool) or not isinstance(claimed, int) or not 0 <= claimed <= _LAST_MOMENT:
        raise MalformedSignatureError(f"{path}: the time of a registration is not a date")
    labels = {word: None if values[word] is None else _text(values[word], path) for word in _LABELS}
    require_origin(_text(values["origin"], path))
    if labels["base"] is not None:
        require_name(labels["base"])
    return Registration(
        name=require_name(_text(values["name"], path)),
        owner=require_label(labels["owner"], "owner"),
        license=require_label(labels["license"], "license"),
        revision=require_label(labels["revision"], "revision"),
        base=labels["base"],
        note=require_label(labels["note"], "note", MAX_NOTE),
        origin=origin,
        registered=datetime.now(UTC),
        claimed=datetime.fromtimestamp(claimed, UTC),
    )


def _text(value: Json, path: str) -> str:
    if not isinstance(value, str):
        raise MalformedSignatureError(f"{path}: a record holds something else than text where text should be")
    return value


def _to_mapping(entry: Registration) -> dict[str, str | int | None]:
    moment = entry.registered if entry.claimed is None else entry.claimed
    return {
        "name": entry.name,
        "owner": entry.owner,
        "license": entry.license,
        "revision": entry.revision,
        "base": entry.base,
        "note": entry.note,
        "origin": entry.origin,
        "registered": int(moment.timestamp()),
    }
