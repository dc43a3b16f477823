"""Frames that move with the residual stream: whitened embeddings of hashed tokens and of hashed positions.

Whoever rotates or permutes the residual stream has to do the same to the embeddings, so that ``W Fᵀ`` stays as it is
for a frame F made of them. ``X = U S Vᵀ`` are the embeddings of the anchors, less the mean of the embeddings;
``F = U diag(S / sqrt(S² + λ²)) Vᵀ`` makes its directions about equally long, and keeps each near its anchor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.blocks import taken
from fingerprint.directions import energies
from fingerprint.signs import Stream, sample_indices
from fingerprint.slices import clean
from fingerprint.tensors import read_rows
from fingerprint.vocabulary import Frame

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fingerprint.parameters import Parameters
    from fingerprint.tensors import TensorView

Float64 = NDArray[np.float64]

FIRST_TOKEN: Final = 256
"""Ids below are bytes and special tokens in many vocabularies."""
MOST_TOKENS: Final = 4096
MOST_POSITIONS: Final = 512
"""Anchors are chosen below the largest power of two that the table reaches, up to these, so that a longer table has
the same ones."""
LEAST_ANCHORS: Final = 16
MOST_WIDTH: Final = 1 << 16
RIDGE: Final = 0.3
"""λ in units of the root mean square of the singular values."""
_READ_NUMBERS: Final = 1 << 22


class ResidualFrame(Struct, frozen=True):
    """Directions (frame_width, width) float64 of the residual stream, zeros after the last anchor."""

    name: Frame
    directions: Float64


def make_frames(
    tables: Iterable[tuple[Frame, TensorView]], parameters: Parameters, *, centred: bool
) -> list[ResidualFrame]:
    """The frames of tables (rows, width), those that can be made; several of a name if it is not clear which table
    holds the embeddings. ``centred``: the mean over the stream says nothing. Raises ``InputError``."""
    found = []
    for name, view in tables:
        stream = Stream.ANCHOR_TOKEN if name is Frame.ANCHORS else Stream.ANCHOR_POSITION
        frame = _frame(view, stream, parameters, centred=centred) if view.shape[1] <= MOST_WIDTH else None
        if frame is not None:
            found.append(ResidualFrame(name, frame))
    return found


def anchor_ids(rows: int, stream: Stream, parameters: Parameters) -> NDArray[np.int64]:
    """Rows of a table of ``rows`` embeddings that are anchors, ascending; a function of ``rows`` and parameters."""
    first, most = (FIRST_TOKEN, MOST_TOKENS) if stream is Stream.ANCHOR_TOKEN else (0, MOST_POSITIONS)
    reach = min(most, 1 << (rows.bit_length() - 1))
    if reach - first < parameters.frame_width:
        first, reach = 0, rows
    return sample_indices(parameters.seed, stream, reach - first, parameters.frame_width) + first


def whitened(anchors: Float64) -> Float64:
    """``U diag(S / sqrt(S² + λ²)) Vᵀ`` of (T, width) anchors = U S Vᵀ."""
    u, s, vt = np.linalg.svd(anchors, full_matrices=False)
    ridge = RIDGE * float(np.sqrt(np.mean(s**2)))
    frame: Float64 = (u * (s / np.sqrt(s**2 + ridge**2))) @ vt
    return frame


def _frame(view: TensorView, stream: Stream, parameters: Parameters, *, centred: bool) -> Float64 | None:
    rows, width = view.shape
    if rows < LEAST_ANCHORS:
        return None
    ids = anchor_ids(rows, stream, parameters)
    pool = min(rows, MOST_TOKENS if stream is Stream.ANCHOR_TOKEN else MOST_POSITIONS)
    chosen, total = np.zeros((ids.size, width)), np.zeros(width)
    step = max(1, _READ_NUMBERS // width)
    for start in range(0, pool, step):
        stop = min(start + step, pool)
        native = read_rows(view, start, stop)
        with np.errstate(over="ignore"):
            added = energies(native, np.ones(width, np.float32))[1]
        total += added if np.isfinite(added).all() else clean(native).sum(axis=0, dtype=np.float64)
        low, high = np.searchsorted(ids, (start, stop))
        chosen[low:high] = clean(taken(native, ids[low:high] - start, 0))
    chosen -= total / pool
    if centred:
        chosen -= chosen.mean(axis=1, keepdims=True)
    largest = float(np.abs(chosen).max(initial=0.0))
    if not 0.0 < largest < np.inf:
        return None
    try:
        found = whitened(chosen / largest)
    except np.linalg.LinAlgError:
        return None
    frame = np.zeros((parameters.frame_width, width))
    frame[: len(found)] = found
    return frame
