"""Tables of tensor names (``*.toml`` beside this file), and the matching of names against them.

Names are split at dots and looked up by their longest known suffix, so that any prefix is allowed and no regular
expression ever meets a hostile name. Names that differ in numbers only share one look-up.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fingerprint.roles.layout import OFFSET_GLU
from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LONGEST_NAME = 512
MOST_COMPONENTS = 32
_LARGEST_NUMBER = 10**6
_PLACEHOLDERS = ("layer", "expert", "any")


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
    numbers the experts. ``numbers`` names the numbers in the pattern, in order.
    """

    table: int
    kind: Kind
    parts: tuple[Part, ...]
    split: Split
    in_out: bool
    stacked: bool
    numbers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One family of names: what it is called and what its MLPs compute between their two layers.

    ``fixed_residual`` is true where sinusoidal positions are added to the residual stream, whose axes then mean the
    same in every model.
    """

    family: str
    activation: str
    fixed_residual: bool


@dataclass(frozen=True, slots=True)
class Match:
    """A name found in the tables: the entries that have it, and what the name says around them."""

    entries: tuple[Entry, ...]
    stack: str
    numbers: tuple[int, ...]
    adapter: str

    def number(self, entry: Entry, which: str) -> int | None:
        """The number that stands for ``which`` ("layer" or "expert") in ``entry``'s pattern."""
        found = None
        for name, value in zip(entry.numbers, self.numbers, strict=True):
            if name == which:
                found = value
        return found


@dataclass(frozen=True, slots=True)
class _Template:
    """A name with its numbers taken out, looked up."""

    entries: tuple[Entry, ...]
    prefix: tuple[str, ...]
    adapter: str


Key = tuple[str, ...]

# Words that wrappers put into names and that say nothing.
_WRAPPERS = frozenset({
    "_orig_mod", "module", "default", "base_layer", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
})  # fmt: skip
_SILENT = frozenset({"model", "transformer", "base_model", "backbone", "net", "network", "state_dict", "layers", "0"})
_STACKS = (
    ("vision", ("vision", "visual", "image", "vit")),
    ("audio", ("audio", "speech")),
    ("text", ("text", "language")),
    ("decoder", ("decoder",)),
    ("encoder", ("encoder",)),
)
_ADAPTERS = {"lora_A": "A", "lora_B": "B"}


class Names:
    """Matches names against the tables; keeps what it looked up for one checkpoint."""

    def __init__(self) -> None:
        self.tables, self._index = load_tables()
        self._templates: dict[str, _Template | None] = {}
        self._stacks: dict[tuple[str, ...], str] = {}

    def match(self, name: str) -> Match | None:
        """What the tables know of ``name``; None if nothing."""
        if len(name) > LONGEST_NAME:
            return None
        words = name.split(".")
        numbers = [word for word in words if word.isdigit()]
        if numbers:
            words = ["#" if word.isdigit() else word for word in words]
        template = ".".join(words)
        try:
            found = self._templates[template]
        except KeyError:
            found = self._templates[template] = self._look_up(words)
        if found is None:
            return None
        entry_numbers = len(found.entries[0].numbers)
        skipped = len(numbers) - entry_numbers
        values = []
        for word in numbers[skipped:]:
            if not word.isascii() or len(word) > 7 or int(word) > _LARGEST_NUMBER:
                return None
            values.append(int(word))
        prefix = found.prefix
        if skipped:
            remaining = iter(numbers)
            prefix = tuple(next(remaining)[:8] if word == "#" else word for word in prefix)
        stack = self._stacks.get(prefix)
        if stack is None:
            stack = self._stacks[prefix] = _stack(prefix)
        return Match(found.entries, stack, tuple(values), found.adapter)

    def _look_up(self, words: list[str]) -> _Template | None:
        if len(words) > MOST_COMPONENTS:
            return None
        adapter = "".join(_ADAPTERS[word] for word in words if word in _ADAPTERS)
        if len(adapter) > 1:
            return None
        kept = [word for word in words if word not in _WRAPPERS and word not in _ADAPTERS]
        for start in range(len(kept)):
            entries = self._index.get(tuple(kept[start:]))
            if entries is not None:
                return _Template(entries, tuple(kept[:start]), adapter)
        return None


