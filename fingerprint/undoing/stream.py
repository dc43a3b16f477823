"""The rotation between two residual streams: from embeddings, or from neurons in their layers' own frames."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from fingerprint.comparing.procrustes import match_self_frames
from fingerprint.undoing.algebra import directions, partners, rotation_between
from fingerprint.vectors import median, row_norms, unit_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fingerprint.undoing.anatomy import Anatomy, MlpParts, Part

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

MOST_WIDTH: Final = 1 << 13
"""Widest stream whose rotation is recovered: a matrix of 256 MB, and a singular value decomposition of it."""
MOST_TOKENS: Final = 1 << 13
"""Tokens that are compared and scored, the first ones."""
_GLANCED: Final = 128
_DIRECTIONS: Final = 128
_CLEAR: Final = 0.8
_ROUNDS: Final = 3
_BETTER: Final = 0.5
_SNAPPED: Final = 0.9
_ONE: Final = 0.03
_ALIKE: Final = 1.1
_SEED: Final = 20260


class Pair(Struct, frozen=True):
    """An MLP of ours and the one of theirs that it is taken to be. ``fitted``: whether the rotation was fitted on it,
    in which case its neurons' order may be too."""

    ours: MlpParts
    theirs: MlpParts
    fitted: bool


class Tokens(Struct, frozen=True):
    """Tables of tokens that belong together; ``order`` (rows of theirs,) are rows of ours, -1 for none."""

    ours: Part
    theirs: Part
    order: Int64
    moved: float


class Stream(Struct, frozen=True):
    """``theirs = ours @ rotation`` for rows on the residual stream; what writes to it is ``scale`` times as large.

    ``kind`` says what the rotation is: ``as-it-was``, ``permuted``, ``rotated``; ``angle`` is ``|R - 1| / sqrt(2 d)``:
    0 for none, 1 for a random one. ``source`` is what it was first found from.
    """

    rotation: Float32
    scale: float
    kind: str
    angle: float
    source: str
    from_tokens: bool
    pairs: tuple[Pair, ...]
    tokens: Tokens | None

    def turned(self, rows: Float32, *, writes: bool = False) -> Float32:
        """Rows of ours as they should be in theirs."""
        found: Float32 = rows if self.kind == "as-it-was" else rows @ self.rotation
        return found * np.float32(self.scale) if writes and self.scale != 1.0 else found


class _Try(Struct, frozen=True):
    rotation: Float32
    source: str
    tables: tuple[Part, Part] | None
    score: float
    pairs: tuple[Pair, ...]


def find_stream(ours: Anatomy, theirs: Anatomy, *, centred: bool) -> tuple[float, Stream]:
    """The rotation that makes the MLPs' gates most alike, refined on every second MLP of ours.

    How alike they are (0 to 1) comes first. Raises ``InputError``.

    Both streams are equally wide. Candidates: none; Procrustes between embeddings of equal tokens or positions; neurons
    matched by descriptors that no rotation changes. Nothing is fitted on the other MLPs, nor on attention.
    """
    glance = _Glance(ours, theirs, centred=centred)
    tries = [glance.judge(np.eye(ours.width, dtype=np.float32), "no rotation", None)]
    tables = list(product(ours.tables, theirs.tables))
    places = [] if ours.positions is None or theirs.positions is None else [(ours.positions, theirs.positions)]
    for source, options in (("tokens", tables), ("positions", places)):
        for mine, its in options:
            first, second = (one.rows(centred=centred, most=MOST_TOKENS) for one in (mine, its))
            count = min(len(first), len(second))
            pairs = [(unit_rows(_centre(first[:count])), unit_rows(_centre(second[:count])))]
            rotation = rotation_between(pairs, ours.width)
            tries.append(glance.judge(rotation, source, (mine, its) if source == "tokens" else None))
    best = max(tries, key=lambda one: one.score)
    if best.score < _CLEAR and ours.mlps and theirs.mlps:
        from_neurons = _from_own_frames(ours, theirs, centred=centred)
        if from_neurons is not None:
            tries.append(glance.judge(from_neurons, "neurons", None))
            best = max(tries, key=lambda one: one.score)
    for _ in range(_ROUNDS if any(pair.fitted for pair in best.pairs) else 0):
        best = _refined(best, ours.width, glance, centred=centred)
    rotation, kind = _snapped(best.rotation)
    angle = float(np.linalg.norm(rotation - np.eye(ours.width)) / np.sqrt(2 * ours.width))
    stream = Stream(rotation, 1.0, kind, angle, best.source, best.source == "tokens", best.pairs, None)
    tokens = _tokens(ours, theirs, stream, best.tables, centred=centred)
    return best.score, replace(stream, tokens=tokens, scale=_scale(stream, tokens, centred=centred))


