"""Tables of tensor names: one TOML file a family beside this module, read once.

Sections of a file, all optional; ``{layer}``, ``{expert}`` and ``{any}`` stand for a number between dots:

- ``[linear]`` and ``[table]`` (embeddings, never stored transposed) map a module, which has ``.weight`` and ``.bias``,
  to ``"role rows columns"``, in (out, in); a fourth word tells two MLPs of one layer apart; or to
  ``{ parts = [...], split = ..., stored = "in-out" }``, where the parts of a fused block are in stored order;
- ``[norm]`` maps a module to the axis of its gain and bias;
- ``[stacked]`` maps a whole name with a leading axis of experts, ``[whole]`` a whole name without, ``[parameter]``
  a whole name of a table, ``[vector]`` a whole name to ``"role axis"``;
- ``[buffer]`` lists whole names, ``[suffix]`` last words of names, that are no weights;
- ``stored = "in-out"``: linear maps are stored as (in, out); ``extends``: another file whose entries hold too;
- ``positions``: ``"sinusoidal"`` where such are added to the residual stream, ``"stored"`` where they are unless a
  table of positions is stored.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tomli
from msgspec import Struct

from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PLACEHOLDERS = {"{layer}": "layer", "{expert}": "expert", "{any}": "any"}
_NORM_SUFFIXES = (
    ("weight", Role.NORM_GAIN), ("gamma", Role.NORM_GAIN), ("bias", Role.NORM_BIAS), ("beta", Role.NORM_BIAS),
)  # fmt: skip


class Kind(StrEnum):
    """What the stored tensor is."""

    MATRIX = "matrix"
    TABLE = "table"
    VECTOR = "vector"
    BUFFER = "buffer"


class Split(StrEnum):
    """How the parts of a fused block lie along its outputs."""

    NONE = "none"
    EQUAL = "equal"
    GROUPED = "grouped"
    PER_HEAD = "per-head"
    FALCON = "falcon"
    ALTERNATING = "alternating"
    LATENT = "latent"


class Positions(StrEnum):
    """What is known of the positions that a family adds to its residual stream."""

    HARMLESS = "harmless"
    STORED = "stored"
    SINUSOIDAL = "sinusoidal"


class Part(Struct, frozen=True):
    """One part of a stored tensor: its label in names, role, the axes of its rows and columns, and its MLP's group."""

    label: str
    role: Role
    rows: Axis
    columns: Axis
    group: str


