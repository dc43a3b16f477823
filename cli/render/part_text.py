"""The components of a composite suspect for people: which registered model explains how much of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cli.render.layout import INDENT, fields, table
from cli.text import magnitude, percent
from signatures.report import Link

if TYPE_CHECKING:
    from cli.console import Look
    from signatures.report import Match, Part, Report

_SMALL: Final = 0.005
"""Share of the suspect below which a part that nothing explains is not worth a line: a scale, a few biases."""
_HALF: Final = 0.5
_WHOLE: Final = 0.95
_ROUNDING: Final = 1e-6


def part_name(part: Part) -> str:
    """What a component is called in the names, and what that usually is."""
    if not part.name:
        return f"the rest ({', '.join(part.words)})"
    spoken = part.name.rsplit(".", 1)[-1].replace("_", " ")
    return part.name if not part.kind or part.kind in spoken else f"{part.name} ({part.kind})"


def part_lines(report: Report, look: Look) -> list[str]:
    """A table of the components where they differ in what explains them; with details always."""
    shared = any(match.link is Link.SHARED_COMPONENT for match in report.matches)
    parts = [part for part in report.parts if part.share >= _SMALL or part.matches]
    if not parts:
        said = "the names of the suspect's tensors tell no components apart" if shared else ""
        return fields([("Parts", said)], look)
    if not (look.details or shared or _differ(parts)):
        return []
    nothing = "nothing that is registered" if report.registry.digest else "nothing in it"
    rows = [row for part in parts for row in _rows(part, look, nothing.replace("that is ", ""))]
    header = ["Part of the suspect", "size", "explained by", "of it", "similar"]
    lines = table(header, rows, look, right=(1, 3, 4), indent=INDENT)
    return ["", *fields([("Parts", _in_a_sentence(parts, nothing))], look), "", *lines, ""]


def _in_a_sentence(parts: list[Part], nothing: str) -> str:
    said = []
    for part in parts:
        if not part.matches:
            continue
        best = part.matches[0]
        whose = f"the {best.registered} of {best.model}" if best.registered else f"that of {best.model}"
        if best.identical and best.coverage >= _WHOLE:
            said.append(f"{part_name(part)} is {whose}")
        else:
            amount = "" if best.coverage >= _WHOLE else f"{percent(best.coverage)} of "
            said.append(f"{amount}{part_name(part)} shares weights with {whose.removeprefix('that of ')}")
    bare = [part_name(part) for part in parts if not part.matches and part.share]
    if bare:
        said.append(f"{nothing} explains {', '.join(bare)}")
    return f"{'; '.join(said)}."


def _differ(parts: list[Part]) -> bool:
    large = [part for part in parts if part.share >= _SMALL]
    return len({_explanation(part) for part in large}) > 1


def _explanation(part: Part) -> str:
    return part.matches[0].model if part.matches and part.matches[0].coverage >= _WHOLE else ""


def _rows(part: Part, look: Look, nothing: str) -> list[list[str]]:
    name, size = part_name(part), magnitude(part.parameters)
    if not part.share:
        return [[name, size, "no weights to compare", "", ""]]
    if not part.matches:
        return [[name, size, nothing, "", ""]]
    shown = part.matches if look.details else part.matches[:1]
    return [
        [
            name if number == 0 else "",
            size if number == 0 else "",
            f"{match.model}: {match.registered}" if match.registered else match.model,
            percent(match.coverage),
            "equal" if match.identical else "rearranged" if match.similarity is None else _cosine(match.similarity),
        ]
        for number, match in enumerate(shown)
    ]


def _cosine(value: float) -> str:
    return ">0.999" if 0.9995 <= value < 1.0 - _ROUNDING else f"{value:.3f}"


def parts_of_match(match: Match, report: Report) -> str:
    """The components that a match explains whole or by half, where it explains less than half of the suspect."""
    if match.coverage.suspect >= _HALF:
        return ""
    found = []
    for part in report.parts:
        coverage = max((one.coverage for one in part.matches if one.model == match.model), default=0.0)
        if coverage >= _HALF:
            amount = "all" if coverage >= _WHOLE else percent(coverage)
            found.append(f"{amount} of its {part_name(part)}" if part.name else f"{amount} of {part_name(part)}")
    return ", ".join(found)
