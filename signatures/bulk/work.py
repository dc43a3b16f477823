"""The seam between a list of work and who does it: tasks, workers, and results in the order of the list.

A task is a value that can be pickled; workers carry it out on one item after the other. Whatever becomes of an item, it
has a result: one whose worker is killed is tried again, and given up after ``ATTEMPTS`` with the result that the task
has for lost items. The results of a list come in its order, whoever was faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ATTEMPTS: Final = 3
"""How often an item is tried whose workers end without an answer."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Task(Protocol[Item_contra, Result_co]):
    """What is done with each item. Tasks, items and results can be pickled."""

    def do(self, item: Item_contra) -> Result_co:
        """The result of an item, also of one that fails. An exception ends the whole list."""

    def lost(self, item: Item_contra, reason: str) -> Result_co:
        """The result of an item whose worker ended without an answer again and again; ``reason`` is a clause."""


class Workers(Protocol[Item_contra, Result_co]):
    """Who does the work. Not for several threads at once."""

    @property
    def slots(self) -> int:
        """How many items can be in work at once."""

    def start(self, number: int, item: Item_contra) -> None:
        """Hand out an item; at most ``slots`` are under way."""

    def finished(self) -> tuple[int, Result_co]:
        """Wait until an item that was handed out has its result; its number and the result.

        Raises what the task raised.
        """

    def close(self) -> None:
        """Stop all work, also what is under way."""


class Alone(Generic[Item, Result]):
    """Does the work in this process, one item at a time."""

    def __init__(self, task: Task[Item, Result]) -> None:
        self._task = task
        self._next: tuple[int, Item] | None = None

    @property
    def slots(self) -> int:
        """See ``Workers.slots``."""
        return 1

    def start(self, number: int, item: Item) -> None:
        """See ``Workers.start``."""
        self._next = number, item

    def finished(self) -> tuple[int, Result]:
        """See ``Workers.finished``."""
        if self._next is None:
            raise RuntimeError("nothing was handed out")
        (number, item), self._next = self._next, None
        return number, self._task.do(item)

    def close(self) -> None:
        """See ``Workers.close``."""
        self._next = None


def in_order(
    workers: Workers[Item, Result],
    items: Iterable[Item],
    *,
    window: int,
    known: Callable[[Item], Result | None] = lambda _: None,
    done: Callable[[Item, Result], None] = lambda _, __: None,
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in the order of ``items``, which are taken as workers become free.

    ``known`` gives the result of an item that needs no work. ``done`` is called with every other result as soon as it
    is there, out of order. At most ``window`` items are held that were begun and not yet handed on, which bounds the
    memory where one item takes much longer than those after it.
    """
    waiting = enumerate(items)
    begun: dict[int, Item] = {}
    results: dict[int, Result] = {}
    running, first, more = 0, 0, True
    while more or begun:
        while more and running < workers.slots and len(begun) < max(window, 1):
            number, item = next(waiting, (-1, None))
            if item is None:
                more = False
                break
            begun[number] = item
            found = known(item)
            if found is None:
                workers.start(number, item)
                running += 1
            else:
                results[number] = found
                if number == first:
                    break
        if running and first not in results:
            number, result = workers.finished()
            running -= 1
            results[number] = result
            done(begun[number], result)
        while first in results:
            yield begun.pop(first), results.pop(first)
            first += 1
