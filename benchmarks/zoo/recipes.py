"""Which models the zoo has: their shapes, seeds, data and parents."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from benchmarks.zoo.models import Shape, Style
from benchmarks.zoo.text import PACKAGES, SMALL, VOCABULARY, text_digest

WIDTHS = {"a": (192, 128), "b": (224, 160), "c": (208, 144), "d": (240, 176), "e": (216, 152)}
FAMILIES = tuple(WIDTHS)
POPULATION_SIZE = 40
_POPULATION_SIBLINGS = 4


@dataclass(frozen=True, slots=True)
class Schedule:
    """AdamW with warmup and cosine decay; one step sees `batch` windows of `length` tokens."""

    steps: int
    batch: int
    length: int
    rate: float
    decay: float = 0.1

    @property
    def warmup(self) -> int:
        return max(1, self.steps // 12)


@dataclass(frozen=True, slots=True)
class Spec:
    """One model of the zoo: everything that its weights depend on.

    id: name of its files. init: key of the random stream of new weights. order: key of the stream of data order.
    parent: id of the model whose weights it starts from, if any. frozen: tensors copied from `donor` and never
    trained. group: models of one group are trained together, stacked.
    """

    id: str
    family: str
    kind: str
    shape: Shape
    schedule: Schedule
    data: str
    init: str
    order: str
    parent: str | None = None
    donor: str | None = None
    frozen: tuple[str, ...] = ()
    group: str = ""

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(p for p in (self.parent, self.donor) if p is not None)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long the models of a family are trained."""

    full: Schedule
    tune: Schedule
    population: Schedule
    population_tune: Schedule
    population_size: int
    small_text: bool = False

    def data(self, family_name: str, part: str) -> str:
        """Return the name of a data set of `text`."""
        return f"{'a' if family_name == STYLES else family_name}-{part}{SMALL if self.small_text else ''}"


SIZES = Sizes(
    full=Schedule(steps=400, batch=16, length=128, rate=4e-3),
    tune=Schedule(steps=60, batch=16, length=128, rate=4e-4),
    population=Schedule(steps=400, batch=16, length=64, rate=5e-3),
    population_tune=Schedule(steps=60, batch=16, length=64, rate=5e-4),
    population_size=POPULATION_SIZE,
)
QUICK = Sizes(
    full=Schedule(steps=100, batch=8, length=32, rate=8e-3),
    tune=Schedule(steps=15, batch=8, length=32, rate=8e-4),
    population=Schedule(steps=40, batch=8, length=32, rate=8e-3),
    population_tune=Schedule(steps=8, batch=8, length=32, rate=8e-4),
    population_size=8,
    small_text=True,
)
STYLES = "styles"
"""A family of other styles, trained on the text of family a, with populations of those that no other family has."""
_QUICK_WIDTH = 48
_QUICK_VOCABULARY = 512


def llama_shape(width: int, *, layers: int = 4, tied: bool = False, vocabulary: int = VOCABULARY) -> Shape:
    """Return a Llama-style shape with about 2.7 neurons a channel and two query heads or more a KV head."""
    heads, kv, neurons = {
        192: (6, 2, 512),
        128: (4, 2, 352),
        224: (8, 4, 608),
        160: (8, 4, 432),
        208: (8, 2, 560),
        144: (6, 3, 384),
        240: (10, 5, 656),
        176: (8, 2, 464),
        216: (6, 3, 584),
        152: (4, 1, 416),
        64: (4, 2, 176),
        48: (4, 2, 128),
    }[width]
    return Shape(Style.LLAMA, width, layers, heads, kv, neurons, vocabulary, 128, tied)


def gpt2_shape(width: int, *, layers: int = 4, vocabulary: int = VOCABULARY) -> Shape:
    """Return a GPT-2-style shape with four neurons a channel and tied embeddings."""
    heads = {192: 6, 128: 4, 224: 8, 160: 5, 208: 8, 144: 6, 240: 10, 176: 8, 216: 9, 152: 4, 64: 4, 48: 4}[width]
    return Shape(Style.GPT2, width, layers, heads, heads, 4 * width, vocabulary, 128, tied=True)


