"""The aligned case: do sampled slices of two matrices pair up one-to-one on their own index numbers?

Along a hidden axis the slices of an unrelated model are exchangeable: initialisation is i.i.d. along it, and training
commutes with permuting it. So if the registered model is independent of the suspect, the optimal one-to-one assignment
of its slices to the suspect's is a uniformly random permutation of the index numbers, whatever the slices look like,
and the number of slices assigned to their own number is at least k with probability at most 1/k!. The axis must be
known to be hidden on the registered side; nothing is assumed of the suspect.
"""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.comparing.evidence import LN10
from fingerprint.signs import Stream, bits
from fingerprint.vectors import distinct

if TYPE_CHECKING:
    from fingerprint.records import AxisSample, TensorRecord

Float64 = NDArray[np.float64]

_NEAREST: Final = 3
"""Places among the nearest slices, on both sides, within which a slice has to be to land on its own number. In the
assignment of the largest sum few are farther: of 1,837 synthetic pairs of 64 slices of which 20 or more landed none had
fewer than ten there, of 1,097 of which 17 to 19 did, two; of 2,888 unrelated pairs none had ten, and 4 had nine."""


class Alignment(Struct, frozen=True):
    """How many of ``compared`` slices landed on their own number, and the mean cosine of equal numbers.

    ``log10_p`` is that of one test, uncorrected; ``axis`` is the dimension of the registered tensor.
    """

    landed: int
    compared: int
    cosine: float
    log10_p: float
    axis: int


def align_tensors(
    registered: TensorRecord,
    suspect: TensorRecord,
    *,
    transposed: bool,
    negated: bool,
    better_than: float = math.inf,
) -> list[Alignment]:
    """One alignment for each axis of ``registered`` that is known to be exchangeable and was sampled on both sides.

    ``transposed`` compares with the suspect's matrix as if it were stored the other way round, ``negated`` as if all
    its signs were changed. Axes with too few samples for a ``log10_p`` of less than ``better_than`` are left out, and
    where too few slices could land for that none has landed.
    """
    theirs = {sample.dimension: sample for sample in suspect.axes}
    least = _landings(better_than)
    found = []
    for ours in registered.axes:
        other = theirs.get(1 - ours.dimension if transposed else ours.dimension)
        if other is None or not ours.axis.exchangeable or ours.values.shape[1] <= 1:
            continue
        if log10_p_landed(min(ours.indices.size, other.indices.size)) < better_than:
            found.append(align_samples(ours, other, negated=negated, least=least))
    return found


def may_align(registered: TensorRecord, suspect: TensorRecord, *, better_than: float) -> bool:
    """Whether axes of both have samples enough for a ``log10_p`` below ``better_than``."""
    most = (max((sample.indices.size for sample in one.axes), default=0) for one in (registered, suspect))
    return log10_p_landed(min(most)) < better_than


def align_samples(registered: AxisSample, suspect: AxisSample, *, negated: bool = False, least: int = 0) -> Alignment:
    """Assign the registered slices to the suspect's slices of the same numbers; see the module's first lines.

    Where fewer than ``least`` are near enough to their own number to land on it, nothing is assigned and none has
    landed: that takes evidence away at most, and spares most of the time that unrelated models take.
    """
    common, ours, theirs = np.intersect1d(registered.indices, suspect.indices, assume_unique=True, return_indices=True)
    a = _unit_rows(registered.values[ours].astype(np.float64))
    b = _unit_rows(suspect.values[theirs].astype(np.float64))
    usable = (np.abs(a).sum(axis=1) > 0) & (np.abs(b).sum(axis=1) > 0)
    a, b = a[usable], b[usable]
    number = len(a)
    if number < 2:
        return Alignment(0, number, 0.0, 0.0, registered.dimension)
    cosines = -(a @ b.T) if negated else a @ b.T
    mean = float(np.mean(np.diagonal(cosines)))
    if least and _near_their_own(cosines) < least:
        return Alignment(0, number, mean, 0.0, registered.dimension)
    # Ties (equal rows) must not fall on the diagonal because of how the solver walks: shuffle one side first.
    order = np.argsort(bits(0, Stream.SHUFFLE, 0, int(common[-1]) + 1)[common[usable]], kind="stable")
    landed = int(np.count_nonzero(order[_assigned(cosines[:, order])] == np.arange(number)))
    return Alignment(landed, number, mean, log10_p_landed(landed), registered.dimension)


def _near_their_own(cosines: Float64) -> int:
    """How many slices are among the ``_NEAREST`` of their own number, and it among theirs, of (n, n)."""
    own = np.diagonal(cosines)
    nearer = ((cosines > side).sum(axis=axis) for side, axis in ((own[:, None], 1), (own, 0)))
    return int(np.count_nonzero(np.maximum(*nearer) < _NEAREST))


def _assigned(cosines: Float64) -> NDArray[np.int64]:
    """The column of each row in the assignment of the largest sum, (n, n) to (n,)."""
    best: NDArray[np.int64] = cosines.argmax(axis=1)
    if distinct(best).size == len(best):  # no sum is larger than that of the rows' largest numbers
        return best
    from scipy.optimize import linear_sum_assignment  # takes half a second, and relatives do not need it

    return np.asarray(linear_sum_assignment(-cosines)[1], np.int64)


def log10_p_landed(landed: int) -> float:
    """log10 of the bound 1/k! on the probability that a random permutation fixes at least k points."""
    return -math.lgamma(landed + 1) / LN10 if landed > 1 else 0.0


def _landings(better_than: float) -> int:
    """The least number of landed slices whose ``log10_p_landed`` is below ``better_than``; 0 if any is."""
    return 0 if better_than > 0.0 else next(k for k in count() if log10_p_landed(k) < better_than)


def _unit_rows(rows: Float64) -> Float64:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    floor = 1e-9 * float(norms.max(initial=0.0))
    units: Float64 = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > floor)
    return units
