"""The closed sets of words that records, reports and files use: roles, axes, contents."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a canonical tensor does in its network. Matrices are (out, in)."""

    TOKEN_EMBEDDING = "token-embedding"
    POSITION_EMBEDDING = "position-embedding"
    OUTPUT_HEAD = "output-head"
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    ATTENTION_OUTPUT = "attention-output"
    LATENT_DOWN = "latent-down"
    LATENT_UP = "latent-up"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    FC_IN = "fc-in"
    FC_OUT = "fc-out"
    ROUTER = "router"
    CONVOLUTION = "convolution"
    CLASSIFIER = "classifier"
    NORM_GAIN = "norm-gain"
    NORM_BIAS = "norm-bias"
    BIAS = "bias"
    BUFFER = "buffer"
    OTHER = "other"


NEURON_ROLES: Final = frozenset({Role.GATE, Role.UP, Role.DOWN, Role.FC_IN, Role.FC_OUT})
"""Of MLPs."""
ATTENTION_ROLES: Final = frozenset({Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT})
LAYERLESS_ROLES: Final = frozenset({Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING, Role.OUTPUT_HEAD})


class Axis(StrEnum):
    """What the positions along an axis of a matrix are.

    ``RESIDUAL``, ``NEURON`` and ``UNIT`` are hidden: initialisation and training commute with permuting them, so the
    rows of an unrelated model are exchangeable along them. The others mean the same in every model, or come in groups.
    """

    RESIDUAL = "residual"
    NEURON = "neuron"
    UNIT = "unit"
    CHANNEL = "channel"
    TOKEN = "token"
    POSITION = "position"
    FEATURE = "feature"
    UNKNOWN = "unknown"

    @property
    def exchangeable(self) -> bool:
        """Whether positions along this axis of an unrelated model can be permuted without changing its law."""
        return self in {Axis.RESIDUAL, Axis.NEURON, Axis.UNIT}


class Content(StrEnum):
    """What kind of numbers a tensor holds; only ``WEIGHTS`` is evidence. ``UNREAD``: not read at the depth chosen."""

    WEIGHTS = "weights"
    VECTOR = "vector"
    CONSTANT = "constant"
    ANALYTIC = "analytic"
    INTEGER = "integer"
    SMALL = "small"
    NONFINITE = "nonfinite"
    EMPTY = "empty"
    UNREAD = "unread"


class Depth(StrEnum):
    """How much of a checkpoint is read: ``QUICK`` a bounded sample, ``FULL`` every byte once; ``DEEP`` looks again.

    At ``DEEP`` all neurons of each MLP are sampled, and layers are written down in their own frames too, which needs no
    embeddings.
    """

    QUICK = "quick"
    FULL = "full"
    DEEP = "deep"


class ChannelKind(StrEnum):
    """What the channels of a sample are, and how many rows each of them has in a frame.

    ``VALUE_OUTPUT``: a value row and the output columns that read it, summed over the query heads of its group: 2 rows.
    ``ROTARY``: a frequency pair of a key head, real and imaginary part, and those of its query heads, summed: 4 rows.
    ``QUERY_KEY``: a key row and its query row, without rotary positions: 2 rows.
    """

    VALUE_OUTPUT = "value-output"
    ROTARY = "rotary"
    QUERY_KEY = "query-key"

    @property
    def parts(self) -> int:
        """Rows of one channel."""
        return 4 if self is ChannelKind.ROTARY else 2


class Frame(StrEnum):
    """Directions of the residual stream in which neurons and channels are written down.

    ``FIXED``: random signs, on weights as they are stored. The others on weights with the norm gains in front of them
    folded in, and moving with the residual stream when it is rotated or permuted: ``ANCHORS``: whitened embeddings of
    hashed tokens; ``POSITIONS``: whitened embeddings of hashed positions; ``SELF``: leading right singular directions
    of the MLP's own gate. ``UNITS``: of the input of a network without a residual stream, whose hidden units stand in
    place of neurons (``gauge.units``).
    """

    FIXED = "fixed"
    ANCHORS = "anchors"
    POSITIONS = "positions"
    SELF = "self"
    UNITS = "units"


class Circuit(StrEnum):
    """Products of two matrices of a layer that no rewrite of it changes."""

    DOWN_UP = "down-up"
    OUTPUT_VALUE = "output-value"
    QUERY_KEY = "query-key"