class Entry(Struct, frozen=True):
    """What a table says about one name.

    ``parts`` are in stored order along the outputs. ``in_out``: stored as (in, out). ``stacked``: a leading axis
    numbers the experts. ``numbers`` names the numbers in the pattern, in order.
    """

    table: int
    kind: Kind
    parts: tuple[Part, ...]
    split: Split
    in_out: bool
    stacked: bool
    numbers: tuple[str, ...]

    @property
    def residual_side(self) -> int | None:
        """The axis of the (out, in) matrix that is the residual stream: 0, 1, or None if neither or both."""
        rows, columns = (axis is Axis.RESIDUAL for axis in (self.parts[0].rows, self.parts[0].columns))
        return None if rows == columns else 0 if rows else 1

    def plane(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The two sizes of the stored matrix, experts and leading axes of a table taken off; None if it is not one."""
        if self.kind is Kind.MATRIX and self.stacked:
            shape = shape[1:]
        elif self.kind is Kind.TABLE:
            shape = without_leading_ones(shape)
        elif self.kind is not Kind.MATRIX:
            return None
        return (shape[0], shape[1]) if len(shape) == 2 and min(shape) > 0 else None


class Table(Struct, frozen=True):
    """One family of names: what it is called, what its MLPs apply between their two layers, how many names it has."""

    family: str
    activation: str
    positions: Positions
    size: int


Key = tuple[str, ...]
Index = dict[Key, tuple[Entry, ...]]


class Tables(Struct, frozen=True):
    """All tables; their entries by name (split at dots, numbers as ``#``); last words of names that are no weights."""

    tables: tuple[Table, ...]
    index: Mapping[Key, tuple[Entry, ...]]
    suffixes: Mapping[str, tuple[Entry, ...]]


def without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading axes of size 1 beyond two axes."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


class _Said(NamedTuple):
    """What a table says of a name, as it is written there: equal ones are one object, of which one entry is made."""

    kind: Kind
    parts: tuple[str, ...]
    split: str = "none"
    in_out: bool = False
    stacked: bool = False
    bias: bool = False
    """The parts are those of a linear map, of which this is the bias: only the rows remain."""


@cache
def load_tables() -> Tables:
    """Read all tables beside this module."""
    sources = {path.stem: tomli.loads(path.read_text("utf-8")) for path in Path(__file__).parent.glob("*.toml")}
    once: dict[_Said, _Said] = {}
    written = {
        name: {pattern: once.setdefault(said, said) for pattern, said in _written(source)}
        for name, source in sources.items()
    }
    tables: list[Table] = []
    index: dict[Key, list[Entry]] = {}
    suffixes: dict[str, tuple[Entry, ...]] = {}
    for name in sorted(sources):
        source = sources[name]
        patterns: dict[str, _Said] = {}
        for ancestor in _ancestors(name, sources):
            patterns.update(written[ancestor])
        made: dict[tuple[int, Key], Entry] = {}
        for pattern, said in patterns.items():
            key, numbers = _key(pattern)
            entry = made.get((id(said), numbers))
            if entry is None:
                entry = made[id(said), numbers] = _entry(said, len(tables), numbers)
            index.setdefault(key, []).append(entry)
        for word in source.get("suffix", {}).get("names", ()):
            suffixes[word] = (_entry(_BUFFER, len(tables), ()),)
        positions = Positions(source.get("positions", "harmless"))
        tables.append(Table(source["family"], source.get("activation", ""), positions, len(patterns)))
    return Tables(tuple(tables), {key: tuple(entries) for key, entries in index.items()}, suffixes)


@cache
def _key(pattern: str) -> tuple[Key, Key]:
    """A pattern as a key of the index, and what its numbers stand for."""
    if "{" not in pattern:
        return tuple(pattern.split(".")), ()
    words = pattern.split(".")
    numbers = tuple(_PLACEHOLDERS[word] for word in words if word.startswith("{"))
    return tuple("#" if word.startswith("{") else word for word in words), numbers


def _ancestors(name: str, sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table and those that it extends, farthest first, so that nearer entries replace them."""
    chain = [name]
    while "extends" in sources[chain[-1]]:
        chain.append(sources[chain[-1]]["extends"])
    return chain[::-1]


def _written(source: Mapping[str, Any]) -> Iterator[tuple[str, _Said]]:
    """What one file says of names itself."""
    in_out = source.get("stored") == "in-out"
    for module, said in source.get("linear", {}).items():
        linear = _said(said, Kind.MATRIX, in_out=in_out)
        yield f"{module}.weight", linear
        yield f"{module}.bias", linear._replace(kind=Kind.VECTOR, in_out=False, bias=True)
    for module, said in source.get("table", {}).items():
        yield f"{module}.weight", _said(said, Kind.TABLE)
    for name, said in source.get("parameter", {}).items():
        yield name, _said(said, Kind.TABLE)
    for section in ("stacked", "whole"):
        for name, said in source.get(section, {}).items():
            whole = _said(said, Kind.MATRIX, in_out=in_out)._replace(stacked=section == "stacked")
            bias = whole._replace(kind=Kind.VECTOR, in_out=False, bias=True)
            yield name, bias if name.endswith("bias") else whole
    for module, axis in source.get("norm", {}).items():
        for suffix, role in _NORM_SUFFIXES:
            yield f"{module}.{suffix}", _Said(Kind.VECTOR, (f"{role} {axis} unknown",))
    for name, said in source.get("vector", {}).items():
        yield name, _Said(Kind.VECTOR, (f"{said} unknown",))
    for name in source.get("buffer", {}).get("names", ()):
        yield name, _BUFFER


_BUFFER = _Said(Kind.BUFFER, ("buffer unknown unknown",))


def _said(said: str | Mapping[str, Any], kind: Kind, *, in_out: bool = False) -> _Said:
    if isinstance(said, str):
        return _Said(kind, (said,), in_out=in_out)
    stored = said.get("stored")
    as_stored = in_out if stored is None else stored == "in-out"
    return _Said(kind, tuple(said["parts"]), said.get("split", "none"), as_stored)


def _entry(said: _Said, table: int, numbers: Key) -> Entry:
    parts = tuple(_part(part, bias=said.bias) for part in said.parts)
    return Entry(table, said.kind, parts, Split(said.split), said.in_out, said.stacked, numbers)


@cache
def _part(said: str, *, bias: bool) -> Part:
    role, rows, columns, *group = said.split()
    label = group[0] if group else ""
    if bias:
        return Part(role, Role.BIAS, Axis(rows), Axis.UNKNOWN, label)
    return Part(role, Role(role), Axis(rows), Axis(columns), label)
