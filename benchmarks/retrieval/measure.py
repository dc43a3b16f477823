"""Builds the registry, makes the suspects, and asks the index, the slow search and the full comparison about each."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from benchmarks.retrieval.damage import DAMAGE, disguised
from benchmarks.retrieval.invented import Arrays, stream
from benchmarks.retrieval.nameless import LAUNDERED, laundered, turns
from benchmarks.retrieval.population import Kind, Source, sources
from fingerprint.assemble import SUSPECT_NEURONS, fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.comparing.comparison import compare_fingerprints
from fingerprint.comparing.matching import SketchTable
from signatures.codec import decode_vectors
from signatures.identify import LEAST_CANDIDATES
from signatures.index import TIE, ExactIndex, Hits
from signatures.registry import Registry
from signatures.search import find_candidates
from signatures.signature import decode, encode, signed_bytes
from signatures.verdict import assess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fingerprint.records import Fingerprint
    from signatures.index import Float32
    from signatures.records import ModelRecord


FIRST = 10
TOGETHER = 200
NAMED = "rotated"
"""Rotated suspects of invented models keep their names: which tensors belong together is told by the values of trained
ones. Those made of trained models lose them (see ``nameless``)."""


class IndexAlone:
    """The registry without its digests: equal gains would give many a damaged suspect's relative away."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def has_depth(self, depth: str) -> bool:
        return self.registry.has_depth(depth)

    def by_id(self, model: int) -> ModelRecord | None:
        return self.registry.by_id(model)

    def holders(self, _digests: Iterable[bytes], _most: int) -> dict[bytes, list[int]]:
        return {}

    def search(self, queries: Float32, n: int) -> Hits:
        return self.registry.search(queries, n)


class SlowSearch(IndexAlone):
    """With another search: every vector is compared, in one product of matrices, and nothing is indexed."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        rows, owners = [], []
        for record in registry.models():
            _, vectors = decode_vectors(encode(registry.load_signature(record)), path=record.name)
            rows.append(vectors)
            owners += [record.id] * len(vectors)
        self.matrix = np.concatenate(rows)
        self.owners = np.array(owners, np.int64)
        self._starts = np.flatnonzero(np.diff(self.owners, prepend=-1))

    def search(self, queries: Float32, n: int) -> Hits:
        """As ``VectorIndex.search``, without positions."""
        best = np.maximum.reduceat(queries @ self.matrix.T, self._starts, axis=1)
        models = self.owners[self._starts]
        n = min(n, len(models))
        order = np.argsort(-best, axis=1, kind="stable")
        scores = np.take_along_axis(best, order, axis=1)
        kept = scores >= scores[:, n - 1 : n] - TIE
        width = int(kept.sum(axis=1).max(initial=0))
        kept = kept[:, :width]
        return Hits(
            np.where(kept, scores[:, :width], -np.inf).astype(np.float32),
            np.where(kept, models[order[:, :width]], -1),
            np.full(kept.shape, -1, np.int64),
        )

    def differences(self, queries: Float32, n: int) -> int:
        """For how many queries the models found differ from those of the index that the unit tests use as oracle."""
        oracle = ExactIndex(self.matrix.shape[1])
        for model in np.unique(self.owners).tolist():
            held = self.matrix[self.owners == model]
            oracle.add(model, np.arange(len(held)), held)
        mine, other = self.search(queries, n), oracle.search(queries, n)
        return sum(
            set(a[a >= 0].tolist()) != set(b[b >= 0].tolist()) for a, b in zip(mine.models, other.models, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """One suspect. ``parents``: names of the models it was made of.

    For every parent: ``detected`` if comparing with it reaches possible after correction for the whole registry,
    ``slow`` if the slow search proposes it, ``proposed`` if the index does, both without the help of digests, and
    ``places`` at which the index does (0 is the first; -1 if not at all).
    ``seconds`` of the registry's own search, digests and all, and ``work``, seconds of the processor in it: less than
    the former on a busy machine.
    """

    damage: str
    parents: tuple[str, ...]
    detected: tuple[bool, ...]
    slow: tuple[bool, ...]
    proposed: tuple[bool, ...]
    vectors: int
    seconds: float
    work: float
    places: tuple[int, ...] = ()


@dataclass(slots=True)
class Result:
    """What was measured. ``kinds``: how many models are of each; ``cold``: seconds of first searches after opening;
    ``large``: of a large suspect's."""

    models: int
    kinds: dict[str, int]
    vectors: int
    asked: list[Asked]
    build_seconds: float
    cold: list[float]
    large: dict[str, float]
    oracle_queries: int
    oracle_differences: int


