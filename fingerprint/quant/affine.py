"""Affine quantisation: ``(number - zero point) * scale``, one of each for a tensor, a slice or a block.

As in ONNX (DequantizeLinear), TFLite (https://ai.google.dev/edge/litert/models/quantization_spec) and tfjs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from fingerprint.dtypes import DType, Kind, to_float32

if TYPE_CHECKING:
    from fingerprint.tensors import Array, TensorView


def quantised_dtype(name: str) -> DType:
    """The dtype of decoded elements, float32, under the ``name`` of the storage."""
    return DType(name, 32, Kind.FLOAT, np.dtype(np.float32))


class Affine(Struct, frozen=True):
    """The numbers that ``numbers`` stand for.

    Each axis of ``numbers`` is divided into runs of ``blocks`` elements (the last run may be shorter) that share a
    scale and a zero point: ``scale`` and ``zero`` (None: zero) hold one for each, in row-major order; see ``grid``.
    One number may stand for all of them. ``offset`` is added after scaling.
    """

    name: str
    dtype: DType
    numbers: TensorView
    scale: TensorView
    zero: TensorView | None
    blocks: tuple[int, ...]
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers."""
        return self.numbers.shape

    @property
    def grid(self) -> tuple[int, ...]:
        """How many runs each axis has: the shape of the scales."""
        return tuple(-(-size // block) for size, block in zip(self.shape, self.blocks, strict=True))

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        numbers = self.numbers.read(start, stop)
        if numbers.dtype.kind in "iub" and numbers.dtype.itemsize > 2:
            # float32 holds no difference of two numbers of 32 bits; the product is rounded once.
            values: Array = numbers.astype(np.float64)
        else:
            values = to_float32(numbers)
        return self._scaled(values, start, stop).astype(np.float32, copy=False)

    def _scaled(self, values: Array, start: int, stop: int) -> Array:
        if stop <= start:
            return values
        if math.prod(self.grid) == 1:
            return self._apply(values, None, 0, 1)
        count, run = math.prod(self.grid), self._run()
        if run == 1 and start % count == stop % count == 0:
            # Whole rows whose columns have a scale each.
            return self._apply(values.reshape(-1, count), None, 0, count).reshape(-1)
        if (
            run > 1
            and start % run == stop % run == 0
            and stop // run <= (start // run) - (start // run) % count + count
        ):
            first = start // run % count
            rows = values.reshape(-1, run)
            return self._apply(rows, None, first, first + len(rows), column=True).reshape(-1)
        places = self._places(start, stop)
        low, high = int(places.min()), int(places.max()) + 1
        if high - low > 2 * (stop - start) + 4096 and stop - start > 1:
            # The range goes over the end of a long axis: its two ends need far fewer scales than lie between.
            middle = (start + stop) // 2
            parts = (
                self._scaled(values[: middle - start], start, middle),
                self._scaled(values[middle - start :], middle, stop),
            )
            return np.concatenate(parts)
        places -= low
        return self._apply(values, places, low, high)

    def _apply(self, values: Array, places: Array | None, low: int, high: int, *, column: bool = False) -> Array:
        """``values`` scaled by scales ``low`` to ``high``: those at ``places``, or all, along rows or ``column``."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.zero is not None:
                values = values - _pick(self.zero, places, low, high, column=column)
            values = values * _pick(self.scale, places, low, high, column=column)
            return values + np.float32(self.offset) if self.offset else values

    def _run(self) -> int:
        """How many elements in a row share a scale, if the next ones always have the next scale; otherwise 0."""
        run = 1
        axes = list(zip(self.shape, self.blocks, strict=True))
        while axes and axes[-1][1] >= axes[-1][0]:
            run *= axes.pop()[0]
        if axes:
            size, block = axes.pop()
            if size % block:
                return 0
            run *= block
        while axes and axes[-1][1] == 1:
            axes.pop()
        return run if all(block >= size for size, block in axes) else 0

    def _places(self, start: int, stop: int) -> Array:
        """For each element, the position of its scale in row-major order."""
        run = self._run()
        if run:
            # Whole runs of elements share a scale, and the scales follow each other: one division a run.
            first, last = start // run, -(-stop // run)
            starts = np.arange(first, last, dtype=np.int64)
            counts = np.minimum((starts + 1) * run, stop) - np.maximum(starts * run, start)
            return np.repeat(starts % math.prod(self.grid), counts)
        places = np.zeros(stop - start, np.int64)
        flat = np.arange(start, stop, dtype=np.int64)
        below, step = 1, 1
        for size, block in zip(reversed(self.shape), reversed(self.blocks), strict=True):
            parts = -(-size // block)
            if parts > 1:
                index = flat // below if below > 1 else flat
                index = index % size
                places += (index // block if block > 1 else index) * step
            below *= size
            step *= parts
        return places


def _pick(view: TensorView, places: Array | None, low: int, high: int, *, column: bool) -> Array:
    """Elements ``low`` to ``high`` of ``view``, one for each of ``places`` (counted from ``low``)."""
    if math.prod(view.shape) == 1:
        return to_float32(view.read(0, 1))
    values = to_float32(view.read(low, high))
    if places is not None:
        return values.take(places)
    return values[:, None] if column else values


def blocks_of(shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, ...] | None:
    """Lengths of the runs where scales of the shape ``grid`` are broadcast to ``shape``; None if they cannot be."""
    if len(grid) > len(shape):
        return None
    grid = (1,) * (len(shape) - len(grid)) + grid
    if any(parts not in {1, size} for size, parts in zip(shape, grid, strict=True)):
        return None
    return tuple(1 if parts == size else max(size, 1) for size, parts in zip(shape, grid, strict=True))


def blocks_along(shape: tuple[int, ...], axis: int, block: int = 1) -> tuple[int, ...]:
    """Lengths of the runs where only ``axis`` is divided, into runs of ``block``."""
    return tuple(block if place == axis else max(size, 1) for place, size in enumerate(shape))
