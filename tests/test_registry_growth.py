"""What keeps a registry of very many models quick: no registration and no scan looks at all of them."""

from __future__ import annotations

import errno
import pathlib
import shutil
import sqlite3
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.synthetic import small_model
from fingerprint.claims import names_same
from fingerprint.errors import RegistryError
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.vocabulary import Depth
from signatures.container import Section
from signatures.database import SCHEMA_VERSION
from signatures.engine import START, Mark
from signatures.keyed import KIND, make_key, with_section
from signatures.records import LOCAL, Registration
from signatures.registry import Registry
from signatures.scan import scan_path
from signatures.signature import sign, write_signature
from signatures.store import Store
from tests.earlier_registry import turn_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from signatures.records import ModelRecord
    from signatures.signature import Signature


@pytest.fixture(scope="module")
def signatures() -> list[Signature]:
    return [sign(small_model(seed, layers=1)) for seed in range(4)]


def test_neither_a_registration_nor_a_scan_looks_at_all_models(
    tmp_path: Path, signatures: list[Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry.open(tmp_path / "registry") as registry:
        registry.register(signatures[0], name="org/m0")
        registry.register(signatures[1], name="org/m1")
    write_signature(tmp_path / "suspect.fpsig", signatures[1])

    def refuse(*_: object) -> None:
        raise AssertionError("all models were looked at")

    monkeypatch.setattr(Store, "models", refuse)
    monkeypatch.setattr(Store, "model_ids", refuse)
    with Registry.open(tmp_path / "registry") as registry:
        registry.register(signatures[2], name="org/m2")
        registry.register(signatures[2], name="org/alias")
        registry.remove("org/m0")
        registry.register(signatures[3], name="lab/m3", origin="lab")
        assert registry.resembling("m3")
        assert registry.names("lab", 9) == ["lab/m3"]
        assert registry.remove_origin("lab") == ("lab/m3",)
        report = scan_path(registry, tmp_path / "suspect.fpsig")
        assert report.error is None
        assert [match.model for match in report.matches] == ["org/m1"]
        assert report.registry.models == 2


@pytest.mark.parametrize(
    "look",
    [
        lambda store: store.find("org/m1"),
        lambda store: store.find(f"sha256:{1:064}"),
        lambda store: store.by_id(1),
        lambda store: store.holder("org/m1"),
        lambda store: store.holder(f"sha256:{1:064}"),
        lambda store: store.same_weights("weights 1", Depth.FULL, "of model 1", "elsewhere"),
        lambda store: store.same_weights("of none", Depth.FULL, None, LOCAL),
        lambda store: store.lookup([bytes(32), b"1" * 32]),
        lambda store: store.digest_rows(1),
        lambda store: store.under_key("of model 1"),
        lambda store: store.has_depth(Depth.FULL),
        lambda store: store.has_depth(Depth.QUICK),
        lambda store: store.mark(),
        lambda store: store.last_id(),
        lambda store: store.resembling("m1"),
        lambda store: store.resembling("Org/M1"),
        lambda store: store.resembling("m"),
        lambda store: store.names("ORG/", 2),
        lambda store: store.names_from("elsewhere"),
        lambda store: store.digest(),
    ],
)
def test_what_is_looked_up_takes_no_longer_among_more_models(tmp_path: Path, look: Callable[[Store], object]) -> None:
    steps = {}
    for count in (2, 400):
        store = Store.open(tmp_path / str(count), method={}, create=True)
        with store.writing():
            for number in range(count):
                digest = (0, "exact", str(number).encode() * 32, 9)
                weights, identity = f"weights {number}", f"sha256:{number:064}"
                key = f"of model {number}" if number < 2 else None
                model = store.add_model(
                    identity, b"", weights=weights, depth=Depth.FULL, counts=(9, 1), digests=[digest], key=key
                )
                origin = "elsewhere" if number < 2 else LOCAL
                store.add_name(model, Registration(f"org/m{number}", *(None,) * 5, origin, datetime.now(UTC), None))
        store.digest()
        store.close()
        store = Store.open(tmp_path / str(count), method={}, create=True)
        steps[count] = _steps(store, look)
        store.close()
    assert steps[400] <= steps[2] + 50


@pytest.mark.parametrize(
    "look",
    [
        lambda store: store.holder("org/m0"),
        lambda store: store.holder(f"sha256:{0:064}"),
        lambda store: store.remove_name("org/alias1"),
        lambda store: store.remove_name("org/m1"),
        lambda store: store.same_weights("weights", Depth.FULL, "key 1", "elsewhere"),
        lambda store: store.same_weights("weights", Depth.FULL, None, "elsewhere"),
    ],
)
def test_a_model_of_many_names_and_weights_under_many_keys_take_no_longer(
    tmp_path: Path, look: Callable[[Store], object]
) -> None:
    steps = {}
    for count in (2, 400):
        store = Store.open(tmp_path / str(count), method={}, create=True)
        with store.writing():
            for number in range(count):
                identity, key = f"sha256:{number:064}", f"key {number}"
                model = store.add_model(
                    identity, b"", weights="weights", depth=Depth.FULL, counts=(9, 1), digests=[], key=key
                )
                for held, name in ((model, f"org/m{number}"), (1, f"org/alias{number}")):
                    store.add_name(held, Registration(name, *(None,) * 5, "elsewhere", datetime.now(UTC), None))
        with store.writing():
            steps[count] = _steps(store, look)
        store.close()
    assert steps[400] <= steps[2] + 50


def _steps(store: Store, look: Callable[[Store], object]) -> int:
    """How many instructions SQLite carries out."""
    taken = [0]

    def step() -> int:
        taken[0] += 1
        return 0

    store._database.set_progress_handler(step, 1)
    look(store)
    store._database.set_progress_handler(None, 1)
    return taken[0]


def test_of_the_same_weights_under_many_keys_none_is_read_but_those_under_the_same(
    tmp_path: Path, signatures: list[Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = Store.read_file
    monkeypatch.setattr(Store, "read_file", lambda store, identity: read.append(identity) or real(store, identity))
    keyed = [with_section(signatures[0], Section(KIND, bytes([number]) * 48)) for number in range(5)]
    with Registry.open(tmp_path) as registry:
        with registry.together():
            models = [registry.register(one, name=f"lab/m{at}", origin="lab").id for at, one in enumerate(keyed)]
        assert len(set(models)) == len(keyed)
        read.clear()
        again = with_section(signatures[0], Section(KIND, bytes([3]) * 49))
        assert registry.register(again, name="lab/again", origin="lab").id == models[3]
        assert read == [keyed[3].identity]


NAMES = (
    "base",
    "org/base",
    "Org/Base_7B",
    "org/base-7b-chat",
    "other/base-7b",
    "x/y/base",
    "org/a.b",
    "e",
    "org/e",
    "e/f",
)


WORDS = ("base", "BASE-7b", "org", "/", "-", "_", " ", "e", "é", "a.b", "%", "\ud800")


@settings(max_examples=300)
@given(
    st.one_of(st.lists(st.sampled_from(WORDS), max_size=7).map("".join), st.text(max_size=5), st.sampled_from(NAMES))
)
def test_a_name_may_mean_the_models_whose_names_are_the_same(resembled: Store, name: str) -> None:
    expected = [one for one in resembled.models() if any(names_same(name, entry.name) for entry in one.registrations)]
    assert list(resembled.resembling(name)) == expected


@pytest.fixture(scope="module")
def resembled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Models with one name each, and one that has two."""
    store = Store.open(tmp_path_factory.mktemp("resembled"), method={}, create=True)
    with store.writing():
        for number, name in enumerate((*NAMES, "org/of-two")):
            model = store.add_model(f"sha256:{number:064}", b"", weights=None, depth="full", counts=(9, 1), digests=[])
            store.add_name(model, Registration(name, *(None,) * 5, LOCAL, datetime.now(UTC), None))
        store.add_name(model, Registration("two/base", *(None,) * 5, LOCAL, datetime.now(UTC), None))
    yield store
    store.close()


def test_names_are_completed_within_a_bound_that_hides_no_other_beginning(resembled: Store) -> None:
    assert resembled.names("ORG/base", 9) == ["org/base", "org/base-7b-chat", "Org/Base_7B"]
    assert resembled.names("org/base", 3) == ["org/base", "org/base-7b-chat", "Org/Base_7B"]
    assert resembled.names("", 3) == ["base", "e", "x/y/base"]
    for nothing in ("org/base%", "org_base", "é", "\udcff", "org/f", "org/base-7b-chat0"):
        assert resembled.names(nothing, 9) == []


@pytest.mark.parametrize(
    ("globs", "found"),
    [
        (["E"], ["e"]),
        (["ORG/BASE[_]*"], ["Org/Base_7B"]),
        (["org/base[A-z]*"], []),  # in lower case there is no "_" between the letters
        (["?", "TWO/*"], ["e", "org/of-two"]),
        (["[!A-z]"], []),
        (["[Z-a]"], []),
        (["[D-f]"], ["e"]),
        (["org/?.[B-b]"], ["org/a.b"]),
        ([], []),
    ],
)
def test_globs_and_names_are_compared_in_lower_case(resembled: Store, globs: list[str], found: list[str]) -> None:
    registry = Registry(resembled, DEFAULT_PARAMETERS)
    assert [record.name for record in registry.matching(globs)] == found


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_interrupts_a_look_at_all_names_is_no_error_of_the_registry(
    resembled: Store, error: type[BaseException]
) -> None:
    def interrupt(name: str) -> bool:
        raise error

    with pytest.raises(error):
        resembled.matching(interrupt)


def test_the_digest_that_a_process_left_holds_until_the_models_change(
    tmp_path: Path, signatures: list[Signature]
) -> None:
    def fresh(folder: Path = tmp_path / "registry") -> str:
        """The digest for a process that has just opened the registry."""
        with Registry.open(folder) as registry:
            return registry.digest

    def opened_and_counted() -> tuple[str, int]:
        with Registry.open(tmp_path / "registry") as registry:
            looked = []
            registry._store._database.set_trace_callback(looked.append)
            return registry.digest, sum("group_concat" in one for one in looked)

    kept = tmp_path / "registry" / "digest"
    with Registry.open(tmp_path / "registry") as registry:
        assert (registry.digest, 0) == opened_and_counted()
        registry.register(signatures[0], name="org/m0")
        one = registry.digest
        assert opened_and_counted() == (one, 0)
        shutil.copytree(tmp_path / "registry", tmp_path / "copy")
        registry.register(signatures[1], name="org/m1")
        two = fresh()
        assert registry.digest == two != one
        registry.remove("org/m1")
        assert opened_and_counted() == (one, 1)
        before = kept.read_bytes()
        with pytest.raises(KeyboardInterrupt):
            _interrupted(registry, signatures[2], look=lambda: registry.digest)
        assert (kept.read_bytes(), registry.digest) == (before, one)
    with Registry.open(tmp_path / "copy") as copy:  # its log goes on under the same numbers
        copy.register(signatures[3], name="org/m3")
        copy.register(signatures[2], name="org/m2")
    other = fresh(tmp_path / "copy")
    shutil.copy(kept, tmp_path / "copy" / "digest")
    assert fresh(tmp_path / "copy") == other != one
    for damaged in (b"", b"\xff", before[:-9], before.replace(b"sha256", b"sha257")):
        kept.write_bytes(damaged)
        assert fresh() == one


def test_the_log_tells_what_came_and_went(tmp_path: Path, signatures: list[Signature]) -> None:
    with Registry.open(tmp_path) as registry:
        store = registry._store
        assert store.mark() == START
        first = registry.register(signatures[0], name="org/m0").id
        mark = store.mark()
        second = registry.register(signatures[1], name="org/m1").id
        registry.register(signatures[1], name="org/alias")
        registry.remove("org/m0")
        assert store.changes(mark) == ([(second, True), (first, False)], store.mark())
        assert store.changes(store.mark()) == ([], store.mark())
        assert store.changes(START) == ([(first, True), (second, True), (first, False)], store.mark())
        assert store.changes(Mark(mark.number, "0" * 16)) is None
        assert store.changes(Mark(99, mark.token)) is None


def test_models_are_counted_by_what_came_and_went(tmp_path: Path, signatures: list[Signature]) -> None:
    with Registry.open(tmp_path) as registry, Registry.open(tmp_path) as other:
        assert registry.count() == 0
        for at, one in enumerate(signatures):
            other.register(one, name=f"org/m{at}")
            assert registry.count() == at + 1
        other.remove("org/m1")
        looked: list[str] = []
        registry._store._database.set_trace_callback(looked.append)
        assert registry.count() == registry.count() == 3
        assert not any("count(*)" in one for one in looked)
        with pytest.raises(KeyboardInterrupt):
            _interrupted(registry, signatures[1], look=registry.count)
        assert registry.count() == 3
        registry.remove("org/m3")
        with Registry.open(tmp_path) as fresh:
            assert registry.count() == fresh.count() == len(fresh.models()) == 2


def test_what_is_registered_together_is_there_whole_and_indexed(tmp_path: Path, signatures: list[Signature]) -> None:
    with Registry.open(tmp_path) as registry:
        with registry.together():
            records = [registry.register(one, name=f"org/m{at}") for at, one in enumerate(signatures)]
            with Registry.open(tmp_path) as other:
                assert other.count() == 0
        assert registry.count() == len(signatures)
        assert registry.index_status().current
        assert registry.check() == ()
        assert registry.load_signature(records[2]).identity == signatures[2].identity


def test_what_fails_together_leaves_nothing(tmp_path: Path, signatures: list[Signature]) -> None:
    with Registry.open(tmp_path) as registry:
        registry.register(signatures[3], name="org/m3")
        with pytest.raises(KeyboardInterrupt):
            _interrupted(registry, signatures[0])
        assert [record.name for record in registry.models()] == ["org/m3"]
        assert registry.check() == ()
        registry.register(signatures[0], name="org/m0")
        assert registry.index_status().current


def test_a_registration_that_fails_together_with_others_is_not_half_done(
    tmp_path: Path, signatures: list[Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with Registry.open(tmp_path) as registry:
        before = registry.register(signatures[0], name="org/m0")
        with registry.together():
            added = registry.register(signatures[1], name="org/m1")
            with monkeypatch.context() as patched:
                patched.setattr(Store, "add_name", fail)
                with pytest.raises(RegistryError, match="disk I/O error"):
                    registry.register(signatures[2], name="org/m0", replace=True)
            assert registry.models() == (before, added)
            last = registry.register(signatures[3], name="org/m3")
        assert registry.models() == (before, added, last)
        assert registry.check() == ()
        assert registry.check_index().problems == ()


def test_nothing_is_done_alone_that_was_to_be_done_together(tmp_path: Path, signatures: list[Signature]) -> None:
    def lose(registry: Registry) -> None:
        with registry.together():
            registry.register(signatures[0], name="org/m0")
            registry._store._database.execute("ROLLBACK")  # as SQLite does when the disk is full
            with pytest.raises(RegistryError, match="taken back"):
                registry.register(signatures[1], name="org/m1")

    with Registry.open(tmp_path) as registry:
        with pytest.raises(RegistryError, match="no transaction"):
            lose(registry)
        assert registry.models() == ()
        assert registry.check() == ()
        registry.register(signatures[1], name="org/m1")
        assert [record.name for record in registry.models()] == ["org/m1"]


def test_a_disk_that_is_full_takes_nothing_from_a_model_that_is_removed_and_registered_together(
    tmp_path: Path, signatures: list[Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def renewed(registry: Registry) -> ModelRecord:
        with registry.together():
            registry.remove("org/m0")
            return registry.register(signatures[0], name="org/m0")

    with Registry.open(tmp_path) as registry:
        before = registry.register(signatures[0], name="org/m0")
        with monkeypatch.context() as patched:
            patched.setattr(pathlib.Path, "write_bytes", write_half)
            with pytest.raises(RegistryError, match="No space left"):
                renewed(registry)
        assert registry.models() == (before,)
        assert registry.check() == ()
        assert list((tmp_path / "pending").iterdir()) == []
        after = renewed(registry)
        assert registry.models() == (after,)
        assert registry.check() == ()


@pytest.mark.parametrize("version", [1, 2])
def test_a_registry_of_an_earlier_version_is_brought_up_to_date(
    tmp_path: Path, signatures: list[Signature], version: int
) -> None:
    key = make_key(bytes(range(32)))
    keyed = with_section(signatures[2], Section(KIND, bytes.fromhex(key.identity) + bytes(40)))
    with Registry.open(tmp_path) as registry:
        for at, one in enumerate((*signatures[:2], keyed)):
            registry.register(one, name=f"org/m{at}")
        registry.remove("org/m1")
        digest, files = registry.digest, {one.name: registry._store.place(one.identity) for one in registry.models()}
    files["org/m0"].unlink()  # what cannot be read does not stand in the way
    turn_back(tmp_path, version)
    with Registry.open(tmp_path) as registry, Registry.open(tmp_path) as other:
        assert registry._store._database.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        assert registry.digest == other.digest == digest
        assert [(one.name, one.key) for one in other.under_key(key.identity)] == [("org/m0", None), ("org/m2", None)]
        assert [one.name for one in other.resembling("M2")] == ["org/m2"]
        registry.remove("org/m0")
        registry.register(signatures[3], name="org/m3")
        assert other.index_status().current
        came = [True, True, False, True] if version == 1 else [True, True, True, False, False, True]
        assert [added for _, added in registry._store.changes(START)[0]] == came


def test_digests_are_looked_up_by_an_index_of_the_database(tmp_path: Path, signatures: list[Signature]) -> None:
    with Registry.open(tmp_path) as registry:
        registry.register(signatures[0], name="org/m0")
        plan = registry._store._database.execute(
            "EXPLAIN QUERY PLAN SELECT digest, model, position, kind, elements FROM digests WHERE digest IN (?, ?)",
            (b"", b""),
        ).fetchall()
        assert all("USING INDEX digests_digest" in row[3] for row in plan), plan


def _interrupted(registry: Registry, signature: Signature, look: Callable[[], object] = lambda: None) -> None:
    with registry.together():
        registry.register(signature, name="org/m9")
        registry.remove(registry.models()[0].name)
        look()
        raise KeyboardInterrupt
