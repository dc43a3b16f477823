"""How the commands of ``fp index`` show the state of the index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from cli.render.layout import EachText, fields
from cli.render.view import View
from cli.text import counted, file_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cli.console import Look
    from signatures.indexes import IndexCheck, IndexStatus

INDEX_SCHEMA: Final = "fp.index/1"


class IndexState(Struct, frozen=True):
    """What a command of ``fp index`` (``action``) found; ``check`` is the outcome of a check."""

    action: str
    status: IndexStatus
    problems: tuple[str, ...] = ()
    check: IndexCheck | None = None


def _object(state: IndexState) -> Mapping[str, Any]:
    status = state.status
    return {
        "schema": INDEX_SCHEMA,
        "action": state.action,
        "models": status.models,
        "covered": status.covered,
        "vectors": status.vectors,
        "segments": status.segments,
        "bytes": status.bytes,
        "memory": status.memory,
        "kinds": dict(status.kinds),
        "missing": len(status.missing),
        "superfluous": len(status.superfluous),
        "current": status.current,
        "outgrown": status.outgrown,
        "queries": 0 if state.check is None else state.check.queries,
        "recall": None if state.check is None else round(state.check.recall, 6),
        "recall_of_ten": None if state.check is None else round(state.check.recall_of_ten, 6),
        "problems": list(state.problems),
    }


def _rows(state: IndexState) -> Iterable[Mapping[str, Any]]:
    found = _object(state)
    kinds = "; ".join(f"{name}: {kind}" for name, kind in found["kinds"].items())
    yield {**found, "kinds": kinds, "problems": "; ".join(state.problems)}


_COLUMNS: Final = (
    "action", "models", "covered", "vectors", "segments", "bytes", "memory", "kinds", "missing", "superfluous",
    "current", "outgrown", "queries", "recall", "recall_of_ten", "problems",
)  # fmt: skip


def _text(state: IndexState, look: Look) -> str:
    status = state.status
    if status.current:
        head, colour = "index is current", "green"
    else:
        head, colour = "index is behind the registry", "yellow"
    if state.problems:
        head, colour = counted(len(state.problems), "problem"), "red"
    elif state.action == "check":
        head += ", and no problem was found"
    lines = [look.styled(head, fg=colour, bold=True)]
    lines += fields(
        [
            ("Covers", f"{status.covered:,} of {counted(status.models, 'model')}, {counted(status.vectors, 'vector')}"),
            ("Searched by", "; ".join(f"{name}: {kind}" for name, kind in status.kinds.items())),
            ("On disk", f"{counted(status.segments, 'segment')}, {file_size(status.bytes)}"),
            ("Gone through", f"{file_size(status.memory)}: as much memory as searches want"),
            ("Missing", "" if not status.missing else counted(len(status.missing), "model")),
            ("Superfluous", "" if not status.superfluous else counted(len(status.superfluous), "model")),
            ("Checked", "" if state.check is None else f"{state.check.queries:,} searches, by the index and slowly"),
            ("Recall", "" if state.check is None else _recall(state.check)),
            ("To do", _to_do(status)),
            *(("Problem", problem) for problem in state.problems),
        ],
        look,
    )
    return "\n".join(lines) + "\n"


def _to_do(status: IndexStatus) -> str:
    if status.outgrown:
        return "fp index build: the index has grown to many times its size, and searches would be quicker"
    return "" if status.current else "nothing: scans catch up by themselves; or fp index build"


def _recall(found: IndexCheck) -> str:
    demanded = "" if found.least_recall >= 1 else f" ({found.least_recall:.0%} of the nearest are demanded)"
    return f"{found.recall:.1%} of the nearest models, {found.recall_of_ten:.1%} of the ten nearest{demanded}"


INDEX_VIEW: Final = View(_object, _COLUMNS, _rows, lambda look: EachText(_text, look))
