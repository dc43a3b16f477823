"""The settings of the environment that work depends on: workers on other machines have an environment of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from fingerprint.device import VARIABLE as DEVICE_VARIABLE
from fingerprint.remote.options import VARIABLES as REMOTE_VARIABLES
from signatures.engines import INDEX_VARIABLE, TOKEN_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLES: Final = (INDEX_VARIABLE, TOKEN_VARIABLE, DEVICE_VARIABLE, *REMOTE_VARIABLES)


@dataclass(frozen=True, slots=True)
class Settings:
    """Values of those of ``VARIABLES`` that are set. Some are secrets: they are pickled, and never shown."""

    values: Mapping[str, str] = field(repr=False)

    @classmethod
    def here(cls) -> Self:
        """Those of this process."""
        return cls({name: os.environ[name] for name in VARIABLES if name in os.environ})

    def take_effect(self) -> None:
        """Make them those of this process: what is not among them is unset."""
        for name in VARIABLES:
            if name in self.values:
                os.environ[name] = self.values[name]
            else:
                os.environ.pop(name, None)
