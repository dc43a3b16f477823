"""What a reader learns from samples in frames that they cannot compute: neurons written down in two frames translate.

A signature holds many neurons both in a frame that the reader knows and in one that they do not know. A regression of
the one on the other predicts, in the known frame, the neurons and attention channels that are written down in the other
frame alone. How good a prediction is shows on neurons left out of the regression; it enters as a number with noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.disclosure.sections import LENGTHS, Section, channel_parts, chosen
from fingerprint.gauge.frames import LEAST_ANCHORS, anchor_ids
from fingerprint.measure import matrix_shape
from fingerprint.signs import Stream
from fingerprint.vocabulary import Frame, Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.disclosure.sections import Reader
    from fingerprint.records import NeuronSample

Float64 = NDArray[np.float64]

_RIDGES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 4
_LEAST = 0.02
"""Share of the variance that a translation has to explain to be used."""
_LEAST_PAIRS = 32
_MOST = 0.95
"""Largest singular value of a frame that is believed: the anchors' own go to infinity as it goes to 1."""
_UNWHITENED = 0.8
"""How alike anchors are to what comes out where the frame is known well."""
_TABLES = {
    Role.TOKEN_EMBEDDING: (Frame.ANCHORS, Stream.ANCHOR_TOKEN),
    Role.POSITION_EMBEDDING: (Frame.POSITIONS, Stream.ANCHOR_POSITION),
}


@dataclass(frozen=True, slots=True)
class Translation:
    """From unit rows in one frame to unit rows in another: (w, v), and the share of them that it explains."""

    matrix: Float64
    share: float
    ratio: float
    """Length of a row in the other frame over its length in this one."""


