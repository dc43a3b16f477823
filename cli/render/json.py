"""JSON for programs: strict, ASCII, finite numbers only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Generic

from cli.render.view import Value, View
from cli.text import finite

if TYPE_CHECKING:
    from collections.abc import Mapping


class JsonRenderer(Generic[Value]):
    """A list with an object for each value."""

    def __init__(self, view: View[Value]) -> None:
        self._view = view
        self._empty = True

    def begin(self) -> str:
        """See ``Renderer.begin``."""
        return "["

    def value(self, value: Value) -> str:
        """See ``Renderer.value``."""
        lead = "\n" if self._empty else ",\n"
        self._empty = False
        text = dumped(self._view.to_object(value), indent=2)
        return lead + "\n".join(f"  {line}" for line in text.split("\n"))

    def end(self) -> str:
        """See ``Renderer.end``."""
        return "]\n" if self._empty else "\n]\n"


class JsonLinesRenderer(Generic[Value]):
    """An object a line."""

    def __init__(self, view: View[Value]) -> None:
        self._view = view

    def begin(self) -> str:
        """See ``Renderer.begin``."""
        return ""

    def value(self, value: Value) -> str:
        """See ``Renderer.value``."""
        return dumped(self._view.to_object(value)) + "\n"

    def end(self) -> str:
        """See ``Renderer.end``."""
        return ""


def dumped(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Strict JSON; what is not finite becomes null, and undecodable bytes of names are spelled out."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=True, allow_nan=False)
