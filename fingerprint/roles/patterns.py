"""Matching of names against the tables.

Names are split at dots and looked up by their longest known suffix, so that any prefix is allowed and no regular
expression ever meets a hostile name. Names that differ in numbers only share one look-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from fingerprint.roles.tables import load_tables

if TYPE_CHECKING:
    from fingerprint.roles.tables import Entry

LONGEST_NAME = 512
MOST_COMPONENTS = 32
_LONGEST_NUMBER = 6

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


class Match(Struct, frozen=True):
    """A name found in the tables: the entries that have it, and what the name says around them.

    ``numbers`` are those inside the pattern; ``adapter`` is "A" or "B" for the two matrices of a low-rank adapter.
    """

    entries: tuple[Entry, ...]
    stack: str
    numbers: tuple[int, ...]
    adapter: str

    def number(self, entry: Entry, which: str) -> int | None:
        """The number that stands for ``which`` ("layer" or "expert") in ``entry``'s pattern."""
        for name, value in zip(entry.numbers, self.numbers, strict=True):
            if name == which:
                return value
        return None


class _Template(Struct, frozen=True):
    """A name with its numbers taken out, looked up."""

    entries: tuple[Entry, ...]
    prefix: tuple[str, ...]
    adapter: str


class Names:
    """Matches names against the tables; keeps what it looked up for one checkpoint."""

    def __init__(self) -> None:
        self._tables = load_tables()
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
        skipped = len(numbers) - len(found.entries[0].numbers)
        inside = numbers[skipped:]
        if max(map(len, inside), default=0) > _LONGEST_NUMBER or not "".join(inside).isascii():
            return None
        prefix = found.prefix
        if skipped:
            outside = iter(numbers)
            prefix = tuple(next(outside) if word == "#" else word for word in prefix)
        stack = self._stacks.get(prefix)
        if stack is None:
            stack = self._stacks[prefix] = _stack(prefix)
        return Match(found.entries, stack, tuple(map(int, inside)), found.adapter)

    def _look_up(self, words: list[str]) -> _Template | None:
        if len(words) > MOST_COMPONENTS:
            return None
        adapter = "".join(_ADAPTERS[word] for word in words if word in _ADAPTERS)
        if len(adapter) > 1:
            return None
        kept = [word for word in words if word not in _WRAPPERS and word not in _ADAPTERS]
        for start in range(len(kept)):
            entries = self._tables.entries(".".join(kept[start:]))
            # A name without a layer inside a numbered module is that module's own affair: "merger.0.norm.weight".
            if entries is not None and (entries[0].numbers or "#" not in kept[1:start]):
                return _Template(entries, tuple(kept[:start]), adapter)
        entries = self._tables.buffer(words[-1])
        return None if entries is None else _Template(entries, (), "")


def _stack(prefix: tuple[str, ...]) -> str:
    for label, words in _STACKS:
        if any(word in part for part in prefix for word in words):
            return label
    return ".".join(part[:32] for part in prefix if part not in _SILENT)[:96]
