"""PyTorch's distributed checkpoints: ``.metadata`` says which chunk of which tensor is where in the ``*.distcp`` files.

Format: torch/distributed/checkpoint/metadata.py and filesystem.py (torch 2.13): a pickle of dataclasses, and files in
which every chunk is what ``torch.save`` wrote, at an offset.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from msgspec import Struct

from fingerprint.errors import InputError, LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.base import About, Catalogue, Contents, FileRecord, Finding, bounded, checked_count, some
from fingerprint.readers.chunked import Chunk, Chunked
from fingerprint.readers.index import is_plain_name
from fingerprint.readers.marks import DISTRIBUTED
from fingerprint.readers.pickles import Call, Global, Pairs, read_pickle_at
from fingerprint.readers.pytorch import open_pytorch
from fingerprint.readers.torch_objects import unknown_globals
from fingerprint.readers.torch_views import wrapper
from fingerprint.source import Section
from fingerprint.tensors import renamed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fingerprint.readers.pickles import Pickle
    from fingerprint.readers.places import Folder
    from fingerprint.source import Source
    from fingerprint.tensors import TensorView

FORMAT = "pytorch-distributed"
ABOUT = About(
    "PyTorch distributed checkpoints (DCP)",
    "a folder with a `.metadata`",
    "chunks in any grid, put together as they are read; optimisers, told by their form, are set aside",
    "transformed (compressed) chunks",
)
MAX_FILES = 4096
MAX_CHUNKS = 2**17
"""Most chunks of a checkpoint; each one is opened."""
_MODULES: Final = ("torch.distributed.checkpoint", "pathlib", "torch.distributed._shard")
"""Where the classes of ``.metadata`` come from; their objects are read by their fields."""

_Box = tuple[tuple[int, ...], tuple[int, ...]]


class _Place(Struct, frozen=True):
    """Where a chunk is stored."""

    file: str
    offset: int
    length: int
    transformed: bool


def open_distributed(place: Folder, catalogue: Catalogue) -> tuple[Contents, tuple[FileRecord, ...]]:
    """The tensors of a distributed checkpoint, and its files. Raises ``InputError``."""
    source = place.open(DISTRIBUTED)
    try:
        pickle = read_pickle_at(source)
        catalogue.take(pickle.memory)
        return _Reader(place, catalogue, source.path, pickle).read()
    finally:
        source.close()


class _LeftError(Exception):
    """Why a tensor is left out."""


class _Reader:
    """The metadata of a checkpoint while its chunks are opened."""

    def __init__(self, place: Folder, catalogue: Catalogue, path: str, pickle: Pickle) -> None:
        self.place = place
        self.catalogue = catalogue
        self.path = path
        self.root = _fields(pickle.root)
        self.findings = [
            Finding("unknown-global", f"the pickle names {clipped(str(name))}, which was not called")
            for name in unknown_globals(pickle)
            if not name.module.startswith(_MODULES)
        ]
        self.sources: dict[str, Source | None] = {}
        self.absent: dict[str, int] = defaultdict(int)
        self.unread = 0

    def read(self) -> tuple[Contents, tuple[FileRecord, ...]]:
        """Everything; gives the opened files up where that fails."""
        try:
            return self._read()
        except BaseException:
            for source in self.sources.values():
                if source is not None:
                    source.close()
            raise

    def _read(self) -> tuple[Contents, tuple[FileRecord, ...]]:
        described = self.root.get("state_dict_metadata")
        stored = self.root.get("storage_data")
        if not isinstance(described, Pairs) or not isinstance(stored, Pairs):
            raise MalformedFileError("no metadata of a distributed checkpoint", path=self.path)
        places = self._places(stored)
        optimisers = _optimisers(self.root.get("planner_data"))
        tensors: list[TensorView] = []
        for name, metadata in described.pairs:
            fields = _fields(metadata)
            if not isinstance(name, str) or "chunks" not in fields or name in optimisers:
                continue  # plain values have no chunks
            try:
                view = self._tensor(name, fields, places)
            except _LeftError as reason:
                self.unread += 1
                self.findings.append(Finding("unread-tensor", f"a tensor cannot be read: {reason}", name))
                continue
            if view is not None:
                tensors.append(view)
        if optimisers:
            text = f"the state of optimisers was set aside, {len(optimisers)} entries: {some(sorted(optimisers))}"
            self.findings.append(Finding("optimiser-state", text))
        for file, count in self.absent.items():
            text = f"the file {clipped(file)!r}, with {count} chunks, is not there"
            self.findings.append(Finding("absent-shard", text))
        prefix = wrapper(tensor.name for tensor in tensors)
        views = tuple(renamed(tensor, tensor.name[len(prefix) :]) for tensor in tensors)
        opened = [(file, source) for file, source in self.sources.items() if source is not None]
        complete = not self.unread and not self.absent
        sources = tuple(source for _, source in opened)
        files = tuple(FileRecord(file, source.size) for file, source in opened)
        return Contents(views, bounded(self.findings), complete=complete, sources=sources), files

    def _places(self, stored: Pairs) -> dict[tuple[str, tuple[int, ...]], _Place]:
        """Where chunks are stored, by the name of the tensor and their offsets."""
        if len(stored.pairs) > MAX_CHUNKS:
            raise LimitExceededError(f"more than {MAX_CHUNKS} chunks", path=self.path)
        places: dict[tuple[str, tuple[int, ...]], _Place] = {}
        for key, value in stored.pairs:
            index, info = _fields(key), _fields(value)
            name, offsets = index.get("fqn"), _sizes(index.get("offset"))
            file, offset, length = info.get("relative_path"), info.get("offset"), info.get("length")
            if not isinstance(name, str) or not isinstance(file, str) or not _is_size(offset) or not _is_size(length):
                raise MalformedFileError("a chunk whose place cannot be understood", path=self.path)
            if not is_plain_name(file):
                message = f"a chunk must lie in a plain file name, not {clipped(file)!r}"
                raise MalformedFileError(message, path=self.path, tensor=name)
            places[name, offsets or ()] = _Place(file, offset, length, bool(info.get("transform_descriptors")))
        return places

    def _tensor(
        self, name: str, fields: Mapping[str, Any], places: Mapping[tuple[str, tuple[int, ...]], _Place]
    ) -> TensorView | None:
        shape, chunks = _sizes(fields.get("size")), fields.get("chunks")
        self.catalogue.add(name, shape or ())
        if shape is None or not isinstance(chunks, list):
            raise _LeftError("its size or its chunks cannot be understood")
        count = checked_count(shape, self.path)
        boxes: list[_Box] = []
        views: list[Chunk] = []
        for chunk in chunks:
            box = _fields(chunk)
            offsets, sizes = _sizes(box.get("offsets")), _sizes(box.get("sizes"))
            if offsets is None or sizes is None or not len(offsets) == len(sizes) == len(shape):
                raise _LeftError("a chunk without offsets and sizes")
            if any(begin + size > whole for begin, size, whole in zip(offsets, sizes, shape, strict=True)):
                raise MalformedFileError("a chunk reaches out of its tensor", path=self.path, tensor=name)
            if not math.prod(sizes) and count:
                continue
            place = places.get((name, offsets))
            if place is None:
                raise _LeftError("a chunk that is stored nowhere")
            view = self._chunk(name, place, sizes)
            if view is None:
                return None
            self.catalogue.take(300 + 80 * len(shape))
            boxes.append((offsets, sizes))
            views.append(Chunk(offsets, view))
        if sum(math.prod(sizes) for _, sizes in boxes) != count or _overlap(boxes):
            raise _LeftError("its chunks do not make it up")
        if not views or any(chunk.view.dtype != views[0].view.dtype for chunk in views):
            raise _LeftError("its chunks have no type in common")
        if len(views) == 1:
            return renamed(views[0].view, name)
        return Chunked(name, shape, tuple(views))

    def _chunk(self, name: str, place: _Place, sizes: tuple[int, ...]) -> TensorView | None:
        source = self._file(place.file)
        if source is None:
            self.absent[place.file] += 1
            return None
        if place.transformed:
            raise _LeftError("its chunks were transformed")
        if place.offset + place.length > source.size:
            self.unread += 1
            text = f"{clipped(place.file)!r} is cut off at byte {source.size}: a chunk is not, or not wholly, in it"
            self.findings.append(Finding("truncated", text, name))
            return None
        part = Section(source, place.offset, place.length)
        try:
            contents = open_pytorch(part, Catalogue(part.path))
        except InputError as error:
            error.tensor = name
            raise
        if len(contents.tensors) != 1 or contents.tensors[0].shape != sizes:
            raise _LeftError("a chunk is not what it is said to be")
        return contents.tensors[0]

    def _file(self, file: str) -> Source | None:
        if file not in self.sources:
            if len(self.sources) == MAX_FILES:
                raise LimitExceededError(f"more than {MAX_FILES} files", path=self.path)
            try:
                self.sources[file] = self.place.open(file)
            except InputError:
                self.sources[file] = None
        return self.sources[file]


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, or of anything else that a pickle builds from a dict."""
    if not isinstance(value, Call):
        return {}
    state = value.state
    if isinstance(state, tuple) and state and isinstance(state[0], Pairs):
        state = state[0]
    return {key: part for key, part in state.pairs if isinstance(key, str)} if isinstance(state, Pairs) else {}


