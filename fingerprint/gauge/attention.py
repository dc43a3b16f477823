"""Attention in frames: every query, key and value row and output column of a layer in coordinates of the stream."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.gauge.project import project
from fingerprint.hints import Hints
from fingerprint.roles.parts import heads_from
from fingerprint.vectors import unit_rows
from fingerprint.vocabulary import Content, Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.gauge.setting import Setting

    Float32 = NDArray[np.float32]

MOST_CHANNELS: Final = 1 << 16
"""Widest attention that is projected."""
MOST_BLOCKS: Final = 256
MOST_HEAD_SIZES: Final = 4
_HEAD_SIZES: Final = (16, 32, 64, 80, 96, 128, 160, 192, 256, 512)
_ROLES: Final = (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer's attention: positions of its matrices, -1 for one that is absent.

    ``queries`` is the number of query heads that is claimed beside the weights, None if there is no such claim;
    ``head`` the number of channels of a head that the weights tell, 0 if they do not.
    """

    layer: int | None
    query: int
    key: int
    value: int
    output: int
    queries: int | None
    head: int = 0


@dataclass(frozen=True, slots=True)
class Attention:
    """A block's rows in coordinates: (channels, variants * frame_width) float32 each, None for one that is absent.

    ``query`` and ``output`` have a whole number of times as many channels as ``key`` and ``value``. ``heads`` are the
    possible numbers of channels of a head, the likeliest first; empty where it makes no difference.
    """

    block: Block
    query: Float32 | None
    key: Float32 | None
    value: Float32 | None
    output: Float32 | None
    heads: tuple[int, ...]

    @staticmethod
    def paired(wide: Float32, narrow: Float32, head: int) -> Float32 | None:
        """``narrow`` with the rows of each head repeated for the heads of its group in ``wide``; None if it cannot."""
        group, rest = divmod(len(wide), max(len(narrow), 1))
        if rest or not group:
            return None
        if group == 1:
            return narrow
        if head < 1 or len(narrow) % head:
            return None
        heads = narrow.reshape(-1, head, narrow.shape[1])
        return np.repeat(heads, group, axis=0).reshape(len(wide), -1)


def attention_blocks(
    tensors: Sequence[CanonicalTensor], contents: Sequence[Content], width: int, hints: Mapping[str, str]
) -> list[Block]:
    """The attention of every layer that has value and output, or query and key, on a stream of ``width`` channels."""
    layers: dict[tuple[str, int | None], dict[Role, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, (tensor, content) in enumerate(zip(tensors, contents, strict=True)):
        if tensor.role not in _ROLES or content is not Content.WEIGHTS or tensor.layer is None:
            continue
        shape = tensor.view.shape
        side = 0 if tensor.role is Role.ATTENTION_OUTPUT else 1
        if len(shape) == 2 and shape[side] == width and shape[1 - side] <= MOST_CHANNELS:
            layers[tensor.stack, tensor.layer][tensor.role].append(position)
    found = []
    heard = Hints(hints)
    for (_, layer), roles in layers.items():
        places = [roles[role][0] if len(roles[role]) == 1 else -1 for role in _ROLES]
        if min(places[:2]) < 0 and min(places[2:]) < 0:
            continue
        query, key, value, output = places
        claims = heard.of(tensors[max(places)].name)
        queries = heads_from(claims, width, None).queries
        found.append(Block(layer, query, key, value, output, queries))
    return found[:MOST_BLOCKS]


def project_attention(setting: Setting, block: Block) -> Attention:
    """Project the matrices of one block in all variants. Raises ``InputError``."""
    size = len(setting.variants) * setting.parameters.frame_width
    none = np.zeros((0, setting.width), np.float32)

    def reading(position: int) -> Float32 | None:
        if position < 0:
            return None
        directions = setting.reading(position)[0][:size]
        return project(setting.tensors[position].view, directions, none, columns=False).coordinates

    def writing(position: int) -> Float32 | None:
        if position < 0:
            return None
        return project(setting.tensors[position].view, setting.writing, none, columns=True).coordinates

    query, key, value = (reading(position) for position in (block.query, block.key, block.value))
    output = writing(block.output)
    return Attention(block, query, key, value, output, _heads(block, query, key, value, output))


def _heads(
    block: Block, query: Float32 | None, key: Float32 | None, value: Float32 | None, output: Float32 | None
) -> tuple[int, ...]:
    """Channels of a head: as claimed, if the claim divides them; else usual sizes, the best pairing of groups first."""
    wide, narrow = (output, value) if output is not None and value is not None else (query, key)
    if wide is None or narrow is None or not len(narrow) or len(wide) % len(narrow):
        return ()
    if block.queries and len(wide) % block.queries == 0 and len(narrow) % (len(wide) // block.queries) == 0:
        return (len(wide) // block.queries,)
    group = len(wide) // len(narrow)
    options = [size for size in _HEAD_SIZES if len(narrow) % size == 0]
    if group == 1 or not (options or block.head):
        return ()

    left, right = unit_rows(wide), unit_rows(narrow)

    def likeness(size: int) -> float:
        """Mean absolute cosine of the channels that this size pairs: those of one circuit were trained together."""
        heads = np.repeat(right.reshape(-1, size, right.shape[1]), group, axis=0).reshape(len(left), -1)
        return float(np.mean(np.abs(np.einsum("ij,ij->i", left, heads))))

    found = sorted(options, key=likeness, reverse=True)
    if block.head and len(narrow) % block.head == 0:
        found = [block.head, *(size for size in found if size != block.head)]
    return tuple(found[:MOST_HEAD_SIZES])
