"""Which registered models add up to the suspect, with what coefficients: linear algebra on the sketches.

Sketches are linear, so ``S(suspect) = sum_i w_i S(registered_i)`` holds for a linear merge exactly, and the
least-squares coefficients of the sketches estimate those of the full weights. Models are taken one by one, greedily, as
a set cover, and only while each new one explains most of what is left: an unrelated model explains one part in the
number of sketch entries, and a sibling some of what its own training has in common with the suspect's.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.units import first_of, unit_of
from signatures.change import whiteness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import AxisSample, Fingerprint, TensorRecord
    from fingerprint.vocabulary import Role

Float64 = NDArray[np.float64]

MUST_EXPLAIN: Final = 0.5
"""Share of the squared residual that a further model must remove."""
LEAST_RESIDUAL: Final = 1e-3
"""Relative residual (not squared) below which nothing is left to explain."""
LEAST_COEFFICIENT: Final = 0.02
_ROUNDING: Final = 1e-7
"""Relative residual below which nothing but rounding is left: it comes out of a difference of squares."""
_SINGULAR: Final = 1e-12
"""Of the product of two squared lengths: what two candidates that are one leave of their determinant."""
MOST_MODELS: Final = 8
MOST_TENSORS: Final = 1024
"""Matched tensors of the suspect that take part, the first by the order of their units."""
_PASSTHROUGH: Final = 0.1
_PARTLY_EXPLAINS: Final = 0.2
_WHITE_REMAINDER: Final = 0.82
_SLICES_WEIGHT: Final = 0.25
"""Weight of the slices of each axis among a tensor's features; the sketch has the rest."""

_Place = tuple["Role", int | None, int | None, tuple[int, ...]]


class Group(Struct, frozen=True):
    """Tensors of one layer of the suspect; of none, if ``layer`` is None.

    Where the suspect's layers have no numbers, ``layer`` is that of the registered layer, and ``candidate`` whose.
    """

    layer: int | None
    candidate: int | None


class Cover(Struct, frozen=True):
    """A greedy cover: positions among the candidates with their coefficients, and the relative residual left.

    ``groups`` holds the cover of every group of the suspect's tensors (a layer).
    """

    coefficients: dict[int, float]
    residual: float
    groups: dict[Group, dict[int, float]]

    @property
    def models(self) -> set[int]:
        """Every candidate that the whole or any group needs."""
        return set(self.coefficients).union(*self.groups.values()) if self.groups else set(self.coefficients)


def gather(suspect: Fingerprint, candidates: Sequence[Comparison]) -> Cover | None:
    """Cover the suspect's sketches with those of the candidates, as a whole and layer by layer.

    ``candidates`` are comparisons with the same suspect, the strongest first. None without a single matched sketch.
    """
    design = _Design(suspect, candidates)
    whole = design.inner(design.members)
    if whole[0, 0] <= 0.0:
        return None
    coefficients, residual = _greedy(whole)
    groups, inner, squares = {}, {}, 0.0
    for label, members in design.groups().items():
        inner[label] = design.inner(members)
        groups[label], rest = _of_group(inner[label], set(coefficients))
        squares += rest**2 * inner[label][0, 0]
    apart = math.sqrt(squares / whole[0, 0])
    needed = set(coefficients).union(*groups.values())
    if len(needed) == 1:
        needed |= _minor_partner(design, whole, next(iter(needed)))
    if len(needed) > 1:
        coefficients, residual = _fit(whole, sorted(needed))
        if residual > apart + _PASSTHROUGH:
            # Layers come whole from different models: their shares describe that, one fit over all of them does not.
            coefficients = {
                index: float(
                    sum(found.get(index, 0.0) * inner[label][0, 0] for label, found in groups.items()) / whole[0, 0]
                )
                for index in needed
            }
            residual = apart
    return Cover(coefficients, design.of_whole(residual), groups)


