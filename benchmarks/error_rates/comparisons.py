"""Uncorrected p-values of every test between two unrelated models, and the strata that pairs of models belong to."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from benchmarks.error_rates.moving import gauge_p, with_own_frames
from benchmarks.error_rates.parts import in_parts
from benchmarks.error_rates.population import LOOKALIKE, NAMELESS, REAL, TIED, UPCYCLED
from benchmarks.error_rates.rates import Sample
from fingerprint.comparing.matching import SketchCosines

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from numpy.typing import NDArray

    from benchmarks.error_rates.population import Model
    from benchmarks.error_rates.procedures import Procedures
    from fingerprint.comparing.coins import NeuronMatch
    from fingerprint.records import TensorRecord

ALIGN = "align"
LEADS = "align, leads of the sketch"
COIN = "rows, one MLP"
FISHER = "rows, Fisher over MLPs"
SKETCH = "sketch, same place"
SKETCH_ALL = "sketch, all tensor pairs"
SKETCH_MAX = "sketch, largest of a model"

OTHER = "other recipes"
ALONE = ("SmolLM2", "MiniLM")
"""Real models of which there is one training: they are compared with everything."""
OTHER_PAIRS = 1000
_STEP = 0.001
Samples = dict[tuple[str, str], Sample]


def one_recipe(stratum: str) -> bool:
    """Whether a stratum holds pairs of trained models of one recipe."""
    return stratum.startswith("one recipe")


def stratum_of(registered: Model, suspect: Model) -> str | None:
    """The stratum of a pair, None if it is related or not one of the benchmark's."""
    if registered.root == suspect.root:
        return None
    kinds = {registered.kind, suspect.kind}
    if NAMELESS in kinds:
        fits = registered.kind == "" and registered.recipe == suspect.recipe
        return f"{_one_recipe(registered)}, nameless" if fits else None
    if UPCYCLED in kinds:
        return UPCYCLED if suspect.kind == "" and registered.recipe == suspect.recipe else None
    for kind in (TIED, LOOKALIKE):
        if kind in kinds:
            return _awkward(kind, registered, suspect)
    for kind in ALONE:
        if kind in kinds:
            return kind
    if registered.recipe != suspect.recipe:
        return OTHER
    if registered.kind in REAL:
        return registered.kind
    return _one_recipe(registered)


def _one_recipe(model: Model) -> str:
    style, _, width = model.recipe.partition("/")[0].partition("-")
    return f"one recipe, {style} {width}"


def _awkward(kind: str, registered: Model, suspect: Model) -> str | None:
    """The stratum of pairs of an awkward kind: each other's, and those of trained models of their recipe."""
    others = {registered.kind, suspect.kind} - {kind}
    if registered.recipe != suspect.recipe or not others <= {"", *REAL}:
        return None
    return f"{kind} of {registered.recipe}" if registered.recipe in REAL else kind


def pairs_of(models: Sequence[Model], most_other: int = OTHER_PAIRS) -> list[tuple[str, Model, Model]]:
    """All directed pairs (stratum, registered, suspect); of different recipes a fixed random part."""
    found = []
    other = []
    for registered in models:
        for suspect in models:
            if suspect.kind == UPCYCLED:
                continue
            stratum = stratum_of(registered, suspect)
            if stratum == OTHER:
                other.append((stratum, registered, suspect))
            elif stratum is not None:
                found.append((stratum, registered, suspect))
    other.sort(key=lambda one: hashlib.sha256(f"{one[1].id}|{one[2].id}".encode()).digest())
    return found + other[:most_other]


def collect(pairs: Sequence[tuple[str, Model, Model]], procedures: Procedures, workers: int = 1) -> Samples:
    """The p-values of all tests, by test and stratum."""
    aligned = with_own_frames(pairs)
    samples: Samples = {}
    for part in in_parts(pairs, lambda some: _collect(some, procedures, aligned), workers, "p-values"):
        for key, sample in part.items():
            samples.setdefault(key, Sample()).extend(sample)
    return samples


