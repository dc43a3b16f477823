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
    from collections.abc import Iterator, Sequence

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import AxisSample, Fingerprint, TensorRecord
    from fingerprint.vocabulary import Role

Float64 = NDArray[np.float64]

MUST_EXPLAIN: Final = 0.5
"""Share of the squared residual that a further model must remove."""
LEAST_RESIDUAL: Final = 1e-3
"""Relative residual (not squared) below which nothing is left to explain."""
LEAST_COEFFICIENT: Final = 0.02
MOST_MODELS: Final = 8
MOST_TENSORS: Final = 1024
"""Matched tensors of the suspect that take part, the first by the order of their units: 24 KB each and candidate."""
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
    if not design.targets or design.energy(list(design.targets)) <= 0.0:
        return None
    members = list(design.targets)
    coefficients, residual = _greedy(design, members)
    groups, squares = {}, 0.0
    for label, part in design.groups().items():
        groups[label], rest = _of_group(design, part, set(coefficients))
        squares += rest**2 * design.energy(part)
    apart = float(np.sqrt(squares / design.energy(members)))
    needed = set(coefficients).union(*groups.values())
    if len(needed) == 1:
        needed |= _minor_partner(design, members, next(iter(needed)))
    if len(needed) > 1:
        coefficients, residual = _fit(design, members, sorted(needed))
        if residual > apart + _PASSTHROUGH:
            # Layers come whole from different models: their shares describe that, one fit over all of them does not.
            total = design.energy(members)
            coefficients = {
                index: sum(
                    groups[label].get(index, 0.0) * design.energy(part) / total
                    for label, part in design.groups().items()
                )
                for index in needed
            }
            residual = apart
    return Cover(coefficients, design.of_whole(residual), groups)


