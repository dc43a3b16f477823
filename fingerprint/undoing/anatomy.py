"""A checkpoint as rows on its residual stream: tables, MLPs and attention, with the norm gains in front folded in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fingerprint.canonical import lay_out
from fingerprint.dtypes import Kind, to_float32
from fingerprint.gauge.fold import has_layer_norm
from fingerprint.gauge.own import sample_self
from fingerprint.gauge.project import project
from fingerprint.gauge.wired import wire_by_names, wire_by_values
from fingerprint.neurons import UNNAMED, Projections
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.roles.infer import infer_wiring
from fingerprint.roles.parts import heads_from
from fingerprint.roles.residual import SliceNorms
from fingerprint.roles.wiring import Place, Wiring, layer_of
from fingerprint.tensors import Transposed, element_count, read_rows
from fingerprint.vocabulary import Content, Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor, Layout
    from fingerprint.checkpoint import Checkpoint
    from fingerprint.gauge.wired import Wired
    from fingerprint.records import NeuronSample
    from fingerprint.tensors import TensorView

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

MOST_ELEMENTS: Final = 1 << 29
"""Largest matrix that is read whole: 2 GB of float32."""
_BLOCK: Final = 1 << 22
_LEAST: Final = 1024
_LARGEST: Final = np.float32(1e12)


class Part(Struct, frozen=True):
    """One matrix whose rows (``across``: columns) lie on the residual stream; ``gain`` (width,) is in front of it."""

    position: int
    name: str
    role: Role
    view: TensorView
    across: bool
    gain: Float64 | None = None

    @property
    def count(self) -> int:
        """Number of rows on the stream."""
        return self.view.shape[1 if self.across else 0]

    def rows(self, *, centred: bool, most: int | None = None) -> Float32:
        """All rows on the stream, or the first ``most``: (count, width) float32, folded; less their mean where
        ``centred``.

        Values that are not finite count as 0. Raises ``InputError``.
        """
        source, across = self.view, self.across
        if isinstance(source, Transposed):
            source, across = source.source, not across
        height, length = source.shape
        if most is not None and not across:
            height = min(height, most)
        found = np.empty((length, height) if across else (height, length), np.float32)
        step = max(1, _BLOCK // max(length, 1))
        for start in range(0, height, step):
            block = to_float32(read_rows(source, start, min(start + step, height)))
            block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            if across:
                found[:, start : start + len(block)] = block.T
            else:
                found[start : start + len(block)] = block
        found = found[:most]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.gain is not None:
                found *= self.gain.astype(np.float32)
        # Products of three of them still fit into a float64, and sums of squares into a float32.
        np.clip(np.nan_to_num(found, copy=False, nan=0.0), -_LARGEST, _LARGEST, out=found)
        if centred:
            found -= found.mean(axis=1, keepdims=True)
        return found


class MlpParts(Struct, frozen=True):
    """One MLP; ``up`` is None where it has no gate. ``sure``: whether it is known which matrix is which."""

    layer: int | None
    expert: int | None
    gate: Part
    up: Part | None
    down: Part
    activation: str
    sure: bool

    def exchanged(self) -> MlpParts:
        """Gate for up; without a gate, what reads for what writes."""
        if self.up is not None:
            return replace(self, gate=self.up, up=self.gate)
        return replace(self, gate=self.down, down=self.gate)


class AttentionParts(Struct, frozen=True):
    """Attention of one layer, or the half of it that is known.

    ``head_sizes``: what a head may measure, likeliest first; ``ordered``: whether query and key can be told apart.
    """

    layer: int | None
    query: Part | None
    key: Part | None
    value: Part | None
    output: Part | None
    head_sizes: tuple[int, ...]
    ordered: bool = True


class Anatomy(Struct, frozen=True):
    """A model on a residual stream of ``width`` channels.

    ``tables`` are embeddings of tokens, the likeliest first; ``heads`` what makes logits. ``centred``: norms subtract
    the mean over the stream. ``samples`` are the MLPs' in their own frames, whose ``tensors`` are positions: ``at``
    gives the MLP of a position. ``folded``: whether gains were folded in.
    """

    width: int
    centred: bool
    tables: tuple[Part, ...]
    positions: Part | None
    heads: tuple[Part, ...]
    mlps: tuple[MlpParts, ...]
    attention: tuple[AttentionParts, ...]
    samples: tuple[NeuronSample, ...]
    at: Mapping[int, int]
    named: bool
    folded: bool


def anatomies_of(checkpoint: Checkpoint, *, suspect: bool) -> tuple[Anatomy, ...]:
    """A checkpoint laid out, in each way in which its gains may be meant; none if no residual stream is recognised.

    Stored gains may lack a 1, and may have been left where they belong although nothing shows it: the last reading
    folds none. ``suspect`` samples more neurons for the search without embeddings. Without names roles come from
    values. Raises ``InputError``.
    """
    layout = lay_out(checkpoint.tensors, checkpoint.metadata)
    if layout.width is None:
        return ()
    contents = [_content(tensor) for tensor in layout.tensors]
    build = _by_names if layout.mlps else _by_values
    return build(layout, contents, checkpoint.metadata, suspect=suspect)


def _content(tensor: CanonicalTensor) -> Content:
    if tensor.view.dtype.kind is not Kind.FLOAT:
        return Content.INTEGER
    if len(tensor.view.shape) < 2:
        return Content.VECTOR
    return Content.WEIGHTS if element_count(tensor.view.shape) >= _LEAST else Content.SMALL


def _by_names(
    layout: Layout, contents: Sequence[Content], hints: Mapping[str, str], *, suspect: bool
) -> tuple[Anatomy, ...]:
    wired = wire_by_names(layout, contents, hints)
    projections = [
        Projections(mlp.layer, mlp.expert, (mlp.gate, False), None if mlp.up is None else (mlp.up, False),
                    (mlp.down, False), mlp.activation)
        for mlp in layout.mlps
    ]  # fmt: skip
    samples = _own_samples(layout, contents, projections, wired, suspect=suspect)
    offsets: list[float | None] = [*wired.gains.offsets, *([None] if wired.gains.read_by else [])]
    return tuple(_named(layout, contents, hints, wired, offset, samples) for offset in offsets)


def _named(
    layout: Layout,
    contents: Sequence[Content],
    hints: Mapping[str, str],
    wired: Wired,
    offset: float | None,
    samples: tuple[NeuronSample, ...],
) -> Anatomy:
    tensors, width = layout.tensors, layout.width or 0

    def part(position: int, *, writes: bool = False) -> Part | None:
        tensor = tensors[position]
        if len(tensor.view.shape) != 2 or tensor.view.shape[0 if writes else 1] != width:
            return None
        if not 0 < element_count(tensor.view.shape) <= MOST_ELEMENTS:
            return None
        gain = None if writes or offset is None else wired.gains.known(position, offset, width)
        return Part(position, tensor.name, tensor.role, tensor.view, writes, gain)

    mlps: list[MlpParts] = []
    at: dict[int, int] = {}
    for mlp in layout.mlps:
        gate, up, down = part(mlp.gate), None if mlp.up is None else part(mlp.up), part(mlp.down, writes=True)
        if gate is None or down is None or (up is None) != (mlp.up is None):
            continue
        at[mlp.gate] = len(mlps)
        mlps.append(MlpParts(mlp.layer, mlp.expert, gate, up, down, mlp.activation, True))
    attention = []
    claimed = heads_from(hints, width, None).queries
    for block in wired.blocks:
        query, key, value, output = (
            None if position < 0 else part(position, writes=position == block.output)
            for position in (block.query, block.key, block.value, block.output)
        )
        count = query.count if query is not None else output.count if output is not None else 0
        sizes = (count // claimed,) if claimed and count and count % claimed == 0 else ()
        attention.append(AttentionParts(block.layer, query, key, value, output, sizes))

    def tables(role: Role) -> list[Part]:
        chosen = [i for i, tensor in enumerate(tensors) if tensor.role is role and contents[i] is Content.WEIGHTS]
        found = [one for i in chosen if (one := part(i)) is not None]
        return sorted(found, key=lambda one: -one.count)[:1]

    last = None if offset is None else _last_gain(tensors, width, offset)
    embeddings, positions = tables(Role.TOKEN_EMBEDDING), tables(Role.POSITION_EMBEDDING)
    heads = [replace(one, gain=last) for one in tables(Role.OUTPUT_HEAD)]
    return Anatomy(
        width=width,
        centred=wired.centred,
        tables=tuple(embeddings),
        positions=positions[0] if positions else None,
        heads=tuple(heads) or tuple(replace(one, role=Role.OUTPUT_HEAD, gain=last) for one in embeddings),
        mlps=tuple(mlps),
        attention=tuple(attention),
        samples=samples,
        at=at,
        named=True,
        folded=offset is not None,
    )


def _last_gain(tensors: Sequence[CanonicalTensor], width: int, offset: float) -> Float64 | None:
    """That of the norm before the output head: the only one outside of layers."""
    found = [
        tensor
        for tensor in tensors
        if tensor.role is Role.NORM_GAIN and tensor.layer is None and tensor.view.shape == (width,)
    ]
    if len(found) != 1:
        return None
    return to_float32(found[0].view.read(0, width)).astype(np.float64) + offset


def _by_values(
    layout: Layout, contents: Sequence[Content], hints: Mapping[str, str], *, suspect: bool
) -> tuple[Anatomy, ...]:
    tensors, width = layout.tensors, layout.width or 0
    norms = {}
    for position, tensor in enumerate(tensors):
        if contents[position] is Content.WEIGHTS and len(tensor.view.shape) == 2 and width in tensor.view.shape:
            none = np.zeros((0, tensor.view.shape[1])), np.zeros((0, tensor.view.shape[0]))
            rows, columns = (
                project(tensor.view, side.astype(np.float32), np.ones((1, side.shape[1]), np.float32), columns=turn)
                for side, turn in zip(none, (False, True), strict=True)
            )
            norms[position] = SliceNorms(rows.norms[:, 0], columns.norms[:, 0])
    wiring = infer_wiring(tensors, contents, norms, width, DEFAULT_PARAMETERS.seed)
    projections = [
        Projections(
            layer=layer_of(tensors, mlp.places),
            expert=None,
            gate=(mlp.gate.position, mlp.gate.transposed),
            up=None if mlp.up is None else (mlp.up.position, mlp.up.transposed),
            down=(mlp.down.position, mlp.down.transposed),
            activation="" if mlp.decided else UNNAMED,
        )
        for mlp in wiring.mlps
    ]
    wired = wire_by_values(layout, contents, wiring, suspect=suspect)
    samples = _own_samples(layout, contents, projections, wired, suspect=suspect)
    centred = _loses_mean(tensors, contents, width)
    readings = (True, False) if wiring.gains else (False,)
    return tuple(_unnamed(tensors, wiring, width, samples, centred=centred, folded=folded) for folded in readings)


def _unnamed(
    tensors: Sequence[CanonicalTensor],
    wiring: Wiring,
    width: int,
    samples: tuple[NeuronSample, ...],
    *,
    centred: bool,
    folded: bool,
) -> Anatomy:
    def part(
        place: Place | None, role: Role, *, writes: bool = False, beside: Sequence[Place | None] = ()
    ) -> Part | None:
        """``beside`` are matrices that read the same norm: one whose gain shows tells for all."""
        if place is None:
            return None
        tensor = tensors[place.position]
        if not 0 < element_count(tensor.view.shape) <= MOST_ELEMENTS:
            return None
        across = place.transposed != writes
        chosen = [one.position for one in (place, *beside) if one is not None]
        gain = next((wiring.gains[position] for position in chosen if position in wiring.gains), None)
        factors = None
        own = place.position in wiring.gains
        if folded and gain is not None and (not own or gain.axis == (0 if across else 1)):
            vector = tensors[gain.position].view
            factors = to_float32(vector.read(0, width)).astype(np.float64) + gain.offset
        return Part(place.position, tensor.name, role, tensor.view, across, factors)

    mlps: list[MlpParts] = []
    at: dict[int, int] = {}
    for mlp in wiring.mlps:
        gated = mlp.up is not None
        gate = part(mlp.gate, Role.GATE if gated else Role.FC_IN, beside=[mlp.up])
        up = part(mlp.up, Role.UP, beside=[mlp.gate])
        down = part(mlp.down, Role.DOWN if gated else Role.FC_OUT, writes=True)
        if gate is None or down is None:
            continue
        for place in mlp.places:
            at[place.position] = len(mlps)
        mlps.append(MlpParts(layer_of(tensors, mlp.places), None, gate, up, down, "", mlp.decided))
    attention = []
    for one in wiring.attentions:
        reads = [one.query, one.key, one.value]
        query, key, value = (
            part(place, role, beside=reads)
            for place, role in zip(reads, (Role.QUERY, Role.KEY, Role.VALUE), strict=True)
        )
        output = part(one.output, Role.ATTENTION_OUTPUT, writes=True)
        sizes = (one.head_size,) if one.head_size else ()
        attention.append(AttentionParts(one.layer, query, key, value, output, sizes, one.ordered))
    found = (part(place, Role.TOKEN_EMBEDDING) for place in wiring.tables)
    tables = tuple(one for one in found if one is not None)
    return Anatomy(
        width=width,
        centred=centred,
        tables=tables,
        positions=part(wiring.positions, Role.POSITION_EMBEDDING),
        heads=tuple(replace(one, role=Role.OUTPUT_HEAD) for one in tables[::-1]),
        mlps=tuple(mlps),
        attention=tuple(attention),
        samples=samples,
        at=at,
        named=False,
        folded=folded,
    )


def _loses_mean(tensors: Sequence[CanonicalTensor], contents: Sequence[Content], width: int) -> bool:
    """Whether norms subtract the mean, which names would tell: where they do there are about as many biases as gains.

    Taking the mean out of a model that keeps it loses one direction of many, so this errs on that side.
    """
    vectors = [
        tensor for tensor, content in zip(tensors, contents, strict=True)
        if content is Content.VECTOR and tensor.view.shape == (width,)
    ]  # fmt: skip
    matrices = sum(content is Content.WEIGHTS for content in contents)
    return has_layer_norm(tensors) or (bool(vectors) and len(vectors) > matrices / 2)


def _own_samples(
    layout: Layout, contents: Sequence[Content], mlps: Sequence[Projections], wired: Wired, *, suspect: bool
) -> tuple[NeuronSample, ...]:
    with ThreadPoolExecutor(1) as pool:
        return sample_self(layout, contents, mlps, wired, DEFAULT_PARAMETERS, pool, suspect=suspect)[0]
