"""What a registry says about its models: records of registrations, hits of digests; and which names it takes."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct

from fingerprint.errors import UsageError, clipped

LOCAL: Final = "local"
EXACT: Final = "exact"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95}){0,3}")
_ORIGIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
MAX_LABEL: Final = 256
MAX_NOTE: Final = 4096


class Registration(Struct, frozen=True):
    """One name of a model, and what whoever registered it said.

    ``base`` is the name of the declared base model, registered or not. ``registered`` is the time (UTC) at which this
    registry took it; ``claimed`` the time that the registry gives from which it was imported (``None`` if local).
    """

    name: str
    owner: str | None
    license: str | None
    revision: str | None
    base: str | None
    note: str | None
    origin: str
    registered: datetime
    claimed: datetime | None


class ModelRecord(Struct, frozen=True):
    """One registered model: a signature, and its names, the first of which stands for it.

    ``id`` is never used again in one registry; ``parameters`` and ``tensors`` count elements and canonical tensors;
    ``weights`` is a hash (hexadecimal) of the digests of all tensors, ``None`` if some have none; ``key`` names the
    secret key of its second sketch, ``""`` if it has none, ``None`` if nobody has looked since an earlier version
    registered it. Local names come before imported ones, then the earlier before the later.
    """

    id: int
    identity: str
    depth: str
    parameters: int
    tensors: int
    weights: str | None
    key: str | None
    registrations: tuple[Registration, ...]

    @property
    def name(self) -> str:
        """The name that stands for the model."""
        return self.registrations[0].name

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""
        return tuple(entry.name for entry in self.registrations[1:])

    @property
    def owner(self) -> str | None:
        """Owner given with the first name."""
        return self.registrations[0].owner

    @property
    def license(self) -> str | None:
        """License given with the first name."""
        return self.registrations[0].license

    @property
    def revision(self) -> str | None:
        """Revision given with the first name."""
        return self.registrations[0].revision

    @property
    def base(self) -> str | None:
        """Name of the declared base model."""
        return self.registrations[0].base

    @property
    def note(self) -> str | None:
        """Note given with the first name."""
        return self.registrations[0].note

    @property
    def origin(self) -> str:
        """``"local"``, or where the first name was imported from."""
        return self.registrations[0].origin

    @property
    def registered(self) -> datetime:
        """When this registry took the first name (UTC)."""
        return self.registrations[0].registered

    def named(self, name: str) -> Registration | None:
        """The registration of that name, if it is one of this model's."""
        return next((entry for entry in self.registrations if entry.name.lower() == name.lower()), None)


class Holder(Struct, frozen=True):
    """A model without its names, of which it may have thousands; see ``ModelRecord``."""

    id: int
    identity: str
    weights: str | None
    depth: str


class Imported(Struct, frozen=True):
    """What a bundle brought: its models as they now are, and its names, each either new here or known before.

    A known name has the same weights here, and is left as it was, origin and all.
    """

    records: tuple[ModelRecord, ...]
    new: tuple[str, ...]
    known: tuple[str, ...]


def anonymous_model(name: str) -> ModelRecord:
    """A record for weights that are compared without being registered; ``name`` is what reports call them."""
    moment = datetime.fromtimestamp(0, UTC)
    registration = Registration(name, None, None, None, None, None, LOCAL, moment, None)
    return ModelRecord(0, "", "", 0, 0, None, "", (registration,))


class DigestHit(Struct, frozen=True):
    """A registered tensor with a digest that was looked up.

    ``model`` is the id of the model, ``position`` that of the tensor in its signature; ``kind`` is ``"exact"``, or the
    float type after rounding to which the registered tensor has the digest; ``elements`` counts the tensor's.
    """

    digest: bytes
    model: int
    position: int
    kind: str
    elements: int


def require_name(name: str) -> str:
    """``name`` if a model may have it; raises ``UsageError``."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{clipped(name)!r} is not a name for a model: letters, digits, '.', '_' and '-', in at most four parts "
            "separated by '/', each beginning with a letter or digit, such as org/model"
        )
    return name


def require_origin(origin: str) -> str:
    """``origin`` if it can be one; raises ``UsageError``."""
    if not _ORIGIN.fullmatch(origin):
        raise UsageError(f"{clipped(origin)!r} cannot be an origin: letters, digits and . _ : / @ + - are allowed")
    return origin


def require_label(value: str | None, what: str, limit: int = MAX_LABEL) -> str | None:
    """``value`` if it is printable (a note may have lines) and not too long; raises ``UsageError``."""
    if value is not None and not (
        len(value) <= limit and value.replace("\n", " " if limit > MAX_LABEL else "\n").isprintable()
    ):
        raise UsageError(f"the {what} {clipped(value)!r} is longer than {limit} characters or not printable")
    return value
