"""The tensors of a PyTorch file as views: what its pickle describes, put onto the bytes of its storages."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct, field

from fingerprint import dtypes
from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import (
    Catalogue,
    Contents,
    Finding,
    StoredTensor,
    bounded,
    checked_count,
    some,
    truncated,
)
from fingerprint.readers.numpy_objects import ArrayNote, array_view
from fingerprint.readers.strided import StridedTensor, extent, is_contiguous
from fingerprint.readers.torch_objects import Found, TensorNote, find_tensors, unknown_globals

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from fingerprint.readers.pickles import Pickle
    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

MAX_SHARING = 64
"""How many times the bytes of the file all tensors together may claim: shared storages, but no multiplication."""
WRAPPERS = frozenset(
    {"model", "model_state", "model_state_dict", "module", "net", "network", "params", "state_dict", "weights"}
)
"""Keys under which training programs put a whole state dict; left out of the names of its tensors."""


class AbsentError(Exception):
    """The bytes of a storage are behind the end of a file that was cut off."""


class Storages(Struct):
    """Where the storages of a file lie.

    ``locate`` gives, for the key of a storage, a source, the offset in it and the bytes there; it raises
    ``InputError``, and ``AbsentError`` where the file ends before.
    """

    path: str
    locate: Callable[[str], tuple[Source, int, int]]
    big_endian: bool = False
    shared: list[str] = field(default_factory=list)
    bytes: int = 0
    _located: dict[str, tuple[Source, int, int]] = field(default_factory=dict)
    _first: dict[tuple[str, int, tuple[int, ...]], str] = field(default_factory=dict)

    def tensor(self, name: str, note: TensorNote) -> TensorView | None:
        """The tensor that ``note`` describes, or None if it has more elements than its storage."""
        storage, path = note.storage, self.path
        source, start, size = self._place(storage.key)
        width = (storage.dtype.bits if storage.dtype else 8) // 8
        if storage.count * width > size:
            message = f"its storage claims {storage.count * width} bytes and has {size}"
            raise MalformedFileError(message, path=path)
        if len(note.shape) != len(note.strides):
            raise MalformedFileError("as many sizes as strides are wanted", path=path)
        checked_count(note.shape, path)
        # torch counts two F4 elements, one byte, as one.
        element = max(note.dtype.bits, 8) // 8
        end = note.offset + extent(note.shape, note.strides)
        if end * element > storage.count * width:
            message = f"it reaches to byte {end * element} of a storage of {storage.count * width}"
            raise MalformedFileError(message, path=path)
        if math.prod(note.shape) * element > storage.count * width:
            return None
        self._note_sharing(name, note)
        first = start + note.offset * element
        if is_contiguous(note.shape, note.strides):
            shape = note.shape
            if note.dtype == dtypes.F4:
                shape = (*shape[:-1], 2 * shape[-1]) if shape else (2,)
            return StoredTensor(name, note.dtype, shape, source, first, self.big_endian)
        if note.dtype == dtypes.F4:
            return None
        flat = (extent(note.shape, note.strides),)
        window = StoredTensor(name, note.dtype, flat, source, first, self.big_endian)
        return StridedTensor(name, note.shape, note.strides, window)

    def _place(self, key: str) -> tuple[Source, int, int]:
        if key not in self._located:
            self._located[key] = self.locate(key)
            self.bytes += self._located[key][2]
        return self._located[key]

    def _note_sharing(self, name: str, note: TensorNote) -> None:
        place = (note.storage.key, note.offset, note.shape)
        if math.prod(note.shape) and self._first.setdefault(place, name) != name:
            self.shared.append(name)


def described(pickle: Pickle, size: int, catalogue: Catalogue) -> tuple[Found, list[Finding]]:
    """The tensors of a pickle, and what it names that is not known. ``size``: the bytes of the pickle."""
    catalogue.take(min(size, 1 << 16) + pickle.memory)
    return find_tensors(pickle.root, catalogue), unknown(pickle)


def unknown(pickle: Pickle) -> list[Finding]:
    """The findings about names in a pickle that are not on the closed list."""
    return [
        Finding("unknown-global", f"the pickle names {clipped(str(name))}, which was not called")
        for name in unknown_globals(pickle)
    ]


def assembled(
    found: Found, storages: Storages, catalogue: Catalogue, size: int, findings: Iterable[Finding]
) -> Contents:
    """Views of everything that was found in a file of ``size`` bytes. Raises ``InputError``."""
    tensors: dict[str, TensorView] = {}
    numbers: Counter[str] = Counter()
    absent: list[str] = []
    claimed = 0
    for note in unwrapped(found.tensors):
        name = free_name(note.name, tensors, numbers)
        try:
            tensor = array_view(note, storages.path) if isinstance(note, ArrayNote) else storages.tensor(name, note)
        except AbsentError:
            absent.append(name)
            continue
        except InputError as error:
            error.tensor = name
            raise
        if tensor is None:
            found.unread.append((name, "more elements than its storage"))
            continue
        catalogue.take(300 + 40 * len(tensor.shape))  # the note was counted as a tensor already
        claimed += math.prod(tensor.shape) * tensor.dtype.bits // 8
        if claimed > MAX_SHARING * max(size, storages.bytes):
            message = f"the tensors claim more than {MAX_SHARING} times the file"
            raise LimitExceededError(message, path=storages.path)
        tensors[name] = tensor
    notes = [*findings, *_notes(found, storages.shared)]
    if absent:
        notes.append(truncated(size, len(absent), len(absent) + len(tensors), absent[0]))
    return Contents(tuple(tensors.values()), bounded(notes), {}, not found.unread and not absent)


def unwrapped(notes: list[TensorNote | ArrayNote]) -> Iterable[TensorNote | ArrayNote]:
    """``notes`` without the key of the one wrapper that they all lie under, if there is one."""
    prefix = wrapper(note.name for note in notes)
    return (note.renamed(note.name[len(prefix) :]) for note in notes) if prefix else notes


def wrapper(names: Iterable[str]) -> str:
    """The key of a wrapper that all ``names`` lie under, with its dot; empty if there is none."""
    tops: set[str] = set()
    for name in names:
        top, dot, _ = name.partition(".")
        tops.add(top)
        if not dot or len(tops) > 1 or top not in WRAPPERS:
            return ""
    return f"{tops.pop()}." if tops else ""


def free_name(name: str, taken: Container[str], numbers: Counter[str]) -> str:
    """``name``, or with a number if another tensor has it: keys 1 and "1" are different, and so are the tensors."""
    free = name = name or "tensor"
    while free in taken:
        numbers[name] += 1
        free = f"{name}#{numbers[name] + 1}"
    return free


def _notes(found: Found, shared: list[str]) -> list[Finding]:
    findings = [Finding("unread-tensor", f"a tensor cannot be read: {reason}", name) for name, reason in found.unread]
    if found.optimisers:
        text = f"the state of {len(found.optimisers)} optimisers was set aside: {some(found.optimisers)}"
        findings.append(Finding("optimiser-state", text))
    if shared:
        text = f"{len(shared)} tensors are others under a second name: {some(shared)}"
        findings.append(Finding("tied-tensors", text, shared[0]))
    return findings
