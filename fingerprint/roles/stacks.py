"""Stacks of layers: what the shapes of the tensors whose names are known say together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct, field

from fingerprint.roles.tables import Kind
from fingerprint.vocabulary import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fingerprint.hints import Hints
    from fingerprint.roles.patterns import Match
    from fingerprint.roles.tables import Entry, Table
    from fingerprint.tensors import TensorView

_HEADS = frozenset({Role.OUTPUT_HEAD, Role.CLASSIFIER})


class Member(Struct):
    """A stored tensor with its name's match and, once the stack has a table, the one entry that is followed."""

    position: int
    view: TensorView
    match: Match
    entry: Entry
    layer: int | None = None
    expert: int | None = None


class Orientations(Struct):
    """How many matrices lie as their table says, and how many the other way round, judged by their shapes."""

    as_declared: int = 0
    flipped: int = 0

    @property
    def squares_flipped(self) -> bool:
        """Whether matrices whose shape cannot tell are taken to lie the other way round."""
        return self.flipped > 0 and not self.as_declared

    @property
    def known(self) -> bool:
        """Whether the orientation of square matrices follows from that of the others."""
        return (self.flipped > 0) != (self.as_declared > 0)


class Stack(Struct):
    """One stack of layers: its members, the table that it follows, the width of its residual stream.

    ``lent`` are the widths of other stacks that a stack without layers may meet. ``inner`` is the number of columns of
    each layer's attention output, ``latent`` the width of the latent vector that keys and values come from;
    orientations are counted for stacked experts and for the rest.
    """

    label: str
    hints: Hints
    notes: list[str]
    members: list[Member] = field(default_factory=list)
    table: int = 0
    width: int | None = None
    lent: frozenset[int] = frozenset()
    layered: bool = False
    plain: Orientations = field(default_factory=Orientations)
    stacked: Orientations = field(default_factory=Orientations)
    inner: dict[int | None, int] = field(default_factory=dict)
    latent: dict[int | None, int] = field(default_factory=dict)

    def orientations(self, entry: Entry) -> Orientations:
        """The count that a matrix of that entry belongs to."""
        return self.stacked if entry.stacked else self.plain

    def is_width(self, size: int) -> bool:
        """Whether a residual axis of a member may have that size."""
        return size == self.width or size in self.lent

    def groups(self) -> Iterator[tuple[tuple[Entry, ...], tuple[int, ...], int]]:
        """Entries, shape and number of the members that share both; adapters left out, as they have other shapes."""
        found: Counter[tuple[int, tuple[int, ...]]] = Counter()
        entries: dict[int, tuple[Entry, ...]] = {}
        for member in self.members:
            if not member.match.adapter:
                # Matches of one name share one tuple of entries.
                found[id(member.match.entries), member.view.shape] += 1
                entries[id(member.match.entries)] = member.match.entries
        for (key, shape), count in found.items():
            yield entries[key], shape, count


def survey(members: Iterable[Member], hints: Hints, tables: Sequence[Table]) -> list[Stack]:
    """Sort members into stacks, and agree on a width, a table and the orientations of each. Linear in members."""
    stacks: dict[str, Stack] = {}
    notes: list[str] = []
    for member in members:
        label = member.match.stack
        stack = stacks.get(label)
        if stack is None:
            stack = stacks[label] = Stack(label, hints, notes)
        stack.members.append(member)
        stack.layered = stack.layered or "layer" in member.entry.numbers
    found = _joined(list(stacks.values()))
    for stack in found:
        _find_width(stack)
    _lend_widths(found)
    for stack in found:
        _choose(stack, tables)
        _measure(stack)
    return found


def _joined(stacks: list[Stack]) -> list[Stack]:
    """One stack without a label where only one has layers: embeddings and heads belong to it."""
    if len(stacks) < 2 or sum(stack.layered for stack in stacks) > 1:
        if len(stacks) == 1:
            stacks[0].label = ""
        return stacks
    joined, *others = stacks
    joined.label = ""
    joined.members += [member for stack in others for member in stack.members]
    joined.layered = joined.layered or any(stack.layered for stack in others)
    return [joined]


