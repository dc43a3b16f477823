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
    from collections.abc import Iterator, Mapping, Sequence

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


class Tables(Struct, frozen=True):
    """All tables; what they say of each name (numbers as ``#``); last words of names that are no weights."""

    tables: tuple[Table, ...]
    said: Mapping[str, Sequence[tuple[int, str, _Said]]]
    """For each name the tables that have it, each with its pattern there. Entries are made of those that are met: of
    two thousand a checkpoint needs a dozen."""
    suffixes: Mapping[str, int]
    """For each such word the last table that lists it."""

    def entries(self, name: str) -> tuple[Entry, ...] | None:
        """The entries of a name whose numbers are ``#``; None if no table has it."""
        found = self.said.get(name)
        return (
            None if found is None else tuple(_entry(said, table, _numbers(pattern)) for table, pattern, said in found)
        )

    def buffer(self, word: str) -> tuple[Entry, ...] | None:
        """The entry of names that end in a word by which a table tells that they are no weights; None if none does."""
        table = self.suffixes.get(word)
        return None if table is None else (_entry(_BUFFER, table, ()),)


def without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading axes of size 1 beyond two axes."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


class _Said(NamedTuple):
    """What a table says of a name, as it is written there."""

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
    written = {name: dict(_written(source)) for name, source in sources.items()}
    tables: list[Table] = []
    by_name: dict[str, list[tuple[int, str, _Said]]] = {}
    suffixes: dict[str, int] = {}
    for name in sorted(sources):
        source = sources[name]
        patterns: dict[str, _Said] = {}
        for ancestor in _ancestors(name, sources):
            patterns.update(written[ancestor])
        for pattern, said in patterns.items():
            by_name.setdefault(_plain(pattern), []).append((len(tables), pattern, said))
        suffixes |= dict.fromkeys(source.get("suffix", {}).get("names", ()), len(tables))
        positions = Positions(source.get("positions", "harmless"))
        tables.append(Table(source["family"], source.get("activation", ""), positions, len(patterns)))
    return Tables(tuple(tables), by_name, suffixes)


def _plain(pattern: str) -> str:
    """A pattern as the names that it stands for are looked up."""
    if "{" in pattern:
        for placeholder in _PLACEHOLDERS:
            pattern = pattern.replace(placeholder, "#")
    return pattern


def _numbers(pattern: str) -> tuple[str, ...]:
    """What the numbers of a pattern stand for."""
    return tuple(_PLACEHOLDERS[word] for word in pattern.split(".") if word.startswith("{"))


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


def _entry(said: _Said, table: int, numbers: tuple[str, ...]) -> Entry:
    parts = tuple(_part(part, bias=said.bias) for part in said.parts)
    return Entry(table, said.kind, parts, Split(said.split), said.in_out, said.stacked, numbers)


@cache
def _part(said: str, *, bias: bool) -> Part:
    role, rows, columns, *group = said.split()
    label = group[0] if group else ""
    if bias:
        return Part(role, Role.BIAS, Axis(rows), Axis.UNKNOWN, label)
    return Part(role, Role(role), Axis(rows), Axis(columns), label)
