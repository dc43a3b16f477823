"""Hidden units of networks without a residual stream, written down so that permuting and rescaling does not show."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from fingerprint.gauge.branches import branch_samples
from fingerprint.gauge.convolutional import convolutional_samples
from fingerprint.gauge.gram import outer, sketched
from fingerprint.gauge.recurrent import recurrent_roles, recurrent_samples
from fingerprint.gauge.unit_rows import choose_units
from fingerprint.records import LayerGram, NeuronSample
from fingerprint.units import spread
from fingerprint.vectors import unit_rows
from fingerprint.vocabulary import Circuit, Content, Frame, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.parameters import Parameters

MOST_ELEMENTS: Final = 1 << 23
"""Of one kernel or matrix that is read whole."""
MOST_SAMPLES: Final = 48
"""Samples of a registered model, one a layer and frame."""
MOST_REGISTERED: Final = 3072
"""Units of all these together, as long as each has ``LEAST_REGISTERED``."""
LEAST_REGISTERED: Final = 64
MOST_OF_SUSPECT: Final = 160
MOST_UNITS: Final = 1 << 12
"""Units of a layer that are kept of a suspect."""


class Units(Struct, frozen=True):
    """Samples of units, the vectors by which their layers are looked up, and what is told of tables, by position."""

    samples: tuple[NeuronSample, ...] = ()
    grams: tuple[LayerGram, ...] = ()
    roles: Mapping[int, Role] = field(default_factory=dict)


def sample_units(
    tensors: Sequence[CanonicalTensor], contents: Sequence[Content], parameters: Parameters, *, suspect: bool
) -> Units:
    """Sample the units of a network that has no residual stream. Raises ``InputError``.

    Of a suspect more units are kept, and every chain that its shapes allow.
    """
    usable = [
        position
        for position, tensor in enumerate(tensors)
        if contents[position] in {Content.WEIGHTS, Content.SMALL}
        and len(tensor.view.shape) >= 2
        and prod(tensor.view.shape) <= MOST_ELEMENTS
    ]
    count = MOST_UNITS if suspect else parameters.gauge_samples
    most = MOST_OF_SUSPECT if suspect else MOST_SAMPLES
    found = [
        *recurrent_samples(tensors, usable, count, parameters, suspect=suspect),
        # A chain that leads through branches would leave out what goes round them.
        *(
            list(branch_samples(tensors, usable, count, parameters, suspect=suspect))
            or convolutional_samples(tensors, usable, count, parameters)
        ),
    ]
    found = [found[place] for place in sorted(spread(len(found), most))]
    if not suspect:
        few = max(LEAST_REGISTERED, MOST_REGISTERED // max(len(found), 1))
        found = [_fewer(sample, few, parameters) for sample in found]
    grams = [gram for sample in found if sample.frame == Frame.UNITS for gram in _gram(sample, parameters)]
    return Units(tuple(found), tuple(grams), recurrent_roles(tensors, usable, suspect=suspect))


def _fewer(sample: NeuronSample, count: int, parameters: Parameters) -> NeuronSample:
    """The sample with ``count`` of its units."""
    if sample.indices.size <= count:
        return sample
    rows = np.flatnonzero(np.isin(sample.indices, choose_units(sample.size, count, parameters)))
    up = None if sample.up is None else sample.up[rows]
    return replace(sample, indices=sample.indices[rows], gate=sample.gate[rows], up=up, down=sample.down[rows])


def _gram(sample: NeuronSample, parameters: Parameters) -> Iterator[LayerGram]:
    """``Σ`` of outer products over the units kept: blind to their order, to scales and to coins."""
    last = sample.down if sample.up is None else sample.up**2
    last = last - last.mean(axis=0)
    vector = sketched(outer(unit_rows(sample.gate), unit_rows(last)), Circuit.DOWN_UP, parameters)
    if vector is not None:
        yield LayerGram(None, sample.frame, Circuit.DOWN_UP, (sample.tensors[0], sample.tensors[2]), vector)
