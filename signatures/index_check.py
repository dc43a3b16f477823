"""Whether an engine answers as the slow search over the signatures does, or finds as much of it as it has to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from signatures.index import TIE, Float32, Hits, best_of_models, blocks_of, merged, padded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from signatures.engine import Engine, Rows

NEAREST: Final = 10
_MAX_LINES: Final = 20
_ROUNDING: Final = 1e-4
_DRAWS: Final = 4


class Checked(Struct, frozen=True):
    """How many queries were compared, a line for each disagreement, and which share of the slow search's nearest
    model, and of its ``NEAREST`` nearest, was found."""

    queries: int
    problems: tuple[str, ...]
    recall: float
    recall_of_ten: float
    least_recall: float


def check(
    engine: Engine,
    models: Sequence[int],
    rows_of: Callable[[int], Rows | None],
    queries: int,
    width: int,
    behind: Collection[int] = (),
) -> Checked:
    """Compare an engine with the vectors of the signatures of ``models``, which are gone through once.

    Nothing is said of models without readable rows (``None``), nor of those that came or went since the engine followed
    (``behind``): a search makes up for them. If the engine covers one of either, no query is compared.
    """
    covered = engine.covers()
    status = engine.status()
    unknown = set(behind)
    strange = sorted(set(covered) - set(models) - unknown)
    problems = [f"model {model} of the index is not registered" for model in strange]
    sample = _sample(models, rows_of, queries, width)
    slow = padded([[] for _ in sample])
    for block in blocks_of(_compared(engine, covered, models, rows_of, unknown, problems), width):
        slow = merged([slow, best_of_models(block, sample, NEAREST)], NEAREST)
    # The index would rightly find a model that the slow search does not have.
    compared = len(sample) if not problems and not unknown & set(covered) else 0
    recall = of_ten = 1.0
    if compared:
        fast = engine.search(sample, NEAREST)
        recall, of_ten = _recall(fast, slow)
        problems += _wrong(fast, slow, exact=status.exact)
        if recall < status.least_recall:
            problems.append(
                f"the index finds {recall:.1%} of the nearest models; {status.least_recall:.0%} are demanded: "
                "make it anew (fp index build)"
            )
    return Checked(len(sample), tuple(problems[:_MAX_LINES]), recall, of_ten, status.least_recall)


def _compared(
    engine: Engine,
    covered: Mapping[int, int],
    models: Sequence[int],
    rows_of: Callable[[int], Rows | None],
    unknown: set[int],
    problems: list[str],
) -> Iterator[tuple[int, Rows]]:
    """The models with their rows; on the way these are compared with those of the engine."""
    for model in models:
        rows = None if model in unknown else rows_of(model)
        if rows is None:
            unknown.add(model)
            continue
        if model not in covered:
            problems.append(f"model {model} is not in the index")
        elif not _same_rows(engine.rows(model), rows):
            problems.append(f"the vectors of model {model} are not those of its signature")
        yield model, rows


def _same_rows(left: Rows, right: Rows) -> bool:
    (left_positions, left_vectors), (right_positions, right_vectors) = left, right
    order, other = np.argsort(left_positions), np.argsort(right_positions)
    return np.array_equal(left_positions[order], right_positions[other]) and np.allclose(
        left_vectors[order], right_vectors[other], rtol=0, atol=_ROUNDING
    )


def _sample(models: Sequence[int], rows_of: Callable[[int], Rows | None], queries: int, width: int) -> Float32:
    """Registered vectors, spread over the models, each moved by noise of its own length."""
    random = np.random.default_rng(0)
    found: list[Float32] = []
    for model in random.choice(np.array(models, np.int64), _DRAWS * queries).tolist() if len(models) else []:
        rows = rows_of(model)
        if rows is not None and len(rows[0]):
            found.append(rows[1][random.choice(len(rows[0]))])
        if len(found) == queries:
            break
    if not found:
        return np.zeros((0, width), np.float32)
    blurred = np.stack(found) + random.standard_normal((len(found), width)) / np.sqrt(width)
    unit: Float32 = (blurred / np.linalg.norm(blurred, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _recall(fast: Hits, slow: Hits) -> tuple[float, float]:
    """Shares of the nearest and of all models of the slow answer that the fast one has; ties count as one another."""
    first, found, wanted = 0, 0, 0
    for query, (scores, models) in enumerate(zip(slow.scores, slow.models, strict=True)):
        real = models >= 0
        if not real.any():
            first += 1
            continue
        reached = fast.scores[query][fast.models[query] >= 0]
        first += bool(len(reached)) and bool(reached.max() >= scores[0] - _ROUNDING)
        least = scores[real].min()
        wanted += min(NEAREST, int(real.sum()))
        found += min(NEAREST, int(real.sum()), int(np.sum(reached >= least - _ROUNDING)))
    return first / max(len(slow.models), 1), found / max(wanted, 1)


def _wrong(fast: Hits, slow: Hits, *, exact: bool) -> list[str]:
    """Queries with wrong scores, and, of an exact index, those for which a model of the slow answer, but for ties at
    its end, is absent from the fast one."""
    problems: list[str] = []
    for query, (scores, models) in enumerate(zip(slow.scores, slow.models, strict=True)):
        real = models >= 0
        last = scores[real].min() if real.any() else -np.inf
        sure = set(models[real & (scores > last + TIE)].tolist())
        got = dict(zip(fast.models[query].tolist(), fast.scores[query].tolist(), strict=True))
        wanted = dict(zip(models.tolist(), scores.tolist(), strict=True))
        absent = sure - set(got) if exact else set()
        if absent or any(abs(got[model] - wanted[model]) > _tolerance(exact=exact) for model in sure & set(got)):
            problems.append(f"query {query}: the index found {sorted(got)}, the slow search {sorted(wanted)}")
    return problems


def _tolerance(*, exact: bool) -> float:
    return TIE if exact else _ROUNDING
