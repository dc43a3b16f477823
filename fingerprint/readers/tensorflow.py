"""TensorFlow checkpoints: an index (``model.index``, ``variables.index``) and shards of bytes beside it.

Format: tensorflow/core/protobuf/tensor_bundle.proto and trackable_object_graph.proto. Keys that say nothing
(``layer_with_weights-0/kernel``) are replaced by the names that the checkpoint's graph of objects gives.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from fingerprint import dtypes
from fingerprint.errors import InputError, LimitExceededError, MalformedFileError
from fingerprint.readers.base import (
    MAX_NAME,
    MAX_RANK,
    About,
    Catalogue,
    Contents,
    FileRecord,
    Finding,
    Reader,
    StoredTensor,
    bounded,
    checked_count,
    some,
)
from fingerprint.readers.keras_layout import as_in_torch
from fingerprint.readers.leveldb import is_table, read_table
from fingerprint.readers.places import folder_of
from fingerprint.readers.protobuf import Wire
from fingerprint.source import MemorySource, Source
from fingerprint.tensors import Reshaped, TensorView

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fingerprint.dtypes import DType

MAX_SHARDS = 4096
MAX_GRAPH = 64 << 20
"""Most bytes of the graph of objects."""
MAX_SHARING = 4
"""How many times the bytes of the shards all tensors together may claim."""
_TYPES: dict[int, DType] = {
    1: dtypes.F32, 2: dtypes.F64, 3: dtypes.I32, 4: dtypes.U8, 5: dtypes.I16, 6: dtypes.I8, 8: dtypes.C64,
    9: dtypes.I64, 10: dtypes.BOOL, 11: dtypes.I8, 12: dtypes.U8, 13: dtypes.I32, 14: dtypes.BF16, 15: dtypes.I16,
    16: dtypes.U16, 17: dtypes.U16, 19: dtypes.F16, 22: dtypes.U32, 23: dtypes.U64, 24: dtypes.F8_E5M2,
    25: dtypes.F8_E4M3,
}  # fmt: skip
_STRING = 7
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOTS = re.compile(
    r"/\.OPTIMIZER_SLOT/|(?:\A|/)_?optimizer/|/(?:adam_[mv]|Adam(?:_1)?|Momentum|RMSProp(?:_1)?|Adagrad)\Z"
    r"|\A(?:beta[12]_power|global_step|save_counter|step)\b"
)


class _Entry(Struct, frozen=True):
    key: str
    code: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


def open_checkpoint_index(source: Source, catalogue: Catalogue | None = None) -> Contents:
    """The variables of a checkpoint, as PyTorch stores them, without those of optimisers. Raises ``InputError``."""
    catalogue = Catalogue(source.path) if catalogue is None else catalogue
    catalogue.take(source.size)
    entries: list[_Entry] = []
    shards = 1
    big_endian = False
    for key, value in read_table(source):
        wire = Wire(MemorySource(value, source.path), "TensorFlow")
        if not key:
            numbers = {field.number: field.value for field in wire.fields(0, len(value))}
            shards, big_endian = numbers.get(1, 1), numbers.get(2, 0) == 1
            continue
        catalogue.add_name(name := key.decode("utf-8", "replace"), 400)
        entries.append(_entry(wire, name, len(value)))
    if not 0 < shards <= MAX_SHARDS:
        raise LimitExceededError(f"{shards} shards; 1 to {MAX_SHARDS} are allowed", path=source.path)
    reader = _Reader(source, catalogue, shards, big_endian=big_endian)
    try:
        return reader.read(entries)
    except BaseException:
        reader.close()
        raise


def _entry(wire: Wire, key: str, size: int) -> _Entry:
    entry = _Entry(key, 0, (), 0, 0, 0, 0, sliced=False)
    for field in wire.fields(0, size):
        if field.number == 1:
            entry = replace(entry, code=field.value)
        elif field.number == 2:
            entry = replace(entry, shape=_shape(wire, field.start, field.stop))
        elif field.number == 3:
            entry = replace(entry, shard=field.value)
        elif field.number == 4:
            entry = replace(entry, offset=field.value)
        elif field.number == 5:
            entry = replace(entry, size=field.value)
        elif field.number == 6:
            entry = replace(entry, crc=field.value)
        elif field.number == 7:
            entry = replace(entry, sliced=True)
    return entry


def _shape(wire: Wire, start: int, stop: int) -> tuple[int, ...]:
    sizes: list[int] = []
    for field in wire.fields(start, stop):
        if field.number == 2:
            sizes.append(next((one.value for one in wire.message(field) if one.number == 1), 0))
        if len(sizes) > MAX_RANK:
            raise LimitExceededError(f"more than {MAX_RANK} axes", path=wire.source.path)
    return tuple(sizes)


class _Reader:
    def __init__(self, source: Source, catalogue: Catalogue, shards: int, *, big_endian: bool) -> None:
        self._source = source
        self._catalogue = catalogue
        self._count = shards
        self._big_endian = big_endian
        self._place = folder_of(source, catalogue.beside)
        self._stem = os.path.basename(source.path).removesuffix(".index")
        self._shards: dict[int, Source | None] = {}
        self._records: list[FileRecord] = []
        self._findings: list[Finding] = []
        self._complete = True
        self._claimed = 0

    def close(self) -> None:
        """Gives up the shards."""
        for shard in self._shards.values():
            if shard is not None:
                shard.close()

    def read(self, entries: Iterable[_Entry]) -> Contents:
        """The variables of ``entries``. Raises ``InputError``."""
        entries = list(entries)
        names = self._names(entries)
        tensors: list[TensorView] = []
        slots: list[str] = []
        twice: list[str] = []
        seen: set[tuple[str, int, int]] = set()
        numbers: Counter[str] = Counter()
        for entry in entries:
            if entry.code == _STRING or entry.key == _GRAPH_KEY:
                continue
            name = names.get(entry.key, entry.key).removesuffix(_VALUE)
            if _SLOTS.search(entry.key.removesuffix(_VALUE)) or _SLOTS.search(name):
                slots.append(entry.key)
                continue
            identity = (name, entry.size, entry.crc)
            if entry.key in names and identity in seen:
                twice.append(name)
                continue
            seen.add(identity)
            view = self._view(entry, name)
            if view is None:
                continue
            view = as_in_torch(view, name.split("/"))
            numbers[view.name] += 1
            if (count := numbers[view.name]) > 1:
                view = Reshaped(view, f"{view.name}#{count}", view.shape)
            self._catalogue.add(view.name, view.shape)
            tensors.append(view)
        if slots:
            text = f"{len(slots)} variables of optimisers and counters were set aside: {some(slots)}"
            self._findings.append(Finding("optimiser-state", text))
        if twice:
            text = f"{len(twice)} variables are stored a second time under another key: {some(twice)}"
            self._findings.append(Finding("tied-tensors", text, twice[0]))
        sources = tuple(shard for shard in self._shards.values() if shard is not None)
        return Contents(tuple(tensors), bounded(self._findings), {}, self._complete, tuple(self._records), sources)

    def _view(self, entry: _Entry, name: str) -> TensorView | None:
        dtype = _TYPES.get(entry.code)
        if dtype is None or entry.sliced:
            reason = "it is stored in slices" if entry.sliced else f"its type is {entry.code}"
            self._unread(entry, reason)
            return None
        try:
            count = checked_count(entry.shape, self._source.path)
        except InputError as error:
            error.tensor = entry.key
            raise
        if dtype.nbytes(count) != entry.size:
            message = f"{entry.size} bytes, where {dtype.name} {list(entry.shape)} takes {dtype.nbytes(count)}"
            raise MalformedFileError(message, path=self._source.path, tensor=entry.key)
        shard = self._shard(entry)
        if shard is None:
            self._unread(entry, "its shard cannot be read")
            return None
        if entry.offset + entry.size > shard.size:
            self._unread(entry, f"it ends at byte {entry.offset + entry.size} of a shard of {shard.size}")
            return None
        self._claimed += entry.size
        if self._claimed > MAX_SHARING * sum(record.bytes for record in self._records):
            message = f"the tensors claim more than {MAX_SHARING} times the shards"
            raise LimitExceededError(message, path=self._source.path)
        return StoredTensor(name, dtype, entry.shape, shard, entry.offset, self._big_endian)

    def _unread(self, entry: _Entry, reason: str) -> None:
        self._findings.append(Finding("unread-tensor", f"a tensor cannot be read: {reason}", entry.key))
        self._complete = False

    def _shard(self, entry: _Entry) -> Source | None:
        if entry.shard >= self._count:
            message = f"there is no shard {entry.shard}"
            raise MalformedFileError(message, path=self._source.path, tensor=entry.key)
        if entry.shard not in self._shards:
            name = f"{self._stem}.data-{entry.shard:05}-of-{self._count:05}"
            try:
                shard = self._place.open(name)
                self._records.append(FileRecord(name, shard.size))
                self._shards[entry.shard] = shard
            except InputError as error:
                self._findings.append(Finding("absent-shard", f"the shard {name!r} cannot be read: {error.message}"))
                self._complete = False
                self._shards[entry.shard] = None
        return self._shards[entry.shard]

    def _names(self, entries: Iterable[_Entry]) -> dict[str, str]:
        """Names of variables by key, from the graph of objects; empty if there is none."""
        entry = next((one for one in entries if one.key == _GRAPH_KEY and one.code == _STRING), None)
        if entry is None or entry.size > MAX_GRAPH:
            return {}
        shard = self._shard(entry)
        if shard is None or entry.offset + entry.size > shard.size:
            return {}
        self._catalogue.take(entry.size)
        names: dict[str, str] = {}
        try:
            # A scalar of text: its length, a checksum of the length, and the text.
            wire = Wire(shard, "TensorFlow")
            start, stop = entry.offset, entry.offset + entry.size
            size = 0
            for index in range(10):
                byte = shard.read(start, 1)[0]
                size |= (byte & 127) << (7 * index)
                start += 1
                if byte < 128:
                    break
            start += 4
            for node in wire.fields(start, min(start + size, stop)):
                for attribute in wire.message(node) if node.number == 1 else ():
                    if attribute.number == 2:
                        texts = {one.number: wire.text(one, MAX_NAME) for one in wire.message(attribute)}
                        if texts.get(2) and texts.get(3):
                            names[texts[3]] = texts[2]
                            self._catalogue.add_name(texts[3], 100 + len(texts[2]))
        except MalformedFileError:
            return {}  # the keys serve as names then
        return names


# Other programs call their files ``.index`` too: the suffix tells nothing.
_ABOUT = (
    About(
        "TensorFlow: checkpoints (`.index`, `.data-…`) and SavedModels",
        "the end of a LevelDB table; a folder with `saved_model.pb` and `variables`",
        "variables under the names of the graph of objects, without those of optimisers",
        "slices of partitioned variables, compressed tables, frozen graphs",
    ),
)
READER = Reader("tensorflow", (), is_table, open_checkpoint_index, _ABOUT)
