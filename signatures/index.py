"""Nearest registered tensors by sketch: the seam of vector indexes, with FAISS behind it and the slow search as oracle.

Vectors are unit vectors of float32 (the flattened sketch of a tensor over its norm); the score is their inner product.
A vector belongs to a model and the position of a tensor in the model's signature, or the number of one of its layers'
vectors (``LayerGram``) beyond all positions of tensors.

Ties. Copies and siblings of one model share tensors, or have nearly equal ones: hundreds of rows can score alike, and
one model can hold many copies of one tensor. A search for the nearest ``n`` rows would return some of the copies and
leave the others out by accident. A search here therefore counts models, not rows: each model takes part with its best
row, the ``n`` best models are returned, and with them every model whose score is that of the ``n``-th within ``TIE``.
The fast index searches deeper until it can promise that, and where depth would not end it compares with all rows.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.errors import RegistryBrokenError, UsageError
from signatures.files import write_flushed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

TIE: Final = 1e-5
"""Scores closer than this are taken for equal: ten times the rounding of an inner product of 256 numbers."""

MOST_TIED: Final = 256
"""Models beyond the number asked for that a search gives because they tie: thousands may hold one frozen tensor."""
POSITION_BITS: Final = 20
GRAM_POSITIONS: Final = 1 << 19
"""Positions from here on are numbers of layers' vectors, those below of tensors: there are at most 2**17 of either."""
_MAX_DEPTH: Final = 4096
_BLOCK_NUMBERS: Final = 1 << 24
_BLOCK_ROWS: Final = 1 << 15
_FEW_MODELS: Final = 16
"""Models of an index up to which a scan, which asks for as many neighbours at least, compares with all rows."""
_FAISS_HEADER: Final = struct.Struct("<4siq16sBi")
"""What FAISS writes of an index of any kind: which kind, width, rows, nothing, whether it is trained, the metric."""
_COUNT: Final = struct.Struct("<Q")


class Hits(Struct, frozen=True):
    """For each query the best models, best first: arrays (queries, width).

    ``scores`` float32, ``models`` and ``positions`` int64: the best row of each model. Rows of the arrays that are
    shorter than the width end in scores of -inf, models and positions of -1.
    """

    scores: Float32
    models: Int64
    positions: Int64


class Block(Struct, frozen=True):
    """Rows of several models, those of one lying together in the order of ``models``.

    ``models`` and ``counts`` (k,) int64, ``positions`` (m,) int64, ``vectors`` (m, width) float32; m is the sum of the
    counts, which may be 0.
    """

    models: Int64
    counts: Int64
    positions: Int64
    vectors: Float32

    @property
    def ids(self) -> Int64:
        """Model and position of each row in one number."""
        return (np.repeat(self.models, self.counts) << POSITION_BITS) | self.positions

    def without(self, models: Collection[int]) -> Block:
        """The same without some models."""
        kept = ~np.isin(self.models, list(models))
        rows = np.repeat(kept, self.counts)
        return (
            self
            if kept.all()
            else Block(self.models[kept], self.counts[kept], self.positions[rows], self.vectors[rows])
        )


class VectorIndex(Protocol):
    """Rows of vectors that belong to models."""

    def __len__(self) -> int:
        """Number of rows."""

    def add(self, model: int, positions: Int64, vectors: Float32) -> None:
        """Add all rows of a model that is not covered: positions (m,) and unit vectors (m, width); m may be 0.

        Raises ``UsageError`` if the model is covered or the vectors are not of that shape and norm.
        """

    def remove(self, model: int) -> None:
        """Remove a model and its rows; nothing happens if it is not covered."""

    def covers(self) -> Mapping[int, int]:
        """The models that were added, each with its number of rows."""

    def search(self, queries: Float32, n: int) -> Hits:
        """The ``n`` best models for each of the unit vectors ``queries`` (q, width), and those that tie with them,
        ``MOST_TIED`` at most."""

    def rows(self, model: int) -> tuple[Int64, Float32]:
        """Positions (m,) and vectors (m, width) of a model."""

    def save(self, path: Path) -> None:
        """Write the index to ``path`` and to a small file beside it; raises ``OSError``."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read, mapped into memory, what ``save`` wrote; raises ``RegistryBrokenError``."""


