"""The vector indexes beside one registry: one of whole sketches and layers, one of the slices that quick looks read.

They follow the registry by its log of changes. What an engine cannot take in now (another process writes it, the disk
is full, the server is away) is kept in memory and searched there, so that every search sees exactly the registered
models.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct, field

from fingerprint.errors import RegistryBrokenError, RegistryError
from fingerprint.slices import DIGESTED_SLICES
from signatures.engine import START, EngineAwayError, EngineBehindError, EngineError, EngineStatus, Mark
from signatures.engines import open_engine
from signatures.index import FlatIndex, Hits, blocks_of, merged, without_models
from signatures.index_check import Checked, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from fingerprint.parameters import Parameters
    from signatures.engine import Engine, Rows
    from signatures.index import Float32

_log = logging.getLogger(__name__)
_ATTEMPTS: Final = 3
_PATIENCE: Final = 60.0
_UNCOMMITTED: Final = "the index cannot be written while models are registered together"
_MOST_HELD: Final = 1 << 21
"""Rows that are held in memory at most while the engine cannot be written."""


class Vectors(StrEnum):
    """What is searched, by the folder of its index: ``SKETCHES`` of whole matrices (and of layers), or ``SLICES``."""

    SKETCHES = "index"
    SLICES = "slices"


class Log(Protocol):
    """What the indexes ask of a registry's database."""

    def mark(self) -> Mark:
        """The newest entry of the log of changes."""

    def changes(self, since: Mark) -> tuple[list[tuple[int, bool]], Mark] | None:
        """What came (true) and went after an entry, and the newest entry; ``None`` if there is no such entry."""

    def uncommitted(self) -> bool:
        """Whether all this may be taken back, and is not there for other processes: no engine is told then."""

    def model_ids(self) -> Mapping[int, str]:
        """Ids and identities of all models."""


class IndexStatus(Struct, frozen=True):
    """What the indexes hold together: ``missing`` and ``superfluous`` are ids of models; ``bytes`` those stored,
    ``memory`` those that searches go through; ``kinds`` says of each kind of vectors how it is searched; ``outgrown``
    whether an index made anew would be searched faster."""

    models: int
    covered: int
    vectors: int
    segments: int
    bytes: int
    missing: tuple[int, ...]
    superfluous: tuple[int, ...]
    memory: int = 0
    kinds: Mapping[str, str] = field(default_factory=dict)
    outgrown: bool = False

    @property
    def current(self) -> bool:
        """Whether the index covers exactly the registered models (a search adds in memory what it lacks)."""
        return not self.missing and not self.superfluous


class IndexCheck(Struct, frozen=True):
    """Outcome of comparing the indexes with the signatures and with the slow search.

    ``queries`` were searched both ways. Of the models that the slow search finds nearest, ``recall`` is the share that
    the index found as well, of the ten nearest ``recall_of_ten``: 1.0 for an index that compares with every vector,
    which is demanded of it; of others ``least_recall`` of the nearest is demanded. ``problems`` is empty if nothing is
    wrong.
    """

    status: IndexStatus
    queries: int
    problems: tuple[str, ...]
    recall: float = 1.0
    recall_of_ten: float = 1.0
    least_recall: float = 1.0


_PROBLEMS: Final = 20


class _Pending(Struct):
    """What an engine at ``since`` lacks up to ``mark``.

    ``fresh`` are rows held in memory: of all models if ``whole``, else of those that came. Of the models in ``changed``
    no answer of the engine counts; ``gone`` are those among them that it covers, for each of which one more answer is
    asked for. One that came may be there too, after an update that was broken off, but ``fresh`` gives that one again.
    """

    since: Mark
    mark: Mark
    fresh: FlatIndex
    whole: bool
    changed: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)


