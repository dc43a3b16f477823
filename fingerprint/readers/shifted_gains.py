"""Undoes what llama.cpp's conversion adds to gains: some models store ``gain - 1``, and GGUF files of them the gain.

For the architectures listed here its conversion adds one to the weights of norms (``norm_shift`` and ``modify_tensors``
in conversion/gemma.py, nemotron.py and qwen.py), in float32: numbers of bfloat16 or half precision come out as they
were, but for those below 2^-16. Gemma 3n and 4 store gains as they are, and are not listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from fingerprint.dtypes import F32
from fingerprint.tensors import LikeSource

if TYPE_CHECKING:
    from fingerprint.readers.base import Contents
    from fingerprint.tensors import Array, TensorView

SHIFTED: Final = frozenset({
    "gemma", "gemma2", "gemma3", "gemma-embedding", "nemotron", "qwen3next", "qwen35", "qwen35moe",
})  # fmt: skip
"""Architectures (``general.architecture``) whose conversion adds one to gains."""
_UNSHIFTED: Final = "ssm_norm.weight"
"""The norm of Qwen's linear attention, which stores its gain."""


class LessOne(LikeSource, frozen=True):
    """``source`` less one, in float32."""

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        with np.errstate(invalid="ignore"):
            less: Array = self.source.read(start, stop) - np.float32(1)
        return less


def with_gains_less_one(contents: Contents) -> Contents:
    """``contents`` of a GGUF checkpoint with the gains as the original stores them."""
    if contents.metadata.get("general.architecture") not in SHIFTED:
        return contents
    return replace(contents, tensors=tuple(LessOne(one) if _is_gain(one) else one for one in contents.tensors))


def _is_gain(tensor: TensorView) -> bool:
    name = tensor.name
    shifted = name.endswith("norm.weight") and not name.endswith(_UNSHIFTED)
    return shifted and len(tensor.shape) == 1 and tensor.dtype == F32
