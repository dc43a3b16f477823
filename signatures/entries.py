"""What the registry keeps of a signature: the file, and the rows about it in the database."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from fingerprint.errors import MalformedSignatureError
from fingerprint.vocabulary import Content
from signatures.records import EXACT
from signatures.signature import encode_with_identity

if TYPE_CHECKING:
    from fingerprint.records import Fingerprint
    from signatures.signature import Signature

LOOKED_UP: Final = frozenset({Content.WEIGHTS, Content.VECTOR})
"""Contents whose digests are looked up: trained numbers. Constants and tables are shared by models without relation."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A signature as the registry stores it.

    ``weights`` is a hash of the digests of all tensors in sorted order, ``None`` unless all have one and the
    checkpoint was complete; ``counts`` are parameters and tensors; ``digests`` are rows of position, kind, digest and
    elements.
    """

    identity: str
    data: bytes
    weights: str | None
    depth: str
    counts: tuple[int, int]
    digests: tuple[tuple[int, str, bytes, int], ...]

    @classmethod
    def of(cls, signature: Signature) -> Self:
        """Raises ``MalformedSignatureError`` if the contents do not have the identity that the signature states."""
        data, identity = encode_with_identity(signature)
        if identity != signature.identity:
            raise MalformedSignatureError(
                f"the contents of the signature have the identity {identity}, not {signature.identity} as it states"
            )
        fingerprint = signature.fingerprint
        return cls(
            identity=identity,
            data=data,
            weights=weights_hash(fingerprint),
            depth=fingerprint.depth,
            counts=(fingerprint.elements, len(fingerprint.tensors)),
            digests=tuple(_digest_rows(fingerprint)),
        )


def weights_hash(fingerprint: Fingerprint) -> str | None:
    """A hash that equal weights share, whatever their container, names and order; see ``Entry``."""
    digests = sorted(record.digest for record in fingerprint.tensors)
    if not fingerprint.complete or not all(digests) or not digests:
        return None
    return hashlib.sha256(b"weights 1\n" + b"".join(digests)).hexdigest()


def _digest_rows(fingerprint: Fingerprint) -> list[tuple[int, str, bytes, int]]:
    rows: list[tuple[int, str, bytes, int]] = []
    for position, record in enumerate(fingerprint.tensors):
        if record.content in LOOKED_UP:
            kinds = {EXACT: record.digest, **record.casts}
            rows += [(position, kind, digest, record.elements) for kind, digest in kinds.items() if digest]
    return rows
