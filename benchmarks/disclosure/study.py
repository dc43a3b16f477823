"""One checkpoint under attack: what of each kind of matrix is reconstructed, by whom, and from which signature."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.disclosure.reconstruct import Means, Sibling, explained, reconstruct
from benchmarks.disclosure.sections import Reader, numbers_held, sections_of
from benchmarks.disclosure.translate import Translator
from fingerprint.assemble import Measured, measure_checkpoint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.dtypes import to_float32
from fingerprint.gauge.frames import make_frames
from fingerprint.measure import matrix_shape
from fingerprint.quick import quick_look
from fingerprint.tensors import read_rows
from fingerprint.vocabulary import Content, Frame, Role
from signatures import sign
from signatures.disclosure import disclose_less

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.disclosure.reconstruct import Prior
    from benchmarks.disclosure.sections import Section
    from fingerprint.records import Fingerprint

Float64 = NDArray[np.float64]

TABLES = frozenset({Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING})
"""Matrices that whoever has the embeddings has already."""
_WHOLE = frozenset({"sketch", "slices"})
COLUMNS = {
    "numbers": "numbers",
    "sketch": "sketch alone",
    "slices": "and rows and columns",
    "neurons": "and neurons in the fixed frame",
    "alone": "and all else, translated",
    "frames": "with embeddings: all frames of theirs",
    "own": "and all else, translated",
    "less": "`--disclose less`",
    "quick": "`--depth quick`",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Means over the matrices of one role and shape that were looked at, by column; NaN where there is nothing."""

    role: str
    shape: tuple[int, ...]
    looked_at: int
    shares: dict[str, float]

    def row(self) -> str:
        """A row of the page's table."""
        values = (self.shares[name] for name in COLUMNS)
        cells = ["-" if np.isnan(value) else f"{value:.2%}" for value in values]
        return f"| {self.role} | {' x '.join(map(str, self.shape))} | {self.looked_at} | {' | '.join(cells)} |"


def rows_of(measured: Measured, position: int) -> Callable[[int, int], Float64]:
    """The true matrix, some rows at a time."""
    view = measured.tensors[position].view

    def rows(start: int, stop: int) -> Float64:
        found: Float64 = to_float32(read_rows(view, start, stop)).astype(np.float64).reshape(stop - start, -1)
        return found

    return rows