def family(name: str, *, quick: bool = False) -> list[Spec]:
    """List the models of a family, parents before children.

    quick: the same relations in tiny models trained on little text, under names of their own; for tests.
    """
    if name == STYLES:
        return _styles(quick=quick)
    sizes = QUICK if quick else SIZES
    prefix = f"quick-{name}" if quick else name
    specs: list[Spec] = []
    if quick:
        width, size = _QUICK_WIDTH, _QUICK_VOCABULARY
        shapes = {
            f"llama-{width}": llama_shape(width, vocabulary=size),
            f"gpt2-{width}": gpt2_shape(width, vocabulary=size),
        }
        tied = {f"llamatied-{width}": llama_shape(width, layers=2, tied=True, vocabulary=size)}
        tiny = {
            f"pop-llama-{width}": llama_shape(width, layers=2, vocabulary=size),
            f"pop-gpt2-{width}": gpt2_shape(width, layers=2, vocabulary=size),
        }
    else:
        wide, narrow = WIDTHS[name]
        shapes = {
            f"llama-{wide}": llama_shape(wide),
            f"gpt2-{wide}": gpt2_shape(wide),
            f"llama-{narrow}": llama_shape(narrow),
            f"gpt2-{narrow}": gpt2_shape(narrow),
        }
        tied = {f"llamatied-{narrow}": llama_shape(narrow, tied=True)}
        tiny = {"pop-llama-64": llama_shape(64, layers=3), "pop-gpt2-64": gpt2_shape(64, layers=3)}
    for label, shape in shapes.items():
        specs += _relatives(prefix, name, label, shape, sizes)
    for label, shape in tied.items():
        wanted = ("-A", "-B", "-A-ftx", "-A-fty")
        specs += [
            s for s in _relatives(prefix, name, label, shape, sizes) if s.id.removeprefix(f"{prefix}-{label}") in wanted
        ]
    for label, shape in tiny.items():
        specs += _population(prefix, name, label, shape, sizes)
    return specs


_STYLED_POPULATION = 24
_STYLED = Schedule(steps=250, batch=16, length=64, rate=5e-3)


def styled_shape(style: Style, width: int, *, vocabulary: int = VOCABULARY) -> Shape:
    """Return a small shape of any style, tied."""
    heads, kv = {64: (4, 2), 48: (3, 1)}[width]
    gated = style.is_gated
    neurons = width * 11 // 4 if gated else 4 * width
    return Shape(style, width, 3, heads, kv if gated else heads, neurons, vocabulary, 128, tied=True)


def _styles(*, quick: bool) -> list[Spec]:
    width, vocabulary = (_QUICK_WIDTH, _QUICK_VOCABULARY) if quick else (64, VOCABULARY)
    prefix = f"quick-{STYLES}" if quick else STYLES
    found: list[Spec] = []
    for style in (Style.GEMMA, Style.BERT, Style.GPT2, Style.RELU):
        label = f"{style.value}-{width}"
        shape = styled_shape(style, width, vocabulary=vocabulary)
        wanted = {f"{prefix}-{label}-{one}" for one in ("A", "B", "A-ftx", "A-fty", "A-cont")}
        sizes = QUICK if quick else replace(SIZES, full=_STYLED, tune=SIZES.population_tune)
        found += [spec for spec in _relatives(prefix, STYLES, label, shape, sizes) if spec.id in wanted]
        if not style.is_gpt2:
            many = QUICK if quick else replace(sizes, population=_STYLED, population_size=_STYLED_POPULATION)
            found += _population(prefix, STYLES, f"pop-{label}", shape, many)
    return found


