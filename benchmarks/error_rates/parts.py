"""Work on many pairs, cut into parts that processes share. They are forked: models are not copied to them."""

from __future__ import annotations

import logging
import multiprocessing
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")

_PART = 100
_log = logging.getLogger(__name__)
_inherited: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []


def in_parts(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Result], workers: int, what: str
) -> Iterator[Result]:
    """``work`` on each part of ``items``, in their order."""
    parts = [items[start : start + _PART] for start in range(0, len(items), _PART)]
    for done, result in enumerate(_results(parts, work, workers)):
        yield result
        if done % 5 == 0:
            _log.info("%d of %d pairs of models: %s", min((done + 1) * _PART, len(items)), len(items), what)


def _results(
    parts: Sequence[Sequence[Item]], work: Callable[[Sequence[Item]], Result], workers: int
) -> Iterator[Result]:
    if workers < 2:
        yield from map(work, parts)
        return
    with multiprocessing.get_context("fork").Pool(workers, _inherit, (work, parts)) as pool:
        yield from pool.imap(_one, range(len(parts)))


def _inherit(work: Callable[[Any], Any], parts: Sequence[Any]) -> None:
    _inherited.append((work, parts))


def _one(number: int) -> Any:
    work, parts = _inherited[-1]
    return work(parts[number])
