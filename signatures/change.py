"""How a suspect's tensors differ from the registered ones that they were matched with: amounts, shapes and marks."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.comparing.matching import EXACT
from fingerprint.dtypes import DTYPES
from fingerprint.measure import matrix_shape
from fingerprint.vectors import median
from fingerprint.vocabulary import ATTENTION_ROLES, LAYERLESS_ROLES, Content, Role
from signatures.rewriting import Rewriting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fingerprint.comparing.comparison import Comparison
    from fingerprint.comparing.matching import TensorMatch
    from fingerprint.records import TensorRecord

Float64 = NDArray[np.float64]

_UNSEEN: Final = LAYERLESS_ROLES
"""What is not looked for where the residual stream was rotated."""
_THROUGH_LAYERS: Final = 0.3
_FLOOR: Final = 1e-6
_BETTER: Final = 2.0
"""How many times as much as a rewrite leaves unexplained a matrix may have changed to count as lying in place."""
_NOT_FEW: Final = 0.05
_MOSTLY: Final = 0.9
_OF_A_FACTOR: Final = 0.1
"""A change of which less than this share is left when the least-squares factor is taken out is a change of scale."""


class Change(Struct, frozen=True, dict=True):
    """The differences within one comparison; every property is computed when it is first asked for."""

    comparison: Comparison

    @property
    def ours(self) -> Sequence[TensorRecord]:
        """Tensors of the registered model."""
        return self.comparison.registered.tensors

    @property
    def theirs(self) -> Sequence[TensorRecord]:
        """Tensors of the suspect."""
        return self.comparison.suspect.tensors

    @cached_property
    def matrices(self) -> tuple[TensorMatch, ...]:
        """Matches of weight matrices."""
        return tuple(
            match for match in self.comparison.matches if self.theirs[match.suspect].content is Content.WEIGHTS
        )

    @cached_property
    def elements(self) -> Float64:
        """Elements of the suspect's tensor of each matrix match."""
        return np.array([self.theirs[match.suspect].elements for match in self.matrices], np.float64)

    def mean(self, values: Sequence[float]) -> float:
        """Mean over the matrix matches, weighted by elements; 0 without matches."""
        total = float(self.elements.sum())
        return float(np.dot(self.elements, np.asarray(values, np.float64))) / total if total else 0.0

    @cached_property
    def placed(self) -> tuple[TensorMatch, ...]:
        """Matches of weight matrices that lie where they were, as far as a rewrite explains them no better."""
        explained, uncompared = self.rewriting.explained, self.rewriting.uncompared
        # What was tied to a table of tokens has the gains of the last norm in it, and is matched with that table.
        exact = {match.registered for match in self.matrices if match.digest} if uncompared else set()
        return tuple(
            match
            for match in self.matrices
            if match.digest
            or (
                match.change <= _BETTER * explained.get(match.registered, math.inf)
                and self.ours[match.registered].role not in uncompared
                and match.registered not in exact
            )
        )

    @cached_property
    def outside_attention(self) -> float:
        """Largest relative change of a matrix that lies in place and is none of attention's."""
        changes = [one.change for one in self.placed if self.ours[one.registered].role not in ATTENTION_ROLES]
        return max(changes, default=0.0)

    @cached_property
    def amount(self) -> float:
        """Relative change of the matched matrices of equal size: root of the weighted mean of squares.

        Of those that a rewrite explains better, what it leaves.
        """
        placed = {match.registered for match in self.placed}
        sizes = [
            (self.ours[match.registered].elements, match.change)
            for match in self.placed
            if self.ours[match.registered].elements == self.theirs[match.suspect].elements
        ]
        sizes += [
            (self.ours[place].elements, change)
            for place, change in self.rewriting.explained.items()
            if place not in placed
        ]
        total = sum(elements for elements, _ in sizes)
        return math.sqrt(sum(elements * change**2 for elements, change in sizes) / total) if total else 0.0

    @cached_property
    def residual(self) -> float:
        """What a factor for each matrix leaves of the matched matrices: root of the weighted mean of squares."""
        return float(np.sqrt(self.mean([match.difference.residual**2 for match in self.matrices])))

    @cached_property
    def changed(self) -> int:
        """Number of matched matrices of equal size that differ at all."""
        return sum(
            match.change > _FLOOR and self.ours[match.registered].elements == self.theirs[match.suspect].elements
            for match in self.matrices
        )

    @cached_property
    def scale(self) -> float:
        """Mean least-squares factor from registered to suspect: what is left of the registered weights."""
        return self.mean([match.scale for match in self.matrices])

    @cached_property
    def cast_share(self) -> float:
        """Share of matched elements whose digests agree only after rounding to a narrower type."""
        return self.mean([float(match.digest not in {"", EXACT}) for match in self.matrices])

    @cached_property
    def exact_share(self) -> float:
        """Share of matched elements with equal digests; of all tensors where no weight matrix is matched."""
        if self.matrices:
            return self.mean([float(match.digest == EXACT) for match in self.matrices])
        matches = self.comparison.matches
        total = sum(self.theirs[match.suspect].elements for match in matches)
        equal = sum(self.theirs[match.suspect].elements for match in matches if match.digest == EXACT)
        return equal / total if total else 0.0

    @cached_property
    def cast_types(self) -> tuple[str, ...]:
        """The narrower types, most frequent first."""
        kinds = Counter(match.digest for match in self.matrices if match.digest not in {"", EXACT})
        return tuple(kind for kind, _ in kinds.most_common())

    @cached_property
    def added_zeros(self) -> float:
        """Share of zeros in the suspect's matched matrices beyond that in the registered ones."""
        if self.rewriting.rotated:
            pairs = self.rewriting.pairs
            added = [self.theirs[b].statistics.zeros - self.ours[a].statistics.zeros for a, b in pairs]
            return float(np.mean(added)) if added else 0.0
        return self.mean(
            [
                self.theirs[match.suspect].statistics.zeros - self.ours[match.registered].statistics.zeros
                for match in self.matrices
            ]
        )

    @cached_property
    def grid_share(self) -> float:
        """Share, of the matched elements that changed, on a grid in the suspect but not (or a finer) in the registered.

        A quantised layout in which they are stored is such a grid too.
        """
        if self.rewriting.rotated:
            grids = [coarser_grid(self.theirs[b], self.ours[a]) > 0 for a, b in self.rewriting.pairs]
            return float(np.mean(grids)) if grids else 0.0
        return self._share_of_changed([float(self._grid(match) > 0) for match in self.matrices])

    @cached_property
    def rest_on_grid(self) -> bool:
        """Whether of the matched elements that are neither equal nor cast, and they are not few, most are on a grid.

        Quantisers of linear layers leave the embeddings in half precision, which can be most of a small model.
        """
        rest = [float(not match.digest) for match in self.matrices]
        held = [one * (self._grid(match) > 0) for one, match in zip(rest, self.matrices, strict=True)]
        total = self.mean(rest)
        return not self.rewriting.rotated and total >= _NOT_FEW and self.mean(held) >= _MOSTLY * total

    @cached_property
    def released_share(self) -> float:
        """The other way round: the registered model is the quantised one."""
        ours, theirs = self.ours, self.theirs
        held = [coarser_grid(ours[match.registered], theirs[match.suspect]) > 0 for match in self.matrices]
        return self._share_of_changed([float(one) for one in held])

    @cached_property
    def grid_bits(self) -> int:
        """Median bits of those grids; 0 without any."""
        pairs = [(match.registered, match.suspect) for match in self.matrices]
        pairs = self.rewriting.pairs if self.rewriting.rotated else pairs
        bits = [grid for a, b in pairs if (grid := coarser_grid(self.theirs[b], self.ours[a])) > 0]
        return int(median(bits)) if bits else 0

    def _grid(self, match: TensorMatch) -> int:
        return coarser_grid(self.theirs[match.suspect], self.ours[match.registered])

    def _share_of_changed(self, values: Sequence[float]) -> float:
        changed = [float(match.change > _FLOOR) for match in self.matrices]
        total = self.mean(changed)
        return self.mean(np.multiply(changed, values).tolist()) / total if total else 0.0

    @cached_property
    def whiteness(self) -> float:
        """Mean of ``whiteness`` over the differences of the matched matrices; 0 without any difference."""
        return self._whiteness(scaled=False)

    @cached_property
    def residual_whiteness(self) -> float:
        """The same over what the least-squares factor of each matrix leaves."""
        return self._whiteness(scaled=True)

    def _whiteness(self, *, scaled: bool) -> float:
        ratios = []
        for match in self.placed:
            ours, theirs = self.ours[match.registered].sketch, self.theirs[match.suspect].sketch
            if ours is None or theirs is None or match.change < _FLOOR:
                continue
            factor = match.scale if scaled else 1.0
            difference = (theirs.T if match.transposed else theirs).astype(np.float64) - factor * ours.astype(
                np.float64
            )
            ratios.append(whiteness(difference, self.ours[match.registered].shape))
        return float(np.mean(ratios)) if ratios else 0.0

    @cached_property
    def counts(self) -> tuple[float, float]:
        """Shares of the matrices, by number: of the suspect's those matched, of the registered model's what is covered.

        Of the registered model's without those of roles that could not be tested.
        """
        theirs = dict.fromkeys((match.suspect for match in self.comparison.matches), 1.0)
        ours = self.comparison.registered_covered
        untested = self.comparison.untested

        def share(tensors: Sequence[TensorRecord], covered: Mapping[int, float], without: frozenset[Role]) -> float:
            counted = [
                position
                for position, tensor in enumerate(tensors)
                if tensor.sketch is not None and (position in covered or tensor.role not in without)
            ]
            return float(np.mean([covered.get(position, 0.0) for position in counted])) if counted else 1.0

        return share(self.theirs, theirs, frozenset()), share(self.ours, ours, untested)

    @cached_property
    def resized(self) -> tuple[float, float]:
        """Shares of matched elements in matrices that are smaller, and that are larger, than the registered ones."""
        pairs = [(self.theirs[match.suspect].elements, self.ours[match.registered].elements) for match in self.matrices]
        return self.mean([float(a < b) for a, b in pairs]), self.mean([float(a > b) for a, b in pairs])

    @cached_property
    def rescaled_share(self) -> float:
        """Share of matched elements in matrices that differ from the registered ones by a factor and little else."""
        return self.mean([float(self._is_rescaled(match)) for match in self.matrices])

    def _is_rescaled(self, match: TensorMatch) -> bool:
        residual = match.difference.residual
        return match.change > _FLOOR and residual < _OF_A_FACTOR * min(match.change, 1.0)

    @cached_property
    def evenness(self) -> float:
        """Coefficient of variation of the relative change over matrices: small if noise was added to each alike."""
        values = np.array([match.change for match in self.placed if match.change > _FLOOR])
        return float(values.std() / values.mean()) if values.size > 1 else 0.0

    @cached_property
    def copies(self) -> Counter[int]:
        """How many of the suspect's tensors correspond to each registered matrix that has any."""
        return Counter(match.registered for match in self.matrices)

    @cached_property
    def unmatched_registered(self) -> tuple[int, ...]:
        """Registered weight matrices (with a sketch) that no tensor of the suspect corresponds to."""
        through_layers = {
            position for position, share in self.comparison.through_layers.items() if share > _THROUGH_LAYERS
        }
        return tuple(
            i
            for i, tensor in enumerate(self.ours)
            if tensor.content is Content.WEIGHTS
            and tensor.sketch is not None
            and i not in self.copies
            and i not in through_layers
            and i not in self.rewriting.reordered
            and not (self.rewriting.rotated and tensor.role in _UNSEEN | self.comparison.untested)
        )

    @cached_property
    def unrecognised(self) -> dict[int, int]:
        """Registered matrices of attention that nothing corresponds to, and unexplained ones of the suspect of the same
        shapes, by position: they were changed beyond recognition, and are not absent."""
        taken = set(self.rewriting.reordered.values())
        spare: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for position, tensor in enumerate(self.theirs):
            covered = self.comparison.covered.get(position, 0.0)
            if tensor.content is Content.WEIGHTS and position not in taken and covered <= _THROUGH_LAYERS:
                spare[tuple(sorted(tensor.shape))].append(position)
        found = {}
        for position in self.unmatched_registered:
            tensor = self.ours[position]
            if tensor.role in ATTENTION_ROLES and (free := spare[tuple(sorted(tensor.shape))]):
                found[position] = free.pop(0)
        return found

    @cached_property
    def added(self) -> float:
        """Share of the suspect's weights beside those that correspond to registered ones."""
        covered = self.comparison.covered
        known = {*self.rewriting.reordered.values(), *self._changed_attention}
        total = sum(one.elements for one in self.theirs if one.content is Content.WEIGHTS)
        more = sum(self.theirs[place].elements * (1.0 - covered.get(place, 0.0)) for place in known)
        return 1.0 - self.comparison.suspect_coverage - (more / total if total else 0.0)

    @property
    def _changed_attention(self) -> Iterator[int]:
        """As many of the suspect's matrices of one shape that are not in place as registered ones of attention are not.

        Those first that circuits explain: two registered circuits may resemble one of the suspect.
        """
        ours: dict[tuple[int, ...], list[int]] = defaultdict(list)
        theirs: dict[tuple[int, ...], list[int]] = defaultdict(list)
        gone = self.copies.keys() | self.rewriting.reordered.keys()
        for position, tensor in enumerate(self.ours):
            if tensor.role in ATTENTION_ROLES and tensor.content is Content.WEIGHTS and position not in gone:
                ours[tuple(sorted(tensor.shape))].append(position)
        taken = {match.suspect for match in self.matrices} | set(self.rewriting.reordered.values())
        for position, tensor in enumerate(self.theirs):
            if tensor.content is Content.WEIGHTS and position not in taken:
                theirs[tuple(sorted(tensor.shape))].append(position)
        for shape, places in theirs.items():
            places.sort(key=lambda place: -self.comparison.covered.get(place, 0.0))
            yield from places[: len(ours[shape])]

    @cached_property
    def rewriting(self) -> Rewriting:
        """What a rewrite that keeps the function did."""
        return Rewriting(self.comparison)

    @cached_property
    def moved_neurons(self) -> float:
        """Share of well-matched neurons that are found under another index."""
        held = [match for match in self.comparison.neurons if match.concordance > 0.3]
        return float(np.mean([match.moved for match in held])) if held else 0.0

    @cached_property
    def narrowed(self) -> float:
        """Share of neurons that matched MLPs of the suspect have fewer than the registered ones; 0 if not fewer."""
        shares = [
            1.0 - self.comparison.suspect.neurons[match.suspect].size / sample.size
            for match in self.comparison.neurons
            if match.concordance > 0.1
            for sample in (self.comparison.registered.neurons[match.registered],)
        ]
        return max(float(np.mean(shares)), 0.0) if shares else self.rewriting.narrowed


