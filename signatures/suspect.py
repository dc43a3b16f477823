"""A suspect under examination: its fingerprint, and its weights while they are open, to look again where needed."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field
from msgspec.structs import replace

from fingerprint.assemble import SUSPECT_NEURONS, deepened, measure_checkpoint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.memory import give_back
from fingerprint.quick import quick_look
from fingerprint.revisit import Parts, kernels, with_parts, with_turned_digests
from fingerprint.vocabulary import Depth, Role
from signatures.options import AUTO
from signatures.relation import is_part, stem
from signatures.signature import is_signature, read_signature

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fingerprint.assemble import Measured
    from fingerprint.checkpoint import Checkpoint
    from fingerprint.comparing.comparison import Comparison
    from fingerprint.records import Fingerprint, TensorRecord

AUTO_WHOLE: Final = 1 << 28
"""Bytes up to which a checkpoint is read whole at once where the depth is left open: that takes under a second."""
_TURNED_CHANGE: Final = 0.2
"""Relative change up to which a transposed match may turn out to have equal digests, after rounding to 8 bits say."""


_MATCHED_WHOLE: Final = 0.9
"""Cosine from which a block counts as matched as it is: its first part alone reaches .5 to .7 of a fused one."""
_OFTEN_FUSED: Final = ((Role.QUERY, Role.KEY, Role.VALUE), (Role.GATE, Role.UP))
_RELATED: Final = -3.0
"""log10 p from which a model is taken to know how the suspect's blocks are fused."""


class Suspect(Struct):
    """What is known of a suspect so far. ``measured`` is None where there is no second look: of a signature, of a quick
    look."""

    fingerprint: Fingerprint
    measured: Measured | None

    def look_again(self, comparisons: Sequence[Comparison]) -> bool:
        """Read what comparisons ask for. True if the fingerprint now knows more, so that it should be compared again.

        Blocks of a size that is fused in a related model, and that match nothing as they are, are split as they are
        split there; matrices that resemble the transpose of a registered one get the digest of their transpose.
        Raises ``InputError``.
        """
        if self.measured is None:
            return False
        # Splitting changes the positions that all comparisons speak of: one model's wishes at a time, and nothing else.
        whole = {position for comparison in comparisons for position in _matched_whole(comparison)}
        related = [comparison for comparison in comparisons if comparison.log10_p <= _RELATED]
        splits = next((found for comparison in related if (found := _splits(comparison, whole))), None)
        turned = {position for comparison in comparisons for position in _turned(comparison)}
        if splits:
            self.measured = with_parts(self.measured, splits)
        elif turned:
            self.measured = with_turned_digests(self.measured, sorted(turned))
        self.fingerprint = self.measured.fingerprint
        return bool(splits or turned)


def _turned(comparison: Comparison) -> list[int]:
    return [
        match.suspect
        for match in comparison.matches
        if match.transposed
        and not match.digest
        and match.change < _TURNED_CHANGE
        and not comparison.suspect.tensors[match.suspect].turned_digest
    ]


def _matched_whole(comparison: Comparison) -> list[int]:
    """Positions of the suspect's tensors that correspond to a registered one as they are, or whose neurons do."""
    matched = [match.suspect for match in comparison.matches if match.digest or abs(match.cosine) > _MATCHED_WHOLE]
    in_place = {match.suspect for match in comparison.matches}
    return matched + [
        position
        for position, share in comparison.covered.items()
        if position not in in_place and share > _MATCHED_WHOLE
    ]


def _splits(comparison: Comparison, matched: set[int]) -> dict[int, Parts]:
    fused = _fusions(comparison.registered.tensors)
    splits = {}
    for position, tensor in enumerate(comparison.suspect.tensors):
        if tensor.sketch is None or len(tensor.shape) != 2 or position in matched:
            continue
        rows, columns = tensor.shape
        if (rows, columns) in fused:
            splits[position] = Parts(fused[rows, columns], flipped=False)
        elif (columns, rows) in fused:
            splits[position] = Parts(fused[columns, rows], flipped=True)
    return splits


def _fusions(registered: Sequence[TensorRecord]) -> dict[tuple[int, int], tuple[int, ...]]:
    """Shapes of blocks, with the rows of their parts: those that are fused in the registered model, and those that
    others fuse (query, key and value; gate and up)."""
    blocks: dict[object, list[tuple[int, ...]]] = defaultdict(list)
    for roles in _OFTEN_FUSED:
        for role in roles:
            for tensor in registered:
                if tensor.role is role and tensor.layer is not None and len(tensor.shape) == 2:
                    blocks[roles, tensor.layer, tensor.expert].append(tensor.shape)
    for tensor in registered:
        if is_part(tensor.name) and len(tensor.shape) == 2:
            blocks[stem(tensor.name)].append(tensor.shape)
    fused = {}
    for shapes in blocks.values():
        if len(shapes) > 1 and len({columns for _, columns in shapes}) == 1:
            sizes = tuple(rows for rows, _ in shapes)
            fused[sum(sizes), shapes[0][1]] = sizes
    return fused


