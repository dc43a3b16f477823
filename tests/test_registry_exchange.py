"""Bundles bring models from one registry to another; a stranger's bundle is checked like a suspect."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks.synthetic import small_model
from fingerprint.errors import (
    NameTakenError,
    RegistryError,
    SignatureError,
    SignatureVersionError,
    UnknownModelError,
    UsageError,
    WeightprintError,
)
from fingerprint.parameters import Parameters
from signatures import checked_bundle
from signatures.bundle import is_bundle
from signatures.entries import Entry
from signatures.registry import Registry
from signatures.signature import sign

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from signatures.signature import Signature


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "ours") as found:
        yield found


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of two models, one of them with two names."""
    path = tmp_path / "models.fpbundle"
    with Registry.open(tmp_path / "theirs") as theirs:
        theirs.register(sign(small_model(1)), name="lab/one", owner="Lab", base="lab/base", note="n")
        theirs.register(sign(small_model(1)), name="lab/alias")
        theirs.register(sign(small_model(2)), name="lab/two")
        assert theirs.export(None, path) == 2
    return path


def test_a_bundle_brings_everything_that_was_said(ours: Registry, bundle: Path) -> None:
    assert is_bundle(bundle)
    records = ours.import_(bundle, "lab").records
    assert [record.name for record in records] == ["lab/one", "lab/two"]
    one = ours.get("lab/alias")
    assert (one.name, one.aliases, one.owner, one.base, one.origin) == (
        "lab/one",
        ("lab/alias",),
        "Lab",
        "lab/base",
        "lab",
    )
    claimed = one.registrations[0].claimed
    assert claimed is not None
    assert claimed <= one.registered
    assert ours.load_signature(one).identity == sign(small_model(1)).identity
    assert ours.check() == ()
    assert ours.import_(bundle, "lab").records == records