def _collect(
    pairs: Sequence[tuple[str, Model, Model]], procedures: Procedures, aligned: Container[tuple[str, str]]
) -> Samples:
    samples: Samples = {}

    def add(test: str, stratum: str, registered: Model, suspect: Model, log10_p: NDArray[np.float64]) -> None:
        samples.setdefault((test, stratum), Sample()).add(registered.root, suspect.root, log10_p)

    for stratum, registered, suspect in pairs:
        coins, combined = coin_p(registered, suspect, procedures)
        add(COIN, stratum, registered, suspect, coins)
        add(FISHER, stratum, registered, suspect, combined)
        if stratum == UPCYCLED:
            continue
        own_frames = (registered.id, suspect.id) in aligned
        for test, found in gauge_p(registered, suspect, procedures, own_frames=own_frames).items():
            add(test, stratum, registered, suspect, found)
        cosines = SketchCosines.of(registered.registered.tensors, suspect.suspect.tensors)
        add(ALIGN, stratum, registered, suspect, align_p(registered, suspect, procedures))
        if registered.id < suspect.id:  # the other way round is nearly the same choice, and costs as much again
            add(LEADS, stratum, registered, suspect, leads_p(registered, suspect, cosines, procedures))
        if stratum != TIED and registered.id < suspect.id:
            # The other way round is the same number; and matrices of few distinct slices are no case for this test.
            same, every, largest = sketch_p(registered, suspect, cosines, procedures)
            add(SKETCH, stratum, registered, suspect, same)
            add(SKETCH_MAX, stratum, registered, suspect, largest)
            add(SKETCH_ALL, stratum, registered, suspect, every)
    return samples


def align_p(registered: Model, suspect: Model, procedures: Procedures) -> NDArray[np.float64]:
    """log10 p of one alignment for each registered tensor at its place in the suspect, and each exchangeable axis."""
    found = []
    for ours, theirs in same_place(registered.registered.tensors, suspect.suspect.tensors):
        others = {sample.dimension: sample for sample in theirs.axes}
        found += [
            procedures.align(sample, others[sample.dimension]).log10_p
            for sample in ours.axes
            if sample.axis in procedures.hidden and sample.values.shape[1] > 1 and sample.dimension in others
        ]
    return np.array(found)


def leads_p(registered: Model, suspect: Model, cosines: SketchCosines, procedures: Procedures) -> NDArray[np.float64]:
    """log10 p of each alignment that the product looks at: with the tensors whose sketches are the most alike.

    The sketches choose, the assignment of slices decides: if the choice saw what the assignment sees, these p-values
    would be too small even before the correction for the choice.
    """
    found = []
    for column, ours in enumerate(cosines.registered.positions.tolist()):
        for row in cosines.leads[:, column].tolist():
            if row < 0:
                continue
            theirs = suspect.suspect.tensors[int(cosines.suspect.positions[row])].axes
            like = cosines.at(row, column)
            sign = np.float32(-1 if like.negated else 1)
            others = {
                (1 - sample.dimension if like.transposed else sample.dimension): replace(
                    sample, values=sample.values * sign
                )
                for sample in theirs
            }
            found += [
                procedures.align(sample, others[sample.dimension]).log10_p
                for sample in registered.registered.tensors[ours].axes
                if sample.axis in procedures.hidden and sample.values.shape[1] > 1 and sample.dimension in others
            ]
    return np.array(found)


