"""Digests alone, as the database of 100,000 models of 200 tensors holds them: size, and time of a look-up.

The rows are put straight into the table that registrations fill, and its index is made afterwards: through signatures
it would take a day, and an index that is there already is written anew with every thousand models.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from fingerprint.parameters import DEFAULT_PARAMETERS
from signatures.database import DATABASE
from signatures.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TENSORS = 200
_BATCH = 1000


def fill(folder: Path, models: int) -> dict[str, Any]:
    """A database of ``models`` models of ``TENSORS`` digests each."""
    store = Store.open(folder, method=DEFAULT_PARAMETERS.to_mapping(), create=True)
    database = store._database
    started = time.perf_counter()
    database.execute("DROP INDEX digests_digest")
    for start in range(0, models, _BATCH):
        numbers = range(start + 1, min(start + _BATCH, models) + 1)
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "INSERT INTO models (id, identity, depth, parameters, tensors) VALUES (?, ?, 'full', 1, ?)",
            [(number, f"sha256:{number:064x}", TENSORS) for number in numbers],
        )
        database.executemany(
            "INSERT INTO registrations (name, model, origin, registered) VALUES (?, ?, 'local', 0)",
            [(f"org/m{number}", number) for number in numbers],
        )
        database.executemany("INSERT INTO digests VALUES (?, ?, 'exact', ?, 4096)", _rows(numbers))
        database.execute("COMMIT")
    database.execute("CREATE INDEX digests_digest ON digests (digest)")
    store.close()
    return {
        "models": models,
        "digests": models * TENSORS,
        "seconds": time.perf_counter() - started,
        "bytes": (folder / DATABASE).stat().st_size,
    }


def look_up(folder: Path, models: int, suspects: int) -> dict[str, Any]:
    """Seconds to look up the digests of suspects, half of which are registered, in a database opened anew."""
    random = np.random.default_rng(3)
    seconds = []
    hits = 0
    for _ in range(suspects):
        store = Store.open(folder, method=DEFAULT_PARAMETERS.to_mapping(), create=False)
        known = _digests(int(random.integers(models)) + 1)
        wanted = [*known[::2], *(random.bytes(32) for _ in range(TENSORS // 2))]
        started = time.perf_counter()
        found = store.lookup(wanted)
        seconds.append(time.perf_counter() - started)
        hits += len(found)
        store.close()
    return {
        "digests asked": TENSORS,
        "found": hits / suspects,
        "median seconds": float(np.median(seconds)),
        "longest": max(seconds),
    }


def insert_one(folder: Path, models: int) -> float:
    """Seconds to add a model's digests."""
    store = Store.open(folder, method=DEFAULT_PARAMETERS.to_mapping(), create=False)
    rows = [(position, "exact", digest, 4096) for position, digest in enumerate(_digests(models + 1))]
    started = time.perf_counter()
    with store.writing():
        store.add_model(f"sha256:{models + 1:064x}", b"", weights=None, depth="full", counts=(1, 1), digests=rows)
    took = time.perf_counter() - started
    store.close()
    return took


def _digests(model: int) -> list[bytes]:
    data = np.random.default_rng([7, model]).bytes(32 * TENSORS)
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def _rows(models: range) -> Iterator[tuple[int, int, bytes]]:
    for model in models:
        for position, digest in enumerate(_digests(model)):
            yield model, position, digest
