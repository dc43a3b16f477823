"""What the metadata of a zarr array say: shape, grid of chunks, element type, codecs and keys of chunks.

Formats: the zarr storage specification, version 2, and the zarr core specification, version 3, with its codecs bytes,
transpose, gzip, zstd, blosc, crc32c and sharding_indexed (https://zarr-specs.readthedocs.io). Checksums are not
computed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

from fingerprint.dtypes import DType, Kind
from fingerprint.errors import LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import MAX_RANK, checked_count
from fingerprint.readers.bounded_json import Json, JsonCursor
from fingerprint.readers.numpy_types import NAMES, NoNumbersError, UnreadTypeError, dtype_of

if TYPE_CHECKING:
    from fingerprint.source import Source
    from fingerprint.tensors import Array

MAX_METADATA: Final = 1 << 20
"""Most bytes of the metadata of an array."""
_MAX_CODECS: Final = 16
_PACKED: Final = {"zlib": "gz", "gzip": "gz", "zstd": "zst", "blosc": "blosc"}


class LeftError(Exception):
    """Why an array is left out."""


class Codecs(Struct, frozen=True):
    """How the elements of a box become bytes: the order of its axes (None: as they are), then of bytes, then packed.

    ``packed`` names compressions, the outermost last; ``crc32c`` among them is four bytes at the end.
    """

    order: tuple[int, ...] | None = None
    big_endian: bool = False
    packed: tuple[str, ...] = ()


class Sharding(Struct, frozen=True):
    """Chunks of the shape ``chunk`` inside a chunk, which has an index of their places at its end or beginning."""

    chunk: tuple[int, ...]
    codecs: Codecs
    at_end: bool
    index_big_endian: bool
    index_checked: bool


class ArrayLayout(Struct, frozen=True):
    """An array of ``shape`` in chunks of the shape ``chunk``; ``blank`` stands for a chunk that is not there."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: DType
    codecs: Codecs
    sharding: Sharding | None
    blank: Array | None
    separator: str
    prefix: str

    def key(self, index: tuple[int, ...]) -> str:
        """What the chunk at ``index`` of the grid is called below the array."""
        parts = [*([self.prefix] if self.prefix else []), *map(str, index)]
        return self.separator.join(parts) or "0"


def parsed(source: Source) -> Json:
    """The JSON of metadata. Raises ``InputError``."""
    if source.size > MAX_METADATA:
        raise LimitExceededError(f"metadata of {source.size} bytes; {MAX_METADATA} are allowed", path=source.path)
    cursor = JsonCursor(source.read(0, source.size), path=source.path, what="metadata of zarr")
    value = cursor.value()
    cursor.end()
    return value


def layout_of(value: Json, path: str) -> ArrayLayout:
    """The layout that metadata describe. Raises ``InputError`` and ``LeftError``."""
    if not isinstance(value, dict):
        raise MalformedFileError("the metadata of an array are no object", path=path)
    if value.get("zarr_format") == 2:
        return _second(value, path)
    if value.get("zarr_format") == 3 and value.get("node_type") == "array":
        return _third(value, path)
    raise LeftError(f"a zarr array of format {clipped(str(value.get('zarr_format')), 40)}")


def _second(value: dict[str, Json], path: str) -> ArrayLayout:
    shape, chunk = _shapes(value.get("shape"), value.get("chunks"), path)
    dtype, big_endian = _dtype(value.get("dtype"))
    if value.get("filters"):
        raise LeftError("it has filters")
    order = _one_of(value.get("order", "C"), "C", "F")
    axes = tuple(reversed(range(len(shape)))) if order == "F" and len(shape) > 1 else None
    compressor = value.get("compressor")
    packed: tuple[str, ...] = ()
    if compressor is not None:
        kind = compressor.get("id") if isinstance(compressor, dict) else compressor
        packed = (_packing(kind),)
    separator = _one_of(value.get("dimension_separator", "."), ".", "/")
    blank = _blank(value.get("fill_value"), dtype)
    return ArrayLayout(shape, chunk, dtype, Codecs(axes, big_endian, packed), None, blank, separator, "")


def _third(value: dict[str, Json], path: str) -> ArrayLayout:
    grid = _settings(value.get("chunk_grid"), "regular")
    shape, chunk = _shapes(value.get("shape"), grid.get("chunk_shape"), path)
    kind = value.get("data_type")
    dtype = NAMES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise LeftError(f"elements of the type {clipped(str(kind), 80)} are not read")
    if value.get("storage_transformers"):
        raise LeftError("it has storage transformers")
    encoding = value.get("chunk_key_encoding")
    name = _one_of(encoding.get("name") if isinstance(encoding, dict) else encoding, "default", "v2")
    usual = "/" if name == "default" else "."
    separator = _one_of(_settings(encoding, name).get("separator", usual), ".", "/")
    codecs, sharding = _codecs(value.get("codecs"), chunk, path)
    blank = _blank(value.get("fill_value"), dtype)
    prefix = "c" if name == "default" else ""
    return ArrayLayout(shape, chunk, dtype, codecs, sharding, blank, separator, prefix)