class ExactIndex:
    """Compares with every row and sorts: slow, and plain enough to be the oracle of the other one."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._rows: dict[int, tuple[Int64, Float32]] = {}

    def __len__(self) -> int:
        return sum(len(positions) for positions, _ in self._rows.values())

    def add(self, model: int, positions: Int64, vectors: Float32) -> None:
        """See ``VectorIndex.add``."""
        require_rows(model, positions, vectors, self._width, self._rows)
        self._rows[model] = (positions.astype(np.int64), vectors.astype(np.float32))

    def remove(self, model: int) -> None:
        """See ``VectorIndex.remove``."""
        self._rows.pop(model, None)

    def covers(self) -> Mapping[int, int]:
        """See ``VectorIndex.covers``."""
        return {model: len(positions) for model, (positions, _) in self._rows.items()}

    def rows(self, model: int) -> tuple[Int64, Float32]:
        """See ``VectorIndex.rows``."""
        return self._rows[model]

    def search(self, queries: Float32, n: int) -> Hits:
        """See ``VectorIndex.search``."""
        found: list[list[tuple[float, int, int]]] = []
        for query in queries:
            best: list[tuple[float, int, int]] = []
            for model, (positions, vectors) in self._rows.items():
                if len(positions):
                    scores = vectors @ query
                    row = int(np.argmax(scores))
                    best.append((float(scores[row]), model, int(positions[row])))
            found.append(cut(best, n))
        return padded(found)

    def save(self, path: Path) -> None:
        """See ``VectorIndex.save``."""
        empty = np.zeros((0, self._width), np.float32)
        with path.open("wb") as file:
            np.save(file, np.concatenate([empty, *(vectors for _, vectors in self._rows.values())]))
        rows = {str(model): positions.tolist() for model, (positions, _) in self._rows.items()}
        _beside(path).write_text(json.dumps({"width": self._width, "positions": rows}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """See ``VectorIndex.load``."""
        try:
            about = json.loads(_beside(path).read_text())
            vectors = np.load(path, mmap_mode="r")
            index = cls(about["width"])
            start = 0
            for model, positions in about["positions"].items():
                index._rows[int(model)] = (np.array(positions, np.int64), vectors[start : start + len(positions)])
                start += len(positions)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryBrokenError(f"{path}: not an index that can be read: {error}") from error
        return index


class FlatIndex:
    """FAISS's exhaustive search over inner products, mapped from a file where it was loaded from one."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._made: Any = None
        self._covers: dict[int, int] = {}
        self._window: tuple[Int64, Float32] | None = None
        self._mapped = False

    def __len__(self) -> int:
        return len(self._window[0]) if self._window is not None else int(self._index.ntotal)

    @property
    def _index(self) -> Any:
        """FAISS's index, made when it is asked for: to compare with all rows of a few models takes less than to import
        it."""
        if self._made is None:
            self._made = self._held() if self._window is not None else _empty(self._width)
            self._window = None
        return self._made

    def _held(self) -> Any:
        """FAISS's index of all rows, in memory of its own."""
        made = _empty(self._width)
        if len(self):
            made.add_with_ids(np.ascontiguousarray(self._matrix()), self._ids())
        return made

    def add(self, model: int, positions: Int64, vectors: Float32) -> None:
        """See ``VectorIndex.add``."""
        require_rows(model, positions, vectors, self._width, self._covers)
        if len(positions):
            self._own()
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), (model << POSITION_BITS) | positions)
        self._covers[model] = len(positions)

    def extend(self, block: Block) -> None:
        """Add the rows of several models at once; raises ``UsageError`` as ``add``."""
        models = block.models.tolist()
        if not self._covers.keys().isdisjoint(models) or block.vectors.shape[1:] != (self._width,):
            raise UsageError("the index has some of these models already, or vectors of another length")
        if len(block.positions):
            self._own()
            self._index.add_with_ids(np.ascontiguousarray(block.vectors), block.ids)
        self._covers |= dict(zip(models, block.counts.tolist(), strict=True))

    def block(self) -> Block:
        """All rows, as a window that is valid as long as the index is not changed."""
        ids = self._ids()
        owners = ids >> POSITION_BITS
        order = owners[np.flatnonzero(np.diff(owners, prepend=-1))].tolist()
        order += [model for model, rows in self._covers.items() if not rows]
        counts = np.array([self._covers[model] for model in order], np.int64)
        return Block(np.array(order, np.int64), counts, ids & ((1 << POSITION_BITS) - 1), self._matrix())

    def remove(self, model: int) -> None:
        """See ``VectorIndex.remove``."""
        faiss = faiss_library()
        if self._covers.pop(model, 0):
            self._own()
            first = model << POSITION_BITS
            self._index.remove_ids(faiss.IDSelectorRange(first, first + (1 << POSITION_BITS)))

    def covers(self) -> Mapping[int, int]:
        """See ``VectorIndex.covers``."""
        return dict(self._covers)

    @property
    def models(self) -> int:
        """Number of models covered."""
        return len(self._covers)

    def has(self, model: int) -> bool:
        """Whether it covers the model."""
        return model in self._covers

    def rows(self, model: int) -> tuple[Int64, Float32]:
        """See ``VectorIndex.rows``."""
        ids = self._ids()
        chosen = np.flatnonzero(ids >> POSITION_BITS == model)
        return ids[chosen] & ((1 << POSITION_BITS) - 1), self._matrix()[chosen]

    def search(self, queries: Float32, n: int) -> Hits:
        """See ``VectorIndex.search``."""
        found: list[list[tuple[float, int, int]]] = [[] for _ in queries]
        if n > 0 and len(self):
            todo = np.arange(len(queries))
            depth = min(len(self), max(64, 4 * n))
            holders = sum(1 for rows in self._covers.values() if rows)
            while len(todo) and n < holders and depth <= _MAX_DEPTH:
                todo = self._search_deep(queries, todo, n, depth, found)
                depth = min(4 * depth, len(self)) if depth < len(self) else _MAX_DEPTH + 1
            self._search_all(queries, todo, n, found)
        return padded(found)

    def save(self, path: Path) -> None:
        """See ``VectorIndex.save``."""
        faiss = faiss_library()
        self._own()
        faiss.write_index(self._index, str(path))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        models, rows = list(self._covers), list(self._covers.values())
        about = {"width": self._width, "bytes": path.stat().st_size, "models": models, "rows": rows}
        write_flushed(_beside(path), json.dumps(about).encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """See ``VectorIndex.load``."""
        try:
            about = json.loads(_beside(path).read_text())
            size = path.stat().st_size
            if size != about["bytes"]:
                raise RegistryBrokenError(f"{path}: the index has {size} bytes instead of {about['bytes']}")
            index = cls(about["width"])
            index._covers = dict(zip(about["models"], about["rows"], strict=True))
            rows = sum(index._covers.values())
            if rows and len(index._covers) <= _FEW_MODELS:
                index._window = _window(path, index._width, rows)
            if index._window is None:
                faiss = faiss_library()
                index._made, index._mapped = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), True
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise RegistryBrokenError(f"{path}: not an index that can be read: {error}") from error
        if index._mapped and (index._index.d != index._width or len(index) != rows):
            raise RegistryBrokenError(f"{path}: the index and the list of its models contradict each other")
        return index

    def _own(self) -> None:
        """A mapped index cannot be changed: copy it into memory first."""
        if self._mapped:
            self._made, self._mapped = self._held(), False

    def _ids(self) -> Int64:
        if self._window is not None:
            return self._window[0]
        faiss = faiss_library()
        return np.asarray(faiss.vector_to_array(self._index.id_map), np.int64)

    def _matrix(self) -> Float32:
        """All vectors, as a window that is valid as long as the index is not changed."""
        if self._window is not None:
            return self._window[1]
        if not len(self):
            return np.zeros((0, self._width), np.float32)
        faiss = faiss_library()
        flat: Any = faiss.downcast_index(self._index.index)
        numbers: Float32 = faiss.rev_swig_ptr(flat.get_xb(), len(self) * self._width)
        return numbers.reshape(len(self), self._width)

    def _search_deep(
        self, queries: Float32, todo: Int64, n: int, depth: int, found: list[list[tuple[float, int, int]]]
    ) -> Int64:
        """Search ``depth`` rows for the queries ``todo``; returns those for which that was not deep enough."""
        scores, ids = self._index.search(np.ascontiguousarray(queries[todo], np.float32), depth)
        again: list[int] = []
        for query, row, numbers in zip(todo.tolist(), scores, ids, strict=True):
            _, first = np.unique(numbers >> POSITION_BITS, return_index=True)
            first.sort()
            enough = len(first) > n and row[-1] < row[first[n - 1]] - TIE
            if enough or len(first) >= n + MOST_TIED or depth == len(self):
                found[query] = cut_after(row[first], numbers[first], n)
            else:
                again.append(query)
        return np.array(again, np.int64)

    def _search_all(self, queries: Float32, todo: Int64, n: int, found: list[list[tuple[float, int, int]]]) -> None:
        """Compare the queries ``todo`` with all rows."""
        if not len(todo):
            return
        ids = self._ids()
        matrix = np.require(self._matrix(), requirements="A")  # a mapped one may lie at an odd offset: no BLAS for that
        starts = np.flatnonzero(np.diff(ids >> POSITION_BITS, prepend=-1))  # the rows of a model lie together
        ends = np.append(starts[1:], len(ids))
        step = max(1, _BLOCK_NUMBERS // len(ids))
        for start in range(0, len(todo), step):
            block = todo[start : start + step]
            scores = queries[block] @ matrix.T
            best = np.maximum.reduceat(scores, starts, axis=1)
            for query, row, tops in zip(block.tolist(), scores, best, strict=True):
                rows = [starts[i] + int(np.argmax(row[starts[i] : ends[i]])) for i in _best(tops, n)]
                found[query] = cut_after(row[rows], ids[rows], n)


def _empty(width: int) -> Any:
    faiss = faiss_library()
    return faiss.IndexIDMap(faiss.IndexFlatIP(width))


def _window(path: Path, width: int, rows: int) -> tuple[Int64, Float32] | None:
    """Ids and vectors in the file of a flat index, mapped; None if FAISS did not write it as was looked for here.

    Two headers, of the ids and of what they number; the vectors and the ids, each with their count before them.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    vectors = 2 * _FAISS_HEADER.size + _COUNT.size
    ids = vectors + 4 * rows * width + _COUNT.size
    if len(data) != ids + 8 * rows:
        return None
    outer, inner = (_FAISS_HEADER.unpack_from(data, start)[:3] for start in (0, _FAISS_HEADER.size))
    counts = [_COUNT.unpack_from(data, start - _COUNT.size)[0] for start in (vectors, ids)]
    if outer != (b"IxMp", width, rows) or inner != (b"IxFI", width, rows) or counts != [rows * width, rows]:
        return None
    numbers = np.frombuffer(data, np.float32, rows * width, vectors).reshape(rows, width)
    return np.require(np.frombuffer(data, np.int64, rows, ids), requirements="A"), numbers


def faiss_library() -> Any:
    """FAISS, imported late.

    It leaves batches to a matrix product only from 128,000 distances of a query on (version 1.15); with 226 queries and
    50,000 rows that took 0.79 s of one processor's time instead of 0.06 s, so the bound is put back to where it was.
    """
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 20
    return faiss


def unit_vectors(sketches: Float32) -> Float32:
    """Sketches (m, k, k) as unit vectors (m, k * k); sketches of zeros stay zeros."""
    flat = sketches.reshape(len(sketches), -1).astype(np.float64)
    norms = np.sqrt(np.sum(flat**2, axis=1, keepdims=True))
    return (flat / np.where(norms > 0, norms, 1)).astype(np.float32)


def merged(parts: Sequence[Hits], n: int) -> Hits:
    """The hits of several indexes, none of which shares a model with another, as one index would give them."""
    queries = zip(*(_unpadded(part) for part in parts), strict=True)
    return padded([cut([hit for row in rows for hit in row], n) for rows in queries])


def without_models(hits: Hits, models: Collection[int]) -> Hits:
    """The same hits without those of some models."""
    return padded([[hit for hit in row if hit[1] not in models] for row in _unpadded(hits)])


def best_of_models(block: Block, queries: Float32, n: int) -> Hits:
    """What ``VectorIndex.search`` gives over the rows of a block: the slow way, in one product of matrices."""
    holders = np.flatnonzero(block.counts)
    if not len(holders) or not len(queries) or n < 1:
        return padded([[] for _ in queries])
    counts = block.counts[holders]
    starts = np.cumsum(counts) - counts
    scores = queries @ block.vectors.T
    best = np.maximum.reduceat(scores, starts, axis=1)
    found: list[list[tuple[float, int, int]]] = []
    for row, tops in zip(scores, best, strict=True):
        rows = [starts[i] + int(np.argmax(row[starts[i] : starts[i] + counts[i]])) for i in _best(tops, n)]
        found.append(cut_after(row[rows], block.ids[rows], n))
    return padded(found)


def blocks_of(models: Iterable[tuple[int, tuple[Int64, Float32]]], width: int) -> Iterator[Block]:
    """The rows of models, some tens of thousands at a time; raises ``UsageError`` for rows that cannot be."""
    held: list[tuple[int, tuple[Int64, Float32]]] = []
    rows = 0
    for model, (positions, vectors) in models:
        require_rows(model, positions, vectors, width, {})
        held.append((model, (positions, vectors)))
        rows += len(positions)
        if rows >= _BLOCK_ROWS:
            yield _stacked(held, width)
            held, rows = [], 0
    if held:
        yield _stacked(held, width)


def _stacked(held: Sequence[tuple[int, tuple[Int64, Float32]]], width: int) -> Block:
    vectors = [found.astype(np.float32, copy=False) for _, (_, found) in held]
    return Block(
        np.array([model for model, _ in held], np.int64),
        np.array([len(positions) for _, (positions, _) in held], np.int64),
        np.concatenate([np.zeros(0, np.int64), *(positions.astype(np.int64) for _, (positions, _) in held)]),
        np.concatenate([np.zeros((0, width), np.float32), *vectors]),
    )


def require_rows(model: int, positions: Int64, vectors: Float32, width: int, covered: Mapping[int, object]) -> None:
    """Raise ``UsageError`` unless the rows can be added."""
    if model in covered or not 0 <= model < 1 << (63 - POSITION_BITS):
        raise UsageError(f"model {model} is in the index already, or is no id of a model")
    if positions.ndim != 1 or vectors.shape != (len(positions), width):
        raise UsageError(f"{positions.shape} positions with vectors of shape {vectors.shape}; the width is {width}")
    if len(positions):
        norms = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        if int(positions.min()) < 0 or int(positions.max()) >= 1 << POSITION_BITS or np.any(np.abs(norms - 1) > 1e-3):
            raise UsageError("positions of an index are small natural numbers, and its vectors have norm 1")


def cut_after(scores: Float32, ids: Int64, n: int) -> list[tuple[float, int, int]]:
    """Hits as triples; see ``cut``."""
    last = (1 << POSITION_BITS) - 1
    pairs = zip(scores.tolist(), ids.tolist(), strict=True)
    return cut([(score, number >> POSITION_BITS, number & last) for score, number in pairs], n)


def cut(hits: list[tuple[float, int, int]], n: int) -> list[tuple[float, int, int]]:
    """Hits (score, model, position), best first, cut after the ``n``-th and its ties, or ``MOST_TIED`` of these."""
    best = sorted(hits, key=lambda hit: (-hit[0], hit[1]))[: n + MOST_TIED if n > 0 else 0]
    return best if len(best) <= n else [hit for hit in best if hit[0] >= best[n - 1][0] - TIE]


def _best(tops: Float32, n: int) -> list[int]:
    """Places of the ``n`` highest scores and of their ties, as of ``cut``."""
    if len(tops) <= n:
        return list(range(len(tops)))
    places = np.flatnonzero(tops >= float(np.partition(tops, -n)[-n]) - TIE)
    order: list[int] = places[np.argsort(-tops[places], kind="stable")[: n + MOST_TIED]].tolist()
    return order


def padded(found: list[list[tuple[float, int, int]]]) -> Hits:
    """Lists of score, model and position as arrays."""
    width = max(map(len, found), default=0)
    scores = np.full((len(found), width), -np.inf, np.float32)
    models = np.full((len(found), width), -1, np.int64)
    positions = np.full((len(found), width), -1, np.int64)
    for row, hits in enumerate(found):
        if hits:
            scores[row, : len(hits)], models[row, : len(hits)], positions[row, : len(hits)] = zip(*hits, strict=True)
    return Hits(scores, models, positions)


def _unpadded(hits: Hits) -> list[list[tuple[float, int, int]]]:
    return [
        [hit for hit in zip(*rows, strict=True) if hit[1] >= 0]
        for rows in zip(hits.scores.tolist(), hits.models.tolist(), hits.positions.tolist(), strict=True)
    ]


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")
