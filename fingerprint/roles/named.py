"""Laying out the tensors whose names are known, as far as their shapes agree."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from fingerprint.roles.layout import CanonicalTensor
from fingerprint.roles.parts import alternating, heads_from, runs_of, split, transposed, unstacked
from fingerprint.roles.patterns import Names
from fingerprint.roles.stacks import Member, Stack, survey
from fingerprint.roles.tables import Entry, Kind, Part, Positions, Split, Table, load_tables, without_leading_ones
from fingerprint.tensors import Reshaped
from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.hints import Hints
    from fingerprint.roles.parts import Heads
    from fingerprint.tensors import TensorView

MOST_EXPERTS = 4096
MOST_PARTS = 1 << 18


class Placed(Struct, frozen=True):
    """A canonical tensor and the MLP of its layer that it belongs to."""

    tensor: CanonicalTensor
    group: str


class NamedLayout(Struct):
    """What names gave: parts by position of the stored tensor; what is not there is left to the shapes.

    ``tables`` and ``widths`` count the tensors of each table and width; ``activations`` are by stack.
    """

    placed: dict[int, list[Placed]]
    tables: Counter[int]
    widths: Counter[int]
    activations: dict[str, str]
    known: tuple[Table, ...]
    notes: list[str]


def lay_out_named(tensors: Sequence[TensorView], hints: Hints) -> NamedLayout:
    """Match all names, agree on a family and a width for each stack, and place what fits.

    Linear in the number of tensors; reads no values.
    """
    names, known = Names(), load_tables().tables
    members = (
        Member(position, view, match, match.entries[0])
        for position, view in enumerate(tensors)
        if (match := names.match(view.name)) is not None
    )
    stacks = survey(members, hints, known)
    result = NamedLayout({}, Counter(), Counter(), {}, known, [])
    parts = 0
    has_positions = any(
        member.entry.parts[0].role is Role.POSITION_EMBEDDING for stack in stacks for member in stack.members
    )
    for stack in stacks:
        result.tables[stack.table] += sum(member.entry.kind is not Kind.BUFFER for member in stack.members)
        result.activations[stack.label] = known[stack.table].activation
        positions = known[stack.table].positions
        fixed = positions is Positions.SINUSOIDAL or (positions is Positions.STORED and not has_positions)
        contradictions = 0
        for member in stack.members:
            placed = _place(member, stack) if parts <= MOST_PARTS else None
            if placed is None:
                contradictions += 1
                continue
            if fixed:
                placed = [replace(one, tensor=without_residual(one.tensor)) for one in placed]
            parts += len(placed)
            result.placed[member.position] = placed
            if stack.width is not None:
                result.widths[stack.width] += len(placed)
        _note(stack, contradictions, result.notes)
        if fixed:
            result.notes.append("positions may be sinusoidal: residual axes are not taken to be exchangeable")
    result.notes += stacks[0].notes if stacks else []
    return result


def without_residual(tensor: CanonicalTensor) -> CanonicalTensor:
    """The tensor with residual axes that mean the same in every model."""
    rows, columns = (Axis.CHANNEL if axis is Axis.RESIDUAL else axis for axis in tensor.axes)
    return replace(tensor, axes=(rows, columns))


def _note(stack: Stack, contradictions: int, notes: list[str]) -> None:
    where = f" of stack {stack.label!r}" if stack.label else ""
    if contradictions:
        notes.append(f"{contradictions} tensors{where} have shapes that contradict their names: laid out by shape")
    flipped = stack.plain.flipped + stack.stacked.flipped
    if flipped:
        notes.append(f"{flipped} matrices{where} are stored the other way round than their names say")


# --- placing one tensor ---------------------------------------------------------------------------------------------


def _place(member: Member, stack: Stack) -> list[Placed] | None:
    entry, view = member.entry, member.view
    if entry.kind is Kind.BUFFER:
        return [_placed(member, stack, view, entry.parts[0], oriented=True)]
    if entry.stacked:
        return _place_stack(member, stack)
    return _place_one(member, stack, view, member.expert)


def _place_stack(member: Member, stack: Stack) -> list[Placed] | None:
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


def _place_one(member: Member, stack: Stack, view: TensorView, expert: int | None) -> list[Placed] | None:
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


def _turned(view: TensorView, entry: Entry, stack: Stack) -> tuple[TensorView, bool] | None:
    """The matrix as (out, in), and whether that is known; None if its shape contradicts the entry."""
    shape = view.shape
    if len(shape) != 2 or min(shape) <= 0:
        return None
    side = entry.residual_side
    square = shape[0] == shape[1]
    orientations = stack.orientations(entry)
    flip, oriented = orientations.squares_flipped, orientations.known
    if side is not None and stack.width is not None:
        if not any(map(stack.is_width, shape)):
            return None
        if not square:
            flip, oriented = not stack.is_width(shape[side ^ entry.in_out]), True
    elif Axis.RESIDUAL in {entry.parts[0].rows, entry.parts[0].columns} and stack.width not in shape:
        return None
    return (transposed(view) if entry.in_out != flip else view), oriented


def _place_table(member: Member, stack: Stack, view: TensorView, expert: int | None) -> list[Placed] | None:
    shape = without_leading_ones(view.shape)
    if len(shape) == 1 and member.entry.parts[0].role is not Role.TOKEN_EMBEDDING:
        part = Part("", Role.OTHER, member.entry.parts[0].columns, Axis.UNKNOWN, "")
        return [_placed(member, stack, _reshaped(view, shape), part, oriented=True, expert=expert)]
    if len(shape) != 2 or min(shape) <= 0:
        return None
    matrix = _reshaped(view, shape)
    if member.entry.residual_side == 1 and stack.width is not None and not stack.is_width(shape[1]):
        if not stack.is_width(shape[0]):
            return None
        matrix = transposed(matrix)
    return _split(member, stack, matrix, expert, oriented=shape[0] != shape[1] or stack.plain.as_declared > 0)


def _place_convolution(member: Member, stack: Stack, view: TensorView) -> list[Placed] | None:
    """A kernel (out, in, ...) kept as it is, such as the patches' embedding."""
    if len(view.shape) < 2 or min(view.shape) <= 0:
        return None
    part = member.entry.parts[0]
    if part.rows is Axis.RESIDUAL and stack.width is not None and view.shape[0] != stack.width:
        return None
    return [_placed(member, stack, view, part, oriented=True)]


