"""Samples of attention channels: of which layers, in which sizes of heads, and whether positions are rotary."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.gauge.channels import (
    SAMPLED_CHANNELS,
    SAMPLED_PAIRS,
    Rotary,
    choose_channels,
    query_key,
    rotary_pairs,
    value_output,
)
from fingerprint.records import ChannelSample
from fingerprint.roles.parts import HINT_PREFIXES
from fingerprint.vectors import distinct
from fingerprint.vocabulary import ChannelKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.gauge.attention import Attention
    from fingerprint.gauge.setting import Setting

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

CHANNEL_LAYERS: Final = 16
"""Layers whose channels are kept of a registered model, spread over its depth."""
MOST_NUMBERS: Final = 1 << 24
"""Coordinates of channels that are kept of a suspect: 64 MB."""
_USUAL_HEADS: Final = (64, 128, 32, 96, 80, 16, 256)
_UNROTATED: Final = frozenset(
    {"gpt2", "gpt_bigcode", "gpt_neo", "opt", "bert", "albert", "distilbert", "clip", "open_clip", "vit", "dinov2",
     "bloom", "mpt", "t5"}
)  # fmt: skip
"""Families without rotary positions: learned or relative ones, or none."""
_HALVES: Final = frozenset({"llama", "moe", "stacked_moe", "mixtral", "phi3", "gpt_oss", "granite_moe", "starcoder2"})
"""Families whose frequency pairs are the two halves of a head."""
_NEIGHBOURS: Final = frozenset({"llama_pth"})
_NEIGHBOUR_MODELS: Final = ("cohere", "glm", "ernie4_5", "helium", "llama4")
"""Models under names of another family whose pairs lie side by side."""
_PARTIAL: Final = ("partial_rotary_factor", "rotary_pct", "rotary_dim", "rotary_percentage")


def rotary_of(family: str | None, hints: Mapping[str, str]) -> Rotary | None:
    """How channels are paired by rotary positions, as names and the configuration tell; None if that is not known.

    None too where only a part of a head is rotated.
    """
    if family in _UNROTATED:
        return Rotary.NONE
    if any(hints.get(prefix + name, "1") not in {"1", "1.0"} for prefix in HINT_PREFIXES for name in _PARTIAL):
        return None
    models = [hints.get(prefix + "model_type", "").lower() for prefix in HINT_PREFIXES]
    if any(model.startswith(_NEIGHBOUR_MODELS) for model in models) or family in _NEIGHBOURS:
        return Rotary.NEIGHBOURS
    return Rotary.HALVES if family in _HALVES else None


def sample_channels(
    setting: Setting, attention: Sequence[Attention], rotary: Rotary | None, *, suspect: bool
) -> tuple[ChannelSample, ...]:
    """Samples of all blocks in all variants.

    64 value channels and 32 frequency pairs (or 64 key channels) a layer of a registered model, of up to 16 layers; of
    a suspect all channels, in every size that its heads may have and both as pairs and as single ones, up to a bound.
    """
    if not suspect:
        chosen = attention
        if len(chosen) > CHANNEL_LAYERS:
            places = distinct(np.linspace(0, len(chosen) - 1, CHANNEL_LAYERS).round().astype(int))
            chosen = [attention[i] for i in places]
        kinds = _kinds(rotary)
        return tuple(
            sample
            for block in chosen
            for kind in kinds
            for head in _heads(block, kind)[:1]
            for sample in _samples(setting, block, kind, head, rotary, suspect=False)
        )
    found: list[ChannelSample] = []
    room = MOST_NUMBERS
    for turn, kind in product(range(len(_USUAL_HEADS)), ChannelKind):
        for block in attention:
            for head in _heads(block, kind)[turn : turn + 1]:
                for sample in _samples(setting, block, kind, head, rotary, suspect=True):
                    room -= sample.parts.size
                    if room >= 0:
                        found.append(sample)
    return tuple(found)


def _kinds(rotary: Rotary | None) -> tuple[ChannelKind, ...]:
    if rotary is None:
        return (ChannelKind.VALUE_OUTPUT,)
    return ChannelKind.VALUE_OUTPUT, ChannelKind.QUERY_KEY if rotary is Rotary.NONE else ChannelKind.ROTARY


def _heads(block: Attention, kind: ChannelKind) -> list[int]:
    """Possible sizes of heads, the likeliest first."""
    narrow, wide = _sides(block, kind)
    if narrow is None or wide is None or not len(narrow) or len(wide) % len(narrow):
        return []
    sizes: Iterable[int] = block.heads
    if not block.heads and len(wide) == len(narrow):
        # Each channel is read by one other, whatever the heads are: only frequency pairs depend on them.
        told = (block.block.head,) if block.block.head else ()
        usual = dict.fromkeys((*told, *_USUAL_HEADS))
        sizes = usual if kind is ChannelKind.ROTARY else (len(narrow),)
    even = 2 if kind is ChannelKind.ROTARY else 1
    return [size for size in sizes if size > 0 and len(narrow) % size == 0 and size % even == 0]


def _sides(block: Attention, kind: ChannelKind) -> tuple[Float32 | None, Float32 | None]:
    if kind is ChannelKind.VALUE_OUTPUT:
        return block.value, block.output
    return block.key, block.query


def _samples(
    setting: Setting, block: Attention, kind: ChannelKind, head: int, rotary: Rotary | None, *, suspect: bool
) -> Iterator[ChannelSample]:
    narrow, wide = _sides(block, kind)
    if narrow is None or wide is None:
        return
    places = block.block
    tensors = (places.value, places.output) if kind is ChannelKind.VALUE_OUTPUT else (places.key, places.query)
    for number, variant in enumerate(setting.variants):
        first, last = setting.part(narrow, number), setting.part(wide, number)
        size, unit = len(first), head
        if kind is ChannelKind.ROTARY:
            parts = rotary_pairs(first, last, head, Rotary.NEIGHBOURS if rotary is Rotary.NEIGHBOURS else Rotary.HALVES)
            size, unit = size // 2, head // 2
        else:
            parts = (value_output if kind is ChannelKind.VALUE_OUTPUT else query_key)(first, last, head)
        count = SAMPLED_PAIRS if kind is ChannelKind.ROTARY else SAMPLED_CHANNELS
        indices = np.arange(size) if suspect else choose_channels(size, unit, count, setting.parameters)
        yield ChannelSample(
            layer=places.layer,
            frame=variant.frame.name,
            kind=kind,
            size=size,
            head=unit,
            tensors=tensors,
            indices=indices,
            parts=parts if suspect else parts[:, indices],
        )
