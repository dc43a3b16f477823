"""Hints: what configs beside the weights claim, for each tensor those of the component that it lies in.

A composite checkpoint has the claims of a component under its name (``text_encoder.config.num_attention_heads``), as
its tensors are. Hints help to lay tensors out and decide nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONFIG: Final = ".config."
MOST_COMPONENTS: Final = 256
_MOST_PARTS: Final = 16


class Hints:
    """The claims of a checkpoint, sorted by component. Linear in them."""

    def __init__(self, claims: Mapping[str, str]) -> None:
        self.whole = claims
        """All of them, by their full names: those of a checkpoint without components."""
        self._components: dict[str, dict[str, str]] = {}
        for key, value in claims.items():
            component, mark, field = key.partition(_CONFIG)
            if mark and (component in self._components or len(self._components) < MOST_COMPONENTS):
                self._components.setdefault(component, {})[_CONFIG[1:] + field] = value

    def of(self, name: str) -> Mapping[str, str]:
        """The claims about the tensor ``name``: those of its component alone, or all where none has a config."""
        found = self.component(name)
        return self.whole if found is None else found

    def component(self, name: str) -> Mapping[str, str] | None:
        """The claims of the innermost component with a config that the tensor ``name`` lies in; None without one."""
        if not self._components:
            return None
        found = None
        end = name.find(".")
        for _ in range(_MOST_PARTS):
            if end < 0:
                break
            found = self._components.get(name[:end], found)
            end = name.find(".", end + 1)
        return found
