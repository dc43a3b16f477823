"""Laying out the tensors whose names are known, as far as their shapes agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fingerprint.roles.layout import CanonicalTensor
from fingerprint.roles.parts import alternating, heads_from, runs_of, split, transposed, unstacked
from fingerprint.roles.patterns import Entry, Kind, Match, Names, Part, Split, Table
from fingerprint.tensors import Reshaped
from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fingerprint.roles.parts import Heads
    from fingerprint.tensors import TensorView

MOST_EXPERTS = 4096
_MLP_ROLES = frozenset({Role.GATE, Role.UP, Role.DOWN, Role.FC_IN, Role.FC_OUT})


@dataclass(slots=True)
class _Named:
    """A stored tensor with its name's match and, later, the one entry that is followed."""

    position: int
    view: TensorView
    match: Match
    entry: Entry
    layer: int | None = None
    expert: int | None = None


@dataclass(slots=True)
class _Stack:
    """What the shapes of one stack of layers say: its width, and whether its linear maps lie as their names say."""

    label: str
    hints: Mapping[str, str]
    notes: list[str]
    members: list[_Named] = field(default_factory=list)
    table: int = 0
    width: int | None = None
    as_declared: int = 0
    flipped: int = 0
    inner: dict[int | None, int] = field(default_factory=dict)
    latent: dict[int | None, int] = field(default_factory=dict)
    layered: bool = False

    @property
    def squares_flipped(self) -> bool:
        """Whether matrices whose shape cannot tell are taken to lie the other way round."""
        return self.flipped > 0 and not self.as_declared

    @property
    def squares_known(self) -> bool:
        """Whether the orientation of square matrices follows from that of the others."""
        return (self.flipped > 0) != (self.as_declared > 0)


@dataclass(frozen=True, slots=True)
class Placed:
    """A canonical tensor and the MLP of its layer that it belongs to."""

    tensor: CanonicalTensor
    group: str


@dataclass(slots=True)
class NamedLayout:
    """What names gave: parts by position of the stored tensor; what is not there is left to the shapes."""

    placed: dict[int, list[Placed]]
    tables: Counter[int]
    widths: Counter[int]
    activations: dict[str, str]
    known: tuple[Table, ...]
    notes: list[str]


def lay_out_named(tensors: Sequence[TensorView], hints: Mapping[str, str]) -> NamedLayout:
    """Match all names, agree on a family and a width for each stack, and place what fits.

    Linear in the number of tensors; reads no values.
    """
    names = Names()
    stacks: dict[str, _Stack] = {}
    notes: list[str] = []
    for position, view in enumerate(tensors):
        match = names.match(view.name)
        if match is not None:
            stack = stacks.setdefault(match.stack, _Stack(match.stack, hints, notes))
            stack.members.append(_Named(position, view, match, match.entries[0]))
    result = NamedLayout({}, Counter(), Counter(), {}, names.tables, notes)
    stacks = _joined(stacks)
    for stack in stacks.values():
        _survey(stack)
    _lend_widths(stacks)
    for stack in stacks.values():
        _choose(stack)
        _measure(stack)
        result.tables[stack.table] += len(stack.members)
        result.activations[stack.label] = names.tables[stack.table].activation
        contradictions = 0
        for member in stack.members:
            placed = _place(member, stack)
            if placed is None:
                contradictions += 1
                continue
            if names.tables[member.entry.table].fixed_residual:
                placed = [Placed(_without_residual(one.tensor), one.group) for one in placed]
            result.placed[member.position] = placed
            if stack.width is not None:
                result.widths[stack.width] += len(placed)
        _note(stack, contradictions, result.notes)
    return result


def _note(stack: _Stack, contradictions: int, notes: list[str]) -> None:
    where = f" of stack {stack.label!r}" if stack.label else ""
    if contradictions:
        notes.append(f"{contradictions} tensors{where} have shapes that contradict their names: laid out by shape")
    if stack.flipped:
        notes.append(f"{stack.flipped} matrices{where} are stored the other way round than their names say")


# --- what the shapes of a stack say ---------------------------------------------------------------------------------


