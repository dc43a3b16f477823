"""The parts of the benchmark of rewrites: whose suspects are scanned against what, and what the reports must say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.rewrites.cases import damages
from benchmarks.rewrites.make import STAND_INS, matches, plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.rewrites.make import Job

TOGETHER = ("laundered", "all-but-vocabulary", "all")
"""Rewrites that damages come on top of."""
WHOLE = ("A", "B")
RELATIVES = ("A", "A-ftx")
INTACT = ("intact",)
DAMAGED = tuple(one.name for one in damages() if one.name not in INTACT)
USUAL = (*INTACT, *DAMAGED)
ON_SIBLINGS = (*USUAL, "tuned-alike")
DEGREES = {
    "zeroed": ("sparse-50", "sparse-60", "sparse-70", "sparse-80", "sparse-90"),
    "neurons left out": ("neurons-75", "neurons-halved", "neurons-25", "neurons-12.5"),
    "noise": ("noise-5", "noise-20", "noise-50"),
}
"""Damages of one layer alone that grow until it is lost."""
_MOST_LAYERS = 4


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the benchmark: whose rewrites are scanned against which registered models.

    ``source`` and ``registered`` are endings of ids; ``expected`` that of the model that must come first, "" for none;
    ``allowed`` those that may be listed beside it, without accusing, and ``ancestors`` those that it descends from as
    well. ``only`` and ``after``: globs of rewrites and
    names of damages. ``kept``: patterns of the only tensors that the suspect has, by the names that they had; those of
    one ``layer`` where that is not -1.
    """

    name: str
    source: str
    registered: tuple[str, ...]
    expected: str
    only: tuple[str, ...]
    after: tuple[str, ...]
    kept: tuple[str, ...] = ("*",)
    layer: int = -1
    allowed: tuple[str, ...] = ()
    ancestors: tuple[str, ...] = ()

    def wants(self, job: Job) -> bool:
        """Whether its suspects are among those of the part. Training on, which takes longest, comes after ``all``."""
        rewrite, damage = job.rewrite.name, job.damage.name
        if job.source != self.source or not matches(rewrite, self.only) or damage not in self.after:
            return False
        return damage == "intact" or (rewrite == "all" if damage == "continued" else rewrite in TOGETHER)


def layer_patterns(number: int) -> tuple[str, ...]:
    return f"*.layers.{number}.*", f"*.h.{number}.*", f"*.layer.{number}.*"


_ALONE = {
    "one layer": layer_patterns(1),
    "one MLP": ("*.1.mlp.*", "*.layer.1.intermediate.dense.*", "*.layer.1.output.dense.*"),
}


def _alone(name: str, kept: tuple[str, ...]) -> Iterator[Part]:
    """One piece of the models: of relatives, of a sibling, of look-alikes."""
    once = ("laundered",)
    yield Part(name, "A", WHOLE, "A", once, USUAL, kept)
    yield Part(f"{name}, trained on", "A-cont", WHOLE, "A", once, INTACT, kept)
    yield Part(f"{name} of a sibling", "A-fty", RELATIVES, "A", once, ON_SIBLINGS, kept, allowed=("A-ftx",))
    yield Part(f"{name} of a descendant", "A-ftx", RELATIVES, "A-ftx", once, ON_SIBLINGS, kept, ancestors=("A",))
    for source in ("B", *STAND_INS):
        yield Part(f"{name} of a look-alike", source, RELATIVES, "", once, USUAL, kept)


def _limits() -> Iterator[Part]:
    """Every layer alone, damaged more and more; then those of a model that was trained on."""
    levels = (*INTACT, *(name for names in DEGREES.values() for name in names))
    for name, source, expected in (("limits", "A", "A"), ("limits", "B", "B"), ("limits, trained on", "A-cont", "A")):
        for number in range(_MOST_LAYERS):
            yield Part(name, source, WHOLE, expected, ("laundered",), levels, layer_patterns(number), number)


PARTS = (
    Part("each alone", "A", WHOLE, "A", ("*",), INTACT),
    Part("damaged", "A", WHOLE, "A", TOGETHER, DAMAGED),
    Part("siblings", "A-fty", RELATIVES, "A", ("*",), ON_SIBLINGS, allowed=("A-ftx",)),
    Part("descendants", "A-ftx", RELATIVES, "A-ftx", TOGETHER, ON_SIBLINGS, ancestors=("A",)),
    *(part for name, kept in _ALONE.items() for part in _alone(name, kept)),
    *_limits(),
    Part("look-alikes", "B", RELATIVES, "", ("*",), USUAL),
    *(Part("look-alikes", source, RELATIVES, "", ("*",), INTACT) for source in STAND_INS),
    *(Part("look-alikes", source, RELATIVES, "", ("all",), DAMAGED) for source in STAND_INS),
)


def plan_all(
    family_name: str, *, quick: bool, models: Sequence[str], only: Sequence[str], parts: Sequence[str]
) -> list[tuple[Job, list[Part]]]:
    """List the suspects that have to be made, each with the parts that scan it or a piece of it."""
    chosen = [part for part in PARTS if matches(part.name, parts)]
    sources = list(dict.fromkeys(part.source for part in chosen))
    jobs = plan(family_name, quick=quick, models=models, sources=sources, only=["*"], after=["*"])
    wanted = [
        (job, [part for part in chosen if part.wants(job)])
        for job in jobs
        if matches(f"{job.rewrite.name}/{job.damage.name}", only)
    ]
    return [(job, found) for job, found in wanted if found]


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether the row's report is what it must be."""
    return bool(row["found"] and not row["strangers"] and not row["accused"])
