"""Samples of MLPs in their own frames: which layers, which neurons, and their rows read a second time."""

from __future__ import annotations

from collections import defaultdict
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from fingerprint.gauge.descriptors import Descriptors, neuron_descriptors
from fingerprint.gauge.live import Neurons, contributing, is_nearly_all, live_neurons
from fingerprint.gauge.project import project, take_slices
from fingerprint.gauge.self_frame import SELF_NEURONS, SELF_REFERENCE, layer_vector, self_coordinates
from fingerprint.measure import matrix_shape
from fingerprint.memory import give_back
from fingerprint.neurons import UNNAMED
from fingerprint.records import LayerGram, NeuronSample
from fingerprint.units import ordered_units, unit_of
from fingerprint.vectors import magnitude, row_norms
from fingerprint.vocabulary import Circuit, Content, Frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor, Layout
    from fingerprint.gauge.fold import Gains
    from fingerprint.gauge.wired import Wired
    from fingerprint.neurons import Projections
    from fingerprint.parameters import Parameters

    Float32 = NDArray[np.float32]
    Int64 = NDArray[np.int64]

SELF_LAYERS: Final = 6
"""Layers that are kept of a registered model, spread over its depth."""
MOST_SELF_SAMPLES: Final = 80
"""Samples of a suspect: about 1 MB each."""
MOST_SELF_WIDTH: Final = 1 << 15
_MOST_SIZE: Final = 1 << 18
_LEAST: Final = 32
"""Neurons and channels below which a layer has no frame worth keeping."""
_NUMBERS_OF_ONE: Final = 1 << 23
"""Of one matrix in memory: a wider stream has fewer reference neurons."""
_NUMBERS_AT_ONCE: Final = 1 << 25
"""Of all layers that are worked on at the same time: 128 MB, and about twice as much while they are."""


