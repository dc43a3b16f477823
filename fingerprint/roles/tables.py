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

import tomllib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a stored tensor: its label in names, role, the axes of its rows and columns, and its MLP's group."""

    label: str
    role: Role
    rows: Axis
    columns: Axis
    group: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What a table says about one name.

    ``parts`` are in stored order along the outputs. ``in_out``: stored as (in, out). ``stacked``: a leading axis
    numbers the experts. ``numbers`` names the numbers in the pattern, in order. ``residual_side`` is the axis of the
    (out, in) matrix that is the residual stream: 0, 1, or None if neither or both.
    """

    table: int
    kind: Kind
    parts: tuple[Part, ...]
    split: Split
    in_out: bool
    stacked: bool
    numbers: tuple[str, ...]
    residual_side: int | None = field(init=False)

    def __post_init__(self) -> None:
        rows, columns = (axis is Axis.RESIDUAL for axis in (self.parts[0].rows, self.parts[0].columns))
        object.__setattr__(self, "residual_side", None if rows == columns else 0 if rows else 1)

    def plane(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The two sizes of the stored matrix, experts and leading axes of a table taken off; None if it is not one."""
        if self.kind is Kind.MATRIX and self.stacked:
            shape = shape[1:]
        elif self.kind is Kind.TABLE:
            shape = without_leading_ones(shape)
        elif self.kind is not Kind.MATRIX:
            return None
        return (shape[0], shape[1]) if len(shape) == 2 and min(shape) > 0 else None


@dataclass(frozen=True, slots=True)
class Table:
    """One family of names: what it is called, what its MLPs apply between their two layers, how many names it has."""

    family: str
    activation: str
    positions: Positions
    size: int


Key = tuple[str, ...]
Index = dict[Key, tuple[Entry, ...]]


@dataclass(frozen=True, slots=True)
class Tables:
    """All tables; their entries by name (split at dots, numbers as ``#``); last words of names that are no weights."""

    tables: tuple[Table, ...]
    index: Mapping[Key, tuple[Entry, ...]]
    suffixes: Mapping[str, tuple[Entry, ...]]


def without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading axes of size 1 beyond two axes."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


@cache
def load_tables() -> Tables:
    """Read all tables beside this module."""
    paths = [path for path in files("fingerprint.roles").iterdir() if path.name.endswith(".toml")]
    sources = {path.name[:-5]: tomllib.loads(path.read_text("utf-8")) for path in paths}
    tables: list[Table] = []
    index: dict[Key, list[Entry]] = {}
    suffixes: dict[str, tuple[Entry, ...]] = {}
    for name in sorted(sources):
        source = sources[name]
        patterns: dict[str, Entry] = {}
        for ancestor in _ancestors(name, sources):
            patterns.update(_entries(sources[ancestor], len(tables)))
        for pattern, entry in patterns.items():
            words = pattern.split(".")
            numbers = tuple(_PLACEHOLDERS[word] for word in words if word.startswith("{"))
            key = tuple("#" if word.startswith("{") else word for word in words)
            index.setdefault(key, []).append(replace(entry, numbers=numbers))
        for word in source.get("suffix", {}).get("names", ()):
            suffixes[word] = (_buffer(len(tables)),)
        positions = Positions(source.get("positions", "harmless"))
        tables.append(Table(source["family"], source.get("activation", ""), positions, len(patterns)))
    return Tables(tuple(tables), {key: tuple(entries) for key, entries in index.items()}, suffixes)


def _ancestors(name: str, sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table and those that it extends, farthest first, so that nearer entries replace them."""
    chain = [name]
    while "extends" in sources[chain[-1]]:
        chain.append(sources[chain[-1]]["extends"])
    return chain[::-1]


def _entries(source: Mapping[str, Any], table: int) -> Iterator[tuple[str, Entry]]:
    in_out = source.get("stored") == "in-out"
    for module, said in source.get("linear", {}).items():
        entry = _entry(said, table, Kind.MATRIX, in_out=in_out)
        yield f"{module}.weight", entry
        yield f"{module}.bias", _vector_of(entry)
    for module, said in source.get("table", {}).items():
        yield f"{module}.weight", _entry(said, table, Kind.TABLE)
    for name, said in source.get("parameter", {}).items():
        yield name, _entry(said, table, Kind.TABLE)
    for section in ("stacked", "whole"):
        for name, said in source.get(section, {}).items():
            entry = replace(_entry(said, table, Kind.MATRIX, in_out=in_out), stacked=section == "stacked")
            yield name, _vector_of(entry) if name.endswith("bias") else entry
    for module, axis in source.get("norm", {}).items():
        for suffix, role in _NORM_SUFFIXES:
            yield f"{module}.{suffix}", _entry(f"{role} {axis} unknown", table, Kind.VECTOR)
    for name, said in source.get("vector", {}).items():
        yield name, _entry(f"{said} unknown", table, Kind.VECTOR)
    for name in source.get("buffer", {}).get("names", ()):
        yield name, _buffer(table)


def _entry(said: str | Mapping[str, Any], table: int, kind: Kind, *, in_out: bool = False) -> Entry:
    if isinstance(said, str):
        said = {"parts": [said]}
    stored = said.get("stored")
    return Entry(
        table,
        kind,
        tuple(_part(part) for part in said["parts"]),
        Split(said.get("split", "none")),
        in_out if stored is None else stored == "in-out",
        stacked=False,
        numbers=(),
    )


def _part(said: str) -> Part:
    role, rows, columns, *group = said.split()
    return Part(role, Role(role), Axis(rows), Axis(columns), group[0] if group else "")


def _buffer(table: int) -> Entry:
    return _entry("buffer unknown unknown", table, Kind.BUFFER)


def _vector_of(entry: Entry) -> Entry:
    """The entry of a linear map's bias: the same parts, of which only the rows remain."""
    parts = tuple(replace(part, role=Role.BIAS, columns=Axis.UNKNOWN) for part in entry.parts)
    return replace(entry, kind=Kind.VECTOR, parts=parts, in_out=False)
