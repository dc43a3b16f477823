"""Which tensor of the suspect corresponds to which registered tensor, and how much has changed.

Equal digests first; then the linear sketches, in both orientations, independent of names and order. The cosine of two
k x k sketches of unrelated matrices has a standard deviation of about 1/k; that null is only approximate, so a match
here is a lead for the exact tests and for the description, never evidence by itself.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.measure import matrix_shape
from fingerprint.sketch import chance_spread
from fingerprint.vectors import distinct
from fingerprint.vocabulary import Content, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fingerprint.records import TensorRecord

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

EXACT: Final = "exact"
_ACCEPT: Final = 5.5
_ACCEPT_AT_EXPECTED_PLACE: Final = 3.0
_NULL_SPREAD: Final = 1.25
_PLACELESS: Final = frozenset({Role.OTHER, Role.BUFFER})
_DISTINCTIVE_ELEMENTS: Final = 64
_ALL: Final = slice(None)
_BLOCK_PAIRS: Final = 1 << 21
_PADDING: Final = 0.125
"""Share of its length by which either axis of a matrix may be cut or padded and still be looked for."""
LEADS: Final = 2
"""Tensors of the suspect that each registered tensor is compared with exactly."""


class Difference(NamedTuple):
    """How a suspect's matrix differs from a registered one, as the sketches of the centred matrices estimate it.

    ``cosine`` of the two; ``change``, the Frobenius norm of the difference over that of the registered matrix;
    ``scale``, the least-squares factor from registered to suspect; ``residual``, the norm of what that factor leaves
    over that of the suspect's matrix. Equal digests without sketches count as no difference.
    """

    cosine: float
    change: float
    scale: float
    residual: float


class TensorMatch(Struct, frozen=True):
    """One pair of corresponding tensors, by their positions in the two fingerprints.

    ``digest`` is "exact", the name of the float type after rounding to which the digests agree, or "".
    """

    registered: int
    suspect: int
    transposed: bool
    digest: str
    difference: Difference

    @property
    def cosine(self) -> float:
        """See ``Difference``."""
        return self.difference.cosine

    @property
    def change(self) -> float:
        """See ``Difference``."""
        return self.difference.change

    @property
    def scale(self) -> float:
        """See ``Difference``."""
        return self.difference.scale


class SketchTable:
    """The sketches of one fingerprint as a matrix of unit rows, with their norms; ``positions`` says whose they are.

    ``shapes`` are those of the matrices, ``spreads`` the standard deviations of their cosines with unrelated matrices
    of that shape.

    ``corner`` takes only that many of a sketch's rows and columns: what the index searches.
    """

    def __init__(self, tensors: Sequence[TensorRecord], corner: int | None = None) -> None:
        held = [i for i, tensor in enumerate(tensors) if tensor.sketch is not None]
        self.positions = np.array(held, np.int64)
        first = next((tensors[i].sketch for i in held), None)
        width = (corner or 1) if first is None else len(first[:corner])
        self.units: Float32 = np.zeros((len(held), width, width), np.float32)
        self.norms: Float64 = np.zeros(len(held), np.float64)
        for row, i in enumerate(held):
            sketch = np.asarray(tensors[i].sketch, np.float64)[:corner, :corner]
            # In float64, where the squares of no float32 overflow or vanish.
            norm = float(np.sqrt(np.sum(sketch * sketch)))
            self.norms[row] = norm
            if norm > 0.0:
                self.units[row] = sketch / norm
        self.spreads: Float32 = np.array([chance_spread(tensors[i].shape, width) for i in held], np.float32)
        self.shapes = [matrix_shape(tensors[i].shape) for i in held]

    def __len__(self) -> int:
        return len(self.positions)

    def flat(self, chosen: NDArray[np.int64] | slice = _ALL, *, transposed: bool = False) -> Float32:
        """(n, k * k) unit rows, of the chosen matrices or of their transposes."""
        units = self.units[chosen]
        units = units.transpose(0, 2, 1) if transposed else units
        return np.ascontiguousarray(units).reshape(len(units), units.shape[1] * units.shape[2])


class SketchCosines(Struct, frozen=True):
    """Cosines of all pairs of a suspect's and a registered sketch: of the larger magnitude of the two orientations.

    Only shapes that can correspond are compared, since sketches of a grown axis keep those of its prefix: one axis at
    least must have the same length, or both nearly so. A score is the magnitude over its spread by chance. Of all
    scores the best are kept: ``best`` and ``best_scores`` for each row of ``suspect`` (column -1 and score 0 if it has
    none), and for each row of ``registered`` its ``leads``, (``LEADS``, columns) rows of ``suspect`` or -1, best first,
    with their ``lead_scores``. ``pairs`` counts the comparisons, orientations and all. Memory is linear in the tensors.
    """

    suspect: SketchTable
    registered: SketchTable
    best: NDArray[np.int64]
    best_scores: Float32
    leads: NDArray[np.int64]
    lead_scores: Float32
    pairs: int

    @classmethod
    def of(cls, registered: Sequence[TensorRecord], suspect: Sequence[TensorRecord]) -> SketchCosines:
        """Compare every sketch with every sketch of a shape that can correspond to its own."""
        ours, theirs = SketchTable(registered), SketchTable(suspect)
        best, best_scores = np.full(len(theirs), -1, np.int64), np.zeros(len(theirs), np.float32)
        leads, lead_scores = np.full((LEADS, len(ours)), -1, np.int64), np.zeros((LEADS, len(ours)), np.float32)
        pairs = 0
        for block in _blocks(theirs, ours):
            pairs += block.pairs
            scores = block.scores
            column = scores.argmax(axis=1)
            value = scores[np.arange(len(scores)), column]
            best_scores[block.rows] = value
            best[block.rows] = np.where(value > 0, block.columns[column], -1)
            top = np.argsort(-scores, axis=0, kind="stable")[:LEADS]
            both = np.concatenate([lead_scores[:, block.columns], np.take_along_axis(scores, top, axis=0)])
            rows = np.concatenate([leads[:, block.columns], block.rows[top]])
            order = np.argsort(-both, axis=0, kind="stable")[:LEADS]
            lead_scores[:, block.columns] = np.take_along_axis(both, order, axis=0)
            leads[:, block.columns] = np.take_along_axis(rows, order, axis=0)
        leads[lead_scores == 0] = -1
        return cls(theirs, ours, best, best_scores, leads, lead_scores, pairs)

    @property
    def largest(self) -> float:
        """The largest score of all; 0 without any."""
        return float(self.best_scores.max(initial=0.0))

    @property
    def pairs_by_score(self) -> list[tuple[int, int]]:
        """The leads as (suspect's row, registered one's row), those of the largest scores first."""
        ranks, columns = np.nonzero(self.leads >= 0)
        order = np.argsort(-self.lead_scores[ranks, columns], kind="stable")
        return list(zip(self.leads[ranks, columns][order].tolist(), columns[order].tolist(), strict=True))

    @property
    def scores(self) -> Float32:
        """All scores, (suspect x registered), 0 for pairs left out: for calibration on small models."""
        dense = np.zeros((len(self.suspect), len(self.registered)), np.float32)
        for block in _blocks(self.suspect, self.registered):
            dense[np.ix_(block.rows, block.columns)] = block.scores
        return dense

    def at(self, row: int, column: int) -> Likeness:
        """The better orientation of one pair; a score of 0 if the pair was left out."""
        theirs, ours = self.suspect, self.registered
        spread = max(float(theirs.spreads[row]), float(ours.spreads[column]))
        unit = theirs.units[row]
        cosines = [
            (float(np.sum((unit.T if turned else unit) * ours.units[column])), turned)
            for turned in (False, True)
            if _may_correspond(theirs.shapes[row], ours.shapes[column], turned=turned)
        ]
        cosine, turned = max(cosines, key=lambda one: abs(one[0]), default=(0.0, False))
        return Likeness(abs(cosine) / spread, turned, cosine < 0)


class Likeness(NamedTuple):
    """Score of a pair of sketches, and how the suspect's has to be taken for it: transposed, and with signs changed."""

    score: float
    transposed: bool
    negated: bool


