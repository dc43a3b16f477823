"""The scorer: joins the reports of the scanning process with the truth about the suspects."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from benchmarks.lineage.derive_cases import Link, Names, Verdict
from signatures.report import Confidence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOLERANCE = 0.02
"""Largest difference of a mixture coefficient from least squares on the full weights."""
EMPTY_CASES = frozenset({"zeros", "constants"})
"""Cases in which there is too little to say no: inconclusive is as right as no-match."""
_LAYERS_ASKED = ("layers-", "frankenmerge")
"""Cases that ask for the layer map begin so; elsewhere it is told, and asked of nobody."""
_ORDER_ASKED = frozenset({"layers-swapped", "layers-reversed"})
"""Cases that nothing but the order of the layers tells from the registered model."""
_OUTSIDE = "outside layers"
_UNNAMED_LAYER = re.compile(r"unnamed (\d+) of .+")

FOUND = "Found at likely or better"
NAMED = "Named, not accused"
NEVER = "Never found"
GROUPS = {
    Verdict.MATCH: FOUND,
    Verdict.SIBLING: NAMED,
    Verdict.SAME_INITIALISATION: NAMED,
    Verdict.SHARED_COMPONENT: NAMED,
    Verdict.NO_MATCH: NEVER,
}


class LayerMap(StrEnum):
    """EXACT: each layer of the suspect is said to be what it is. UNORDERED: each registered layer occurs as often as is
    true, under labels that do not say where. WRONG: else.
    """

    EXACT = "exact"
    UNORDERED = "unordered"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was said about one suspect, and whether it is right.

    The marks are None where the truth asks nothing: ``model`` (the first match is a parent), ``links`` (of every
    registered model), ``relation``, ``layers`` (of the parents, the worst), ``mixture``, ``mixture_layers``.
    ``mixture_error`` is the largest difference of a coefficient from ``least_squares``.
    ``asked_layers`` says whether a wrong layer map fails the case. ``others``: models that were matched and share
    nothing with the suspect. ``problems`` is empty if the case is right.
    """

    stem: str
    case: str
    done: str
    group: str
    verdict: str
    first: str
    confidence: str
    link: str
    relation_said: str
    log10_p: float | None
    similarity: float | None
    model: bool | None
    links: bool | None
    relation: bool | None
    layers: LayerMap | None
    asked_layers: bool
    mixture: bool | None
    mixture_error: float | None
    mixture_layers: bool | None
    coefficients: Mapping[str, float]
    least_squares: Mapping[str, float]
    others: tuple[str, ...]
    seconds: float
    problems: tuple[str, ...]

    @property
    def right(self) -> bool:
        return not self.problems


def score(truth: Mapping[str, Any], report: Mapping[str, Any]) -> Outcome:
    """Compare one report (``fp.scan/1``) with the truth about its suspect."""
    matches: Sequence[Mapping[str, Any]] = report["matches"]
    first = matches[0] if matches else None
    parents = truth["parents"]
    wanted = Verdict(truth["verdict"])
    problems: list[str] = []
    others = tuple(m["model"] for m in matches if truth["links"].get(m["model"], Link.NONE) == Link.NONE)
    problems += [f"{model} is matched and shares nothing" for model in others]
    problems += _verdict_problems(truth, report)
    link_problems = _link_problems(truth, matches)
    problems += link_problems
    model = relation = layers = None
    if parents:
        model = first is not None and first["model"] in parents
        if not model:
            problems.append(f"the first match is {first['model'] if first else 'nothing'}, not a parent")
        relation = first is not None and first["relation"] in truth["relations"]
        if not relation:
            said = first["relation"] if first else "none"
            problems.append(f"the relation is {said}, not {' or '.join(truth['relations'])}")
        layers = max((_layer_map(truth, parent, matches) for parent in parents), key=list(LayerMap).index)
    asked_layers = truth["case"].startswith(_LAYERS_ASKED)
    if asked_layers and layers is LayerMap.WRONG:
        problems.append(f"the layer map is wrong: {_told_layers(matches, parents)}")
    elif truth["case"] in _ORDER_ASKED and layers is LayerMap.UNORDERED:
        problems.append(f"the layer map does not say the order: {_told_layers(matches, parents)}")
    error, least_squares = _mixture_error(truth, report["mixture"])
    mixture_problems = []
    if error is not None and error > TOLERANCE:
        told = _shown({} if report["mixture"] is None else report["mixture"]["coefficients"])
        mixture_problems.append(f"a mixture coefficient is off by {error:.3f}: {told}, not {_shown(least_squares)}")
    mixture_layers = None
    if wanted is Verdict.MATCH and len(parents) > 1 and truth["case"].startswith("frankenmerge"):
        mixture_layers = _mixture_layers_right(truth, report["mixture"])
        if not mixture_layers:
            mixture_problems.append(f"the mixture of layers is wrong: {(report['mixture'] or {}).get('layers')}")
    problems += mixture_problems
    return Outcome(
        stem=truth["stem"],
        case=truth["case"],
        done=truth["done"],
        group=GROUPS[wanted],
        verdict=report["verdict"],
        first="" if first is None else first["model"],
        confidence="" if first is None else first["confidence"],
        link="" if first is None else first["link"],
        relation_said="" if first is None else first["relation"],
        log10_p=None if first is None else first["log10_p"],
        similarity=None if first is None else first["similarity"],
        model=model,
        links=not link_problems if truth["links"] else None,
        relation=relation,
        layers=layers,
        asked_layers=asked_layers,
        mixture=None if error is None else error <= TOLERANCE,
        mixture_error=error,
        mixture_layers=mixture_layers,
        coefficients={} if report["mixture"] is None else report["mixture"]["coefficients"],
        least_squares=least_squares,
        others=others,
        seconds=report["seconds"],
        problems=tuple(problems),
    )


