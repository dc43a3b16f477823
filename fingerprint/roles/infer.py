"""The wiring of a checkpoint whose names say nothing, from its values: gains, tables, MLPs and attention in turn."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from fingerprint.roles.heads import pair_attention
from fingerprint.roles.pairing import pair_mlps
from fingerprint.roles.residual import (
    SliceNorms,
    find_gains,
    find_positions,
    find_tables,
    gain_values,
    rank_tables,
    table_norms,
)
from fingerprint.roles.wiring import Gain, Wiring
from fingerprint.tensors import Transposed
from fingerprint.vocabulary import Content, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fingerprint.roles.layout import CanonicalTensor
    from fingerprint.roles.wiring import NeuronMatrices, Place

MOST_ALONE: Final = 96
"""Matrices up to which a checkpoint may be nothing but MLPs."""
_FUSED: Final = frozenset({Role.QUERY, Role.KEY, Role.VALUE, Role.GATE, Role.UP})


def infer_wiring(
    tensors: Sequence[CanonicalTensor],
    contents: Sequence[Content],
    norms: Mapping[int, SliceNorms],
    width: int | None,
    seed: int,
) -> Wiring:
    """What belongs together among tensors without names.

    ``contents`` are those of the tensors, ``norms`` the norms of the matrices that lie on the residual stream, whose
    width is ``width``; ``seed`` keys the sample of tokens. A second look is taken at runs of rows and columns, of
    bounded size whatever the checkpoint. Raises ``InputError``.
    """
    if width is None:
        return Wiring()
    matrices = [
        position
        for position, tensor in enumerate(tensors)
        if contents[position] is Content.WEIGHTS and len(tensor.view.shape) == 2 and width in tensor.view.shape
    ]
    vectors = [position for position, content in enumerate(contents) if content is Content.VECTOR]
    places = find_tables(tensors, matrices, width)
    lengths = {position: norms[position] for position in matrices if position in norms}
    lengths |= {place.position: table_norms(tensors[place.position].view, place, seed) for place in places}
    gains = find_gains(tensors, lengths, vectors, width)
    factors = {position: gain_values(tensors, gain) for position, gain in gains.items()}
    tables = rank_tables(tensors, places, gains, seed)
    rest = _without(matrices, [table.position for table in tables])
    flow = _flow_of_fused(tensors) or _flow_of_readers(tensors, rest, width)
    mlps, notes = pair_mlps(tensors, rest, width, factors, flow)
    shared = _shared_gains(gains, [(mlp.gate, mlp.up) for mlp in mlps])
    gains |= shared
    factors |= {position: gain_values(tensors, gain) for position, gain in shared.items()}
    rest = _without(rest, [place.position for mlp in mlps for place in mlp.places])
    positions = find_positions(tensors, rest, width)
    rest = _without(rest, [] if positions is None else [positions.position])
    along = {position: (gains[position].axis, factors[position]) for position in gains}
    references = [place.position for mlp in mlps for place in mlp.places]
    attentions, more = pair_attention(tensors, rest, width, along, _flow_of_mlps(mlps) or flow, references)
    gains |= _shared_gains(gains, [(block.query, block.key) for block in attentions])
    return Wiring(tuple(mlps), tuple(attentions), tables, positions, gains, (*notes, *more))


def _shared_gains(gains: Mapping[int, Gain], groups: Iterable[tuple[Place | None, ...]]) -> dict[int, Gain]:
    """The gains of matrices that have none, where another one that reads the same norm has one.

    The norms of a gate's columns may have changed too much to show what was divided by a scrambled gain, where those of
    its up do: so in three of four layers of a Llama that was trained on for as long as before.
    """
    found: dict[int, Gain] = {}
    for group in groups:
        places = [place for place in group if place is not None]
        known = {gains[place.position][:2] for place in places if place.position in gains}
        if len(known) == 1:
            position, offset = known.pop()
            missing = [place for place in places if place.position not in gains]
            found |= {place.position: Gain(position, offset, 0 if place.transposed else 1) for place in missing}
    return found


def width_of_mlps(tensors: Sequence[CanonicalTensor], contents: Sequence[Content]) -> int | None:
    """The width of the stream of a few gated MLPs alone, whose matrices all have the same two sizes: the smaller one.

    Half as many lie the one way round as the other; None for anything else. As many of both kinds may be autoencoders,
    whose two sides are alike in any model.
    """
    shapes = Counter(
        tensor.view.shape
        for tensor, content in zip(tensors, contents, strict=True)
        if content is Content.WEIGHTS and len(tensor.view.shape) == 2
    )
    if len(shapes) != 2 or shapes.total() > MOST_ALONE:
        return None
    (shape, first), (other, second) = shapes.items()
    fewer, more = sorted((first, second))
    if shape != other[::-1] or more != 2 * fewer:
        return None
    return int(min(shape))


def _without(positions: Sequence[int], taken: Sequence[int]) -> list[int]:
    gone = set(taken)
    return [position for position in positions if position not in gone]


def _flow_of_fused(tensors: Sequence[CanonicalTensor]) -> int:
    """-1 if the blocks that were split were stored as (in, out), 1 if as (out, in), 0 if there is none, or both."""
    flows = {_is_turned(tensor.view) for tensor in tensors if tensor.oriented and tensor.role in _FUSED}
    return 0 if len(flows) != 1 else -1 if flows == {True} else 1


def _is_turned(view: Any) -> bool:
    while not isinstance(view, Transposed):
        if not hasattr(view, "source"):
            return False
        view = view.source
    return True


def _flow_of_readers(tensors: Sequence[CanonicalTensor], positions: Sequence[int], width: int) -> int:
    """The same from shapes that repeat one way round only: what a layer writes comes from something that it reads."""
    shapes = Counter(tensors[position].view.shape for position in positions)
    votes = Counter(
        1 if rows != width else -1
        for (rows, columns), number in shapes.items()
        if number > 1 and (rows == width) != (columns == width) and not shapes[columns, rows]
    )
    return 0 if len(votes) != 1 else next(iter(votes))


def _flow_of_mlps(mlps: Sequence[NeuronMatrices]) -> int:
    votes = Counter(-1 if mlp.gate.transposed else 1 for mlp in mlps if mlp.decided or mlp.up is not None)
    return votes.most_common(1)[0][0] if votes else 0