def same_place(
    registered: Sequence[TensorRecord], suspect: Sequence[TensorRecord]
) -> list[tuple[TensorRecord, TensorRecord]]:
    """Each registered matrix with the suspect's of its name; failing that, with the one at the same part of the list.

    Neither looks at the values, so each pair is one comparison, uncorrected.
    """
    theirs = [one for one in suspect if one.sketch is not None]
    by_name = {one.name: one for one in theirs}
    ours = [one for one in registered if one.sketch is not None]
    if not theirs:
        return []
    return [(one, by_name.get(one.name, theirs[place * len(theirs) // len(ours)])) for place, one in enumerate(ours)]


def coin_p(
    registered: Model, suspect: Model, procedures: Procedures
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log10 p of every registered MLP against every MLP of the suspect, and of Fisher's method over the MLPs.

    Fisher's over the partners that the product chooses, and over each cyclic assignment of layers to layers.
    """
    ours, theirs = registered.registered.neurons, suspect.suspect.neurons
    usable = _usable(registered, procedures)
    if not any(mask.any() for mask in usable):
        return np.zeros(0), np.zeros(0)
    grid = {}
    for i, sample in enumerate(ours):
        for j, other in enumerate(theirs):
            for match in procedures.match([sample], [other]):
                grid[i, j] = replace(match, registered=i, suspect=j)
    chosen = best_of_each(grid.values())
    single = [procedures.toss([match], usable) for match in grid.values()]
    rounds = [
        [grid[i, (i + shift) % len(theirs)] for i in range(len(ours)) if (i, (i + shift) % len(theirs)) in grid]
        for shift in range(len(theirs))
    ]
    combined = [procedures.toss(matches, usable) for matches in (chosen, *rounds)]
    return (
        np.array([one.log10_p for one in single if one.coins]),
        np.array([one.log10_p for one in combined if one.coins]),
    )


def best_of_each(matches: Iterable[NeuronMatch]) -> list[NeuronMatch]:
    """For every registered MLP the match of the best score: what ``match_neurons`` chooses from all at once."""
    best: dict[int, NeuronMatch] = {}
    for match in matches:
        if match.registered not in best or match.score > best[match.registered].score:
            best[match.registered] = match
    return [best[position] for position in sorted(best)]


def _usable(model: Model, procedures: Procedures) -> list[NDArray[np.bool_]]:
    return _remembered(procedures.usable, model)


@lru_cache(maxsize=4096)
def _remembered(usable: Callable[[Any], list[Any]], model: Model) -> list[NDArray[np.bool_]]:
    return usable(model.registered.neurons)


def sketch_p(
    registered: Model, suspect: Model, cosines: SketchCosines, procedures: Procedures
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """log10 p of the sketch statistic: of tensors at the same place, of all comparable pairs, of the largest.

    The largest is corrected by Bonferroni for the pairs that it is the largest of, as the product does.
    """
    scores = cosines.scores
    everything = scores[scores > 0]
    if not everything.size:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    same = _same_name(cosines, scores, registered.registered.tensors, suspect.suspect.tensors)
    largest = procedures.sketch(cosines.largest, 2 * cosines.pairs)
    return _many(same, procedures), _many(everything, procedures), np.array([largest])


def _same_name(
    cosines: SketchCosines,
    scores: NDArray[np.float32],
    registered: Sequence[TensorRecord],
    suspect: Sequence[TensorRecord],
) -> NDArray[np.float32]:
    columns = {registered[int(position)].name: column for column, position in enumerate(cosines.registered.positions)}
    found = [
        scores[row, columns[name]]
        for row, position in enumerate(cosines.suspect.positions)
        if (name := suspect[int(position)].name) in columns
    ]
    return np.array([one for one in found if one > 0], np.float32)


def _many(scores: NDArray[np.float32], procedures: Procedures) -> NDArray[np.float64]:
    """The p-value of each score alone, rounded towards significance: one evaluation for each step of .001."""
    steps, inverse = np.unique(np.ceil(scores / _STEP).astype(np.int64), return_inverse=True)
    values = [_single(procedures.sketch, int(step)) for step in steps]
    return np.array(values)[inverse] if values else np.zeros(0)


@lru_cache(maxsize=1 << 17)
def _single(sketch: Callable[[float, int], float], step: int) -> float:
    return sketch(step * _STEP, 1)