def _codecs(value: Json, chunk: tuple[int, ...], path: str, *, inner: bool = False) -> tuple[Codecs, Sharding | None]:
    """A list of codecs: axes turned any number of times, then bytes or shards, then bytes packed."""
    if not isinstance(value, list) or len(value) > _MAX_CODECS:
        raise LeftError("a list of codecs that is not understood")
    order = tuple(range(len(chunk)))
    big_endian, serialised = False, False
    packed: list[str] = []
    sharding: Sharding | None = None
    for codec in value:
        name = codec.get("name") if isinstance(codec, dict) else codec
        settings = _settings(codec, str(name))
        if name == "transpose" and not serialised:
            turned = settings.get("order")
            axes = [axis for axis in turned if type(axis) is int] if isinstance(turned, list) else []
            if sorted(axes) != list(range(len(chunk))):
                raise LeftError("axes in an order that is not understood")
            order = tuple(order[axis] for axis in axes)
        elif name == "bytes" and not serialised:
            serialised, big_endian = True, settings.get("endian") == "big"
        elif name == "sharding_indexed" and not serialised and not inner:
            if order != tuple(range(len(chunk))):
                raise LeftError("shards whose axes are in another order")
            serialised, sharding = True, _sharding(settings, chunk, path)
        elif name == "crc32c" and serialised:
            packed.append("crc32c")
        elif serialised:
            packed.append(_packing(name))
        else:
            raise LeftError(f"the codec {clipped(str(name), 40)!r} is not read")
    if not serialised:
        raise LeftError("no codec makes bytes of it")
    axes_order = None if order == tuple(range(len(chunk))) else order
    return Codecs(axes_order, big_endian, tuple(packed)), sharding


def _sharding(settings: dict[str, Json], chunk: tuple[int, ...], path: str) -> Sharding:
    inner = _sizes(settings.get("chunk_shape"), path)
    if len(inner) != len(chunk) or 0 in inner or any(whole % part for whole, part in zip(chunk, inner, strict=True)):
        raise LeftError("shards that are no whole number of chunks")
    codecs, _ = _codecs(settings.get("codecs"), inner, path, inner=True)
    index, _ = _codecs(settings.get("index_codecs"), (*chunk, 2), path, inner=True)
    if index.order is not None or index.packed not in {(), ("crc32c",)}:
        raise LeftError("the index of its shards is packed")
    location = _one_of(settings.get("index_location", "end"), "start", "end")
    return Sharding(inner, codecs, location == "end", index.big_endian, bool(index.packed))


def _settings(value: Json, name: str) -> dict[str, Json]:
    """The ``configuration`` of an extension point that must be called ``name``."""
    if value == name:
        return {}
    if not isinstance(value, dict) or value.get("name") != name:
        raise LeftError(f"{clipped(str(value), 80)} where {name!r} is wanted")
    settings = value.get("configuration", {})
    return settings if isinstance(settings, dict) else {}


def _one_of(value: Json, *known: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise LeftError(f"{clipped(str(value), 80)} where one of {', '.join(known)} is wanted")
    return value


def _packing(name: Json) -> str:
    kind = _PACKED.get(name) if isinstance(name, str) else None
    if kind is None:
        raise LeftError(f"it is compressed by {clipped(str(name), 40)!r}")
    return kind


def _shapes(shape: Json, chunk: Json, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes, chunks = _sizes(shape, path), _sizes(chunk, path)
    if 0 in sizes:
        chunks = tuple(max(part, 1) for part in chunks)
    if len(sizes) != len(chunks) or 0 in chunks:
        raise MalformedFileError("chunks that do not fit the shape", path=path)
    checked_count(sizes, path)
    checked_count(chunks, path)
    return sizes, chunks


def _sizes(value: Json, path: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise MalformedFileError("a shape that is no list", path=path)
    if len(value) > MAX_RANK:
        raise LimitExceededError(f"more than {MAX_RANK} axes", path=path)
    sizes = [size for size in value if type(size) is int and 0 <= size < 2**62]
    if len(sizes) != len(value):
        raise MalformedFileError("a shape holds something else than sizes", path=path)
    return tuple(sizes)


def _dtype(value: Json) -> tuple[DType, bool]:
    if not isinstance(value, str):
        raise LeftError("its elements are records")
    if value in NAMES:  # what TensorStore calls types that numpy has no letters for
        return NAMES[value], False
    try:
        return dtype_of(value)
    except (NoNumbersError, UnreadTypeError) as reason:
        raise LeftError(str(reason)) from reason


def _blank(value: Json, dtype: DType) -> Array | None:
    """The element that absent chunks are full of, as an array; None without one."""
    if value is None:
        return None
    number: Any = value
    if isinstance(value, str):
        known = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
        number = known.get(value)
    if dtype.kind is Kind.COMPLEX and isinstance(value, list) and value in ([0, 0], [0.0, 0.0]):
        number = 0
    if isinstance(number, bool | int | float):
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                blank = np.asarray([number]).astype(dtype.numpy)
        except (OverflowError, ValueError):
            blank = None
        if blank is not None and (dtype.kind in {Kind.FLOAT, Kind.COMPLEX} or blank[0] == number):
            return blank
    raise LeftError(f"absent chunks are filled with {clipped(str(value), 80)!r}, which is not read")
