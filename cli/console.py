"""Everything that goes to standard error: errors, warnings, notes; and what the terminal can show."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from typing import IO, Final

from msgspec import Struct

from cli.text import printable

PROGRAM: Final = "fp"
NARROWEST: Final = 40
WIDEST: Final = 100
PIPE_WIDTH: Final = 80


class Look(Struct, frozen=True):
    """How text is to look: columns, whether colours are wanted, whether symbols beyond ASCII can be shown."""

    width: int = PIPE_WIDTH
    colour: bool = False
    symbols: bool = False
    details: bool = False

    def styled(self, text: str, *, fg: str | None = None, bold: bool = False, dim: bool = False) -> str:
        """``text`` in a colour, where colours are wanted."""
        if not self.colour:
            return text
        import click

        return click.style(text, fg=fg, bold=bold or None, dim=dim or None)


class Console:
    """Messages of one run of the program; ``verbosity`` is -1 for ``-q``, 1 and 2 for ``-v`` and ``-vv``."""

    def __init__(self) -> None:
        self.verbosity = 0
        self.wants_colour = True

    @property
    def quiet(self) -> bool:
        """Whether only errors are shown."""
        return self.verbosity < 0

    def error(self, message: str) -> None:
        """One line: what is wrong and what to do."""
        self._line("error: ", message, "red")

    def interrupted(self) -> None:
        """Say so, on a line of its own where a terminal has shown ``^C``."""
        if _is_terminal(sys.stderr):
            _write(sys.stderr, "\n")
        self.error("interrupted")

    def warning(self, message: str) -> None:
        """Something the user should know; not with ``-q``."""
        if not self.quiet:
            self._line("warning: ", message, "yellow")

    def note(self, message: str) -> None:
        """What was done; not with ``-q``."""
        if not self.quiet:
            self._line("", message, None)

    def detail(self, message: str) -> None:
        """What only ``-v`` wants to see."""
        if self.verbosity > 0:
            self._line("", message, None)

    def trace(self, error: BaseException) -> None:
        """The traceback of ``error``, with ``-v``."""
        if self.verbosity > 0:
            self.traced("".join(traceback.format_exception(error)))

    def traced(self, text: str) -> None:
        """The text of a traceback, with ``-v``."""
        if self.verbosity > 0:
            _write(sys.stderr, "".join(f"{printable(line)}\n" for line in text.splitlines()))

    def look(self, stream: IO[str] | None) -> Look:
        """What can be shown on ``stream`` (None: a file)."""
        terminal = stream is not None and _is_terminal(stream)
        width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if terminal else PIPE_WIDTH
        return Look(
            width=max(NARROWEST, min(width, WIDEST)),
            colour=terminal and self.colour_allowed,
            symbols=stream is None or _can_encode(stream, "✗✓■▲…→"),
            details=self.verbosity > 0,
        )

    @property
    def colour_allowed(self) -> bool:
        """Whether neither ``--no-color`` nor the environment forbids colours."""
        return self.wants_colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @property
    def animates(self) -> bool:
        """Whether progress bars can be drawn on standard error."""
        return not self.quiet and _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    def _line(self, label: str, message: str, colour: str | None) -> None:
        head = f"{PROGRAM}: {label}"
        if colour is not None:
            head = self.look(sys.stderr).styled(head, fg=colour, bold=True)
        _write(sys.stderr, f"{head}{printable(message)}\n")


class Gathered(Console):
    """Keeps messages, for a console elsewhere: each the name of a method of ``Console`` and its text."""

    def __init__(self, verbosity: int) -> None:
        super().__init__()
        self.verbosity = verbosity
        self.told: list[tuple[str, str]] = []

    def error(self, message: str) -> None:
        """See ``Console``."""
        self.told.append(("error", message))

    def warning(self, message: str) -> None:
        """See ``Console``."""
        self.told.append(("warning", message))

    def note(self, message: str) -> None:
        """See ``Console``."""
        self.told.append(("note", message))

    def detail(self, message: str) -> None:
        """See ``Console``."""
        if self.verbosity > 0:
            self.told.append(("detail", message))

    def traced(self, text: str) -> None:
        """See ``Console``."""
        self.told.append(("traced", text))

    @property
    def animates(self) -> bool:
        """See ``Console``."""
        return False


def _write(stream: IO[str] | None, text: str) -> None:
    """Write what the encoding of ``stream`` can show; a closed standard error is no reason to fail."""
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        pass


def _is_terminal(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _can_encode(stream: IO[str], text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
