"""Laying out tensors whose names say nothing: from sizes, how often shapes repeat, and how sizes chain.

Everything follows from the multiset of shapes, so neither names nor order matter. The rule for axes is caution: an
axis is called exchangeable only where no usual network of these shapes has tokens, positions, features or rotary
channels there. What cannot be told stays ``UNKNOWN``.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct, field

from fingerprint.roles.layout import CanonicalTensor
from fingerprint.roles.parts import split, transposed
from fingerprint.roles.sizes import Sizes, understand
from fingerprint.tensors import Reshaped, RowSlice
from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fingerprint.roles.fused import Fused, Plane
    from fingerprint.tensors import TensorView

MOST_STACKED = 4096
MOST_PIECES = 1 << 18
_NARROWEST = 16
_LARGEST_KERNEL = 63
_COUNTING = frozenset({"BOOL", "I64", "U64"})


class ShapedLayout(Struct):
    """Canonical tensors by position of the stored tensor; the width that was found; neurons by their number."""

    placed: dict[int, list[CanonicalTensor]] = field(default_factory=dict)
    width: int | None = None
    notes: list[str] = field(default_factory=list)


def lay_out_shapes(tensors: Iterable[tuple[int, TensorView]]) -> ShapedLayout:
    """Lay out tensors, given with their positions in the checkpoint, by their shapes alone.

    Linear in the number of tensors; reads no values.
    """
    items = list(tensors)
    stacks = _stacks([view for _, view in items])
    planes: Counter[Plane] = Counter()
    kernels: Counter[tuple[int, ...]] = Counter()
    for _, view in items:
        shape = view.shape
        if view.dtype.name in _COUNTING or not shape or min(shape) <= 0:
            continue
        if shape in stacks:
            planes[shape[-2], shape[-1]] += math.prod(shape[:-2])
        elif len(shape) == 2:
            planes[shape[0], shape[1]] += 1
        elif len(shape) > 2:
            kernels[shape] += 1
    sizes = understand(planes, kernels, {math.prod(shape[:-2]) for shape in stacks} - {1})
    vectors = _fused_vectors(items, planes, sizes)
    layout = ShapedLayout(width=sizes.width if sizes.residual else None)
    pieces = 0
    for position, view in items:
        number = math.prod(view.shape[:-2]) if view.shape in stacks else 1
        if pieces + number > MOST_PIECES:
            layout.notes.append(f"only {MOST_PIECES} matrices are taken off stacks; the rest are left as stored")
            number = 1
            layout.placed[position] = [_tensor(view, Role.OTHER, (Axis.UNKNOWN, Axis.UNKNOWN), oriented=False)]
        else:
            layout.placed[position] = [
                one for piece in _unstacked(view, stacks) for one in _place(piece, sizes, vectors)
            ]
        pieces += number
    if sizes.fused:
        layout.notes.append(f"{len(sizes.fused)} shapes look like fused blocks and were split")
    return layout


def _stacks(views: Sequence[TensorView]) -> set[tuple[int, ...]]:
    """Shapes that look like stacks of matrices: their last two axes share the size that most matrices have."""
    votes: Counter[int] = Counter()
    candidates: set[tuple[int, ...]] = set()
    for view in views:
        shape = view.shape
        if len(shape) < 2 or min(shape) <= 0:
            continue
        number = math.prod(shape[:-2])
        if len(shape) == 2:
            votes.update(set(shape))
        elif _may_stack(shape, number):
            candidates.add(shape)
            for size in set(shape[-2:]):
                votes[size] += number
    if not candidates:
        return candidates
    width = max(votes, key=lambda size: (votes[size], -size))
    return {shape for shape in candidates if width in shape[-2:]}


def _may_stack(shape: tuple[int, ...], number: int) -> bool:
    rows, columns = shape[-2:]
    if min(rows, columns) < _NARROWEST or number > MOST_STACKED or (number == 1 and len(shape) > 3):
        return False
    if len(shape) > 3:
        return len(shape) == 4 and (rows != columns or rows > _LARGEST_KERNEL)
    # A 1-D convolution is (out, in, kernel), and kernels are mostly odd.
    return columns > _LARGEST_KERNEL or columns % 2 == 0


def _unstacked(view: TensorView, stacks: set[tuple[int, ...]]) -> list[TensorView]:
    if view.shape not in stacks:
        return [view]
    number = math.prod(view.shape[:-2])
    rows, columns = view.shape[-2:]
    if number == 1:
        return [Reshaped(view, view.name, (rows, columns))]
    flat = Reshaped(view, view.name, (number * rows, columns))
    return [RowSlice(flat, f"{view.name}[{one}]", one * rows, (one + 1) * rows) for one in range(number)]


def _fused_vectors(
    items: Sequence[tuple[int, TensorView]], planes: Mapping[Plane, int], sizes: Sizes
) -> dict[int, Fused]:
    """Lengths of vectors that must be biases of fused blocks: as many as those, and of a length nothing else has."""
    blocks = {plane[1] if fused.flipped else plane[0]: (plane, fused) for plane, fused in sizes.fused.items()}
    others = Counter(size for plane in planes if plane not in sizes.fused for size in plane)
    counts = Counter(view.shape[0] for _, view in items if len(view.shape) == 1)
    return {
        rows: fused for rows, (plane, fused) in blocks.items() if counts[rows] == planes[plane] and not others[rows]
    }


def _place(view: TensorView, sizes: Sizes, vectors: Mapping[int, Fused]) -> list[CanonicalTensor]:
    shape = view.shape
    if view.dtype.name in _COUNTING:
        return [_tensor(view, Role.BUFFER, (Axis.UNKNOWN, Axis.UNKNOWN), oriented=True)]
    if len(shape) == 1 and shape[0] in vectors:
        parts = split(view, vectors[shape[0]].runs(), vectors[shape[0]].labels)
        return [_tensor(part, Role.BIAS, (Axis.UNKNOWN, Axis.UNKNOWN), oriented=True) for part in parts]
    if len(shape) < 2 or min(shape) <= 0:
        return [_tensor(view, Role.OTHER, (Axis.UNKNOWN, Axis.UNKNOWN), oriented=True)]
    if len(shape) > 2:
        return [_tensor(view, Role.CONVOLUTION, sizes.kernel_axes(shape), oriented=False)]
    plane = (shape[0], shape[1])
    fused = sizes.fused.get(plane)
    if fused is None:
        return [_tensor(view, sizes.role(plane), sizes.axes(plane), oriented=False)]
    source = transposed(view) if fused.flipped else view
    pieces = split(source, fused.runs(), fused.labels)
    return [
        _tensor(piece, role, axes, oriented=True)
        for piece, role, axes in zip(pieces, fused.roles, sizes.part_axes(fused), strict=True)
    ]


def _tensor(view: TensorView, role: Role, axes: tuple[Axis, Axis], *, oriented: bool) -> CanonicalTensor:
    return CanonicalTensor(view, view.name, role, None, None, axes, oriented, "")