def _relatives(prefix: str, family_name: str, label: str, shape: Shape, sizes: Sizes) -> list[Spec]:
    """List the models of one shape whose relations are known: base A, its relatives, and strangers."""
    stem = f"{prefix}-{label}"
    first, second, third = {
        "a": (1, 2, 3),
        "b": (11, 12, 13),
        STYLES: (21, 22, 23),
        "c": (31, 32, 33),
        "d": (41, 42, 43),
        "e": (51, 52, 53),
    }[family_name]

    def seed(number: int) -> str:
        return f"{stem}/seed{number}"

    def new(
        suffix: str,
        kind: str,
        *,
        init: int,
        order: int,
        data: str,
        parent: str | None = None,
        donor: str | None = None,
        frozen: tuple[str, ...] = (),
    ) -> Spec:
        return Spec(
            id=f"{stem}-{suffix}",
            family=family_name,
            kind=kind,
            shape=shape,
            schedule=sizes.full,
            data=sizes.data(family_name, data),
            init=seed(init),
            order=f"{seed(order)}/{data}",
            parent=parent,
            donor=donor,
            frozen=frozen,
        )

    def tune(suffix: str, parent: str, data: str) -> Spec:
        return Spec(
            id=f"{stem}-{suffix}",
            family=family_name,
            kind="fine-tuned",
            shape=shape,
            schedule=sizes.tune,
            data=sizes.data(family_name, data),
            init="",
            order=f"{stem}-{suffix}",
            parent=f"{stem}-{parent}",
        )

    embedding = "model.embed_tokens.weight" if shape.style.is_gated else "transformer.wte.weight"
    return [
        new("A", "base", init=first, order=first, data="pre"),
        new("B", "base", init=second, order=second, data="pre"),
        tune("A-ftx", "A", "x"),
        tune("A-fty", "A", "y"),
        tune("B-ftx", "B", "x"),
        tune("A-ftx-ft2", "A-ftx", "y"),
        new("A-cont", "continued", init=first, order=first + 100, data="other", parent=f"{stem}-A"),
        new("A-sameinit", "same-initialisation", init=first, order=first + 200, data="other"),
        new(
            "A-copied-embeddings",
            "copied-embeddings",
            init=third,
            order=third,
            data="pre",
            donor=f"{stem}-A",
            frozen=(embedding,),
        ),
    ]


def _population(prefix: str, family_name: str, label: str, shape: Shape, sizes: Sizes) -> list[Spec]:
    """List many seeds of one recipe, and fine-tunes of the first few: two siblings each."""
    stem = f"{prefix}-{label}"
    bases = [
        Spec(
            id=f"{stem}-s{i:02d}",
            family=family_name,
            kind="population",
            shape=shape,
            schedule=sizes.population,
            data=sizes.data(family_name, "pre"),
            init=f"{stem}/seed{i}",
            order=f"{stem}/seed{i}/pre",
            group=f"{stem}-{i // 8}",
        )
        for i in range(sizes.population_size)
    ]
    tunes = [
        Spec(
            id=f"{base.id}-ft{data}",
            family=family_name,
            kind="fine-tuned",
            shape=shape,
            schedule=sizes.population_tune,
            data=sizes.data(family_name, data),
            init="",
            order=f"{base.id}-ft{data}",
            parent=base.id,
            group=f"{stem}-ft{data}",
        )
        for data in ("x", "y")
        for base in bases[:_POPULATION_SIBLINGS]
    ]
    return bases + tunes


def recipe_digest(spec: Spec, by_id: dict[str, Spec]) -> str:
    """Digest everything that a model's weights depend on: its spec, its ancestors' and the text."""
    state = hashlib.blake2b(text_digest().encode(), digest_size=8)
    if spec.family in PACKAGES:
        state.update(text_digest(PACKAGES[spec.family]).encode())
    state.update(json.dumps(asdict(spec), sort_keys=True).encode())
    for parent in spec.parents:
        state.update(recipe_digest(by_id[parent], by_id).encode())
    return state.hexdigest()