class Translator:
    """Translations into the frames that a reader knows, each learned once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._kept: dict[tuple[str, str, int | None, bool], Translation | None] = {}
        self._samples: dict[tuple[int, int, int], dict[str, NeuronSample]] = {}
        for sample in reader.fingerprint.neurons:
            if sample.frame != Frame.UNITS:
                self._samples.setdefault(sample.tensors, {})[sample.frame] = sample

    def sections(self, position: int) -> Iterator[Section]:
        """Equations about the matrix at ``position``, of samples in frames that the reader cannot compute."""
        for samples in self._samples.values():
            for source in samples.values():
                if position in source.tensors and not self._reader.knows(source.frame):
                    for target in samples.values():
                        if self._reader.knows(target.frame):
                            yield from self._neurons(source, target, position)
        yield from self._channels(position)
        yield from self._anchors(position)

    def _anchors(self, position: int) -> Iterator[Section]:
        """Rows of embeddings from the frame that is made of them: what neurons write, in it and in the fixed frame,
        tells the frame, and the frame tells the rows up to their common size."""
        record, parameters = self._reader.fingerprint.tensors[position], self._reader.fingerprint.parameters
        table = _TABLES.get(record.role)
        if table is None or self._reader.knows(table[0]):
            return
        frame, stream = table
        pairs = list(self._pairs(frame, Frame.FIXED, None, reads=False))
        found = self.translation(frame, Frame.FIXED, None, reads=False)
        rows, width = record.shape
        if not pairs or found is None or rows < LEAST_ANCHORS:
            return
        theirs, known = (np.concatenate(side) for side in zip(*pairs, strict=True))
        fixed = self._reader.directions(Frame.FIXED, position, width, reads=False)
        directions = (fixed @ _fitted(known, theirs, _RIDGES[0])).T
        ids = anchor_ids(rows, stream, parameters)
        values = _unwhitened(directions[: ids.size])
        sampled = next((one for one in record.axes if one.dimension == 0), None)
        if sampled is None:
            return
        # Rare tokens have shorter rows than common ones: as long as sampled rows of that range are.
        alike = sampled.values[(sampled.indices >= ids[0]) & (sampled.indices <= ids[-1])].astype(np.float64)
        size = float(np.sqrt(np.mean(np.sum(alike**2, axis=1)) / width)) if len(alike) else record.statistics.deviation
        share = (found.share * _UNWHITENED) ** 2
        values *= size * np.sqrt(values.size / share) / max(float(np.linalg.norm(values)), 1e-30)
        noise = size * float(np.sqrt((1.0 - share) / share))
        left = chosen(ids, rows, centred=True)
        yield Section("translated", left, np.eye(width) - 1.0 / width, values, noise)

    def _neurons(self, source: NeuronSample, target: NeuronSample, position: int) -> Iterator[Section]:
        part = source.tensors.index(position)
        found = self.translation(source.frame, target.frame, source.layer, reads=part != 2)
        rows, known = _part(source, part), _part(target, part)
        new = ~np.isin(source.indices, target.indices)
        if found is None or rows is None or known is None or not new.any():
            return
        lengths = np.linalg.norm(rows, axis=1)[new] * found.ratio
        if source.frame == Frame.SELF:
            lengths[:] = np.median(np.linalg.norm(known, axis=1))
        yield self._section(
            found,
            _unit(rows[new]) * lengths[:, None],
            chosen(source.indices[new], source.size),
            target.frame,
            position,
            reads=part != 2,
            unit=source.frame == Frame.SELF,
        )

    def _channels(self, position: int) -> Iterator[Section]:
        record = self._reader.fingerprint.tensors[position]
        for sample in self._reader.fingerprint.channels:
            if self._reader.knows(sample.frame):
                continue
            for rows, across, reads in channel_parts(self._reader, sample, position):
                found = self.translation(sample.frame, Frame.FIXED, sample.layer, reads=reads)
                if found is not None:
                    width = matrix_shape(record.shape)[1 if reads else 0]
                    length = record.statistics.deviation * np.sqrt(width)
                    yield self._section(found, rows * length, across, Frame.FIXED, position, reads=reads, unit=True)

    def _section(
        self,
        found: Translation,
        rows: Float64,
        across: Float64,
        frame: str,
        position: int,
        *,
        reads: bool,
        unit: bool,
    ) -> Section:
        """A best guess explains a share s of the values; over s it is the values with noise of (1 - s) / s of them.

        ``unit``: lengths of ``rows`` were guessed.
        """
        width = matrix_shape(self._reader.fingerprint.tensors[position].shape)[1 if reads else 0]
        along = self._reader.directions(frame, position, width, reads=reads)
        share = found.share * (1.0 - LENGTHS**2) if unit else found.share
        values = rows @ found.matrix / share
        noise = float(np.sqrt(np.mean(rows**2) * rows.shape[1] / along.shape[1] * (1.0 - share) / share))
        return (
            Section("translated", across, along, values, noise)
            if reads
            else Section("translated", along, across, values.T, noise)
        )

    def translation(self, source: str, target: str, layer: int | None, *, reads: bool) -> Translation | None:
        """From one frame to another, None if too little of it can be learned.

        A layer's own frame is another one in each layer and the same for all of its matrices; the others are the same
        in all layers, but see matrices that read through the norm gains.
        """
        own = source == Frame.SELF
        key = (source, target, layer if own else None, reads or own)
        if key not in self._kept:
            pairs = list(self._pairs(source, target, layer if own else None, None if own else reads))
            self._kept[key] = _learned(pairs)
        return self._kept[key]

    def _pairs(
        self, source: str, target: str, layer: int | None, reads: bool | None
    ) -> Iterator[tuple[Float64, Float64]]:
        for samples in self._samples.values():
            one, other = samples.get(source), samples.get(target)
            if one is None or other is None or (layer is not None and one.layer != layer):
                continue
            _, here, there = np.intersect1d(one.indices, other.indices, return_indices=True)
            for part in range(3):
                rows, known = _part(one, part), _part(other, part)
                if rows is not None and known is not None and reads in {None, part != 2}:
                    yield rows[here], known[there]


def _part(sample: NeuronSample, part: int) -> Float64 | None:
    found = (sample.gate, sample.up, sample.down)[part]
    return None if found is None else found.astype(np.float64)


def _unit(rows: Float64) -> Float64:
    found: Float64 = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return found


def _learned(pairs: list[tuple[Float64, Float64]]) -> Translation | None:
    if sum(len(rows) for rows, _ in pairs) < _LEAST_PAIRS:
        return None
    rows, known = (np.concatenate(side) for side in zip(*pairs, strict=True))
    ratio = float(np.median(np.linalg.norm(known, axis=1) / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)))
    rows, known = _unit(rows), _unit(known)
    fold = np.arange(len(rows)) % _FOLDS
    shares = []
    for ridge in _RIDGES:
        missed = 0.0
        for one in range(_FOLDS):
            matrix = _fitted(rows[fold != one], known[fold != one], ridge)
            missed += float(np.sum((known[fold == one] - rows[fold == one] @ matrix) ** 2))
        shares.append(1.0 - missed / float(np.sum(known**2)))
    best = int(np.argmax(shares))
    share = min(shares[best], 0.999)
    return Translation(_fitted(rows, known, _RIDGES[best]), share, ratio) if share >= _LEAST else None


def _unwhitened(frame: Float64) -> Float64:
    """The anchors that a frame was whitened from, up to a factor; see ``gauge.frames``."""
    u, f, vt = np.linalg.svd(frame, full_matrices=False)
    f = np.minimum(f, _MOST)
    found: Float64 = (u * (f / np.sqrt(1.0 - f**2))) @ vt
    return found


def _fitted(rows: Float64, known: Float64, ridge: float) -> Float64:
    gram = rows.T @ rows + ridge * np.eye(rows.shape[1])
    return cast("Float64", np.linalg.solve(gram, rows.T @ known))
