"""What all layers of a checkpoint share when they are written down in frames: the frames, and the gains in front."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from fingerprint.directions import rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fingerprint.canonical import CanonicalTensor
    from fingerprint.gauge.fold import Gains
    from fingerprint.gauge.frames import ResidualFrame
    from fingerprint.parameters import Parameters

    Float32 = NDArray[np.float32]


class Variant(Struct, frozen=True):
    """One reading of a checkpoint: a frame, and what is added to stored norm gains."""

    frame: ResidualFrame
    offset: float


class Setting(Struct, frozen=True):
    """What all layers share. ``centred``: norms subtract the mean over the residual stream.

    Directions are rounded to bf16, so that they are the same however they are multiplied.
    """

    tensors: Sequence[CanonicalTensor]
    variants: tuple[Variant, ...]
    gains: Gains
    width: int
    centred: bool
    parameters: Parameters

    def reading(self, matrix: int) -> tuple[Float32, Float32]:
        """Directions of all variants for a matrix that reads the stream, and its gains for each of ``offsets``.

        (variants * frame_width, width), then one row for each offset along the mean where that is subtracted; and
        (offsets, width).
        """
        gains = {offset: self.gains.of(matrix, offset, self.width) for offset in self.offsets}
        rows = [variant.frame.directions * gains[variant.offset] for variant in self.variants]
        if self.centred:
            rows += [gain[None] / np.sqrt(self.width) for gain in gains.values()]
        return rounded(np.concatenate(rows)), np.stack(list(gains.values())).astype(np.float32)

    @property
    def writing(self) -> Float32:
        """Directions of all variants for a matrix that writes to the stream: (variants * frame_width, width)."""
        return rounded(np.concatenate([variant.frame.directions for variant in self.variants]))

    @property
    def offsets(self) -> tuple[float, ...]:
        """The offsets among the variants, each once."""
        return tuple(dict.fromkeys(variant.offset for variant in self.variants))

    def part(self, coordinates: Float32, number: int) -> Float32:
        """The coordinates of one variant."""
        width = self.parameters.frame_width
        return coordinates[:, number * width : (number + 1) * width]