class _Design:
    """For every matched tensor of the suspect, its features and those of the corresponding tensor of every candidate.

    A tensor's features are its sketch and its sampled slices, scaled so that inner products of features estimate inner
    products of matrices: three estimates with errors of their own, of which the sketch counts half.
    """

    def __init__(self, suspect: Fingerprint, candidates: Sequence[Comparison]) -> None:
        self.suspect = suspect
        self.targets: dict[int, Float64] = {}
        self.columns: dict[int, dict[int, Float64]] = {}
        self._group_of: dict[int, Group] = {}
        self.number = len(candidates)
        self.width = next((len(one.sketch) for one in suspect.tensors if one.sketch is not None), 0)
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
                if position not in used or theirs.sketch is None or ours.sketch is None or position in self.targets:
                    continue
                axes = _common_axes(theirs, ours, turned=match.transposed)
                self.targets[position] = _features(theirs, axes, turned=False)
                own = theirs.layer is not None or ours.layer is None
                self._group_of[position] = Group(theirs.layer, None) if own else Group(ours.layer, number)
                self.columns[position] = {
                    index: _features(record, axes, turned=turned)
                    for index, (record, turned) in self._counterparts(position, ours, match.transposed, candidates)
                }

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

    def sketch_of(self, features: Float64) -> Float64:
        """The (k, k) sketch among a tensor's features, up to scale."""
        return features[: self.width**2].reshape(self.width, self.width)

    def has(self, index: int, members: list[int]) -> bool:
        """Whether candidate ``index`` has a counterpart, other than zeros, of any of those tensors."""
        return any(column.any() for i in members if (column := self.columns[i].get(index)) is not None)

    def column(self, index: int, members: list[int]) -> Float64:
        """The counterparts in candidate ``index`` of those tensors, flattened; zeros where it has none."""
        return np.concatenate([self.columns[i].get(index, np.zeros(self.targets[i].size)) for i in members])

    def combined(self, member: int, coefficients: dict[int, float]) -> Float64:
        """The weighted sum of the candidates' counterparts of one tensor, flattened."""
        total = np.zeros_like(self.targets[member])
        for index, weight in coefficients.items():
            column = self.columns[member].get(index)
            if column is not None:
                total += weight * column
        return total

    def energy(self, members: list[int]) -> float:
        """Sum of the squared norms of those of the suspect's sketches."""
        return sum(float(self.targets[i] @ self.targets[i]) for i in members)

    def of_whole(self, residual: float) -> float:
        """The relative residual on the matched tensors turned into that on all sketched tensors of the suspect."""
        matched = self.energy(list(self.targets))
        rest = sum(
            float(np.sum(tensor.sketch.astype(np.float64) ** 2))
            for position, tensor in enumerate(self.suspect.tensors)
            if tensor.sketch is not None and position not in self.targets and position not in self._left_out
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


def _of_group(design: _Design, members: list[int], overall: set[int]) -> tuple[dict[int, float], float]:
    """Coefficients and relative residual of one group: another model than the one that explains the whole suspect only
    if it explains most of what that one leaves there.

    Embeddings of two fine-tunes on like text are nearer to each other than to their base's.
    """
    found, rest = _greedy(design, members)
    if len(overall) != 1 or set(found) == overall:
        return found, rest
    plain, left = _fit(design, members, sorted(overall))
    return (plain, left) if rest**2 > (1 - MUST_EXPLAIN) * left**2 else (found, rest)


def _minor_partner(design: _Design, members: list[int], major: int) -> set[int]:
    """A second model that explains part of what the first leaves, if only noise is left then.

    A sibling explains some of a further training too, since independent trainings of one parent have related
    differences; but what is left then is training, which concentrates in few directions. Merging with trimming (TIES)
    leaves something white.
    """
    before = _fit(design, members, [major])[1]
    if before <= LEAST_RESIDUAL:
        return set()
    options = [index for index in range(design.number) if index != major and design.has(index, members)]
    fits = {index: _fit(design, members, [major, index]) for index in options}
    if not fits:
        return set()
    partner = min(fits, key=lambda index: fits[index][1])
    coefficients, after = fits[partner]
    explained = 1.0 - (after / before) ** 2
    if explained < _PARTLY_EXPLAINS or min(coefficients.values()) < LEAST_COEFFICIENT:
        return set()
    left = [
        whiteness(
            design.sketch_of(design.targets[i] - design.combined(i, coefficients)), design.suspect.tensors[i].shape
        )
        for i in members
    ]
    return {partner} if float(np.mean(left)) >= _WHITE_REMAINDER else set()


def _fit(design: _Design, members: list[int], chosen: list[int]) -> tuple[dict[int, float], float]:
    """Non-negative least squares on the given candidates: coefficients and relative residual."""
    if len(chosen) == 1:
        return _fit_one(design, members, chosen[0])
    target = np.concatenate([design.targets[i] for i in members])
    length = float(np.linalg.norm(target))
    if length <= 0.0:
        return dict.fromkeys(chosen, 0.0), 0.0
    columns = np.stack([design.column(index, members) for index in chosen], axis=1)
    from scipy.optimize import nnls  # takes half a second, and what descends from one model does not need it

    weights, left = nnls(columns, target)
    return {index: float(weight) for index, weight in zip(chosen, weights, strict=True)}, left / length


def _fit_one(design: _Design, members: list[int], index: int) -> tuple[dict[int, float], float]:
    """The same on one candidate, tensor by tensor: of a deep model all of them together are a hundred megabytes."""
    target = design.energy(members)
    columns = {i: column for i in members if (column := design.columns[i].get(index)) is not None}
    energy = sum(float(column @ column) for column in columns.values())
    if target <= 0.0 or energy <= 0.0:
        return {index: 0.0}, 0.0 if target <= 0.0 else 1.0
    weight = max(sum(float(design.targets[i] @ column) for i, column in columns.items()), 0.0) / energy
    left = design.energy([i for i in members if i not in columns])
    for i, column in columns.items():
        rest = design.targets[i] - weight * column
        left += float(rest @ rest)
    return {index: weight}, math.sqrt(max(left, 0.0) / target)


def _greedy(design: _Design, members: list[int]) -> tuple[dict[int, float], float]:
    """Take candidates one by one while each explains most of what is left; coefficients and relative residual."""
    options = {index for index in range(design.number) if design.has(index, members)}
    chosen: dict[int, float] = {}
    left = 1.0
    while options - set(chosen) and len(chosen) < MOST_MODELS and left > LEAST_RESIDUAL:
        trials = [_fit(design, members, [*chosen, index]) for index in sorted(options - set(chosen))]
        # Of candidates that explain the same (one model, registered twice) every group takes the strongest.
        least = min(rest for _, rest in trials)
        solution, rest = next(trial for trial in trials if trial[1] <= least + LEAST_RESIDUAL)
        too_little = bool(chosen) and rest**2 > (1 - MUST_EXPLAIN) * left**2
        if too_little or min(solution.values()) < LEAST_COEFFICIENT:
            break
        chosen, left = solution, rest
    return chosen, left
