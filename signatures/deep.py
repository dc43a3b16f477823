"""A deep comparison: the tests of a scan, and then everything between two checkpoints undone as far as it can be."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import InputError, UsageError
from fingerprint.undoing.undo import undo
from fingerprint.vocabulary import Depth
from signatures.options import ScanOptions
from signatures.scan import compare_paths
from signatures.signature import is_signature

if TYPE_CHECKING:
    from collections.abc import Callable

    from fingerprint.undoing.undo import Transform
    from signatures.report import Report


def compare_deep(
    registered: str | os.PathLike[str],
    suspect: str | os.PathLike[str],
    *,
    options: ScanOptions | None = None,
    progress: Callable[[int], None] | None = None,
    transform: str | None = None,
) -> Report:
    """Compare two checkpoints by every test, then recover what turns one into the other: ``Report.undoing``.

    ``transform`` is a file (.npz) for the rotation, orders, signs and scales themselves. The verdict is that of the
    tests; the residuals stand beside it. Raises ``InputError``, and ``UsageError`` if one of the two is a signature.
    """
    started = time.perf_counter()
    for path in (registered, suspect):
        if is_signature(path):
            raise UsageError(f"{path}: a deep comparison needs the weights of both, and this is a signature")
    chosen = replace(options or ScanOptions(), depth=Depth.DEEP)
    report = compare_paths(registered, suspect, options=chosen, progress=progress)
    try:
        with open_checkpoint(registered) as ours, open_checkpoint(suspect) as theirs:
            undoing, found = undo(ours, theirs)
    except InputError as error:
        return report.despite(error, "undoing what was done")
    if transform is not None and found is not None:
        _write(transform, found)
    return replace(report, undoing=undoing, seconds=time.perf_counter() - started)


def _write(path: str, found: Transform) -> None:
    """Arrays by name: see docs/verdicts.md. Whole or not at all."""
    arrays: dict[str, Any] = {"rotation": found.stream.rotation, "scale": np.float64(found.stream.scale)}
    if found.stream.tokens is not None:
        arrays["tokens"] = found.stream.tokens.order
    for number, mlp in enumerate(found.mlps):
        arrays |= {f"mlp.{number}.order": mlp.order, f"mlp.{number}.scale": mlp.scale}
        arrays[f"mlp.{number}.layers"] = _layers(mlp.theirs, mlp.ours)
    for number, half in enumerate(found.heads):
        name = f"{half.kind}.{number}"
        arrays |= {f"{name}.order": half.order, f"{name}.group": half.group, f"{name}.maps": half.maps}
        arrays[f"{name}.layers"] = _layers(half.theirs, half.ours)
    partial = f"{path}.part{os.getpid()}"
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        Path(partial).unlink(missing_ok=True)


def _layers(theirs: int | None, ours: int | None) -> np.ndarray[Any, Any]:
    return np.array([-1 if one is None else one for one in (theirs, ours)])
