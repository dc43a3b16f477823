"""Which registered models add up to the suspect, with what coefficients: linear algebra on the sketches.

Sketches are linear, so ``S(suspect) = sum_i w_i S(registered_i)`` holds for a linear merge exactly, and the
least-squares coefficients of the sketches estimate those of the full weights. Models are taken one by one, greedily, as
a set cover, and only while each new one explains most of what is left: an unrelated model explains one part in the
number of sketch entries, and a sibling some of what its own training has in common with the suspect's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fingerprint.compare.comparison import Comparison
    from fingerprint.records import Fingerprint, TensorRecord
    from fingerprint.vocabulary import Role

Float64 = NDArray[np.float64]

MUST_EXPLAIN: Final = 0.5
"""Share of the squared residual that a further model must remove."""
LEAST_RESIDUAL: Final = 1e-3
"""Relative residual (not squared) below which nothing is left to explain."""
LEAST_COEFFICIENT: Final = 0.02
MOST_MODELS: Final = 8

_Place = tuple["Role", int | None, int | None, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Cover:
    """A greedy cover: positions among the candidates with their coefficients, and the relative residual left.

    ``groups`` holds the cover of every group of the suspect's tensors (a layer), by label.
    """

    coefficients: dict[int, float]
    residual: float
    groups: dict[str, dict[int, float]]

    @property
    def models(self) -> set[int]:
        """Every candidate that the whole or any group needs."""
        return set(self.coefficients).union(*self.groups.values()) if self.groups else set(self.coefficients)


def gather(suspect: Fingerprint, candidates: Sequence[Comparison]) -> Cover | None:
    """Cover the suspect's sketches with those of the candidates, as a whole and layer by layer.

    ``candidates`` are comparisons with the same suspect, the strongest first. None without a single matched sketch.
    """
    design = _Design(suspect, candidates)
    if not design.targets:
        return None
    coefficients, residual = _greedy(design, list(design.targets))
    residual = design.of_whole(residual)
    groups = {}
    for label, members in design.groups().items():
        groups[label] = _greedy(design, members)[0]
    return Cover(coefficients, residual, groups)


class _Design:
    """For every matched tensor of the suspect, its sketch and the corresponding sketch of every candidate."""

    def __init__(self, suspect: Fingerprint, candidates: Sequence[Comparison]) -> None:
        self._suspect = suspect
        self.targets: dict[int, Float64] = {}
        self.columns: dict[int, dict[int, Float64]] = {}
        self.layer_of: dict[int, int | None] = {}
        self.number = len(candidates)
        for candidate in candidates:
            for match in candidate.matches:
                sketch = suspect.tensors[match.suspect].sketch
                ours = candidate.registered.tensors[match.registered]
                if sketch is None or ours.sketch is None or match.suspect in self.targets:
                    continue
                self.targets[match.suspect] = sketch.astype(np.float64).reshape(-1)
                self.layer_of[match.suspect] = ours.layer
                self.columns[match.suspect] = self._counterparts(ours, match.transposed, candidates, match.suspect)

    def _counterparts(
        self, ours: TensorRecord, transposed: bool, candidates: Sequence[Comparison], suspect: int
    ) -> dict[int, Float64]:
        """Each candidate's own match of this tensor, or else its tensor at the same place of the same architecture."""
        found = {}
        for index, candidate in enumerate(candidates):
            own = next((match for match in candidate.matches if match.suspect == suspect), None)
            record: TensorRecord | None
            if own is not None:
                record, turned = candidate.registered.tensors[own.registered], own.transposed
            else:
                record, turned = _at_place(candidate.registered, ours), transposed
            if record is not None and record.sketch is not None:
                sketch = record.sketch.astype(np.float64)
                found[index] = (sketch.T if turned else sketch).reshape(-1)
        return found

    def of_whole(self, residual: float) -> float:
        """The relative residual on the matched tensors turned into that on all sketched tensors of the suspect."""
        matched = sum(float(target @ target) for target in self.targets.values())
        sketches = [tensor.sketch for tensor in self._suspect.tensors if tensor.sketch is not None]
        everything = sum(float(np.sum(sketch.astype(np.float64) ** 2)) for sketch in sketches)
        return float(np.sqrt((residual**2 * matched + everything - matched) / everything)) if everything else 0.0

    def groups(self) -> dict[str, list[int]]:
        """Tensors by layer of the suspect; by registered layer where the suspect's own numbers are not known."""
        groups: dict[str, list[int]] = defaultdict(list)
        for position in self.targets:
            own = self._suspect.tensors[position].layer
            layer = own if own is not None else self.layer_of[position]
            groups["outside layers" if layer is None else str(layer)].append(position)
        return dict(groups)


def _at_place(registered: Fingerprint, like: TensorRecord) -> TensorRecord | None:
    for tensor in registered.tensors:
        if (tensor.role, tensor.layer, tensor.expert, tensor.shape) == (like.role, like.layer, like.expert, like.shape):
            return tensor
    return None


def _greedy(design: _Design, members: list[int]) -> tuple[dict[int, float], float]:
    target = np.concatenate([design.targets[i] for i in members])
    size = float(np.linalg.norm(target))
    if not size:
        return {}, 0.0
    columns = {
        index: np.concatenate([design.columns[i].get(index, np.zeros(design.targets[i].size)) for i in members])
        for index in range(design.number)
    }
    columns = {index: column for index, column in columns.items() if np.any(column)}
    chosen: list[int] = []
    weights: Float64 = np.zeros(0)
    left = size
    while columns and len(chosen) < min(MOST_MODELS, len(columns)) and left > LEAST_RESIDUAL * size:
        trials = []
        for index in columns.keys() - set(chosen):
            solution, rest = nnls(np.stack([columns[i] for i in [*chosen, index]], axis=1), target)
            trials.append((rest, index, solution))
        rest, index, solution = min(trials, key=lambda trial: (trial[0], trial[1]))
        needed = chosen and rest**2 > (1 - MUST_EXPLAIN) * left**2
        if needed or solution.min() < LEAST_COEFFICIENT:
            break
        chosen.append(index)
        weights, left = solution, rest
    return {index: float(weight) for index, weight in zip(chosen, weights, strict=True)}, left / size
