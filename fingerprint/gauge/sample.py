"""Samples of MLP neurons in the frames of the residual stream, and the vectors by which layers are looked up."""

from __future__ import annotations

from itertools import islice, product
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fingerprint.gauge.attention import MOST_HEAD_SIZES, Attention, Block, project_attention, with_heads
from fingerprint.gauge.attention_samples import CHANNEL_LAYERS, rotary_of, sample_channels
from fingerprint.gauge.frames import make_frames
from fingerprint.gauge.gram import outer, sketched
from fingerprint.gauge.live import live_samples
from fingerprint.gauge.project import project, project_some, survey
from fingerprint.gauge.setting import Setting, Variant
from fingerprint.measure import matrix_shape
from fingerprint.records import ChannelSample, LayerGram, NeuronSample
from fingerprint.signs import Stream, sample_indices
from fingerprint.tensors import element_count
from fingerprint.units import first_of, spread, unit_of
from fingerprint.vectors import distinct
from fingerprint.vocabulary import Circuit, Content, Frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.canonical import Layout
    from fingerprint.gauge.channels import Rotary
    from fingerprint.gauge.wired import Wired
    from fingerprint.neurons import Projections
    from fingerprint.parameters import Parameters

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

MOST_MLPS: Final = 256
"""MLPs that are projected: of a mixture of experts a hashed part."""
MOST_NEURONS: Final = 1 << 15
"""Neurons that are sampled of a suspect in one frame, all MLPs together, as long as each gets ``LEAST_OF_ONE``."""
LEAST_OF_ONE: Final = 1 << 9
MOST_AT_LEAST: Final = 1 << 16
"""As many are the most of all, however deep the network: 50 MB of coordinates."""
MOST_ATTENTION: Final = 1 << 24
"""Coordinates of attention's channels that are held at a time: 64 MB."""
MOST_OF_ONE: Final = 1 << 12
WHOLE_SHARE: Final = 8
"""One in so many MLPs of a suspect has all of its neurons projected: a vector by which a layer is looked up is a sum
over all of them."""
WHOLE_NUMBERS: Final = 1 << 25
"""Numbers of gates of small models, all of whose MLPs have."""
MOST_SIZE: Final = 1 << 18
"""Neurons of the largest MLP that is projected."""
MOST_VARIANTS: Final = 6
MOST_VECTORS: Final = 1 << 14
_BY_NORM: Final = 0.75
MOST_DEEP: Final = 1 << 16
"""Neurons that are sampled, all frames together, where all are wanted: 50 MB of coordinates."""
MOVING: Final = frozenset({Frame.ANCHORS, Frame.POSITIONS})
"""The frames of ``Plan``."""


class Sampled(Struct, frozen=True):
    """What was sampled in frames that move with the residual stream; ``missing`` says why nothing was."""

    neurons: tuple[NeuronSample, ...] = ()
    channels: tuple[ChannelSample, ...] = ()
    grams: tuple[LayerGram, ...] = ()
    missing: str = ""


class MlpSample(Struct, frozen=True):
    """Of one MLP: a sample for each variant, the product of down and up (or fc-in) over all neurons, and of a suspect
    what is left of the samples where that is not all."""

    samples: tuple[NeuronSample, ...]
    products: tuple[Float64, ...]
    live: tuple[NeuronSample, ...] = ()


