"""A damaged registry says what is wrong; listing it needs neither numpy nor FAISS."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from benchmarks.synthetic import small_model
from fingerprint.errors import (
    IncompatibleParametersError,
    MalformedSignatureError,
    NameTakenError,
    RegistryBrokenError,
    RegistryBusyError,
)
from fingerprint.parameters import Parameters
from fingerprint.vocabulary import Content
from signatures import registry as registry_module
from signatures.registry import Registry
from signatures.signature import sign


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Registry.open(tmp_path / "registry") as registry:
        registry.register(sign(small_model(1)), name="org/one")
        registry.register(sign(small_model(2)), name="org/two")
    return tmp_path / "registry"


def test_a_file_that_is_no_database_is_broken(folder: Path) -> None:
    (folder / "registry.sqlite3").write_bytes(b"x" * 5000)
    with pytest.raises(RegistryBrokenError, match=r"registry\.sqlite3"):
        Registry.open(folder)


def test_a_database_of_another_program_is_not_used(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "registry.sqlite3")
    other.execute("CREATE TABLE t (a)")
    other.close()
    with pytest.raises(RegistryBrokenError, match="not the database of a registry"):
        Registry.open(tmp_path)


@pytest.mark.parametrize("method", ["", "{", "[]", "[" * 100_000])
def test_a_registry_that_does_not_say_what_it_was_made_with_is_broken(folder: Path, method: str) -> None:
    with closing(sqlite3.connect(folder / "registry.sqlite3")) as database, database:
        database.execute("UPDATE meta SET value = ? WHERE name = 'method'", (method,))
    with pytest.raises(RegistryBrokenError, match="what it was made with"):
        Registry.open(folder)


@pytest.mark.parametrize("column", ["registered", "claimed"])
@pytest.mark.parametrize("moment", [-(1 << 62), 1 << 40, 1 << 62])
def test_a_time_that_is_no_date_is_damage_and_does_not_keep_its_model(folder: Path, column: str, moment: int) -> None:
    with closing(sqlite3.connect(folder / "registry.sqlite3")) as database, database:
        database.execute(f"UPDATE registrations SET {column} = ? WHERE name = 'org/two'", (moment,))
    with Registry.open(folder) as registry:
        for read in (registry.models, registry.check, lambda: registry.get("org/two")):
            with pytest.raises(RegistryBrokenError, match="org/two was registered is not a date"):
                read()
        registry.remove("org/two")
        assert [record.name for record in registry.models()] == ["org/one"]


def test_a_registry_of_a_later_version_is_not_used(folder: Path) -> None:
    database = sqlite3.connect(folder / "registry.sqlite3")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(RegistryBrokenError, match="version 99"):
        Registry.open(folder)


def test_a_registry_that_gets_a_later_version_while_it_is_open_is_not_written_to(folder: Path) -> None:
    with Registry.open(folder) as registry:
        before = registry.models()
        database = sqlite3.connect(folder / "registry.sqlite3")
        database.execute("PRAGMA user_version = 99")
        database.close()
        for change in (lambda: registry.remove("org/one"), lambda: registry.register(sign(small_model(3)), name="a")):
            with pytest.raises(RegistryBrokenError, match="version 99"):
                change()
        registry.note_keys({1: None})
        assert registry.models() == before


def test_a_registry_of_other_parameters_is_not_used(folder: Path) -> None:
    with pytest.raises(IncompatibleParametersError):
        Registry.open(folder, parameters=Parameters(seed=5))
    other = sign(replace(small_model(1), parameters=Parameters(digest_block=4096)))
    with Registry.open(folder) as registry, pytest.raises(IncompatibleParametersError):
        registry.register(other, name="org/other")


def test_a_damaged_signature_file_is_named(folder: Path) -> None:
    with Registry.open(folder) as registry:
        record = registry.get("org/one")
        (path,) = folder.glob(f"signatures/*/{record.identity[7:]}.fpsig")
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
        with pytest.raises(RegistryBrokenError, match=path.name):
            registry.load_signature(record)
        assert [path.name in problem for problem in registry.check()] == [True]
        path.unlink()
        with pytest.raises(RegistryBrokenError, match="absent"):
            registry.load_signature(record)
        assert len(registry.check()) == 1
        assert registry.load_signature("org/two")


def test_a_search_does_not_go_on_without_a_model_that_it_cannot_read(folder: Path) -> None:
    with Registry.open(folder) as registry:
        (path,) = folder.glob(f"signatures/*/{registry.get('org/one').identity[7:]}.fpsig")
        path.write_bytes(b"")
        for file in (folder / "index").iterdir():
            file.unlink()
        import numpy as np

        with pytest.raises(RegistryBrokenError, match=path.name):
            registry.search(np.eye(256, dtype=np.float32)[:1], 1)


def test_a_swapped_signature_file_is_noticed(folder: Path) -> None:
    with Registry.open(folder) as registry:
        one, two = (
            folder.glob(f"signatures/*/{registry.get(name).identity[7:]}.fpsig") for name in ("org/one", "org/two")
        )
        next(one).write_bytes(next(two).read_bytes())
        with pytest.raises(RegistryBrokenError, match="another one than registered"):
            registry.load_signature("org/one")


def test_rows_that_contradict_the_signatures_are_reported(folder: Path) -> None:
    database = sqlite3.connect(folder / "registry.sqlite3")
    database.execute("UPDATE models SET parameters = 5 WHERE id = 1")
    database.execute("UPDATE models SET key = '0123456789abcdef' WHERE id = 2")
    database.execute("DELETE FROM digests WHERE model = 2 AND position = 0")
    database.commit()
    database.close()
    (folder / "signatures" / "ab").mkdir(exist_ok=True)
    (folder / "signatures" / "ab" / "stray.fpsig").write_bytes(b"")
    with Registry.open(folder) as registry:
        problems = "\n".join(registry.check())
    assert "org/one: the record contradicts the signature" in problems
    assert "org/two: the record contradicts the signature" in problems
    assert "org/two: the registered digests" in problems
    assert "stray.fpsig: no model has this file" in problems
    assert len(problems.splitlines()) == 4


def test_a_check_waits_for_writers_only_to_be_sure_of_what_is_wrong(folder: Path) -> None:
    with Registry.open(folder, timeout=0) as registry, closing(sqlite3.connect(folder / "registry.sqlite3")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert registry.check() == ()
        stray = registry._store.place(f"sha256:{7:064}")
        stray.parent.mkdir()
        stray.write_bytes(b"")
        with pytest.raises(RegistryBusyError):
            registry.check()
        other.execute("ROLLBACK")
        assert registry.check() == (f"{stray}: no model has this file",)


def test_a_signature_that_was_tampered_with_in_memory_is_refused(folder: Path) -> None:
    signature = sign(small_model(5))
    with Registry.open(folder) as registry, pytest.raises(MalformedSignatureError, match="identity"):
        registry.register(replace(signature, fingerprint=small_model(6)), name="org/forged")


def test_weights_are_the_same_in_another_container_and_order(folder: Path) -> None:
    model = small_model(1)
    other = replace(model, format="pytorch", tensors=model.tensors[::-1], neurons=())
    with Registry.open(folder) as registry:
        first = registry.get("org/one")
        assert registry.register(sign(other), name="org/one") == first
        assert registry.register(sign(other), name="org/again").aliases == ("org/again",)
        assert len(registry.models()) == 2


def test_equal_digests_from_a_stranger_make_no_alias(folder: Path) -> None:
    """Digests can be copied out of a signature and put beside sketches of something else."""
    model = small_model(1)
    forged = replace(model, neurons=(), claims={"a": "b"})
    with Registry.open(folder) as registry:
        record = registry.register(sign(forged), name="evil/one", origin="evil")
        assert record.aliases == ()
        assert len(registry.models()) == 3
        with pytest.raises(NameTakenError, match="another origin"):
            registry.register(sign(forged), name="org/one", origin="evil")


def test_incomplete_weights_are_the_same_only_by_signature(folder: Path) -> None:
    part = replace(small_model(1), complete=False)
    with Registry.open(folder) as registry:
        record = registry.register(sign(part), name="org/part")
        assert (record.name, record.weights) == ("org/part", None)
        assert registry.register(sign(part), name="org/part") == record
        with pytest.raises(NameTakenError, match="other weights"):
            registry.register(sign(replace(part, claims={})), name="org/part")


def test_only_trained_numbers_are_looked_up_and_many_at_once(folder: Path) -> None:
    model = small_model(1)
    tensors = tuple(replace(one, content=Content.CONSTANT) if one.layer == 0 else one for one in model.tensors)
    odd = sign(replace(model, tensors=tensors, claims={}))
    with Registry.open(folder) as registry:
        registry.remove("org/one")
        registry.register(odd, name="org/odd")
        wanted = [one.digest for one in tensors] + [number.to_bytes(32, "big") for number in range(3000)]
        found = {hit.position for hit in registry.lookup_digests(wanted)}
    assert found == {position for position, one in enumerate(tensors) if one.layer != 0}


def test_the_latest_signatures_are_kept_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry.open(folder) as registry:
        assert registry.load_signature("org/one") is registry.load_signature("org/one")
        monkeypatch.setattr(registry_module, "_CACHED_SIGNATURES", 1)
        first = registry.load_signature("org/one")
        registry.load_signature("org/two")
        assert registry.load_signature("org/one") is not first


def test_registries_of_the_same_models_have_one_digest(folder: Path, tmp_path: Path) -> None:
    with Registry.open(folder) as one, Registry.open(tmp_path / "other") as other:
        other.register(sign(small_model(2)), name="a")
        assert one.digest != other.digest
        other.register(sign(small_model(1)), name="b")
        assert one.digest == other.digest


def test_listing_models_imports_neither_numpy_nor_faiss(folder: Path) -> None:
    program = (
        "import sys; from signatures.registry import Registry; r = Registry.open(sys.argv[1], create=False);"
        "print([m.name for m in r.models()], r.digest[:6], r.get('org/one').parameters > 0);"
        "print(sorted({'numpy', 'faiss', 'torch', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert found.stdout.splitlines() == ["['org/one', 'org/two'] sha256 True", "[]"]
