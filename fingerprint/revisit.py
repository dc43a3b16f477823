"""A second look at a suspect's weights, where a comparison asks for one: transposes, and blocks that were not split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from fingerprint.assemble import Measured, record_of
from fingerprint.measure import measure_digest, measure_tensor
from fingerprint.readers.packed import Permuted
from fingerprint.tensors import RowSlice, TensorView, Transposed, element_count
from fingerprint.vocabulary import Axis, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fingerprint.records import TensorRecord
    from fingerprint.roles.layout import CanonicalTensor

_MOST_OF_A_KERNEL: Final = 1 << 24
"""Elements of the largest kernel that is read a second time, turned."""


class Parts(Struct, frozen=True):
    """How a matrix is to be split: into these numbers of rows, after transposing it if ``flipped``."""

    sizes: tuple[int, ...]
    flipped: bool


def with_turned_digests(measured: Measured, positions: Iterable[int]) -> Measured:
    """The same with the digests of the tensors at ``positions`` turned: matrices transposed, kernels with height and
    width exchanged. Raises ``InputError``."""
    records = list(measured.fingerprint.tensors)
    for position in positions:
        view = measured.tensors[position].view
        if len(view.shape) in {2, 4} and not records[position].turned_digest:
            turned = Transposed(view, view.name) if len(view.shape) == 2 else Permuted(view, view.name, (0, 1, 3, 2))
            digest = measure_digest(turned, measured.fingerprint.parameters)
            records[position] = replace(records[position], turned_digest=digest)
    return replace(measured, fingerprint=replace(measured.fingerprint, tensors=tuple(records)))


def kernels(measured: Measured) -> list[int]:
    """Positions of convolution kernels: libraries disagree on which of height and width comes first."""
    return [
        position
        for position, tensor in enumerate(measured.tensors)
        if len(tensor.view.shape) == 4
        and min(tensor.view.shape[2:]) > 1
        and element_count(tensor.view.shape) <= _MOST_OF_A_KERNEL
    ]


def with_parts(measured: Measured, splits: Mapping[int, Parts]) -> Measured:
    """The same with the matrices at the positions of ``splits`` replaced by their parts. Raises ``InputError``."""
    tensors: list[CanonicalTensor] = []
    records: list[TensorRecord] = []
    moved: dict[int, int] = {-1: -1}
    for position, (tensor, record) in enumerate(zip(measured.tensors, measured.fingerprint.tensors, strict=True)):
        moved[position] = len(tensors)
        if position not in splits:
            tensors.append(tensor)
            records.append(record)
            continue
        for part in _split(tensor, splits[position]):
            result = measure_tensor(part.view, measured.fingerprint.parameters, casts=False)
            tensors.append(part)
            records.append(record_of(part, result))
    neurons = tuple(
        replace(sample, tensors=(moved[sample.tensors[0]], moved[sample.tensors[1]], moved[sample.tensors[2]]))
        for sample in measured.fingerprint.neurons
    )
    channels = tuple(
        replace(sample, tensors=(moved[sample.tensors[0]], moved[sample.tensors[1]]))
        for sample in measured.fingerprint.channels
    )
    grams = tuple(
        replace(gram, tensors=(moved[gram.tensors[0]], moved[gram.tensors[1]])) for gram in measured.fingerprint.grams
    )
    changed = replace(measured.fingerprint, tensors=tuple(records), neurons=neurons, channels=channels, grams=grams)
    return Measured(changed, tuple(tensors))


def _split(tensor: CanonicalTensor, parts: Parts) -> list[CanonicalTensor]:
    source: TensorView = Transposed(tensor.view, tensor.view.name) if parts.flipped else tensor.view
    pieces = []
    start = 0
    for number, size in enumerate(parts.sizes):
        name = f"{tensor.name}[{number}]"
        view = RowSlice(source, name, start, start + size)
        pieces.append(
            replace(tensor, view=view, name=name, role=Role.OTHER, axes=(Axis.UNKNOWN, Axis.UNKNOWN), oriented=False)
        )
        start += size
    return pieces
