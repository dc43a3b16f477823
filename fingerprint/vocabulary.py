"""The closed sets of words that records, reports and files use: roles, axes, contents."""

from __future__ import annotations

from enum import StrEnum


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
    """What kind of numbers a tensor holds; only ``WEIGHTS`` is evidence."""

    WEIGHTS = "weights"
    VECTOR = "vector"
    CONSTANT = "constant"
    ANALYTIC = "analytic"
    INTEGER = "integer"
    SMALL = "small"
    NONFINITE = "nonfinite"
    EMPTY = "empty"
