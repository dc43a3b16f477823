"""The registry: registering, removing, finding, listing and exchanging models, and searching their vectors.

This module and what it imports at the top cost no numpy and no FAISS; listing models never needs them.
"""

from __future__ import annotations

import fnmatch
import re
from collections import OrderedDict
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from fingerprint.errors import (
    NameTakenError,
    RegistryBrokenError,
    RegistryError,
    SignatureError,
    UnknownModelError,
    UsageError,
    clipped,
)
from fingerprint.parameters import DEFAULT_PARAMETERS, Parameters
from signatures.records import (
    LOCAL,
    MAX_NOTE,
    DigestHit,
    Holder,
    Imported,
    ModelRecord,
    Registration,
    require_label,
    require_name,
    require_origin,
)
from signatures.store import BUSY_SECONDS, Store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from signatures.engine import Mark
    from signatures.entries import Entry, Holding
    from signatures.index import Float32, Hits
    from signatures.index_folder import Rows
    from signatures.indexes import IndexCheck, Indexes, IndexStatus, Vectors
    from signatures.signature import Signature

_CACHED_SIGNATURES: Final = 32
_CACHED_BYTES: Final = 16 << 20
"""Of signature files: decoded they take three to four times as much."""
_SHOWN_ORIGINS: Final = 5


def default_folder() -> Path:
    """The registry of this user."""
    import platformdirs

    return Path(platformdirs.user_data_dir("weightprint", appauthor=False))


