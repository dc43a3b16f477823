"""From a suspect's fingerprint to the registered models worth comparing: digests are looked up, sketches vote."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice, product
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.comparing.matching import SketchTable, is_distinctive
from fingerprint.comparing.sampled import slice_vectors
from fingerprint.sketch import chance_spread
from fingerprint.slices import DIGESTED_SLICES
from fingerprint.vocabulary import Content, Depth, Frame

if TYPE_CHECKING:
    from fingerprint.records import Fingerprint
    from signatures.records import ModelRecord
    from signatures.registry import Registry

NEIGHBOURS: Final = 16
"""Models that are asked for per sketch, orientation and sign."""
_CHANCE: Final = 3.0
"""Standardised cosine (in units of its spread by chance) below which a neighbour is no vote."""


_NEIGHBOURS_ALIKE: Final = 64
"""Models that are asked for where all of a recipe are near."""
_ALIKE_WEIGHT: Final = 10.0
"""Votes for a distance that is smaller by a factor of e: more than chance gives in the frames that are less alike."""
_LEAST_DISTANCE: Final = 0.001
"""Rounding a signature's vectors moves them by about that."""
_LISTED: Final = 0.01
"""Votes of the farthest neighbour: among few models all are candidates, the nearest first."""

_ALIKE: Final = frozenset({Frame.SELF, Frame.UNITS})
"""Frames in which the vectors of all models of a recipe are much alike."""

Float32 = NDArray[np.float32]


class Candidate(Struct, frozen=True):
    """A registered model to compare with; ``votes`` orders candidates and is no evidence."""

    model: ModelRecord
    votes: float


def find_candidates(registry: Registry, suspect: Fingerprint, limit: int) -> list[Candidate]:
    """The ``limit`` registered models most likely to be related, best first.

    Every tensor of the suspect votes for its nearest models, in both orientations and with both signs, with the square
    of how far its cosine lies above chance; every equal digest votes with more than any cosine can. The vectors of
    layers, which no rewrite changes, vote in the same way for the models of their nearest.
    """
    votes: dict[int, float] = defaultdict(float)
    distinctive = [tensor for tensor in suspect.tensors if is_distinctive(tensor)]
    digests = {tensor.digest for tensor in distinctive} | {tensor.turned_digest for tensor in distinctive}
    for hit in registry.lookup_digests(digests - {b""}):
        votes[hit.model] += 2.0 * suspect.parameters.index_width**2
    table = SketchTable(suspect.tensors, corner=suspect.parameters.index_width)
    if len(table):
        nearest: dict[tuple[int, int], float] = {}
        for transposed, sign in product((False, True), (1.0, -1.0)):
            hits = registry.search(table.flat(transposed=transposed) * np.float32(sign), NEIGHBOURS)
            for row in range(len(table)):
                for score, model in zip(hits.scores[row].tolist(), hits.models[row].tolist(), strict=True):
                    if model >= 0:
                        nearest[row, model] = max(nearest.get((row, model), 0.0), score / float(table.spreads[row]))
        for (_, model), score in nearest.items():
            votes[model] += max(score - _CHANCE, 0.0) ** 2
    _vote_by_layers(registry, suspect, votes)
    if suspect.depth == Depth.QUICK or registry.has_depth(Depth.QUICK):
        _vote_by_slices(registry, suspect, votes)
    ranked = sorted((item for item in votes.items() if item[1] > 0), key=lambda v: (-v[1], v[0]))
    known = ((registry.by_id(model), score) for model, score in ranked)  # one may have been removed meanwhile
    return list(islice((Candidate(model, score) for model, score in known if model is not None), limit))


def _vote_by_slices(registry: Registry, suspect: Fingerprint, votes: dict[int, float]) -> None:
    """Votes by the sampled slices of matrices, where one side is of quick depth and no more of them is known."""
    axes = {at: tensor.axes for at, tensor in enumerate(suspect.tensors) if tensor.content is Content.WEIGHTS}
    positions, vectors = slice_vectors(axes, suspect.parameters)
    if not len(positions):
        return
    spread = 1.0 / np.sqrt((DIGESTED_SLICES - 1) * suspect.parameters.axis_width)
    nearest: dict[tuple[int, int], float] = defaultdict(float)
    for sign in (1.0, -1.0):
        hits = registry.search_slices(vectors * np.float32(sign), NEIGHBOURS)
        for position, scores, models in zip(positions.tolist(), hits.scores, hits.models, strict=True):
            for score, model in zip(scores.tolist(), models.tolist(), strict=True):
                if model >= 0:
                    key = position // 2, model
                    nearest[key] = max(nearest[key], score / spread)
    for (_, model), score in nearest.items():
        votes[model] += max(score - _CHANCE, 0.0) ** 2


def _vote_by_layers(registry: Registry, suspect: Fingerprint, votes: dict[int, float]) -> None:
    """Votes by circuits (``LayerGram``): of several readings of one circuit of the suspect the best one counts.

    Vectors in the self frame are much alike in all models: they count by how near a model is beside its rivals.
    """
    spread = chance_spread((suspect.parameters.frame_width,) * 2, suspect.parameters.index_width)
    nearest: dict[tuple[str, str, tuple[int, int], int], float] = defaultdict(float)
    for alike, count in ((False, NEIGHBOURS), (True, _NEIGHBOURS_ALIKE)):
        grams = [gram for gram in suspect.grams if np.any(gram.values) and (gram.frame in _ALIKE) is alike]
        if not grams:
            continue
        hits = registry.search(np.stack([gram.values for gram in grams]), count)
        for gram, scores, models in zip(grams, hits.scores, hits.models, strict=True):
            found = scores[models >= 0]
            given = _by_distance(found) if alike else np.maximum(found / spread - _CHANCE, 0.0) ** 2
            for vote, model in zip(given.tolist(), models[models >= 0].tolist(), strict=True):
                key = (gram.frame, gram.circuit, gram.tensors, model)
                nearest[key] = max(nearest[key], vote)
    for (_, _, _, model), vote in nearest.items():
        votes[model] += vote


def _by_distance(cosines: Float32) -> Float32:
    """Votes for the neighbours by their cosines, best first: by the logarithm of the distance beside the farthest's.

    What two models of a recipe have in common cancels, and so does what damage takes from the cosines of all.
    """
    distances = np.maximum(1.0 - cosines, _LEAST_DISTANCE)
    votes: Float32 = _LISTED + _ALIKE_WEIGHT * np.log(distances.max(initial=_LEAST_DISTANCE) / distances)
    return votes
