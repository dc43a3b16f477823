"""Whether a secret key confirms what the public tests said, and whether it finds what they did not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from fingerprint.checkpoint import open_checkpoint
from fingerprint.comparing.comparison import compare_fingerprints
from fingerprint.comparing.evidence import Test, bonferroni
from fingerprint.errors import SignatureError, UsageError
from fingerprint.threads import single_blas
from fingerprint.vocabulary import Depth
from signatures.keyed import key_identity, keyed_fingerprint, measure_keyed
from signatures.records import anonymous_model
from signatures.report import KeyedCheck
from signatures.search import signature_of
from signatures.signature import is_signature, read_signature
from signatures.suspect import AUTO_WHOLE

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from fingerprint.comparing.evidence import Evidence
    from fingerprint.records import Fingerprint
    from signatures.keyed import Key
    from signatures.registry import Registry
    from signatures.report import Report

_Registered = tuple[str, str, "Fingerprint"]
"""Name and identity of a registered model, and what was measured of it under the key."""

CONFIRMED: Final = -6.0
"""log10 p from which the key confirms, corrected for all tests and models that were checked: that of ``likely``."""
_WEIGHTS_NEEDED: Final = "a key needs the weights of the suspect, and this is a signature"


def check_scan(
    registry: Registry,
    report: Report,
    path: str | os.PathLike[str],
    key: Key,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """The report of a scan with ``keyed``: one check for each registered model with a sketch under this key.

    Models without one, or under another key, are not checked, which a note says if they matched; nor are those whose
    sketch names this key and cannot be opened with it, as a damaged or forged one does. Reads the suspect once more,
    and reads and compares every signature under the key, one after the other: the time grows with their number. The
    first check after an earlier version of the registry reads all signatures, and notes which keys they are under.
    Raises ``UsageError`` if the suspect is a signature, or large, elsewhere and only looked at quickly;
    ``SignatureError`` if the file of such a signature is absent or damaged; ``InputError``, ``RegistryError``.
    """
    if report.error is not None:
        return report
    if is_signature(path):
        raise UsageError(_WEIGHTS_NEEDED)
    started = time.perf_counter()
    broken: list[str] = []
    learnt: dict[int, str | None] = {}
    try:
        checks = _checks(_opened(registry, key, broken, learnt), path, key, report, progress)
    finally:
        registry.note_keys(learnt)
    known = {check.signature for check in checks}
    unchecked = [match.model for match in report.matches if match.signature not in known]
    notes = [f"not checked with key {key.identity}: {', '.join(unchecked)}"] if unchecked else []
    if checks and report.suspect.depth == Depth.QUICK:
        notes.append("for the secret key every byte was read, apart from the quick look")
    notes += broken
    if not checks:
        notes.append(f"no registered model has a sketch under key {key.identity} that can be opened")
    seconds = report.seconds + time.perf_counter() - started
    return replace(report, keyed=checks, notes=(*report.notes, *notes), seconds=seconds)


def check_comparison(
    report: Report,
    registered: str | os.PathLike[str],
    suspect: str | os.PathLike[str],
    key: Key,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """The same for a comparison: ``registered`` is a signature with a sketch under this key, or a checkpoint.

    Raises ``WrongKeyError`` besides.
    """
    if is_signature(suspect):
        raise UsageError(f"{suspect}: {_WEIGHTS_NEEDED}")
    started = time.perf_counter()
    if is_signature(registered):
        ours = keyed_fingerprint(read_signature(registered), key, str(registered))
    else:
        with open_checkpoint(registered) as checkpoint:
            ours = measure_keyed(checkpoint, key, progress)
    model = anonymous_model(str(registered))
    checks = _checks([(model.name, model.identity, ours)], suspect, key, report, progress)
    return replace(report, keyed=checks, seconds=report.seconds + time.perf_counter() - started)


def _opened(registry: Registry, key: Key, broken: list[str], learnt: dict[int, str | None]) -> Iterator[_Registered]:
    """The registered models under the key, each when it is asked for; ``broken`` gets what is wrong with the others,
    ``learnt`` the keys of models at which nobody had looked."""
    for model in registry.under_key(key.identity):
        try:
            signature = signature_of(registry, model)
        except SignatureError as error:
            if model.key is not None:
                raise
            broken.append(str(error))  # nobody knows whether it is one of those under the key
            continue
        if signature is None:
            continue
        if model.key is None:
            learnt[model.id] = key_identity(signature)
            if learnt[model.id] != key.identity:
                continue
        try:
            ours = keyed_fingerprint(signature, key, model.name)
        except (SignatureError, UsageError) as error:  # a stranger's: whose key it is stands in the open
            broken.append(str(error))
        else:
            yield model.name, model.identity, ours


def _checks(
    registered: Iterable[_Registered],
    path: str | os.PathLike[str],
    key: Key,
    report: Report,
    progress: Callable[[int], None] | None,
) -> tuple[KeyedCheck, ...]:
    """The checks of all, which are gone through once; the suspect is measured if there is one at all."""
    best: list[tuple[str, str, Evidence | None]] = []
    theirs: Fingerprint | None = None
    for name, identity, ours in registered:
        theirs = theirs or _measured(path, key, report, progress)
        with single_blas():
            comparison = compare_fingerprints(ours, theirs, own_frames=False)
        alone = [one for one in comparison.evidence if one.test is not Test.SKETCH]
        best.append((name, identity, min(alone, key=lambda one: one.log10_p, default=None)))
    public = {match.signature for match in report.matches}
    found = []
    for name, identity, evidence in best:
        log10_p = 0.0 if evidence is None else bonferroni(evidence.log10_p, len(best))
        found.append(
            KeyedCheck(
                model=name,
                signature=identity,
                key=key.identity,
                confirmed=log10_p <= CONFIRMED,
                log10_p=log10_p,
                test="" if evidence is None else evidence.test.value,
                matched=identity in public or (not identity and bool(report.matches)),
            )
        )
    return tuple(sorted(found, key=lambda one: (not one.matched, one.log10_p)))


def _measured(
    path: str | os.PathLike[str], key: Key, report: Report, progress: Callable[[int], None] | None
) -> Fingerprint:
    """The suspect under the key."""
    with open_checkpoint(path) as checkpoint:
        if checkpoint.transfer is not None and report.suspect.depth == Depth.QUICK and checkpoint.bytes > AUTO_WHOLE:
            raise UsageError("a key reads every byte, and much would be fetched: say --depth full, or give no key")
        return measure_keyed(checkpoint, key, progress)
