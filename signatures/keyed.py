"""A second sketch under the owner's secret key: what a forger cannot have aimed at, sealed in a section of its own.

Signs, sampled rows, neurons and anchor tokens are those of another seed, derived from the key. The section is sealed
with the key too, so that it gives away nothing that depends on the seed: 8 bytes of the key's identity, a tag of 32
bytes over the content and the signature that it belongs to, and the content (a signature file) xored with a stream
that starts from the tag. Tag and stream are keyed BLAKE3, a pseudorandom function, used as in SIV (Rogaway & Shrimpton
2006): equal content gives equal bytes, and a wrong key, a changed byte or another signature around it is noticed.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from blake3 import blake3
from msgspec.structs import replace

from fingerprint.assemble import measure_checkpoint
from fingerprint.errors import UsageError, WrongKeyError
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.records import TensorStatistics
from fingerprint.units import unit_of
from fingerprint.vocabulary import Content, Frame
from signatures.codec import decode_fingerprint, encode_fingerprint, fingerprint_identity
from signatures.container import Section
from signatures.files import read_bounded

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from fingerprint.checkpoint import Checkpoint
    from fingerprint.parameters import Parameters
    from fingerprint.records import Fingerprint
    from fingerprint.units import Unit
    from signatures.signature import Signature

KIND: Final = "KEYD"
LEAST_KEY: Final = 32
MOST_KEY: Final = 1 << 20
KEYED_BYTES: Final = 160_000
"""About what the section may have; one layer is kept whatever it has."""
_IDENTITY: Final = 8
_TAG: Final = 32
_CONTEXT: Final = "weightprint 2026-11 secret key: "
_NO_STATISTICS: Final = TensorStatistics(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)


@dataclass(frozen=True, slots=True)
class Key:
    """A secret key. ``identity`` (16 hexadecimal digits) names it and tells nothing about it."""

    identity: str
    material: bytes = field(repr=False)

    def derived(self, purpose: str, length: int = 32) -> bytes:
        """A key for one purpose."""
        return blake3(self.material, derive_key_context=_CONTEXT + purpose).digest(length)

    @property
    def parameters(self) -> Parameters:
        """The parameters of the method, with the seed of this key."""
        return replace(DEFAULT_PARAMETERS, seed=int.from_bytes(self.derived("seed", 8), "little") >> 1)


def read_key(path: str | os.PathLike[str]) -> Key:
    """The key in a file: all of its bytes, at least 32 of them. Raises ``UsageError`` or ``InputError``."""
    material = read_bounded(Path(path), MOST_KEY)
    return make_key(material, str(path))


def make_key(material: bytes, path: str = "the key") -> Key:
    """A key from at least 32 secret bytes. Raises ``UsageError``."""
    if len(material) < LEAST_KEY:
        raise UsageError(f"{path}: a key has at least {LEAST_KEY} bytes, and this has {len(material)}")
    if len(set(material)) < LEAST_KEY // 4:
        raise UsageError(f"{path}: a key is random, and these bytes are not (make one: openssl rand -out FILE 32)")
    return Key(blake3(material, derive_key_context=_CONTEXT + "identity").digest(_IDENTITY).hex(), material)


def keyed_section(
    checkpoint: Checkpoint, key: Key, signature: Signature, progress: Callable[[int], None] | None = None
) -> Section:
    """The section for the ``signature`` of a checkpoint: its samples under the key, of as many layers as fit. It can be
    opened in that signature alone. Raises ``InputError``."""
    measured = measure_checkpoint(checkpoint, parameters=key.parameters, progress=progress).fingerprint
    data, _ = encode_fingerprint(_sampled(measured, key), left_out={}, extra=(), created=0, tool="")
    return Section(KIND, seal(data, key, public_identity(signature)))


def with_section(signature: Signature, section: Section) -> Signature:
    """The signature with this section in place of any of its kind; its identity changes."""
    from signatures.signature import decode, encode

    extra = (*(one for one in signature.extra if one.kind != section.kind), section)
    return decode(encode(replace(signature, extra=extra)))


def key_identity(signature: Signature) -> str | None:
    """The identity of the key under which there is a second sketch, None if there is none."""
    return next((section.data[:_IDENTITY].hex() for section in signature.extra if section.kind == KIND), None)


def keyed_fingerprint(signature: Signature, key: Key, path: str = "signature") -> Fingerprint:
    """What was measured under the key. Raises ``WrongKeyError``, ``MalformedSignatureError`` and, if there is no such
    section, ``UsageError``."""
    found = key_identity(signature)
    if found is None:
        raise UsageError(f"{path}: there is no sketch under a secret key; register the weights with --key")
    if found != key.identity:
        raise WrongKeyError(f"{path}: its keyed sketch was made with key {found}, and this is key {key.identity}")
    data = next(section.data for section in signature.extra if section.kind == KIND)
    _, fingerprint, _, _ = decode_fingerprint(unseal(data, key, public_identity(signature), path), path=path)
    fingerprint.parameters.require_equal(key.parameters)
    return fingerprint


def measure_keyed(checkpoint: Checkpoint, key: Key, progress: Callable[[int], None] | None = None) -> Fingerprint:
    """A suspect under the key. Raises ``InputError``."""
    from fingerprint.assemble import SUSPECT_NEURONS

    return measure_checkpoint(
        checkpoint, parameters=key.parameters, casts=False, neurons=SUSPECT_NEURONS, progress=progress
    ).fingerprint


def public_identity(signature: Signature) -> str:
    """The identity that the signature has without a keyed sketch."""
    public = tuple(section for section in signature.extra if section.kind != KIND)
    if len(public) == len(signature.extra):
        return signature.identity
    return fingerprint_identity(signature.fingerprint, left_out=signature.left_out, extra=public)


def seal(content: bytes, key: Key, bound: str) -> bytes:
    """Identity, tag and encrypted content; ``bound`` is what it cannot be taken out of."""
    tag = _tag(content, key, bound)
    return bytes.fromhex(key.identity) + tag + _xored(content, tag, key)


def unseal(data: bytes, key: Key, bound: str, path: str = "signature") -> bytes:
    """Inverse of ``seal``. Raises ``WrongKeyError`` if key, bytes and ``bound`` do not belong together."""
    tag = data[_IDENTITY : _IDENTITY + _TAG]
    content = _xored(data[_IDENTITY + _TAG :], tag, key)
    if len(tag) < _TAG or not hmac.compare_digest(tag, _tag(content, key, bound)):
        raise WrongKeyError(f"{path}: the keyed sketch cannot be opened: another key, another signature, or damaged")
    return content


def _tag(content: bytes, key: Key, bound: str) -> bytes:
    name = bound.encode()
    return blake3(len(name).to_bytes(2, "little") + name + content, key=key.derived("tag")).digest(_TAG)


def _xored(content: bytes, tag: bytes, key: Key) -> bytes:
    stream = blake3(tag, key=key.derived("stream")).digest(len(content))
    return (np.frombuffer(content, np.uint8) ^ np.frombuffer(stream, np.uint8)).tobytes()


def _sampled(whole: Fingerprint, key: Key) -> Fingerprint:
    """Samples alone, of tables and of layers in an order that the key gives, as many as fit; nothing that names."""
    units: dict[Unit, list[int]] = {}
    for position, tensor in enumerate(whole.tensors):
        if tensor.content is Content.WEIGHTS and tensor.sketch is not None:
            units.setdefault(unit_of(tensor.layer, tensor.expert), []).append(position)
    order = sorted(units, key=lambda unit: (unit[0] >= 0, blake3(b"%d %d" % unit, key=key.derived("units")).digest()))
    kept: list[int] = []
    room = KEYED_BYTES
    for unit in order:
        size = sum(_bytes(whole, position) for position in units[unit])
        if kept and size > room:
            continue
        kept += units[unit]
        room -= size
    kept.sort()
    now = {-1: -1} | {before: after for after, before in enumerate(kept)}
    return replace(
        whole,
        format="",
        files=0,
        stored_bytes=0,
        bytes_read=0,
        dtypes={},
        findings=(),
        claims={},
        tensors=tuple(
            replace(
                whole.tensors[position],
                name="",
                digest=b"",
                casts={},
                statistics=_NO_STATISTICS,
                axes=tuple(replace(axis, digest=b"", casts={}) for axis in whole.tensors[position].axes),
            )
            for position in kept
        ),
        neurons=tuple(
            replace(one, tensors=(now[one.tensors[0]], now[one.tensors[1]], now[one.tensors[2]]))
            for one in whole.neurons
            if now.keys() >= set(one.tensors) and one.frame != Frame.SELF
        ),
        channels=tuple(
            replace(one, tensors=(now[one.tensors[0]], now[one.tensors[1]]))
            for one in whole.channels
            if now.keys() >= set(one.tensors)
        ),
        grams=(),
    )


def _bytes(whole: Fingerprint, position: int) -> int:
    """About what a tensor's samples need, those of an MLP or attention block shared among its matrices."""
    tensor = whole.tensors[position]
    size = 4 * (0 if tensor.sketch is None else tensor.sketch.size)
    size += sum(2 * axis.values.size + 6 * len(axis.indices) for axis in tensor.axes)
    for sample in whole.neurons:
        if sample.tensors[0] == position and sample.frame != Frame.SELF:
            size += sample.gate.size * (2 if sample.up is None else 3)
    size += sum(sample.parts.size for sample in whole.channels if sample.tensors[0] == position)
    return size
