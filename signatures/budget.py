"""How large a signature may be, and which samples are left out of one that would be larger.

All digests, casts, names and statistics are kept. Sketches, axis samples and neuron samples are kept unit by unit
until their share of the room is used up. A unit is what belongs to one layer outside of its experts, or one expert of
one layer: the matrices of an MLP share a permutation, so that samples of all of them are worth more than samples of one
each. The order of the units does not depend on the weights' values, so that two signatures of relatives keep the same
units: first everything outside of experts, then experts by a hash of layer and number, one of each layer in turn.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from fingerprint.units import ordered_units, unit_of
from signatures.sections import DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.records import Fingerprint, NeuronSample, TensorRecord
    from fingerprint.units import Unit

DEFAULT_LIMIT: Final = 24_000_000
"""Bytes that the file of a signature may have."""

SHARES: Final = {"sketches": 0.35, "axes": 0.25, "neurons": 0.3, "channels": 0.1}
"""Shares of the room for samples; what one kind does not use goes to those after it."""

_SAMPLE_HEAD: Final = 64  # bytes of a sample besides its numbers: its row of the table, its share of the indices


class Budgeted(Struct, frozen=True):
    """A fingerprint whose samples fit, and of how many tensors (MLPs for "neurons") samples were left out."""

    fingerprint: Fingerprint
    left_out: Mapping[str, int]


def fixed_bytes(fingerprint: Fingerprint) -> int:
    """About how many bytes a signature needs besides its samples.

    Not measured by compressing, so that what is left out does not depend on the version of zlib. Names and statistics
    of large models were seen to shrink to 6% and 63%.
    """
    digests = sum(DIGEST_BYTES * bool(record.digest) + 33 * len(record.casts) for record in fingerprint.tensors)
    names = sum(len(record.name) for record in fingerprint.tensors)
    grams = sum(2 * gram.values.size + 16 for gram in fingerprint.grams)
    return digests + names // 8 + 36 * len(fingerprint.tensors) + grams + 8192


def within_budget(fingerprint: Fingerprint, room: int) -> Budgeted:
    """Leave out samples until they need at most ``room`` bytes; see ``fixed_bytes`` for what comes on top.

    Deterministic: a function of layers, experts and sizes of samples alone.
    """
    needs = _needs(fingerprint)
    if sum(sum(units.values()) for units in needs.values()) <= room:
        return Budgeted(fingerprint, {})
    kept: dict[str, set[Unit]] = {}
    left = float(max(room, 0))
    shares = 1.0
    for kind, share in SHARES.items():
        kept[kind], used = _take(needs[kind], left * share / shares)
        left -= used
        shares -= share
    tensors = tuple(_trimmed(record, kept) for record in fingerprint.tensors)
    neurons = tuple(sample for sample in fingerprint.neurons if _unit(sample) in kept["neurons"])
    channels = tuple(sample for sample in fingerprint.channels if unit_of(sample.layer, None) in kept["channels"])
    left_out = {
        "sketches": sum(record.sketch is not None for record in fingerprint.tensors)
        - sum(record.sketch is not None for record in tensors),
        "axes": sum(bool(record.axes) for record in fingerprint.tensors) - sum(bool(record.axes) for record in tensors),
        "neurons": len(fingerprint.neurons) - len(neurons),
        "channels": len(fingerprint.channels) - len(channels),
    }
    rest = replace(fingerprint, tensors=tensors, neurons=neurons, channels=channels)
    return Budgeted(rest, {kind: number for kind, number in left_out.items() if number})


def _unit(part: TensorRecord | NeuronSample) -> Unit:
    return unit_of(part.layer, part.expert)


def _needs(fingerprint: Fingerprint) -> dict[str, Counter[Unit]]:
    """Bytes of each kind of sample, by unit; an upper bound."""
    needs: dict[str, Counter[Unit]] = {kind: Counter() for kind in SHARES}
    for record in fingerprint.tensors:
        unit = _unit(record)
        if record.sketch is not None:
            needs["sketches"][unit] += 4 * record.sketch.size + 4
        for sample in record.axes:
            needs["axes"][unit] += 2 * sample.values.size + 2 * len(sample.indices) + _SAMPLE_HEAD
            needs["axes"][unit] += (DIGEST_BYTES + 1) * (1 + len(sample.casts))
    for mlp in fingerprint.neurons:
        numbers = mlp.gate.size + mlp.down.size + (0 if mlp.up is None else mlp.up.size)
        numbers += 0 if mlp.descriptors is None else mlp.descriptors.size
        needs["neurons"][_unit(mlp)] += numbers + 20 * len(mlp.indices) + _SAMPLE_HEAD
    for channel in fingerprint.channels:
        needs["channels"][unit_of(channel.layer, None)] += channel.parts.size + 20 * len(channel.indices) + _SAMPLE_HEAD
    return needs


def _take(needs: Mapping[Unit, int], room: float) -> tuple[set[Unit], int]:
    """The longest run of units, in their order, that fits, and its bytes."""
    kept: set[Unit] = set()
    used = 0
    for unit in ordered_units(needs):
        if used + needs[unit] > room:
            break
        used += needs[unit]
        kept.add(unit)
    return kept, used


def _trimmed(record: TensorRecord, kept: Mapping[str, set[Unit]]) -> TensorRecord:
    unit = _unit(record)
    sketch = record.sketch if unit in kept["sketches"] else None
    axes = record.axes if unit in kept["axes"] else ()
    return replace(record, sketch=sketch, axes=axes)