class _Design:
    """For every matched tensor of the suspect, the inner products of its features and of those of the corresponding
    tensors of the candidates.

    A tensor's features are its sketch and its sampled slices, scaled so that inner products of features estimate inner
    products of matrices: three estimates with errors of their own, of which the sketch counts half.
    """

    def __init__(self, suspect: Fingerprint, candidates: Sequence[Comparison]) -> None:
        self.suspect = suspect
        self._group_of: dict[int, Group] = {}
        self._of: dict[int, tuple[list[AxisSample], dict[int, tuple[TensorRecord, bool]]]] = {}
        self._products: dict[int, Float64] = {}
        self._width = next((len(one.sketch) for one in suspect.tensors if one.sketch is not None), 0)
        # Slices and sketches cannot be added up: candidates that were compared otherwise than the first take no part.
        alike = [candidate.sampled == candidates[0].sampled for candidate in candidates]
        self._matches = [
            {match.suspect: match for match in one.matches} if takes_part else {}
            for one, takes_part in zip(candidates, alike, strict=True)
        ]
        self._places = [
            _places(one.registered) if takes_part else {} for one, takes_part in zip(candidates, alike, strict=True)
        ]
        matched = sorted(set().union(*self._matches))
        units = [unit_of(suspect.tensors[i].layer, suspect.tensors[i].expert) for i in matched]
        used = {matched[i] for i in first_of(units, MOST_TENSORS)}
        self._left_out = set(matched) - used
        for number, (candidate, matches) in enumerate(zip(candidates, self._matches, strict=True)):
            for position, match in matches.items():
                ours = candidate.registered.tensors[match.registered]
                theirs = suspect.tensors[position]
                if position not in used or theirs.sketch is None or ours.sketch is None or position in self._of:
                    continue
                own = theirs.layer is not None or ours.layer is None
                self._group_of[position] = Group(theirs.layer, None) if own else Group(ours.layer, number)
                counterparts = dict(self._counterparts(position, ours, match.transposed, candidates))
                self._of[position] = _common_axes(theirs, ours, turned=match.transposed), counterparts
                self._products[position] = self._inner_products(position, len(candidates))

    @property
    def members(self) -> list[int]:
        """The suspect's tensors that take part."""
        return list(self._of)

    def inner(self, members: Sequence[int]) -> Float64:
        """Inner products (k + 1, k + 1) over those tensors: of the suspect, which comes first, and of all candidates;
        zeros where a candidate has no counterpart."""
        size = 1 + len(self._matches)
        total: Float64 = sum((self._products[i] for i in members), np.zeros((size, size)))
        return total

    def _inner_products(self, position: int, candidates: int) -> Float64:
        numbers = [0, *(1 + index for index in self._of[position][1])]
        features = np.stack([self._target(position), *(self._column(position, i - 1) for i in numbers[1:])])
        products = np.zeros((1 + candidates,) * 2)
        products[np.ix_(numbers, numbers)] = features @ features.T
        return products

    def _target(self, position: int) -> Float64:
        return _features(self.suspect.tensors[position], self._of[position][0], turned=False)

    def _column(self, position: int, index: int) -> Float64:
        axes, counterparts = self._of[position]
        record, turned = counterparts[index]
        return _features(record, axes, turned=turned)

    def _counterparts(
        self, position: int, ours: TensorRecord, transposed: bool, candidates: Sequence[Comparison]
    ) -> Iterator[tuple[int, tuple[TensorRecord, bool]]]:
        """Each candidate's own match of this tensor, or else its tensor at the same place of the same architecture."""
        for index, candidate in enumerate(candidates):
            own = self._matches[index].get(position)
            if own is not None:
                record = candidate.registered.tensors[own.registered]
                if record.sketch is not None:
                    yield index, (record, own.transposed)
            elif (place := self._places[index].get(_place(ours))) is not None:
                yield index, (place, transposed)

    def left_of(self, member: int, coefficients: Mapping[int, float]) -> Float64:
        """What the weighted sum of the candidates' counterparts leaves of the sketch of a tensor, up to scale."""
        left = self._target(member)
        for index, weight in coefficients.items():
            if index in self._of[member][1]:
                left = left - weight * self._column(member, index)
        return left[: self._width**2].reshape(self._width, self._width)

    def of_whole(self, residual: float) -> float:
        """The relative residual on the matched tensors turned into that on all sketched tensors of the suspect."""
        matched = float(self.inner(self.members)[0, 0])
        rest = sum(
            float(np.sum(tensor.sketch.astype(np.float64) ** 2))
            for position, tensor in enumerate(self.suspect.tensors)
            if tensor.sketch is not None and position not in self._of and position not in self._left_out
        )
        return float(np.sqrt((residual**2 * matched + rest) / (matched + rest))) if matched + rest else 0.0

    def groups(self) -> dict[Group, list[int]]:
        """Tensors by layer of the suspect."""
        groups: dict[Group, list[int]] = defaultdict(list)
        for position, group in self._group_of.items():
            groups[group].append(position)
        return dict(groups)