class Indexes:
    """``log`` tells which models there are, ``rows_of`` what an index holds of a model (None if it is gone; raises
    ``RegistryBrokenError``). ``key`` names the registry."""

    def __init__(
        self,
        folder: Path,
        key: str,
        parameters: Parameters,
        log: Log,
        rows_of: Callable[[Vectors, int], Rows | None],
    ) -> None:
        self._folder = folder
        self._key = key
        self._widths = {
            Vectors.SKETCHES: parameters.index_width**2,
            Vectors.SLICES: DIGESTED_SLICES * parameters.axis_width,
        }
        self._log = log
        self._rows_of = rows_of
        self._open: dict[Vectors, Engine] = {}
        self._pending: dict[Vectors, _Pending] = {}

    def search(self, kind: Vectors, queries: Float32, n: int) -> Hits:
        """See ``VectorIndex.search``; every model that is registered at this moment is searched."""
        self._follow(kind)
        pending = self._pending.get(kind)
        if pending is None:
            return self._engine(kind).search(queries, n)
        parts = [pending.fresh.search(queries, n)]
        if not pending.whole:
            found = self._engine(kind).search(queries, n + len(pending.gone) if n > 0 else n)
            parts.append(without_models(found, pending.changed))
        return merged(parts, n)

    def open(self, kind: Vectors) -> None:
        """Open an engine, and what it reads."""
        self._engine(kind).mark()

    def catch_up(self) -> None:
        """Bring all engines to the registry's mark, as a search does with one. Raises ``RegistryError``."""
        for kind in Vectors:
            self._follow(kind)

    def require_engines(self) -> None:
        """Raise ``UsageError`` if ``FP_INDEX`` names no engine: before a change, not after it."""
        for kind in Vectors:
            self._engine(kind)

    def follow(self) -> None:
        """Keep the engines close to the registry; a search makes up for whatever fails here."""
        for kind in Vectors:
            try:
                self._follow(kind)
            except EngineAwayError as error:
                _log.warning("the registry was changed, and the index does not know it yet: %s", error)
                return
            except RegistryError as error:
                _log.info("the index is left as it is: %s", error)

    def rebuild(self) -> None:
        """Make everything anew from the signatures; raises ``RegistryError`` if it cannot be written now."""
        if self._log.uncommitted():
            raise RegistryError(f"{self._folder}: {_UNCOMMITTED}")
        for kind in Vectors:
            mark = self._log.mark()
            self._engine(kind).rebuild(self._rows(kind, self._log.model_ids()), mark, seconds=_PATIENCE)
            self._pending.pop(kind, None)

    def status(self) -> IndexStatus:
        """What the engines hold, without what is in memory only."""
        found: list[EngineStatus] = []
        covers: list[Mapping[int, int]] = []
        for kind in Vectors:
            engine = self._engine(kind)
            whole = engine.mark() != START and self._log.changes(engine.mark()) is not None
            found.append(engine.status())
            covers.append(engine.covers() if whole else {})
        models = set(self._log.model_ids())
        all_of, any_of = set(covers[0]), set[int]()
        for covered in covers:
            all_of, any_of = all_of & set(covered), any_of | set(covered)
        return IndexStatus(
            models=len(models),
            covered=len(all_of),
            vectors=sum(sum(covered.values()) for covered in covers),
            segments=sum(one.parts for one in found),
            bytes=sum(one.bytes for one in found),
            missing=tuple(sorted(models - all_of)),
            superfluous=tuple(sorted(any_of - models)),
            memory=sum(one.memory for one in found),
            kinds={kind.name.lower(): one.kind for kind, one in zip(Vectors, found, strict=True)},
            outgrown=any(one.outgrown for one in found),
        )

    def check(self, queries: int) -> IndexCheck:
        """Compare the engines with the signatures, and their answers with those of the slow search.

        ``queries`` registered vectors of each kind, spread over the models and blurred, are searched both ways. Models
        whose signature cannot be read are left out, and so are those that the engine has yet to follow.
        """
        status = self.status()
        found: list[Checked] = []
        for kind in Vectors:
            engine, models = self._engine(kind), list(self._log.model_ids())
            changes = self._log.changes(engine.mark())
            behind = {*models, *engine.covers()} if changes is None else {model for model, _ in changes[0]}
            found.append(check(engine, models, self._readable(kind), queries, self._widths[kind], behind))
        problems = list(dict.fromkeys(line for one in found for line in one.problems))
        # Averages over the queries of both kinds; each kind has to reach its bound, which is among the problems.
        total = sum(one.queries for one in found)
        weights = [one.queries / total for one in found] if total else [0.5, 0.5]
        return IndexCheck(
            status,
            total,
            tuple(problems[:_PROBLEMS]),
            sum(w * one.recall for w, one in zip(weights, found, strict=True)),
            sum(w * one.recall_of_ten for w, one in zip(weights, found, strict=True)),
            min(one.least_recall for one in found),
        )

    def _readable(self, kind: Vectors) -> Callable[[int], Rows | None]:
        """Rows of a model, ``None`` if it is gone or unreadable, which ``Registry.check`` tells."""

        def rows(model: int) -> Rows | None:
            with suppress(RegistryBrokenError):
                return self._rows_of(kind, model)
            return None

        return rows

    def _rows(self, kind: Vectors, models: Iterable[int]) -> Iterator[tuple[int, Rows]]:
        for model in models:
            rows = self._rows_of(kind, model)
            if rows is not None:
                yield model, rows

    def _follow(self, kind: Vectors) -> None:
        """Bring the engine to the registry's mark, or hold what it lacks in memory.

        The latter too while the registry is being changed: an engine with a mark that is then taken back, or that other
        processes do not know yet, would be made anew.
        """
        engine = self._engine(kind)
        for _ in range(_ATTEMPTS):
            since, now = engine.mark(), self._log.mark()
            if since == now:
                self._pending.pop(kind, None)
                return
            if self._log.uncommitted():
                self._hold(kind, since, f"{self._folder}: {_UNCOMMITTED}")
                return
            try:
                changes = self._log.changes(since) if since != START else None
                if changes is None:
                    _log.info("the %s is made anew", kind.value)
                    engine.rebuild(self._rows(kind, self._log.model_ids()), now)
                else:
                    removed, added = _net(changes[0])
                    engine.update(removed, self._rows(kind, added), since, changes[1])
            except EngineBehindError:
                continue
            except EngineAwayError:
                raise
            except EngineError as error:
                _log.info("the index is not written now (%s); this search uses one in memory", error)
                self._hold(kind, engine.mark(), str(error))
                return
            self._pending.pop(kind, None)
            return
        self._hold(kind, engine.mark(), f"{self._folder}: other processes keep changing the index")

    def _hold(self, kind: Vectors, since: Mark, why: str) -> None:
        """Keep in memory what the engine, which stays at ``since``, lacks; ``why`` it cannot be written now."""
        pending = self._pending.get(kind)
        changes = self._log.changes(pending.mark) if pending is not None and pending.since == since else None
        if pending is None or changes is None:
            fresh = FlatIndex(self._widths[kind])
            changes = self._log.changes(since) if since != START else None
            whole = changes is None
            if changes is None:
                mark = self._log.mark()
                changes = [(model, True) for model in self._log.model_ids()], mark
            pending = self._pending[kind] = _Pending(since, since, fresh, whole)
        removed, added = _net(changes[0])
        came = {model for model, is_new in changes[0] if is_new}
        pending.gone |= set(removed) - came - pending.changed
        pending.changed |= {*removed, *added}
        for model in (*removed, *added):  # an earlier attempt may have broken off among those that were added
            pending.fresh.remove(model)
        for block in blocks_of(self._rows(kind, added), self._widths[kind]):
            if len(pending.fresh) > _MOST_HELD:
                del self._pending[kind]
                raise RegistryError(f"{why}; what it lacks is more than is searched in memory: try again later")
            pending.fresh.extend(block)
        pending.mark = changes[1]

    def _engine(self, kind: Vectors) -> Engine:
        if kind not in self._open:
            self._open[kind] = open_engine(self._folder / kind, self._key, self._widths[kind])
        return self._open[kind]


def _net(changes: Iterable[tuple[int, bool]]) -> tuple[list[int], list[int]]:
    """Models that are gone in the end, and those that came and stay."""
    last = dict(changes)
    return [model for model, added in last.items() if not added], [model for model, added in last.items() if added]
