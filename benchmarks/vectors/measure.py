"""Makes the index of one size, and asks it about damaged relatives of its models as a scan does."""

from __future__ import annotations

import os
import resource
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from benchmarks.synthetic import Maker
from benchmarks.vectors.population import WIDTH, Population, near, unit
from fingerprint.vocabulary import Role
from signatures.engine import Mark
from signatures.index import Hits, best_of_models, blocks_of, merged, padded
from signatures.index_folder import IndexFolder
from signatures.records import anonymous_model
from signatures.search import NEIGHBOURS, find_candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fingerprint.records import Fingerprint
    from signatures.index import Float32
    from signatures.records import ModelRecord

FIRST = 10
MARK = Mark(1, "benchmark")
CORNER = 16


class EngineAlone:
    """The part of a registry that candidates are asked of: an engine, and no digests."""

    def __init__(self, engine: IndexFolder) -> None:
        self.engine = engine
        self.engine.mark()

    def search(self, queries: Float32, n: int) -> Hits:
        return self.engine.search(queries, n)

    def holders(self, _digests: Iterable[bytes], _most: int) -> dict[bytes, list[int]]:
        return {}

    def has_depth(self, _: str) -> bool:
        return False

    def by_id(self, model: int) -> ModelRecord:
        return replace(anonymous_model(str(model)), id=model)


def suspect_of(vectors: Float32) -> Fingerprint:
    """A fingerprint of square matrices with these vectors as the corners of their sketches."""
    maker = Maker(1, pool=1 << 12)
    template = maker.matrix("m", Role.QUERY, 0, (512, 512), ())
    tensors = []
    for number, vector in enumerate(vectors):
        sketch = np.zeros((32, 32), np.float32)
        sketch[:CORNER, :CORNER] = vector.reshape(CORNER, CORNER)
        tensors.append(replace(template, name=f"m{number}", sketch=sketch, digest=maker.random.bytes(32), casts={}))
    return maker.fingerprint(tensors, [])


