"""What worker processes do with the items of a list: scan a suspect, measure a model. Tasks travel as pickles."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from cli import options
from cli.bulk import Answer
from cli.console import Gathered
from cli.messages import route
from fingerprint.errors import WeightprintError
from signatures.bulk.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cli.console import Console
    from cli.measure import Measuring
    from cli.worklist import Entry
    from signatures.bulk.pinned import PinnedRegistry
    from signatures.keyed import Key
    from signatures.options import ScanOptions
    from signatures.registry import Registry
    from signatures.report import Report


class Sender(Struct, frozen=True):
    """What work depends on of the process that hands it out, and what the one that does it may have otherwise."""

    cwd: str
    verbosity: int
    fetching: Mapping[str, bool]
    settings: Settings

    @classmethod
    def here(cls, console: Console) -> Self:
        """This process."""
        return cls(os.getcwd(), console.verbosity, options.fetching(), Settings.here())

    def imitated(self) -> Gathered:
        """Make this process like it; the console that keeps what an item has to say."""
        with suppress(OSError):  # another machine may not have it: relative paths are then not found, which is an error
            os.chdir(self.cwd)
        options.fetch_as(self.fetching)
        self.settings.take_effect()
        console = Gathered(self.verbosity)
        route(console)
        return console


class ScanTask(Struct, frozen=True):
    """Scans the suspect at a path; ``registry`` is None if there is none."""

    sender: Sender
    registry: PinnedRegistry | None
    options: ScanOptions
    key: Key | None

    def do(self, item: str) -> Answer[Report]:
        """See ``Task.do``."""
        from cli.commands.scan import scan_one

        console = self.sender.imitated()
        opened = None
        if self.registry is not None:
            opened = _opened(self.registry)
            self.registry.require_current(opened)
        report = scan_one(opened, item, self.options, self.key, console)
        return Answer(report, tuple(console.told))

    def lost(self, item: str, reason: str) -> Answer[Report]:
        """See ``Task.lost``."""
        from cli.commands.scan import failed

        return Answer(failed(item, f"{item}: not scanned: {reason}"))


class Measured(Struct, frozen=True):
    """The signature file of a model as bytes, or an error."""

    data: bytes = b""
    error: str | None = None


class MeasureTask(Struct, frozen=True):
    """Measures the model at an entry's path."""

    sender: Sender
    how: Measuring

    def do(self, item: Entry) -> Answer[Measured]:
        """See ``Task.do``."""
        return measured_by(item, self.how, self.sender.imitated())

    def lost(self, item: Entry, reason: str) -> Answer[Measured]:
        """See ``Task.lost``."""
        return lost_model(item, reason)


def lost_model(item: Entry, reason: str) -> Answer[Measured]:
    """The answer for a model that nobody could measure."""
    return Answer(Measured(error=f"{item.path}: not registered: {reason}"))


def measured_by(item: Entry, how: Measuring, console: Console) -> Answer[Measured]:
    """Measure a model; whatever goes wrong with it is part of the answer, and so is what a ``Gathered`` was told."""
    from cli.measure import signature_of
    from signatures.records import require_name
    from signatures.signature import encode

    try:
        require_name(item.name)  # what could never be registered is not measured
        found = Measured(encode(signature_of(item.path, console, how)))
    except WeightprintError as error:
        console.trace(error)
        found = Measured(error=_naming(item.path, str(error)))
    except Exception as error:  # noqa: BLE001 - a defect met in one model must not stop the others
        console.trace(error)
        found = Measured(error=f"{item.path}: unexpected {type(error).__name__}: {error} (a defect of this program)")
    return Answer(found, tuple(console.told) if isinstance(console, Gathered) else ())


def _naming(path: str, message: str) -> str:
    return message if path in message else f"{path}: {message}"


@lru_cache(maxsize=1)
def _opened(pinned: PinnedRegistry) -> Registry:
    """The registry, open for as long as the process works."""
    return pinned.opened()
