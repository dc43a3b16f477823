"""The engine of files beside a registry: segments that are never changed, and a manifest that names them.

A small registry's index compares with every row (``FlatIndex``). From ``Tuning.flat_rows`` on, rows move into inverted
lists of compressed codes (``ListsIndex``), and only the newest, up to ``Tuning.backlog_rows``, wait in flat segments. A
registration adds a segment, and neighbours of like size are merged, so that there are few of them and each vector is
copied a logarithmic number of times; but nothing larger than ``Tuning.merged_rows`` is merged on the way, so that no
registration waits for more than seconds. ``rebuild`` makes one segment of everything, with centroids of its own.

The database of the registry says which models there are; the folder can be thrown away at any time. Replacing the
manifest, which also holds the mark, is the only moment at which the index on disk changes: after ``kill -9`` it is as
before or as after. Models that are removed from inverted lists are named in the manifest until a merge leaves them out,
or until most of a segment's are gone and it is written anew.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from fingerprint.errors import RegistryBrokenError, UsageError
from signatures.engine import START, EngineBehindError, EngineError, EngineStatus, Mark
from signatures.files import write_atomically
from signatures.index import Block, FlatIndex, Float32, Hits, Int64, blocks_of, merged
from signatures.index_lists import Effort, ListsIndex, build, joined, lists_for

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

FORMAT: Final = 2
LEAST_RECALL: Final = 0.6
"""Of the nearest models of vectors moved to a cosine of .7, asked by the hundred: dozens of them vote in a scan."""
_OUTGROWN: Final = 4
"""How many times as many lists there should be where ``fp index build`` is advised: as of 16 times as many rows."""
_ATTEMPTS: Final = 5
_SHARE_OF_MEMORY: Final = 16
_log = logging.getLogger(__name__)

Rows = tuple[Int64, Float32]


class Tuning(Struct, frozen=True):
    """Numbers of rows at which the form of the index changes; see the module. ``small_rows`` are always merged."""

    flat_rows: int = 1 << 17
    backlog_rows: int = 1 << 15
    merged_rows: int = 1 << 21
    small_rows: int = 1 << 12
    effort: Effort = field(default_factory=Effort)

    @classmethod
    def for_memory(cls, width: int, memory: int | None = None) -> Tuning:
        """Flat segments take a sixteenth of the memory at hand (bytes; default: this machine's) at most."""
        from signatures.memory import available

        standard = cls()
        rows = (available() if memory is None else memory) // (_SHARE_OF_MEMORY * (4 * width + 8))
        return cls(flat_rows=max(standard.small_rows, min(standard.flat_rows, rows)))


class Segment(Struct, frozen=True):
    """A part of the index: its name on disk (empty for one in memory only), and the models of it that are gone."""

    name: str
    index: FlatIndex | ListsIndex
    gone: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        """Rows and models: what a copy costs. Models without rows count too, else they would be copied every time."""
        return len(self.index) + self.index.models

    def covers(self) -> dict[int, int]:
        """The models that are not gone."""
        return {model: rows for model, rows in self.index.covers().items() if model not in self.gone}

    def has(self, model: int) -> bool:
        """Whether it has the model."""
        return model not in self.gone and self.index.has(model)

    def search(self, queries: Float32, n: int, among: int) -> Hits:
        """See ``VectorIndex.search``; ``among`` are the rows of all inverted lists."""
        if isinstance(self.index, FlatIndex):
            return self.index.search(queries, n)
        return self.index.search(queries, n, self.gone, among)

    def blocks(self) -> Iterable[Block]:
        """Its rows."""
        if isinstance(self.index, FlatIndex):
            return iter((self.index.block(),))
        return self.index.blocks(self.gone)


class IndexFolder:
    """The vectors of all models of one registry. ``key`` names the registry, ``width`` is the length of a vector."""

    def __init__(self, folder: Path, key: str, width: int, tuning: Tuning | None = None) -> None:
        self._folder = folder
        self._key = key
        self._width = width
        self._tuning = tuning or Tuning.for_memory(width)
        self._segments: list[Segment] = []
        self._mark = START
        self._manifest: bytes | None = None

    def __len__(self) -> int:
        return sum(sum(segment.covers().values()) if segment.gone else len(segment.index) for segment in self._segments)

    def mark(self) -> Mark:
        """See ``Engine.mark``."""
        if self._read_manifest() != self._manifest:
            self._read()
        return self._mark

    def covers(self) -> dict[int, int]:
        """See ``Engine.covers``."""
        return {model: rows for segment in self._segments for model, rows in segment.covers().items()}

    def search(self, queries: Float32, n: int) -> Hits:
        """See ``Engine.search``."""
        among = sum(len(segment.index) for segment in self._segments if isinstance(segment.index, ListsIndex))
        parts = [segment.search(queries, n, among) for segment in self._segments]
        return merged(parts, n) if parts else FlatIndex(self._width).search(queries, n)

    def rows(self, model: int) -> Rows:
        """See ``Engine.rows``."""
        for segment in self._segments:
            if segment.has(model):
                return segment.index.rows(model)
        raise KeyError(model)

    def update(self, removed: Collection[int], added: Iterable[tuple[int, Rows]], since: Mark, mark: Mark) -> None:
        """See ``Engine.update``."""
        with self._writing():
            if self.mark() != since:
                raise EngineBehindError(f"{self._folder}: another process has changed the index")
            segments = self._segments
            gone = set(removed)
            for block in blocks_of(added, self._width):
                segments = self._without(segments, gone | set(block.models.tolist()))
                gone = set()
                fresh = FlatIndex(self._width)
                fresh.extend(block)
                segments = self._settled([*segments, Segment("", fresh)])
            self._write(self._without(segments, gone), mark)

    def rebuild(self, models: Iterable[tuple[int, Rows]], mark: Mark, *, seconds: float = 0) -> None:
        """See ``Engine.rebuild``."""
        with self._writing(seconds):
            blocks = blocks_of(models, self._width)
            first: list[Block] = []
            while sum(len(block.positions) for block in first) <= self._tuning.flat_rows:
                block = next(blocks, None)
                if block is None:
                    break
                first.append(block)
            if sum(len(block.positions) for block in first) > self._tuning.flat_rows:
                segments = [self._in_lists(chain(first, blocks), None)]
            else:
                flat = FlatIndex(self._width)
                for block in first:
                    flat.extend(block)
                segments = [Segment("", flat)]
            self._write(segments, mark)

    def status(self) -> EngineStatus:
        """See ``Engine.status``."""
        self.mark()
        lists = [part.index for part in self._segments if isinstance(part.index, ListsIndex)]
        flat = [part for part in self._segments if isinstance(part.index, FlatIndex)]
        of_flat = sum(_size(self._folder / part.name) for part in flat)
        words = ["inverted lists"] if lists else []
        words += ["flat"] if flat or not lists else []
        return EngineStatus(
            kind=" + ".join(words),
            models=len(self.covers()),
            rows=len(self),
            parts=len(self._segments),
            bytes=of_flat + sum(index.bytes for index in lists),
            memory=of_flat + sum(index.memory for index in lists),
            exact=not lists,
            least_recall=LEAST_RECALL if lists else 1.0,
            outgrown=any(_OUTGROWN * index.lists <= lists_for(sum(map(len, lists))) for index in lists),
        )

    # Changing

    def _without(self, segments: list[Segment], models: set[int]) -> list[Segment]:
        """Segments without some models: flat ones are copied, of inverted lists it is written down, until most of their
        models are gone."""
        kept: list[Segment] = []
        for segment in segments:
            here = {model for model in models if segment.has(model)}
            if not here:
                kept.append(segment)
            elif isinstance(segment.index, ListsIndex):
                left = Segment(segment.name, segment.index, segment.gone | here)
                mostly = 2 * len(left.gone) <= left.index.models
                kept.append(left if mostly else self._in_lists(left.blocks(), segment.index))
            else:
                rest = FlatIndex(self._width)
                rest.extend(segment.index.block().without(here))
                kept.append(Segment("", rest))
        return kept

    def _settled(self, segments: list[Segment]) -> list[Segment]:
        """Merge what is to be merged on the way."""
        flat = [part for part in segments if isinstance(part.index, FlatIndex) and part.index.covers()]
        lists = [part for part in segments if isinstance(part.index, ListsIndex)]
        most = self._tuning.backlog_rows if lists else self._tuning.flat_rows
        if sum(len(part.index) for part in flat) > most:
            coarse = max((part.index for part in lists if isinstance(part.index, ListsIndex)), key=len, default=None)
            lists.append(self._in_lists(chain.from_iterable(part.blocks() for part in flat), coarse))
            flat = []
        lists = self._grouped(lists, self._union_of_lists, self._tuning.merged_rows)
        return lists + self._grouped(flat, self._union_of_flat, self._tuning.flat_rows)

    def _grouped(self, segments: list[Segment], union: Callable[[list[Segment]], Segment], most: int) -> list[Segment]:
        """Neighbours merged until each segment is more than twice as large as the one after it, or too large."""
        done: list[Segment] = []
        for segment in segments:
            group, size = [segment], segment.size
            while done and done[-1].size < max(2 * size, self._tuning.small_rows) and done[-1].size + size <= most:
                group.insert(0, done.pop())
                size += group[0].size
            done.append(group[0] if len(group) == 1 else union(group))
        return done

    def _union_of_flat(self, group: list[Segment]) -> Segment:
        flat = FlatIndex(self._width)
        for block in chain.from_iterable(part.blocks() for part in group):
            flat.extend(block)
        return Segment("", flat)

    def _union_of_lists(self, group: list[Segment]) -> Segment:
        parts = [part.index for part in group if isinstance(part.index, ListsIndex)]
        if any(part.gone for part in group) or len({part.coarse for part in parts}) > 1:
            return self._in_lists(chain.from_iterable(part.blocks() for part in group), max(parts, key=len))
        name = _fresh_name()
        joined(self._folder / name, parts)
        return Segment(name, ListsIndex(self._folder / name, self._tuning.effort))

    def _in_lists(self, blocks: Iterable[Block], coarse: ListsIndex | None) -> Segment:
        """A new segment of inverted lists, on disk already, but in no manifest yet."""
        name = _fresh_name()
        self._folder.mkdir(parents=True, exist_ok=True)
        if not build(self._folder / name, blocks, self._width, coarse):
            return Segment("", FlatIndex(self._width))
        return Segment(name, ListsIndex(self._folder / name, self._tuning.effort))

    def _write(self, segments: list[Segment], mark: Mark) -> None:
        """Write the segments that are in memory only, then the manifest, then delete what it does not name."""
        saved: list[Segment] = []
        for segment in segments:
            if len(segment.gone) == segment.index.models:  # nothing is left of it, or never was in it
                continue
            if segment.name or not isinstance(segment.index, FlatIndex):
                saved.append(segment)
            else:
                name = f"{os.urandom(8).hex()}.faiss"
                segment.index.save(self._folder / name)
                saved.append(Segment(name, segment.index))
        values = {
            "format": FORMAT,
            "registry": self._key,
            "width": self._width,
            "mark": [mark.number, mark.token],
            "segments": [{"name": part.name, "gone": sorted(part.gone)} for part in saved],
        }
        manifest = json.dumps(values).encode()
        try:
            write_atomically(self._folder / "index.json", manifest)
        except UsageError as error:
            raise EngineError(str(error)) from error
        self._segments, self._mark, self._manifest = saved, mark, manifest
        kept = {part.name for part in saved} | {f"{part.name}.json" for part in saved}
        for path in chain.from_iterable(map(self._folder.glob, ("*.faiss*", "*.lists", ".index.json.*"))):
            if path.name not in kept:
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    # Reading

    def _read(self) -> None:
        """Take over what is on disk: nothing if the index is absent, of another registry or damaged."""
        known = {segment.name: segment.index for segment in self._segments}
        for _ in range(_ATTEMPTS):
            self._segments, self._mark = [], START
            self._manifest = self._read_manifest()
            if self._manifest is None:
                return
            try:
                segments, mark = self._parsed(self._manifest, known)
            except RegistryBrokenError as error:
                if self._read_manifest() == self._manifest:  # else another process merged what was looked for
                    _log.warning("the index is made again: %s", error)
                    return
            else:
                self._segments, self._mark = segments, mark
                return

    def _read_manifest(self) -> bytes | None:
        try:
            return (self._folder / "index.json").read_bytes()
        except OSError:
            return None

    def _parsed(self, manifest: bytes, known: Mapping[str, Any]) -> tuple[list[Segment], Mark]:
        """Segments and mark of a manifest; none if the index is another registry's, or of an older format."""
        try:
            values = json.loads(manifest)
            if (values["format"], values["registry"], values["width"]) != (FORMAT, self._key, self._width):
                return [], START
            segments = []
            for entry in values["segments"]:
                name = str(entry["name"])
                index = known[name] if name in known else self._opened(name)
                segments.append(Segment(name, index, frozenset(map(int, entry["gone"]))))
            number, token = values["mark"]
            return segments, Mark(int(number), str(token))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryBrokenError(f"{self._folder}: the index's manifest cannot be read: {error}") from error

    def _opened(self, name: str) -> FlatIndex | ListsIndex:
        if name.endswith(".lists"):
            return ListsIndex(self._folder / name, self._tuning.effort)
        return FlatIndex.load(self._folder / name)

    @contextmanager
    def _writing(self, seconds: float = 0) -> Iterator[None]:
        """Hold the right to write the index; SQLite's lock works everywhere and ends with the process."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = sqlite3.connect(self._folder / "lock.sqlite3", timeout=seconds, isolation_level=None)
            try:
                lock.execute("BEGIN EXCLUSIVE")
                yield
            finally:
                lock.close()
        except (OSError, RuntimeError, sqlite3.Error) as error:
            raise EngineError(f"{self._folder}: the index cannot be written: {error}") from error


def _size(path: Path) -> int:
    """Bytes of a file; none if another process has merged it away."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _fresh_name() -> str:
    return f"{os.urandom(8).hex()}.lists"