class Opened(Struct, frozen=True):
    """A checkpoint that can be measured at any depth, or a signature, whose depth is what it is.

    ``registered`` measures as for registration: with the digests after rounding, and the smaller sample of neurons.
    The steps of ``meanwhile`` are taken while processes measure, if there are such.
    """

    checkpoint: Checkpoint | None
    signature: Fingerprint | None
    registered: bool
    progress: Callable[[int], None] | None
    meanwhile: Iterable[object] = ()
    _whole: list[Measured] = field(default_factory=list)
    """What was measured at full depth, from which a deeper look goes on: there until it does."""

    def depths(self, wanted: str) -> tuple[Depth, ...]:
        """The depths to try for the option ``wanted``, one after the other as long as nothing is explained."""
        if wanted != AUTO:
            return (Depth(wanted),)
        whole = (Depth.FULL, Depth.DEEP)
        if self.checkpoint is None:
            return (Depth.FULL,)
        small = self.checkpoint.bytes <= AUTO_WHOLE
        if self.checkpoint.transfer is not None:
            return (Depth.QUICK, *whole) if small else (Depth.QUICK,)
        return whole if small else (Depth.QUICK, *whole)

    def at(self, depth: Depth) -> Suspect:
        """What there is, measured at ``depth``; raises ``InputError``."""
        if self.checkpoint is None:
            if self.signature is None:
                raise ValueError("neither a checkpoint nor a signature was opened")
            return Suspect(self.signature, None)
        if depth is Depth.QUICK:
            looked = quick_look(self.checkpoint, casts=self.registered, progress=self.progress)
            return Suspect(_as_fetched(looked.fingerprint, self.checkpoint), None)
        if not self._whole:
            neurons = None if self.registered else SUSPECT_NEURONS
            measured = measure_checkpoint(
                self.checkpoint,
                casts=self.registered,
                neurons=neurons,
                progress=self.progress,
                deep=False,
                meanwhile=self.meanwhile,
            )
            if not self.registered:
                measured = with_turned_digests(measured, kernels(measured))
            self._whole.append(measured)
        if depth is Depth.DEEP and not self.registered:
            measured = deepened(self._whole.pop())
        else:
            (measured,) = self._whole
        give_back()
        measured = replace(measured, fingerprint=_as_fetched(measured.fingerprint, self.checkpoint))
        return Suspect(measured.fingerprint, measured)


def _as_fetched(made: Fingerprint, checkpoint: Checkpoint) -> Fingerprint:
    """Of a checkpoint that lies elsewhere: with the bytes that were fetched for it, and what that leaves unread."""
    transfer = checkpoint.transfer
    if transfer is None:
        return made
    text = f"fetched in {transfer.requests:,} requests"
    if transfer.retries:
        text += f", {transfer.retries:,} of them again after a failure"
    if made.depth == Depth.QUICK:
        text += "; --depth full reads every byte"
    return replace(made, bytes_read=transfer.bytes, findings=(*made.findings, ("fetched", text)))


@contextmanager
def open_suspect(
    path: str | os.PathLike[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    registered: bool = False,
    progress: Callable[[int], None] | None = None,
    meanwhile: Iterable[object] = (),
) -> Iterator[Opened]:
    """Open a checkpoint, and keep its weights open for a second look, or read a signature file.

    ``include`` and ``exclude`` are globs over stored tensor names; of a signature, what it holds of other tensors is
    left out. ``registered``, ``meanwhile``: see ``Opened``. Raises ``InputError``, ``SignatureError``.
    """
    if is_signature(path):
        yield Opened(None, _chosen_records(read_signature(path).fingerprint, include, exclude), registered, progress)
        return
    with open_checkpoint(path) as opened:
        yield Opened(_chosen(opened, include, exclude), None, registered, progress, meanwhile)


def _chosen(checkpoint: Checkpoint, include: Sequence[str], exclude: Sequence[str]) -> Checkpoint:
    if not include and not exclude:
        return checkpoint
    tensors = tuple(tensor for tensor in checkpoint.tensors if _is_wanted(tensor.name, include, exclude))
    return replace(checkpoint, tensors=tensors, complete=False)


def _chosen_records(whole: Fingerprint, include: Sequence[str], exclude: Sequence[str]) -> Fingerprint:
    """What a fingerprint holds of tensors of the wanted stored names, and of MLPs, heads and layers of such alone."""
    if not include and not exclude:
        return whole
    kept = [at for at, tensor in enumerate(whole.tensors) if _is_wanted(stem(tensor.name), include, exclude)]
    now = {-1: -1} | {before: after for after, before in enumerate(kept)}
    tensors = tuple(whole.tensors[at] for at in kept)
    dtypes: Counter[str] = Counter()
    for tensor in tensors:
        dtypes[tensor.dtype] += tensor.elements
    return replace(
        whole,
        tensors=tensors,
        neurons=tuple(
            replace(one, tensors=(now[one.tensors[0]], now[one.tensors[1]], now[one.tensors[2]]))
            for one in whole.neurons
            if now.keys() >= set(one.tensors)
        ),
        channels=tuple(
            replace(one, tensors=(now[one.tensors[0]], now[one.tensors[1]]))
            for one in whole.channels
            if now.keys() >= set(one.tensors)
        ),
        grams=tuple(
            replace(one, tensors=(now[one.tensors[0]], now[one.tensors[1]]))
            for one in whole.grams
            if now.keys() >= set(one.tensors)
        ),
        dtypes=dtypes,
        complete=False,
    )


def _is_wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    wanted = not include or any(fnmatchcase(name, glob) for glob in include)
    return wanted and not any(fnmatchcase(name, glob) for glob in exclude)
