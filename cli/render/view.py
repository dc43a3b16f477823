"""The seam between kinds of results and formats: a view says how one kind is shown, a renderer how a format is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cli.console import Look

Value = TypeVar("Value")
Value_contra = TypeVar("Value_contra", contravariant=True)


class Renderer(Protocol[Value_contra]):
    """Makes the text of a format piece by piece, so that each result is out as soon as it is known."""

    def begin(self) -> str:
        """What comes before the first value."""

    def value(self, value: Value_contra) -> str:
        """One value."""

    def end(self) -> str:
        """What comes after the last value; what was made is then a whole document, however few values there were."""


class View(Struct, Generic[Value], frozen=True):
    """How values of one kind are shown.

    ``to_object`` gives the JSON object, with its ``schema``; ``columns`` and ``to_rows`` the table, at least one row a
    value; ``to_text`` makes the renderer for people.
    """

    to_object: Callable[[Value], Mapping[str, Any]]
    columns: tuple[str, ...]
    to_rows: Callable[[Value], Iterable[Mapping[str, Any]]]
    to_text: Callable[[Look], Renderer[Value]]