def _plane(member: _Named, entry: Entry) -> tuple[int, int] | None:
    """The two sizes of the stored matrix, experts taken off; None if it is not one."""
    shape = member.view.shape[1:] if entry.stacked else member.view.shape
    if entry.kind is Kind.MATRIX and len(shape) == 2 and min(shape) > 0:
        return shape[0], shape[1]
    if entry.kind is Kind.TABLE:
        while len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) == 2 and min(shape) > 0:
            return shape[0], shape[1]
    return None


def _residual_side(entry: Entry) -> int | None:
    """Which axis of the (out, in) matrix is the residual stream: 0, 1, or None if neither or both."""
    part = entry.parts[0]
    rows, columns = part.rows is Axis.RESIDUAL, part.columns is Axis.RESIDUAL
    return None if rows == columns else 0 if rows else 1


def _survey(stack: _Stack) -> None:
    """The width: the size that most matrices with a residual axis share; ties go to the side that names say."""
    votes: Counter[int] = Counter()
    declared: Counter[int] = Counter()
    for member in stack.members:
        entry = member.entry
        stack.layered = stack.layered or "layer" in entry.numbers
        plane, side = _plane(member, entry), _residual_side(entry)
        if plane is None or side is None or member.match.adapter:
            continue
        votes.update(set(plane))
        declared[plane[side ^ entry.in_out]] += 1
    if votes:
        stack.width = max(votes, key=lambda size: (votes[size], declared[size], size))


def _joined(stacks: dict[str, _Stack]) -> dict[str, _Stack]:
    """One stack without a label where only one has layers: embeddings and heads belong to it."""
    layered = [stack for stack in stacks.values() if any("layer" in member.entry.numbers for member in stack.members)]
    if len(layered) > 1 or not stacks:
        return stacks
    joined, *others = stacks.values()
    joined.label = ""
    joined.members += [member for stack in others for member in stack.members]
    return {"": joined}


def _lend_widths(stacks: Mapping[str, _Stack]) -> None:
    """Tensors without layers (embeddings, heads) take the width of a stack of layers that fits them."""
    widths = Counter({stack.width: len(stack.members) for stack in stacks.values() if stack.layered and stack.width})
    for stack in stacks.values():
        if stack.layered or not widths:
            continue
        sizes = Counter(size for member in stack.members for size in set(_plane(member, member.entry) or ()))
        fitting = [size for size in widths if size in sizes]
        if fitting:
            stack.width = max(fitting, key=lambda size: (sizes[size], widths[size] or 0, size))


def _fit(member: _Named, entry: Entry, width: int | None) -> int:
    """How well the shape fits the entry: 2 as stored by that family, 1 the other way round, 0 not at all."""
    plane, side = _plane(member, entry), _residual_side(entry)
    if plane is None:
        return 0
    if side is None or width is None:
        return 1
    stored = side ^ entry.in_out
    return 2 if plane[stored] == width and plane[0] != plane[1] else 1 if width in plane else 0


def _choose(stack: _Stack) -> None:
    """The table whose layouts fit most of the stack, and for each member the entry of it (or the best other one)."""
    scores: Counter[int] = Counter()
    for member in stack.members:
        for entry in member.match.entries:
            scores[entry.table] += 1 + 4 * _fit(member, entry, stack.width)
    stack.table = max(scores, key=lambda table: (scores[table], -table))
    for member in stack.members:
        member.entry = max(member.match.entries, key=lambda entry: (entry.table == stack.table, scores[entry.table]))
        member.layer = member.match.number(member.entry, "layer")
        member.expert = member.match.number(member.entry, "expert")


def _measure(stack: _Stack) -> None:
    """Count orientations, and note the width between values and the output projection of each layer."""
    for member in stack.members:
        entry = member.entry
        plane, side = _plane(member, entry), _residual_side(entry)
        if plane is None or side is None or stack.width not in plane or member.match.adapter:
            continue
        stored = side ^ entry.in_out
        if plane[0] != plane[1] and entry.kind is Kind.MATRIX:
            if plane[stored] == stack.width:
                stack.as_declared += 1
            else:
                stack.flipped += 1
        if entry.parts[0].role is Role.ATTENTION_OUTPUT:
            stack.inner[member.layer] = plane[0] if plane[1] == stack.width else plane[1]
        if entry.parts[0].role is Role.LATENT_UP:
            stack.latent[member.layer] = min(plane)


