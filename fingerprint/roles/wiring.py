"""Which matrices work together: MLPs, attention, the tables of tokens and positions, and the gains that each reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fingerprint.roles.layout import CanonicalTensor


class Place(NamedTuple):
    """A matrix: its position among the canonical tensors, and whether it is stored as (in, out)."""

    position: int
    transposed: bool


class NeuronMatrices(Struct, frozen=True):
    """One MLP: ``gate`` is fc-in where ``up`` is None.

    ``score`` is that of its weaker join, about normal by chance; ``decided``, whether it is clear which is gate and
    which up (of an ungated MLP: which comes first).
    """

    gate: Place
    up: Place | None
    down: Place
    score: float
    decided: bool

    @property
    def places(self) -> tuple[Place, ...]:
        """All of its matrices."""
        return (self.gate, self.down) if self.up is None else (self.gate, self.up, self.down)


class Attention(Struct, frozen=True):
    """Matrices of one attention block that belong together, in (out, in) after turning what is ``transposed``.

    Either query and key or value and output may be all that is known of a block (the others are then None): where they
    are not stored in one tensor, nothing joins the two halves without names. Which of ``query`` and ``key`` is which is
    known if ``ordered``. ``head_size`` is the number of channels of a head, 0 where it cannot be told.
    """

    layer: int | None
    query: Place | None
    key: Place | None
    value: Place | None
    output: Place | None
    head_size: int
    ordered: bool


class Gain(NamedTuple):
    """The gain of the norm before a matrix: the position of its vector, and what is to be added to that (0 or 1).

    ``axis`` of the matrix, as it is among the canonical tensors, is the residual one, along which the gain lies.
    """

    position: int
    offset: float
    axis: int


class Wiring(Struct, frozen=True):
    """What belongs together in a checkpoint, where no names tell.

    ``tables`` are those with a row for each token, the likeliest input embedding first: the second of two is the
    output head, and where they are hard to tell apart both are to be tried. ``positions`` is a table of learned
    positions. ``gains`` has, by the position of a matrix that reads a norm's output, the gain to fold into it; matrices
    without an entry are taken as they are. ``notes`` tell what could not be told.
    """

    mlps: tuple[NeuronMatrices, ...] = ()
    attentions: tuple[Attention, ...] = ()
    tables: tuple[Place, ...] = ()
    positions: Place | None = None
    gains: Mapping[int, Gain] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def layer_of(tensors: Sequence[CanonicalTensor], places: Iterable[Place | None]) -> int | None:
    """The layer that the names of all of these matrices give, if they agree; places that are None do not count."""
    layers = {tensors[place.position].layer for place in places if place is not None}
    return layers.pop() if len(layers) == 1 else None