def sample_self(
    layout: Layout,
    contents: Sequence[Content],
    mlps: Sequence[Projections],
    wired: Wired,
    parameters: Parameters,
    pool: Executor,
    *,
    suspect: bool,
) -> tuple[tuple[NeuronSample, ...], tuple[LayerGram, ...]]:
    """Sample MLPs in the frame of their own gates; see ``plan_gauge`` for the parameters.

    Six layers of a registered model, 256 neurons each; of a suspect all layers up to a bound, up to 1024 neurons each,
    and every way in which its gains and unnamed projections can be read. Each sample comes with the vector by which
    its layer is looked up. Raises ``InputError``.
    """
    gains, centred = wired.gains, wired.centred
    usable = [mlp for mlp in mlps if _has_frame(layout.tensors, contents, mlp)]
    chosen = _one_of_each_layer(layout.tensors, usable, MOST_SELF_SAMPLES if suspect else SELF_LAYERS)
    offsets = gains.offsets if suspect else gains.offsets[:1]
    readings = [
        (reading, offset) for mlp in chosen for reading in (_readings(mlp) if suspect else [mlp]) for offset in offsets
    ]
    largest = max((_stream(layout.tensors, mlp) * _references(layout.tensors, mlp) for mlp in chosen), default=1)
    turns = BoundedSemaphore(max(1, _NUMBERS_AT_ONCE // (3 * largest)))

    def sample(what: tuple[Projections, float]) -> list[tuple[NeuronSample, list[Float32]]]:
        with turns:
            found = _samples(layout.tensors, what[0], gains, what[1], centred=centred, suspect=suspect)
            sampled = [(one, _vectors(described, parameters)) for one, described in found]
        give_back()  # each took a hundred times what is kept of it
        return sampled

    samples = tuple(one for found in pool.map(sample, readings[:MOST_SELF_SAMPLES]) for one in found)
    grams = tuple(
        LayerGram(one.layer, Frame.SELF, Circuit.DOWN_UP, (one.tensors[2], max(one.tensors[:2])), vector)
        for one, vectors in samples
        for vector in vectors
    )
    return tuple(one for one, _ in samples), grams


def _vectors(described: Sequence[Descriptors], parameters: Parameters) -> list[Float32]:
    found = (layer_vector(one, parameters) for one in described)
    return [vector for vector in found if vector is not None]


def _stream(tensors: Sequence[CanonicalTensor], mlp: Projections) -> int:
    return matrix_shape(tensors[mlp.gate[0]].view.shape)[0 if mlp.gate[1] else 1]


def _size(tensors: Sequence[CanonicalTensor], mlp: Projections) -> int:
    return matrix_shape(tensors[mlp.gate[0]].view.shape)[1 if mlp.gate[1] else 0]


def _references(tensors: Sequence[CanonicalTensor], mlp: Projections) -> int:
    """Number of neurons that frame and descriptors of an MLP are computed from."""
    return min(_size(tensors, mlp), SELF_REFERENCE, _NUMBERS_OF_ONE // _stream(tensors, mlp))


def _has_frame(tensors: Sequence[CanonicalTensor], contents: Sequence[Content], mlp: Projections) -> bool:
    shapes = set()
    for part, reads in ((mlp.gate, True), (mlp.up, True), (mlp.down, False)):
        if part is None:
            continue
        if contents[part[0]] is not Content.WEIGHTS:
            return False
        shape = matrix_shape(tensors[part[0]].view.shape)
        shapes.add(shape if reads != part[1] else shape[::-1])
    size, stream = next(iter(shapes))
    return len(shapes) == 1 and _LEAST <= size <= _MOST_SIZE and _LEAST <= stream <= MOST_SELF_WIDTH


def _one_of_each_layer(
    tensors: Sequence[CanonicalTensor], mlps: Sequence[Projections], count: int
) -> list[Projections]:
    """At most ``count`` MLPs spread over the depth, those that are kept of a registered model among them; of the
    experts of a layer the first in the order of units."""
    rank = {unit: place for place, unit in enumerate(ordered_units({unit_of(mlp.layer, mlp.expert) for mlp in mlps}))}
    layers: dict[tuple[str, int], list[Projections]] = defaultdict(list)
    for number, mlp in enumerate(mlps):
        layers[tensors[mlp.gate[0]].stack, -1 - number if mlp.layer is None else mlp.layer].append(mlp)
    firsts = [min(found, key=lambda mlp: rank[unit_of(mlp.layer, mlp.expert)]) for found in layers.values()]
    firsts.sort(key=lambda mlp: -1 if mlp.layer is None else mlp.layer)
    if len(firsts) <= count:
        return firsts
    last = len(firsts) - 1
    places = np.concatenate([np.linspace(0, last, many) for many in (min(SELF_LAYERS, count), count - SELF_LAYERS)])
    return [firsts[i] for i in np.unique(places.round().astype(int)).tolist()]


def _readings(mlp: Projections) -> list[Projections]:
    """An MLP as it may be meant: without names nothing tells the gate from up, or what reads from what writes."""
    if mlp.activation != UNNAMED:
        return [mlp]
    if mlp.up is not None:
        return [mlp, replace(mlp, gate=mlp.up, up=mlp.gate)]
    gate, down = mlp.gate, mlp.down
    return [mlp, replace(mlp, gate=(down[0], not down[1]), down=(gate[0], not gate[1]))]


def _samples(
    tensors: Sequence[CanonicalTensor], mlp: Projections, gains: Gains, offset: float, *, centred: bool, suspect: bool
) -> Iterator[tuple[NeuronSample, list[Descriptors]]]:
    """The sample, and the descriptors of all reference neurons; of a registered model those of their larger half too.

    Of a suspect some of whose neurons add nothing, or share a gate, another one of what is left of them: they would
    decide what directions its gate has.
    """
    stream, size = _stream(tensors, mlp), _size(tensors, mlp)
    gain = gains.of(mlp.gate[0], offset, stream)
    count = _references(tensors, mlp)

    def slices(part: tuple[int, bool], references: Int64, *, reads: bool) -> Float32:
        found = _scale(take_slices(tensors[part[0]].view, references, columns=part[1] == reads))
        if reads:
            found *= gains.of(part[0], offset, stream).astype(np.float32)
        if centred:
            found -= found.mean(axis=1, keepdims=True)
        return _scale(found)

    def taken(references: Int64) -> Neurons:
        up = None if mlp.up is None else slices(mlp.up, references, reads=True)
        gate, down = (slices(part, references, reads=reads) for part, reads in ((mlp.gate, True), (mlp.down, False)))
        return Neurons(references, gate, up, down)

    everything = np.arange(size, dtype=np.int64)
    references = _largest(tensors, mlp, gain, everything, count)
    neurons = taken(references)
    yield _sample(mlp, size, neurons, suspect=suspect)
    if not suspect:
        return
    alive = contributing(_lengths(tensors, mlp))
    if not is_nearly_all(alive.size, size):
        references = _largest(tensors, mlp, gain, alive, count)
        neurons = taken(references)
    live = live_neurons(neurons.gate, neurons.up, neurons.down, named=mlp.activation != UNNAMED)
    left = round(alive.size * live.rows.size / max(references.size, 1))
    if live.rows.size and not is_nearly_all(left, size):
        yield _sample(mlp, max(left, live.rows.size), live._replace(rows=np.arange(live.rows.size)), suspect=suspect)


def _scale(rows: Float32) -> Float32:
    """The rows over their largest entry, in place: they are as large as memory allows."""
    rows /= max(magnitude(rows), float(np.finfo(np.float32).tiny))
    return rows


def _lengths(tensors: Sequence[CanonicalTensor], mlp: Projections) -> NDArray[np.float64]:
    """How much each neuron can add: the product of the norms of what it reads and writes, up to a factor."""
    found = np.ones(_size(tensors, mlp))
    for part, reads in ((mlp.gate, True), (mlp.up, True), (mlp.down, False)):
        if part is not None:
            stream = _stream(tensors, mlp)
            none, ones = np.zeros((0, stream), np.float32), np.ones((1, stream), np.float32)
            found *= row_norms(project(tensors[part[0]].view, none, ones, columns=part[1] == reads).norms)
    return found


def _sample(mlp: Projections, size: int, neurons: Neurons, *, suspect: bool) -> tuple[NeuronSample, list[Descriptors]]:
    found = self_coordinates(neurons.gate, neurons.up, neurons.down)
    described = [found.descriptors]
    kept = np.arange(neurons.rows.size)
    if not suspect:
        if neurons.rows.size >= 2 * _LEAST:
            described.append(_of_larger_half(neurons))
        norms = row_norms(neurons.gate - neurons.gate.mean(axis=0))
        kept = np.sort(np.argsort(-norms, kind="stable")[:SELF_NEURONS])
    sampled = NeuronSample(
        layer=mlp.layer,
        expert=mlp.expert,
        frame=Frame.SELF,
        activation=mlp.activation,
        size=size,
        tensors=(mlp.gate[0], -1 if mlp.up is None else mlp.up[0], mlp.down[0]),
        indices=neurons.rows[kept],
        gate=found.gate[kept],
        up=None if found.up is None else found.up[kept],
        down=found.down[kept],
        descriptors=found.descriptors.standard[kept],
    )
    return sampled, described


def _of_larger_half(neurons: Neurons) -> Descriptors:
    """As if the other half had been left out, as pruning does: what a neuron's cosines with all others are changes."""
    lengths = row_norms(neurons.gate) * row_norms(neurons.down)
    if neurons.up is not None:
        lengths *= row_norms(neurons.up)
    half = np.sort(np.argsort(-lengths, kind="stable")[: neurons.rows.size // 2])
    up = None if neurons.up is None else neurons.up[half]
    return neuron_descriptors(neurons.gate[half], up, neurons.down[half])


def _largest(
    tensors: Sequence[CanonicalTensor], mlp: Projections, gain: NDArray[np.float64], among: Int64, count: int
) -> Int64:
    """Indices of the neurons ``among`` all of largest folded gate norm, ascending."""
    position, turned = mlp.gate
    if among.size <= count:
        return among
    none = np.zeros((0, gain.size), np.float32)
    norms = project(tensors[position].view, none, gain[None].astype(np.float32), columns=turned).norms[among, 0]
    return np.sort(among[np.argsort(-norms, kind="stable")[:count]]).astype(np.int64)
