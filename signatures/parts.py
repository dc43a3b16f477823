"""The components of a composite suspect (towers, projectors, heads), and which registered model explains each.

Names tell components apart, by the words of ``components.toml``; they lay out the report and decide nothing. Verdict,
links and confidence are those of the whole: here is only said what of a component the tensors cover that they rest on.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tomli
from msgspec import Struct

from fingerprint.readers.findings import FindingCode
from fingerprint.vocabulary import Content
from signatures.relation import stem
from signatures.report import Part, PartMatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fingerprint.comparing.matching import TensorMatch
    from fingerprint.records import Fingerprint, TensorRecord
    from signatures.verdict import Finding

MOST_WORDS: Final = 4
"""Words of a name among which a component's is looked for: wrappers such as ``model.`` stand before it."""
LONGEST_WORD: Final = 40
MOST_PARTS: Final = 64
MOST_MODELS: Final = 5
WHOLE: Final = 0.95
"""Share of a component's weights from which it counts as explained whole: small tensors have no sketch."""
_LEAST: Final = 0.02
"""Share of a component's weights below which a model is not said to explain anything of it."""
_REST_WORDS: Final = 3
_PATTERN: Final = re.compile(r"[*?\[]")
_FOLDER: Final = re.compile(r"component (.{1,400}): [^:]*, [0-9,]+ tensors, [0-9,]+ parameters")
_Place = tuple[str, str]


class Component(Struct, frozen=True):
    """Words for one kind of component; see ``components.toml``. ``alone``: it makes a checkpoint a composite one."""

    kind: str
    names: tuple[str, ...]
    beside: re.Pattern[str] | None
    alone: bool


@cache
def components() -> tuple[Component, ...]:
    """The table of components."""
    text = Path(__file__).with_name("components.toml").read_text(encoding="utf-8")
    return tuple(
        Component(
            kind=entry["kind"],
            names=tuple(entry["names"]),
            beside=_any_of(entry["beside"]) if "beside" in entry else None,
            alone=entry.get("alone", True),
        )
        for entry in tomli.loads(text)["component"]
    )


@cache
def _table() -> tuple[dict[str, list[Component]], list[tuple[re.Pattern[str], Component]]]:
    """Components by plain word, and by pattern."""
    plain: dict[str, list[Component]] = defaultdict(list)
    patterns: list[tuple[re.Pattern[str], Component]] = []
    for one in components():
        for name in one.names:
            if _PATTERN.search(name):
                patterns.append((_any_of([name]), one))
            else:
                plain[name].append(one)
    return dict(plain), patterns


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


def places_of(names: Sequence[str], folders: Sequence[str] = ()) -> dict[str, _Place]:
    """For each name the component that it lies in, as its words in the names and its kind; ("", "") for the rest.

    ``folders`` are first words of names that stand for a component anyway. All are ("", "") where the names tell no
    components apart.
    """
    words = {name: stem(name).split(".", MOST_WORDS)[:MOST_WORDS] for name in names}
    every = {one for some in words.values() for one in some if len(one) <= LONGEST_WORD}
    meant = {word: kinds for word in every if (kinds := _meant(word))}
    known = {word: one for word, kinds in meant.items() if (one := _chosen(word, kinds, meant)) is not None}
    places = {
        name: (some[0], known[some[0]].kind if some[0] in known else "") if some[0] in folders else _place(some, known)
        for name, some in words.items()
    }
    if len(set(places.values())) < 2 or not (folders or any(one.alone for one in known.values())):
        return dict.fromkeys(names, ("", ""))
    return places


def _meant(word: str) -> list[Component]:
    plain, patterns = _table()
    return plain.get(word, []) + [one for pattern, one in patterns if pattern.fullmatch(word)]


def _chosen(word: str, kinds: Sequence[Component], present: Iterable[str]) -> Component | None:
    for one in kinds:
        if one.beside is None or any(other != word and one.beside.fullmatch(other) for other in present):
            return one
    return None


def _place(words: Sequence[str], known: Mapping[str, Component]) -> _Place:
    for number, word in enumerate(words):
        if word in known:
            return ".".join(words[: number + 1]), known[word].kind
    return "", ""


