"""PyTorch files from before 1.6: five pickles one after the other, then the storages, each behind its length.

Format: ``_legacy_load`` in torch/serialization.py: a magic number, a protocol, the machine that wrote the file, the
pickle that describes, the keys of the storages in their order. An older form still is a tar archive, and is not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fingerprint.errors import MalformedFileError, UnsupportedFormatError, clipped
from fingerprint.readers.base import Finding
from fingerprint.readers.pickles import Pairs, read_pickle_at
from fingerprint.readers.torch_objects import storage_sizes
from fingerprint.readers.torch_views import AbsentError, Storages, assembled, described, unknown

if TYPE_CHECKING:
    from fingerprint.readers.base import Catalogue, Contents
    from fingerprint.readers.pickles import Pickle
    from fingerprint.source import Source

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_NUMBER = MAGIC.to_bytes(10, "little")
_LENGTH = 8


def is_legacy(source: Source) -> bool:
    """True where the magic number stands in one of the first opcodes, which pickles of all protocols begin with."""
    head = bytes(source.read(0, min(40, source.size)))
    return head[:1] in {b"\x80", b"\x8a", b"L"} and (_NUMBER in head or str(MAGIC).encode() in head)


def open_legacy(source: Source, catalogue: Catalogue) -> Contents:
    """The tensors of a file that torch wrote before 1.6. Raises ``InputError``."""
    magic = read_pickle_at(source)
    protocol = read_pickle_at(source, magic.end)
    if magic.root != MAGIC or protocol.root != PROTOCOL:
        message = f"protocol {clipped(repr(protocol.root))}, where {PROTOCOL} is known"
        raise UnsupportedFormatError(message, path=source.path, offset=magic.end)
    machine = read_pickle_at(source, protocol.end)
    pickle = read_pickle_at(source, machine.end)
    found, findings = described(pickle, pickle.end - machine.end, catalogue)
    places, end, keys = _places(source, storage_sizes(pickle), pickle.end, findings)
    findings += (finding for other in (magic, protocol, machine, keys) if other for finding in unknown(other))

    def locate(key: str) -> tuple[Source, int, int]:
        if key not in places:
            raise MalformedFileError(f"there is no storage {clipped(key)!r}", path=source.path)
        start, size = places[key]
        if start + size > source.size:
            raise AbsentError
        return source, start, size

    if end < source.size:
        findings.append(Finding("trailing-bytes", f"{source.size - end} bytes after the last storage belong to none"))
    storages = Storages(source.path, locate, big_endian=_is_big_endian(machine.root))
    return assembled(found, storages, catalogue, source.size, findings)


def _places(
    source: Source, sizes: dict[str, tuple[int, int]], start: int, findings: list[Finding]
) -> tuple[dict[str, tuple[int, int]], int, Pickle | None]:
    """Offset and bytes of each storage, by the list of keys at ``start``; where the last one ends; and that list.

    In a file that was cut off, places are behind its end.
    """
    if start >= source.size:  # cut off between the description and the keys
        return dict.fromkeys(sizes, (source.size, 1)), source.size, None
    keys = read_pickle_at(source, start)
    if not isinstance(keys.root, list) or not all(isinstance(key, str | int) for key in keys.root):
        raise MalformedFileError("no list of the keys of storages", path=source.path, offset=start)
    places: dict[str, tuple[int, int]] = {}
    position = keys.end
    for number, key in enumerate(map(str, keys.root)):
        if key not in sizes:
            # Its length cannot be told, so nothing behind it can be found.
            message = f"storage {number} of {len(keys.root)} is of a kind that is not known"
            raise MalformedFileError(message, path=source.path, offset=position)
        if key in places:
            raise MalformedFileError(f"the storage {clipped(key)!r} comes twice", path=source.path, offset=position)
        count, width = sizes[key]
        if position + _LENGTH <= source.size:
            stored = int.from_bytes(source.read(position, _LENGTH), "little", signed=True)
            if stored != count:
                message = f"a storage of {stored} elements, where the pickle says {count}"
                raise MalformedFileError(message, path=source.path, offset=position)
        places[key] = position + _LENGTH, count * width
        position += _LENGTH + count * width
    if len(places) < len(sizes):
        text = f"{len(sizes) - len(places)} storages that the pickle names are not listed"
        findings.append(Finding("unlisted-storage", text))
    return places, position, keys


def _is_big_endian(machine: object) -> bool:
    return isinstance(machine, Pairs) and any(key == "little_endian" and flag is False for key, flag in machine.pairs)
