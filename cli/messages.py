"""Routes log messages of the lower floors to standard error, as far as the user wants them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.console import Console


class _ConsoleHandler(logging.Handler):
    """Shows records as the program's own lines."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self._console.warning(text)
        else:
            self._console.detail(text)
        if record.exc_info is not None and record.exc_info[1] is not None:
            self._console.trace(record.exc_info[1])


def route(console: Console) -> None:
    """Show warnings of this project's modules, with ``-v`` more, with ``-vv`` everything."""
    handler = _ConsoleHandler(console)
    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(console.verbosity, logging.DEBUG)
    for name in ("fingerprint", "signatures"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
