"""Content digests: equal for equal values, whatever the name, shard, container or float width that carries them.

A tensor's elements, in row-major canonical order, are cut into blocks of ``digest_block`` elements. Each block is
written in the first of bf16, f16, f32, f64 that holds all its values exactly, little-endian, -0 as 0 and one pattern
for every NaN, and hashed with BLAKE3, a byte for the type behind it; integers are written as they are. The tensor's
digest is BLAKE3 over a header (kind and number of elements) and the block digests. Shape is not hashed: a flattened
kernel is the same tensor.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import ml_dtypes
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

Array = NDArray[Any]

DIGEST_BYTES: Final = 32
_TAGS: Final = {"bf16": b"\x01", "f16": b"\x02", "f32": b"\x03", "f64": b"\x04"}
_QUIET_NAN: Final = {"float16": 0x7E00, "float32": 0x7FC00000, "float64": 0x7FF8000000000000}
_BF16 = np.dtype(ml_dtypes.bfloat16)
_LOOKED_AT: Final = 256
"""Elements among which nearly always one is found that only the type at hand can hold."""


class TensorDigester:
    """Digest of one tensor from pieces that arrive in order.

    ``float`` pieces are 1-D arrays of a float dtype (numpy's or ml_dtypes'); integer pieces keep their dtype. Pieces
    may have any length.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._kind = b""
        self._count = 0
        self._rest: list[Array] = []
        self._normal = False
        self._held = 0
        self._hashes = blake3()

    def update(self, piece: Array, *, normal: bool = False) -> None:
        """Add the next elements (1-D); ``normal`` says that there is neither -0 nor NaN among them."""
        if not self._kind:
            self._kind = _kind(piece.dtype)
        self._count += piece.size
        begun = min(-self._held % self._block, piece.size)
        whole = (piece.size - begun) // self._block * self._block
        self._keep(piece[:begun], normal=normal)
        self._hashes.update(_block_digests(piece[begun : begun + whole], self._block, normal=normal))
        self._keep(piece[begun + whole :], normal=normal)

    def whole(self, more: int) -> int:
        """How many of ``more`` further elements fill blocks, the one that was begun included."""
        return max(0, more - (self._held + more) % self._block)

    def digest(self) -> bytes:
        """The 32-byte digest of everything added so far; the digester is spent."""
        if self._held:
            self._flush_rest()
        outer = blake3(b"weightprint tensor 2\x00" + self._kind + b"\x00" + self._count.to_bytes(8, "little"))
        outer.update(self._hashes.digest())
        return outer.digest()

    def _keep(self, part: Array, *, normal: bool) -> None:
        """Elements of a block that is not there as a whole yet."""
        if not part.size:
            return
        self._normal = normal and (self._normal or not self._rest)
        self._rest.append(part)
        self._held += part.size
        if self._held == self._block:
            self._flush_rest()

    def _flush_rest(self) -> None:
        values = self._rest[0] if len(self._rest) == 1 else np.concatenate(self._rest)
        self._hashes.update(_block_digest(values, normal=self._normal))
        self._rest, self._held = [], 0


def _block_digests(values: Array, block: int, *, normal: bool) -> bytes:
    """The 32-byte digests of whole blocks, one after the other."""
    if normal and values.dtype == _BF16:  # most of all bytes there are
        raw, size, tag = _bytes(values), 2 * block, _TAGS["bf16"]
        return b"".join(blake3(raw[at : at + size]).update(tag).digest() for at in range(0, len(raw), size))
    parts = (values[at : at + block] for at in range(0, values.size, block))
    return b"".join(_block_digest(part, normal=normal) for part in parts)


def _block_digest(values: Array, *, normal: bool) -> bytes:
    """32-byte digest of one block of elements (1-D); ``normal``: see ``TensorDigester.update``."""
    if _kind(values.dtype) != b"float":
        return blake3(_bytes(values)).digest()
    tag = _as_it_is(values) if normal else None
    tag, payload = narrowest(values) if tag is None else (tag, values)
    # The tag at the end: before the block it would put all that follows across BLAKE3's own blocks, for a fifth more.
    return blake3(_bytes(payload)).update(_TAGS[tag]).digest()


