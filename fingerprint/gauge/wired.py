"""How a checkpoint is wired to its residual stream: as names tell or, where they say nothing, as values do.

Tables of tokens and positions make frames, gains are folded into what reads them, and attention is cut into blocks.
Whatever tells, what follows is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from fingerprint.gauge.attention import MOST_BLOCKS, Block, attention_blocks
from fingerprint.gauge.fold import Gains, find_gains, has_layer_norm, reading_by_names, says_offset
from fingerprint.roles.residual import gain_values
from fingerprint.tensors import Transposed
from fingerprint.vocabulary import Content, Frame, Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fingerprint.canonical import CanonicalTensor, Layout
    from fingerprint.roles.wiring import Place, Wiring
    from fingerprint.tensors import TensorView

_FRAMES: Final = ((Frame.ANCHORS, Role.TOKEN_EMBEDDING), (Frame.POSITIONS, Role.POSITION_EMBEDDING))


class Wired(Struct, frozen=True):
    """What is known of one checkpoint before it is written down in frames.

    ``tensors`` are the canonical ones, those of attention and the tables turned to (out, in); ``tables`` the frames
    that can be made, and of which table (several of a name where it is not clear which); ``centred``: norms subtract
    the mean over the residual stream, or may do so.
    """

    tensors: tuple[CanonicalTensor, ...]
    tables: tuple[tuple[Frame, TensorView], ...]
    blocks: tuple[Block, ...]
    gains: Gains
    centred: bool


def wire_by_names(layout: Layout, contents: Sequence[Content], hints: Mapping[str, str]) -> Wired:
    """The wiring that names and shapes tell; ``contents`` are those of the canonical tensors. Raises ``InputError``."""
    tensors = layout.tensors
    tables = []
    for name, role in _FRAMES:
        views = [
            tensor.view
            for tensor, content in zip(tensors, contents, strict=True)
            if tensor.role is role and content is Content.WEIGHTS and _is_table(tensor.view, layout.width)
        ]
        if views:
            tables.append((name, max(views, key=lambda view: view.shape[0])))
    return Wired(
        tensors=tensors,
        tables=tuple(tables),
        blocks=tuple(attention_blocks(tensors, contents, layout.width or 0, hints)),
        gains=find_gains(layout, reading_by_names(tensors), offset=says_offset(hints)),
        centred=has_layer_norm(tensors),
    )


def wire_by_values(layout: Layout, contents: Sequence[Content], wiring: Wiring, *, suspect: bool) -> Wired:
    """The wiring that values tell. Of a suspect whatever is not clear is kept in every way that it may be meant.

    Nothing tells a norm that subtracts the mean from one that does not: the mean is always taken out, which costs the
    others one direction of the stream. Raises ``InputError``.
    """
    tensors = list(layout.tensors)
    places = [*wiring.tables, *([wiring.positions] if wiring.positions is not None else [])]
    for one in wiring.attentions:
        places += [place for place in (one.query, one.key, one.value, one.output) if place is not None]
    for place in places:
        if place.transposed:
            turned = tensors[place.position]
            tensors[place.position] = replace(turned, view=Transposed(turned.view, turned.view.name))
    usable = [place for place in wiring.tables if contents[place.position] is Content.WEIGHTS]
    tables = [(Frame.ANCHORS, tensors[place.position].view) for place in usable[: 2 if suspect else 1]]
    if wiring.positions is not None and contents[wiring.positions.position] is Content.WEIGHTS:
        tables.append((Frame.POSITIONS, tensors[wiring.positions.position].view))
    return Wired(
        tensors=tuple(tensors),
        tables=tuple(one for one in tables if _is_table(one[1], layout.width)),
        blocks=tuple(_blocks(wiring, contents, suspect=suspect)[:MOST_BLOCKS]),
        gains=_gains(layout, wiring),
        centred=True,
    )


def roles_by_values(wiring: Wiring) -> dict[int, Role]:
    """What the tables do and, as far as it is told, attention's matrices, by position."""
    found: dict[int, Role] = {}
    for place, role in zip(wiring.tables, (Role.TOKEN_EMBEDDING, Role.OUTPUT_HEAD), strict=False):
        found[place.position] = role
    if wiring.positions is not None:
        found[wiring.positions.position] = Role.POSITION_EMBEDDING
    for one in wiring.attentions:
        parts = ((one.query, Role.QUERY), (one.key, Role.KEY), (one.value, Role.VALUE))
        for part, role in (*parts, (one.output, Role.ATTENTION_OUTPUT)):
            if part is not None:
                found[part.position] = role
    return found


def _is_table(view: TensorView, width: int | None) -> bool:
    return len(view.shape) == 2 and view.shape[1] == width


def _gains(layout: Layout, wiring: Wiring) -> Gains:
    """The gains that were told, with what has to be added to them added."""
    values = {gain.position: gain_values(layout.tensors, gain).astype(float) for gain in wiring.gains.values()}
    return Gains(values, {matrix: gain.position for matrix, gain in wiring.gains.items()}, (0.0,))


def _blocks(wiring: Wiring, contents: Sequence[Content], *, suspect: bool) -> list[Block]:
    def at(place: Place | None) -> int:
        return -1 if place is None or contents[place.position] is not Content.WEIGHTS else place.position

    found = []
    for one in wiring.attentions:
        query, key, value, output = (at(place) for place in (one.query, one.key, one.value, one.output))
        if min(query, key) < 0 and min(value, output) < 0:
            continue
        found.append(Block(one.layer, query, key, value, output, None, one.head_size))
        if suspect and min(query, key) >= 0 and not one.ordered:
            found.append(Block(one.layer, key, query, -1, -1, None, one.head_size))
    return found
