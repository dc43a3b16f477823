"""Vectors on Milvus: a server or cluster that several machines and registries share, or a file of the embedded one.

All registries share a collection for each kind of vectors. The rows of one lie in a *space* of its own, a registry's
key and a random number; a small collection says which space counts and up to which mark it has followed the registry.
A rebuild fills another space and is over when that entry is replaced; the old space goes with the next change, so that
whoever began to search it can end. The registry's database stays the truth: what is here can be deleted at any time.

One process at a time writes the vectors of a registry, by a lock in the registry's folder. A search asks for the best
rows, deeper until enough models are found; where that would not end it leaves out the models that it has. With a FLAT
index every row is compared.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import numpy as np
from msgspec import Struct

from fingerprint.errors import UsageError, clipped
from signatures.engine import START, EngineAwayError, EngineBehindError, EngineError, EngineStatus, Mark
from signatures.engines import TOKEN_VARIABLE
from signatures.index import MOST_TIED, TIE, Float32, Hits, cut, padded, require_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from signatures.engine import Rows

INDEXES: Final = ("FLAT", "HNSW")
_LAYOUT: Final = 1
_DEEPEST: Final = 16_384
"""Most rows that Milvus gives for a query."""
_MOST_HITS: Final = 1 << 18
_ROWS_AT_ONCE: Final = 2048
_MODELS_AT_ONCE: Final = 512
_TEXT: Final = 128
_SECONDS: Final = 20.0
_LEAST_RECALL: Final = 0.9
_NOBODY: Final = [0.0, 0.0]
"""Milvus wants a vector in every collection."""


class Place(Struct, frozen=True):
    """Where Milvus is: the address that its client takes, the file if it is the embedded one, and the kind of index
    with which collections are made (that of one which is there stays)."""

    address: str
    file: str | None
    index: str = "FLAT"


def place_of(url: str) -> Place | None:
    """What ``FP_INDEX`` names; None if that is no Milvus. Raises ``UsageError`` for an address that cannot be.

    ``milvus:///path/to/file.db`` and paths that end in ``.db`` are the embedded one, ``http://host:19530`` (or https) a
    server. ``?index=HNSW`` chooses an index.
    """
    parts = urlsplit(url)
    index = parse_qs(parts.query).get("index", ["FLAT"])[0].upper()
    if index not in INDEXES:
        raise UsageError(f"FP_INDEX: {clipped(index)!r} is none of the indexes {', '.join(INDEXES)}")
    if parts.scheme in {"http", "https"} and parts.hostname:
        if parts.username is not None or parts.password is not None:
            raise UsageError(f"FP_INDEX must not hold a password: put user:password, or a token, into {TOKEN_VARIABLE}")
        return Place(f"{parts.scheme}://{parts.netloc}{parts.path}", None, index)
    if parts.scheme in {"milvus", ""} and not parts.netloc and parts.path.endswith(".db"):
        file = os.path.abspath(parts.path)
        return Place(file, file, index)
    return None


class _Pointer(Struct, frozen=True):
    """Which space counts and its mark; ``former`` is the one before it, which may still be searched, or empty."""

    mark: Mark
    space: str
    former: str


class MilvusEngine:
    """An ``Engine``. ``folder`` is where files of this kind of vectors would lie: there is a lock beside it."""

    def __init__(self, place: Place, folder: Path, key: str, width: int) -> None:
        self._place = place
        self._lock = folder.with_name(f"{folder.name}.lock.sqlite3")
        self._key = key if re.fullmatch(r"[A-Za-z0-9-]{1,64}", key) else hashlib.sha256(key.encode()).hexdigest()
        self._width = width
        self._entry = f"{self._key}/{folder.name}/{width}"
        self._vectors = f"weightprint_{folder.name}_{width}_{_LAYOUT}"
        self._models = f"weightprint_models_{_LAYOUT}"
        self._marks = f"weightprint_marks_{_LAYOUT}"
        self._ready = False
        self._space: str | None = None
        self._index = place.index

    def __len__(self) -> int:
        if self._space is None:
            return 0
        with self._translated():
            found = self._client().query(self._vectors, filter=self._here(), output_fields=["count(*)"])
            return int(found[0]["count(*)"])

    def mark(self) -> Mark:
        """See ``Engine.mark``. Raises ``EngineAwayError``."""
        pointer = self._pointer()
        self._space = None if pointer is None else pointer.space
        return START if pointer is None else pointer.mark

    def search(self, queries: Float32, n: int) -> Hits:
        """See ``Engine.search``."""
        while True:
            space = self._space
            found: list[list[tuple[float, int, int]]] = [[] for _ in queries]
            if space is not None and n > 0 and len(queries):
                with self._translated():
                    self._search(queries, n, found)
            pointer = self._pointer()
            if space is None or (pointer is not None and space in {pointer.space, pointer.former}):
                return padded(found)
            self.mark()  # it was made anew, and then changed: the rows that were searched may have been gone

    def rows(self, model: int) -> Rows:
        """See ``Engine.rows``."""
        if model not in self._covered(f" and model == {model}"):
            raise KeyError(model)
        with self._translated():
            found = list(self._all(self._vectors, f"{self._here()} and model == {model}", ["position", "vector"]))
        found.sort(key=lambda row: int(row["position"]))
        positions = np.array([row["position"] for row in found], np.int64)
        vectors = np.array([row["vector"] for row in found], np.float32).reshape(len(found), self._width)
        return positions, vectors

    def covers(self) -> Mapping[int, int]:
        """See ``Engine.covers``."""
        return self._covered("")

    def update(self, removed: Collection[int], added: Iterable[tuple[int, Rows]], since: Mark, mark: Mark) -> None:
        """See ``Engine.update``."""
        with self._alone(_SECONDS), self._translated():
            if self.mark() != since:
                raise EngineBehindError("the vectors were changed by another process")
            pointer = self._pointer()
            space = self._space = self._space or self._fresh_space()
            fresh: list[int] = []
            try:
                self._take_in(space, added, fresh)
            except UsageError:
                self._forget(space, fresh)
                raise
            for some in _parts(sorted(removed), _MODELS_AT_ONCE):
                self._forget(space, some)
            if pointer is not None and pointer.former:
                self._clear(pointer.former)
            self._point(mark, space)

    def rebuild(self, models: Iterable[tuple[int, Rows]], mark: Mark, *, seconds: float = 0) -> None:
        """See ``Engine.rebuild``."""
        with self._alone(max(seconds, _SECONDS)), self._translated():
            pointer = self._pointer()
            former = "" if pointer is None else pointer.space
            self._sweep(former)
            space = self._fresh_space()
            self._take_in(space, models, [])
            self._point(mark, space, former)

    def status(self) -> EngineStatus:
        """See ``Engine.status``."""
        rows = len(self)
        exact = self._index == "FLAT"
        return EngineStatus(
            kind=f"milvus, {self._index}" if rows else "milvus, empty",
            models=len(self.covers()),
            rows=rows,
            parts=1 if rows else 0,
            bytes=0,
            memory=rows * self._width * 4,
            exact=exact,
            least_recall=1.0 if exact else _LEAST_RECALL,
        )

    # Searching

    def _search(self, queries: Float32, n: int, found: list[list[tuple[float, int, int]]]) -> None:
        todo = list(range(len(queries)))
        depth = max(64, 4 * n)
        while todo:
            depth = min(depth, _DEEPEST)
            again: list[int] = []
            for some in _parts(todo, max(1, _MOST_HITS // depth)):
                for query, hits in zip(some, self._nearest(queries[some], depth, self._here()), strict=True):
                    best, enough = _best(hits, n, whole=len(hits) < depth)
                    if enough:
                        found[query] = best
                    elif depth == _DEEPEST:
                        found[query] = self._leaving_out(queries[query], n, hits)
                    else:
                        again.append(query)
            todo, depth = again, 4 * depth

    def _leaving_out(self, query: Float32, n: int, hits: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
        """The best models where those found so far have more rows than one answer holds."""
        while True:
            best, enough = _best(hits, n, whole=False)
            if enough:
                return best
            known = sorted({model for _, model, _ in hits})
            (more,) = self._nearest(query[None], _DEEPEST, f"{self._here()} and model not in {known}")
            hits = [*hits, *more]
            if len(more) < _DEEPEST:
                return _best(hits, n, whole=True)[0]

    def _nearest(self, queries: Float32, depth: int, where: str) -> list[list[tuple[float, int, int]]]:
        """Score, model and position of the best rows for each query."""
        parameters: dict[str, Any] = {"metric_type": "IP"}
        if self._index == "HNSW":
            parameters["params"] = {"ef": max(2 * depth, 128)}
        answers = self._client().search(
            self._vectors,
            data=[np.ascontiguousarray(query, np.float32) for query in queries],
            anns_field="vector",
            filter=where,
            limit=depth,
            search_params=parameters,
            output_fields=[],
        )
        found: list[list[tuple[float, int, int]]] = []
        for answer in answers:
            numbers = ((float(hit["distance"]), str(hit["id"]).rsplit("/", 2)) for hit in answer)
            found.append([(score, int(model), int(position)) for score, (_, model, position) in numbers])
        return found

    # Changing

    def _take_in(self, space: str, models: Iterable[tuple[int, Rows]], fresh: list[int]) -> None:
        """Put in the rows of models, in place of those that they have in the space; models that it did not have are
        noted in ``fresh``."""
        block: list[tuple[int, Rows]] = []
        rows = 0
        for model, (positions, vectors) in models:
            require_rows(model, positions, vectors, self._width, {})
            block.append((model, (positions, vectors)))
            rows += len(positions)
            if rows >= _ROWS_AT_ONCE or len(block) >= _MODELS_AT_ONCE:
                self._put(space, block, fresh)
                block, rows = [], 0
        self._put(space, block, fresh)

    def _put(self, space: str, block: list[tuple[int, Rows]], fresh: list[int]) -> None:
        if not block:
            return
        client = self._client()
        models = [model for model, _ in block]
        where = f'space == "{space}" and model in {models}'
        held = {int(row["model"]) for row in self._all(self._models, where, ["model"])}
        fresh += [model for model in models if model not in held]
        self._forget(space, sorted(held))
        entries = [
            {
                "id": f"{space}/{model}",
                "registry": self._key,
                "space": space,
                "model": model,
                "rows": len(positions),
                "vector": _NOBODY,
            }
            for model, (positions, _) in block
        ]
        client.upsert(self._models, entries)  # first: what a killed process leaves is found by them
        rows = [
            {
                "id": f"{space}/{model}/{position}",
                "space": space,
                "model": model,
                "position": position,
                "vector": np.ascontiguousarray(vector, np.float32),
            }
            for model, (positions, vectors) in block
            for position, vector in zip(positions.tolist(), vectors, strict=True)
        ]
        for some in _parts(rows, _ROWS_AT_ONCE):
            client.upsert(self._vectors, some)

    def _forget(self, space: str, models: list[int]) -> None:
        if models:
            where = f'space == "{space}" and model in {models}'
            self._client().delete(self._vectors, filter=where)
            self._client().delete(self._models, filter=where)

    def _pointer(self) -> _Pointer | None:
        with self._translated():
            found = self._client().get(self._marks, ids=[self._entry], output_fields=["*"])
        if not found:
            return None
        row = found[0]
        return _Pointer(Mark(int(row["number"]), str(row["token"])), str(row["space"]), str(row["former"]))

    def _point(self, mark: Mark, space: str, former: str = "") -> None:
        row = {"id": self._entry, "number": mark.number, "token": mark.token, "space": space, "former": former}
        self._client().upsert(self._marks, [row | {"vector": _NOBODY}])
        self._space = space

    def _sweep(self, kept: str) -> None:
        """Delete the other spaces of this registry and kind of vectors, also those of rebuilds that were killed."""
        where = f'registry == "{self._key}" and space != "{kept}"'
        spaces = {str(row["space"]) for row in self._all(self._models, where, ["space"])}
        for space in sorted(one for one in spaces if one.startswith(self._prefix())):
            self._clear(space)

    def _clear(self, space: str) -> None:
        self._client().delete(self._vectors, filter=f'space == "{space}"')
        self._client().delete(self._models, filter=f'space == "{space}"')

    def _prefix(self) -> str:
        return f"{self._entry}/"

    def _fresh_space(self) -> str:
        return f"{self._prefix()}{os.urandom(6).hex()}"

    # Talking

    def _here(self) -> str:
        return f'space == "{self._space}"'

    def _covered(self, where: str) -> dict[int, int]:
        if self._space is None:
            return {}
        with self._translated():
            found = self._all(self._models, f"{self._here()}{where}", ["model", "rows"])
            return {int(row["model"]): int(row["rows"]) for row in found}

    def _all(self, collection: str, where: str, fields: list[str]) -> Iterator[dict[str, Any]]:
        """All entities, however many: one answer holds a bounded number of them."""
        cursor = self._client().query_iterator(collection, filter=where, output_fields=fields, batch_size=1000)
        try:
            while batch := cursor.next():
                yield from batch
        finally:
            cursor.close()

    def _client(self) -> Any:
        client = _connected(self._place)
        if not self._ready:
            self._make_ready(client)
            self._ready = True
        return client

    def _make_ready(self, client: Any) -> None:
        """Make the collections that are absent, and have all loaded."""
        from pymilvus import DataType

        numbers, text = {"datatype": DataType.INT64}, {"datatype": DataType.VARCHAR, "max_length": 2 * _TEXT}
        wanted: dict[str, tuple[int, dict[str, Any]]] = {
            self._vectors: (self._width, {"space": text, "model": numbers, "position": numbers}),
            self._models: (2, {"registry": text, "space": text, "model": numbers, "rows": numbers}),
            self._marks: (2, {"number": numbers, "token": text, "space": text, "former": text}),
        }
        for name, (width, columns) in wanted.items():
            if not client.has_collection(name):
                schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("id", DataType.VARCHAR, max_length=2 * _TEXT, is_primary=True)
                for column, options in columns.items():
                    schema.add_field(column, **options)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
                index = client.prepare_index_params()
                kind = self._place.index if name == self._vectors else "FLAT"
                more = {"params": {"M": 32, "efConstruction": 200}} if kind == "HNSW" else {}
                index.add_index("vector", index_type=kind, metric_type="IP", **more)
                client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
            client.load_collection(name)
        (index_name, *_) = client.list_indexes(self._vectors)
        self._index = str(client.describe_index(self._vectors, index_name).get("index_type", self._place.index))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of Milvus and of the way to it as ``EngineAwayError``."""
        _library()
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except EngineError:
            raise
        except (MilvusException, OSError) as error:
            raise _away(self._place, error) from error

    @contextmanager
    def _alone(self, seconds: float) -> Iterator[None]:
        """Hold the right to write this registry's vectors; SQLite's lock ends with the process."""
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            lock = sqlite3.connect(self._lock, timeout=seconds, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise EngineError(f"{self._lock}: cannot be written: {error}") from error
        try:
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                raise EngineError(f"{self._lock}: another process writes the vectors: {error}") from error
            yield
        finally:
            lock.close()


_clients: Final[dict[Place, tuple[int, Any, Any]]] = {}
"""By place: the process that connected, the client, and the lock of an embedded file. Kept until the process ends."""


def _connected(place: Place) -> Any:
    process, client, _ = _clients.get(place, (0, None, None))
    if process == os.getpid():
        return client
    library = _library()
    lock = None if place.file is None else _held(place.file)
    try:
        client = library.MilvusClient(uri=place.address, token=os.environ.get(TOKEN_VARIABLE, ""), timeout=_SECONDS)
    except Exception as error:
        if lock is not None:
            lock.close()
        raise _away(place, error) from error
    _clients[place] = os.getpid(), client, lock
    return client


def _library() -> Any:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import pymilvus
    except ImportError as error:
        raise EngineAwayError(
            "FP_INDEX names Milvus, whose client is not installed: pip install 'weightprint[milvus]', or unset FP_INDEX"
        ) from error
    for name in ("pymilvus", "milvus_lite", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is told by our own error
    return pymilvus


def _held(file: str) -> sqlite3.Connection:
    """The lock of an embedded database, which knows none of its own and would be destroyed by two processes."""
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        lock = sqlite3.connect(f"{file}.lock.sqlite3", timeout=_SECONDS, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise EngineAwayError(f"{file}: cannot be opened: {error}") from error
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        lock.close()
        raise EngineAwayError(
            f"{file}: another process uses this database of embedded Milvus, which serves one at a time; "
            "try again later, or let FP_INDEX name a server"
        ) from error
    return lock


def _away(place: Place, error: BaseException) -> EngineAwayError:
    reason = clipped(" ".join(str(error).split()) or type(error).__name__, 300)
    return EngineAwayError(f"FP_INDEX: Milvus at {place.address} cannot be used: {reason}")


def _best(hits: list[tuple[float, int, int]], n: int, *, whole: bool) -> tuple[list[tuple[float, int, int]], bool]:
    """The best row of each model, cut after the ``n``-th and its ties, and whether no row that is not among ``hits``
    (best first) can change that; ``whole`` if there is none."""
    best: dict[int, tuple[float, int, int]] = {}
    for hit in hits:
        if hit[1] not in best or hit[0] > best[hit[1]][0]:
            best[hit[1]] = hit
    found = cut(list(best.values()), n)
    if len(found) < n:
        return found, whole
    return found, whole or len(best) >= n + MOST_TIED or hits[-1][0] < found[n - 1][0] - TIE


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
