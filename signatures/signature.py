"""Signatures: a fingerprint as it is kept in a file, with its identity; signing, reading and writing.

A signature holds what was measured and nothing that somebody claims about it: names and owners belong to the registry.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from fingerprint.errors import UsageError
from signatures.budget import DEFAULT_LIMIT, fixed_bytes, within_budget
from signatures.codec import decode_fingerprint, encode_fingerprint
from signatures.container import MAX_FILE_BYTES, Section, has_magic
from signatures.files import read_bounded, write_atomically

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from fingerprint.records import Fingerprint


class Signature(Struct, frozen=True):
    """A fingerprint as a file holds it.

    ``identity`` ("sha256:" and 64 hexadecimal digits) covers everything but ``created`` (UTC, whole seconds) and
    ``tool``: measuring the same files again gives the same identity. ``left_out`` says of how many tensors (MLPs for
    "neurons") samples were left out to keep the file small. ``extra`` are sections of a later version, carried along.
    """

    fingerprint: Fingerprint
    identity: str
    created: datetime
    tool: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    extra: tuple[Section, ...] = ()


def sign(fingerprint: Fingerprint, *, created: datetime | None = None, limit: int = DEFAULT_LIMIT) -> Signature:
    """The signature of ``fingerprint``, as a file holds it; see ``signed_bytes``."""
    return decode(signed_bytes(fingerprint, created=created, limit=limit))


def signed_bytes(fingerprint: Fingerprint, *, created: datetime | None = None, limit: int = DEFAULT_LIMIT) -> bytes:
    """The file of the signature of ``fingerprint``: its samples within ``limit`` bytes and rounded.

    ``created`` is a time with its zone (default: now). Raises ``UsageError`` if digests, names and statistics alone
    exceed ``limit``, or a bound of the format is exceeded.
    """
    moment = datetime.now(UTC) if created is None else created.astimezone(UTC)
    stamp, tool = int(moment.timestamp()), _tool()
    room = limit - fixed_bytes(fingerprint)
    while True:
        budgeted = within_budget(fingerprint, room)
        kept, left_out = budgeted.fingerprint, budgeted.left_out
        data, _ = encode_fingerprint(kept, left_out=left_out, extra=(), created=stamp, tool=tool)
        if len(data) <= limit:
            return data
        if room <= 0:
            raise UsageError(f"a signature without any samples has {len(data)} bytes already: {limit} are allowed")
        room -= limit // 16


def encode(signature: Signature) -> bytes:
    """The bytes of the file: the same for equal signatures (and one version of zlib)."""
    data, _ = encode_with_identity(signature)
    return data


def encode_with_identity(signature: Signature) -> tuple[bytes, str]:
    """The bytes of the file, and the identity that they have."""
    return encode_fingerprint(
        signature.fingerprint,
        left_out=signature.left_out,
        extra=signature.extra,
        created=int(signature.created.timestamp()),
        tool=signature.tool,
    )


def decode(data: bytes | memoryview, *, path: str = "signature") -> Signature:
    """Read the bytes of a file, which may be hostile; ``path`` is for messages.

    Raises ``MalformedSignatureError``, ``SignatureVersionError`` or ``IncompatibleParametersError``; all are
    ``SignatureError``.
    """
    envelope, fingerprint, left_out, extra = decode_fingerprint(data, path=path)
    created = datetime.fromtimestamp(envelope.created, UTC)
    return Signature(fingerprint, envelope.identity, created, envelope.tool, left_out, extra)


def is_signature(path: str | os.PathLike[str]) -> bool:
    """Whether there is a regular file at ``path`` that begins as a signature does."""
    place = Path(path)
    try:
        if not place.is_file():
            return False
        with place.open("rb") as file:
            return has_magic(file.read(16))
    except OSError:
        return False


def read_signature(path: str | os.PathLike[str]) -> Signature:
    """Read a signature file; see ``decode`` for the errors, and ``InputNotFoundError`` if it cannot be read."""
    return decode(read_bounded(Path(path), MAX_FILE_BYTES), path=str(path))


def write_signature(path: str | os.PathLike[str], signature: Signature) -> None:
    """Write a signature file atomically: at any moment there is the old file, if any, or the whole new one."""
    write_atomically(Path(path), encode(signature))


def _tool() -> str:
    from importlib.metadata import version  # takes longer to import than all that is here

    return f"weightprint {version('weightprint')}"[:32]
