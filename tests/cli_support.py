"""What the tests of the command line share: small models, what a run of the program gave, and its schemas."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np

from cli.schemas import schema

if TYPE_CHECKING:
    from pathlib import Path

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]
LAYERS, WIDTH, HIDDEN, TOKENS = 2, 64, 160, 128


def weights(seed: int) -> Weights:
    """A Llama-like model of two layers with random weights."""
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return random.normal(0, 0.02, shape).astype(np.float32)

    held = {"model.embed_tokens.weight": matrix(TOKENS, WIDTH)}
    for layer in range(LAYERS):
        for word in "qkvo":
            held[f"model.layers.{layer}.self_attn.{word}_proj.weight"] = matrix(WIDTH, WIDTH)
        for word in ("gate", "up"):
            held[f"model.layers.{layer}.mlp.{word}_proj.weight"] = matrix(HIDDEN, WIDTH)
        held[f"model.layers.{layer}.mlp.down_proj.weight"] = matrix(WIDTH, HIDDEN)
        held[f"model.layers.{layer}.input_layernorm.weight"] = (1 + matrix(WIDTH)).astype(np.float32)
    return held


def tuned(base: Weights, seed: int, amount: float = 0.1) -> Weights:
    """``base`` with noise of ``amount`` of its deviation."""
    random = np.random.default_rng(seed)
    return {
        name: (value + amount * 0.02 * random.standard_normal(value.shape)).astype(np.float32)
        for name, value in base.items()
    }


@dataclass(frozen=True, slots=True)
class Zoo:
    """Paths of models and of a registry that holds ``base`` (as acme/base, alias acme/alias) and ``other``."""

    folder: Path
    registry: Path
    base: str
    tuned: str
    sibling: str
    unrelated: str
    part: str
    broken: str
    absent: str


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run of the program gave."""

    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects of standard output, each checked against the schema that it names."""
        found: list[dict[str, Any]] = json.loads(self.out, parse_constant=_refuse)
        for one in found:
            validate(one)
        return found


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@cache
def _validator(name: str) -> jsonschema.protocols.Validator:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    return jsonschema.Draft202012Validator(schema(name))


def validate(value: dict[str, Any]) -> None:
    """Check an object against the schema that it names."""
    _validator(value["schema"]).validate(value)


class Typed:
    """Standard input that gives ``data``."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]

    def isatty(self) -> bool:
        return False
