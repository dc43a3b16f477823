"""Vectors by which layers are looked up, from products that no rewrite of a layer changes: never evidence.

``Σ down_i ⊗ up_i`` over the neurons of an MLP, ``Σ output_c ⊗ value_c`` over the channels of attention and
``Σ query_c ⊗ key_c`` do not change when neurons, heads or channels are permuted, rescaled or mixed, nor, in a frame
that moves with it, when the residual stream is rotated. Two models of one language have such products in common
(cosines of .5 between layers were seen where embeddings are shared), so they order candidates and prove nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from fingerprint.signs import Stream, sign_matrix
from fingerprint.vocabulary import Circuit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fingerprint.parameters import Parameters

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]


_ORDER: Final = (Circuit.DOWN_UP, Circuit.OUTPUT_VALUE, Circuit.QUERY_KEY)


def outer(left: Float32, right: Float32) -> Float64:
    """``Σ left_i ⊗ right_i``: (w, w) of rows (m, w); zeros if it is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: Float64 = left.astype(np.float64).T @ right.astype(np.float64)
    return found if np.isfinite(found).all() else np.zeros_like(found)


def sketched(product: Float64, circuit: Circuit, parameters: Parameters) -> Float32 | None:
    """The unit vector (index_width**2,) of a product (frame_width, frame_width), by random signs of its own.

    None if the product is zero.
    """
    width, narrow = parameters.frame_width, parameters.index_width
    number = _ORDER.index(circuit)
    signs = sign_matrix(parameters.seed, Stream.GRAM, 2 * width * len(_ORDER), narrow)
    left, right = (signs[(2 * number + side) * width :][:width] for side in (0, 1))
    size = float(np.abs(product).max(initial=0.0))
    found = left.T @ (product / size) @ right if size > 0.0 else np.zeros((narrow, narrow))
    length = float(np.linalg.norm(found))
    return (found / length).astype(np.float32).reshape(-1) if length > 0.0 else None
