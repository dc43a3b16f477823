"""The page of the benchmark of one model of full size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.retrieval.report import machine
from signatures.report import Confidence, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.zoo.models import Shape
    from signatures.report import Report

STATED = ("laundered", "4bit")
"""Rewrite and damage that the page's first sentence is about."""


@dataclass(frozen=True, slots=True)
class Row:
    """One suspect and what was said of it.

    ``of``: the look-alike that it was made from, "" for the model itself. ``expected``: name of the model that must be
    found, "" for none. ``error``: largest difference of logits after the rewrite, over their deviation. ``work``:
    seconds of the processor in the scan; ``search``: of the clock, in its search step alone. ``place``: of the model
    among the candidates of the search, 0 for the first, None if it is not there.
    """

    of: str
    expected: str
    rewrite: str
    rewritten: str
    damage: str
    damaged: str
    error: float
    report: Report
    work: float
    search: float
    place: int | None

    @property
    def verdict(self) -> str:
        """Verdict, and confidence in the first match."""
        matches = self.report.matches
        return self.report.verdict.value + (f", {matches[0].confidence.value}" if matches else "")

    @property
    def tests(self) -> list[str]:
        """What the tests of the first match say that say anything, the surest first."""
        evidence = [one for match in self.report.matches[:1] for one in match.evidence if one.log10_p < 0]
        return [f"{one.test} 10^{one.log10_p:.0f}" for one in sorted(evidence, key=lambda one: one.log10_p)]

    def line(self) -> str:
        """The row in one line."""
        right = "as it must be" if is_right(self) else "WRONG"
        return (
            f"{self.of or self.expected} {self.rewrite}/{self.damage}: {self.verdict} {_models(self)} {self.tests} "
            f"{self.report.suspect.depth}, place {self.place}, {self.report.seconds:.1f} s, {right}"
        )


def is_right(row: Row) -> bool:
    """Whether the model is matched at likely or better and nothing else is listed; or, rightly, nothing at all."""
    report = row.report
    if not row.expected:
        return report.verdict is Verdict.NO_MATCH
    listed = [match.model for match in report.matches]
    return (
        report.verdict is Verdict.MATCH
        and listed == [row.expected]
        and report.matches[0].confidence is not Confidence.POSSIBLE
    )


def page(rows: Sequence[Row], shape: Shape, *, trained: int, look_alikes: int, kept: int) -> str:
    """The page in Markdown.

    ``trained``: how many trained models of the zoo are registered; ``kept``: bytes of the model's signature.
    """
    models = max(row.report.registry.models for row in rows)
    positive = [row for row in rows if row.expected]
    others = [row for row in rows if not row.expected]
    synthetic = models - 1 - trained - look_alikes
    lines = [
        "# A model of full size",
        "",
        "Made by `make bench-full-size`: SmolLM2-135M-Instruct from a published GGUF file, dequantised by the `gguf`",
        f"package ({shape.layers} layers, {shape.width} channels, {shape.heads} heads over {shape.kv_heads} of keys,",
        f"{shape.neurons:,} neurons, {shape.vocabulary:,} tokens, embeddings tied). Its signature, made with default",
        f"settings ({kept / 1e6:.1f} MB), is one of {models:,} in a registry, beside {trained} trained models of the",
        f"zoo, {synthetic} made from these (siblings and look-alikes) or invented, and {look_alikes} look-alikes of",
        "itself: random tensors of equal means",
        "and deviations, and its own tensors with their elements shuffled.",
        "",
        "Every suspect is checked to compute the same before it is damaged, with the model's own rotary base and",
        "epsilon: the largest difference of logits, as a share of their deviation, is given. Its file has random names",
        "in random order, no configuration and no tokenizer; the head is untied. It is scanned as `fp scan` does, at",
        "the depth that `auto` ends at. *Found*: verdict `match` at `likely` or better, the right model and no other",
        "listed.",
        "",
        f"**{_statement(positive)}**",
        "",
        f"{sum(map(is_right, positive))} of {len(positive)} suspects found;",
        f"{sum(map(is_right, others))} of {len(others)} rewritten look-alikes, not registered, not matched.",
        "",
        "## What was said",
        "",
        "| of | rewrite | then | verdict | model | log10 p | tests | relation | undone | depth | right |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_said, rows),
        "",
        *(f"- `{name}`: {done}" for name, done in dict.fromkeys((row.rewrite, row.rewritten) for row in rows)),
        *(f"- `{name}`: {done}" for name, done in dict.fromkeys((row.damage, row.damaged) for row in rows)),
        "",
        "The published file is of 4 bits: the registered weights lie on such a grid themselves, so that a new one of",
        "as many bits is not called `quantised`, and the zeros that it rounds to can pass for pruning.",
        "",
        "## What it cost",
        "",
        f"{machine()}; BLAS in one thread. *Search*: the step that finds candidates, alone; *place*: that of the right",
        "model among them, 1 for the first.",
        "",
        "| of | rewrite | then | MB | logits differ by | scan, s | of the processor | search, s | place |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_cost, rows),
    ]
    return "\n".join(lines) + "\n"


def _statement(positive: Sequence[Row]) -> str:
    stated = [row for row in positive if (row.rewrite, row.damage) == STATED]
    if not stated:
        return "Not measured."
    (row,) = stated
    what = "Rotated, permuted, rescaled and rounded to 4 bits, it is"
    said = f"({row.verdict}{', ' + row.tests[0] if row.tests else ''})."
    return f"{what} {'found' if is_right(row) else 'not found'} {said}"


def _models(row: Row) -> str:
    return ", ".join(match.model for match in row.report.matches)


def _said(row: Row) -> str:
    best = row.report.matches[:1]
    cells = (
        row.of or row.expected,
        row.rewrite,
        row.damage,
        row.verdict,
        _models(row),
        "".join(f"{match.log10_p:.1f}" for match in best),
        ", ".join(row.tests),
        "".join(match.relation.value for match in best),
        ", ".join(word for match in best for word in match.undone),
        row.report.suspect.depth,
        "yes" if is_right(row) else "**no**",
    )
    return f"| {' | '.join(cells)} |"


def _cost(row: Row) -> str:
    cells = (
        row.of or row.expected,
        row.rewrite,
        row.damage,
        f"{row.report.suspect.bytes / 1e6:.0f}",
        f"{row.error:.1e}",
        f"{row.report.seconds:.1f}",
        f"{row.work:.1f}",
        f"{row.search:.2f}",
        "-" if row.place is None else f"{row.place + 1}",
    )
    return f"| {' | '.join(cells)} |"
