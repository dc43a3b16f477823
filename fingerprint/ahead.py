"""Reading ahead: the system is asked for the tensors that come next while processes measure others.

Of a tensor some rows all over it are looked at first, and each waits for the disk where the file is not in memory yet:
the system reads ahead by itself only where all is read in order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from fingerprint.readers.base import StoredTensor
from fingerprint.tensors import Reshaped, RowSlice, Transposed, element_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fingerprint.tensors import TensorView

LEAST_EXPECTED: Final = 1 << 20
"""Bytes of a tensor from which asking is worth its while."""
MOST_EXPECTED: Final = 1 << 26
"""Bytes of a tensor that are asked for at most: who asks waits for the requests to be taken, and others for it."""


def in_order(views: Sequence[TensorView]) -> Iterator[int]:
    """The numbers of tensors, each after the system was asked for its bytes."""
    for number, view in enumerate(views):
        expect(view)
        yield number


def expect(view: TensorView) -> None:
    """Ask for the bytes of a tensor that is not small, where they lie in a file as they are read, or turned."""
    start, stop = 0, element_count(view.shape)
    while not isinstance(view, StoredTensor):
        if isinstance(view, RowSlice):
            first = view.start * math.prod(view.source.shape[1:])
            start, stop = first + start, first + stop
        elif isinstance(view, Transposed):
            start, stop = 0, element_count(view.source.shape)
        elif not isinstance(view, Reshaped):
            return
        view = view.source
    if (stop - start) * view.dtype.bits >= 8 * LEAST_EXPECTED:
        view.expect(start, min(stop, start + 8 * MOST_EXPECTED // view.dtype.bits))