def coarser_grid(one: TensorRecord, other: TensorRecord) -> int:
    """Bits of the grid that ``one`` lies on and ``other`` does not, or of the coarser one; 0 for none."""
    mine, others = (storage_bits(each.dtype) or each.statistics.lattice_bits for each in (one, other))
    return mine if mine and (not others or others > mine) else 0


def storage_bits(dtype: str) -> int:
    """Bits of a quantised layout by its name, such as ``Q4_K`` or ``GPTQ_4``; 0 for a plain number type."""
    match = None if dtype in DTYPES else re.search(r"[0-9]+", dtype)
    bits = int(match.group()[:3]) if match is not None else 0
    return bits if bits <= 8 else 0


def whiteness(sketch: Float64, shape: tuple[int, ...]) -> float:
    """How evenly a matrix of ``shape`` spreads over directions, from its (k, k) sketch: 1 for independent noise.

    The participation ratio of the sketch's singular values over 1 / (2/k + 1/n + 1/m), which an (n, m) matrix of
    independent entries has. On small trained models the differences that noise, rounding and zeroing make came out at
    .93 to 1.03, those of training at .4 to .8.
    """
    squares = np.linalg.svd(sketch, compute_uv=False) ** 2
    if not squares.any():
        return 0.0
    rows, columns = matrix_shape(shape)
    return float(squares.sum() ** 2 / np.sum(squares**2)) * (2.0 / len(sketch) + 1.0 / rows + 1.0 / columns)
