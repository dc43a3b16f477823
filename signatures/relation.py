"""Names what was done to the registered weights: the strongest relation, and everything that had to be undone."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from fingerprint.comparing.matching import layer_map
from fingerprint.vocabulary import LAYERLESS_ROLES, NEURON_ROLES, Axis, Role
from signatures.report import Relation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.comparing.matching import TensorMatch
    from signatures.change import Change

WHOLE: Final = 0.995
"""Coverage from which a model counts as covered whole."""
SMALL_CHANGE: Final = 0.33
"""Relative change (a cosine of .95) that separates fine-tuning from continued training."""
NO_CHANGE: Final = 1e-5
_ADDED_ZEROS: Final = 0.15
_ZEROS_OF_A_GRID: Final = 0.45
_ON_GRID: Final = 0.6
_WHITE: Final = 0.92
_EVEN: Final = 0.2
_FEWER_NEURONS: Final = 0.05
_MOVED: Final = 0.3
_RESCALED: Final = 0.5
_RESIZED: Final = 0.5
_TRAINED_ON: Final = 0.9
"""Mean score of neurons below which a rotated suspect was trained on: rounding to 4 bits left .97, noise of 5% .98,
half of the weights zeroed .86 (told by the zeros), as much training again .61 to .68."""
_MISSING: Final = 0.03
"""Share of the registered weights whose absence makes a suspect a part: converters drop poolers and unused heads."""


class Description(Struct, frozen=True):
    """The strongest relation, what was undone to see it, and the shares that were measured of some of that."""

    relation: Relation
    undone: tuple[str, ...]
    measured: Mapping[str, float]


def describe(change: Change, *, merged: bool) -> Description:
    """Describe what turned the registered weights into the suspect's; ``merged`` if a mixture explains it better."""
    undone = _undone(change)
    measured = {"neurons-permuted": change.moved_neurons} | change.rewriting.measured
    measured = {name: share for name, share in measured.items() if name in undone}
    for relation, applies in (
        (Relation.MERGED, merged),
        (Relation.PRUNED, change.rewriting.rotated and bool(change.rewriting.absent_layers)),
        (Relation.UPCYCLED, _upcycled(change)),
        (Relation.DEPTH_UPSCALED, _repeated(change)),
        (Relation.PRUNED, _pruned_depth(change)),
        (Relation.PARTIAL, _partial(change)),
        (Relation.DTYPE_CAST, change.cast_share > 0.5 and not change.rest_on_grid),
        (Relation.PRUNED, change.narrowed >= _FEWER_NEURONS or _sparsified(change) or change.resized[0] > _RESIZED),
        (Relation.QUANTISED, _on_grid(change)),
        (Relation.CONTINUED_TRAINING, change.rewriting.rotated and change.rewriting.score < _TRAINED_ON),
        (Relation.FINE_TUNED, change.rewriting.rotated and not change.rewriting.same),
        (Relation.REWRITTEN, change.rewriting.rotated or _is_pure(change)),
        (Relation.UNCLEAR, _unclear(change) and change.outside_attention <= NO_CHANGE),
        (Relation.REWRITTEN, change.rescaled_share > _RESCALED),
        (Relation.QUANTISED, _released(change)),
        (Relation.NOISED, _noised(change)),
        (Relation.CONTINUED_TRAINING, change.amount >= SMALL_CHANGE),
        (
            Relation.EXTENDED,
            _extended(change) or change.resized[1] > _RESIZED or (_has_more(change) and not _partial(change)),
        ),
        (Relation.FINE_TUNED, change.amount > NO_CHANGE),
        (Relation.REWRITTEN, change.moved_neurons > _MOVED or bool(change.rewriting.undone)),
        (Relation.REFORMATTED, change.exact_share > WHOLE and (bool(undone) or _has_more(change))),
    ):
        if applies:
            return Description(relation, tuple(undone), measured)
    return Description(Relation.IDENTICAL if change.exact_share > WHOLE else Relation.UNCLEAR, (), {})


def _undone(change: Change) -> list[str]:
    found: list[str] = []
    matches = change.comparison.matches
    ours, theirs = change.ours, change.theirs
    if any(stem(ours[match.registered].name) != stem(theirs[match.suspect].name) for match in matches):
        found.append("renamed")
    if any(match.transposed for match in matches):
        found.append("transposed")
    if any(is_part(theirs[match.suspect].name) and not is_part(ours[match.registered].name) for match in matches):
        found.append("fused")
    if any(is_part(ours[match.registered].name) and not is_part(theirs[match.suspect].name) for match in matches):
        found.append("split")
    order = [match.registered for match in matches]
    if order != sorted(order):
        found.append("reordered")
    if _reordered_layers(change):
        found.append("layers-reordered")
    if change.comparison.suspect.files != change.comparison.registered.files:
        found.append("resharded")
    if change.moved_neurons > _MOVED and "neurons-permuted" not in change.rewriting.undone:
        found.append("neurons-permuted")
    found += change.rewriting.undone
    if change.rescaled_share > _RESCALED:
        found.append("rescaled")
    if change.narrowed >= _FEWER_NEURONS:
        found.append(f"neurons-pruned-{change.narrowed:.0%}")
    if _sparsified(change):
        found.append(f"zeroed-{change.added_zeros:.0%}")
    if _on_grid(change):
        found.append(f"quantised-{change.grid_bits}-bit")
    found += [f"cast-to-{kind.lower()}" for kind in change.cast_types[:1]]
    if _extended(change):
        found.append("extended")
    if _has_more(change):
        found.append("tensors-added")
    found += [name for name, share in zip(("cut", "padded"), change.resized, strict=True) if share > _RESIZED]
    return found


