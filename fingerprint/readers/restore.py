"""What is done to the tensors of a whole checkpoint once all its files were read: storage is turned into weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fingerprint.readers import GGUF
from fingerprint.readers.adapters import with_products

if TYPE_CHECKING:
    from fingerprint.readers.base import Contents

_PLAIN: Final = frozenset({"weight", "bias"})
"""The last parts of names that no layout of quantised modules knows: a model that has no others is not asked."""


def restored(contents: Contents, file_format: str) -> Contents:
    """``contents`` of a checkpoint of that format (several joined with ``+``) as the weights that it stands for."""
    if GGUF in file_format.split("+"):
        from fingerprint.readers.rope_order import with_halves_first
        from fingerprint.readers.shifted_gains import with_gains_less_one

        contents = with_gains_less_one(with_halves_first(contents))
    if any(tensor.name.rpartition(".")[2] not in _PLAIN for tensor in contents.tensors):
        from fingerprint.quant.layouts import dequantised

        contents = dequantised(contents)
    return with_products(contents)