def _as_it_is(values: Array) -> str | None:
    """The type of ``values`` without -0 and NaN if their bits can be hashed as they are; None if that is not clear."""
    if values.dtype == _BF16:
        return "bf16"
    if values.dtype == np.float16:
        few = values[:_LOOKED_AT].view(np.uint16)
        return "f16" if np.any(few[(few & 0x7C00) > 0] & 7) else None
    if values.dtype == np.float32:
        low = int(np.bitwise_or.reduce(np.ascontiguousarray(values).view(np.uint32)))
        return "f32" if low & 0x1FFF else None
    return None


def _bytes(values: Array) -> memoryview:
    return np.ascontiguousarray(values).view(np.uint8).data


def narrowest(values: Array) -> tuple[str, Array]:
    """The name of the first of bf16, f16, f32, f64 that holds ``values`` exactly, and their normalised bits.

    ``values`` is 1-D of a real float dtype; the bits are unsigned integers of that width, little-endian.
    """
    if values.dtype.name.startswith("float8"):
        return "bf16", _bfloat16_of_bytes(values.dtype).take(values.view(np.uint8), mode="clip")
    if values.dtype == _BF16:
        return "bf16", _normal_bfloat16(values.view(np.uint16))
    if values.dtype == np.float64:
        with np.errstate(over="ignore", invalid="ignore"):
            single = values.astype(np.float32)
        if not np.array_equal(single.astype(np.float64), values, equal_nan=True):
            return "f64", _normal(values, np.uint64)
    else:
        single = values if values.dtype == np.float32 else values.astype(np.float32)
    word = np.ascontiguousarray(single).view(np.uint32)
    low = int(np.bitwise_or.reduce(word)) & 0xFFFF if word.size else 0
    if low == 0:
        return "bf16", _normal_bfloat16((word >> np.uint32(16)).astype(np.uint16))
    if np.isnan(single).any():
        word = _normal(single, np.uint32)
        if not np.any(word & np.uint32(0xFFFF)):
            return "bf16", _normal_bfloat16((word >> np.uint32(16)).astype(np.uint16))
        low = int(np.bitwise_or.reduce(word)) & 0xFFFF
    if low & 0x1FFF == 0:
        with np.errstate(over="ignore", invalid="ignore"):
            half = single.astype(np.float16)
        if np.array_equal(half.astype(np.float32), single, equal_nan=True):
            return "f16", _normal(half, np.uint16)
    return "f32", _normal(single, np.uint32)


@cache
def _bfloat16_of_bytes(dtype: np.dtype[Any]) -> Array:
    """The normalised bits of all 256 values of an 8-bit float type, each of which bf16 holds exactly."""
    every = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32).astype(_BF16)
    return _normal_bfloat16(every.view(np.uint16))


def _normal(values: Array, bits: type[np.unsignedinteger[Any]]) -> Array:
    clean = values + values.dtype.type(0)  # -0 + 0 is +0; everything else stays
    unknown = np.isnan(clean)
    if unknown.any():
        clean[unknown] = np.nan
        word: Array = clean.view(bits)
        word[unknown] = _QUIET_NAN[clean.dtype.name]
        return word
    return np.asarray(clean.view(bits))


def _normal_bfloat16(word: Array) -> Array:
    # One comparison for what is rare: without its sign a NaN is above 0x7F80, and zeros wrap to the largest number.
    magnitude = (word + word) - np.uint16(1)
    if not np.any(magnitude >= 0xFF00):
        return word
    negative_zero = word == 0x8000
    unknown = (word & np.uint16(0x7FFF)) > 0x7F80
    if negative_zero.any() or unknown.any():
        word = word.copy()
        word[negative_zero] = 0
        word[unknown] = 0x7FC0
    return word


@cache
def _kind(dtype: np.dtype[Any]) -> bytes:
    if dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("bfloat", "float"))):
        return b"float"
    if dtype.kind == "c":
        return b"complex"
    return {"b": b"uint8"}.get(dtype.kind, dtype.name.encode())
