"""Work on a list as a command does it: who works, what the journal says, progress, and messages in the list's order."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from msgspec import Struct

from cli.options import Executor
from fingerprint.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cli.console import Console
    from signatures.bulk.journal import Journal
    from signatures.bulk.work import Task, Workers

MOST_AHEAD: Final = 1000
"""Results that may wait for one before them: reports are small."""

Item = TypeVar("Item")
Value = TypeVar("Value")


class Answer(Struct, Generic[Value], frozen=True):
    """What a worker answers: a value, and what is to be said on the console (see ``Gathered``)."""

    value: Value
    told: tuple[tuple[str, str], ...] = ()


class Bulk(Struct, frozen=True):
    """The wanted way of working on a list; see the options of ``cli.options.bulk``."""

    executor: str | None
    jobs: int | None
    resume: str | None

    def __post_init__(self) -> None:
        if self.executor == Executor.NONE and (self.jobs or 1) > 1:
            raise UsageError("--executor none works on one item at a time; leave out --jobs, or take --executor pool")

    @property
    def who(self) -> Executor:
        """The executor that follows from both options."""
        if self.executor is not None:
            return Executor(self.executor)
        return Executor.POOL if (self.jobs or 1) > 1 else Executor.NONE

    @property
    def alone(self) -> bool:
        """Whether this process does the work."""
        return self.who is Executor.NONE

    @contextmanager
    def workers(
        self, here: Task[Item, Value], elsewhere: Callable[[], Task[Item, Value]]
    ) -> Iterator[Workers[Item, Value]]:
        """The workers, stopped when the block ends: with the task ``here`` in this process, else ``elsewhere``."""
        with closing(self._made(here, elsewhere)) as made:
            yield made

    def _made(self, here: Task[Item, Value], elsewhere: Callable[[], Task[Item, Value]]) -> Any:
        if self.who is Executor.RAY:
            from signatures.bulk.ray_workers import RayWorkers

            return RayWorkers(elsewhere(), self.jobs)
        if self.who is Executor.POOL:
            from fingerprint.threads import processors
            from signatures.bulk.pool import Pool

            return Pool(elsewhere(), self.jobs or processors())
        from signatures.bulk.work import Alone

        return Alone(here)

    @contextmanager
    def journal(self, settings: Callable[[], Mapping[str, Any]]) -> Iterator[Journal | None]:
        """The journal, None where none is wanted."""
        if self.resume is None:
            yield None
            return
        from signatures.bulk.journal import Journal

        with Journal.open(self.resume, settings()) as opened:
            yield opened


def worked(
    workers: Workers[Item, Answer[Value]],
    items: Iterable[Item],
    console: Console,
    *,
    total: int | None = None,
    window: int = MOST_AHEAD,
    known: Callable[[Item], Value | None] = lambda _: None,
    done: Callable[[Item, Value], None] = lambda _, __: None,
) -> Iterator[tuple[Item, Value]]:
    """Each item with its value, in the order of the list, after what is to be said of it; see ``in_order``."""
    from cli.progress import listing
    from signatures.bulk.work import in_order

    def found(item: Item) -> Answer[Value] | None:
        value = known(item)
        if value is None:
            return None
        advance(1)
        return Answer(value)

    def noted(item: Item, answer: Answer[Value]) -> None:
        done(item, answer.value)
        advance(1)

    with listing(console, total) if workers.slots > 1 else nothing_drawn() as drawn:
        advance = drawn or (lambda _: None)
        for item, answer in in_order(workers, items, window=max(window, workers.slots), known=found, done=noted):
            for way, text in answer.told:
                getattr(console, way)(text)
            yield item, answer.value


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Instead of ``listing`` where each item has its own bar."""
    yield None
