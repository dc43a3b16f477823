"""Values made of dataclasses, put together again from the JSON objects that ``dataclasses.asdict`` made of them."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Made = TypeVar("Made")


def parsed(kind: type[Made], values: Mapping[str, Any]) -> Made:
    """The value of ``kind`` with these fields; others are ignored, and absent ones have their default.

    Raises ``KeyError`` for an absent field without one, ``TypeError``, ``ValueError``. Fields may be dataclasses,
    enumerations, ``tuple[X, ...]``, ``Mapping[str, X]``, any of them or None, and plain values of one or several types.
    """
    names = {**vars(sys.modules[kind.__module__]), "Mapping": Mapping}
    hints = get_type_hints(kind, names, {kind.__name__: kind})
    if not isinstance(values, Mapping):
        raise TypeError(f"a {kind.__name__} is an object, not {type(values).__name__}")
    given = (one for one in fields(kind) if one.name in values or one.default is MISSING)  # type: ignore[arg-type]
    return kind(**{one.name: _parsed(hints[one.name], values[one.name]) for one in given})


def _parsed(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        kinds = [one for one in arguments if one is not type(None)]
        return value if value is None or len(kinds) > 1 else _parsed(kinds[0], value)
    if origin is tuple:
        return tuple(_parsed(arguments[0], one) for one in value)
    if origin is Mapping:
        return {name: _parsed(arguments[1], one) for name, one in value.items()}
    if is_dataclass(kind):
        return parsed(kind, value)  # type: ignore[arg-type]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    return value
