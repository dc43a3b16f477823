"""Registries as earlier versions of the program left them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from signatures.database import DATABASE

if TYPE_CHECKING:
    from pathlib import Path


def turn_back(folder: Path, version: int) -> None:
    """Take out of the registry in ``folder`` what ``version`` (1 or 2) did not have."""
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        database.executescript(
            "DROP INDEX models_key; DROP INDEX models_weights; CREATE INDEX models_weights ON models (weights);"
            "ALTER TABLE models DROP COLUMN key; DROP INDEX registrations_origin;"
            "DROP INDEX registrations_model_first; ALTER TABLE registrations DROP COLUMN model_first;"
            "PRAGMA user_version = 2"
        )
        if version == 1:
            database.executescript(
                "DROP TRIGGER model_added; DROP TRIGGER model_removed; DROP TABLE changes; DROP INDEX models_depth;"
                "PRAGMA user_version = 1"
            )
