"""Whether an index answers as the slow search over the signatures does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from signatures.index import TIE, ExactIndex, Float32, Hits

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from signatures.index_folder import IndexFolder, Rows

_NEAREST: Final = 10
_MAX_LINES: Final = 20


def check(
    index: IndexFolder, rows: Mapping[int, Rows], queries: int, width: int, unknown: Collection[int] = ()
) -> tuple[int, list[str]]:
    """Number of queries compared and a line for each disagreement; ``rows`` are the vectors of the signatures.

    Nothing is said of models that are ``unknown``; if the index covers one, no query is compared.
    """
    covered = index.covers()
    problems = [f"model {model} is not in the index" for model in sorted(set(rows) - set(covered))]
    problems += [
        f"model {model} of the index is not registered" for model in sorted(set(covered) - set(rows) - set(unknown))
    ]
    oracle = ExactIndex(width)
    for model in sorted(set(rows) & set(covered)):
        oracle.add(model, *rows[model])
        if not _same_rows(index.rows(model), rows[model]):
            problems.append(f"the vectors of model {model} are not those of its signature")
    # The index would rightly find a model that the slow search does not have.
    sample = _sample(rows, 0 if set(unknown) & set(covered) else queries, width)
    if not problems and len(sample):
        problems += _disagreements(index.search(sample, _NEAREST), oracle.search(sample, _NEAREST))
    return len(sample), problems[:_MAX_LINES]


def _same_rows(left: Rows, right: Rows) -> bool:
    (left_positions, left_vectors), (right_positions, right_vectors) = left, right
    order, other = np.argsort(left_positions), np.argsort(right_positions)
    return np.array_equal(left_positions[order], right_positions[other]) and np.array_equal(
        left_vectors[order], right_vectors[other]
    )


def _sample(rows: Mapping[int, Rows], queries: int, width: int) -> Float32:
    """Registered vectors, spread over the models, each moved by noise of its own length."""
    random = np.random.default_rng(0)
    stacked = [vectors for _, vectors in rows.values() if len(vectors)]
    if not stacked or queries < 1:
        return np.zeros((0, width), np.float32)
    chosen = [random.choice(len(stacked)) for _ in range(queries)]
    found = np.stack([stacked[i][random.choice(len(stacked[i]))] for i in chosen]).astype(np.float64)
    found += random.standard_normal(found.shape) / np.sqrt(width)
    unit: Float32 = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _disagreements(fast: Hits, slow: Hits) -> list[str]:
    """Queries for which a model of the slow answer, but for ties at its end, is absent from the fast one."""
    problems: list[str] = []
    for query, (scores, models) in enumerate(zip(slow.scores, slow.models, strict=True)):
        real = models >= 0
        last = scores[real].min() if real.any() else -np.inf
        sure = set(models[real & (scores > last + TIE)].tolist())
        got = dict(zip(fast.models[query].tolist(), fast.scores[query].tolist(), strict=True))
        wanted = dict(zip(models.tolist(), scores.tolist(), strict=True))
        if sure - set(got) or any(abs(got[model] - wanted[model]) > TIE for model in sure & set(got)):
            problems.append(f"query {query}: the index found {sorted(got)}, the slow search {sorted(wanted)}")
    return problems