def matrices(fingerprint: Fingerprint, most: int) -> dict[tuple[str, tuple[int, ...]], list[int]]:
    """Positions of the matrices of which something is held, by role and shape: up to ``most``, spread over depth."""
    found: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for position, record in enumerate(fingerprint.tensors):
        usable = record.content in {Content.WEIGHTS, Content.SMALL} and len(record.shape) >= 2
        if usable and sections_of(Reader(fingerprint), position):
            found[record.role.value, record.shape].append(position)
    return {kind: places[:: -(-len(places) // most)] for kind, places in found.items()}


def knowing(measured: Measured, kept: Fingerprint) -> Reader:
    """Whoever has the signature ``kept`` and the embeddings and norm gains of ``measured`` beside it."""
    wired = None if measured.found is None else measured.found.wired
    if wired is None:
        return Reader(kept)
    frames = make_frames(wired.tables, kept.parameters, centred=wired.centred)
    known = {frame.name.value: frame.directions.T for frame in frames}
    width = len(next(iter(known.values()))) if known else 0
    gains = {place: wired.gains.of(place, wired.gains.offsets[0], width) for place in wired.gains.read_by}
    return Reader(kept, known, gains if known else {})


def alone(path: Path, most: int) -> list[Outcome]:
    """What is explained beyond the means of rows and columns, with nothing else and with embeddings at hand."""
    with open_checkpoint(path) as checkpoint:
        measured = measure_checkpoint(checkpoint)
        kept = sign(measured.fingerprint).fingerprint
        less = Reader(sign(disclose_less(measured.fingerprint)).fingerprint)
        quick = Reader(sign(quick_look(checkpoint).fingerprint).fingerprint)
        stranger, owner = Reader(kept), knowing(measured, kept)
        translators = Translator(stranger), Translator(owner)
        return [
            Outcome(
                role,
                shape,
                len(places),
                _mean([_shares(measured, one, stranger, owner, translators, less, quick) for one in places]),
            )
            for (role, shape), places in matrices(kept, most).items()
        ]


def _mean(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _shares(
    measured: Measured,
    position: int,
    stranger: Reader,
    owner: Reader,
    translators: tuple[Translator, Translator],
    less: Reader,
    quick: Reader,
) -> dict[str, float]:
    record = stranger.fingerprint.tensors[position]
    shape = matrix_shape(record.shape)
    rows = rows_of(measured, position)
    prior = Means.of(shape, rows)

    def share(sections: Sequence[Section]) -> float:
        return explained(shape, rows, reconstruct(sections, prior)) if sections else 0.0

    open_to_all = sections_of(stranger, position)
    shares = {"numbers": numbers_held(stranger.fingerprint, position) / record.elements}
    for last, kinds in (("sketch", {"sketch"}), ("slices", {"sketch", "slices"}), ("neurons", set[str]())):
        shares[last] = share([one for one in open_to_all if not kinds or one.kind in kinds])
    translated = list(translators[0].sections(position))
    shares["alone"] = share([*open_to_all, *translated]) if translated else shares["neurons"]
    shares["frames"] = shares["own"] = np.nan
    if owner.frames and record.role not in TABLES:
        known = sections_of(owner, position)
        translated = list(translators[1].sections(position))
        shares["frames"] = share(known)
        shares["own"] = share([*known, *translated]) if translated else shares["frames"]
    shares["less"] = share(sections_of(less, position))
    shares["quick"] = share(sections_of(quick, position))
    return shares


@dataclass(frozen=True, slots=True)
class Difference:
    """From a public relative: how large it is beside the matrix, and how much of it is explained."""

    role: str
    looked_at: int
    size: float
    alone: float
    frames: float

    def row(self) -> str:
        """A row of the page's table."""
        return f"| {self.role} | {self.looked_at} | {self.size:.3f} | {self.alone:.2%} | {self.frames:.2%} |"


def with_sibling(secret: Path, public: Path, most: int) -> list[Difference]:
    """What is explained of the difference from a relative: by what a stranger can compute, and in the relative's frames
    too, which are nearly those of the secret model."""
    found = []
    with open_checkpoint(secret) as one, open_checkpoint(public) as other:
        ours, theirs = measure_checkpoint(one), measure_checkpoint(other)
        kept = sign(ours.fingerprint).fingerprint
        stranger, owner = Reader(kept), knowing(theirs, kept)
        public_reader = Reader(sign(theirs.fingerprint).fingerprint)
        off = _apart(kept, public_reader.fingerprint)
        for (role, kind), places in matrices(kept, most).items():
            shape = matrix_shape(kind)
            gained: list[tuple[float, float, float]] = []
            for position in places:
                rows, prior = rows_of(ours, position), Sibling(rows_of(theirs, position)(0, shape[0]))
                truth = rows(0, shape[0])
                of_public = sections_of(public_reader, position)
                sections = as_measured(sections_of(stranger, position), of_public, prior)
                nearly = as_measured(sections_of(owner, position), of_public, prior)
                nearly = [like_sibling(part, prior, off) for part in nearly]
                gained.append(
                    (
                        float(np.linalg.norm(truth - prior.matrix) / np.linalg.norm(truth)),
                        explained(shape, rows, reconstruct(sections, prior)),
                        explained(shape, rows, reconstruct(nearly, prior)),
                    )
                )
            size, by_stranger, by_frames = np.mean(gained, axis=0).tolist()
            found.append(Difference(role, len(places), size, by_stranger, by_frames))
    return found


def _apart(ours: Fingerprint, theirs: Fingerprint) -> float:
    """How far the embeddings of two models are apart, as their sketches tell."""
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        if one.role is Role.TOKEN_EMBEDDING and one.sketch is not None and other.sketch is not None:
            return float(np.linalg.norm(one.sketch - other.sketch) / np.linalg.norm(one.sketch))
    return 1.0


def as_measured(ours: Sequence[Section], theirs: Sequence[Section], prior: Prior) -> list[Section]:
    """Sketches and slices less those of a relative's own signature: what is cut off both hardly shows."""
    whole = [one for one in theirs if one.kind in _WHOLE]
    found = [
        replace(one, values=one.values - other.values + prior.seen(one.left, one.right))
        for one, other in zip([one for one in ours if one.kind in _WHOLE], whole, strict=True)
    ]
    return [*found, *(one for one in ours if one.kind not in _WHOLE)]


def like_sibling(one: Section, prior: Prior, off: float) -> Section:
    """A section as it is read with a relative's frames, which are ``off`` by so much: with more noise, and with the
    relative's lengths where there are directions alone."""
    if one.frame in {"", Frame.FIXED}:
        return one
    values = one.values
    if one.unit >= 0:
        seen = prior.seen(one.left, one.right)
        lengths = np.linalg.norm(values, axis=one.unit, keepdims=True)
        values = values * np.linalg.norm(seen, axis=one.unit, keepdims=True) / np.maximum(lengths, 1e-30)
    return replace(one, values=values, noise=max(one.noise, off * float(np.sqrt(np.mean(values**2)))))