class _Block(Struct, frozen=True):
    """Scores of some rows of the suspect's table with all columns that correspond to them."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    scores: Float32
    pairs: int


def _blocks(theirs: SketchTable, ours: SketchTable) -> Iterator[_Block]:
    """All pairs that can correspond, in blocks of bounded size: every row of ``theirs`` in one block at most."""
    by_rows, by_columns = _by_size(ours.shapes, 0), _by_size(ours.shapes, 1)
    sizes = np.array(ours.shapes, np.int64).reshape(-1, 2)
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, shape in enumerate(theirs.shapes):
        groups[shape].append(row)
    none = np.zeros(0, np.int64)
    for shape, members in groups.items():
        wanted = {
            turned: distinct(by_rows.get(rows, none), by_columns.get(columns, none), _near(sizes, rows, columns))
            for turned, (rows, columns) in ((False, shape), (True, shape[::-1]))
        }
        columns = distinct(wanted[False], wanted[True])
        step = max(1, _BLOCK_PAIRS // max(columns.size, 1))
        for start in range(0, len(members) if columns.size else 0, step):
            rows = np.array(members[start : start + step], np.int64)
            cosines = np.zeros((rows.size, columns.size), np.float32)
            for turned, chosen in wanted.items():
                if chosen.size:
                    found = np.abs(theirs.flat(rows, transposed=turned) @ ours.flat(chosen).T)
                    places = np.searchsorted(columns, chosen)
                    cosines[:, places] = np.maximum(cosines[:, places], found)
            spreads = np.maximum(theirs.spreads[rows][:, None], ours.spreads[columns][None, :])
            yield _Block(
                rows,
                columns,
                (cosines / spreads).astype(np.float32),
                rows.size * sum(one.size for one in wanted.values()),
            )


def _by_size(shapes: Sequence[tuple[int, int]], axis: int) -> dict[int, NDArray[np.int64]]:
    found: dict[int, list[int]] = defaultdict(list)
    for position, shape in enumerate(shapes):
        found[shape[axis]].append(position)
    return {size: np.array(positions, np.int64) for size, positions in found.items()}


def _near(shapes: NDArray[np.int64], rows: int, columns: int) -> NDArray[np.int64]:
    """Which of ``shapes`` (n, 2) differ from (rows, columns) by little along both axes: cut or padded matrices."""
    wanted = np.array([rows, columns])
    near: NDArray[np.int64] = np.flatnonzero(np.all(np.abs(shapes - wanted) <= _PADDING * wanted, axis=1))
    return near


def _may_correspond(suspect: tuple[int, int], registered: tuple[int, int], *, turned: bool) -> bool:
    rows, columns = suspect[::-1] if turned else suspect
    same = rows == registered[0] or columns == registered[1]
    return same or bool(_near(np.array([registered], np.int64), rows, columns).size)


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
    trained = tensor.content in {Content.WEIGHTS, Content.SMALL, Content.VECTOR}
    return trained and tensor.elements >= _DISTINCTIVE_ELEMENTS and bool(tensor.digest or tensor.turned_digest)


def _by_digest(
    registered: Sequence[TensorRecord], suspect: Sequence[TensorRecord], cosines: SketchCosines
) -> dict[int, TensorMatch]:
    owners: dict[bytes, list[tuple[int, str]]] = defaultdict(list)
    at_home: dict[tuple[object, ...], int] = {}
    for position, tensor in enumerate(registered):
        if is_distinctive(tensor):
            owners[tensor.digest].append((position, EXACT))
            at_home.setdefault((tensor.digest, *_home(tensor)), position)
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
        digest = tensor.turned_digest if turned else tensor.digest
        options = owners.get(digest)
        if not options:
            continue
        home = at_home.get((digest, *_home(tensor)))
        if home is not None:  # of many equal tensors the one of this name is found without a look at all others
            options = [(home, EXACT)]
        ours, kind = min(options, key=lambda one: _digest_preference(registered[one[0]], tensor, one[1]))
        row, column = row_of.get(position), column_of.get(ours)
        # Equal contents may have another shape, so that their sketches differ.
        if kind == EXACT or row is None or column is None or tensor.elements != registered[ours].elements:
            found[position] = TensorMatch(ours, position, turned, kind, _EQUAL)
        else:
            difference = _difference(cosines, row, column, transposed=turned)
            found[position] = TensorMatch(ours, position, turned, kind, difference)
    return found


def _home(tensor: TensorRecord) -> tuple[object, ...]:
    """What tells equal tensors apart, what matters most first."""
    return tensor.role, tensor.layer, tensor.expert, tensor.name


def _digest_preference(ours: TensorRecord, theirs: TensorRecord, kind: str) -> tuple[bool, ...]:
    return kind != EXACT, *(one != other for one, other in zip(_home(ours), _home(theirs), strict=True))


def _by_sketch(found: dict[int, TensorMatch], cosines: SketchCosines) -> None:
    if not cosines.pairs:
        return
    least = max(_ACCEPT, _NULL_SPREAD * math.sqrt(2 * math.log(max(cosines.pairs, 2))) + 1.0)
    for row, position in enumerate(cosines.suspect.positions.tolist()):
        column = int(cosines.best[row])
        if position in found or column < 0 or cosines.best_scores[row] < least:
            continue
        found[position] = _match(cosines, row, column)


def _by_place(
    found: dict[int, TensorMatch],
    registered: Sequence[TensorRecord],
    suspect: Sequence[TensorRecord],
    cosines: SketchCosines,
) -> None:
    """Weaker matches where the suspect's layers have already found theirs: the same role at the expected place."""
    if not found or not cosines.pairs:
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
        if cosines.at(row, column).score >= _ACCEPT_AT_EXPECTED_PLACE:
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
    transposed = cosines.at(row, column).transposed
    return TensorMatch(
        registered=int(cosines.registered.positions[column]),
        suspect=int(cosines.suspect.positions[row]),
        transposed=transposed,
        digest="",
        difference=_difference(cosines, row, column, transposed=transposed),
    )


def _difference(cosines: SketchCosines, row: int, column: int, *, transposed: bool) -> Difference:
    """From the sketches in float64: a change of 1e-6 is still seen."""
    theirs = cosines.suspect.units[row].astype(np.float64)
    theirs = theirs.T if transposed else theirs
    ours = cosines.registered.units[column].astype(np.float64)
    if not ours.any():
        # Nothing of the registered matrix is left without its means: nothing can be said but that it is equal or not.
        return _EQUAL
    # Of their units first, then in the registered matrix's own length: no square of a large number overflows.
    relative = float(cosines.suspect.norms[row]) / float(cosines.registered.norms[column])
    length = float(np.linalg.norm(ours))
    if not theirs.any():
        return Difference(0.0, 1.0, 0.0, 1.0)
    factor = float(np.sum(theirs * ours)) / length**2
    return Difference(
        cosine=factor * length / float(np.linalg.norm(theirs)),
        change=float(np.linalg.norm(theirs * relative - ours)) / length,
        scale=factor * relative,
        residual=float(np.linalg.norm(theirs - factor * ours) / np.linalg.norm(theirs)),
    )


_EQUAL: Final = Difference(1.0, 0.0, 1.0, 0.0)
