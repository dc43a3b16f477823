"""The SQLite file of a registry: its tables, how it is made, brought up to date and opened, and its errors."""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from fingerprint.claims import model_first
from fingerprint.errors import (
    IncompatibleParametersError,
    RegistryBrokenError,
    RegistryBusyError,
    RegistryError,
    clipped,
)
from signatures.files import flush_folder, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DATABASE: Final = "registry.sqlite3"
SCHEMA_VERSION: Final = 3
APPLICATION_ID: Final = 0x66707267
_CACHE_KIB: Final = 1 << 16

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE models (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    identity TEXT NOT NULL UNIQUE,
    weights TEXT,
    depth TEXT NOT NULL,
    parameters INTEGER NOT NULL,
    tensors INTEGER NOT NULL
) STRICT;
CREATE INDEX models_weights ON models (weights);
CREATE TABLE registrations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    model INTEGER NOT NULL REFERENCES models (id),
    owner TEXT, license TEXT, revision TEXT, base TEXT, note TEXT,
    origin TEXT NOT NULL,
    registered INTEGER NOT NULL,
    claimed INTEGER
) STRICT;
CREATE INDEX registrations_model ON registrations (model);
CREATE TABLE digests (
    model INTEGER NOT NULL REFERENCES models (id),
    position INTEGER NOT NULL,
    kind TEXT NOT NULL,
    digest BLOB NOT NULL,
    elements INTEGER NOT NULL,
    PRIMARY KEY (model, position, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX digests_digest ON digests (digest);
"""

# Version 2. The log lets an index follow without looking at all models; see ``store.Store.changes``. A token tells the
# entry from one that another registry, or this one before it was restored from a copy, has under the same number.
_SECOND_SCHEMA: Final = """
CREATE TABLE changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    model INTEGER NOT NULL,
    added INTEGER NOT NULL,
    token TEXT NOT NULL DEFAULT (lower(hex(randomblob(8))))
) STRICT;
CREATE TRIGGER model_added AFTER INSERT ON models
BEGIN INSERT INTO changes (model, added) VALUES (new.id, 1); END;
CREATE TRIGGER model_removed AFTER DELETE ON models
BEGIN INSERT INTO changes (model, added) VALUES (old.id, 0); END;
CREATE INDEX models_depth ON models (depth);
INSERT INTO changes (model, added) SELECT id, 1 FROM models ORDER BY id;
"""

# Version 3. ``key`` names the secret key under which a model has a second sketch, so that a check with a key need not
# read the signatures of all models: '' is none, and NULL that nobody has looked yet, as at those of earlier versions.
# ``model_first`` is what names are looked up by that a suspect claims: see ``fingerprint.claims.model_first``.
_THIRD_SCHEMA: Final = """
ALTER TABLE models ADD COLUMN key TEXT;
CREATE INDEX models_key ON models (key);
DROP INDEX models_weights;
CREATE INDEX models_weights ON models (weights, depth, key);
ALTER TABLE registrations ADD COLUMN model_first TEXT NOT NULL DEFAULT '';
CREATE INDEX registrations_model_first ON registrations (model_first);
CREATE INDEX registrations_origin ON registrations (origin, model);
"""


def has_database(folder: Path) -> bool:
    """Whether there is a registry in ``folder``, be it broken; raises ``RegistryError`` if one cannot look."""
    with translated(folder):
        try:
            (folder / DATABASE).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def create_database(folder: Path, method: Mapping[str, int]) -> None:
    """Make an empty registry beside its place and link it there: nobody ever sees half of one."""
    make_folder(folder)
    temporary = folder / f".{DATABASE}.{uuid.uuid4().hex}.tmp"
    try:
        database = sqlite3.connect(temporary, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(_SCHEMA)
            database.executescript(_SECOND_SCHEMA)
            database.executescript(_THIRD_SCHEMA)
            rows = [("uuid", uuid.uuid4().hex), ("method", json.dumps(dict(method), sort_keys=True))]
            database.executemany("INSERT INTO meta (name, value) VALUES (?, ?)", rows)
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        finally:
            database.close()
        _publish(temporary, folder / DATABASE)
        flush_folder(folder)
    except (sqlite3.Error, OSError):
        if not (folder / DATABASE).exists():  # else another process was first, and may have tidied up after us
            raise
    finally:
        for suffix in ("", "-wal", "-shm"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Give ``temporary`` the name ``path`` unless another process was first."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links: two first registrations at once may then collide
        if not path.exists():
            temporary.rename(path)


def connect(path: Path, timeout: float) -> sqlite3.Connection:
    """A connection that waits ``timeout`` seconds for other processes, and whose transactions are begun explicitly."""
    database = sqlite3.connect(path, timeout=timeout, isolation_level=None)
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return database


def _migrate(database: sqlite3.Connection) -> None:
    """From an earlier version to this one, once, whoever comes first."""
    database.execute("BEGIN IMMEDIATE")
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        for script in (_SECOND_SCHEMA, _THIRD_SCHEMA)[version - 1 :]:
            for statement in _statements(script):
                database.execute(statement)
        if version < SCHEMA_VERSION:
            names = database.execute("SELECT name, id FROM registrations").fetchall()
            turned = ((model_first(name), number) for name, number in names)
            database.executemany("UPDATE registrations SET model_first = ? WHERE id = ?", turned)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: ``executescript`` would commit before it runs."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def require_version(database: sqlite3.Connection, path: Path) -> None:
    """Raise ``RegistryBrokenError`` unless the tables are those of this version."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise RegistryBrokenError(
            f"{path}: the registry has version {version}; this program knows version {SCHEMA_VERSION}"
        )


def checked_meta(database: sqlite3.Connection, path: Path, method: Mapping[str, int]) -> dict[str, str]:
    """What the registry says of itself, brought up to date first: ``uuid`` and ``method``.

    Raises ``RegistryBrokenError``, and ``IncompatibleParametersError`` where it was made with another ``method``.
    """
    application = database.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID:
        raise RegistryBrokenError(f"{path}: this is not the database of a registry")
    if database.execute("PRAGMA user_version").fetchone()[0] in {1, 2}:
        _migrate(database)
    require_version(database, path)
    found = dict(database.execute("SELECT name, value FROM meta").fetchall())
    try:
        made_with = json.loads(found["method"]) if "uuid" in found else None
    except (KeyError, ValueError, RecursionError):
        made_with = None
    if not isinstance(made_with, dict):
        raise RegistryBrokenError(f"{path}: the registry does not say what it was made with")
    if made_with != dict(method):
        raise IncompatibleParametersError(
            f"{path}: the registry was made with other parameters of the method: {clipped(found['method'], 500)}"
        )
    return found


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the file system as errors of the registry."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise RegistryBusyError(f"{path}: another process holds the registry; try again later") from error
        if isinstance(error, sqlite3.OperationalError) and code not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise RegistryError(f"{path}: {error}") from error
        raise RegistryBrokenError(f"{path}: {error}") from error
    except OSError as error:
        raise RegistryError(f"{error.filename or path}: {error.strerror}") from error
