"""What the user decides about fetching: which servers, how long, and what may be sent to whom."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, Self

from fingerprint.errors import UsageError

HUB: Final = "https://huggingface.co"
VARIABLES: Final = (
    "FP_ALLOW_PRIVATE",
    "FP_DOWNLOAD",
    "FP_REMOTE_TIMEOUT",
    "FP_HF_ENDPOINT",
    "HF_ENDPOINT",
    "HF_TOKEN",
)
"""What the environment can set."""
_YES: Final = {"1", "true", "yes", "on"}
_NO: Final = {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How to fetch.

    ``allow_private``: also from addresses that are not public (loopback, private networks, link-local).
    ``download``: a server without byte ranges is asked for whole files. ``timeout``: seconds to connect, and to wait
    for the next bytes. ``attempts``: tries in a row without progress. ``backoff``: seconds before the third try, twice
    as much before each further one. ``parallel``: requests under way at once. ``hub``: where ``hf://`` leads.
    ``token``: sent to the hub alone, and only encrypted or to this machine.
    """

    allow_private: bool = False
    download: bool = False
    timeout: float = 30.0
    attempts: int = 6
    backoff: float = 0.5
    parallel: int = 16
    hub: str = HUB
    token: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> Self:
        """The options that the environment sets.

        ``FP_ALLOW_PRIVATE``, ``FP_DOWNLOAD``, ``FP_REMOTE_TIMEOUT``, ``FP_HF_ENDPOINT`` (else ``HF_ENDPOINT``) and
        ``HF_TOKEN``. Raises ``UsageError``.
        """
        return cls(
            allow_private=_flag("FP_ALLOW_PRIVATE"),
            download=_flag("FP_DOWNLOAD"),
            timeout=_seconds("FP_REMOTE_TIMEOUT", 30.0),
            hub=(os.environ.get("FP_HF_ENDPOINT") or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"),
            token=os.environ.get("HF_TOKEN", "").strip(),
        )


def _flag(variable: str) -> bool:
    value = os.environ.get(variable, "").strip().lower()
    if value not in _YES | _NO:
        raise UsageError(f"{variable} is to be 1 or 0, not {value!r}")
    return value in _YES


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable, "").strip()
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise UsageError(f"{variable} is to be a number of seconds, at most 3600, not {text!r}")
    return seconds