class Plan(Struct, frozen=True):
    """What is to be sampled of a checkpoint in frames that move with its residual stream, in parts that do not need one
    another: ``mlps`` one by one, and ``blocks`` of attention; ``missing`` says why there are none.

    ``count`` neurons are kept of each MLP; of those that are not in ``whole`` no others are projected.
    """

    mlps: tuple[Projections, ...] = ()
    blocks: tuple[Block, ...] = ()
    missing: str = ""
    setting: Setting | None = None
    around: Setting | None = None
    rotary: Rotary | None = None
    count: int = 0
    whole: frozenset[int] = frozenset()
    suspect: bool = False

    def mlp(self, number: int) -> MlpSample:
        """The samples of one of ``mlps``. Raises ``InputError``."""
        setting, mlp = _needed(self.setting), self.mlps[number]
        few = number not in self.whole and 2 * self.count <= _size(setting, mlp)
        found = (_sample_some if few else _sample_mlp)(setting, mlp, self.count)
        return replace(found, live=live_samples(found.samples)) if self.suspect else found

    def attention(self, number: int) -> Attention:
        """One of ``blocks`` in coordinates. Raises ``InputError``."""
        return project_attention(_needed(self.around), self.blocks[number])

    def finished(self, neurons: Sequence[MlpSample], attention: Sequence[Attention]) -> Sampled:
        """All parts together."""
        if self.setting is None:
            return Sampled(missing=self.missing)
        setting, attention = self.setting, with_heads(attention)
        parts = zip(self.mlps, neurons, strict=True)
        grams = [gram for mlp, found in parts for gram in _mlp_grams(setting, mlp, found)]
        sizes = MOST_HEAD_SIZES if self.suspect else 1
        grams += [gram for one in attention for gram in _attention_grams(setting, one, sizes)]
        return Sampled(
            neurons=(*(one for found in neurons for one in found.samples), *(one for it in neurons for one in it.live)),
            channels=sample_channels(setting, attention, self.rotary, suspect=self.suspect),
            grams=tuple(grams[:MOST_VECTORS]),
        )


