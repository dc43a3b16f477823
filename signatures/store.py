"""The registry on disk: an SQLite file of models and digests, and signature files named by their identity.

How it survives ``kill -9``. Every writer holds SQLite's write lock. A new signature file is written and flushed in
``pending/`` before the transaction that mentions it commits, and moved to its place afterwards; a file to be deleted is
moved to ``pending/`` before the commit and deleted afterwards. Whatever is found in ``pending/`` by the next holder of
the lock is therefore settled by the database alone: a mentioned file is moved to its place, any other is deleted.
Readers look in both places.

This module imports neither numpy nor FAISS, so that listing models stays quick.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

from fingerprint.claims import model_first
from fingerprint.errors import (
    RegistryBrokenError,
    RegistryError,
    UnknownModelError,
    UsageError,
    clipped,
)
from signatures.database import (
    DATABASE,
    checked_meta,
    connect,
    create_database,
    has_database,
    require_version,
    translated,
)
from signatures.engine import START, Mark
from signatures.files import write_atomically
from signatures.records import LOCAL, DigestHit, Holder, ModelRecord, Registration
from signatures.signature_files import SignatureFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

BUSY_SECONDS: Final = 60.0
_BATCH: Final = 900
_DIGEST: Final = "digest"
_KEPT_DIGEST: Final = re.compile(r"(?P<number>\d{1,19}) (?P<token>[0-9a-f]*) (?P<digest>sha256:[0-9a-f]{64})\n")


class Store:
    """One connection to a registry on disk. Use it from one thread, and open another one after a fork."""

    def __init__(self, folder: Path, database: sqlite3.Connection, method: Mapping[str, int], timeout: float) -> None:
        self.folder = folder
        self._database = database
        self._timeout = timeout
        self._files = SignatureFiles(folder)
        self._is_writing = False
        self._digest: tuple[Mark, str] | None = None
        self._counted: tuple[Mark, int] | None = None
        self.key = checked_meta(database, folder / DATABASE, method)["uuid"]

    @classmethod
    def open(cls, folder: Path, *, method: Mapping[str, int], create: bool, timeout: float = BUSY_SECONDS) -> Self:
        """Open the registry in ``folder`` for the parameters ``method``.

        Raises ``RegistryError`` if there is none and ``create`` is false, ``RegistryBrokenError`` if it cannot be
        used, ``IncompatibleParametersError`` if it was made for other parameters of the method.
        """
        path = folder / DATABASE
        with translated(path):
            if not has_database(folder):
                if not create:
                    raise RegistryError(f"{folder}: there is no registry; `fp register` makes one")
                create_database(folder, method)
            database = connect(path, timeout)
            try:
                return cls(folder, database, method, timeout)
            except BaseException:
                database.close()
                raise

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    # Reading

    def models(self) -> tuple[ModelRecord, ...]:
        """All models, in the order of their ids."""
        return self._records("", ())

    def model_ids(self) -> dict[int, str]:
        """Ids and identities of all models."""
        with translated(self.folder):
            return dict(self._database.execute("SELECT id, identity FROM models ORDER BY id").fetchall())

    def find(self, name: str) -> ModelRecord | None:
        """The model with that name, alias, or identity."""
        if name.startswith("sha256:"):
            found = self._records("WHERE models.identity = ?", (name,))
        else:
            found = self._records("WHERE models.id IN (SELECT model FROM registrations WHERE name = ?)", (name,))
        return found[0] if found else None

    def holder(self, name: str) -> Holder | None:
        """The same, whatever the number of its names."""
        if name.startswith("sha256:"):
            found = self._holders("WHERE identity = ?", (name,))
        else:
            found = self._holders("WHERE id = (SELECT model FROM registrations WHERE name = ?)", (name,))
        return found[0] if found else None

    def resembling(self, name: str) -> tuple[ModelRecord, ...]:
        """The models that somebody may mean who writes ``name``, in the order of their ids; see ``names_same``."""
        sought = model_first(name).encode(errors="replace").decode()  # no registered name has half a surrogate
        model, organised, _ = sought.partition("/")
        if not model:
            return ()
        if organised:
            where = "WHERE models.id IN (SELECT model FROM registrations WHERE model_first IN (?, ?))"
            return self._records(where, (sought, model))
        where = (
            "WHERE models.id IN (SELECT model FROM registrations"
            " WHERE model_first = ? OR model_first > ? AND model_first < ?)"
        )
        return self._records(where, (model, f"{model}/", f"{model}0"))  # "0" comes after "/"

    def names(self, prefix: str, most: int) -> list[str]:
        """The first ``most`` names that begin with ``prefix``, whatever their case, in alphabetical order.

        Where there are more, the very last one is among them, so that all begin with what these have in common.
        """
        if not prefix.isascii():
            return []
        within = (prefix, f"{prefix}\x7f")  # after all characters of names
        query = "SELECT name FROM registrations WHERE name >= ? AND name < ? ORDER BY name {} LIMIT ?"
        with translated(self.folder):
            found = [row[0] for row in self._database.execute(query.format("ASC"), (*within, most))]
            if len(found) == most:
                found[-1:] = [row[0] for row in self._database.execute(query.format("DESC"), (*within, 1))]
        return found

    def matching(self, matches: Callable[[str], bool]) -> tuple[ModelRecord, ...]:
        """The models one of whose names is one that ``matches``, in the order of their ids.

        Every name is looked at, and of the other models nothing else.
        """
        with translated(self.folder):  # not by a function inside of SQLite, which would hide a Ctrl-C
            names = self._database.execute("SELECT model, name FROM registrations")
            chosen = sorted({model for model, name in names if matches(name)})
        return self._records("WHERE models.id IN (SELECT value FROM json_each(?))", (json.dumps(chosen),))

    def under_key(self, key: str) -> tuple[ModelRecord, ...]:
        """The models with a second sketch under the secret key of that identity, or at which nobody has looked yet."""
        return self._records("WHERE models.key = ? OR models.key IS NULL", (key,))

    def names_from(self, origin: str) -> tuple[str, ...]:
        """The names of that origin, by the ids of their models."""
        with translated(self.folder):
            query = "SELECT name FROM registrations WHERE origin = ? ORDER BY model, id"
            return tuple(row[0] for row in self._database.execute(query, (origin,)))

    def origins(self, most: int) -> tuple[str, ...]:
        """The first ``most`` origins from which something was imported, in alphabetical order."""
        with translated(self.folder):
            query = "SELECT DISTINCT origin FROM registrations WHERE origin != ? ORDER BY origin LIMIT ?"
            return tuple(row[0] for row in self._database.execute(query, (LOCAL, most)))

    def count(self) -> int:
        """How many models there are: those of the last call, and what came and went since by the log."""
        since = None if self._counted is None else self.changes(self._counted[0])
        if self._counted is None or since is None:
            self._counted = self._new_count()
        else:
            moves, mark = since
            self._counted = mark, self._counted[1] + sum(1 if came else -1 for _, came in moves)
        return self._counted[1]

    def last_id(self) -> int:
        """The highest id that was ever given to a model; 0 if none was."""
        with translated(self.folder):
            found = self._database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'models'").fetchone()
            return 0 if found is None else int(found[0])

    def has_depth(self, depth: str) -> bool:
        """Whether a model was measured at that depth."""
        with translated(self.folder):
            query = "SELECT EXISTS (SELECT 1 FROM models WHERE depth = ?)"
            return bool(self._database.execute(query, (depth,)).fetchone()[0])

    def identity(self, model: int) -> str | None:
        """The identity of the model with that id."""
        with translated(self.folder):
            found = self._database.execute("SELECT identity FROM models WHERE id = ?", (model,)).fetchone()
            return None if found is None else str(found[0])

    def mark(self) -> Mark:
        """The newest entry of the log of changes."""
        with translated(self.folder):
            query = "SELECT number, token FROM changes ORDER BY number DESC LIMIT 1"
            found = self._database.execute(query).fetchone()
            return START if found is None else Mark(*found)

    def uncommitted(self) -> bool:
        """Whether this connection is changing the registry: what it sees may be taken back, and nobody else sees it."""
        return self._database.in_transaction

    def changes(self, since: Mark) -> tuple[list[tuple[int, bool]], Mark] | None:
        """Models that came (true) and went after an entry of the log, in that order, and the newest entry.

        ``None`` if the log has no such entry.
        """
        with translated(self.folder):
            query = "SELECT number, token, model, added FROM changes WHERE number >= ? ORDER BY number"
            rows = self._database.execute(query, (since.number,)).fetchall()
        if since != START:
            if not rows or Mark(*rows[0][:2]) != since:
                return None
            rows = rows[1:]
        return [(row[2], bool(row[3])) for row in rows], Mark(*rows[-1][:2]) if rows else since

    def by_id(self, model: int) -> ModelRecord | None:
        """The model with that id."""
        found = self._records("WHERE models.id = ?", (model,))
        return found[0] if found else None

    def same_weights(self, weights: str, depth: str, key: str | None, origin: str) -> list[Holder]:
        """Models of one origin whose tensors have the same digests, measured at the same depth, and with a second
        sketch under the same key or both none, unless nobody has looked yet."""
        same = "weights = ? AND depth = ? AND key"
        named = "EXISTS (SELECT 1 FROM registrations WHERE origin = ? AND model = models.id)"
        values = (weights, depth, key or "", weights, depth, origin)
        return self._holders(f"WHERE ({same} = ? OR {same} IS NULL) AND {named} ORDER BY id", values)

    def lookup(self, digests: Iterable[bytes]) -> list[DigestHit]:
        """All registered tensors with one of these digests, by model and position."""
        wanted = list(dict.fromkeys(digests))
        hits: list[DigestHit] = []
        with translated(self.folder):
            for start in range(0, len(wanted), _BATCH):
                batch = wanted[start : start + _BATCH]
                marks = ",".join("?" * len(batch))
                query = f"SELECT digest, model, position, kind, elements FROM digests WHERE digest IN ({marks})"  # noqa: S608 - only marks are put in
                hits += [DigestHit(*row) for row in self._database.execute(query, batch)]
        return sorted(hits, key=lambda hit: (hit.model, hit.position, hit.kind))

    def holders(self, digests: Iterable[bytes], most: int) -> dict[bytes, list[int]]:
        """The models with a registered tensor of each of these digests, ``most`` of each at most: the earliest ones."""
        query = "SELECT DISTINCT model FROM digests WHERE digest = ? ORDER BY model LIMIT ?"
        found: dict[bytes, list[int]] = {}
        with translated(self.folder):
            for digest in digests:
                if models := [row[0] for row in self._database.execute(query, (digest, most))]:
                    found[digest] = models
        return found

    def digest(self) -> str:
        """A hash of the identities of all models: equal for registries of the same models.

        It is kept in memory, and in a file beside the database, with the newest entry of the log: what was kept holds
        as long as that is the newest.
        """
        mark = self.mark()
        if self._digest is None or self._digest[0] != mark:
            self._digest = mark, self._kept_digest(mark) or self._new_digest(mark)
        return self._digest[1]

    def contents(self) -> str:
        """See ``Registry.contents``."""
        query = """
            SELECT models.id, identity, name, base, origin
            FROM models JOIN registrations ON registrations.model = models.id
            ORDER BY models.id, origin != ?, registrations.id
        """
        found = hashlib.sha256()
        with translated(self.folder):
            for row in self._database.execute(query, (LOCAL,)):
                found.update(repr(row).encode())
        return found.hexdigest()

    def read_file(self, identity: str) -> bytes | None:
        """The signature file of a model, None if it is absent; raises ``UnknownModelError`` if the model is."""
        with translated(self.folder):
            data = self._files.read(identity)
            if data is None and not self._is_known(identity):
                raise UnknownModelError(f"no registered model has the signature {clipped(identity)}")
        return data

    def place(self, identity: str) -> Path:
        """Where the signature file of that identity lies."""
        return self._files.place(identity)

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock; what is done inside happens whole or not at all.

        Raises ``RegistryBusyError`` if another process holds the lock for too long, ``RegistryBrokenError`` if a later
        program has given the registry another version meanwhile. Inside another ``writing`` it is a part of that, which
        goes on as if nothing had been done where this one fails and the error is caught.
        """
        if self._is_writing:
            with translated(self.folder), self._part():
                yield
            return
        with translated(self.folder):
            self._begin()
        self._is_writing = True
        try:
            with translated(self.folder):
                self._settle()
                yield
                self._files.flush()
                self._database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        finally:
            self._is_writing = False
            self._files.forget()
            self._try_to_settle()

    def _begin(self) -> None:
        """Take the write lock."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            require_version(self._database, self.folder / DATABASE)
        except BaseException:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def _part(self) -> Iterator[None]:
        """A part of a transaction, which is done whole or not at all."""
        if not self._database.in_transaction:  # SQLite takes a transaction back by itself when the disk is full, say
            raise RegistryError(f"{self.folder}: what was done together so far was taken back after an error")
        self._database.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK TO part")
                self._database.execute("RELEASE part")
            raise
        self._database.execute("RELEASE part")

    def add_model(
        self,
        identity: str,
        data: bytes,
        *,
        weights: str | None,
        depth: str,
        counts: tuple[int, int],
        digests: Iterable[tuple[int, str, bytes, int]],
        key: str | None = None,
    ) -> int:
        """Add a model without names and return its id; only inside ``writing``.

        ``data`` is the signature file, ``counts`` are parameters and tensors, ``digests`` rows of position, kind,
        digest and elements, ``key`` the identity of the secret key of its second sketch, if it has one.
        """
        self._files.add(identity, data)
        row = (identity, weights, depth, *counts, key or "")
        insert = "INSERT INTO models (identity, weights, depth, parameters, tensors, key) VALUES (?, ?, ?, ?, ?, ?)"
        model = self._database.execute(insert, row).lastrowid
        if model is None:
            raise RegistryBrokenError(f"{self.folder}: the database gave no id to a new model")
        self._database.executemany(
            "INSERT INTO digests (model, position, kind, digest, elements) VALUES (?, ?, ?, ?, ?)",
            ((model, *digest) for digest in digests),
        )
        return model

    def add_name(self, model: int, entry: Registration) -> None:
        """Give a model a name that is free; only inside ``writing``."""
        self._database.execute(
            "INSERT INTO registrations"
            " (name, model_first, model, owner, license, revision, base, note, origin, registered, claimed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.name,
                model_first(entry.name),
                model,
                entry.owner,
                entry.license,
                entry.revision,
                entry.base,
                entry.note,
                entry.origin,
                int(entry.registered.timestamp()),
                None if entry.claimed is None else int(entry.claimed.timestamp()),
            ),
        )

    def remove_name(self, name: str) -> None:
        """Remove a name, and the model if it was the last one; only inside ``writing``."""
        held = None if name.startswith("sha256:") else self.holder(name)
        if held is None:
            raise UnknownModelError(f"no registered model has the name {clipped(name)!r}")
        self._database.execute("DELETE FROM registrations WHERE name = ?", (name,))
        if self._database.execute("SELECT 1 FROM registrations WHERE model = ? LIMIT 1", (held.id,)).fetchone():
            return
        self._database.execute("DELETE FROM digests WHERE model = ?", (held.id,))
        self._database.execute("DELETE FROM models WHERE id = ?", (held.id,))
        self._files.take_out(held.identity)

    def note_keys(self, keys: Mapping[int, str | None]) -> None:
        """Note the secret keys of models at which nobody had looked (``None``: no second sketch), by their ids.

        Nothing is noted while another process holds the lock, or where this one may not write.
        """
        update = "UPDATE models SET key = ? WHERE id = ? AND key IS NULL"
        if keys:
            with suppress(RegistryError), self._without_waiting(), self.writing():
                self._database.executemany(update, ((key or "", model) for model, key in keys.items()))

    # Checking

    def problems(self) -> list[str]:
        """What the database itself finds wrong, models without names, and names that are not found as they should."""
        with translated(self.folder):
            found = [row[0] for row in self._database.execute("PRAGMA integrity_check") if row[0] != "ok"]
            broken = self._database.execute("PRAGMA foreign_key_check").fetchall()
            found += [f"a row of {row[0]} mentions a model that does not exist" for row in broken]
            nameless = "SELECT identity FROM models WHERE id NOT IN (SELECT model FROM registrations)"
            found += [f"model {row[0]} has no name" for row in self._database.execute(nameless)]
            names = self._database.execute("SELECT name, model_first FROM registrations")
            found += [f"{name}: claims do not find this name" for name, turned in names if turned != model_first(name)]
        return found

    def digest_rows(self, model: int) -> list[tuple[int, str, bytes, int]]:
        """Rows of position, kind, digest and elements of one model, in order."""
        query = "SELECT position, kind, digest, elements FROM digests WHERE model = ? ORDER BY position, kind"
        with translated(self.folder):
            return self._database.execute(query, (model,)).fetchall()

    def stray_files(self) -> list[Path]:
        """Files among the signatures that no model has."""
        with translated(self.folder):
            found = self._files.strays(self.model_ids().values())
        if not found:
            return []
        with self.writing():  # nothing is on its way now
            return [path for path in found if path.exists() and not self._is_place(path)]

    def _records(self, where: str, values: tuple[Any, ...]) -> tuple[ModelRecord, ...]:
        query = f"""
            SELECT models.id, identity, depth, parameters, tensors, weights, key,
                   name, owner, license, revision, base, note, origin, registered, claimed
            FROM models JOIN registrations ON registrations.model = models.id {where}
            ORDER BY models.id, origin != ?, registrations.id
        """  # noqa: S608 - ``where`` is one of the constants above
        with translated(self.folder):
            rows = self._database.execute(query, (*values, LOCAL)).fetchall()
        models: dict[int, tuple[tuple[Any, ...], list[Registration]]] = {}
        for row in rows:
            try:
                fields = [*row[7:14], _moment(row[14]), _optional_moment(row[15])]
            except (ValueError, OverflowError, OSError) as error:
                raise RegistryBrokenError(
                    f"{self.folder / DATABASE}: the time at which {row[7]} was registered is not a date"
                ) from error
            models.setdefault(row[0], (row[:7], []))[1].append(Registration(*fields))
        records = ([*head, tuple(entries)] for head, entries in models.values())
        return tuple(ModelRecord(*fields) for fields in records)

    def _holders(self, where: str, values: tuple[Any, ...]) -> list[Holder]:
        query = f"SELECT id, identity, weights, depth FROM models {where}"  # noqa: S608 - as in ``_records``
        with translated(self.folder):
            return [Holder(*row) for row in self._database.execute(query, values)]

    def _kept_digest(self, mark: Mark) -> str | None:
        """The digest that a process has left for all when ``mark`` was the newest entry of the log."""
        try:
            kept = _KEPT_DIGEST.fullmatch((self.folder / _DIGEST).read_text("ascii"))
        except (OSError, ValueError):
            return None
        return kept["digest"] if kept is not None and Mark(int(kept["number"]), kept["token"]) == mark else None

    def _new_count(self) -> tuple[Mark, int]:
        """The newest entry of the log, and how many models there are."""
        query = "SELECT number, token, (SELECT count(*) FROM models) FROM changes ORDER BY number DESC LIMIT 1"
        with translated(self.folder):
            found = self._database.execute(query).fetchone()
        return (START, 0) if found is None else (Mark(*found[:2]), int(found[2]))

    def _new_digest(self, mark: Mark) -> str:
        """The digest of all identities; left for other processes, if it is surely that of ``mark`` and this one may."""
        with translated(self.folder):
            query = "SELECT group_concat(identity, '') FROM (SELECT identity FROM models ORDER BY identity)"
            identities = self._database.execute(query).fetchone()[0] or ""
        digest = f"sha256:{hashlib.sha256(identities.encode()).hexdigest()}"
        if not self.uncommitted() and self.mark() == mark:
            with suppress(UsageError):
                text = f"{mark.number} {mark.token} {digest}\n"
                write_atomically(self.folder / _DIGEST, text.encode("ascii"))
        return digest

    def _is_place(self, path: Path) -> bool:
        """Whether the signature of a model belongs at ``path``."""
        identity = f"sha256:{path.stem}"
        return self.place(identity) == path and self._is_known(identity)

    def _is_known(self, identity: str) -> bool:
        """Whether a model has that identity."""
        return self._database.execute("SELECT 1 FROM models WHERE identity = ?", (identity,)).fetchone() is not None

    def _settle(self) -> None:
        """Bring what other writers left to its end; the write lock is held."""
        for name in (DATABASE, _DIGEST):  # half-made databases: there is a whole one; digests can be made again
            for path in self.folder.glob(f".{name}.*"):
                path.unlink(missing_ok=True)
        self._files.settle(self._is_known)

    def _try_to_settle(self) -> None:
        """Settle at once if nobody else holds the lock; otherwise whoever holds it next does."""
        with self._without_waiting():
            with suppress(sqlite3.Error, OSError, RegistryBrokenError):
                self._begin()
                self._settle()
                self._database.execute("COMMIT")
            with suppress(sqlite3.Error):
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    @contextmanager
    def _without_waiting(self) -> Iterator[None]:
        """Inside, a lock that another process holds is not waited for."""
        try:
            with suppress(sqlite3.Error):
                self._database.execute("PRAGMA busy_timeout = 0")
            yield
        finally:
            with suppress(sqlite3.Error):
                self._database.execute(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _optional_moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else _moment(seconds)