def measure(
    zoo: Path | None,
    work: Path,
    *,
    models: int,
    suspects: int,
    rewritten: int = 0,
    families: Sequence[str] = ("a",),
    seed: int = 1,
    large: Sequence[tuple[str, Fingerprint]] = (),
    report: Callable[[str], None] = lambda _: None,
) -> Result:
    """Build a registry of ``models`` in ``work`` and ask it about suspects; ``large`` are suspects for timing.

    ``suspects`` are damaged models of the registry, ``rewritten`` of them trained ones, rewritten and without names.
    ``families`` are those of the trained models. Everything runs in one thread.
    """
    with threadpool_limits(1):
        return _measured(sources(zoo, models, families), work, (suspects - rewritten, rewritten), seed, large, report)


def _measured(
    population: list[Source],
    work: Path,
    suspects: tuple[int, int],
    seed: int,
    large: Sequence[tuple[str, Fingerprint]],
    report: Callable[[str], None],
) -> Result:
    built = _registered(population, work, report)
    asked: list[Asked] = []
    largest = _fingerprinted(population[0].weights(), work, registered=False)
    queries: list[Float32] = []
    with Registry.open(work / "registry", create=False) as registry:
        slow = SlowSearch(registry)
        records = {record.name: record for record in registry.models()}
        for number, (damage, theirs, parents) in enumerate(_suspects(population, suspects, seed, work)):
            asked.append(_ask(slow, records, theirs, damage, parents))
            if len(theirs.tensors) > len(largest.tensors):
                largest = theirs
            if number % 25 == 0:
                queries.append(SketchTable(theirs.tensors, corner=theirs.parameters.index_width).flat()[:4])
            if number % 100 == 99:
                report(f"{number + 1} suspects are searched")
    return Result(
        models=len(population),
        kinds=dict(Counter(source.kind.value for source in population)),
        vectors=len(slow.matrix),
        asked=asked,
        build_seconds=built,
        cold=[_search_seconds(work / "registry", largest) for _ in range(5)],
        large={name: _search_seconds(work / "registry", one) for name, one in large},
        oracle_queries=sum(map(len, queries)),
        oracle_differences=slow.differences(np.concatenate(queries), 16),
    )


def _registered(population: Sequence[Source], work: Path, report: Callable[[str], None]) -> float:
    """Register all models; how many seconds that took. One that was left whole by a former run is used again.

    Raises FileExistsError if there is a registry of other models, or of some of them.
    """
    note = work / "built.json"
    wanted = [source.name for source in population]
    if note.exists():
        known = json.loads(note.read_text())
        if known["models"] != wanted:
            raise FileExistsError(f"{work} holds a registry of other models")
        report(f"{len(wanted)} models are registered already")
        return float(known["seconds"])
    started = time.perf_counter()
    with Registry.open(work / "registry") as registry:
        if next(iter(registry.models()), None) is not None:
            raise FileExistsError(f"{work} holds a registry that was not finished")
        made = signatures_of(population, work)
        for start in range(0, len(population), TOGETHER):
            with registry.together():
                for source in population[start : start + TOGETHER]:
                    registry.register(decode(next(made)), name=source.name)
            report(f"{min(start + TOGETHER, len(population))} models are registered")
    built = time.perf_counter() - started
    note.write_text(json.dumps({"models": wanted, "seconds": built}))
    return built


def signatures_of(population: Sequence[Source], work: Path) -> Iterator[bytes]:
    """Files of the signatures of the models, in order, made on all processors if there are many."""
    make = partial(_signature_of, work=work)
    if len(population) < TOGETHER:
        yield from map(make, population)
        return
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for start in range(0, len(population), TOGETHER):
            yield from pool.map(make, population[start : start + TOGETHER], chunksize=8)


def _signature_of(source: Source, work: Path) -> bytes:
    with threadpool_limits(1):
        return signed_bytes(_fingerprinted(source.weights(), work, registered=True))


def _search_seconds(folder: Path, suspect: Fingerprint) -> float:
    """Seconds of the first search after a registry was opened."""
    with Registry.open(folder, create=False) as registry:
        started = time.perf_counter()
        find_candidates(registry, suspect, LEAST_CANDIDATES)
        return time.perf_counter() - started