def plan_gauge(
    layout: Layout,
    contents: Sequence[Content],
    mlps: Sequence[Projections],
    wired: Wired,
    hints: Mapping[str, str],
    parameters: Parameters,
    *,
    suspect: bool,
    deep: bool = False,
) -> Plan:
    """Plan to sample a checkpoint in all its frames, which reads the matrices of MLPs and attention a second time.

    ``contents`` are those of the canonical tensors, ``mlps`` the MLPs by position, the matrices of which lie as they do
    among the tensors of ``layout``; ``wired`` is the rest. Of a suspect more neurons are kept, and where its tensors
    can be read in several ways each reading gives samples of its own; ``deep``: all neurons, up to a bound. Raises
    ``InputError``.
    """
    width = layout.width
    if width is None:
        return Plan(missing="no residual stream was recognised")
    frames = make_frames(wired.tables, parameters, centred=wired.centred)
    if not frames:
        return Plan(missing="no embeddings")
    offsets = wired.gains.offsets if suspect else wired.gains.offsets[:1]
    variants = tuple(Variant(frame, offset) for offset, frame in islice(product(offsets, frames), MOST_VARIANTS))
    setting = Setting(layout.tensors, variants, wired.gains, width, wired.centred, parameters)
    around = replace(setting, tensors=wired.tensors)
    chosen = [mlp for mlp in mlps if _can_be_projected(setting, contents, mlp)]
    chosen = [chosen[i] for i in sorted(first_of([unit_of(mlp.layer, mlp.expert) for mlp in chosen], MOST_MLPS))]
    if not chosen and not wired.blocks:
        return Plan(missing="no MLP and no attention was recognised")
    count = parameters.gauge_samples
    if suspect:
        samples = max(len(chosen) * len(variants), 1)
        room = (MOST_DEEP if deep else MOST_NEURONS) // samples
        least = min(LEAST_OF_ONE, MOST_AT_LEAST // samples)
        count = max(count, room if deep else min(MOST_OF_ONE, max(least, room)))
    whole = spread(len(chosen), len(chosen))
    if suspect and not deep:
        most = max(
            2, len(chosen) // WHOLE_SHARE, WHOLE_NUMBERS // max(_size(setting, chosen[0]) * width, 1) if chosen else 0
        )
        whole = spread(len(chosen), most)
    return Plan(
        mlps=tuple(chosen),
        blocks=tuple(_some_blocks(around, wired.blocks)),
        setting=setting,
        around=around,
        rotary=rotary_of(layout.family, hints),
        count=count,
        whole=frozenset(whole),
        suspect=suspect,
    )


def _needed(setting: Setting | None) -> Setting:
    if setting is None:
        raise ValueError("nothing was planned")
    return setting


def _some_blocks(setting: Setting, blocks: Sequence[Block]) -> list[Block]:
    """The blocks of attention that are projected: all, or of large models some, spread evenly, those whose channels are
    kept of a registered model among them."""
    channels = max((_channels(setting, block) for block in blocks), default=0)
    numbers = channels * setting.parameters.frame_width * len(setting.variants)
    most = max(CHANNEL_LAYERS, MOST_ATTENTION // max(numbers, 1))
    if len(blocks) <= most:
        return list(blocks)
    last = len(blocks) - 1
    chosen = np.concatenate([np.linspace(0, last, count) for count in (CHANNEL_LAYERS, most - CHANNEL_LAYERS)])
    return [blocks[place] for place in distinct(chosen.round().astype(np.int64)).tolist()]


def _channels(setting: Setting, block: Block) -> int:
    """Channels of all sides of a block together."""
    places = (block.query, block.key, block.value, block.output)
    elements = sum(element_count(setting.tensors[place].view.shape) for place in places if place >= 0)
    return elements // max(setting.width, 1)


def choose_by_norm(norms: Float64, count: int, parameters: Parameters) -> NDArray[np.int64]:
    """Indices of the sampled neurons, ascending: three quarters by largest norm, the rest by hash.

    The norm of a folded gate row is what a launderer cannot change, so that two samples share their largest ones.
    """
    if norms.size <= count:
        return np.arange(norms.size, dtype=np.int64)
    largest = np.argsort(-norms, kind="stable")[: int(count * _BY_NORM)]
    hashed = sample_indices(parameters.seed, Stream.NEURON_SAMPLE, norms.size, 2 * count)
    rest = hashed[~np.isin(hashed, largest)]
    return np.sort(np.concatenate([largest, rest[: count - largest.size]])).astype(np.int64)


def _can_be_projected(setting: Setting, contents: Sequence[Content], mlp: Projections) -> bool:
    for part, reads in ((mlp.gate, True), (mlp.up, True), (mlp.down, False)):
        if part is None:
            continue
        position, turned = part
        rows, columns = matrix_shape(setting.tensors[position].view.shape)
        stream, neurons = (columns, rows) if reads != turned else (rows, columns)
        if contents[position] is not Content.WEIGHTS or stream != setting.width or not 0 < neurons <= MOST_SIZE:
            return False
    return True


def _size(setting: Setting, mlp: Projections) -> int:
    position, turned = mlp.gate
    return matrix_shape(setting.tensors[position].view.shape)[1 if turned else 0]


def _sample_some(setting: Setting, mlp: Projections, count: int) -> MlpSample:
    """As ``_sample_mlp``, but only the sampled neurons are projected, and there are no products."""
    position, turned = mlp.gate
    directions, gains = setting.reading(position)
    size = len(setting.variants) * setting.parameters.frame_width
    found = survey(setting.tensors[position].view, gains, directions[size:], columns=turned)
    norms = _norms(found.norms, found.products)
    wanted = [
        choose_by_norm(norms[:, setting.offsets.index(variant.offset)], count, setting.parameters)
        for variant in setting.variants
    ]
    indices = distinct(*wanted)

    def coordinates(part: tuple[int, bool], *, reads: bool) -> Float32:
        frame = setting.reading(part[0])[0][:size] if reads else setting.writing
        return project_some(setting.tensors[part[0]].view, indices, frame, columns=part[1] == reads)

    gate = coordinates(mlp.gate, reads=True) - found.mean @ directions[:size].T
    up = None if mlp.up is None else coordinates(mlp.up, reads=True)
    down = coordinates(mlp.down, reads=False)
    samples = []
    for number, (variant, chosen) in enumerate(zip(setting.variants, wanted, strict=True)):
        rows = np.searchsorted(indices, chosen)
        parts = (None if one is None else setting.part(one, number)[rows] for one in (gate, up, down))
        samples.append(_neuron_sample(mlp, variant, norms.shape[0], chosen, *parts))
    return MlpSample(tuple(samples), ())


def _norms(norms: Float32, along_mean: Float32) -> Float64:
    """Norms of folded gates, less what they have along the mean of the stream where norms subtract that."""
    wide = norms.astype(np.float64)
    if along_mean.shape[1]:
        wide = np.sqrt(np.maximum(wide**2 - along_mean.astype(np.float64) ** 2, 0.0))
    return wide


def _neuron_sample(
    mlp: Projections,
    variant: Variant,
    size: int,
    indices: NDArray[np.int64],
    gate: Float32 | None,
    up: Float32 | None,
    down: Float32 | None,
) -> NeuronSample:
    if gate is None or down is None:
        raise ValueError("an MLP has a gate and a down projection")
    return NeuronSample(
        layer=mlp.layer,
        expert=mlp.expert,
        frame=variant.frame.name,
        activation=mlp.activation,
        size=size,
        tensors=(mlp.gate[0], -1 if mlp.up is None else mlp.up[0], mlp.down[0]),
        indices=indices,
        gate=gate,
        up=up,
        down=down,
    )


def _sample_mlp(setting: Setting, mlp: Projections, count: int) -> MlpSample:
    size = len(setting.variants) * setting.parameters.frame_width
    view = setting.tensors[mlp.gate[0]].view
    directions, gains = setting.reading(mlp.gate[0])
    gate = project(view, directions, gains, columns=mlp.gate[1])
    norms = _norms(gate.norms, gate.coordinates[:, size:])
    rows = gate.coordinates[:, :size]
    # What all gates of an MLP have in common says nothing about one of them.
    rows = rows - rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    up = None
    if mlp.up is not None:
        directions, _ = setting.reading(mlp.up[0])
        none = np.zeros((0, setting.width), np.float32)
        found = project(setting.tensors[mlp.up[0]].view, directions, none, columns=mlp.up[1])
        up = found.coordinates[:, :size]
    none = np.zeros((0, setting.width), np.float32)
    down = project(setting.tensors[mlp.down[0]].view, setting.writing, none, columns=not mlp.down[1]).coordinates
    samples, products = [], []
    for number, variant in enumerate(setting.variants):
        of_norms = norms[:, setting.offsets.index(variant.offset)]
        indices = choose_by_norm(of_norms, count, setting.parameters)
        first = setting.part(gate.coordinates if up is None else up, number)
        last = setting.part(down, number)
        samples.append(
            _neuron_sample(
                mlp,
                variant,
                norms.shape[0],
                indices,
                setting.part(rows, number)[indices],
                None if up is None else first[indices],
                last[indices],
            )
        )
        products.append(outer(last, first))
    return MlpSample(tuple(samples), tuple(products))


def _mlp_grams(setting: Setting, mlp: Projections, found: MlpSample) -> list[LayerGram]:
    """The vectors of one MLP, for each variant."""
    if not found.products:
        return []
    first, _ = mlp.up or mlp.gate
    return _grams(setting, mlp.layer, Circuit.DOWN_UP, (mlp.down[0], first), found.products)


def _attention_grams(setting: Setting, attention: Attention, most: int) -> list[LayerGram]:
    """The vectors of one layer's attention for each variant, and for the ``most`` likeliest sizes of heads."""
    block = attention.block
    found: list[LayerGram] = []
    for circuit, places, wide, narrow in (
        (Circuit.OUTPUT_VALUE, (block.output, block.value), attention.output, attention.value),
        (Circuit.QUERY_KEY, (block.query, block.key), attention.query, attention.key),
    ):
        for head in (attention.heads or (0,))[:most]:
            paired = None if wide is None or narrow is None else attention.paired(wide, narrow, head)
            if wide is None or paired is None:
                continue
            numbers = range(len(setting.variants))
            products = [outer(setting.part(wide, number), setting.part(paired, number)) for number in numbers]
            found += _grams(setting, block.layer, circuit, places, products)
    return found


def _grams(
    setting: Setting, layer: int | None, circuit: Circuit, tensors: tuple[int, int], products: Sequence[Float64]
) -> list[LayerGram]:
    vectors = [sketched(product, circuit, setting.parameters) for product in products]
    return [
        LayerGram(layer, variant.frame.name, circuit, tensors, vector)
        for variant, vector in zip(setting.variants, vectors, strict=True)
        if vector is not None
    ]
