"""The index beside a registry: segments on disk that are never changed, and what is not on disk yet.

The registry's database says which models there are; the folder holds a copy of their vectors that can be thrown away at
any time. A small manifest names the segments; replacing it is the only moment at which the index on disk changes. A
registration adds a segment, and neighbours of like size are merged, so that there are few of them and each vector is
copied a logarithmic number of times.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fingerprint.errors import RegistryBrokenError, UsageError
from signatures.files import write_atomically
from signatures.index import FlatIndex, Float32, Hits, Int64, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

FORMAT: Final = 1
_SMALL_ROWS: Final = 4096
_ATTEMPTS: Final = 5
_log = logging.getLogger(__name__)

Rows = tuple[Int64, Float32]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the index: its name on disk (empty for one that is in memory only)."""

    name: str
    index: FlatIndex


class IndexFolder:
    """The vectors of all models of one registry. ``key`` names the registry, ``width`` is the length of a vector."""

    def __init__(self, folder: Path, key: str, width: int) -> None:
        self._folder = folder
        self._key = key
        self._width = width
        self._segments: list[Segment] | None = None
        self._identities: dict[int, str] = {}
        self._manifest: bytes | None = None

    def __len__(self) -> int:
        return sum(len(segment.index) for segment in self._loaded())

    def covers(self) -> dict[int, int]:
        """The models that a search sees, each with its number of vectors."""
        return {model: rows for segment in self._loaded() for model, rows in segment.index.covers().items()}

    def identities(self) -> dict[int, str]:
        """The models that a search sees, each with the identity of the signature that its vectors come from."""
        self._loaded()
        return dict(self._identities)

    def on_disk(self) -> tuple[dict[int, int], int, int]:
        """The models covered by the files with their numbers of vectors, the number of segments and their bytes."""
        segments = IndexFolder(self._folder, self._key, self._width)._loaded()
        covered = {model: rows for segment in segments for model, rows in segment.index.covers().items()}
        return covered, len(segments), sum(self._place(segment.name).stat().st_size for segment in segments)

    def search(self, queries: Float32, n: int) -> Hits:
        """See ``VectorIndex.search``."""
        parts = [segment.index.search(queries, n) for segment in self._loaded()]
        return merged(parts, n) if parts else FlatIndex(self._width).search(queries, n)

    def rows(self, model: int) -> Rows:
        """Positions and vectors of a model that is covered."""
        return next(segment.index for segment in self._loaded() if model in segment.index.covers()).rows(model)

    def follow(self, models: Mapping[int, str], vectors_of: Callable[[int], Rows | None]) -> None:
        """Bring the index to cover exactly ``models``: on disk if it can be written now, in any case in memory.

        ``vectors_of`` gives the rows of a model that is missing, ``None`` if the model is gone.
        """
        if self.identities() != models:
            self._refresh()
        if self._identities == models:
            return
        try:
            with self._alone():
                self._refresh()
                self._change(models, vectors_of, keep=True)
        except (OSError, RuntimeError, sqlite3.Error, UsageError) as error:
            _log.info("the index is not written now (%s); this search uses one in memory", error)
            self._change(models, vectors_of, keep=False)

    def rebuild(self, models: Mapping[int, str], vectors_of: Callable[[int], Rows | None]) -> None:
        """Make all segments anew; raises ``OSError`` or ``sqlite3.Error`` if they cannot be written."""
        with self._alone(seconds=60):
            self._segments, self._identities, self._manifest = [], {}, None
            self._change(models, vectors_of, keep=True)

    def _change(self, models: Mapping[int, str], vectors_of: Callable[[int], Rows | None], *, keep: bool) -> None:
        kept = {model: identity for model, identity in self.identities().items() if models.get(model) == identity}
        segments: list[Segment] = []
        for segment in self._loaded():
            gone = set(segment.index.covers()) - set(kept)
            segments.append(Segment("", _without(segment.index, gone, self._width)) if gone else segment)
        fresh = FlatIndex(self._width)
        for model in sorted(set(models) - set(kept)):
            rows = vectors_of(model)
            if rows is not None:
                fresh.add(model, *rows)
                kept[model] = models[model]
        segments.append(Segment("", fresh))
        segments = [segment for segment in segments if segment.index.covers()]
        self._segments = self._written(_joined(segments, self._width), kept) if keep else segments
        self._identities = kept

    def _written(self, segments: list[Segment], identities: Mapping[int, str]) -> list[Segment]:
        """Write the segments that are in memory only, then the manifest, then delete what it does not name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        saved: list[Segment] = []
        for segment in segments:
            name = segment.name or f"{secrets.token_hex(8)}.faiss"
            if not segment.name:
                segment.index.save(self._place(name))
            saved.append(Segment(name, segment.index))
        values = {
            "format": FORMAT,
            "registry": self._key,
            "width": self._width,
            "segments": [part.name for part in saved],
            "models": {str(model): identity for model, identity in identities.items()},
        }
        manifest = json.dumps(values).encode()
        write_atomically(self._folder / "index.json", manifest)
        self._manifest = manifest
        kept = {part.name for part in saved} | {f"{part.name}.json" for part in saved}
        for path in (*self._folder.glob("*.faiss*"), *self._folder.glob(".index.json.*")):
            if path.name not in kept:
                with suppress(OSError):
                    path.unlink()
        return saved

    def _loaded(self) -> list[Segment]:
        if self._segments is None:
            self._read()
        return self._segments or []

    def _refresh(self) -> None:
        """Read the files again if the manifest is another one than the one read last."""
        if self._segments is None or self._read_manifest() != self._manifest:
            self._read()

    def _read(self) -> None:
        """Take over what is on disk: nothing if the index is absent, of another registry or damaged."""
        self._segments, self._identities, self._manifest = [], {}, None
        for _ in range(_ATTEMPTS):
            self._manifest = self._read_manifest()
            if self._manifest is None:
                return
            try:
                names, identities = self._parsed(self._manifest)
                segments = [Segment(name, FlatIndex.load(self._place(name))) for name in names]
                _require_same(identities, segments)
            except RegistryBrokenError as error:
                if self._read_manifest() == self._manifest:  # else another process merged what was looked for
                    _log.warning("the index is made again: %s", error)
                    return
            else:
                self._segments, self._identities = segments, identities
                return

    def _read_manifest(self) -> bytes | None:
        try:
            return (self._folder / "index.json").read_bytes()
        except OSError:
            return None

    def _parsed(self, manifest: bytes) -> tuple[list[str], dict[int, str]]:
        """Names of the segments, and identities by model; none if the index belongs to another registry."""
        try:
            values = json.loads(manifest)
            if (values["format"], values["registry"], values["width"]) != (FORMAT, self._key, self._width):
                return [], {}
            identities = {int(model): str(identity) for model, identity in values["models"].items()}
            return [str(name) for name in values["segments"]], identities
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryBrokenError(f"{self._folder}: the index's manifest cannot be read: {error}") from error

    def _place(self, name: str) -> Path:
        return self._folder / name

    @contextmanager
    def _alone(self, seconds: float = 0) -> Iterator[None]:
        """Hold the right to write the index; SQLite's lock works everywhere and ends with the process."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(self._folder / "lock.sqlite3", timeout=seconds, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            lock.close()


def _joined(segments: list[Segment], width: int) -> list[Segment]:
    """Neighbours merged until each segment is more than twice as large as the one after it."""
    done: list[Segment] = []
    for segment in segments:
        group = [segment]
        rows = len(segment.index)
        while done and len(done[-1].index) < max(2 * rows, _SMALL_ROWS):
            group.insert(0, done.pop())
            rows += len(group[0].index)
        done.append(group[0] if len(group) == 1 else Segment("", _union(group, width)))
    return done


def _union(group: list[Segment], width: int) -> FlatIndex:
    union = FlatIndex(width)
    for segment in group:
        union.absorb(segment.index, segment.index.covers())
    return union


def _without(index: FlatIndex, models: set[int], width: int) -> FlatIndex:
    """A copy without some models: the index itself stays as it is on disk."""
    rest = FlatIndex(width)
    rest.absorb(index, set(index.covers()) - models)
    return rest


def _require_same(identities: Mapping[int, str], segments: list[Segment]) -> None:
    covered = [model for segment in segments for model in segment.index.covers()]
    if sorted(covered) != sorted(identities):
        raise RegistryBrokenError("the index's manifest names other models than its segments hold")
