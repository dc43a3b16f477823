"""Claims of a suspect about where it comes from, checked against what its weights say. They move nothing of that."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING, Final

from fingerprint.claims import ClaimKind, Claims, comparable, model_name, names_same
from signatures.report import CheckedClaim, ClaimsReport, Confidence, Link, Relation, Standing, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fingerprint.claims import Claim
    from signatures.records import ModelRecord
    from signatures.report import Match


_ACCEPTED: Final = {
    "finetune": {
        Relation.FINE_TUNED, Relation.CONTINUED_TRAINING, Relation.EXTENDED, Relation.QUANTISED, Relation.DTYPE_CAST,
        Relation.NOISED,
    },
    "quantized": {Relation.QUANTISED, Relation.DTYPE_CAST, Relation.REFORMATTED, Relation.IDENTICAL},
    "merge": {Relation.MERGED},
}  # fmt: skip
"""What the weights may look like where a relation is claimed; other words are not compared."""
_SAME_VALUES: Final = frozenset({Relation.IDENTICAL, Relation.REFORMATTED, Relation.DTYPE_CAST, Relation.QUANTISED})
_MOST_GENERATIONS: Final = 8
_SHOWN: Final = 3


def check_claims(
    claims: Claims,
    matches: Sequence[Match],
    named: Callable[[str], Sequence[ModelRecord]] | None,
    verdict: Verdict,
    *,
    adapter: bool = False,
    registered: bool = True,
) -> ClaimsReport:
    """What claims and weights make of one another.

    ``matches`` are all that were found, the nearest first; ``named`` gives the models that a name may mean, of those
    that the suspect was compared with, None if there are none; ``registered``: they are a registry's; ``adapter``: the
    suspect's weights are what it adds to a base, and need not be alike to those of the base.
    """
    checker = _Checker(matches, named or (lambda _: ()), verdict, adapter=adapter, registered=registered)
    checked = tuple(checker.check(claim) for claim in claims.claims)
    unnamed = checker.unnamed(checked)
    statements = [one.says for one in checked if one.says]
    if unnamed and not any(one.standing is Standing.CONTRADICTED for one in checked):
        shown = ", ".join(checker.shown(name) for name in unnamed[:_SHOWN])
        shown += f" and {len(unnamed) - _SHOWN} more" if len(unnamed) > _SHOWN else ""
        if any(one.kind is ClaimKind.BASE for one in checked):
            statements.append(f"no claim names {shown}, whose weights are shared")
        elif (claims.described or claims.claims) and checker.is_copy(unnamed[0]):
            statements.append(f"no claim names {shown}, whose weights these are")
        elif claims.described or claims.claims:
            statements.append(f"names no base, but shares weights with {shown}")
    return ClaimsReport(checked, unnamed, claims.architectures, claims.quantisation, tuple(dict.fromkeys(statements)))


class _Checker:
    def __init__(
        self,
        matches: Sequence[Match],
        named: Callable[[str], Sequence[ModelRecord]],
        verdict: Verdict,
        *,
        adapter: bool,
        registered: bool,
    ) -> None:
        self._matches = {match.model: match for match in matches}
        self._named_as = cache(named)
        self._verdict = verdict
        self._adapter = adapter
        self._registry = registered

    def check(self, claim: Claim) -> CheckedClaim:
        """How ``claim`` stands."""
        registered = self._registered(claim.name) if claim.name else None
        match = self._matches.get(registered.name) if registered is not None else None
        if claim.kind is ClaimKind.SCRATCH:
            standing, verdict = self._from_scratch()
        else:
            standing, verdict = self._named(claim, registered, match)
        about = f"{claim.part}: " if claim.part else ""
        lead = {ClaimKind.BASE: "base", ClaimKind.NAME: "calls itself", ClaimKind.SCRATCH: "says"}[claim.kind]
        says = f'{about}{lead} "{claim.value}" ({claim.source}): {verdict}' if verdict else ""
        name = None if registered is None else registered.name
        return CheckedClaim(claim.kind, claim.value, claim.source, claim.relation, claim.part, name, standing, says)

    def unnamed(self, checked: Iterable[CheckedClaim]) -> tuple[str, ...]:
        """Models whose weights are shared and that no claim accounts for."""
        named = {one.registered for one in checked if one.registered is not None}
        for _ in range(_MOST_GENERATIONS):
            known = (model for name in named for model in self._meant(name) if model.name == name)
            bases = {model.base for model in known if model.base is not None}
            further = {found.name for base in bases if (found := self._registered(base)) is not None} - named
            if not further:
                break
            named |= further
        return tuple(name for name, match in self._matches.items() if _is_sure(match) and name not in named)

    def shown(self, name: str) -> str:
        """A matched model and what was done to its weights."""
        return f"{name} ({_what(self._matches[name])})"

    def is_copy(self, name: str) -> bool:
        """Whether a matched model has the suspect's values, as converters and quantisers leave them."""
        return self._matches[name].relation in _SAME_VALUES

    def _from_scratch(self) -> tuple[Standing, str]:
        sure = next((match for match in self._matches.values() if _is_sure(match)), None)
        if sure is None:
            if self._verdict is Verdict.NO_MATCH:
                return Standing.UNCHECKED, "nothing that is registered contradicts it"
            return Standing.UNCHECKED, "this scan cannot tell"
        if sure.relation in _SAME_VALUES:
            return Standing.UNCHECKED, f"the weights are those of {self.shown(sure.model)}"
        return Standing.CONTRADICTED, f"but it shares weights with {self.shown(sure.model)}"

    def _named(self, claim: Claim, registered: ModelRecord | None, match: Match | None) -> tuple[Standing, str]:
        if registered is None:
            says = "no model of that name is registered" if self._registry else "not what it was compared with"
            return Standing.UNREGISTERED, says if claim.kind is ClaimKind.BASE else ""
        # A claim may spell the name in another way, or be about an alias.
        other = self._registry and comparable(registered.name) != comparable(claim.name)
        which = f", registered as {registered.name}" if other else ""
        known = which.removeprefix(", ") or ("registered" if self._registry else "compared")
        if match is None:
            if self._adapter:
                return Standing.UNCHECKED, f"{known}; an adapter need not resemble its base"
            if self._verdict in {Verdict.INCONCLUSIVE, Verdict.ERROR}:
                return Standing.UNCHECKED, f"{known}, but this scan cannot tell"
            return Standing.UNSUPPORTED, f"{known}, and no shared weights were found"
        if match.link is Link.SIBLING:
            common = match.explained_by or "a common base"
            return Standing.SIBLING, f"the weights share {common} with it, and nothing beyond that{which}"
        if not _is_sure(match):
            return Standing.PARTLY, f"the weights bear out only a part of it ({_what(match)}){which}"
        doubt = _other_relation(claim, match)
        return Standing.CONFIRMED, f"confirmed by the weights ({_what(match)}){which}{doubt}"

    def _meant(self, name: str) -> Sequence[ModelRecord]:
        """The models that a name may mean, looked up once for all its spellings: a hostile card has dozens."""
        return self._named_as(comparable(name))

    def _registered(self, name: str) -> ModelRecord | None:
        """The model of that name; a matched one, if one without its organisation may stand for several."""
        found = self._meant(name)
        exact = [model for model in found if any(one.lower() == name.lower() for one in _names(model))]
        matched = [model for model in found if model.name in self._matches]
        return next(iter([*exact, *matched, *found]), None)


def _is_sure(match: Match) -> bool:
    return match.link is Link.LINEAGE and match.confidence is not Confidence.POSSIBLE


def _what(match: Match) -> str:
    word = match.relation.value if match.link is Link.LINEAGE else match.link.value
    return f"{word}, {match.confidence.value}"


def _other_relation(claim: Claim, match: Match) -> str:
    accepted = _ACCEPTED.get(claim.relation.casefold())
    if accepted is None or match.relation in accepted:
        return ""
    return f', though not as the claimed "{claim.relation}"'


def may_name(name: str, model: ModelRecord) -> bool:
    """Whether a claim that writes ``name`` may mean ``model``."""
    return any(names_same(name, one) for one in _names(model))


def _names(model: ModelRecord) -> list[str]:
    """Names under which a claim may speak of a model; of one that is not registered, what its path may be called."""
    names = [entry.name for entry in model.registrations]
    if model.identity:
        return names
    words = [word for word in re.split(r"[/\\]+", os.path.abspath(names[0])) if word]
    stem = os.path.splitext(words[-1])[0] if words else ""
    found = [model_name(names[0]), stem, words[-1] if words else "", *words[-2:-1], "/".join(words[-2:])]
    return [name for name in (*found, "/".join(words[-3:-1])) if name]
