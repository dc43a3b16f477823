"""A bundle all of whose signatures were checked, kept as it is until the registry takes it in."""

from __future__ import annotations

import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from msgspec import msgpack

from fingerprint.errors import MalformedSignatureError
from signatures.bundle import read_bundle
from signatures.database import translated
from signatures.entries import Entry
from signatures.records import Registration
from signatures.signature import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.parameters import Parameters

IN_MEMORY: Final = 64 << 20
"""Bytes of checked entries from which they are kept in a temporary file."""
_LENGTH: Final = struct.Struct("<Q")
_Checked = tuple[Entry, tuple[Registration, ...]]


@contextmanager
def checked_bundle(path: Path, origin: str, parameters: Parameters) -> Iterator[Iterator[_Checked]]:
    """What the registry keeps of each signature of a bundle, and its names, to be gone through once.

    Raises ``SignatureError`` for a bundle that is damaged, forged or made with other ``parameters``, and
    ``RegistryError`` if there is no room for it.
    """
    with translated(Path(tempfile.gettempdir())), tempfile.SpooledTemporaryFile(IN_MEMORY) as kept:
        for packed in read_bundle(path, origin):
            name = packed.registrations[0].name
            signature = decode(packed.data, path=f"{path}, {name}")
            signature.fingerprint.parameters.require_equal(parameters)
            entry = Entry.of(signature)
            if entry.identity != packed.identity:
                raise MalformedSignatureError(f"{path}: {name} has another signature than said")
            record = msgpack.encode((entry, packed.registrations))
            kept.write(_LENGTH.pack(len(record)))
            kept.write(record)
        kept.seek(0)
        yield _entries(kept)


def _entries(kept: IO[bytes]) -> Iterator[_Checked]:
    decoder = msgpack.Decoder(_Checked)
    while length := kept.read(_LENGTH.size):
        yield decoder.decode(kept.read(*_LENGTH.unpack(length)))
