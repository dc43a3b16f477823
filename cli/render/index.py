"""How the commands of ``fp index`` show the state of the index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cli.render.layout import EachText, fields
from cli.render.view import View
from cli.text import counted, file_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cli.console import Look
    from signatures.indexes import IndexStatus

INDEX_SCHEMA: Final = "fp.index/1"


@dataclass(frozen=True, slots=True)
class IndexState:
    """What a command of ``fp index`` (``action``) found; ``queries`` were searched both ways by a check."""

    action: str
    status: IndexStatus
    problems: tuple[str, ...]
    queries: int


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
        "missing": len(status.missing),
        "superfluous": len(status.superfluous),
        "current": status.current,
        "queries": state.queries,
        "problems": list(state.problems),
    }


def _rows(state: IndexState) -> Iterable[Mapping[str, Any]]:
    yield {**_object(state), "problems": "; ".join(state.problems)}


_COLUMNS: Final = (
    "action", "models", "covered", "vectors", "segments", "bytes", "missing", "superfluous", "current", "queries",
    "problems",
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
            ("On disk", f"{counted(status.segments, 'segment')}, {file_size(status.bytes)}"),
            ("Missing", "" if not status.missing else counted(len(status.missing), "model")),
            ("Superfluous", "" if not status.superfluous else counted(len(status.superfluous), "model")),
            ("Checked", "" if state.action != "check" else f"{state.queries:,} searches, by the index and slowly"),
            ("To do", "" if status.current else "nothing: scans catch up by themselves; or fp index build"),
            *(("Problem", problem) for problem in state.problems),
        ],
        look,
    )
    return "\n".join(lines) + "\n"


INDEX_VIEW: Final = View(_object, _COLUMNS, _rows, lambda look: EachText(_text, look))