def _features(record: TensorRecord, axes: Sequence[AxisSample], *, turned: bool) -> Float64:
    """The features of ``record``, turned if asked for, on the slices that ``axes`` sample; zeros for absent ones."""
    if record.sketch is None:
        raise ValueError("a tensor without a sketch has no features")
    sketch = record.sketch.astype(np.float64)
    parts = [math.sqrt(1.0 - _SLICES_WEIGHT * len(axes)) * (sketch.T if turned else sketch).reshape(-1)]
    samples = _samples(record, turned=turned)
    for wanted in axes:
        sample = samples.get(wanted.dimension)
        if sample is None or not np.array_equal(sample.indices, wanted.indices):
            parts.append(np.zeros(wanted.values.size))
        else:
            scale = math.sqrt(_SLICES_WEIGHT * sample.size / len(sample.indices))
            parts.append(scale * sample.values.astype(np.float64).reshape(-1))
    return np.concatenate(parts)


def _samples(record: TensorRecord, *, turned: bool) -> dict[int, AxisSample]:
    """Samples of a tensor's axes by dimension, as they are after turning."""
    return {1 - sample.dimension if turned else sample.dimension: sample for sample in record.axes}


def _common_axes(theirs: TensorRecord, ours: TensorRecord, *, turned: bool) -> list[AxisSample]:
    """The suspect's samples of those axes that the registered tensor samples at the same numbers: not of grown axes."""
    samples = _samples(ours, turned=turned)
    return [
        sample
        for sample in theirs.axes
        if sample.dimension in samples and np.array_equal(samples[sample.dimension].indices, sample.indices)
    ]


def _place(tensor: TensorRecord) -> _Place:
    return tensor.role, tensor.layer, tensor.expert, tensor.shape


def _places(registered: Fingerprint) -> dict[_Place, TensorRecord]:
    """Sketched tensors by place; a place that several share (two stacks of layers) belongs to none."""
    counts = Counter(_place(tensor) for tensor in registered.tensors if tensor.sketch is not None)
    return {
        _place(tensor): tensor
        for tensor in registered.tensors
        if tensor.sketch is not None and counts[_place(tensor)] == 1
    }


def _of_group(inner: Float64, overall: set[int]) -> tuple[dict[int, float], float]:
    """Coefficients and relative residual of one group: another model than the one that explains the whole suspect only
    if it explains most of what that one leaves there.

    Embeddings of two fine-tunes on like text are nearer to each other than to their base's.
    """
    found, rest = _greedy(inner)
    if len(overall) != 1 or set(found) == overall:
        return found, rest
    plain, left = _fit(inner, sorted(overall))
    return (plain, left) if rest**2 > (1 - MUST_EXPLAIN) * left**2 else (found, rest)


