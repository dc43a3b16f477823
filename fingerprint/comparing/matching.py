"""Which tensor of the suspect corresponds to which registered tensor, and how much has changed.

Equal digests first; then the linear sketches, in both orientations, independent of names and order. The cosine of two
k x k sketches of unrelated matrices has a standard deviation of about 1/k; that null is only approximate, so a match
here is a lead for the exact tests and for the description, never evidence by itself.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fingerprint.measure import matrix_shape
from fingerprint.sketch import chance_spread
from fingerprint.vocabulary import Content, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fingerprint.records import TensorRecord

Float32 = NDArray[np.float32]

EXACT: Final = "exact"
_ACCEPT: Final = 5.5
_ACCEPT_AT_EXPECTED_PLACE: Final = 3.0
_NULL_SPREAD: Final = 1.25
_PLACELESS: Final = frozenset({Role.OTHER, Role.BUFFER})
_DISTINCTIVE_ELEMENTS: Final = 64
_ALL: Final = slice(None)


@dataclass(frozen=True, slots=True)
class TensorMatch:
    """One pair of corresponding tensors, by their positions in the two fingerprints.

    ``digest`` is "exact", the name of the float type after rounding to which the digests agree, or "". ``cosine`` of
    the centred matrices as the sketches estimate it (1.0 for equal digests without sketches), ``change`` the
    Frobenius norm of the difference over that of the registered matrix, ``scale`` the least-squares factor.
    """

    registered: int
    suspect: int
    transposed: bool
    digest: str
    cosine: float
    change: float
    scale: float


class SketchTable:
    """The sketches of one fingerprint as a matrix of unit rows, with their norms; ``positions`` says whose they are.

    ``shapes`` are those of the matrices, ``spreads`` the standard deviations of their cosines with unrelated matrices
    of that shape.

    ``corner`` takes only that many of a sketch's rows and columns: what the index searches.
    """

    def __init__(self, tensors: Sequence[TensorRecord], corner: int | None = None) -> None:
        held = [i for i, tensor in enumerate(tensors) if tensor.sketch is not None]
        self.positions = np.array(held, np.int64)
        if held:
            stack = np.stack([np.asarray(tensors[i].sketch, np.float32)[:corner, :corner] for i in held])
        else:
            stack = np.zeros((0, corner or 1, corner or 1), np.float32)
        norms = np.linalg.norm(stack, axis=(1, 2))
        width = int(stack.shape[1])
        self.spreads: Float32 = np.array([chance_spread(tensors[i].shape, width) for i in held], np.float32)
        self.shapes = [matrix_shape(tensors[i].shape) for i in held]
        self.norms = np.maximum(norms, np.float32(1e-30))
        self.units: Float32 = (stack / self.norms[:, None, None]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.positions)

    def flat(self, chosen: NDArray[np.int64] | slice = _ALL, *, transposed: bool = False) -> Float32:
        """(n, k * k) unit rows, of the chosen matrices or of their transposes."""
        units = self.units[chosen]
        units = units.transpose(0, 2, 1) if transposed else units
        return np.ascontiguousarray(units).reshape(len(units), units.shape[1] * units.shape[2])


@dataclass(frozen=True, slots=True)
class SketchCosines:
    """Cosines (suspect x registered) of all pairs of sketches: of the larger magnitude of the two orientations.

    Only shapes that can correspond are compared, since sketches of a grown axis keep those of its prefix: one axis at
    least must have the same length. ``scores`` are the magnitudes over the spread by chance, 0 for pairs left out;
    ``pairs`` counts the comparisons, orientations and all.
    """

    suspect: SketchTable
    registered: SketchTable
    cosines: Float32
    scores: Float32
    transposed: NDArray[np.bool_]
    pairs: int

    @classmethod
    def of(cls, registered: Sequence[TensorRecord], suspect: Sequence[TensorRecord]) -> SketchCosines:
        """Compare every sketch with every sketch of a shape that can correspond to its own."""
        ours, theirs = SketchTable(registered), SketchTable(suspect)
        cosines = np.zeros((len(theirs), len(ours)), np.float32)
        transposed = np.zeros(cosines.shape, np.bool_)
        pairs = 0
        by_shape = {shape: np.flatnonzero([one == shape for one in ours.shapes]) for shape in set(ours.shapes)}
        for shape in set(theirs.shapes):
            rows = np.flatnonzero([one == shape for one in theirs.shapes])
            for turned in (False, True):
                columns = [held for other, held in by_shape.items() if _may_correspond(shape, other, turned=turned)]
                if not columns:
                    continue
                block = np.ix_(rows, np.sort(np.concatenate(columns)))
                found = theirs.flat(rows, transposed=turned) @ ours.flat(block[1][0]).T
                larger = np.abs(found) > np.abs(cosines[block])
                cosines[block] = np.where(larger, found, cosines[block])
                transposed[block] = np.where(larger, turned, transposed[block])
                pairs += found.size
        scores = np.abs(cosines) / np.maximum(theirs.spreads[:, None], ours.spreads[None, :])
        return cls(theirs, ours, cosines, scores.astype(np.float32), transposed, pairs)


def _may_correspond(suspect: tuple[int, int], registered: tuple[int, int], *, turned: bool) -> bool:
    rows, columns = suspect[::-1] if turned else suspect
    return rows == registered[0] or columns == registered[1]


def match_tensors(
    registered: Sequence[TensorRecord], suspect: Sequence[TensorRecord], cosines: SketchCosines
) -> list[TensorMatch]:
    """At most one match for each tensor of the suspect, in the suspect's order."""
    found = _by_digest(registered, suspect, cosines)
    _by_sketch(found, cosines)
    _by_place(found, registered, suspect, cosines)
    return [found[position] for position in sorted(found)]