def _place_adapter(member: Member, stack: Stack, view: TensorView) -> list[Placed] | None:
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
    member: Member,
    stack: Stack,
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


def _heads(member: Member, stack: Stack) -> Heads:
    hints = stack.hints.of(member.view.name)
    if member.entry.split is Split.LATENT:
        return heads_from(hints, stack.width, stack.latent.get(member.layer))
    return heads_from(hints, stack.width, stack.inner.get(member.layer))


def _whole(member: Member, stack: Stack, view: TensorView, expert: int | None, *, oriented: bool) -> list[Placed]:
    """A fused block whose parts cannot be told apart; its columns are still those of its parts."""
    stack.notes.append("fused blocks are left whole where the number of heads is not known")
    part = member.entry.parts[0]
    bias = part.role is Role.BIAS
    whole = Part("", part.role if bias else Role.OTHER, Axis.UNKNOWN if bias else Axis.CHANNEL, part.columns, "")
    return [_placed(member, stack, view, whole, oriented=oriented, expert=expert)]


def _placed(
    member: Member, stack: Stack, view: TensorView, part: Part, *, oriented: bool, expert: int | None = None
) -> Placed:
    tensor = CanonicalTensor(
        view, view.name, part.role, member.layer, expert, (part.rows, part.columns), oriented, stack.label
    )
    return Placed(tensor, part.group)