class _Glance:
    """How alike the MLPs are under a rotation: by the rows of largest norm of our gates among all of theirs."""

    def __init__(self, ours: Anatomy, theirs: Anatomy, *, centred: bool) -> None:
        width = ours.width
        random = np.random.default_rng(_SEED)
        count = min(_DIRECTIONS, width)
        self._directions = random.standard_normal((width, count), dtype=np.float32)
        self._ours, self._theirs = ours.mlps, theirs.mlps
        self._rows = [_largest(one.gate.rows(centred=centred)) for one in ours.mlps]
        exchange = not all(one.sure for one in (*ours.mlps, *theirs.mlps))
        self._readings = [
            (number, turned, unit_rows(_centre(reading.gate.rows(centred=centred)) @ self._directions))
            for number, one in enumerate(theirs.mlps)
            for turned, reading in ((False, one), (True, one.exchanged()))[: 2 if exchange else 1]
        ]

    def judge(self, rotation: Float32, source: str, tables: tuple[Part, Part] | None) -> _Try:
        """The best partner of each of their MLPs, and how good these are on the whole."""
        turned = rotation @ self._directions
        sketches = [unit_rows(rows @ turned) for rows in self._rows]
        scores = np.array(
            [
                [float((mine @ its.T).max(axis=1).mean()) if self._fits(i, number) else -1.0
                 for number, _, its in self._readings]
                for i, mine in enumerate(sketches)
            ]
        ).reshape(len(sketches), len(self._readings))  # fmt: skip
        pairs, best = [], []
        for number, row, exchanged, score in self._choose(scores):
            one = self._theirs[number]
            best.append(score)
            fitted = row % 2 == 0 and len(self._ours) > 1
            pairs.append(Pair(self._ours[row], one.exchanged() if exchanged else one, fitted))
        return _Try(rotation, source, tables, float(np.mean(best)) if best else 0.0, tuple(pairs))

    def _choose(self, scores: NDArray[np.float64]) -> list[tuple[int, int, bool, float]]:
        """For each of their MLPs one of ours, whether it is read exchanged, and the score; each of ours once, unless
        they have more."""
        if not scores.size:
            return []
        numbers = np.array([reading[0] for reading in self._readings])
        best = np.stack([scores[:, numbers == number].max(axis=1) for number in range(len(self._theirs))], axis=1)
        rows = best.argmax(axis=0)
        if len(self._theirs) <= len(self._ours):
            chosen, columns = linear_sum_assignment(-best)
            rows[columns] = chosen
        found = []
        for number, row in enumerate(rows.tolist()):
            readings = np.flatnonzero(numbers == number)
            place = int(readings[int(scores[row, readings].argmax())])
            if scores[row, place] >= 0.0:
                found.append((number, row, self._readings[place][1], float(scores[row, place])))
        return found

    def _fits(self, mine: int, its: int) -> bool:
        return (self._ours[mine].up is None) == (self._theirs[its].up is None)


def _centre(rows: Float32) -> Float32:
    found: Float32 = rows - rows.mean(axis=0)
    return found


def _largest(rows: Float32) -> Float32:
    rows = _centre(rows)
    return rows[np.argsort(-row_norms(rows), kind="stable")[:_GLANCED]]


def _from_own_frames(ours: Anatomy, theirs: Anatomy, *, centred: bool) -> Float32 | None:
    """The rotation that carries matched neurons onto each other, the better half of each MLP's."""
    matches = match_self_frames(ours.samples, theirs.samples)

    def pairs() -> Iterator[tuple[Float32, Float32]]:
        for match in matches:
            mine, its = ours.samples[match.registered], theirs.samples[match.suspect]
            number = ours.at[mine.tensors[0]]
            if number % 2 and len(ours.mlps) > 1:
                continue
            one, other = ours.mlps[number], theirs.mlps[theirs.at[its.tensors[0]]]
            if its.tensors[0] != other.gate.position:
                other = other.exchanged()
            good = match.scores >= median(match.scores)
            rows, partners_ = mine.indices[good], its.indices[match.partners[good]]
            signs = np.where(match.coins[good] < 0, -1.0, 1.0).astype(np.float32)[:, None]
            for first, second, sign in (
                (one.gate, other.gate, None),
                (one.up, other.up, signs),
                (one.down, other.down, signs),
            ):
                if first is not None and second is not None:
                    left = unit_rows(first.rows(centred=centred)[rows])
                    yield left if sign is None else left * sign, unit_rows(second.rows(centred=centred)[partners_])

    found = list(pairs())
    return rotation_between(found, ours.width) if found else None


def _refined(best: _Try, width: int, glance: _Glance, *, centred: bool) -> _Try:
    """The rotation fitted on all neurons of the fitted pairs, and on the tokens that it was found from."""

    def pairs() -> Iterator[tuple[Float32, Float32]]:
        if best.tables is not None:
            first, second = (unit_rows(_centre(one.rows(centred=centred, most=MOST_TOKENS))) for one in best.tables)
            count = min(len(first), len(second))
            yield first[:count], second[:count]
        for pair in best.pairs:
            if pair.fitted:
                yield from _joined(pair, best.rotation, centred=centred)

    again = glance.judge(rotation_between(pairs(), width), best.source, best.tables)
    return again if again.score >= best.score - 1e-3 else best