def _minor_partner(design: _Design, whole: Float64, major: int) -> set[int]:
    """A second model that explains part of what the first leaves, if only noise is left then.

    A sibling explains some of a further training too, since independent trainings of one parent have related
    differences; but what is left then is training, which concentrates in few directions. Merging with trimming (TIES)
    leaves something white.
    """
    before = _fit(whole, [major])[1]
    if before <= LEAST_RESIDUAL:
        return set()
    fits = {index: _fit(whole, [major, index]) for index in _present(whole) if index != major}
    if not fits:
        return set()
    partner = min(fits, key=lambda index: fits[index][1])
    coefficients, after = fits[partner]
    explained = 1.0 - (after / before) ** 2
    if explained < _PARTLY_EXPLAINS or min(coefficients.values()) < LEAST_COEFFICIENT:
        return set()
    left = [whiteness(design.left_of(i, coefficients), design.suspect.tensors[i].shape) for i in design.members]
    return {partner} if float(np.mean(left)) >= _WHITE_REMAINDER else set()


def _present(inner: Float64) -> list[int]:
    """The candidates with a counterpart, other than zeros, of any of the tensors."""
    return np.flatnonzero(np.diag(inner)[1:] > 0.0).tolist()


def _fit(inner: Float64, chosen: Sequence[int]) -> tuple[dict[int, float], float]:
    """Non-negative least squares on the given candidates, by inner products: coefficients and relative residual."""
    places = [0, *(1 + index for index in chosen)]
    among = inner[np.ix_(places, places)]
    if among[0, 0] <= 0.0:
        return dict.fromkeys(chosen, 0.0), 0.0
    weights = _weights(among)
    difference = np.array([1.0, *(-weight for weight in weights)])
    left = math.sqrt(max(float(difference @ among @ difference), 0.0) / among[0, 0])
    return dict(zip(chosen, weights, strict=True)), left if left > _ROUNDING else 0.0


def _weights(inner: Float64) -> list[float]:
    """Those that are not negative and leave least of what comes first."""
    products, squares = inner[0, 1:], np.diag(inner)[1:]
    alone = np.divide(np.maximum(products, 0.0), squares, out=np.zeros(len(squares)), where=squares > 0.0)
    if len(squares) == 1:
        return [float(alone[0])]
    if len(squares) == 2:
        one, other = squares.tolist()
        cross = float(inner[1, 2])
        determinant = one * other - cross**2
        if determinant > _SINGULAR * one * other:
            first = (other * products[0] - cross * products[1]) / determinant
            second = (one * products[1] - cross * products[0]) / determinant
            if first >= 0.0 and second >= 0.0:
                return [float(first), float(second)]
        better = int(np.argmax(alone * np.maximum(products, 0.0)))
        return [float(alone[0]), 0.0] if better == 0 else [0.0, float(alone[1])]
    from scipy.optimize import nnls  # takes half a second, and mixtures of three are rare

    values, vectors = np.linalg.eigh(inner)
    factor = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T  # its columns have these inner products
    found, _ = nnls(factor[:, 1:], factor[:, 0])
    return [float(weight) for weight in found]


def _greedy(inner: Float64) -> tuple[dict[int, float], float]:
    """Take candidates one by one while each explains most of what is left; coefficients and relative residual."""
    options = _present(inner)
    chosen: dict[int, float] = {}
    left = 1.0
    while len(chosen) < min(MOST_MODELS, len(options)) and left > LEAST_RESIDUAL:
        trials = [_fit(inner, [*chosen, index]) for index in options if index not in chosen]
        # Of candidates that explain the same (one model, registered twice) every group takes the strongest.
        least = min(rest for _, rest in trials)
        solution, rest = next(trial for trial in trials if trial[1] <= least + LEAST_RESIDUAL)
        too_little = bool(chosen) and rest**2 > (1 - MUST_EXPLAIN) * left**2
        if too_little or min(solution.values()) < LEAST_COEFFICIENT:
            break
        chosen, left = solution, rest
    return chosen, left
