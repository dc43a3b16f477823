"""Undo everything that keeps the function between two checkpoints, and report what is left."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fingerprint.threads import single_blas
from fingerprint.undoing.anatomy import anatomies_of
from fingerprint.undoing.heads import Mixing, UndoneHeads, undo_attention
from fingerprint.undoing.neurons import UndoneMlp, undo_mlp
from fingerprint.undoing.result import Total, Undoing, Use
from fingerprint.undoing.scores import Tally
from fingerprint.undoing.stream import MOST_TOKENS, MOST_WIDTH, Stream, find_stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.checkpoint import Checkpoint
    from fingerprint.undoing.anatomy import Anatomy, AttentionParts

    Float32 = NDArray[np.float32]

_BETTER: Final = 1e-4
_RECOVERED: Final = {Use.HELD_OUT: 0.8, Use.ORDERED: 0.5, Use.TABLES: 0.3}
"""Residual over its control, of the first of these uses that there is. Held out, at most .64 was seen after as much
training again, .93 and more of models that share nothing but what they learnt from; ordered .53 and .67, as an order
can be fitted to anything; tables .63 and more of such models."""
_PROBES: Final = 64
_SEED: Final = 20261


class Transform(Struct, frozen=True):
    """The transformation itself, explicitly."""

    stream: Stream
    mlps: tuple[UndoneMlp, ...]
    heads: tuple[UndoneHeads, ...]


def undo(ours: Checkpoint, theirs: Checkpoint) -> tuple[Undoing, Transform | None]:
    """Recover what turns ``ours`` into ``theirs`` and measure the rest. Raises ``InputError``.

    Memory: one MLP or one attention block of both sides at a time in float32, three copies of it, and the rotation
    (width² numbers of 4 bytes, and a few times that while it is computed).
    """
    with single_blas():
        our_readings, their_readings = anatomies_of(ours, suspect=False), anatomies_of(theirs, suspect=True)
        reason = _why_not(our_readings, their_readings)
        if reason:
            return Undoing(missing=reason), None
        mine, its, stream = _best_readings(our_readings, their_readings)
        centred = mine.centred or its.centred
        tally = Tally()
        _score_tables(mine, its, stream, tally, centred=centred)
        mlps = tuple(undo_mlp(pair, stream, tally, centred=centred) for pair in stream.pairs)
        heads = tuple(
            half
            for one, other in _pair_attention(mine, its, stream, centred=centred)
            for half in undo_attention(one, other, stream, tally, centred=centred)
        )
    return _told(stream, mlps, heads, tally), Transform(stream, mlps, heads)


def _best_readings(ours: Sequence[Anatomy], theirs: Sequence[Anatomy]) -> tuple[Anatomy, Anatomy, Stream]:
    """The readings under which MLPs are most alike; where names tell on both sides, gains are folded."""
    fold = ours[0].folded or theirs[0].folded
    found: list[tuple[float, Anatomy, Anatomy, Stream]] = []
    for mine, its in product(ours, theirs):
        if mine.named and its.named and fold and not (mine.folded and its.folded):
            continue
        score, stream = find_stream(mine, its, centred=mine.centred or its.centred)
        if not found or score > found[-1][0] + _BETTER:
            found.append((score, mine, its, stream))
    return found[-1][1:]


def _why_not(our_readings: Sequence[Anatomy], their_readings: Sequence[Anatomy]) -> str:
    if not our_readings or not their_readings:
        return f"no residual stream was recognised in {'B' if our_readings else 'A'}"
    ours, theirs = our_readings[0], their_readings[0]
    if ours.width != theirs.width:
        return f"the residual streams differ in width: {ours.width} and {theirs.width} channels"
    if ours.width > MOST_WIDTH:
        return f"a residual stream of {ours.width} channels is beyond the {MOST_WIDTH} that are undone"
    if not (ours.mlps and theirs.mlps) and not (ours.tables and theirs.tables):
        return "neither MLPs nor embeddings were recognised on both sides"
    return ""


def _score_tables(ours: Anatomy, theirs: Anatomy, stream: Stream, tally: Tally, *, centred: bool) -> None:
    tokens = stream.tokens
    if tokens is not None:
        mine, its = (one.rows(centred=centred, most=MOST_TOKENS) for one in (tokens.ours, tokens.theirs))
        use = _use(stream)
        _score_rows(tally, tokens.theirs.role.value, use, stream, mine, its, tokens.order, writes=True)
        heads = [
            (one, other) for one in ours.heads for other in theirs.heads if other.position != tokens.theirs.position
        ][:1]
        for one, other in heads:
            mine, its = (part.rows(centred=centred, most=MOST_TOKENS) for part in (one, other))
            same = one.position == tokens.ours.position
            use = _use(stream) if same else Use.TABLES
            if other.gain is None and not theirs.named:
                # The gain before it is not known: as many factors as there are channels are fitted.
                use = Use.FITTED
            fit = use is Use.FITTED and not theirs.named
            _score_rows(tally, "output-head", use, stream, mine, its, tokens.order, writes=False, channels=fit)
    if ours.positions is not None and theirs.positions is not None:
        mine, its = (one.rows(centred=centred, most=MOST_TOKENS) for one in (ours.positions, theirs.positions))
        use = Use.FITTED if stream.source == "positions" else Use.TABLES
        order = np.where(np.arange(len(its)) < len(mine), np.arange(len(its)), -1)
        _score_rows(tally, "position-embedding", use, stream, mine, its, order, writes=True)


def _use(stream: Stream) -> Use:
    return Use.FITTED if stream.from_tokens else Use.TABLES


def _score_rows(
    tally: Tally,
    kind: str,
    use: Use,
    stream: Stream,
    ours: Float32,
    theirs: Float32,
    order: NDArray[np.int64],
    *,
    writes: bool,
    channels: bool = False,
) -> None:
    count = min(len(theirs), len(order))
    chosen = order[:count]
    usable = (chosen >= 0) & (chosen < len(ours))
    # What all rows share says nothing about one of them.
    turned = stream.turned(ours, writes=writes)
    predicted = (turned - turned.mean(axis=0))[np.where(usable, chosen, 0)]
    theirs = theirs - theirs.mean(axis=0)
    if channels:
        predicted *= np.einsum("ij,ij->j", predicted, theirs[:count]) / np.maximum((predicted**2).sum(axis=0), 1e-30)
    elif not writes:
        predicted *= np.float32(np.linalg.norm(theirs[:count]) / max(float(np.linalg.norm(predicted)), 1e-30))
    predicted[~usable] = 0.0
    tally.add(kind, use, theirs[:count], predicted)


def _pair_attention(
    ours: Anatomy, theirs: Anatomy, stream: Stream, *, centred: bool
) -> list[tuple[AttentionParts, AttentionParts]]:
    """Attention of theirs with that of ours: by the layers of their MLPs where these are known, else by the sum of
    the circuits of all heads, which no rewrite changes. Where query and key cannot be told apart, either may be which:
    exchanged, their circuit is another one."""
    layers = {pair.theirs.layer: pair.ours.layer for pair in stream.pairs}
    by_layer = {one.layer: one for one in ours.attention}
    known = ours.named and theirs.named and None not in layers and None not in by_layer
    if known:
        return [
            (by_layer[layers[other.layer]], other)
            for other in theirs.attention
            if other.layer in layers and layers[other.layer] in by_layer
        ]
    random = np.random.default_rng(_SEED).standard_normal((ours.width, _PROBES), dtype=np.float32)
    turned = stream.rotation @ random
    mine = [_glance(one, turned, centred=centred) for one in ours.attention]
    found = []
    for other in theirs.attention:
        readings = [other] if other.ordered else [other, replace(other, query=other.key, key=other.query)]
        looks = [_glance(reading, random, centred=centred) for reading in readings]
        scores = [
            max((abs(float(look[k] @ one[k])) for look in looks for k in look if k in one), default=-1.0)
            for one in mine
        ]
        if scores and max(scores) >= 0:
            found.append((ours.attention[int(np.argmax(scores))], other))
    return found


def _glance(block: AttentionParts, probes: Float32, *, centred: bool) -> dict[str, Float32]:
    """Unit vectors of the circuits seen through probes; where heads share keys, through the sum of their queries."""
    found: dict[str, Float32] = {}
    for kind, inner, outer in (("query-key", block.key, block.query), ("value-output", block.value, block.output)):
        if inner is None or outer is None:
            continue
        first, last = (part.rows(centred=centred) @ probes for part in (inner, outer))
        if len(last) != len(first):
            sizes = [size for size in block.head_sizes if len(first) % size == 0]
            if not sizes or len(last) % len(first):
                continue
            last = last.reshape(len(first) // sizes[0], -1, sizes[0], last.shape[1]).sum(axis=1).reshape(first.shape)
        circuit: Float32 = (last.T @ first).reshape(-1)
        found[kind] = circuit / np.float32(max(float(np.linalg.norm(circuit)), 1e-30))
    return found


def _told(stream: Stream, mlps: tuple[UndoneMlp, ...], heads: tuple[UndoneHeads, ...], tally: Tally) -> Undoing:
    totals = {use: None if (found := tally.total(use)) is None else Total(*found) for use in Use}
    gated = any(np.any(one.scale != 1.0) for one in mlps)
    return Undoing(
        recovered=_recovered(totals),
        source=stream.source,
        rotation=stream.kind,
        angle=stream.angle,
        scale=stream.scale,
        tokens_moved=None if stream.tokens is None else stream.tokens.moved,
        neurons_moved=_mean([one.moved for one in mlps]),
        neurons_negated=_mean([one.negated for one in mlps]) if gated else None,
        neurons_rescaled=_mean([one.rescaled for one in mlps]) if gated else None,
        heads_moved=_mean([one.moved for one in heads]),
        values=_most_general([one.mixing for one in heads if one.kind == "value-output"]),
        keys=_most_general([one.mixing for one in heads if one.kind == "query-key"]),
        layers=tuple(
            dict.fromkeys((one.theirs, one.ours) for one in mlps if one.theirs is not None and one.ours is not None)
        ),
        mlps=len(mlps),
        attention=len(heads),
        held_out=totals[Use.HELD_OUT],
        ordered=totals[Use.ORDERED],
        tables=totals[Use.TABLES],
        fitted=totals[Use.FITTED],
        residuals=tally.residuals(),
    )


def _recovered(totals: Mapping[Use, Total | None]) -> bool:
    for use, most in _RECOVERED.items():
        if (total := totals[use]) is not None:
            return total.residual < most * total.control
    return False


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _most_general(found: list[Mixing]) -> str | None:
    """The kind of most heads' maps; the more general of two that are as frequent."""
    order = list(Mixing)
    return max(found, key=lambda one: (found.count(one), order.index(one))).value if found else None
