"""The JSON Schemas of what the commands print, as data of the package."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from fingerprint.errors import UsageError, clipped


def schema_names() -> list[str]:
    """Names of all schemas, such as ``fp.scan/1``."""
    files = resources.files(__name__).iterdir()
    return sorted(_name(file.name) for file in files if file.name.endswith(".json"))


def schema_text(name: str) -> str:
    """The schema as JSON; raises ``UsageError`` if there is none of that name."""
    if name not in schema_names():
        raise UsageError(f"there is no schema {clipped(name)!r}; `fp schema` lists them")
    return resources.files(__name__).joinpath(name.replace("/", "-") + ".json").read_text(encoding="utf-8")


def schema(name: str) -> dict[str, Any]:
    """The schema as an object; raises ``UsageError`` if there is none of that name."""
    loaded: dict[str, Any] = json.loads(schema_text(name))
    return loaded


def schema_title(name: str) -> str:
    """One line about a schema."""
    return str(schema(name)["title"])


def _name(file: str) -> str:
    stem, _, version = file.removesuffix(".json").rpartition("-")
    return f"{stem}/{version}"
