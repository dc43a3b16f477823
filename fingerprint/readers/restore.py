"""What is done to the tensors of a whole checkpoint once all its files were read: storage is turned into weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fingerprint.quant.layouts import dequantised
from fingerprint.readers import gguf
from fingerprint.readers.adapters import with_products
from fingerprint.readers.rope_order import with_halves_first
from fingerprint.readers.shifted_gains import with_gains_less_one

if TYPE_CHECKING:
    from fingerprint.readers.base import Contents


def restored(contents: Contents, file_format: str) -> Contents:
    """``contents`` of a checkpoint of that format (several joined with ``+``) as the weights that it stands for."""
    if gguf.READER.name in file_format.split("+"):
        contents = with_gains_less_one(with_halves_first(contents))
    return with_products(dequantised(contents))
