"""Lays a checkpoint out: stored tensors to canonical ones, by names where known and by shapes where not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from fingerprint.hints import Hints
from fingerprint.roles.layout import OFFSET_GLU, CanonicalTensor, Layout, Mlp
from fingerprint.roles.named import NamedLayout, Placed, lay_out_named, without_residual
from fingerprint.roles.numbers import layers_in
from fingerprint.roles.parts import HINT_PREFIXES
from fingerprint.roles.shapes import lay_out_shapes
from fingerprint.vocabulary import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fingerprint.tensors import TensorView

__all__ = ["CanonicalTensor", "Layout", "Mlp", "lay_out", "with_fixed_residual"]

MOST_NOTES = 64
_SLOTS = {Role.GATE: 0, Role.FC_IN: 0, Role.UP: 1, Role.DOWN: 2, Role.FC_OUT: 2}
_HINTS = ("hidden_activation", "hidden_act", "activation_function", "activation")

# Of one MLP: its stack, layer, expert and group; the positions of its gate, up and down.
_Key = tuple[str, int | None, int | None, str]
_Slots = list[int | None]


def lay_out(tensors: Sequence[TensorView], hints: Mapping[str, str]) -> Layout:
    """Lay out stored tensors as canonical ones: fused blocks split, experts taken off stacks, (out, in) where known.

    ``hints`` are claims found beside the weights (scalars of a config.json by key): numbers of heads and the
    activation's name are looked up there, for the tensors of a component in its own config (see ``fingerprint.hints``).
    Names and hints help to lay out and decide nothing: a name that the shape contradicts is not believed. Every stored
    element comes out exactly once, in the order of the checkpoint. Reads no values; linear in the number of tensors.
    Raises nothing for any names, shapes and hints.
    """
    heard = Hints(hints)
    named = lay_out_named(tensors, heard)
    _distrust(named)
    nameless = [(place, view) for place, view in enumerate(tensors) if place not in named.placed]
    shaped = lay_out_shapes(nameless)
    numbers = layers_in((place, view.name) for place, view in nameless)
    canonical: list[CanonicalTensor] = []
    slots: dict[_Key, _Slots] = {}
    for place in range(len(tensors)):
        for one in named.placed.get(place, ()):
            slot = _SLOTS.get(one.tensor.role)
            if slot is not None:
                slots.setdefault(_key(one), [None, None, None])[slot] = len(canonical)
            canonical.append(one.tensor)
        canonical.extend(replace(one, layer=numbers.get(place)) for one in shaped.placed.get(place, ()))
    configs = _configs(slots, canonical, heard)
    mlps = [
        mlp for key, found in slots.items() if (mlp := _mlp(key, found, canonical, named, configs[key])) is not None
    ]
    if not mlps:
        mlps = _only_mlp(canonical)
    family = named.tables.most_common(1)
    width = named.widths.most_common(1)
    return Layout(
        tuple(canonical),
        tuple(mlps),
        named.known[family[0][0]].family if family else None,
        width[0][0] if width else shaped.width,
        tuple(dict.fromkeys([*named.notes, *shaped.notes]))[:MOST_NOTES],
    )


def with_fixed_residual(layout: Layout) -> Layout:
    """The layout for a network whose residual stream carries sinusoidal positions, as its values have shown.

    Those mean the same in every model, so the residual axes are not exchangeable: they become ``CHANNEL``.
    """
    return replace(layout, tensors=tuple(without_residual(tensor) for tensor in layout.tensors))


def _key(one: Placed) -> _Key:
    return one.tensor.stack, one.tensor.layer, one.tensor.expert, one.group


def _distrust(named: NamedLayout) -> None:
    """Give back to the shapes every MLP whose gate, up and down do not have the same number of neurons."""
    neurons: dict[_Key, set[int]] = {}
    places: dict[_Key, list[int]] = {}
    for place, parts in named.placed.items():
        for one in parts:
            slot = _SLOTS.get(one.tensor.role)
            if slot is None:
                continue
            key = _key(one)
            neurons.setdefault(key, set()).add(one.tensor.view.shape[1 if slot == 2 else 0])
            places.setdefault(key, []).append(place)
    doubtful = [key for key, counts in neurons.items() if len(counts) > 1]
    for key in doubtful:
        for place in places[key]:
            named.placed.pop(place, None)
    if doubtful:
        named.notes.append(f"{len(doubtful)} MLPs have parts of different sizes: laid out by shape")


def _configs(
    slots: Mapping[_Key, _Slots], canonical: Sequence[CanonicalTensor], hints: Hints
) -> dict[_Key, Mapping[str, str] | None]:
    """The config that speaks of each MLP: its component's, if that has one stack; the whole one for the only stack."""
    configs: dict[_Key, Mapping[str, str] | None] = {}
    stacks: dict[int, set[str]] = {}
    for key, found in slots.items():
        first = next(position for position in found if position is not None)
        config = configs[key] = hints.component(canonical[first].name)
        stacks.setdefault(id(config), set()).add(key[0])
    for key, config in configs.items():
        if config is None:
            configs[key] = None if key[0] else hints.whole
        elif len(stacks[id(config)]) > 1:
            configs[key] = None
    return configs


def _mlp(
    key: _Key, found: _Slots, canonical: Sequence[CanonicalTensor], named: NamedLayout, heard: Mapping[str, str] | None
) -> Mlp | None:
    gate, up, down = found
    if gate is None or down is None:
        return None
    if up is None and canonical[gate].role is Role.GATE:
        return None
    activation = named.activations.get(key[0], "")
    if activation != OFFSET_GLU and heard is not None:
        claims = (heard.get(prefix + name) for prefix in HINT_PREFIXES for name in _HINTS)
        activation = next((claim[:32] for claim in claims if claim), activation)
    return Mlp(key[1], key[2], gate, up, down, activation)


def _only_mlp(canonical: Sequence[CanonicalTensor]) -> list[Mlp]:
    """The one MLP that shapes alone show: gate and up split from one block, with the only matrix that can be down."""
    by_role: dict[Role, list[int]] = {}
    for position, one in enumerate(canonical):
        if one.role in _SLOTS:
            by_role.setdefault(one.role, []).append(position)
    gates, ups, downs = (by_role.get(role, []) for role in (Role.GATE, Role.UP, Role.DOWN))
    if len(gates) != 1 or len(ups) != 1 or len(downs) != 1:
        return []
    gate, down = canonical[gates[0]].view.shape, canonical[downs[0]].view.shape
    return [Mlp(None, None, gates[0], ups[0], downs[0], "")] if down == gate[::-1] else []