# --- placing one tensor ---------------------------------------------------------------------------------------------


def _place(member: _Named, stack: _Stack) -> list[Placed] | None:
    entry, view = member.entry, member.view
    if entry.kind is Kind.BUFFER:
        return [_placed(member, stack, view, entry.parts[0], oriented=True)]
    if entry.stacked:
        return _place_stack(member, stack)
    return _place_one(member, stack, view, member.expert)


def _place_stack(member: _Named, stack: _Stack) -> list[Placed] | None:
    view = member.view
    dimensions = 2 if member.entry.kind is Kind.VECTOR else 3
    if len(view.shape) != dimensions or not 0 < view.shape[0] <= MOST_EXPERTS:
        return None
    placed: list[Placed] = []
    for expert in range(view.shape[0]):
        one = _place_one(member, stack, unstacked(view, expert), expert)
        if one is None:
            return None
        placed += one
    return placed


def _place_one(member: _Named, stack: _Stack, view: TensorView, expert: int | None) -> list[Placed] | None:
    entry = member.entry
    if member.match.adapter:
        return _place_adapter(member, stack, view)
    if entry.kind is Kind.VECTOR:
        vector = _as_vector(view)
        if vector is None:
            return None
        return _split(member, stack, vector, expert, oriented=True)
    if entry.kind is Kind.TABLE:
        return _place_table(member, stack, view, expert)
    if entry.parts[0].role is Role.CONVOLUTION:
        return _place_convolution(member, stack, view)
    turned = _turned(view, entry, stack)
    if turned is None:
        return None
    matrix, oriented = turned
    return _split(member, stack, matrix, expert, oriented=oriented)


def _turned(view: TensorView, entry: Entry, stack: _Stack) -> tuple[TensorView, bool] | None:
    """The matrix as (out, in), and whether that is known; None if its shape contradicts the entry."""
    shape = view.shape
    if len(shape) != 2 or min(shape) <= 0:
        return None
    side = _residual_side(entry)
    square = shape[0] == shape[1]
    flip, oriented = stack.squares_flipped, stack.squares_known
    if side is not None and stack.width is not None:
        if stack.width not in shape:
            return None
        if not square:
            flip, oriented = shape[side ^ entry.in_out] != stack.width, True
    elif side is None and Axis.RESIDUAL in {entry.parts[0].rows, entry.parts[0].columns} and stack.width not in shape:
        return None
    return (transposed(view) if entry.in_out != flip else view), oriented


def _place_table(member: _Named, stack: _Stack, view: TensorView, expert: int | None) -> list[Placed] | None:
    shape = view.shape
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 1 and member.entry.parts[0].role is not Role.TOKEN_EMBEDDING:
        part = Part("", Role.OTHER, member.entry.parts[0].columns, Axis.UNKNOWN, "")
        return [_placed(member, stack, _reshaped(view, shape), part, oriented=True, expert=expert)]
    if len(shape) != 2 or min(shape) <= 0:
        return None
    matrix = _reshaped(view, shape)
    if _residual_side(member.entry) == 1 and stack.width is not None and shape[1] != stack.width:
        if shape[0] != stack.width:
            return None
        matrix = transposed(matrix)
    return _split(member, stack, matrix, expert, oriented=shape[0] != shape[1] or stack.as_declared > 0)


def _place_convolution(member: _Named, stack: _Stack, view: TensorView) -> list[Placed] | None:
    """A kernel (out, in, ...) kept as it is, such as the patches' embedding."""
    if len(view.shape) < 2 or min(view.shape) <= 0:
        return None
    part = member.entry.parts[0]
    if part.rows is Axis.RESIDUAL and stack.width is not None and view.shape[0] != stack.width:
        return None
    return [_placed(member, stack, view, part, oriented=True)]


