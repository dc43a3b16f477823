"""What the registry keeps of a signature: the file, and the rows about it in the database."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Self

from msgspec import Struct

from fingerprint.comparing.matching import is_distinctive
from fingerprint.errors import MalformedSignatureError
from signatures.disclosure import discloses_less
from signatures.records import EXACT
from signatures.signature import encode_with_identity

if TYPE_CHECKING:
    from fingerprint.records import Fingerprint
    from signatures.signature import Signature

MAX_PARAMETERS: Final = (1 << 63) - 1
"""More than this a database cannot count."""


class Holding(Struct, frozen=True):
    """What tells signatures of the same weights apart that were measured at one depth: the owner's wishes.

    ``key`` names the secret key of its second sketch, ``None`` if it has none; ``less`` whether it discloses less.
    """

    key: str | None
    less: bool

    @classmethod
    def of(cls, signature: Signature) -> Self:
        """That of a signature."""
        from signatures.keyed import key_identity

        return cls(key_identity(signature), discloses_less(signature.fingerprint))

    def __str__(self) -> str:
        key = "without a secret key" if self.key is None else f"with secret key {self.key}"
        return f"{key}{', disclosing less' if self.less else ''}"


class Entry(Struct, frozen=True):
    """A signature as the registry stores it.

    ``weights`` is a hash of the digests of all tensors in sorted order, ``None`` unless all have one and the
    checkpoint was complete; ``counts`` are parameters and tensors; ``digests`` are rows of position, kind, digest and
    elements; ``holding`` is what else the signature was made to hold, see there.
    """

    identity: str
    data: bytes
    weights: str | None
    depth: str
    counts: tuple[int, int]
    digests: tuple[tuple[int, str, bytes, int], ...]
    holding: Holding

    @classmethod
    def of(cls, signature: Signature) -> Self:
        """Raises ``MalformedSignatureError`` if the contents do not have the identity that the signature states, or
        more than ``MAX_PARAMETERS`` elements."""
        data, identity = encode_with_identity(signature)
        if identity != signature.identity:
            raise MalformedSignatureError(
                f"the contents of the signature have the identity {identity}, not {signature.identity} as it states"
            )
        fingerprint = signature.fingerprint
        if fingerprint.elements > MAX_PARAMETERS:
            raise MalformedSignatureError(f"the tensors of the signature have {fingerprint.elements} elements together")
        return cls(
            identity=identity,
            data=data,
            weights=weights_hash(fingerprint),
            depth=fingerprint.depth,
            counts=(fingerprint.elements, len(fingerprint.tensors)),
            digests=tuple(_digest_rows(fingerprint)),
            holding=Holding.of(signature),
        )


def weights_hash(fingerprint: Fingerprint) -> str | None:
    """A hash that equal weights share, whatever their container, names and order; see ``Entry``."""
    digests = sorted(record.digest for record in fingerprint.tensors)
    if not fingerprint.complete or not all(digests) or not digests:
        return None
    return hashlib.sha256(b"weights 1\n" + b"".join(digests)).hexdigest()


def _digest_rows(fingerprint: Fingerprint) -> list[tuple[int, str, bytes, int]]:
    """Those of trained numbers: constants and tables are shared by models without relation."""
    rows: list[tuple[int, str, bytes, int]] = []
    for position, record in enumerate(fingerprint.tensors):
        if is_distinctive(record):
            kinds = {EXACT: record.digest, **record.casts}
            rows += [(position, kind, digest, record.elements) for kind, digest in kinds.items() if digest]
    return rows
