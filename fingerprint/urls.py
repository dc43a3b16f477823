"""Which paths are URLs: known before what fetches is imported, as few scans need it."""

from __future__ import annotations

import os
import re
from typing import Final

URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,15})://", re.ASCII)
"""How a URL begins; its scheme is the first group."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a URL (a ``remote.Location`` is one), and no path of this machine."""
    return URL.match(os.fspath(path)) is not None
