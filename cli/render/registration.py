"""How ``fp register`` says what it did."""

from __future__ import annotations

import textwrap
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

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
    ERROR = "error"


class Registered(Struct, frozen=True):
    """A registration that was carried out, or one of a list that failed: then ``record`` is None and ``error`` a line.

    ``models`` is the number of models in the ``registry`` after it.
    """

    step: Step
    path: str
    name: str
    record: ModelRecord | None
    registry: str
    models: int
    error: str | None = None


def _object(done: Registered) -> Mapping[str, Any]:
    return {
        "schema": REGISTRATION_SCHEMA,
        "action": done.step.value,
        "path": done.path,
        "registered_as": done.name,
        "model": None if done.record is None else model_object(done.record),
        "registry": {"path": done.registry, "models": done.models},
        "error": done.error,
    }


def _rows(done: Registered) -> Iterable[Mapping[str, Any]]:
    record = done.record
    of_model = (
        {}
        if record is None
        else {
            "model": record.name,
            "identity": record.identity,
            "parameters": record.parameters,
            "tensors": record.tensors,
        }
    )
    yield {
        "action": done.step.value,
        "path": done.path,
        "registered_as": done.name,
        **of_model,
        "registry": done.registry,
        "models": done.models,
        "error": done.error,
    }


_COLUMNS: Final = (
    "action",
    "path",
    "registered_as",
    "model",
    "identity",
    "parameters",
    "tensors",
    "registry",
    "models",
    "error",
)


def _text(done: Registered, look: Look) -> str:
    record = done.record
    if record is None:
        lines = textwrap.wrap(printable(f"not registered: {done.name}"), look.width)
        return "\n".join([*lines, *fields([("Error", done.error or "")], look)]) + "\n"
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
