"""The seam of vector engines: what keeps the vectors of all models of a registry, in files beside it or on a server.

A registry's database has a log of its changes (models that came and went), each entry with a random token. An engine
remembers, together with the vectors, up to which entry it has followed: its *mark*. ``Indexes`` compares marks before
every search and hands over what is missing, so that nothing here ever looks at all models, and an engine that followed
another registry, or a later state of one that was restored from a copy, is recognised by a token that does not fit.

What an engine owes, and the protocol suite (``tests/test_index.py``) asks of each:

- ``update`` is seen whole or not at all by other processes, or, where a server cannot promise that, can be repeated:
  the mark is stored after the rows, and rows of a model replace those that it had.
- One writer at a time: an ``update`` from a mark that is no longer the engine's raises ``EngineBehindError``; whoever
  meets it asks for the mark again.
- A search counts models, not rows, ties included (see ``signatures.index``), and its scores are those of the stored
  vectors, to ``TIE``. An engine that does not compare with every row may miss some; ``status`` states the recall below
  which ``fp index check`` calls it broken.
- Errors of files and libraries become ``EngineError``: the registry then searches what is missing in memory. An engine
  that was asked for and cannot be reached raises ``EngineAwayError``, which ends the search: nothing takes its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from fingerprint.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from signatures.index import Float32, Hits, Int64


class Mark(Struct, frozen=True):
    """A place in a registry's log of changes: the number of an entry and its token. The default is before all."""

    number: int = 0
    token: str = ""


START: Final = Mark()

Rows = tuple["Int64", "Float32"]
"""Positions (m,) int64 and unit vectors (m, width) float32 of one model; m may be 0."""


class EngineError(RegistryError):
    """The engine cannot be read or written now."""


class EngineBehindError(EngineError):
    """Another process changed the engine since its mark was read."""


class EngineAwayError(EngineError):
    """An engine that was asked for (``FP_INDEX``) cannot be reached or used."""


class EngineStatus(Struct, frozen=True):
    """What an engine holds.

    ``kind`` says in a few words how it searches ("flat", "flat + inverted lists", "milvus", "empty"); ``rows`` counts
    vectors, ``parts`` segments or partitions, ``bytes`` those stored (0 if unknown), ``memory`` those that a search
    goes through and that should stay in memory. ``exact`` engines compare with every vector; of the others
    ``least_recall`` is the share of the nearest models that they must find in a check. ``outgrown`` engines would
    search faster if they were made anew.
    """

    kind: str
    models: int
    rows: int
    parts: int
    bytes: int
    memory: int
    exact: bool = True
    least_recall: float = 1.0
    outgrown: bool = False


class Engine(Protocol):
    """The vectors of one kind of all models of one registry. Objects belong to one thread."""

    def __len__(self) -> int:
        """Number of rows."""

    def mark(self) -> Mark:
        """Up to where this engine has followed the registry, read anew: called before every search, must be quick.

        ``START`` if there is nothing, if what is there belongs to another registry, or if it is damaged.
        """

    def search(self, queries: Float32, n: int) -> Hits:
        """The ``n`` best models for each of the unit vectors ``queries`` (q, width), and those that tie with them,
        ``MOST_TIED`` at most.

        Answers for the mark that was read last.
        """

    def rows(self, model: int) -> Rows:
        """Positions and vectors of a model that is covered; raises ``KeyError`` for another."""

    def covers(self) -> Mapping[int, int]:
        """All models, those without rows too, each with its number of rows; for checks: it may take long."""

    def update(self, removed: Collection[int], added: Iterable[tuple[int, Rows]], since: Mark, mark: Mark) -> None:
        """Forget the models ``removed`` (those that are there), take in the models ``added``, and move to ``mark``.

        ``since`` is where the caller believes the engine to be. Raises ``EngineBehindError``, ``EngineError``,
        ``UsageError`` for rows that cannot be (see ``require_rows``).
        """

    def rebuild(self, models: Iterable[tuple[int, Rows]], mark: Mark, *, seconds: float = 0) -> None:
        """Replace everything, beside what is there: searches go on, and see either the old or the new.

        ``models`` come in ascending order and may be more than memory holds: they are gone through once. Waits
        that many ``seconds`` for another writer. Raises ``EngineError``, ``UsageError``.
        """

    def status(self) -> EngineStatus:
        """What it holds now."""
