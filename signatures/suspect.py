"""A suspect under examination: its fingerprint, and its weights while they are open, to look again where needed."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from fingerprint.assemble import SUSPECT_NEURONS, fingerprint, with_turned_digests
from fingerprint.checkpoint import open_checkpoint
from signatures.signature import is_signature, read_signature

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from fingerprint.checkpoint import Checkpoint
    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import Fingerprint

_TURNED_CHANGE: Final = 0.2
"""Relative change up to which a transposed match may turn out to have equal digests, after rounding to 8 bits say."""


@dataclass(slots=True)
class Suspect:
    """What is known of a suspect so far. ``checkpoint`` is None where only a signature of it is at hand."""

    fingerprint: Fingerprint
    checkpoint: Checkpoint | None

    def look_again(self, comparison: Comparison) -> bool:
        """Read what a comparison asks for: digests of transposes. True if the fingerprint now knows more.

        Raises ``InputError``.
        """
        if self.checkpoint is None:
            return False
        wanted = [
            match.suspect
            for match in comparison.matches
            if match.transposed
            and not match.digest
            and match.change < _TURNED_CHANGE
            and not self.fingerprint.tensors[match.suspect].turned_digest
        ]
        if wanted:
            self.fingerprint = with_turned_digests(self.fingerprint, self.checkpoint, wanted)
        return bool(wanted)


@contextmanager
def open_suspect(
    path: str | os.PathLike[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    registered: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Suspect]:
    """Measure a checkpoint, or read a signature file, and keep the weights open for a second look.

    ``include`` and ``exclude`` are globs over stored tensor names. ``registered`` measures as for registration: with
    the digests after rounding, and the smaller sample of neurons. Raises ``InputError``, ``SignatureError``.
    """
    if is_signature(path):
        yield Suspect(read_signature(path).fingerprint, None)
        return
    with open_checkpoint(path) as opened:
        checkpoint = _chosen(opened, include, exclude)
        neurons = None if registered else SUSPECT_NEURONS
        yield Suspect(fingerprint(checkpoint, casts=registered, neurons=neurons, progress=progress), checkpoint)


def _chosen(checkpoint: Checkpoint, include: Sequence[str], exclude: Sequence[str]) -> Checkpoint:
    if not include and not exclude:
        return checkpoint
    tensors = tuple(
        tensor
        for tensor in checkpoint.tensors
        if (not include or any(fnmatchcase(tensor.name, glob) for glob in include))
        and not any(fnmatchcase(tensor.name, glob) for glob in exclude)
    )
    return replace(checkpoint, tensors=tensors, complete=False)
