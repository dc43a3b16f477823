"""Samples of MLP neurons in the frames of the residual stream, and the vectors by which layers are looked up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.gauge.attention import MOST_HEAD_SIZES, Attention, project_attention
from fingerprint.gauge.attention_samples import rotary_of, sample_channels
from fingerprint.gauge.frames import make_frames
from fingerprint.gauge.gram import outer, sketched
from fingerprint.gauge.project import project
from fingerprint.gauge.setting import Setting, Variant
from fingerprint.measure import matrix_shape
from fingerprint.records import ChannelSample, LayerGram, NeuronSample
from fingerprint.signs import Stream, sample_indices
from fingerprint.units import first_of, unit_of
from fingerprint.vocabulary import Circuit, Content

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from fingerprint.canonical import Layout
    from fingerprint.gauge.wired import Wired
    from fingerprint.neurons import Projections
    from fingerprint.parameters import Parameters

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

MOST_MLPS: Final = 256
"""MLPs that are projected: of a mixture of experts a hashed part."""
MOST_NEURONS: Final = 1 << 17
"""Neurons that are sampled of a suspect in one frame, all MLPs together: 100 MB of coordinates."""
MOST_OF_ONE: Final = 1 << 12
MOST_SIZE: Final = 1 << 18
"""Neurons of the largest MLP that is projected."""
MOST_VARIANTS: Final = 6
MOST_VECTORS: Final = 1 << 14
_BY_NORM: Final = 0.75


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was sampled in frames that move with the residual stream; ``missing`` says why nothing was."""

    neurons: tuple[NeuronSample, ...] = ()
    channels: tuple[ChannelSample, ...] = ()
    grams: tuple[LayerGram, ...] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Of one MLP: a sample for each variant, and the product of down and up (or fc-in) over all neurons."""

    samples: tuple[NeuronSample, ...]
    products: tuple[Float64, ...]


def sample_gauge(
    layout: Layout,
    contents: Sequence[Content],
    mlps: Sequence[Projections],
    wired: Wired,
    hints: Mapping[str, str],
    parameters: Parameters,
    pool: Executor,
    *,
    suspect: bool,
) -> Sampled:
    """Sample a checkpoint in all its frames. Reads the matrices of MLPs and attention a second time.

    ``contents`` are those of the canonical tensors, ``mlps`` the MLPs by position, the matrices of which lie as they do
    among the tensors of ``layout``; ``wired`` is the rest. Of a suspect more neurons are kept,
    and where its tensors can be read in several ways each reading gives samples of its own. Raises ``InputError``.
    """
    width = layout.width
    if width is None:
        return Sampled(missing="no residual stream was recognised")
    frames = make_frames(wired.tables, parameters, centred=wired.centred)
    if not frames:
        return Sampled(missing="no embeddings")
    offsets = wired.gains.offsets if suspect else wired.gains.offsets[:1]
    variants = tuple(Variant(frame, offset) for offset, frame in islice(product(offsets, frames), MOST_VARIANTS))
    setting = Setting(layout.tensors, variants, wired.gains, width, wired.centred, parameters)
    around = replace(setting, tensors=wired.tensors)
    chosen = [mlp for mlp in mlps if _can_be_projected(setting, contents, mlp)]
    chosen = [chosen[i] for i in sorted(first_of([unit_of(mlp.layer, mlp.expert) for mlp in chosen], MOST_MLPS))]
    if not chosen and not wired.blocks:
        return Sampled(missing="no MLP and no attention was recognised")
    count = parameters.gauge_samples
    if suspect:
        count = max(count, min(MOST_OF_ONE, MOST_NEURONS // max(len(chosen) * len(variants), 1)))
    neurons = list(pool.map(lambda mlp: _sample_mlp(setting, mlp, count), chosen))
    attention = list(pool.map(lambda block: project_attention(around, block), wired.blocks))
    grams = [gram for mlp, found in zip(chosen, neurons, strict=True) for gram in _mlp_grams(setting, mlp, found)]
    sizes = MOST_HEAD_SIZES if suspect else 1
    grams += [gram for one in attention for gram in _attention_grams(setting, one, sizes)]
    return Sampled(
        neurons=tuple(sample for found in neurons for sample in found.samples),
        channels=sample_channels(setting, attention, rotary_of(layout.family, hints), suspect=suspect),
        grams=tuple(grams[:MOST_VECTORS]),
    )


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


def _sample_mlp(setting: Setting, mlp: Projections, count: int) -> _Sample:
    size = len(setting.variants) * setting.parameters.frame_width
    view = setting.tensors[mlp.gate[0]].view
    directions, gains = setting.reading(mlp.gate[0])
    gate = project(view, directions, gains, columns=mlp.gate[1])
    norms = gate.norms.astype(np.float64)
    if setting.centred:
        norms = np.sqrt(np.maximum(norms**2 - gate.coordinates[:, size:].astype(np.float64) ** 2, 0.0))
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
            NeuronSample(
                layer=mlp.layer,
                expert=mlp.expert,
                frame=variant.frame.name,
                activation=mlp.activation,
                size=norms.shape[0],
                tensors=(mlp.gate[0], -1 if mlp.up is None else mlp.up[0], mlp.down[0]),
                indices=indices,
                gate=setting.part(rows, number)[indices],
                up=None if up is None else first[indices],
                down=last[indices],
            )
        )
        products.append(outer(last, first))
    return _Sample(tuple(samples), tuple(products))


def _mlp_grams(setting: Setting, mlp: Projections, found: _Sample) -> list[LayerGram]:
    """The vectors of one MLP, for each variant."""
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