def parts_of(suspect: Fingerprint, findings: Sequence[Finding]) -> tuple[Part, ...]:
    """The components of a suspect in the order of their names in it, with what explains each, most of it first.

    ``findings`` are comparisons with that suspect. Empty where names tell no components apart. Linear in the number of
    tensors and matches.
    """
    tensors = findings[0].comparison.suspect.tensors if findings else suspect.tensors
    places = places_of([tensor.name for tensor in tensors], _folders(suspect))
    members: dict[_Place, list[int]] = defaultdict(list)
    for position, tensor in enumerate(tensors):
        members[places[tensor.name]].append(position)
    if len(members) < 2:
        return ()
    weights = {place: _weight(tensors, positions) for place, positions in members.items()}
    total = max(sum(weights.values()), 1)
    explained: dict[_Place, list[PartMatch]] = defaultdict(list)
    for finding in findings:
        for place, match in _explained(finding, [places[tensor.name] for tensor in tensors], weights):
            explained[place].append(match)
    return tuple(
        Part(
            name=name,
            kind=kind,
            words=() if name else _first_words(tensors, positions),
            tensors=len(positions),
            parameters=sum(tensors[position].elements for position in positions),
            share=weights[name, kind] / total,
            matches=tuple(sorted(explained[name, kind], key=_rank)[:MOST_MODELS]),
        )
        for (name, kind), positions in list(members.items())[:MOST_PARTS]
    )


def _folders(suspect: Fingerprint) -> list[str]:
    """The first words of names in the folders that a composite checkpoint was read from."""
    messages = [_FOLDER.fullmatch(message) for code, message in suspect.findings if code == FindingCode.COMPONENT]
    return [match[1].replace("/", ".").split(".")[0] for match in messages if match is not None and match[1] != "."]


def _rank(match: PartMatch) -> tuple[float, bool, float]:
    return -round(match.coverage, 2), not match.identical, -(match.similarity or 0.0)


def _first_words(tensors: Sequence[TensorRecord], positions: Sequence[int]) -> tuple[str, ...]:
    """What the names of the rest begin with, the most frequent first."""
    counts = Counter(tensors[position].name.split(".")[0] for position in positions)
    return tuple(word for word, _ in counts.most_common(_REST_WORDS))


def _weight(tensors: Sequence[TensorRecord], positions: Iterable[int]) -> int:
    """Elements of the weights among the tensors: what coverage is a share of."""
    return sum(tensors[position].elements for position in positions if tensors[position].content is Content.WEIGHTS)


def _explained(
    finding: Finding, places: Sequence[_Place], weights: Mapping[_Place, int]
) -> Iterable[tuple[_Place, PartMatch]]:
    """What the finding's model explains of each component, as far as that is worth a word.

    ``places`` are those of the suspect's tensors by position, ``weights`` the elements of each component.
    """
    theirs = finding.comparison.suspect.tensors
    ours = finding.comparison.registered.tensors
    homes = places_of([tensor.name for tensor in ours])
    covered: dict[_Place, float] = defaultdict(float)
    for position, share in finding.comparison.covered.items():
        if theirs[position].content is Content.WEIGHTS:
            covered[places[position]] += share * theirs[position].elements
    matches: dict[_Place, list[TensorMatch]] = defaultdict(list)
    for match in finding.change.matrices:
        matches[places[match.suspect]].append(match)
    for place, elements in covered.items():
        coverage = min(1.0, elements / weights[place])
        if coverage < _LEAST:
            continue
        sizes = [(match, theirs[match.suspect].elements) for match in matches[place]]
        matched = sum(size for _, size in sizes)
        cosines = sum(size * abs(match.cosine) for match, size in sizes)
        homed: Counter[str] = Counter()
        for match, size in sizes:
            homed[homes[ours[match.registered].name][0]] += size
        yield (
            place,
            PartMatch(
                model=finding.model.name,
                registered=homed.most_common(1)[0][0] if homed else "",
                coverage=coverage,
                similarity=min(1.0, cosines / matched) if matched else None,
                identical=sum(size for match, size in sizes if match.digest == "exact") >= WHOLE * weights[place],
            ),
        )