class Registry:
    """A folder of registered models. Several processes may use one at once; an object belongs to one thread."""

    def __init__(self, store: Store, parameters: Parameters) -> None:
        self._store = store
        self._parameters = parameters
        self._open_indexes: Indexes | None = None
        self._cache: OrderedDict[str, tuple[Signature, int]] = OrderedDict()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str] | None = None,
        *,
        create: bool = True,
        parameters: Parameters = DEFAULT_PARAMETERS,
        timeout: float = BUSY_SECONDS,
    ) -> Self:
        """Open the registry in ``folder`` (default: the user's), making it if it is absent and ``create`` is true.

        All its signatures share ``parameters``. ``timeout`` is how many seconds to wait for other processes.
        Raises ``RegistryError`` and the errors below it, ``IncompatibleParametersError``.
        """
        place = default_folder() if folder is None else Path(folder)
        return cls(Store.open(place, method=parameters.to_mapping(), create=create, timeout=timeout), parameters)

    def close(self) -> None:
        """Close the registry; the object is of no more use."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._store.folder

    @property
    def digest(self) -> str:
        """A hash of the set of registered signatures ("sha256:..."), the same wherever they are registered."""
        return self._store.digest()

    @property
    def key(self) -> str:
        """A random name that it was given when it was made: that of its copies too."""
        return self._store.key

    @property
    def mark(self) -> Mark:
        """Where it stands in its log of changes; a copy at the same mark has the same models under the same ids."""
        return self._store.mark()

    def contents(self) -> str:
        """A hash of all models with their ids and names, the bases and origins that are said of them: of whatever
        reports depend on. Goes through all of them."""
        return self._store.contents()

    # Records

    def models(self) -> tuple[ModelRecord, ...]:
        """All models, in the order of their ids."""
        return self._store.models()

    def matching(self, globs: Iterable[str]) -> tuple[ModelRecord, ...]:
        """The models one of whose names or aliases matches one of ``globs`` ("acme/*"), whatever their case.

        Names and globs are compared in lower case, ranges such as ``[A-z]`` included. All names are gone through; the
        rest is read of the models that match.
        """
        pattern = re.compile("|".join(fnmatch.translate(glob.lower()) for glob in globs) or r"(?!)")
        return self._store.matching(lambda name: pattern.match(name.lower()) is not None)

    def resembling(self, name: str) -> tuple[ModelRecord, ...]:
        """The models that somebody may mean who writes ``name`` (see ``fingerprint.claims.names_same``)."""
        return self._store.resembling(name)

    def names(self, prefix: str, most: int) -> list[str]:
        """The first ``most`` names and aliases that begin with ``prefix``, whatever their case, in alphabetical order.

        Where there are more, the very last one is among them, so that all begin with what these have in common.
        """
        return self._store.names(prefix, most)

    def under_key(self, key: str) -> tuple[ModelRecord, ...]:
        """The models whose signature says that it has a sketch under the secret key of that identity (``Key``), and
        those whose signature must be looked at first; see ``ModelRecord.key``."""
        return self._store.under_key(key)

    def note_keys(self, keys: Mapping[int, str | None]) -> None:
        """Note what signatures say that were looked at, by the ids of their models (``None``: they have no such
        sketch), so that nobody needs to look again. Where this is not possible at once it is left."""
        self._store.note_keys(keys)

    def count(self) -> int:
        """How many models there are; ``models`` reads all of them."""
        return self._store.count()

    def last_id(self) -> int:
        """The highest id that was ever given to a model; 0 if none was."""
        return self._store.last_id()

    def has_depth(self, depth: str) -> bool:
        """Whether a model was measured at that depth."""
        return self._store.has_depth(depth)

    def by_id(self, model: int) -> ModelRecord | None:
        """The model with that id, ``None`` if it is gone."""
        return self._store.by_id(model)

    def get(self, name: str) -> ModelRecord:
        """The model with that name, alias or identity; raises ``UnknownModelError``."""
        record = self._store.find(name)
        if record is None:
            raise UnknownModelError(f"no registered model has the name {clipped(name)!r}; `fp list` shows all")
        return record

    def register(
        self,
        signature: Signature,
        *,
        name: str,
        owner: str | None = None,
        license: str | None = None,  # noqa: A002 - the word of the command line and of the record
        revision: str | None = None,
        base: str | None = None,
        note: str | None = None,
        origin: str = LOCAL,
        claimed: datetime | None = None,
        replace: bool = False,
    ) -> ModelRecord:
        """Register a signature under a name and return its model; whole or not at all.

        The same weights under the same name change nothing, not even what is said about them; under another name they
        give the model an alias. Weights are the same if the signatures are, or if all tensors have equal digests,
        were measured at the same depth, come from the same origin, and have a sketch under the same secret key or both
        none, and disclose as much. Raises ``NameTakenError`` if other weights have the name, unless ``replace`` is
        true: then the name changes over to the new weights, and the old ones are forgotten if that was their only name.
        Raises ``UsageError`` for an impossible name or label, ``IncompatibleParametersError``,
        ``MalformedSignatureError`` for a signature that was tampered with.
        """
        from signatures.entries import Entry

        signature.fingerprint.parameters.require_equal(self._parameters)
        if base is not None:
            require_name(base)
        registration = Registration(
            name=require_name(name),
            owner=require_label(owner, "owner"),
            license=require_label(license, "license"),
            revision=require_label(revision, "revision"),
            base=base,
            note=require_label(note, "note", MAX_NOTE),
            origin=require_origin(origin),
            registered=datetime.now(UTC),
            claimed=claimed,
        )
        entry = Entry.of(signature)
        self._indexes().require_engines()
        with self._store.writing():
            model = self._insert(entry, registration, replace=replace)
        self._follow()
        record = self._store.by_id(model)
        if record is None:
            raise UnknownModelError(f"the model {name!r} was removed by another process while it was registered")
        return record

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is registered, imported and removed inside happens whole or not at all, and faster than one by one.

        Other processes that write wait for the end: hundreds or thousands of models are a good number. Searches inside
        see what was done inside, which the index on disk learns at the end. A call that fails leaves nothing of itself,
        and the others go on if its error is caught. Raises ``RegistryBusyError``.
        """
        self._indexes().require_engines()
        with self._store.writing():
            yield
        self._follow()

    def remove(self, name: str) -> None:
        """Remove a name, and with the last name of a model its signature; raises ``UnknownModelError``."""
        self._indexes().require_engines()
        with self._store.writing():
            self._store.remove_name(name)
        self._follow()

    def remove_origin(self, origin: str) -> tuple[str, ...]:
        """Remove all names that were imported from ``origin`` and return them; ``UnknownModelError`` if none was."""
        self._indexes().require_engines()
        with self._store.writing():
            names = self.require_from(origin)
            for name in names:
                self._store.remove_name(name)
        self._follow()
        return names

    def require_from(self, origin: str) -> tuple[str, ...]:
        """All names that were imported from ``origin``; raises ``UnknownModelError`` if there is none."""
        names = self._store.names_from(origin)
        if not names:
            others = self._store.origins(_SHOWN_ORIGINS + 1)
            shown = ", ".join(others[:_SHOWN_ORIGINS]) + (", ..." if len(others) > _SHOWN_ORIGINS else "")
            known = f"there is {shown}" if others else "nothing was imported"
            raise UnknownModelError(f"no registered model comes from the origin {clipped(origin)!r}: {known}")
        return names

    # Exchange

    def export(self, names: Iterable[str] | None, path: str | os.PathLike[str]) -> int:
        """Write a bundle of the models with these names, without their other names (``None``: of everything).

        Returns the number of models; raises ``UnknownModelError``, ``UsageError`` if the file cannot be written.
        """
        from signatures.bundle import BundleEntry, write_bundle

        chosen: dict[int, tuple[ModelRecord, list[Registration]]] = {}
        for record, entry in self._entries(names):
            chosen.setdefault(record.id, (record, []))[1].append(entry)
        found = (
            BundleEntry(record.identity, tuple(entries), self._file(record.identity))
            for record, entries in chosen.values()
        )
        write_bundle(Path(path), len(chosen), found)
        return len(chosen)

    def import_(self, path: str | os.PathLike[str], origin: str) -> Imported:
        """Bring in all models of a bundle under ``origin``, or none, and say which names are new.

        Each signature is checked as a suspect's would be. A name that this registry has for the same weights already
        stays as it is. Raises ``NameTakenError`` for one that it has for other weights, ``SignatureError`` for a
        damaged or forged bundle, ``UsageError`` for an impossible origin (``"local"`` is one).
        """
        from signatures.checked_bundle import checked_bundle

        if require_origin(origin) == LOCAL:
            raise UsageError(f"{LOCAL!r} is the origin of what is registered here; give the import another one")
        self._indexes().require_engines()
        models: dict[int, None] = {}
        new: dict[str, bool] = {}
        with checked_bundle(Path(path), origin, self._parameters) as checked, self._store.writing():
            for entry, registrations in checked:
                for registration in registrations:
                    new.setdefault(registration.name, self._store.holder(registration.name) is None)
                    models[self._insert_imported(entry, registration)] = None
        self._follow()
        found = (self._store.by_id(model) for model in models)
        return Imported(
            tuple(record for record in found if record is not None),
            new=tuple(name for name, is_new in new.items() if is_new),
            known=tuple(name for name, is_new in new.items() if not is_new),
        )

    # Signatures and digests

    def load_signature(self, model: ModelRecord | str) -> Signature:
        """The signature of a model (or of the one with that name); the latest ones are kept in memory.

        Raises ``UnknownModelError`` if it was removed, ``RegistryBrokenError`` if its file is damaged.
        """
        return self._signature(self.get(model).identity if isinstance(model, str) else model.identity)

    def lookup_digests(self, digests: Iterable[bytes]) -> list[DigestHit]:
        """Registered tensors of trained weights that have one of the 32-byte ``digests``, by model and position."""
        return self._store.lookup(digests)

    def holders(self, digests: Iterable[bytes], most: int) -> dict[bytes, list[int]]:
        """The ids of the models that have trained weights with each of these digests, ``most`` of each at most, the
        earliest ones; digests that none has are left out."""
        return self._store.holders(digests, most)

    # Vectors

    def search(self, queries: Float32, n: int) -> Hits:
        """The ``n`` registered models nearest to each of the unit vectors ``queries`` (q, k * k), ties included.

        Every model that is registered at this moment is searched. Raises ``RegistryBrokenError``.
        """
        from signatures.indexes import Vectors

        return self._indexes().search(Vectors.SKETCHES, queries, n)

    def search_slices(self, queries: Float32, n: int) -> Hits:
        """The same for the vectors of sampled slices, by which a quick look is retrieved; see ``slice_vectors``."""
        from signatures.indexes import Vectors

        return self._indexes().search(Vectors.SLICES, queries, n)

    def open_index(self) -> None:
        """Open what ``search`` reads, so that it need not be waited for then. Raises ``RegistryError``."""
        from signatures.indexes import Vectors

        self._indexes().open(Vectors.SKETCHES)

    def catch_up_index(self) -> None:
        """Bring the index to where the registry stands, as a search does. Raises ``RegistryError``."""
        self._indexes().catch_up()

    def index_status(self) -> IndexStatus:
        """What the index on disk covers."""
        return self._indexes().status()

    def rebuild_index(self) -> IndexStatus:
        """Make the index anew from the signatures; raises ``RegistryError`` if it cannot be written."""
        self._indexes().rebuild()
        return self.index_status()

    def check_index(self, queries: int = 200) -> IndexCheck:
        """See ``Indexes.check``; ``check`` names the models whose signature cannot be read."""
        return self._indexes().check(queries)

    def check(self) -> tuple[str, ...]:
        """What is wrong with the registry: nothing, or a line for each problem. Reads every signature."""
        from signatures.entries import Entry

        problems = self._store.problems()
        for record in self.models():
            try:
                entry = Entry.of(self.load_signature(record))
            except RegistryError as error:
                if self._store.by_id(record.id) is not None:
                    problems.append(str(error))
                continue
            facts = (entry.weights, entry.depth, entry.counts)
            recorded = (record.weights, record.depth, (record.parameters, record.tensors))
            if facts != recorded or record.key not in (entry.holding.key or "", None):
                problems.append(f"{record.name}: the record contradicts the signature")
            if sorted(entry.digests) != self._store.digest_rows(record.id) and self._store.by_id(record.id) is not None:
                problems.append(f"{record.name}: the registered digests are not those of the signature")
        problems += [f"{path}: no model has this file" for path in self._store.stray_files()]
        return tuple(problems)

    def _entries(self, names: Iterable[str] | None) -> list[tuple[ModelRecord, Registration]]:
        if names is None:
            return [(record, entry) for record in self.models() for entry in record.registrations]
        found: list[tuple[ModelRecord, Registration]] = []
        for name in dict.fromkeys(names):
            record = self.get(name)
            found.append((record, record.named(name) or record.registrations[0]))
        return found

    def _insert_imported(self, entry: Entry, registration: Registration) -> int:
        """As ``_insert``, but a name that is taken for the same weights stays; the write lock is held."""
        holder = self._store.holder(registration.name)
        if holder is not None and entry.weights is not None and holder.weights == entry.weights:
            return holder.id
        return self._insert(entry, registration, replace=False)

    def _insert(self, entry: Entry, registration: Registration, *, replace: bool) -> int:
        """Bring in a signature under a name and return the model's id; the write lock is held."""
        store = self._store
        same = self._same(entry, registration.origin)
        holder = store.holder(registration.name)
        if holder is not None:
            if same is not None and holder.id == same.id:
                return holder.id
            if not replace:
                raise NameTakenError(
                    f"{registration.name!r} is registered with {self._difference(entry, holder)}; "
                    "choose another name, or replace it"
                )
            store.remove_name(registration.name)
        if same is not None:
            model = same.id
        else:
            model = store.add_model(
                entry.identity,
                entry.data,
                weights=entry.weights,
                depth=entry.depth,
                counts=entry.counts,
                digests=entry.digests,
                key=entry.holding.key,
            )
        store.add_name(model, registration)
        return model

    def _same(self, entry: Entry, origin: str) -> Holder | None:
        """The registered model of the same weights.

        A stranger's signature with our digests may lie about everything else, so that equal digests count only within
        one origin; equal identities mean equal contents.
        """
        if (holder := self._store.holder(entry.identity)) is not None:
            return holder
        if entry.weights is None:
            return None
        found = self._store.same_weights(entry.weights, entry.depth, entry.holding.key, origin)
        return next((one for one in found if self._holding(one) in (entry.holding, None)), None)

    def _holding(self, holder: Holder) -> Holding | None:
        """What a registered signature was made to hold; ``None`` if it cannot be read any more."""
        from signatures.entries import Holding

        with suppress(RegistryError):
            return Holding.of(self._signature(holder.identity))
        return None

    def _difference(self, entry: Entry, holder: Holder) -> str:
        """What tells a new signature from the one that has the name: weights, depth, what it holds, or origin."""
        if entry.weights is None or holder.weights is None:
            return f"another signature ({holder.identity}, at depth {holder.depth!r}), perhaps of other weights"
        if entry.weights != holder.weights:
            return f"other weights ({holder.identity})"
        if entry.depth != holder.depth:
            return f"the same weights, measured at depth {holder.depth!r} instead of {entry.depth!r}"
        holding = self._holding(holder)
        if holding not in (entry.holding, None):
            return f"the same weights, {holding} instead of {entry.holding}"
        record = self._store.by_id(holder.id)
        origin = "" if record is None else f" ({record.origin})"
        return f"the same digests, but by a signature of another origin{origin}"

    def _signature(self, identity: str) -> Signature:
        from signatures.signature import decode

        if identity in self._cache:
            self._cache.move_to_end(identity)
            return self._cache[identity][0]
        data = self._file(identity)
        try:
            signature = decode(data, path=str(self._store.place(identity)))
        except SignatureError as error:
            raise self._broken(identity, str(error)) from error
        if signature.identity != identity:
            raise self._broken(identity, f"{self._store.place(identity)}: the signature is another one than registered")
        self._cache[identity] = (signature, len(data))
        while len(self._cache) > 1 and (
            len(self._cache) > _CACHED_SIGNATURES or sum(size for _, size in self._cache.values()) > _CACHED_BYTES
        ):
            self._cache.popitem(last=False)
        return signature

    def _rows(self, kind: Vectors, model: int) -> Rows | None:
        """Vectors of a model for an index, ``None`` if it is gone."""
        from signatures.codec import decode_slices, decode_vectors
        from signatures.indexes import Vectors

        identity = self._store.identity(model)
        if identity is None:
            return None
        decode = decode_vectors if kind is Vectors.SKETCHES else decode_slices
        with suppress(UnknownModelError):
            data = self._file(identity)
            try:
                return decode(data, path=str(self._store.place(identity)))
            except SignatureError as error:
                raise self._broken(identity, str(error)) from error
        return None

    def _file(self, identity: str) -> bytes:
        """The signature file; raises ``UnknownModelError`` if the model is gone, ``RegistryBrokenError``."""
        data = self._store.read_file(identity)
        if data is None:
            raise self._broken(identity, f"{self._store.place(identity)}: the signature file is absent")
        return data

    def _broken(self, identity: str, problem: str) -> RegistryBrokenError:
        """The error of a signature that cannot be used: what is wrong, in which file, and what to do."""
        record = self._store.find(identity)
        names = clipped(" ".join(entry.name for entry in record.registrations) if record else identity, 300)
        return RegistryBrokenError(
            f"{problem} (put the file back, or take the model out with `fp remove {names}` and register it again; "
            "`fp index check` lists all that is broken)"
        )

    def _follow(self) -> None:
        """Keep the index close, unless more is to come."""
        if not self._store.uncommitted():
            self._indexes().follow()

    def _indexes(self) -> Indexes:
        from signatures.indexes import Indexes

        if self._open_indexes is None:
            store = self._store
            self._open_indexes = Indexes(self.folder, store.key, self._parameters, store, self._rows)
        return self._open_indexes
