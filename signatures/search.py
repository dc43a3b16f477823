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
from fingerprint.errors import RegistryBrokenError, SignatureError, UnknownModelError
from fingerprint.sketch import chance_spread
from fingerprint.slices import DIGESTED_SLICES
from fingerprint.vocabulary import Content, Depth, Frame
from signatures.index import TIE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.records import Fingerprint
    from signatures.index import Hits
    from signatures.records import ModelRecord
    from signatures.registry import Registry
    from signatures.signature import Signature

NEIGHBOURS: Final = 16
"""Models that are asked for per sketch, orientation and sign."""
_HOLDERS: Final = 1024
"""Models that are looked up for a digest: more of them would tell nothing."""
_CROWD: Final = 2
"""How many times as many models as were asked for may tie before their votes count for less."""
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
Int64 = NDArray[np.int64]


class Candidate(Struct, frozen=True):
    """A registered model to compare with; ``votes`` orders candidates and is no evidence."""

    model: ModelRecord
    votes: float


def find_candidates(registry: Registry, suspect: Fingerprint, limit: int) -> list[Candidate]:
    """The ``limit`` registered models most likely to be related, best first.

    Every tensor of the suspect votes for its nearest models, in both orientations and with both signs, with the square
    of how far its cosine lies above chance; every equal digest votes with more than any cosine can, and alone where
    many models have it. The vectors of layers, which no rewrite changes, vote in the same way for the models of their
    nearest. What very many models have in common counts for little.
    """
    votes: dict[int, float] = defaultdict(float)
    distinctive = [tensor for tensor in suspect.tensors if is_distinctive(tensor)]
    digests = {tensor.digest for tensor in distinctive} | {tensor.turned_digest for tensor in distinctive}
    holders = registry.holders(digests - {b""}, _HOLDERS)
    for holding in holders.values():
        for model in holding:
            votes[model] += 2.0 * suspect.parameters.index_width**2 * float(_weight(len(holding), NEIGHBOURS))
    # What as many models hold as neighbours are asked for has no others.
    rare = [tensor for tensor in suspect.tensors if len(holders.get(tensor.digest, ())) < NEIGHBOURS]
    table = SketchTable(rare, corner=suspect.parameters.index_width)
    if len(table):
        nearest: dict[tuple[int, int], float] = {}
        for transposed, sign in product((False, True), (1.0, -1.0)):
            hits = registry.search(table.flat(transposed=transposed) * np.float32(sign), NEIGHBOURS)
            for row, (scores, models) in enumerate(_found(hits)):
                given = _above_chance(scores, float(table.spreads[row]), NEIGHBOURS)
                for vote, model in zip(given.tolist(), models.tolist(), strict=True):
                    nearest[row, model] = max(nearest.get((row, model), 0.0), vote)
        for (_, model), vote in nearest.items():
            votes[model] += vote
    _vote_by_layers(registry, suspect, votes)
    if suspect.depth == Depth.QUICK or registry.has_depth(Depth.QUICK):
        _vote_by_slices(registry, suspect, votes)
    ranked = sorted((item for item in votes.items() if item[1] > 0), key=lambda v: (-v[1], v[0]))
    known = ((registry.by_id(model), score) for model, score in ranked)  # one may have been removed meanwhile
    return list(islice((Candidate(model, score) for model, score in known if model is not None), limit))


def signature_of(registry: Registry, model: ModelRecord) -> Signature | None:
    """The signature of a model that is to be compared, ``None`` if another process has removed the model since.

    Raises ``SignatureError`` if its file is absent or damaged: an error of this suspect and no reason to stop, as other
    suspects are compared with other models.
    """
    try:
        return registry.load_signature(model)
    except UnknownModelError:
        return None
    except RegistryBrokenError as error:
        raise SignatureError(f"{model.name} cannot be compared: {error}") from error


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
        for position, (scores, models) in zip(positions.tolist(), _found(hits), strict=True):
            given = _above_chance(scores, spread, NEIGHBOURS)
            for vote, model in zip(given.tolist(), models.tolist(), strict=True):
                key = position // 2, model
                nearest[key] = max(nearest[key], vote)
    for (_, model), vote in nearest.items():
        votes[model] += vote


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
        for gram, (scores, models) in zip(grams, _found(hits), strict=True):
            given = _by_distance(scores, count) if alike else _above_chance(scores, spread, count)
            for vote, model in zip(given.tolist(), models.tolist(), strict=True):
                key = (gram.frame, gram.circuit, gram.tensors, model)
                nearest[key] = max(nearest[key], vote)
    for (_, _, _, model), vote in nearest.items():
        votes[model] += vote


def _found(hits: Hits) -> Iterator[tuple[Float32, Int64]]:
    """Scores and models of each query."""
    for scores, models in zip(hits.scores, hits.models, strict=True):
        yield scores[models >= 0], models[models >= 0]


def _above_chance(cosines: Float32, spread: float, asked: int) -> Float32:
    """Votes for the neighbours by their cosines, best first: the square of how far these lie above chance."""
    votes: Float32 = _of_crowds(cosines, asked) * np.maximum(cosines / np.float32(spread) - np.float32(_CHANCE), 0) ** 2
    return votes


def _by_distance(cosines: Float32, asked: int) -> Float32:
    """The same by the logarithm of the distance beside the farthest's.

    What two models of a recipe have in common cancels, and so does what damage takes from the cosines of all.
    """
    distances = np.maximum(1.0 - cosines, _LEAST_DISTANCE)
    nearer = np.log(distances.max(initial=_LEAST_DISTANCE) / distances)
    votes: Float32 = _of_crowds(cosines, asked) * (_LISTED + _ALIKE_WEIGHT * nearer)
    return votes


def _of_crowds(cosines: Float32, asked: int) -> Float32:
    """What the votes for neighbours count, by how many tie with each."""
    falling = -cosines
    first, after = np.searchsorted(falling, falling - TIE, "left"), np.searchsorted(falling, falling + TIE, "right")
    return _weight(after - first, asked)


def _weight(models: Int64 | int, asked: int) -> Float32:
    """What a vote counts where so many models are equally near: next to nothing where they are hundreds, so that these
    are told apart by what few of them have, and something, as there may be nothing else."""
    weight: Float32 = np.minimum(np.float32(1), np.float32(_CROWD * asked) / np.asarray(models, np.float32)) ** 2
    return weight
