"""A second sketch under a secret key: sealed, carried along, confirmed by the right key and by no other."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.errors import SignatureError, UsageError, WrongKeyError
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.signs import Stream, sample_indices
from signatures import keyed_check
from signatures.budget import DEFAULT_LIMIT
from signatures.container import MAX_FILE_BYTES, Section
from signatures.database import DATABASE
from signatures.keyed import (
    KEYED_BYTES,
    KIND,
    key_identity,
    keyed_fingerprint,
    keyed_section,
    make_key,
    read_key,
    seal,
    unseal,
    with_section,
)
from signatures.keyed_check import check_scan
from signatures.registry import Registry
from signatures.scan import scan_path
from signatures.signature import decode, encode, read_signature, sign
from tests.earlier_registry import turn_back
from tests.reader80 import read

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli_support import Program

pytest_plugins = ["tests.cli_fixtures"]

FIRST, SECOND = (make_key(np.random.default_rng(seed).bytes(32)) for seed in (1, 2))


def weights(seed: int, layers: int = 2, width: int = 96, neurons: int = 160) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.05).astype(np.float32)

    made = {"model.embed_tokens.weight": matrix(600, width)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        made[f"{name}.input_layernorm.weight"] = (1 + matrix(width)).astype(np.float32)
        made[f"{name}.post_attention_layernorm.weight"] = (1 + matrix(width)).astype(np.float32)
        for part in "qkvo":
            made[f"{name}.self_attn.{part}_proj.weight"] = matrix(width, width)
        made[f"{name}.mlp.gate_proj.weight"] = matrix(neurons, width)
        made[f"{name}.mlp.up_proj.weight"] = matrix(neurons, width)
        made[f"{name}.mlp.down_proj.weight"] = matrix(width, neurons)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("keyed")
    for name, seed in (("a", 1), ("b", 2)):
        save_file(weights(seed), place / f"{name}.safetensors")
    tuned = {name: w + np.float32(0.01) * w.std() for name, w in weights(1).items()}
    save_file(tuned, place / "tuned.safetensors")
    for name, key in (("first.key", FIRST), ("second.key", SECOND)):
        (place / name).write_bytes(key.material)
    return place


@pytest.fixture(scope="module")
def section(folder):
    with open_checkpoint(folder / "a.safetensors") as checkpoint:
        return keyed_section(checkpoint, FIRST, sign(fingerprint(checkpoint)))


def test_sealing_hides_the_content_and_notices_the_wrong_key_and_any_change():
    content = b"samples " * 100
    sealed = seal(content, FIRST, "a")
    assert seal(content, FIRST, "a") == sealed
    assert content[:8] not in sealed
    assert sealed[:8].hex() == FIRST.identity
    assert unseal(sealed, FIRST, "a") == content
    for data, key, bound in (
        (sealed, SECOND, "a"),
        (sealed, FIRST, "b"),
        (sealed[:-1], FIRST, "a"),
        (sealed[:20], FIRST, "a"),
        (sealed[:60] + b"x" + sealed[61:], FIRST, "a"),
    ):
        with pytest.raises(WrongKeyError, match="another key, another signature, or damaged"):
            unseal(data, key, bound)


def test_a_keyed_sketch_cannot_be_moved_to_another_signature(folder, section):
    with open_checkpoint(folder / "b.safetensors") as checkpoint:
        moved = with_section(sign(fingerprint(checkpoint)), section)
    assert key_identity(moved) == FIRST.identity
    with pytest.raises(WrongKeyError, match="another signature"):
        keyed_fingerprint(moved, FIRST)


def test_a_key_gives_a_seed_of_its_own_and_does_not_show_itself():
    seeds = {FIRST.parameters.seed, SECOND.parameters.seed, DEFAULT_PARAMETERS.seed}
    assert len(seeds) == 3
    assert replace(FIRST.parameters, seed=DEFAULT_PARAMETERS.seed) == DEFAULT_PARAMETERS
    assert FIRST.identity != SECOND.identity
    assert repr(FIRST.material) not in repr(FIRST)


@pytest.mark.parametrize(("material", "message"), [(b"short", "at least 32 bytes"), (b"a" * 64, "random")])
def test_a_key_that_is_none_is_refused(material, message, tmp_path):
    (tmp_path / "key").write_bytes(material)
    with pytest.raises(UsageError, match=message):
        read_key(tmp_path / "key")


def test_the_section_is_small_discloses_no_names_and_is_ignored_by_a_stranger(folder, section, fp: Program, tmp_path):
    assert len(section.data) < KEYED_BYTES * 1.3
    assert DEFAULT_LIMIT + 2 * KEYED_BYTES < MAX_FILE_BYTES
    target = tmp_path / "a.fpsig"
    assert fp("sketch", folder / "a.safetensors", "-o", target, "--key", folder / "first.key").status == 0
    signature = read_signature(target)
    assert key_identity(signature) == FIRST.identity
    assert encode(decode(encode(signature))) == encode(signature)
    head = read(target.read_bytes())
    assert head["identity"] == signature.identity
    keyed = keyed_fingerprint(signature, FIRST)
    assert {record.name for record in keyed.tensors} == {""}
    assert not any(record.digest for record in keyed.tensors)
    assert FIRST.material not in target.read_bytes()
    # The same weights and key give the same identity; without a key there is another one.
    again = with_section(signature, section)
    assert again.identity == signature.identity
    assert fp("sketch", folder / "a.safetensors", "-o", tmp_path / "plain.fpsig").status == 0
    assert read_signature(tmp_path / "plain.fpsig").identity != signature.identity


def test_the_key_confirms_a_relative_and_no_stranger(folder, fp: Program, tmp_path):
    key = folder / "first.key"
    registry = tmp_path / "registry"
    for name in ("a", "b"):
        ran = fp("register", folder / f"{name}.safetensors", "--name", f"x/{name}", "--key", key, registry=registry)
        assert ran.status == 0
    ran = fp("scan", folder / "tuned.safetensors", "--key", key, "--format", "json", registry=registry)
    (report,) = json.loads(ran.out)
    confirmed = {check["model"]: check["confirmed"] for check in report["keyed"]}
    assert confirmed == {"x/a": True, "x/b": False}
    assert [check["matched"] for check in report["keyed"]] == [True, False]
    text = fp("scan", folder / "tuned.safetensors", "--key", key, registry=registry).out
    assert "confirmed, p =" in text
    other = fp("scan", folder / "tuned.safetensors", "--key", folder / "second.key", registry=registry).out
    assert f"no registered model has a sketch under key {SECOND.identity} that can be opened" in " ".join(other.split())
    assert "not checked with key" in other


def test_a_check_with_a_key_reads_no_signature_without_it(folder, fp: Program, tmp_path):
    key, registry = folder / "first.key", tmp_path / "registry"
    fp("register", folder / "a.safetensors", "--name", "x/a", "--key", key, registry=registry)
    fp("register", folder / "b.safetensors", "--name", "x/b", registry=registry)
    with Registry.open(registry) as opened:
        report = scan_path(opened, folder / "tuned.safetensors")
        (other,) = (record for record in opened.models() if record.key == "")
        opened._store.place(other.identity).unlink()
    with Registry.open(registry) as opened:
        checked = check_scan(opened, report, folder / "tuned.safetensors", FIRST)
    assert {check.model: check.confirmed for check in checked.keyed} == {"x/a": True}


def test_what_could_not_be_read_when_a_registry_was_brought_up_to_date_is_looked_at_later(
    folder, fp: Program, tmp_path
):
    key, registry, suspect = folder / "first.key", tmp_path / "registry", folder / "tuned.safetensors"
    fp("register", folder / "a.safetensors", "--name", "x/a", "--key", key, registry=registry)
    fp("register", folder / "b.safetensors", "--name", "x/b", registry=registry)
    turn_back(registry, 2)
    with Registry.open(registry) as opened:
        assert [record.key for record in opened.models()] == [None, None]
        assert opened.check() == ()
        place = opened._store.place(opened.get("x/a").identity)
        report = scan_path(opened, suspect)
    place.rename(tmp_path / "kept")
    with Registry.open(registry) as opened:
        checked = check_scan(opened, report, suspect, FIRST)
        assert (checked.keyed, [record.key for record in opened.models()]) == ((), [None, ""])
        assert any("x/a cannot be compared" in note and "absent" in note for note in checked.notes)
    (tmp_path / "kept").rename(place)
    with Registry.open(registry) as opened, closing(sqlite3.connect(registry / DATABASE)) as other:
        other.execute("BEGIN IMMEDIATE")  # what cannot be noted at once is left
        assert [check.confirmed for check in check_scan(opened, report, suspect, FIRST).keyed] == [True]
        assert opened.get("x/a").key is None
        other.execute("ROLLBACK")
        assert [check.confirmed for check in check_scan(opened, report, suspect, FIRST).keyed] == [True]
        assert [record.key for record in opened.models()] == [FIRST.identity, ""]
        assert [record.name for record in opened.under_key(FIRST.identity)] == ["x/a"]
        assert opened.under_key(SECOND.identity) == ()
        assert opened.check() == ()


def test_a_key_that_cannot_be_tried_hides_neither_matches_nor_other_models(folder, section, fp: Program, tmp_path):
    key, registry = folder / "first.key", tmp_path / "registry"
    for name in ("a", "b"):
        fp("sketch", folder / f"{name}.safetensors", "-o", tmp_path / f"{name}.fpsig")
    first, second = (read_signature(tmp_path / f"{name}.fpsig") for name in ("a", "b"))
    forged = Section(KIND, section.data[:8] + b"x" * 200)
    # With this section a file may have so many zeros, and without it it may not.
    large = Section(KIND, section.data[:8] + np.random.default_rng(3).bytes(5_200_000))
    bomb = replace(second, extra=(Section("ZZZZ", bytes(33 << 20)),))
    (tmp_path / "a.fpsig").write_bytes(encode(with_section(first, section)))
    with Registry.open(registry) as opened:
        for name, signature, held in (("a", first, section), ("b", second, forged), ("c", bomb, large)):
            opened.register(with_section(signature, held), name=f"x/{name}", origin=f"of-{name}")
    ran = fp("scan", folder / "tuned.safetensors", "--key", key, "--format", "json", registry=registry)
    (report,) = json.loads(ran.out)
    assert {check["model"]: check["confirmed"] for check in report["keyed"]} == {"x/a": True}
    for name in ("x/b", "x/c"):
        assert any(f"{name}: the keyed sketch cannot be opened" in note for note in report["notes"])
    ran = fp("scan", tmp_path / "a.fpsig", "--key", key, "--format", "json", registry=registry)
    (report,) = json.loads(ran.out)
    assert (ran.status, report["verdict"], report["error"]) == (1, "match", None)
    assert any("a key needs the weights" in note for note in report["notes"])


def test_models_under_a_key_that_are_gone_or_damaged_hide_no_other(folder, fp: Program, tmp_path, monkeypatch):
    key, registry, suspect = folder / "first.key", tmp_path / "registry", folder / "tuned.safetensors"
    for name in ("a", "b"):
        fp("register", folder / f"{name}.safetensors", "--name", f"x/{name}", "--key", key, registry=registry)
    with Registry.open(registry) as opened:
        report = scan_path(opened, suspect)
        records = opened.under_key(FIRST.identity)
    with Registry.open(registry) as opened:
        opened.remove("x/b")
        monkeypatch.setattr(Registry, "under_key", lambda *_: records)
        checked = check_scan(opened, report, suspect, FIRST)
        assert {check.model: check.confirmed for check in checked.keyed} == {"x/a": True}
        opened._store.place(records[0].identity).write_bytes(b"nothing")
    with Registry.open(registry) as opened, pytest.raises(SignatureError, match="x/a cannot be compared"):
        check_scan(opened, report, suspect, FIRST)


def test_signatures_under_a_key_are_opened_one_after_the_other(folder, fp: Program, tmp_path, monkeypatch):
    key, registry, suspect = folder / "first.key", tmp_path / "registry", folder / "tuned.safetensors"
    for name in ("a", "b"):
        fp("register", folder / f"{name}.safetensors", "--name", f"x/{name}", "--key", key, registry=registry)
    steps = []
    for name in ("keyed_fingerprint", "measure_keyed", "compare_fingerprints"):
        real = getattr(keyed_check, name)
        monkeypatch.setattr(keyed_check, name, lambda *a, n=name, r=real, **k: steps.append(n) or r(*a, **k))
    with Registry.open(registry) as opened:
        checked = check_scan(opened, scan_path(opened, suspect), suspect, FIRST)
        compared = ["keyed_fingerprint", "compare_fingerprints"]
        assert steps[-5:] == ["keyed_fingerprint", "measure_keyed", "compare_fingerprints", *compared]
        # The correction is for both, though the first was compared before the second was known.
        opened.remove("x/b")
        alone = check_scan(opened, scan_path(opened, suspect), suspect, FIRST)
    assert [check.model for check in (*checked.keyed, *alone.keyed)] == ["x/a", "x/b", "x/a"]
    assert checked.keyed[0].log10_p == pytest.approx(alone.keyed[0].log10_p + np.log10(2))


def test_a_check_that_fails_for_want_of_memory_hides_no_match(folder, fp: Program, tmp_path, monkeypatch):
    def fails(*_):
        raise MemoryError

    key, registry = folder / "first.key", tmp_path / "registry"
    fp("register", folder / "a.safetensors", "--name", "x/a", "--key", key, registry=registry)
    monkeypatch.setattr("signatures.keyed_check.check_scan", fails)
    [report] = fp("scan", folder / "tuned.safetensors", "--key", key, "--format", "json", registry=registry).objects
    assert report["verdict"] == "match"
    assert any("the check with the key failed" in note and "MemoryError" in note for note in report["notes"])


def test_comparing_with_a_wrong_key_or_a_signature_is_refused_with_a_reason(folder, fp: Program, tmp_path):
    target = tmp_path / "a.fpsig"
    fp("sketch", folder / "a.safetensors", "-o", target, "--key", folder / "first.key")
    wrong = fp("compare", target, folder / "tuned.safetensors", "--key", folder / "second.key")
    assert wrong.status == 2
    assert f"made with key {FIRST.identity}" in wrong.err
    assert fp("compare", target, target, "--key", folder / "first.key").status == 2
    fp("sketch", folder / "a.safetensors", "-o", tmp_path / "plain.fpsig")
    none = fp("compare", tmp_path / "plain.fpsig", folder / "tuned.safetensors", "--key", folder / "first.key")
    assert "no sketch under a secret key" in none.err
    right = fp("compare", target, folder / "tuned.safetensors", "--key", folder / "first.key", "--format", "json")
    (report,) = json.loads(right.out)
    assert report["keyed"][0]["confirmed"]


def test_a_match_forged_against_the_public_samples_is_not_confirmed(folder, fp: Program, tmp_path):
    """The public seed samples 64 of 2,048 rows: those are the victim's, all others a stranger's."""
    victim, made = (weights(seed, layers=1, width=64, neurons=2048) for seed in (1, 2))
    rows = sample_indices(DEFAULT_PARAMETERS.seed, Stream.AXIS_SAMPLE, 2048, 64)
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        made[name][rows] = victim[name][rows]
    save_file(victim, tmp_path / "victim.safetensors")
    save_file(made, tmp_path / "forged.safetensors")
    key = folder / "first.key"
    fp("sketch", tmp_path / "victim.safetensors", "-o", tmp_path / "victim.fpsig", "--key", key)
    both = (tmp_path / "victim.fpsig", tmp_path / "forged.safetensors", "--key", key)
    (report,) = json.loads(fp("compare", *both, "--format", "json").out)
    public = min(e["log10_p"] for match in report["matches"] for e in match["evidence"] if e["test"] == "align")
    assert public < -12
    (check,) = report["keyed"]
    assert check["matched"]
    assert not check["confirmed"]
    assert "NOT confirmed" in fp("compare", *both).out


def test_a_registered_model_gets_a_key_by_replacing_its_signature(folder, fp: Program, tmp_path):
    registry, weights_of_a, key = tmp_path / "registry", folder / "a.safetensors", folder / "first.key"
    register = ("register", weights_of_a, "--name", "acme/a", "--registry", registry)
    assert fp(*register).status == 0
    refused = fp(*register, "--key", key)
    assert refused.status == 2
    assert "the same weights, without a secret key instead of with secret key" in refused.err
    assert fp(*register, "--key", key, "--replace").status == 0
    with Registry.open(registry, create=False) as opened:
        assert [key_identity(opened.load_signature(record)) for record in opened.models()] == [FIRST.identity]
    again = fp(*register, "--key", key)
    assert (again.status, "nothing was changed" in again.out) == (0, True)
    less = fp(*register, "--key", key, "--disclose", "less")
    assert (less.status, "disclosing less" in less.err) == (2, True)
    assert fp("index", "check", "--registry", registry).status == 0
    assert f"under key {FIRST.identity}" in " ".join(fp("show", "acme/a", "--registry", registry).out.split())


def test_a_key_is_not_given_with_a_sample_and_a_deep_comparison_neither(folder, fp: Program, tmp_path):
    path, key = folder / "a.safetensors", ("--key", folder / "first.key")
    for ran in (
        fp("scan", path, *key, "--depth", "quick", "--registry", tmp_path),
        fp("register", path, "--name", "acme/a", *key, "--depth", "quick", "--registry", tmp_path),
        fp("compare", path, path, *key, "--depth", "quick"),
        fp("compare", path, path, "--deep", "--depth", "quick"),
        fp("sketch", path, *key, "--depth", "quick", "-o", tmp_path / "a.fpsig"),
    ):
        assert (ran.status, "leave out --depth quick" in ran.err) == (2, True), ran.err
    assert not list(tmp_path.iterdir())


def test_an_engine_that_is_none_is_refused_before_anything_is_registered(folder, fp: Program, tmp_path, monkeypatch):
    monkeypatch.setenv("FP_INDEX", "nonsense")
    ran = fp("register", folder / "a.safetensors", "--name", "acme/a", "--registry", tmp_path / "registry")
    assert (ran.status, "FP_INDEX=nonsense" in ran.err) == (2, True)
    monkeypatch.delenv("FP_INDEX")
    with Registry.open(tmp_path / "registry") as opened:
        assert opened.count() == 0