def _sizes(value: Any) -> tuple[int, ...] | None:
    """The numbers of a ``torch.Size``; None for anything else."""
    if isinstance(value, Call) and isinstance(value.arguments, tuple) and len(value.arguments) == 1:
        value = value.arguments[0] if value.function == Global("torch", "Size") else None
    if not isinstance(value, tuple | list) or len(value) > 64 or not all(_is_size(size) for size in value):
        return None
    return tuple(value)


def _is_size(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**62


def _overlap(boxes: list[_Box]) -> bool:
    """True where two boxes share an element.

    Chunks lie on a grid, along whose lines they are sorted out: a bad case is refused, not compared pair by pair.
    """
    if len(boxes) <= 64:
        return any(_share(one, other) for number, one in enumerate(boxes) for other in boxes[:number])
    # Along the first axis on which they differ, boxes of one range form a group; groups must not overlap.
    for axis in range(len(boxes[0][0])):
        groups: dict[tuple[int, int], list[_Box]] = defaultdict(list)
        for offsets, sizes in boxes:
            groups[offsets[axis], offsets[axis] + sizes[axis]].append((offsets, sizes))
        ranges = sorted(groups)
        if len(ranges) > 1 and all(one[1] <= other[0] for one, other in pairwise(ranges)):
            return any(_overlap(group) for group in groups.values())
    return True


def _share(one: _Box, other: _Box) -> bool:
    return all(
        begin < start + extent and start < begin + size for begin, size, start, extent in zip(*one, *other, strict=True)
    )


def _optimisers(planned: Any) -> set[str]:
    """Names of the entries that belong to an optimiser, told by the form of the nested dicts that they come from.

    ``planned`` maps each flat name to its way through them. An optimiser has ``state`` and ``param_groups``.
    """
    if not isinstance(planned, Pairs):
        return set()
    ways = {name: way for name, way in planned.pairs if isinstance(name, str) and isinstance(way, tuple)}
    groups: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for way in ways.values():
        for depth in range(min(len(way), 8)):
            if way[depth] in _PARTS and all(isinstance(step, str | int) for step in way[:depth]):
                groups[way[:depth]].add(way[depth])
    found = {top for top, parts in groups.items() if parts == set(_PARTS)}
    return {name for name, way in ways.items() if any(_begins(way, top) for top in found) and len(way) > 1}


_PARTS: Final = ("state", "param_groups")


def _begins(way: tuple[Any, ...], top: tuple[Any, ...]) -> bool:
    return way[: len(top)] == top and len(way) > len(top) and way[len(top)] in _PARTS