def test_what_was_checked_is_not_decoded_again_while_others_wait(
    ours: Registry, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[bool] = []
    real = Entry.of

    def of(signature: Signature) -> Entry:
        waiting.append(ours._store.uncommitted())
        return real(signature)

    monkeypatch.setattr(Entry, "of", of)
    monkeypatch.setattr(checked_bundle, "IN_MEMORY", 1000)  # the rest goes through a file
    assert [record.name for record in ours.import_(bundle, "lab").records] == ["lab/one", "lab/two"]
    assert waiting == [False, False]
    assert ours.check() == ()


def test_a_signature_of_more_elements_than_a_database_counts_is_refused(ours: Registry) -> None:
    model = small_model(1)
    vast = tuple(replace(one, shape=(1 << 31, 1 << 31)) for one in model.tensors[:2])
    with pytest.raises(SignatureError, match="elements together"):
        ours.register(sign(replace(model, tensors=vast, neurons=(), channels=(), grams=())), name="lab/vast")


def test_models_are_removed_by_origin(ours: Registry, bundle: Path) -> None:
    ours.register(sign(small_model(1)), name="me/one")
    ours.import_(bundle, "lab")
    record = ours.get("lab/one")
    assert (record.name, record.origin) == ("me/one", "local")
    assert ours.remove_origin("lab") == ("lab/one", "lab/alias", "lab/two")
    assert [(one.name, one.aliases) for one in ours.models()] == [("me/one", ())]
    assert ours.check() == ()


def test_an_import_says_what_is_new(ours: Registry, bundle: Path) -> None:
    ours.register(sign(small_model(2)), name="LAB/two")
    done = ours.import_(bundle, "lab")
    assert (done.new, done.known) == (("lab/one", "lab/alias"), ("lab/two",))
    again = ours.import_(bundle, "again")
    assert (again.new, again.known, again.records) == ((), ("lab/one", "lab/alias", "lab/two"), done.records)


def test_an_origin_of_nothing_is_an_error(ours: Registry, bundle: Path) -> None:
    with pytest.raises(UnknownModelError, match="nothing was imported"):
        ours.remove_origin("lab")
    ours.import_(bundle, "lab")
    with pytest.raises(UnknownModelError, match=r"'models\.fpbundle': there is lab"):
        ours.remove_origin("models.fpbundle")
    assert len(ours.models()) == 2


def test_names_that_are_taken_stop_the_whole_import(ours: Registry, bundle: Path) -> None:
    mine = ours.register(sign(small_model(9)), name="lab/two")
    with pytest.raises(NameTakenError, match="lab/two"):
        ours.import_(bundle, "lab")
    assert ours.models() == (mine,)
    assert ours.check() == ()


def test_some_names_can_be_exported_and_no_others_leave(ours: Registry, bundle: Path, tmp_path: Path) -> None:
    ours.import_(bundle, "lab")
    assert ours.export(["lab/alias"], tmp_path / "part") == 1
    with Registry.open(tmp_path / "third") as third:
        (record,) = third.import_(tmp_path / "part", "friend").records
        assert (record.name, record.aliases) == ("lab/alias", ())
    with pytest.raises(UnknownModelError):
        ours.export(["lab/none"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_registry_of_other_parameters_takes_nothing(bundle: Path, tmp_path: Path) -> None:
    with (
        Registry.open(tmp_path / "other", parameters=Parameters(seed=5)) as other,
        pytest.raises(SignatureError, match="different parameters"),
    ):
        other.import_(bundle, "lab")


def test_a_forged_identity_is_refused(ours: Registry, bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    first = data.index(b"sha256:")
    forged = bytearray(data)
    forged[first + 7 : first + 15] = b"00000000"
    _fix_checksum(forged)
    (tmp_path / "forged").write_bytes(forged)
    with pytest.raises(SignatureError, match="another signature than said"):
        ours.import_(tmp_path / "forged", "lab")


@pytest.mark.parametrize("word", ["../up", "a\x1b[2J", "", "x" * 500])
def test_names_and_labels_of_a_bundle_are_checked(ours: Registry, bundle: Path, tmp_path: Path, word: str) -> None:
    data = bundle.read_bytes()
    forged = _with_record(data, b'"lab/one"', f'"{word}"'.encode("unicode_escape").replace(b"\\x", b"\\u00"))
    (tmp_path / "forged").write_bytes(forged)
    with pytest.raises(SignatureError):
        ours.import_(tmp_path / "forged", "lab")
    assert ours.models() == ()


def test_other_versions_and_origins_are_refused(ours: Registry, bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[8] = 9
    (tmp_path / "later").write_bytes(data)
    with pytest.raises(SignatureVersionError):
        ours.import_(tmp_path / "later", "lab")
    for origin in ("local", "", "a b", "\n"):
        with pytest.raises(UsageError):
            ours.import_(bundle, origin)
    with pytest.raises(WeightprintError, match="no such file"):
        ours.import_(tmp_path / "absent", "lab")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_bundle_changes_nothing(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged-bundle"
    if not folder.exists():
        folder.mkdir()
        with Registry.open(folder / "theirs") as theirs:
            theirs.register(sign(small_model(1, layers=1)), name="lab/one")
            theirs.export(None, folder / "good")
    good = (folder / "good").read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "extend"]))
    if kind == "flip":
        # half of the flips hit the first kilobyte, where the structure is
        at = data.draw(st.one_of(st.integers(0, 1024), st.integers(0, len(good) - 1)))
        bad = bytearray(good)
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        bad = bytearray(good[: data.draw(st.integers(0, len(good) - 1))])
    else:
        bad = bytearray(good + data.draw(st.binary(min_size=1, max_size=40)))
    (folder / "bad").write_bytes(bad)
    with Registry.open(folder / "ours") as ours:
        try:
            ours.import_(folder / "bad", "lab")
        except (SignatureError, RegistryError):
            assert ours.models() == ()
        else:
            assert bad[8:12] != good[8:12]  # the minor version may be another one
            ours.remove_origin("lab")


def _with_record(data: bytes, old: bytes, new: bytes) -> bytes:
    length, _, size = struct.unpack_from("<IIQ", data, 16)
    record = data[32 : 32 + length].replace(old, new)
    forged = bytearray(data[:16] + struct.pack("<IIQ", len(record), 0, size) + record + data[32 + length :])
    _fix_checksum(forged)
    return bytes(forged)


def _fix_checksum(data: bytearray) -> None:
    import zlib

    (length,) = struct.unpack_from("<I", data, 16)
    struct.pack_into("<I", data, 20, zlib.crc32(data[32 : 32 + length]))