def _place_adapter(member: _Named, stack: _Stack, view: TensorView) -> list[Placed] | None:
    """A low-rank pair: A is (rank, in), B is (out, rank); the rank axis is hidden."""
    entry, shape = member.entry, view.shape
    if entry.kind is not Kind.MATRIX or len(shape) != 2 or min(shape) <= 0:
        return None
    base = entry.parts[0]
    rows = base.rows if len(entry.parts) == 1 else Axis.UNKNOWN
    if member.match.adapter == "A":
        part = Part("", Role.OTHER, Axis.UNIT, base.columns, "")
        axis, size = base.columns, shape[1]
    else:
        part = Part("", Role.OTHER, rows, Axis.UNIT, "")
        axis, size = rows, shape[0]
    if axis is Axis.RESIDUAL and stack.width is not None and size != stack.width:
        return None
    return [_placed(member, stack, view, part, oriented=True)]


def _as_vector(view: TensorView) -> TensorView | None:
    """A tensor with one axis longer than 1 as a vector."""
    shape = view.shape
    if len(shape) == 1:
        return view
    long = [size for size in shape if size != 1]
    return Reshaped(view, view.name, (long[0],)) if len(long) == 1 and shape else None


def _reshaped(view: TensorView, shape: tuple[int, ...]) -> TensorView:
    return view if view.shape == shape else Reshaped(view, view.name, shape)


def _split(
    member: _Named,
    stack: _Stack,
    view: TensorView,
    expert: int | None,
    *,
    oriented: bool,
) -> list[Placed] | None:
    entry = member.entry
    if len(entry.parts) == 1:
        part = entry.parts[0]
        if (
            part.role is Role.NORM_GAIN
            and part.rows is Axis.RESIDUAL
            and view.shape[0] != (stack.width or view.shape[0])
        ):
            return None
        return [_placed(member, stack, view, part, oriented=oriented, expert=expert)]
    labels = [part.label for part in entry.parts]
    if entry.split is Split.ALTERNATING:
        if view.shape[0] % len(labels):
            return None
        views = alternating(view, labels)
    else:
        runs = runs_of(entry.split, view.shape[0], len(labels), _heads(member, stack))
        if runs is None:
            return _whole(member, stack, view, expert, oriented=oriented)
        views = split(view, runs, labels)
    return [
        _placed(member, stack, piece, part, oriented=oriented, expert=expert)
        for piece, part in zip(views, entry.parts, strict=True)
    ]


def _heads(member: _Named, stack: _Stack) -> Heads:
    if member.entry.split is Split.LATENT:
        return heads_from(stack.hints, stack.width, stack.latent.get(member.layer))
    return heads_from(stack.hints, stack.width, stack.inner.get(member.layer))


def _whole(member: _Named, stack: _Stack, view: TensorView, expert: int | None, *, oriented: bool) -> list[Placed]:
    """A fused block whose parts cannot be told apart; its columns are still those of its parts."""
    stack.notes.append("fused blocks are left whole where the number of heads is not known")
    part = member.entry.parts[0]
    bias = part.role is Role.BIAS
    whole = Part("", part.role if bias else Role.OTHER, Axis.UNKNOWN if bias else Axis.CHANNEL, part.columns, "")
    return [_placed(member, stack, view, whole, oriented=oriented, expert=expert)]


def _placed(
    member: _Named, stack: _Stack, view: TensorView, part: Part, *, oriented: bool, expert: int | None = None
) -> Placed:
    tensor = CanonicalTensor(
        view, view.name, part.role, member.layer, expert, (part.rows, part.columns), oriented, stack.label
    )
    return Placed(tensor, part.group)


def _without_residual(tensor: CanonicalTensor) -> CanonicalTensor:
    rows, columns = (Axis.CHANNEL if axis is Axis.RESIDUAL else axis for axis in tensor.axes)
    return CanonicalTensor(
        tensor.view,
        tensor.name,
        tensor.role,
        tensor.layer,
        tensor.expert,
        (rows, columns),
        tensor.oriented,
        tensor.stack,
    )
