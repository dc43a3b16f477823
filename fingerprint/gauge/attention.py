"""Attention in frames: every query, key and value row and output column of a layer in coordinates of the stream."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fingerprint.gauge.project import project
from fingerprint.hints import Hints
from fingerprint.roles.parts import heads_from
from fingerprint.units import spread
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
LEAST_HEAD: Final = 8
MOST_HEAD: Final = 512
MOST_VOTERS: Final = 16
"""Blocks of one shape, spread over the depth, whose channels say how many a head has."""
_ROLES: Final = (Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT)


class Block(Struct, frozen=True):
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


class Attention(Struct, frozen=True):
    """A block's rows in coordinates: (channels, variants * frame_width) float32 each, None for one that is absent.

    ``query`` and ``output`` have a whole number of times as many channels as ``key`` and ``value``. ``heads`` are the
    possible numbers of channels of a head, the likeliest first; empty where it makes no difference, and before
    ``with_heads``.
    """

    block: Block
    query: Float32 | None
    key: Float32 | None
    value: Float32 | None
    output: Float32 | None
    heads: tuple[int, ...] = ()

    def sides(self) -> tuple[Float32 | None, Float32 | None]:
        """What is read by several heads for each of the other's: output and value, or query and key without them."""
        if self.output is not None and self.value is not None:
            return self.output, self.value
        return self.query, self.key

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
    return Attention(block, query, key, value, writing(block.output))


def with_heads(attention: Sequence[Attention]) -> list[Attention]:
    """The same with the sizes that heads may have, on which all blocks of one shape agree.

    As claimed, if the claim divides the channels. Else what the weights told of most blocks, and then the even divisors
    of the number of key/value channels, by the mean absolute cosine of the channels that a size pairs: those of one
    circuit were trained together, and neither a rotation of the stream nor a scale of channels changes it. Over four
    layers of width 240 it was .161 at the right size of 24 and .137 at the next (12), where single layers had others
    first; .274 and .216 in SmolLM2-135M, of 64.
    """
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, one in enumerate(attention):
        wide, narrow = one.sides()
        if wide is not None and narrow is not None and len(narrow) and len(wide) % len(narrow) == 0:
            alike[len(wide), len(narrow)].append(number)
    found = list(attention)
    for (channels, shared), numbers in alike.items():
        voted: tuple[int, ...] | None = None
        for number in numbers:
            claimed = _claimed(attention[number].block, channels, shared)
            if not claimed and voted is None:
                voted = _vote([attention[one] for one in numbers], channels, shared)
            found[number] = replace(attention[number], heads=(claimed,) if claimed else voted or ())
    return found


def _claimed(block: Block, wide: int, narrow: int) -> int:
    """Channels of a head by the number of query heads that is claimed; 0 if there is no claim, or it does not fit."""
    head = wide // block.queries if block.queries and wide % block.queries == 0 else 0
    return head if head and narrow % head == 0 else 0


def _vote(attention: Sequence[Attention], wide: int, narrow: int) -> tuple[int, ...]:
    """The likeliest sizes of heads of blocks of one shape; none where each channel has a partner of its own."""
    group = wide // narrow
    if group == 1:
        return ()
    sizes = [size for size in range(LEAST_HEAD, min(narrow, MOST_HEAD) + 1, 2) if narrow % size == 0]
    likeness = np.zeros(len(sizes))
    for number in sorted(spread(len(attention), MOST_VOTERS)):
        broad, few = (unit_rows(side) for side in attention[number].sides() if side is not None)
        for place, size in enumerate(sizes):
            heads = few.reshape(-1, 1, size, few.shape[1])
            products = np.einsum("hgij,hgij->hgi", broad.reshape(-1, group, size, few.shape[1]), heads)
            likeness[place] += float(np.mean(np.abs(products)))
    told = Counter(one.block.head for one in attention if one.block.head and narrow % one.block.head == 0)
    ranked = [sizes[place] for place in np.argsort(-likeness, kind="stable")]
    return tuple(dict.fromkeys([*(size for size, _ in told.most_common(1)), *ranked]))[:MOST_HEAD_SIZES]
