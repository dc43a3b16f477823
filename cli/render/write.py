"""Writes values in the wanted format to where they are wanted, each as soon as it is known."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic

from cli.exits import Exit
from cli.options import Format
from cli.output import OutputClosedError, OutputFailedError, Sink, opened
from cli.render.view import Renderer, Value, View
from fingerprint.errors import WeightprintError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cli.console import Console


class Writer(Generic[Value]):
    """Takes values one by one; see ``writing``."""

    def __init__(self, sink: Sink, renderer: Renderer[Value]) -> None:
        self._sink = sink
        self._renderer = renderer
        self._lead = renderer.begin()

    def write(self, value: Value) -> None:
        """Write one value. Raises ``OutputClosedError`` or ``OutputFailedError``."""
        self._put(self._renderer.value(value))

    def end(self) -> None:
        """Write what makes the document whole. Raises as ``write`` does."""
        self._put(self._renderer.end())

    def _put(self, text: str) -> None:
        text, self._lead = self._lead + text, ""
        if text:
            self._sink.write(text)


@contextmanager
def keeping(statuses: list[Exit], console: Console) -> Iterator[None]:
    """Turn what ends the block into a status beside those found before: an error never hides a match.

    A reader of the output who has gone away (``fp scan ... | head``) is no error.
    """
    try:
        yield
    except OutputClosedError:
        pass
    except WeightprintError as error:
        console.error(str(error))
        console.trace(error)
        statuses.append(Exit.ERROR)


def renderer_for(view: View[Value], wanted: str, sink: Sink, console: Console) -> Renderer[Value]:
    """The renderer of a format."""
    format_ = Format(wanted)
    if format_ is Format.TEXT:
        return view.to_text(console.look(sink.stream))
    if format_ is Format.CSV:
        from cli.render.csv import CsvRenderer

        return CsvRenderer(view)
    from cli.render.json import JsonLinesRenderer, JsonRenderer

    return JsonRenderer(view) if format_ is Format.JSON else JsonLinesRenderer(view)


@contextmanager
def writing(view: View[Value], wanted: str, output: str | None, console: Console) -> Iterator[Writer[Value]]:
    """A writer for the block; the document on standard output is whole even if the block is interrupted.

    Raises ``OutputClosedError`` or ``OutputFailedError``.
    """
    with opened(output) as sink:
        writer = Writer(sink, renderer_for(view, wanted, sink, console))
        try:
            yield writer
        except (OutputClosedError, OutputFailedError):
            raise
        except BaseException:
            writer.end()
            raise
        writer.end()


def write_all(view: View[Value], values: Iterable[Value], wanted: str, output: str | None, console: Console) -> None:
    """Write values that are all known."""
    with writing(view, wanted, output, console) as writer:
        for value in values:
            writer.write(value)
