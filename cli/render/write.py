"""Writes values in the wanted format to where they are wanted, each as soon as it is known."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic

from cli.options import Format
from cli.output import OutputClosedError, OutputFailedError, Sink, opened
from cli.render.view import Renderer, Value, View

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cli.console import Console


class Writer(Generic[Value]):
    """Takes values one by one; see ``writing``."""

    def __init__(self, sink: Sink, renderer: Renderer[Value]) -> None:
        self._sink = sink
        self._renderer = renderer

    def write(self, value: Value) -> None:
        """Write one value. Raises ``OutputClosedError`` or ``OutputFailedError``."""
        self._put(self._renderer.value(value))

    def _put(self, text: str) -> None:
        if text:
            self._sink.write(text)


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
        renderer = renderer_for(view, wanted, sink, console)
        sink.write(renderer.begin())
        try:
            yield Writer(sink, renderer)
        except (OutputClosedError, OutputFailedError):
            raise
        except BaseException:
            sink.write(renderer.end())
            raise
        sink.write(renderer.end())


def write_all(view: View[Value], values: Iterable[Value], wanted: str, output: str | None, console: Console) -> None:
    """Write values that are all known."""
    with writing(view, wanted, output, console) as writer:
        for value in values:
            writer.write(value)
