"""PyTorch's zip files (``torch.save`` since 1.6): a pickle that describes, and one entry of bytes for each storage."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from fingerprint import dtypes
from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import Catalogue, Contents, Finding, Reader, StoredTensor, bounded, checked_count, some
from fingerprint.readers.pickles import MAX_PICKLE, read_pickle
from fingerprint.readers.strided import StridedTensor, extent, is_contiguous
from fingerprint.readers.torch_objects import Found, TensorNote, find_tensors, unknown_globals
from fingerprint.readers.zips import ZipArchive, find_directory, is_zip

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

MAX_SHARING = 64
"""How many times the bytes of the file all tensors together may claim: shared storages, but no multiplication."""
_WRAPPERS = frozenset(
    {"model", "model_state", "model_state_dict", "module", "net", "network", "params", "state_dict", "weights"}
)
"""Keys under which training programs put a whole state dict; left out of the names of its tensors."""


def recognises(source: Source) -> bool:
    """True for a ZIP archive with a ``data.pkl`` in its directory; a damaged archive counts as one of torch's."""
    if not is_zip(source):
        return False
    try:
        offset, size, _ = find_directory(source)
    except InputError:
        return True
    return b"/data.pkl" in bytes(source.read(offset, size)).lower()


def open_torch_zip(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The tensors of a PyTorch zip file, under the names of its state dict. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    if not is_zip(source):
        hint = "files that torch.save wrote before version 1.6 cannot be read: load and save it anew"
        raise MalformedFileError("not a ZIP archive, as a file of PyTorch is", path=source.path, hint=hint)
    archive = ZipArchive(source)
    prefix = _prefix(archive)
    found, findings = _described(archive, f"{prefix}/data.pkl", catalogue)
    big_endian = _byte_order(archive, prefix) == "big"
    storages = _Storages(archive, prefix, big_endian=big_endian)
    tensors: dict[str, TensorView] = {}
    numbers: Counter[str] = Counter()
    claimed = 0
    for note in _unwrapped(found.tensors):
        name = _free_name(note.name, tensors, numbers)
        catalogue.add(name, note.shape)
        try:
            tensor = storages.tensor(name, note)
        except InputError as error:
            error.tensor = name
            raise
        if tensor is None:
            found.unread.append((name, "more elements than its storage"))
            continue
        claimed += math.prod(tensor.shape) * tensor.dtype.bits // 8
        if claimed > MAX_SHARING * max(source.size, storages.unpacked):
            raise LimitExceededError(f"the tensors claim more than {MAX_SHARING} times the file", path=source.path)
        tensors[name] = tensor
    findings += _notes(found, storages.shared)
    return Contents(tuple(tensors.values()), bounded([*archive.findings, *findings]), {}, not found.unread)


def _prefix(archive: ZipArchive) -> str:
    """The folder in the archive that everything lies in: that of its first entry, as in torch's reader."""
    if not archive.entries:
        raise MalformedFileError("the archive is empty", path=archive.source.path)
    prefix = next(iter(archive.entries)).split("/", 1)[0]
    if f"{prefix}/data.pkl" not in archive.entries:
        raise MalformedFileError(f"the archive has no {clipped(prefix)}/data.pkl", path=archive.source.path)
    return prefix


def _described(archive: ZipArchive, name: str, catalogue: Catalogue) -> tuple[Found, list[Finding]]:
    data = _small(archive, name, MAX_PICKLE)
    archive.check_crc(name, data)
    pickle = read_pickle(data, archive.source.path)
    catalogue.take(2 * len(data) + pickle.memory)  # once more where the file is mapped
    found = find_tensors(pickle.root, catalogue)
    findings = [
        Finding("unknown-global", f"the pickle names {clipped(str(unknown))}, which was not called")
        for unknown in unknown_globals(pickle)
    ]
    if pickle.end < len(data):
        findings.append(Finding("trailing-bytes", f"{len(data) - pickle.end} bytes follow the end of the pickle"))
    others = [e.name for key, e in archive.entries.items() if key.endswith((".pkl", ".pickle")) and key != name]
    if others:
        findings.append(Finding("other-pickles", f"{len(others)} more pickles were not read: {some(others)}"))
    return found, findings


def _small(archive: ZipArchive, name: str, most: int) -> bytes:
    source, start, size = archive.locate(name)
    if size > most:
        raise LimitExceededError(f"{name!r} has {size} bytes; {most} are allowed", path=archive.source.path)
    return bytes(source.read(start, size))


def _byte_order(archive: ZipArchive, prefix: str) -> str:
    name = f"{prefix}/byteorder"
    if name not in archive.entries:
        return "little"
    order = _small(archive, name, 16)
    if order not in {b"little", b"big"}:
        raise MalformedFileError(f"unknown byte order {clipped(repr(order))}", path=archive.source.path)
    return order.decode()


class _Storages:
    """The entries of an archive that hold storages."""

    def __init__(self, archive: ZipArchive, prefix: str, *, big_endian: bool) -> None:
        self._archive = archive
        self._prefix = prefix
        self._big_endian = big_endian
        self._located: dict[str, tuple[Source, int, int]] = {}
        self._first: dict[tuple[str, int, tuple[int, ...]], str] = {}
        self.shared: list[str] = []
        self.unpacked = 0

    def tensor(self, name: str, note: TensorNote) -> TensorView | None:
        """The tensor that ``note`` describes, or None if it has more elements than its storage."""
        storage, path = note.storage, self._archive.source.path
        source, start, size = self._locate(storage.key)
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
            return StoredTensor(name, note.dtype, shape, source, first, self._big_endian)
        if note.dtype == dtypes.F4:
            return None
        flat = (extent(note.shape, note.strides),)
        window = StoredTensor(name, note.dtype, flat, source, first, self._big_endian)
        return StridedTensor(name, note.shape, note.strides, window)

    def _locate(self, key: str) -> tuple[Source, int, int]:
        if key not in self._located:
            self._located[key] = self._archive.locate(f"{self._prefix}/data/{key}")
            self.unpacked += self._located[key][2]
        return self._located[key]

    def _note_sharing(self, name: str, note: TensorNote) -> None:
        place = (note.storage.key, note.offset, note.shape)
        if math.prod(note.shape) and self._first.setdefault(place, name) != name:
            self.shared.append(name)


def _unwrapped(notes: list[TensorNote]) -> Iterable[TensorNote]:
    """``notes`` without the key of the one wrapper that they all lie under, if there is one."""
    tops = {note.name.split(".", 1)[0] for note in notes}
    if len(tops) != 1 or not tops <= _WRAPPERS or not all("." in note.name for note in notes):
        return notes
    return (note.renamed(note.name.split(".", 1)[1]) for note in notes)


def _free_name(name: str, taken: dict[str, TensorView], numbers: Counter[str]) -> str:
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


READER = Reader("pytorch", (".pt", ".pth", ".bin", ".ckpt"), recognises, open_torch_zip)