def build(folder: Path, vectors: int) -> dict[str, Any]:
    """Make the index; seconds are of the making alone, without those that the vectors themselves take."""
    population = Population(vectors)
    making = working = 0.0

    def timed() -> Iterator[Any]:
        nonlocal making, working
        rows = iter(population)
        while True:
            began, worked = time.perf_counter(), time.process_time()
            found = next(rows, None)
            making += time.perf_counter() - began
            working += time.process_time() - worked
            if found is None:
                return
            yield found

    engine = IndexFolder(folder, "benchmark", WIDTH)
    started, worked = time.perf_counter(), time.process_time()
    engine.rebuild(timed(), MARK)
    took, work = time.perf_counter() - started, time.process_time() - worked
    status = engine.status()
    return {
        "vectors": status.rows,
        "models": status.models,
        "kind": status.kind,
        "seconds": took - making,
        "of the processor": work - working,
        "seconds for making vectors": making,
        "bytes": status.bytes,
        "bytes searched": status.memory,
        "peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def grow(folder: Path, vectors: int, together: int = 100) -> dict[str, Any]:
    """Let an index grow by some models at a time, as lists are registered; seconds are those of the index alone."""
    models = iter(Population(vectors))
    engine = IndexFolder(folder, "benchmark", WIDTH)
    seconds: list[float] = []
    working = 0.0
    mark = engine.mark()
    while batch := list(islice(models, together)):
        started, worked = time.perf_counter(), time.process_time()
        engine.update([], batch, mark, Mark(mark.number + 1, "grown"))
        seconds.append(time.perf_counter() - started)
        working += time.process_time() - worked
        mark = engine.mark()
    status = engine.status()
    return {
        "together": together,
        "vectors": status.rows,
        "segments": status.parts,
        "seconds": sum(seconds),
        "of the processor": working,
        "median": float(np.median(seconds)),
        "longest": max(seconds),
    }


def add_one(folder: Path, vectors: int, rounds: int = 200) -> dict[str, float]:
    """Seconds to add models one by one, as registrations do."""
    population = Population(vectors)
    engine = IndexFolder(folder, "benchmark", WIDTH)
    random = np.random.default_rng(9)
    seconds: list[float] = []
    first = len(population.models) + 1
    for number in range(rounds):
        mark = engine.mark()
        rows = np.arange(100), unit(random.standard_normal((100, WIDTH), np.float32))
        started = time.perf_counter()
        engine.update([], [(first + number, rows)], mark, Mark(mark.number + 1, "more"))
        seconds.append(time.perf_counter() - started)
    return {"median": float(np.median(seconds)), "longest": float(max(seconds))}


def ask(folder: Path, vectors: int, cosines: Iterable[float], suspects: int, report: Callable[[str], None]) -> Any:
    """Suspects at each cosine: how often the true model is among the first, and how long a search takes."""
    population = Population(vectors)
    registry = EngineAlone(IndexFolder(folder, "benchmark", WIDTH))
    out: dict[str, Any] = {}
    for cosine in cosines:
        random = np.random.default_rng([5, round(1000 * cosine)])
        ranks: list[int] = []
        first_family, neighbours, single = 0, 0, 0
        asked, seconds, work = 0, [], []
        for number in range(suspects):
            model = population.models[int(random.integers(len(population.models)))]
            true = population.of(model)
            damaged = near(true, np.float32(cosine), unit(random.standard_normal(true.shape, np.float32)))
            fingerprint = suspect_of(damaged)
            started, worked = time.perf_counter(), time.process_time()
            found = find_candidates(registry, fingerprint, 20)  # type: ignore[arg-type] # it asks for these things only
            seconds.append(time.perf_counter() - started)
            work.append(time.process_time() - worked)
            ids = [one.model.id for one in found]
            ranks.append(ids.index(model.number) if model.number in ids else -1)
            first_family += bool(ids) and population.models[ids[0] - 1].family == model.family
            hits = registry.search(damaged, NEIGHBOURS)
            neighbours += int(np.sum(np.any(hits.models == model.number, axis=1)))
            asked += len(damaged)
            if number < suspects // 2:  # a suspect of one tensor
                alone = find_candidates(registry, suspect_of(damaged[:1]), 20)  # type: ignore[arg-type]
                single += model.number in [one.model.id for one in alone][:FIRST]
        where = np.array(ranks)
        out[f"{cosine:g}"] = {
            "suspects": suspects,
            "among the first ten": float(np.mean((where >= 0) & (where < FIRST))),
            "first": float(np.mean(where == 0)),
            "family first": first_family / suspects,
            "a tensor among its 16 neighbours": neighbours / asked,
            "suspect of one tensor": single / max(suspects // 2, 1),
            "tensors of a suspect": asked / suspects,
            "median seconds": float(np.median(seconds)),
            "99% seconds": float(np.quantile(seconds, 0.99)),
            "median seconds of the processor": float(np.median(work)),
        }
        report(f"{vectors:,} vectors, cosine {cosine:g}: {out[f'{cosine:g}']}")
    return out


def recall(folder: Path, vectors: int, cosines: Iterable[float], queries: int) -> dict[str, Any]:
    """Share of the 16 models nearest by exact search that the index finds too, for queries of one tensor each, and the
    seconds that either search took, the vectors being at hand."""
    population = Population(vectors)
    random = np.random.default_rng(7)
    sample, at = [], []
    for cosine in cosines:
        for _ in range(queries):
            model = population.models[int(random.integers(len(population.models)))]
            true = population.of(model)[:1]
            sample.append(near(true, np.float32(cosine), unit(random.standard_normal(true.shape, np.float32))))
            at.append(f"{cosine:g}")
    asked = np.concatenate(sample)
    slow = padded([[] for _ in asked])
    exactly = 0.0
    for block in blocks_of(population, WIDTH):
        started = time.perf_counter()
        slow = merged([slow, best_of_models(block, asked, NEIGHBOURS)], NEIGHBOURS)
        exactly += time.perf_counter() - started
    engine = IndexFolder(folder, "benchmark", WIDTH)
    engine.mark()
    engine.search(asked, NEIGHBOURS)  # maps the files
    started = time.perf_counter()
    fast = engine.search(asked, NEIGHBOURS)
    took = time.perf_counter() - started
    shares: dict[str, list[float]] = {}
    for key, want, got in zip(at, slow.models, fast.models, strict=True):
        wanted = set(want[want >= 0].tolist()[:NEIGHBOURS])
        shares.setdefault(key, []).append(len(wanted & set(got.tolist())) / max(len(wanted), 1))
    found = {key: float(np.mean(values)) for key, values in shares.items()}
    return {"shares": found, "queries": len(asked), "exact seconds": exactly, "seconds": took}


def memory() -> dict[str, int]:
    """Bytes of this process that are resident: its own, and of mapped files."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        word, _, rest = line.partition(":")
        if word in {"RssAnon", "RssFile"}:
            found[word] = int(rest.split()[0]) * 1024
    return found


def cores() -> int:
    return os.cpu_count() or 1
