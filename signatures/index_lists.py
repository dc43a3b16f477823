"""An index of many rows: inverted lists of compressed codes find candidates, stored vectors rank them exactly.

Rows are assigned to the nearest of some centroids; a search looks through the lists of the centroids that are nearest
to the query. A code is RaBitQ's (Gao and Long 2024): one bit for each number of the vector, from which an inner product
is estimated to some .05 of the residual's length. The best estimates are then ranked by the rows themselves, which lie
beside the codes as 16-bit integers times a number of each row: scores are right to some 2e-6, below ``TIE``, and
copies score alike.

The index is written once, in a folder of its own, and read mapped into memory. How far a search looks is a matter of
effort: as many codes are looked through as ``Effort.codes`` allows for all queries of one call together, so that the
few queries of a single tensor look everywhere, and the hundreds of a large model, which vote together, at a part.
Several such indexes that are searched beside each other share that effort by their rows.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fingerprint.errors import RegistryBrokenError
from signatures.files import flush_folder, write_flushed
from signatures.index import (
    MOST_TIED,
    POSITION_BITS,
    TIE,
    Block,
    Float32,
    Hits,
    Int64,
    cut_after,
    faiss_library,
    padded,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

Int16 = NDArray[np.int16]

FORMAT: Final = 1
_TOP: Final = 32767
_BLOCK_ROWS: Final = 1 << 16
_TRAINED_ON: Final = 48
"""Rows for each centroid in the sample that centroids are trained on."""
_ROUNDS: Final = 8
_MOST_LISTS: Final = 1 << 16
_RANKED_ROWS: Final = 1 << 15
_QUERY_BITS: Final = 4
"""Bits of each number of a query where it meets the codes: 8 found no more, and took half as long again."""
_FILES: Final = ("lists.faiss", "vectors.i16", "scales.f32", "ids.i64", "models.i64")


class Effort(Struct, frozen=True):
    """How far a search looks.

    ``codes`` are looked through in one call at most, all queries together, but for each query those of ``least_lists``
    lists at least, of as many lists as there should be; the ``depth`` best are ranked by their vectors, and up to
    ``most_depth`` where these do not settle which models are the best. All indexes that are searched beside each other
    share ``codes`` and ``depth``.
    """

    codes: int = 1 << 22
    least_lists: int = 32
    depth: int = 128
    most_depth: int = 4096


class ListsIndex:
    """Rows of models on disk, mapped; made by ``build`` or ``joined``, never changed."""

    def __init__(self, folder: Path, effort: Effort) -> None:
        """Raises ``RegistryBrokenError`` if the folder does not hold what ``build`` wrote."""
        faiss = faiss_library()
        self.folder = folder
        self._effort = effort
        self._shown: tuple[frozenset[int], Any] | None = None
        try:
            about = json.loads((folder / "about.json").read_text())
            self._width, rows = int(about["width"]), int(about["rows"])
            self.coarse = str(about["coarse"])
            self._bytes = {name: (folder / name).stat().st_size for name in _FILES}
            for name, size in self._bytes.items():
                if size != about["bytes"][name] or about["format"] != FORMAT:
                    raise RegistryBrokenError(f"{folder / name}: the index has {size} bytes, or another format")
            flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
            self._index: Any = faiss.read_index(str(folder / "lists.faiss"), flags)
            self._lists: Any = faiss.extract_index_ivf(self._index)
            self._vectors: Int16 = _mapped(folder / "vectors.i16", np.int16).reshape(rows, self._width)
            self._scales: Float32 = _mapped(folder / "scales.f32", np.float32)
            self._ids: Int64 = _mapped(folder / "ids.i64", np.int64)
            # (3, k): models in ascending order, where their rows begin, how many they are
            self._models: Int64 = np.fromfile(folder / "models.i64", np.int64).reshape(3, -1)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise RegistryBrokenError(f"{folder}: not an index that can be read: {error}") from error
        whole = len(self._scales) == len(self._ids) == self._index.ntotal == int(self._models[2].sum()) == rows
        if not whole or self._index.d != self._width:
            raise RegistryBrokenError(f"{folder}: the parts of the index contradict each other")

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def models(self) -> int:
        """Number of models covered."""
        return int(self._models.shape[1])

    @property
    def lists(self) -> int:
        """How many lists the rows are in."""
        return int(self._lists.nlist)

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(self._bytes.values())

    @property
    def memory(self) -> int:
        """Bytes that searches go through: the codes and the ids."""
        return sum(self._bytes[name] for name in ("lists.faiss", "ids.i64", "models.i64"))

    def covers(self) -> Mapping[int, int]:
        """The models, each with its number of rows."""
        return dict(zip(self._models[0].tolist(), self._models[2].tolist(), strict=True))

    def has(self, model: int) -> bool:
        """Whether it covers the model."""
        return self._place(model) is not None

    def rows(self, model: int) -> tuple[Int64, Float32]:
        """Positions and vectors of a model; raises ``KeyError``."""
        place = self._place(model)
        if place is None:
            raise KeyError(model)
        rows = slice(place[0], place[0] + place[1])
        return self._ids[rows] & ((1 << POSITION_BITS) - 1), self._dequantised(rows)

    def blocks(self, without: Collection[int] = ()) -> Iterator[Block]:
        """All rows but those of some models, some tens of thousands at a time."""
        order = np.lexsort((self._models[2], self._models[1]))  # a model without rows comes before its neighbour
        models, starts, counts = self._models[:, order]
        first = 0
        while first < len(models):
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + _BLOCK_ROWS)))
            rows = slice(int(starts[first]), int(starts[last - 1] + counts[last - 1]))
            positions = self._ids[rows] & ((1 << POSITION_BITS) - 1)
            block = Block(models[first:last], counts[first:last], positions, self._dequantised(rows))
            yield block.without(without)
            first = last

    def search(self, queries: Float32, n: int, without: frozenset[int] = frozenset(), among: int = 0) -> Hits:
        """As ``VectorIndex.search``, but it may miss some; the models ``without`` are left out. ``among``: rows of all
        indexes that are searched beside this one, its own included."""
        found: list[list[tuple[float, int, int]]] = [[] for _ in queries]
        if n > 0:
            todo = np.arange(len(queries))
            among = max(among, len(self))
            whole = max(self._effort.depth, 8 * n)
            # More than its share, as the nearest may lie together; what this does not settle is ranked deeper.
            depth = max(2 * n, math.ceil(whole * min(1.0, 2 * len(self) / among)))
            most = max(self._effort.most_depth, whole)
            faiss = faiss_library()
            parameters = faiss.IVFRaBitQSearchParameters()
            parameters.qb, parameters.sel = _QUERY_BITS, self._selector(without)
            while len(todo):
                parameters.nprobe = self._probed(len(todo), among)
                last = depth >= min(most, len(self))
                todo = self._search_deep(queries, todo, n, min(depth, len(self)), parameters, found, last=last)
                depth = min(4 * depth, most)
        return padded(found)

    def _selector(self, without: frozenset[int]) -> Any:
        """What FAISS asks whether a row is to be looked at; None if all are."""
        if not without:
            return None
        if self._shown is None or self._shown[0] != without:
            shown = np.ones(-(-len(self) // 8) * 8, np.uint8)
            gone = np.isin(self._models[0], np.fromiter(without, np.int64, len(without)))
            for start, count in self._models[1:, gone].T.tolist():
                shown[start : start + count] = 0
            bits = np.packbits(shown, bitorder="little")
            self._shown = without, faiss_library().IDSelectorBitmap(bits)
        return self._shown[1]

    def _search_deep(
        self,
        queries: Float32,
        todo: Int64,
        n: int,
        depth: int,
        parameters: Any,
        found: list[list[tuple[float, int, int]]],
        *,
        last: bool,
    ) -> Int64:
        """Rank ``depth`` rows for the queries ``todo``; returns those for which that was not deep enough."""
        asked = np.ascontiguousarray(queries[todo], np.float32)
        _, rows = self._index.search(asked, depth, params=parameters)
        again: list[int] = []
        step = max(1, _RANKED_ROWS // depth)
        for start in range(0, len(todo), step):
            part = rows[start : start + step]
            scores = self._scores(asked[start : start + step], part)
            ids = np.where(part >= 0, self._ids[np.maximum(part, 0)], -1)
            for query, row, numbers in zip(todo[start : start + step].tolist(), scores, ids, strict=True):
                order = np.argsort(-row, kind="stable")[: int(np.sum(numbers >= 0))]
                row, numbers = row[order], numbers[order]  # noqa: PLW2901 - best first from here on
                _, first = np.unique(numbers >> POSITION_BITS, return_index=True)
                first.sort()
                settled = len(first) > n and row[-1] < row[first[n - 1]] - TIE
                if settled or last or len(order) < depth or len(first) >= n + MOST_TIED:
                    found[query] = cut_after(row[first], numbers[first], n)
                else:
                    again.append(query)
        return np.array(again, np.int64)

    def _probed(self, queries: int, among: int) -> int:
        """How many lists of each query are looked through.

        Lists of an index that has grown are longer than they should be, and fewer of them hold as much.
        """
        lists = self.lists
        allowed = int(self._effort.codes * lists / (max(among, lists) * queries))
        least = math.ceil(self._effort.least_lists * min(1.0, 2 * lists / lists_for(among)))
        return int(min(max(allowed, least), lists))

    def _scores(self, queries: Float32, rows: Int64) -> Float32:
        """Inner products (q, depth) of each query with its rows; -inf for rows of -1."""
        distinct, place = np.unique(
            rows, return_inverse=True
        )  # neighbours share them, and in order they are read faster
        distinct = np.maximum(distinct, 0)
        vectors = self._vectors[distinct].astype(np.float32) * self._scales[distinct, None]
        scores = np.empty(rows.shape, np.float32)
        for at, (query, chosen) in enumerate(zip(queries, place.reshape(rows.shape), strict=True)):
            scores[at] = vectors[chosen] @ query
        return np.where(rows >= 0, scores, -np.inf).astype(np.float32)

    def _dequantised(self, rows: slice) -> Float32:
        vectors: Float32 = self._vectors[rows].astype(np.float32) * self._scales[rows, None]
        return vectors

    def _place(self, model: int) -> tuple[int, int] | None:
        at = int(np.searchsorted(self._models[0], model))
        if at == self._models.shape[1] or self._models[0, at] != model:
            return None
        return int(self._models[1, at]), int(self._models[2, at])


def build(folder: Path, blocks: Iterable[Block], width: int, coarse: ListsIndex | None = None) -> int:
    """Write an index of all rows of ``blocks``, gone through once, and return how many rows there are.

    The centroids are those of ``coarse``, if it is given, else trained on a sample. With no rows nothing can be
    searched, and the folder is of no use. Raises ``OSError``.
    """
    faiss = faiss_library()
    folder.mkdir(parents=True)
    rows = _write_vectors(folder, blocks)
    if not rows:
        return 0
    vectors = _mapped(folder / "vectors.i16", np.int16).reshape(rows, width)
    scales = _mapped(folder / "scales.f32", np.float32)
    if coarse is not None and coarse._width == width:
        token, quantizer = coarse.coarse, faiss.clone_index(coarse._lists.quantizer)
    else:
        token, quantizer = os.urandom(8).hex(), faiss.IndexFlatIP(width)
    count = int(quantizer.ntotal) or lists_for(rows)
    index = faiss.IndexIVFRaBitQ(quantizer, width, count, faiss.METRIC_INNER_PRODUCT)
    index.own_fields = False
    index.cp.niter, index.cp.seed, index.cp.spherical = _ROUNDS, 1, True
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, _TRAINED_ON
    sample = np.sort(np.random.default_rng(1).choice(rows, min(rows, _TRAINED_ON * count), replace=False))
    index.train(vectors[sample].astype(np.float32) * scales[sample, None])
    for start in range(0, rows, _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        index.add(vectors[part].astype(np.float32) * scales[part, None])
    _write_lists(folder, index, width, token)
    return rows


def joined(folder: Path, parts: Sequence[ListsIndex]) -> None:
    """Write the union of indexes that have the same centroids: codes and vectors are copied as they are."""
    faiss = faiss_library()
    folder.mkdir(parents=True)
    models = [part._models + np.array([[0], [start], [0]]) for part, start in zip(parts, _starts(parts), strict=True)]
    stacked = np.concatenate(models, axis=1)
    _write(folder / "models.i64", [stacked[:, np.argsort(stacked[0])]])
    _write(folder / "vectors.i16", (part._vectors for part in parts))
    _write(folder / "scales.f32", (part._scales for part in parts))
    _write(folder / "ids.i64", (part._ids for part in parts))
    union = faiss.read_index(str(parts[0].folder / "lists.faiss"))
    for part, start in zip(parts[1:], _starts(parts)[1:], strict=True):
        union.merge_from(faiss.read_index(str(part.folder / "lists.faiss")), start)
    _write_lists(folder, union, parts[0]._width, parts[0].coarse)


def lists_for(rows: int) -> int:
    """How many lists an index of so many rows has: a power of two, some 1.3 times the root of the rows."""
    return min(_MOST_LISTS, 1 << max(0, round(math.log2(1.3 * math.sqrt(max(rows, 1))))))


def _starts(parts: Sequence[ListsIndex]) -> list[int]:
    return [0, *np.cumsum([len(part) for part in parts[:-1]]).tolist()]


def _write_vectors(folder: Path, blocks: Iterable[Block]) -> int:
    models, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    rows = 0
    with (
        (folder / "vectors.i16").open("xb") as vectors,
        (folder / "scales.f32").open("xb") as scales,
        (folder / "ids.i64").open("xb") as ids,
    ):
        for block in blocks:
            models.append(block.models)
            counts.append(block.counts)
            rows += len(block.positions)
            ids.write(block.ids.tobytes())
            for start in range(0, len(block.positions), _BLOCK_ROWS):
                part = block.vectors[start : start + _BLOCK_ROWS]
                scale = (np.max(np.abs(part), axis=1, keepdims=True) / np.float32(_TOP)).astype(np.float32)
                scale[scale == 0] = 1
                vectors.write(np.rint(part / scale).astype(np.int16).tobytes())
                scales.write(scale.tobytes())
        for file in (vectors, scales, ids):
            _flush(file)
    all_models, all_counts = np.concatenate(models), np.concatenate(counts)
    table = np.stack([all_models, np.cumsum(all_counts) - all_counts, all_counts])
    _write(folder / "models.i64", [table[:, np.argsort(all_models)]])
    if len(np.unique(all_models)) != len(all_models) or int(all_counts.sum()) != rows:
        raise RegistryBrokenError(f"{folder}: a model comes twice, or not with the rows that it should have")
    return rows


def _write_lists(folder: Path, index: Any, width: int, coarse: str) -> None:
    """Write the codes, and last the file that says what there is."""
    faiss = faiss_library()
    faiss.write_index(index, str(folder / "lists.faiss"))
    with (folder / "lists.faiss").open("rb") as file:
        os.fsync(file.fileno())
    sizes = {name: (folder / name).stat().st_size for name in _FILES}
    about = {"format": FORMAT, "width": width, "rows": int(index.ntotal), "coarse": coarse, "bytes": sizes}
    write_flushed(folder / "about.json", json.dumps(about).encode())
    flush_folder(folder)


def _write(path: Path, arrays: Iterable[NDArray[Any]]) -> None:
    with path.open("xb") as file:
        for array in arrays:
            for start in range(0, len(array), _BLOCK_ROWS):
                file.write(np.ascontiguousarray(array[start : start + _BLOCK_ROWS]).tobytes())
        _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _mapped(path: Path, kind: type[np.generic]) -> NDArray[Any]:
    return np.zeros(0, kind) if not path.stat().st_size else np.memmap(path, kind, mode="r")