def is_distinctive(tensor: TensorRecord) -> bool:
    """Whether an equal digest of this tensor says anything: no constants, ramps, masks, integers or tiny tensors."""
    if tensor.content in {Content.WEIGHTS, Content.SMALL}:
        return tensor.elements >= _DISTINCTIVE_ELEMENTS
    return tensor.content is Content.VECTOR and tensor.elements >= _DISTINCTIVE_ELEMENTS


def _by_digest(
    registered: Sequence[TensorRecord], suspect: Sequence[TensorRecord], cosines: SketchCosines
) -> dict[int, TensorMatch]:
    owners: dict[bytes, list[tuple[int, str]]] = defaultdict(list)
    for position, tensor in enumerate(registered):
        if is_distinctive(tensor):
            owners[tensor.digest].append((position, EXACT))
            for name, digest in tensor.casts.items():
                if digest != tensor.digest:
                    owners[digest].append((position, name))
    row_of = {int(position): row for row, position in enumerate(cosines.suspect.positions)}
    column_of = {int(position): column for column, position in enumerate(cosines.registered.positions)}
    found = {}
    for position, tensor in enumerate(suspect):
        if not is_distinctive(tensor):
            continue
        turned = tensor.digest not in owners
        options = owners.get(tensor.turned_digest if turned else tensor.digest)
        if not options:
            continue
        ours, kind = min(options, key=lambda one: _digest_preference(registered[one[0]], tensor, one[1]))
        row, column = row_of.get(position), column_of.get(ours)
        if row is None or column is None:
            found[position] = TensorMatch(ours, position, turned, kind, 1.0, 0.0, 1.0)
        else:
            cosine, change, scale = _difference(cosines, row, column, transposed=turned)
            found[position] = TensorMatch(ours, position, turned, kind, cosine, change, scale)
    return found


def _digest_preference(ours: TensorRecord, theirs: TensorRecord, kind: str) -> tuple[bool, bool, bool, bool]:
    return (kind != EXACT, ours.role != theirs.role, ours.layer != theirs.layer, ours.expert != theirs.expert)


def _by_sketch(found: dict[int, TensorMatch], cosines: SketchCosines) -> None:
    if not cosines.cosines.size:
        return
    least = max(_ACCEPT, _NULL_SPREAD * math.sqrt(2 * math.log(max(cosines.pairs, 2))) + 1.0)
    best = cosines.scores.argmax(axis=1)
    for row, position in enumerate(cosines.suspect.positions.tolist()):
        column = int(best[row])
        if position in found or cosines.scores[row, column] < least:
            continue
        found[position] = _match(cosines, row, column)


def _by_place(
    found: dict[int, TensorMatch],
    registered: Sequence[TensorRecord],
    suspect: Sequence[TensorRecord],
    cosines: SketchCosines,
) -> None:
    """Weaker matches where the suspect's layers have already found theirs: the same role at the expected place."""
    if not found or not cosines.cosines.size:
        return
    layers = layer_map(found.values(), registered, suspect)
    places = {
        (tensor.role, tensor.layer, tensor.expert): column
        for column, tensor in ((c, registered[int(p)]) for c, p in enumerate(cosines.registered.positions))
        if tensor.role not in _PLACELESS
    }
    for row, position in enumerate(cosines.suspect.positions.tolist()):
        tensor = suspect[position]
        if position in found or tensor.role in _PLACELESS or (tensor.layer is not None and tensor.layer not in layers):
            continue
        layer = None if tensor.layer is None else layers[tensor.layer]
        column = places.get((tensor.role, layer, tensor.expert))
        if column is None:
            continue
        if cosines.scores[row, column] >= _ACCEPT_AT_EXPECTED_PLACE:
            found[position] = _match(cosines, row, column)


def layer_map(
    matches: Iterable[TensorMatch], registered: Sequence[TensorRecord], suspect: Sequence[TensorRecord]
) -> dict[int, int]:
    """For each layer of the suspect that has matches, the registered layer that most of its tensors come from."""
    votes: dict[int, Counter[int]] = defaultdict(Counter)
    for match in matches:
        theirs, ours = suspect[match.suspect].layer, registered[match.registered].layer
        if theirs is not None and ours is not None:
            votes[theirs][ours] += 1
    return {layer: counts.most_common(1)[0][0] for layer, counts in sorted(votes.items())}


def _match(cosines: SketchCosines, row: int, column: int) -> TensorMatch:
    transposed = bool(cosines.transposed[row, column])
    cosine, change, scale = _difference(cosines, row, column, transposed=transposed)
    return TensorMatch(
        registered=int(cosines.registered.positions[column]),
        suspect=int(cosines.suspect.positions[row]),
        transposed=transposed,
        digest="",
        cosine=cosine,
        change=change,
        scale=scale,
    )


def _difference(cosines: SketchCosines, row: int, column: int, *, transposed: bool) -> tuple[float, float, float]:
    """Cosine, relative change and scale, from the sketches in float64: a change of 1e-6 is still seen."""
    theirs = cosines.suspect.units[row].astype(np.float64) * float(cosines.suspect.norms[row])
    theirs = theirs.T if transposed else theirs
    ours = cosines.registered.units[column].astype(np.float64) * float(cosines.registered.norms[column])
    length = float(np.linalg.norm(ours))
    product = float(np.sum(theirs * ours))
    cosine = product / (length * max(float(np.linalg.norm(theirs)), 1e-300))
    return cosine, float(np.linalg.norm(theirs - ours)) / length, product / length**2
