"""What it adds to know that weights lie on a grid of 4 bits: reconstructed entries drawn to the grid's values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from benchmarks.disclosure.reconstruct import Means, explained, reconstruct
from benchmarks.disclosure.sections import sections_of
from benchmarks.disclosure.study import knowing, matrices, rows_of
from benchmarks.disclosure.translate import Translator
from fingerprint.assemble import measure_checkpoint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.measure import matrix_shape
from signatures import sign

if TYPE_CHECKING:
    from pathlib import Path

Float64 = NDArray[np.float64]

RUN = 32
LEVELS = np.arange(-7.0, 8.0)


def quantised(path: Path, folder: Path) -> Path:
    """The checkpoint with its matrices rounded to 15 values in runs of 32, by the largest of each run."""
    made = folder / f"{path.stem}-4-bit.safetensors"
    weights = load_file(path)
    save_file({name: _rounded(one) if one.ndim == 2 else one for name, one in weights.items()}, made)
    return made


def _rounded(matrix: torch.Tensor) -> torch.Tensor:
    pieces = [matrix[:, first : first + RUN] for first in range(0, matrix.shape[1], RUN)]
    scales = [part.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LEVELS[-1] for part in pieces]
    return torch.cat([(part / by).round() * by for part, by in zip(pieces, scales, strict=True)], dim=1).contiguous()


def with_grid(path: Path) -> list[str]:
    """Rows: matrix, bits told by the signature, explained with embeddings at hand, and with the grid's scales too."""
    lines = []
    with open_checkpoint(path) as checkpoint:
        measured = measure_checkpoint(checkpoint)
        kept = sign(measured.fingerprint).fingerprint
        owner = knowing(measured, kept)
        translator = Translator(owner)
        for (role, kind), places in matrices(kept, 1).items():
            shape, rows = matrix_shape(kind), rows_of(measured, places[0])
            truth = rows(0, shape[0])
            found = reconstruct(
                [*sections_of(owner, places[0]), *translator.sections(places[0])], Means.of(shape, rows)
            )
            before = explained(shape, rows, found)
            guess, prior = found.rows(0, shape[0]), found.prior.rows(0, shape[0])
            drawn = drawn_to(guess, _scales(truth), float(np.mean((truth - guess) ** 2)))
            after = 1.0 - float(np.sum((truth - drawn) ** 2) / np.sum((truth - prior) ** 2))
            bits = kept.tensors[places[0]].statistics.lattice_bits
            lines.append(f"| {role} | {bits} | {before:.2%} | {after:.2%} |")
    return lines


def drawn_to(guess: Float64, scales: Float64, error: float) -> Float64:
    """The mean of each entry over the grid of its run, given a guess that is off by ``error`` in the mean square."""
    values = scales[:, :, None] * LEVELS
    weights = -((values - guess[:, :, None]) ** 2) / (2.0 * max(error, 1e-30))
    weights = np.exp(weights - weights.max(axis=2, keepdims=True))
    found: Float64 = np.sum(values * weights, axis=2) / np.sum(weights, axis=2)
    return found


def _scales(truth: Float64) -> Float64:
    """The step of the grid at each entry."""
    steps = [np.abs(truth[:, first : first + RUN]).max(axis=1) / LEVELS[-1] for first in range(0, truth.shape[1], RUN)]
    return np.repeat(np.stack(steps, axis=1), RUN, axis=1)[:, : truth.shape[1]]