def _stack(prefix: tuple[str, ...]) -> str:
    for label, words in _STACKS:
        if any(word in part for part in prefix for word in words):
            return label
    return ".".join(part[:32] for part in prefix if part not in _SILENT)[:96]


@cache
def load_tables() -> tuple[tuple[Table, ...], Mapping[Key, tuple[Entry, ...]]]:
    """All tables, and the entries by name (split at dots, numbers as ``#``)."""
    tables: list[Table] = []
    index: dict[Key, list[Entry]] = {}
    folder = files("fingerprint.roles")
    for path in sorted((path for path in folder.iterdir() if path.name.endswith(".toml")), key=lambda path: path.name):
        source = tomllib.loads(path.read_text("utf-8"))
        table = Table(source["family"], source.get("activation", ""), source.get("positions", "") == "sinusoidal")
        if table.activation == "offset-glu":
            table = replace(table, activation=OFFSET_GLU)
        for pattern, entry in _entries(source, len(tables)):
            words = pattern.split(".")
            numbers = tuple(word[1:-1] for word in words if word.startswith("{"))
            if not set(numbers) <= set(_PLACEHOLDERS):
                raise ValueError(f"{path.name}: {pattern}")
            key = tuple("#" if word.startswith("{") else word for word in words)
            index.setdefault(key, []).append(replace(entry, numbers=numbers))
        tables.append(table)
    return tuple(tables), {key: tuple(entries) for key, entries in index.items()}


def _entries(source: Mapping[str, Any], table: int) -> Iterator[tuple[str, Entry]]:
    """Patterns and entries of one table.

    ``[linear]`` and ``[table]`` map a module to "role rows columns [group]" or to ``{parts, split, stored}``;
    ``[norm]`` maps a module to its axis; ``[stacked]`` maps a parameter with a leading axis of experts; ``[parameter]``
    and ``[vector]`` map whole names; ``[buffer]`` lists whole names.
    """
    in_out = source.get("stored") == "in-out"
    for section, kind in (("linear", Kind.MATRIX), ("table", Kind.TABLE)):
        for module, said in source.get(section, {}).items():
            entry = _entry(said, table, kind, in_out=in_out and kind is Kind.MATRIX)
            yield f"{module}.weight", entry
            yield f"{module}.bias", _vector_of(entry)
    for name, said in source.get("parameter", {}).items():
        yield name, _entry(said, table, Kind.TABLE, in_out=False)
    for name, said in source.get("stacked", {}).items():
        entry = replace(_entry(said, table, Kind.MATRIX, in_out=in_out), stacked=True)
        yield name, _vector_of(entry) if name.endswith("bias") else entry
    for module, axis in source.get("norm", {}).items():
        for suffix, role in (
            ("weight", Role.NORM_GAIN), ("gamma", Role.NORM_GAIN), ("bias", Role.NORM_BIAS), ("beta", Role.NORM_BIAS),
        ):  # fmt: skip
            yield f"{module}.{suffix}", _entry(f"{role} {axis} unknown", table, Kind.VECTOR, in_out=False)
    for name, said in source.get("vector", {}).items():
        yield name, _entry(f"{said} unknown", table, Kind.VECTOR, in_out=False)
    for name in source.get("buffer", {}).get("names", ()):
        yield name, _entry("buffer unknown unknown", table, Kind.BUFFER, in_out=False)


def _entry(said: str | Mapping[str, Any], table: int, kind: Kind, *, in_out: bool) -> Entry:
    if isinstance(said, str):
        return Entry(table, kind, (_part(said),), Split.NONE, in_out, stacked=False, numbers=())
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


def _vector_of(entry: Entry) -> Entry:
    """The entry of a linear map's bias: the same parts, of which only the rows remain."""
    parts = tuple(replace(part, role=Role.BIAS, columns=Axis.UNKNOWN) for part in entry.parts)
    return replace(entry, kind=Kind.VECTOR, parts=parts, in_out=False)