def _on_grid(change: Change) -> bool:
    """What changed lies on a coarser grid; where most was only cast, what was not."""
    return change.rest_on_grid if change.cast_share > 0.5 else change.grid_share >= _ON_GRID


def _sparsified(change: Change) -> bool:
    """More zeros than a coarse grid alone rounds to."""
    return change.added_zeros >= (_ZEROS_OF_A_GRID if _on_grid(change) else _ADDED_ZEROS)


def _noised(change: Change) -> bool:
    """Differences as white and as even as independent noise leaves them, over enough matrices to tell."""
    white = change.whiteness >= _WHITE and change.evenness <= _EVEN
    return white and change.changed >= 4 and change.amount > NO_CHANGE


def _released(change: Change) -> bool:
    """The registered model is the quantised one, and the suspect differs from it as rounding makes it."""
    return change.released_share >= _ON_GRID and change.whiteness >= _WHITE and change.changed >= 4


def _upcycled(change: Change) -> bool:
    """Registered MLP matrices that occur several times where the attention of the same layer occurs once."""
    copies: dict[bool, list[int]] = defaultdict(list)
    for position, number in change.copies.items():
        if change.ours[position].layer is not None and change.ours[position].expert is None:
            copies[change.ours[position].role in NEURON_ROLES].append(number)
    mlps, rest = copies[True], copies[False]
    return bool(mlps and rest) and sum(mlps) >= 1.9 * len(mlps) and sum(rest) < 1.5 * len(rest)


def _repeated(change: Change) -> bool:
    """Whole registered layers that occur more than once."""
    per_layer: dict[tuple[int | None, int | None], list[int]] = defaultdict(list)
    for position, number in change.copies.items():
        tensor = change.ours[position]
        if tensor.layer is not None:
            per_layer[tensor.layer, tensor.expert].append(number)
    return any(sum(number >= 2 for number in numbers) >= max(2, 0.7 * len(numbers)) for numbers in per_layer.values())


def _pruned_depth(change: Change) -> bool:
    """Whole layers are absent, and everything outside the layers is there."""
    absent = change.unmatched_registered
    if not absent:
        return False
    layers = {change.ours[position].layer for position in absent}
    if None in layers or not change.matrices:
        return False
    kept = {change.ours[match.registered].layer for match in change.matrices}
    outside = [tensor for tensor in change.ours if tensor.role in LAYERLESS_ROLES]
    return bool(outside) and not (layers & kept) and len(kept - {None}) > 0


def _partial(change: Change) -> bool:
    heads = change.rewriting.uncompared & LAYERLESS_ROLES
    missing = [
        position
        for position in change.unmatched_registered
        if position not in change.unrecognised and change.ours[position].role not in heads
    ]
    absent = sum(change.ours[position].elements for position in missing)
    total = sum(tensor.elements for tensor in change.ours if tensor.sketch is not None)
    return absent > _MISSING * total


def _reordered_layers(change: Change) -> bool:
    """Registered layers in another order than the suspect's own numbers say, each of them at most once."""
    order = list(layer_map(change.matrices, change.ours, change.theirs).values())
    return len(set(order)) == len(order) and order != sorted(order)


def _has_more(change: Change) -> bool:
    """Weights beside those that correspond to registered ones."""
    return change.added > _MISSING and not change.rewriting.rotated


def _is_pure(change: Change) -> bool:
    """Something was undone, and nothing else is different."""
    return bool(change.rewriting.undone) and change.amount <= NO_CHANGE and not _unclear(change)


def _unclear(change: Change) -> bool:
    """Attention was changed beyond recognition in places, and what was undone does not say how."""
    said = change.rewriting.measured.keys()
    silent = change.rewriting.uncompared
    silent |= {Role.VALUE, Role.ATTENTION_OUTPUT} if "values-mixed" in said else frozenset()
    silent |= {Role.QUERY, Role.KEY} if "keys-changed" in said else frozenset()
    return any(change.ours[position].role not in silent for position in change.unrecognised)


def _extended(change: Change) -> bool:
    """A matched tensor of the suspect that is longer along an axis that can grow without retraining the rest."""
    growing = {Axis.TOKEN, Axis.POSITION, Axis.FEATURE}
    for match in change.matrices:
        ours, theirs = change.ours[match.registered], change.theirs[match.suspect]
        shape = theirs.shape[::-1] if match.transposed else theirs.shape
        if len(shape) != len(ours.shape):
            continue
        longer = [i for i, (mine, other) in enumerate(zip(ours.shape, shape, strict=True)) if other > mine]
        axes = {sample.dimension: sample.axis for sample in ours.axes}
        if longer and all(axes.get(min(i, 1)) in growing for i in longer):
            return True
    return False


def stem(name: str) -> str:
    """A canonical tensor's stored name, without the part in brackets that splitting added."""
    return name.rsplit("[", 1)[0] if name.endswith("]") else name


def is_part(name: str) -> bool:
    """Whether a canonical tensor was split out of a stored one."""
    return name.endswith("]")


def component_of(name: str) -> str:
    """The part of the network that a tensor's name places it in: the name without its last one or two words."""
    words = stem(name).split(".")
    if words[-1] in {"weight", "bias"}:
        words = words[:-1]
    return ".".join(words[:-1]) if len(words) > 1 else ".".join(words) or name


def matches_by_component(change: Change) -> dict[tuple[str, str], list[TensorMatch]]:
    """Matrix matches grouped by (component of the suspect, component of the registered model)."""
    groups: dict[tuple[str, str], list[TensorMatch]] = defaultdict(list)
    for match in change.matrices or change.comparison.matches:
        theirs, ours = change.theirs[match.suspect].name, change.ours[match.registered].name
        groups[component_of(theirs), component_of(ours)].append(match)
    return dict(groups)
