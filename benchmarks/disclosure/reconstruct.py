"""The best linear reconstruction of matrices from a signature: the matrix nearest to a guess that has its samples.

Everything that a signature holds of a matrix is linear in it: ``leftᵀ W right`` for directions that the parameters
give. The nearest matrix to a guess with all of these is found by projecting onto one after the other, again and again
(Kaczmarz 1937, by blocks); rounding in the file makes it approximate. Without a guess it is the least-norm solution,
which is the best linear predictor of matrices whose entries are independent and of equal variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fingerprint.measure import matrix_shape
from fingerprint.signs import Stream, sign_matrix
from fingerprint.vocabulary import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fingerprint.records import Fingerprint, NeuronSample, TensorRecord

Float64 = NDArray[np.float64]
ROUNDS = 40


def reconstruct(
    fingerprint: Fingerprint,
    position: int,
    guess: Float64 | None = None,
    frames: dict[str, Float64] | None = None,
    *,
    kinds: Sequence[str] = ("sketch", "slices", "neurons"),
) -> tuple[Float64, int]:
    """The reconstructed matrix (rows, columns), and how many numbers of the signature it rests on.

    ``guess`` is a matrix to start from, such as a public sibling's; ``frames`` are directions (width, frame_width) of
    frames that the reader can guess, by name, besides the fixed one.
    """
    record = fingerprint.tensors[position]
    rows, columns = matrix_shape(record.shape)
    found = np.zeros((rows, columns)) if guess is None else guess.copy()
    steps, numbers = [], 0
    if "sketch" in kinds and record.sketch is not None:
        steps.append(_from_sketch(record, fingerprint.parameters.seed))
        numbers += record.sketch.size
    if "slices" in kinds:
        for sample in record.axes:
            steps.append(_from_slices(record, sample.dimension, fingerprint.parameters.seed))
            numbers += sample.values.size
    if "neurons" in kinds:
        for neurons in fingerprint.neurons:
            known = {Frame.FIXED.value: None, **(frames or {})}
            if position in neurons.tensors and neurons.frame in known:
                steps.append(_from_neurons(neurons, position, known[neurons.frame], rows, columns, fingerprint))
                numbers += neurons.gate.size
    for _ in range(ROUNDS if len(steps) > 1 else 1):
        for step in steps:
            step(found)
    return found, numbers


def explained(truth: Float64, found: Float64, trivial: Float64) -> float:
    """Share of the squares that the trivial predictor leaves which is explained; below 0 if it is worse."""
    return 1.0 - float(np.sum((truth - found) ** 2)) / max(float(np.sum((truth - trivial) ** 2)), 1e-30)


def centred(matrix: Float64) -> Float64:
    """Less the means of rows and of columns."""
    found: Float64 = matrix - matrix.mean(axis=0) - matrix.mean(axis=1, keepdims=True) + matrix.mean()
    return found


def _signs(seed: int, stream: Stream, size: int, width: int) -> Float64:
    signs = sign_matrix(seed, stream, size, width).astype(np.float64)
    found: Float64 = signs - signs.mean(axis=0)
    return found


def _from_sketch(record: TensorRecord, seed: int) -> Callable[[Float64], None]:
    rows, columns = matrix_shape(record.shape)
    sketch = np.zeros((1, 1), np.float32) if record.sketch is None else record.sketch
    k = sketch.shape[0]
    left, right = (_signs(seed, Stream.SKETCH, size, k) for size in (rows, columns))
    one, other = np.linalg.pinv(left), np.linalg.pinv(right)
    wanted = sketch.astype(np.float64) * k

    def step(found: Float64) -> None:
        found += one.T @ (wanted - left.T @ found @ right) @ other

    return step


def _from_slices(record: TensorRecord, dimension: int, seed: int) -> Callable[[Float64], None]:
    """Of columns, turned, what holds of rows."""
    sample = next(one for one in record.axes if one.dimension == dimension)
    length = matrix_shape(record.shape)[1 - dimension]
    width = sample.values.shape[1]
    signs = _signs(seed, Stream.SLICE, length, width)
    inverse = np.linalg.pinv(signs)
    wanted = sample.values.astype(np.float64) * np.sqrt(width)

    def step(found: Float64) -> None:
        view = found if dimension == 0 else found.T
        chosen = view[sample.indices]
        view[sample.indices] = chosen + (wanted - (chosen - view.mean(axis=0)) @ signs) @ inverse

    return step


def _from_neurons(
    sample: NeuronSample, position: int, frame: Float64 | None, rows: int, columns: int, fingerprint: Fingerprint
) -> Callable[[Float64], None]:
    part = sample.tensors.index(position)
    values = (sample.gate, sample.gate if sample.up is None else sample.up, sample.down)[part]
    # Neurons are rows of gate and up and columns of down: told by the number of neurons.
    across = part == 2
    width = rows if across else columns
    if frame is None:
        frame = sign_matrix(fingerprint.parameters.seed, Stream.FRAME, width, values.shape[1]).astype(np.float64)
        # Samples in the fixed frame are of slices less their own means.
        frame = (frame - frame.mean(axis=0)) / np.sqrt(values.shape[1])
    inverse = np.linalg.pinv(frame)
    wanted = values.astype(np.float64)

    def step(found: Float64) -> None:
        view = found.T if across else found
        chosen = view[sample.indices]
        view[sample.indices] = chosen + (wanted - chosen @ frame) @ inverse

    return step