def _find_width(stack: Stack) -> None:
    """The width: the size that most matrices with a residual axis share; ties go to the side that names say."""
    votes: Counter[int] = Counter()
    declared: Counter[int] = Counter()
    for entries, shape, count in stack.groups():
        plane, side = entries[0].plane(shape), entries[0].residual_side
        if plane is None or side is None:
            continue
        for size in set(plane):
            votes[size] += count
        declared[plane[side ^ entries[0].in_out]] += count
    if votes:
        stack.width = max(votes, key=lambda size: (votes[size], declared[size], size))


def _lend_widths(stacks: Sequence[Stack]) -> None:
    """Tensors without layers (embeddings, heads) take the width of a stack of layers that fits them."""
    widths = Counter({stack.width: len(stack.members) for stack in stacks if stack.layered and stack.width})
    for stack in stacks:
        if stack.layered or not widths:
            continue
        sizes: Counter[int] = Counter()
        for entries, shape, count in stack.groups():
            for size in set(entries[0].plane(shape) or ()):
                sizes[size] += count
        fitting = [size for size in widths if size in sizes]
        if fitting:
            stack.width = max(fitting, key=lambda size: (sizes[size], widths[size], size))
            stack.lent = frozenset(fitting)


def _fit(entry: Entry, shape: tuple[int, ...], width: int | None) -> int:
    """How well the shape fits the entry: 2 as stored by that family, 1 the other way round or unclear, 0 not at all."""
    plane, side = entry.plane(shape), entry.residual_side
    if plane is None:
        return 0
    if side is None or width is None:
        return 1
    if plane[side ^ entry.in_out] == width and plane[0] != plane[1]:
        return 2
    return 1 if width in plane else 0


def _choose(stack: Stack, tables: Sequence[Table]) -> None:
    """The table whose layouts fit most of the stack (of two as good, the smaller), and each member's entry."""
    scores: Counter[int] = Counter()
    for entries, shape, count in stack.groups():
        for entry in entries:
            scores[entry.table] += count * (1 + 4 * _fit(entry, shape, stack.width))
    order = sorted(scores, key=lambda table: (-scores[table], tables[table].size, table))
    rank = {table: place for place, table in enumerate(order)}
    if order:
        stack.table = order[0]
    chosen: dict[int, Entry] = {}
    for member in stack.members:
        entries = member.match.entries
        if id(entries) not in chosen:
            chosen[id(entries)] = min(entries, key=lambda entry: rank.get(entry.table, len(rank)))
        entry = member.entry = chosen[id(entries)]
        if entry.numbers:
            member.layer = member.match.number(entry, "layer")
            member.expert = member.match.number(entry, "expert")


def _measure(stack: Stack) -> None:
    """Count orientations, and note the inner width of attention and the latent width of each layer."""
    for member in stack.members:
        entry = member.entry
        # Heads keep the layout of the embedding, to which they may be tied.
        if entry.kind is not Kind.MATRIX or entry.parts[0].role in _HEADS or member.match.adapter:
            continue
        plane, side = entry.plane(member.view.shape), entry.residual_side
        if plane is None or side is None or not any(map(stack.is_width, plane)) or plane[0] == plane[1]:
            continue
        if stack.is_width(plane[side ^ entry.in_out]):
            stack.orientations(entry).as_declared += 1
        else:
            stack.orientations(entry).flipped += 1
    for member in stack.members:
        part = member.entry.parts[0]
        wanted = part.role is Role.ATTENTION_OUTPUT or (part.role is Role.LATENT_UP and part.group == "kv")
        plane = member.entry.plane(member.view.shape) if wanted and not member.match.adapter else None
        if plane is None:
            continue
        if part.role is Role.LATENT_UP:
            flipped = member.entry.in_out != stack.orientations(member.entry).squares_flipped
            stack.latent[member.layer] = plane[0] if flipped else plane[1]
        elif stack.width in plane:
            stack.inner[member.layer] = plane[0] if plane[1] == stack.width else plane[1]
