"""Measure weights: bytes, checkpoint, canonical tensors, statistics and sketches, fingerprint, comparison of two.

The verbs::

    with fingerprint.open_checkpoint("model.safetensors") as checkpoint:
        mine = fingerprint.fingerprint(checkpoint)
    result = fingerprint.compare(registered=mine, suspect=other)

Everything is loaded when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fingerprint.assemble import fingerprint as fingerprint
    from fingerprint.checkpoint import Checkpoint as Checkpoint
    from fingerprint.checkpoint import open_checkpoint as open_checkpoint
    from fingerprint.comparing.comparison import Comparison as Comparison
    from fingerprint.comparing.comparison import compare_fingerprints as compare
    from fingerprint.errors import WeightprintError as WeightprintError
    from fingerprint.parameters import Parameters as Parameters
    from fingerprint.records import Fingerprint as Fingerprint

_WHERE = {
    "Checkpoint": ("fingerprint.checkpoint", "Checkpoint"),
    "Comparison": ("fingerprint.comparing.comparison", "Comparison"),
    "Fingerprint": ("fingerprint.records", "Fingerprint"),
    "Parameters": ("fingerprint.parameters", "Parameters"),
    "WeightprintError": ("fingerprint.errors", "WeightprintError"),
    "compare": ("fingerprint.comparing.comparison", "compare_fingerprints"),
    "fingerprint": ("fingerprint.assemble", "fingerprint"),
    "open_checkpoint": ("fingerprint.checkpoint", "open_checkpoint"),
}

__all__ = [
    "Checkpoint",
    "Comparison",
    "Fingerprint",
    "Parameters",
    "WeightprintError",
    "compare",
    "fingerprint",
    "open_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fingerprint' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