def _verdict_problems(truth: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """The verdict, and the confidence of what must be found or must not be accused."""
    wanted, said = Verdict(truth["verdict"]), report["verdict"]
    if wanted is Verdict.NO_MATCH:
        right = {"no-match", "inconclusive"} if truth["case"] in EMPTY_CASES else {"no-match"}
    elif wanted in {Verdict.MATCH, Verdict.SIBLING}:
        # A sibling's base is registered, and the suspect does descend from it.
        right = {"match"}
    else:
        right = {"possible"}
    return [] if said in right else [f"the verdict is {said}, not {' or '.join(sorted(right))}"]


def _link_problems(truth: Mapping[str, Any], matches: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong in the links to the registered models that the truth names."""
    said = {match["model"]: match for match in matches}
    problems = []
    for model, link in truth["links"].items():
        match = said.get(model)
        if link == Link.NONE:
            continue  # told with the others that share nothing
        right = Link.LINEAGE.value if link == Link.ANCESTOR else link
        if match is None or match["link"] != right:
            problems.append(f"{model} is {'not matched' if match is None else match['link']}, not {right}")
        elif model in truth["parents"] and match["confidence"] == Confidence.POSSIBLE:
            problems.append(f"{model} is only possible")
        elif right in {Link.SHARED_COMPONENT, Link.SAME_INITIALISATION} and match["confidence"] != Confidence.POSSIBLE:
            problems.append(f"{model} is {match['confidence']}: more than possible")
    return problems


def _layer_map(truth: Mapping[str, Any], parent: str, matches: Sequence[Mapping[str, Any]]) -> LayerMap:
    """How right the layer map of one parent is. Numbers of layers mean nothing where all names are scrambled."""
    told: Mapping[str, int] = next((match["layers"] for match in matches if match["model"] == parent), {})
    wanted = {str(one["suspect"]): one["layer"] for one in truth["layers"] if one["model"] == parent}
    if dict(told) == wanted:
        return LayerMap.EXACT
    numbered = truth["names"] != Names.SCRAMBLED and any(label.isdecimal() for label in told)
    if not numbered and Counter(told.values()) == Counter(wanted.values()):
        return LayerMap.UNORDERED
    return LayerMap.WRONG


def _told_layers(matches: Sequence[Mapping[str, Any]], parents: Sequence[str]) -> str:
    return "; ".join(f"{match['model']}: {match['layers']}" for match in matches if match["model"] in parents) or "none"


def _mixture_error(
    truth: Mapping[str, Any], mixture: Mapping[str, Any] | None
) -> tuple[float | None, Mapping[str, float]]:
    """The largest error of a coefficient, and those of least squares over the same models.

    Over the parents, if the report took other models. None where the truth has no mixture.
    """
    if not truth["mixtures"]:
        return None, {}
    told = {} if mixture is None else mixture["coefficients"]
    solved = next((one for one in truth["mixtures"] if set(one["coefficients"]) == set(told)), truth["mixtures"][0])
    wanted: Mapping[str, float] = solved["coefficients"]
    return max(abs(told.get(model, 0.0) - wanted.get(model, 0.0)) for model in {*told, *wanted}), wanted


def _mixture_layers_right(truth: Mapping[str, Any], mixture: Mapping[str, Any] | None) -> bool:
    """Whether each layer of a frankenmerge is said to be its source's, whole, and nobody else's.

    Layers are named by the suspect's numbers, or where it has none by the registered layer: then each once.
    """
    told = {} if mixture is None else mixture["layers"]
    found: set[tuple[str, str]] = set()
    unnamed = False
    for label, weights in told.items():
        sources = [model for model, weight in weights.items() if weight > TOLERANCE]
        if label == _OUTSIDE:
            continue
        if len(sources) != 1 or abs(weights[sources[0]] - 1.0) > TOLERANCE:
            return False
        match = _UNNAMED_LAYER.fullmatch(label)
        unnamed = unnamed or match is not None
        found.add((match[1] if match else label, sources[0]))
    return found == {(str(one["layer" if unnamed else "suspect"]), one["model"]) for one in truth["layers"]}


def _shown(weights: Mapping[str, float]) -> str:
    return " + ".join(f"{weight:.3f} {model}" for model, weight in sorted(weights.items())) or "nothing"
