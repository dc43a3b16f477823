"""What a deep comparison undid, and what is left, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cli.render.layout import INDENT, fields, table
from cli.text import percent

if TYPE_CHECKING:
    from cli.console import Look
    from fingerprint.undoing.result import Total, Undoing

_USES: Final = {"held-out": "held out", "ordered": "own order only", "tables": "order at most", "fitted": "fitted"}
_SOURCES: Final = {
    "no rotation": "none was needed",
    "tokens": "first found from the embeddings of tokens",
    "positions": "first found from the embeddings of positions",
    "neurons": "first found from neurons that no rotation changes",
}
_ROTATIONS: Final = {
    "as-it-was": "residual stream as it was",
    "permuted": "residual channels permuted",
    "rotated": "residual stream rotated",
}


def undoing_lines(undoing: Undoing | None, look: Look) -> list[str]:
    """Lines of a report, none without a deep comparison."""
    if undoing is None:
        return []
    if undoing.missing:
        return ["", *fields([("Deep", f"nothing could be undone: {undoing.missing}")], look)]
    said = [("Deep", _summary(undoing)), ("Undone here", _undone(undoing) if undoing.recovered else "")]
    rows = [
        [one.kind, _USES.get(one.use, one.use), str(one.tensors), f"{one.residual:.2g}", f"{one.control:.2f}"]
        for one in undoing.residuals
        if look.details or one.use in {"held-out", "tables"} or one.kind.endswith("circuit")
    ]
    header = ["Left of", "its use", "tensors", "residual", "if misplaced"]
    return ["", *fields(said, look), "", *table(header, rows, look, right=(2, 3, 4), indent=INDENT), ""]


def _summary(undoing: Undoing) -> str:
    total = undoing.held_out or undoing.ordered or undoing.tables
    if total is None:
        return "no tensors were held out"
    which = "from which nothing was estimated" if undoing.held_out else "from which only their own order was estimated"
    if undoing.recovered:
        return (
            f"after undoing what follows, tensors {which} ({total.elements:,} elements) differ by "
            f"{_relative(total)} of their size; {total.control:.2f} if their rows are misplaced."
        )
    return (
        f"nothing corresponds: tensors {which} differ by {_relative(total)} of their size after the best attempt, "
        f"and by {total.control:.2f} if their rows are misplaced."
    )


def _relative(total: Total) -> str:
    return f"{total.residual:.2g}" if total.residual < 0.01 else f"{total.residual:.3f}"


def _undone(undoing: Undoing) -> str:
    parts = [f"{_ROTATIONS.get(undoing.rotation, undoing.rotation)} ({_SOURCES.get(undoing.source, undoing.source)})"]
    for what, share in (
        ("tokens renumbered", undoing.tokens_moved),
        ("neurons permuted", undoing.neurons_moved),
        ("neurons negated", undoing.neurons_negated),
        ("neurons rescaled", undoing.neurons_rescaled),
        ("heads permuted", undoing.heads_moved),
    ):
        if share:
            parts.append(f"{what} ({percent(share)})")
    parts += [
        f"{what} inside of heads {how.replace('-', ' ')}"
        for what, how in (("values", undoing.values), ("keys", undoing.keys))
        if how is not None and how != "as-it-was"
    ]
    if undoing.scale != 1.0:
        parts.append(f"stream times {undoing.scale:.3g}")
    return "; ".join(parts)
