"""How ``fp register`` says what it did."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from cli.render.layout import EachText, fields
from cli.render.models import model_object
from cli.render.view import View
from cli.text import counted, magnitude, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cli.console import Look
    from signatures.records import ModelRecord

REGISTRATION_SCHEMA: Final = "fp.register/1"


class Step(StrEnum):
    """What a registration did."""

    NEW = "new"
    UNCHANGED = "unchanged"
    ALIAS = "alias"


@dataclass(frozen=True, slots=True)
class Registered:
    """A registration that was carried out; ``models`` is the number of models in the ``registry`` after it."""

    step: Step
    name: str
    record: ModelRecord
    registry: str
    models: int


def _object(done: Registered) -> Mapping[str, Any]:
    return {
        "schema": REGISTRATION_SCHEMA,
        "action": done.step.value,
        "registered_as": done.name,
        "model": model_object(done.record),
        "registry": {"path": done.registry, "models": done.models},
    }


def _rows(done: Registered) -> Iterable[Mapping[str, Any]]:
    record = done.record
    yield {
        "action": done.step.value,
        "registered_as": done.name,
        "model": record.name,
        "identity": record.identity,
        "parameters": record.parameters,
        "tensors": record.tensors,
        "registry": done.registry,
        "models": done.models,
    }


_COLUMNS: Final = ("action", "registered_as", "model", "identity", "parameters", "tensors", "registry", "models")


def _text(done: Registered, look: Look) -> str:
    record = done.record
    head = {
        Step.NEW: f"registered {done.name}",
        Step.UNCHANGED: f"{done.name} is registered with these weights already: nothing was changed",
        Step.ALIAS: f"registered {done.name} as another name of {record.name}: the weights are the same",
    }[done.step]
    if done.step is Step.ALIAS and record.name == done.name:
        head = f"registered {done.name}, now the first name of weights that are known as {', '.join(record.aliases)}"
    lines = [look.styled(line, bold=True) for line in textwrap.wrap(printable(head), look.width)]
    lines += fields(
        [
            ("Weights", f"{magnitude(record.parameters)} parameters in {counted(record.tensors, 'tensor')}"),
            ("Signature", record.identity),
            ("Registry", f"{done.registry} ({counted(done.models, 'model')})"),
        ],
        look,
    )
    return "\n".join(lines) + "\n"


REGISTRATION_VIEW: Final = View(_object, _COLUMNS, _rows, lambda look: EachText(_text, look))
