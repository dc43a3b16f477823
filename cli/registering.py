"""Registers a list of models: measured by workers, written by this process alone, in the order of the list.

One writer, because the order counts (a model that was registered earlier explains a later one), because workers on
other machines then need neither the registry's files nor its locks, and because writing takes a hundredth of measuring.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from cli.exits import Exit, strongest
from cli.render.registration import Registered, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cli.bulk import Answer, Bulk
    from cli.console import Console
    from cli.measure import Measuring
    from cli.registry import Destination
    from cli.tasks import Measured
    from cli.worklist import Entry
    from signatures.bulk.journal import Journal
    from signatures.records import ModelRecord

_AHEAD: Final = 4
"""Signatures that may wait for one before them, for each worker: they can be large."""


def register_list(
    paths: tuple[str, ...],
    template: str | None,
    table: str | None,
    bulk: Bulk,
    console: Console,
    *,
    null: bool,
    how: Measuring,
    replace: bool,
    registry: str | None,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
    **labels: str | None,
) -> Exit:
    """Register the models at ``paths``, or those of a ``table``; the strongest of the statuses of all."""
    from cli.registry import Destination
    from cli.render.registration import REGISTRATION_VIEW
    from cli.render.write import keeping, writing

    entries, total = _entries(paths, template, table, labels, null=null)
    statuses: list[Exit] = []
    with keeping(statuses, console), Destination(registry) as place:
        writer = _Writer(place, console, replace=replace)
        with writing(REGISTRATION_VIEW, format, output, console) as results:
            for done in _registered(entries, writer, bulk, console, how, total):
                statuses.append(Exit.OK if done.error is None else Exit.ERROR)
                if done.error is not None:
                    console.error(done.error)
                results.write(done)
    if not statuses:
        console.warning("the list is empty: nothing was registered")
        return Exit.INCONCLUSIVE
    return strongest(statuses)


def step_of(before: int | None, after: ModelRecord) -> Step:
    """What a registration did: ``before`` is the id of the model that had the name, ``after`` the one that has it."""
    if before == after.id:
        return Step.UNCHANGED
    return Step.NEW if len(after.registrations) == 1 else Step.ALIAS


def _entries(
    paths: tuple[str, ...], template: str | None, table: str | None, labels: dict[str, str | None], *, null: bool
) -> tuple[Iterable[Entry], int | None]:
    """The list, and its length if that is known already."""
    from cli.paths import STANDARD, expanded
    from cli.worklist import Entry, from_table, named

    if table is not None:
        rows = from_table(table, template, labels)
        return rows, len(rows)
    entries = (Entry(path, named(path, template or ""), **labels) for path in expanded(paths, null=null))
    return entries, None if STANDARD in paths else len(paths)


def _registered(
    entries: Iterable[Entry], writer: _Writer, bulk: Bulk, console: Console, how: Measuring, total: int | None
) -> Iterator[Registered]:
    from cli.bulk import worked
    from cli.tasks import MeasureTask, Sender

    def settings() -> dict[str, Any]:
        from importlib.metadata import version

        measured = {"depth": how.depth, "key": None if how.key is None else how.key.identity, "less": how.less}
        about = {"task": "register", "program": version("weightprint"), "replace": writer.replace}
        return {**about, **measured, "registry": writer.place}

    with bulk.journal(settings) as journal:

        def known(entry: Entry) -> Measured | None:
            return None if journal is None else writer.remembered(entry, journal)

        here, task = _Here(how, console), MeasureTask(Sender.here(console), how)
        with bulk.workers(here, lambda: task) as workers:
            window = _AHEAD * workers.slots
            for entry, measured in worked(workers, entries, console, total=total, window=window, known=known):
                yield writer.register(entry, measured, journal)


class _Here(Struct, frozen=True):
    """The task of a list where this process does the work: warnings and bars go to the console at once."""

    how: Measuring
    console: Console

    def do(self, item: Entry) -> Answer[Measured]:
        """See ``Task.do``."""
        from cli.tasks import measured_by

        return measured_by(item, self.how, self.console)

    def lost(self, item: Entry, reason: str) -> Answer[Measured]:
        """See ``Task.lost``."""
        from cli.tasks import lost_model

        return lost_model(item, reason)


class _Writer:
    """Writes measured models into the registry, and into the journal what was done.

    The journal says first that a name is about to be registered, and then that it was: of a run that was killed in
    between, the next one knows that a name which it finds there is its own work.
    """

    def __init__(self, destination: Destination, console: Console, *, replace: bool) -> None:
        self.replace = replace
        self._destination = destination
        self._console = console
        self._done: dict[Entry, Registered] = {}
        self._begun: dict[str, int | None] = {}

    @property
    def place(self) -> str:
        """Where the registry lies."""
        return os.path.abspath(self._destination.folder)

    def remembered(self, entry: Entry, journal: Journal) -> Measured | None:
        """Something if the journal says that the entry was registered, and it still is."""
        from cli.tasks import Measured

        values = journal.result(entry.path, _about(entry))
        if not isinstance(values, dict):
            return None
        if "before" in values:
            self._begun[entry.name] = values["before"]
            return None
        record = self._destination.holder(entry.name)
        if record is None or record.identity != values.get("identity"):
            return None
        self._done[entry] = self._result(Step(values["action"]), entry, record, int(values["models"]))
        return Measured()

    def register(self, entry: Entry, measured: Measured, journal: Journal | None) -> Registered:
        """Register a measured model, and say what was done; also what failed."""
        from fingerprint.errors import NameTakenError, SignatureError, UsageError
        from signatures.signature import decode

        if (done := self._done.get(entry)) is not None:
            return done
        if measured.error is not None:
            return self._failed(entry, measured.error)
        try:
            holder = self._destination.holder(entry.name)
            before = self._begun.get(entry.name, None if holder is None else holder.id)
            if entry.base is not None and self._destination.holder(entry.base) is None:
                self._console.warning(
                    f"{entry.name}: the base {entry.base} is not registered: siblings cannot be told from copies until "
                    "it is"
                )
            if journal is not None:
                journal.add(entry.path, {"before": before}, _about(entry))
            record = self._destination.made().register(
                decode(measured.data, path=entry.path),
                name=entry.name,
                owner=entry.owner,
                license=entry.license,
                revision=entry.revision,
                base=entry.base,
                note=entry.note,
                replace=self.replace,
            )
        except (NameTakenError, SignatureError, UsageError) as error:
            self._console.trace(error)
            return self._failed(entry, f"{entry.path}: {error}")
        step = step_of(before, record)
        done = self._result(step, entry, record, self._destination.count())
        if journal is not None:
            values = {"action": step.value, "identity": record.identity, "models": done.models}
            journal.add(entry.path, values, _about(entry))
        return done

    def _result(self, step: Step, entry: Entry, record: ModelRecord, models: int) -> Registered:
        return Registered(step, entry.path, entry.name, record, str(self._destination.folder), models)

    def _failed(self, entry: Entry, error: str) -> Registered:
        models = self._destination.count()
        return Registered(Step.ERROR, entry.path, entry.name, None, str(self._destination.folder), models, error)


def _about(entry: Entry) -> str:
    """What the journal tells entries of one path apart by: the name, and all that is said about the model."""
    return json.dumps([entry.name, entry.owner, entry.license, entry.revision, entry.base, entry.note])