def _joined(pair: Pair, rotation: Float32, *, centred: bool) -> Iterator[tuple[Float32, Float32]]:
    """Rows of ours and of theirs of the neurons that match better than the median."""
    mine, its = neuron_rows(pair.ours, centred=centred), neuron_rows(pair.theirs, centred=centred)
    turned = [rows @ rotation for rows in mine]
    order, value = joint_partners(turned, its)
    good = (order >= 0) & (value >= median(value) * _BETTER * 2)
    sign = np.ones((int(good.sum()), 1), np.float32)
    if len(mine) == 3:
        agreement = sum(
            np.einsum("ij,ij->i", unit_rows(one[order[good]]), unit_rows(other[good]))
            for one, other in zip(turned[1:], its[1:], strict=True)
        )
        sign[:, 0] = np.where(agreement < 0, -1.0, 1.0)
    for number, (one, other) in enumerate(zip(mine, its, strict=True)):
        left = unit_rows(one[order[good]])
        yield (left * sign if number and len(mine) == 3 else left), unit_rows(other[good])


def neuron_rows(mlp: MlpParts, *, centred: bool) -> list[Float32]:
    """Rows of gate, up (if any) and down, each (neurons, width)."""
    return [part.rows(centred=centred) for part in (mlp.gate, mlp.up, mlp.down) if part is not None]


def joint_partners(ours: Sequence[Float32], theirs: Sequence[Float32]) -> tuple[Int64, Float32]:
    """Partners by all matrices of two MLPs together, ours turned already."""
    frame = directions(ours[0].shape[1], _SEED)
    first, second = (list(side) if frame is None else [rows @ frame for rows in side] for side in (ours, theirs))
    return partners(first, second, fixed=(True, False, False) if len(first) == 3 else (True,) * len(first))


def gate_partners(ours: Float32, theirs: Float32) -> tuple[Int64, Float32]:
    """Partners by one matrix alone, whose mean row is taken out: all neurons may share it."""
    frame = directions(ours.shape[1], _SEED)
    first, second = _centre(ours), _centre(theirs)
    if frame is not None:
        first, second = first @ frame, second @ frame
    return partners([first], [second], fixed=(True,))


def _snapped(rotation: Float32) -> tuple[Float32, str]:
    """A rotation that is nearly a signed permutation is one, and nearly none is none."""
    rows, columns = linear_sum_assignment(-np.abs(rotation))
    entries = rotation[rows, columns]
    if float(np.abs(entries).mean()) < _SNAPPED:
        return rotation, "rotated"
    snapped = np.zeros_like(rotation)
    snapped[rows, columns] = np.sign(entries)
    if np.array_equal(rows, columns) and float(np.mean(entries > 0)) > 1.0 - _ONE:
        return np.eye(len(rotation), dtype=np.float32), "as-it-was"
    return snapped, "permuted"


def _tokens(
    ours: Anatomy, theirs: Anatomy, stream: Stream, tables: tuple[Part, Part] | None, *, centred: bool
) -> Tokens | None:
    """Which of their tokens are which of ours: by number if that fits as well as any order, else by their rows."""
    options = [tables] if tables is not None else list(product(ours.tables, theirs.tables))
    found: tuple[float, Tokens] | None = None
    for mine, its in options:
        first, second = (one.rows(centred=centred, most=MOST_TOKENS) for one in (mine, its))
        turned = stream.turned(first)
        count = min(len(turned), len(second))
        # What all rows share makes any two alike, and would hide that tokens were moved.
        pair = unit_rows(_centre(turned)[:count]), unit_rows(_centre(second)[:count])
        by_number = float(np.einsum("ij,ij->i", *pair).mean())
        order, value = gate_partners(turned, second)
        by_row = float(value.mean())
        if by_number >= _CLEAR * by_row:
            order = np.where(np.arange(len(second)) < count, np.arange(len(second)), -1)
        moved = float(np.mean(order[:count] != np.arange(count)))
        tokens = Tokens(mine, its, order, moved)
        if found is None or max(by_number, by_row) > found[0]:
            found = max(by_number, by_row), tokens
    return None if found is None else found[1]


def _scale(stream: Stream, tokens: Tokens | None, *, centred: bool) -> float:
    """How much larger the stream is, by embeddings and by what each fitted MLP writes; 1 where these disagree.

    Training changes them apart from each other, a rewrite all alike.
    """
    sizes: list[float] = []
    if tokens is not None:
        mine, its = (one.rows(centred=centred, most=MOST_TOKENS) for one in (tokens.ours, tokens.theirs))
        both = tokens.order >= 0
        sizes.append(float(np.linalg.norm(its[both]) / max(float(np.linalg.norm(mine[tokens.order[both]])), 1e-30)))
    for pair in stream.pairs:
        if pair.fitted:
            norms = [
                np.prod([np.linalg.norm(rows, axis=1) for rows in neuron_rows(one, centred=centred)[1:]], axis=0)
                for one in (pair.ours, pair.theirs)
            ]
            sizes.append(median(norms[1]) / max(median(norms[0]), 1e-30))
    if not sizes or min(sizes) <= 0.0 or max(sizes) > _ALIKE * min(sizes):
        return 1.0
    scale = median(sizes)
    return 1.0 if abs(scale - 1.0) < _ONE else scale