def _suspects(
    population: Sequence[Source], counts: tuple[int, int], seed: int, work: Path
) -> Iterator[tuple[str, Fingerprint, tuple[str, ...]]]:
    """What was done, the suspect and the names of its parents: damaged ones, then rewritten ones without names."""
    damaged, rewritten = counts
    for number in range(damaged):
        damage = list(DAMAGE)[number % len(DAMAGE)]
        yield damage, *_suspect(population, damage, number, seed, work)
    trained = turns(population)
    for number in range(rewritten):
        damage = LAUNDERED[number % len(LAUNDERED)]
        # Every turn of damages starts at another model.
        source = trained[(number + number // len(LAUNDERED)) % len(trained)]
        with tempfile.TemporaryDirectory(dir=work) as folder:
            path = laundered(source, damage, number, seed, Path(folder) / "made")
            yield damage, _measured_file(path, registered=False), (source.name,)


def _suspect(
    population: Sequence[Source], damage: str, number: int, seed: int, work: Path
) -> tuple[Fingerprint, tuple[str, ...]]:
    random = stream(f"suspect/{seed}/{number}")
    of = [one for one in population if one.kind is Kind.INVENTED] if damage.startswith(NAMED) else population
    source = of[int(random.integers(len(of)))]
    weights, parents, other = source.weights(), [source.name], Arrays()
    if "merged" in damage:
        partner = _partner(of, source, random)
        if partner is not None:
            other = partner.weights()
            parents.append(partner.name)
    damaged = DAMAGE[damage](weights, other, random)
    if not damage.startswith(NAMED):
        damaged = disguised(damaged, random)
    return _fingerprinted(damaged, work, registered=False), tuple(parents)


def _partner(population: Sequence[Source], source: Source, random: np.random.Generator) -> Source | None:
    """A model of another family with the same tensors."""
    others = [one for one in population if one.shape == source.shape and one.family != source.family]
    return others[int(random.integers(len(others)))] if others else None


def _fingerprinted(weights: Arrays, work: Path, *, registered: bool) -> Fingerprint:
    """Measured from a file, as everything is."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, path)
        return _measured_file(path, registered=registered)


def _measured_file(path: Path, *, registered: bool) -> Fingerprint:
    with open_checkpoint(path) as checkpoint:
        if registered:
            return fingerprint(checkpoint, workers=1)
        return fingerprint(checkpoint, casts=False, neurons=SUSPECT_NEURONS, workers=1)


def _ask(
    slow: SlowSearch, records: dict[str, ModelRecord], theirs: Fingerprint, damage: str, parents: tuple[str, ...]
) -> Asked:
    registry = slow.registry
    started, worked = time.perf_counter(), time.process_time()
    find_candidates(registry, theirs, LEAST_CANDIDATES)
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    proposed = _names(IndexAlone(registry), theirs)
    by_slow = _names(slow, theirs)
    detected = []
    for parent in parents:
        ours = registry.load_signature(records[parent]).fingerprint
        detected.append(assess(records[parent], compare_fingerprints(ours, theirs), len(records)) is not None)
    return Asked(
        damage=damage,
        parents=parents,
        detected=tuple(detected),
        slow=tuple(parent in by_slow for parent in parents),
        proposed=tuple(parent in proposed for parent in parents),
        vectors=sum(tensor.sketch is not None for tensor in theirs.tensors),
        seconds=seconds,
        work=work,
        places=tuple(proposed.index(parent) if parent in proposed else -1 for parent in parents),
    )


def _names(searched: IndexAlone, theirs: Fingerprint) -> list[str]:
    # The search asks a registry for a few things only, which are all here.
    return [one.model.name for one in find_candidates(searched, theirs, LEAST_CANDIDATES)]  # type: ignore[arg-type]


def counts(asked: Sequence[Asked]) -> Counter[str]:
    """Suspects; those whose every parent is detected, that the slow search proposes, and both with the index."""
    found: Counter[str] = Counter()
    for one in asked:
        found["suspects"] += 1
        found["detected"] += any(one.detected)
        found["slow"] += any(one.slow)
        found["first ten"] += any(0 <= place < FIRST for place in one.places)
        # Every parent that is found the slow way must be proposed; a suspect without one is not counted.
        found["proposed of detected"] += any(one.detected) and _implied(one.detected, one.proposed)
        found["proposed of slow"] += any(one.slow) and _implied(one.slow, one.proposed)
    return found


def _implied(first: Sequence[bool], second: Sequence[bool]) -> bool:
    return all(b or not a for a, b in zip(first, second, strict=True))
