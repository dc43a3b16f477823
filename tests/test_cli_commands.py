"""Every command, as a user meets it: what it does, what it prints, what it leaves behind."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

import signatures.scan
from cli.registry import Destination
from cli.schemas import schema_names
from fingerprint.errors import RegistryError
from signatures.registry import Registry
from tests.cli_support import HIDDEN, LAYERS, WIDTH, Typed, validate

if TYPE_CHECKING:
    from collections.abc import Callable

    from fingerprint.comparing.comparison import Comparison
    from tests.cli_support import Ran, Zoo

    Program = Callable[..., Ran]

pytest_plugins = ["tests.cli_fixtures"]
TENSORS = 1 + 8 * LAYERS


# scan


def test_a_tuned_copy_is_found_and_explained(fp: Program, zoo: Zoo) -> None:
    ran = fp("scan", zoo.tuned, "--format", "json", registry=zoo.registry)
    (found,) = ran.objects
    assert (ran.status, ran.err) == (1, "")
    assert found["verdict"] == "match"
    assert found["matches"][0]["model"] == "acme/base"
    assert found["matches"][0]["aliases"] == ["acme/alias"]
    assert found["registry"]["models"] == 2
    text = fp("scan", zoo.tuned, registry=zoo.registry).out
    assert text.splitlines()[1].startswith("■ MATCH  acme/base")


def test_a_renamed_part_is_found(fp: Program, zoo: Zoo) -> None:
    found = fp("scan", zoo.part, "--format", "json", registry=zoo.registry).objects[0]
    assert found["matches"][0]["model"] == "acme/base"


def test_json_lines_and_csv_say_the_same_as_json(fp: Program, zoo: Zoo) -> None:
    suspects = [zoo.tuned, zoo.unrelated, zoo.broken]
    objects = fp("scan", *suspects, "--format", "json", registry=zoo.registry).objects
    lines = [
        json.loads(line) for line in fp("scan", *suspects, "--format", "jsonl", registry=zoo.registry).out.splitlines()
    ]
    rows = list(csv.DictReader(io.StringIO(fp("scan", *suspects, "--format", "csv", registry=zoo.registry).out)))
    verdicts = [one["verdict"] for one in objects]
    assert verdicts == ["match", "no-match", "error"]
    assert [one["verdict"] for one in lines] == verdicts
    assert [row["verdict"] for row in rows] == verdicts
    for one in lines:
        validate(one)


def test_errors_are_said_once_on_standard_error_and_in_the_result(fp: Program, zoo: Zoo) -> None:
    ran = fp("scan", zoo.broken, "--format", "json", registry=zoo.registry)
    assert ran.err == f"fp: error: {ran.objects[0]['error']}\n"


def test_paths_come_from_standard_input(fp: Program, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Typed(f"{zoo.unrelated}\n\n{zoo.tuned}\r\n".encode()))
    found = fp("scan", zoo.part, "-", "--format", "json", registry=zoo.registry).objects
    assert [one["suspect"]["path"] for one in found] == [zoo.part, zoo.unrelated, zoo.tuned]


def test_paths_with_anything_in_their_names(
    fp: Program, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [b"a b", b"line\nbreak", "größe-模型".encode(), b"\x1b[31mred", b"latin-\xe9"]
    data = Path(zoo.unrelated).read_bytes()
    paths = [os.path.join(os.fsencode(tmp_path), name) for name in names]
    for path in paths:
        Path(os.fsdecode(path)).write_bytes(data)
    for format_ in ("json", "jsonl", "csv", "text"):
        monkeypatch.setattr(sys, "stdin", Typed(b"\0".join(paths) + b"\0"))
        ran = fp("scan", "-0", "-", "--format", format_, registry=zoo.registry)
        assert ran.status == 0
        assert "\x1b" not in ran.out
        assert "line\nbreak" not in ran.out
    monkeypatch.setattr(sys, "stdin", Typed(b"\0".join(paths)))
    shown = [one["suspect"]["path"] for one in fp("scan", "-0", "-", "--format", "json", registry=zoo.registry).objects]
    assert [Path(path).name for path in shown] == ["a b", "line\nbreak", "größe-模型", "\x1b[31mred", "latin-\\xe9"]


def test_an_empty_list_of_paths_is_said(fp: Program, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Typed(b"\n  \n\t\r\n"))
    ran = fp("scan", "-", "--format", "json", registry=zoo.registry)
    assert (ran.status, ran.objects) == (3, [])
    assert "nothing was scanned" in ran.err


def test_what_is_no_list_of_paths_is_refused(fp: Program, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Typed(b"x" * (1 << 18)))
    ran = fp("scan", "-", registry=zoo.registry)
    assert ran.status == 2
    assert "no list of paths" in ran.err


def test_standard_input_is_read_once(fp: Program, zoo: Zoo) -> None:
    assert fp("scan", "-", "-", registry=zoo.registry).status == 2


def test_globs_choose_tensors_by_name(fp: Program, zoo: Zoo) -> None:
    whole = fp("scan", zoo.tuned, "--format", "json", registry=zoo.registry).objects[0]["suspect"]["tensors"]
    some = fp(
        "scan", zoo.tuned, "--include", "*.mlp.*", "--exclude", "*up_proj*", "--format", "json", registry=zoo.registry
    )
    assert (whole, some.objects[0]["suspect"]["tensors"]) == (TENSORS, 2 * LAYERS)


@pytest.mark.parametrize(
    "globs", [("--include", "*.mlp.*", "--exclude", "*up_proj*"), ("--include", "*layers.1.*"), ("--exclude", "*norm*")]
)
def test_globs_choose_tensors_of_a_signature_as_they_do_of_weights(
    fp: Program, zoo: Zoo, tmp_path: Path, globs: tuple[str, ...]
) -> None:
    fp("sketch", zoo.tuned, "-o", tmp_path / "tuned.fpsig")
    weights, signature = (
        fp("scan", path, *globs, "--format", "json", registry=zoo.registry).objects[0]
        for path in (zoo.tuned, tmp_path / "tuned.fpsig")
    )
    for member in ("tensors", "parameters", "dtypes", "complete"):
        assert signature["suspect"][member] == weights["suspect"][member]
    assert signature["suspect"]["tensors"] < TENSORS
    assert signature["matches"][0]["coverage"] == weights["matches"][0]["coverage"]
    none = fp("scan", tmp_path / "tuned.fpsig", "--include", "none", "--format", "json", registry=zoo.registry)
    assert (none.status, none.objects[0]["suspect"]["tensors"]) == (3, 0)
    whole = fp("compare", zoo.base, tmp_path / "tuned.fpsig", *globs, "--format", "json").objects[0]
    assert whole["suspect"]["tensors"] == weights["suspect"]["tensors"]


def test_a_declared_base_must_be_registered(fp: Program, zoo: Zoo) -> None:
    ran = fp("scan", zoo.tuned, "--base", "nobody/knows", registry=zoo.registry)
    assert (ran.status, ran.out) == (2, "")
    assert "nobody/knows" in ran.err


def test_a_tuned_copy_of_a_registered_base_is_a_sibling_and_no_accusation(
    fp: Program, zoo: Zoo, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    fp("register", zoo.base, "--name", "public/base", registry=registry)
    fp("register", zoo.sibling, "--name", "acme/tuned", "--base", "public/base", registry=registry)
    found = fp("scan", zoo.tuned, "--format", "json", registry=registry).objects[0]
    links = {one["model"]: one["link"] for one in found["matches"]}
    assert links == {"public/base": "lineage", "acme/tuned": "sibling"}


def test_top_k_bounds_the_matches(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    fp("register", zoo.base, "--name", "public/base", registry=registry)
    fp("register", zoo.sibling, "--name", "acme/tuned", registry=registry)
    assert len(fp("scan", zoo.tuned, "--format", "json", registry=registry).objects[0]["matches"]) == 2
    assert len(fp("scan", zoo.tuned, "--top-k", 1, "--format", "json", registry=registry).objects[0]["matches"]) == 1


def test_every_option_is_an_environment_variable(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    ran = fp("scan", zoo.unrelated, environment={"FP_SCAN_FORMAT": "json", "FP_SCAN_REGISTRY": str(zoo.registry)})
    assert ran.objects[0]["verdict"] == "no-match"
    ran = fp("scan", zoo.unrelated, environment={"FP_SCAN_TOP_K": "none"}, registry=zoo.registry)
    assert ran.status == 2
    ran = fp(
        "scan",
        zoo.unrelated,
        environment={"FP_SCAN_INCLUDE": "*gate* *up*", "FP_SCAN_FORMAT": "json"},
        registry=zoo.registry,
    )
    assert ran.objects[0]["suspect"]["tensors"] == 2 * LAYERS
    more_specific = {"FP_LIST_REGISTRY": str(zoo.registry)}
    assert "acme/base" in fp("list", environment=more_specific, registry=tmp_path / "absent").out


# compare


def test_two_files_are_compared_in_the_form_of_a_scan(fp: Program, zoo: Zoo) -> None:
    ran = fp("compare", zoo.base, zoo.tuned, "--format", "json")
    (found,) = ran.objects
    assert (ran.status, found["schema"], found["verdict"]) == (1, "fp.compare/1", "match")
    assert fp("compare", zoo.base, zoo.unrelated).status == 0
    assert fp("compare", zoo.base, zoo.absent).status == 2
    assert found["matches"][0]["confidence"] == "certain"
    assert fp("compare", zoo.base, zoo.tuned, "--fail-on", "certain").status == 1


def test_a_comparison_without_a_match_names_both_sides(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "ours").symlink_to(zoo.base)
    text = " ".join(fp("compare", tmp_path / "ours", zoo.unrelated).out.split())
    assert text.startswith(zoo.unrelated)
    assert text.count("/ours") == 2
    assert "the one registered model" not in text


def test_a_similarity_is_at_most_one(fp: Program, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    real = signatures.identify.compare_all

    def rounded_up(*arguments: Any) -> list[Comparison]:
        return [replace(one, similarity=1.0 + 2**-52) for one in real(*arguments)]

    monkeypatch.setattr("signatures.identify.compare_all", rounded_up)
    (found,) = fp("compare", zoo.base, zoo.base, "--format", "json").objects[0]["matches"]
    assert found["similarity"] == 1.0
    assert all(one["similarity"] <= 1.0 for one in found["components"])


def test_a_comparison_fits_eighty_columns(fp: Program, zoo: Zoo) -> None:
    lines = fp("compare", zoo.base, zoo.tuned).out.splitlines()
    assert all(len(line) <= 80 for line in lines[1:])


# sketch


def test_a_signature_stands_in_for_the_weights(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    sketch = tmp_path / "tuned.fpsig"
    ran = fp("sketch", zoo.tuned, "-o", sketch)
    assert (ran.status, ran.out) == (0, "")
    assert f"{sketch}: sha256:" in ran.err
    found = fp("scan", sketch, "--format", "json", registry=zoo.registry).objects[0]
    assert (found["verdict"], found["matches"][0]["model"]) == ("match", "acme/base")
    assert fp("compare", zoo.base, sketch).status == 1
    assert fp("inspect", sketch, "--format", "json").objects[0]["kind"] == "signature"
    ran = fp("register", sketch, "--name", "from/sketch", "--format", "json", registry=tmp_path / "registry")
    assert (ran.status, ran.objects[0]["action"]) == (0, "new")


def test_a_sketch_overwrites_only_signatures(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("years of work")
    assert fp("sketch", zoo.tuned, "-o", precious).status == 2
    assert precious.read_text() == "years of work"
    assert fp("sketch", zoo.tuned, "-o", precious, "--force").status == 0
    assert fp("sketch", zoo.tuned, "-o", precious).status == 0
    assert fp("sketch", zoo.tuned, "-o", tmp_path / "absent" / "x.fpsig").status == 2
    assert sorted(os.listdir(tmp_path)) == ["precious.txt"]


# register, list, show, remove


def test_registering_says_what_it_did(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    registry = tmp_path / "new" / "registry"
    steps = [
        (zoo.base, "acme/base", "new"),
        (zoo.base, "acme/base", "unchanged"),
        (zoo.base, "acme/alias", "alias"),
        (zoo.unrelated, "acme/second", "new"),
    ]
    for path, name, action in steps:
        ran = fp("register", path, "--name", name, "--format", "json", registry=registry)
        assert (ran.status, ran.objects[0]["action"]) == (0, action)
    assert ran.objects[0]["registry"] == {"path": str(registry), "models": 2}
    assert "as another name of acme/base" in fp("register", zoo.base, "--name", "acme/third", registry=registry).out
    assert "nothing was changed" in fp("register", zoo.base, "--name", "acme/third", registry=registry).out


def test_a_name_is_not_taken_over_unless_asked(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    fp("register", zoo.base, "--name", "acme/base", registry=registry)
    ran = fp("register", zoo.unrelated, "--name", "acme/base", registry=registry)
    assert (ran.status, ran.out) == (2, "")
    assert "registered with other weights" in ran.err
    ran = fp("register", zoo.unrelated, "--name", "acme/base", "--replace", "--format", "json", registry=registry)
    assert (ran.status, ran.objects[0]["registry"]["models"]) == (0, 1)


def test_what_is_said_at_registration_is_shown(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    said = {"owner": "Acme Inc.", "license": "apache-2.0", "revision": "v1", "base": "public/base", "note": "a note"}
    options = [part for name, value in said.items() for part in (f"--{name}", value)]
    ran = fp("register", zoo.base, "--name", "acme/base", *options, registry=registry)
    assert "the base public/base is not registered" in ran.err
    (shown,) = fp("show", "acme/base", "--format", "json", registry=registry).objects
    assert said.items() <= shown["registrations"][0].items()
    assert shown["checkpoint"]["layers"] == LAYERS
    assert shown["signature"]["held"]["digests"] == TENSORS
    text = fp("show", "acme/base", registry=registry).out
    assert all(value in text for value in said.values())


def test_nothing_is_registered_of_what_cannot_be_read(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    for path in (zoo.absent, zoo.broken):
        ran = fp("register", path, "--name", "acme/base", registry=registry)
        assert (ran.status, ran.out) == (2, "")
        assert not registry.exists()


def test_models_are_listed_by_name_and_alias(fp: Program, zoo: Zoo) -> None:
    listed = fp("list", "--format", "json", registry=zoo.registry).objects
    assert [(one["name"], one["aliases"]) for one in listed] == [
        ("acme/base", ["acme/alias"]),
        ("other/model", []),
    ]
    rows = list(csv.DictReader(io.StringIO(fp("list", "--format", "csv", registry=zoo.registry).out)))
    assert [row["name"] for row in rows] == ["acme/base", "acme/alias", "other/model"]
    text = fp("list", registry=zoo.registry).out
    assert text.splitlines()[0].split() == ["Name", "Parameters", "Tensors", "Registered", "Also", "named"]
    assert "2 models" in text
    some = fp("list", "ACME/al*", "--format", "json", registry=zoo.registry).objects
    assert [one["name"] for one in some] == ["acme/base"]
    none = fp("list", "nobody/*", registry=zoo.registry)
    assert (none.status, none.out) == (0, "")
    assert "no registered model has such a name" in none.err


def test_without_a_registry_the_list_is_empty_and_says_how_to_begin(fp: Program, empty_home: Path) -> None:
    ran = fp("list")
    assert (ran.status, ran.out) == (0, "")
    assert "fp register" in ran.err
    assert fp("list", "--format", "json").objects == []
    assert not (empty_home / "data").exists()


def test_a_place_at_which_one_cannot_look_is_an_error_and_no_empty_registry(
    fp: Program, zoo: Zoo, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_long = empty_home / ("x" * 300)
    with pytest.raises(RegistryError, match="too long"):
        Destination(str(too_long))
    monkeypatch.setenv("XDG_DATA_HOME", str(too_long))
    for arguments in (["list"], ["scan", zoo.tuned], ["register", zoo.base, "--name", "acme/base"]):
        ran = fp(*arguments)
        assert (ran.status, "File name too long" in ran.err, len(ran.err.splitlines())) == (2, True, 1), ran.err


def test_a_model_is_shown_by_alias_and_identity(fp: Program, zoo: Zoo) -> None:
    identity = fp("show", "acme/alias", "--format", "json", registry=zoo.registry).objects[0]["identity"]
    assert fp("show", identity, "--format", "json", registry=zoo.registry).objects[0]["name"] == "acme/base"
    assert fp("show", "nobody/knows", registry=zoo.registry).status == 2
    rows = list(csv.DictReader(io.StringIO(fp("show", "acme/base", "--format", "csv", registry=zoo.registry).out)))
    assert len(rows) == TENSORS


def test_a_model_goes_with_its_last_name(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    for name in ("acme/base", "acme/alias"):
        fp("register", zoo.base, "--name", name, registry=registry)
    assert fp("remove", "acme/base", "nobody/knows", "-y", registry=registry).status == 2
    assert len(fp("list", "--format", "json", registry=registry).objects[0]["registrations"]) == 2
    ran = fp("remove", "acme/base", registry=registry)
    assert (ran.status, ran.out, ran.err) == (0, "", "fp: removed acme/base\n")
    assert [one["name"] for one in fp("list", "--format", "json", registry=registry).objects] == ["acme/alias"]
    assert fp("remove", "acme/alias", registry=registry).status == 0
    assert fp("list", "--format", "json", registry=registry).objects == []


def test_names_are_removed_once_each_and_together(
    fp: Program, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = tmp_path / "registry"
    names = ("acme/base", "acme/alias", "acme/last")
    for name in names:
        fp("register", zoo.base, "--name", name, registry=registry)
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "remove", lambda opened, name: _fails_at("acme/alias", opened, name))
        ran = fp("remove", "acme/base", "acme/alias", registry=registry)
    assert (ran.status, ran.err) == (2, "fp: error: no more\n")
    assert len(fp("list", "--format", "csv", registry=registry).out.splitlines()) == 1 + len(names)
    ran = fp("remove", "acme/base", "ACME/base", "acme/alias", "acme/base", registry=registry)
    assert (ran.status, ran.err) == (0, "fp: removed acme/base\nfp: removed acme/alias\n")


def _fails_at(last: str, registry: Registry, name: str, remove: Callable[..., None] = Registry.remove) -> None:
    if name == last:
        raise RegistryError("no more")
    remove(registry, name)


# export, import


def test_models_travel_between_registries_and_leave_by_origin(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    bundle, registry = tmp_path / "bundle", tmp_path / "registry"
    assert fp("export", "--all", "-o", bundle, registry=zoo.registry).status == 0
    ran = fp("import", bundle, "--origin", "partner", "--format", "json", registry=registry)
    assert ran.status == 0
    assert {entry["origin"] for one in ran.objects for entry in one["registrations"]} == {"partner"}
    assert [one["name"] for one in ran.objects] == ["acme/base", "other/model"]
    assert fp("scan", zoo.tuned, registry=registry).status == 1
    assert fp("remove", "--origin", "partner", "-y", registry=registry).status == 0
    assert fp("list", "--format", "json", registry=registry).objects == []


def test_one_model_is_exported_without_its_other_names(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    bundle = tmp_path / "my bundle.bin"
    assert fp("export", "acme/alias", "-o", bundle, registry=zoo.registry).status == 0
    found = fp("import", bundle, "--format", "json", registry=tmp_path / "registry").objects
    assert [(one["name"], one["registrations"][0]["origin"]) for one in found] == [("acme/alias", "file:my_bundle")]
    assert fp("export", "nobody/knows", "-o", tmp_path / "none", registry=zoo.registry).status == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", [b"nothing of the kind", None])
def test_what_is_no_bundle_makes_no_registry(fp: Program, tmp_path: Path, content: bytes | None) -> None:
    bundle = tmp_path / "b.fpbundle"
    if content is not None:
        bundle.write_bytes(content)
    ran = fp("import", bundle, registry=tmp_path / "registry")
    assert ran.status == 2
    assert not (tmp_path / "registry").exists()


def test_an_import_says_what_is_new_and_what_was_there(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    bundle, registry = tmp_path / "b.fpbundle", tmp_path / "registry"
    fp("export", "acme/base", "other/model", "-o", bundle, registry=zoo.registry)
    assert fp("import", bundle, registry=registry).err == f"fp: {bundle}: 2 new names from file:b\n"
    again = fp("import", bundle, "--origin", "again", "--format", "json", registry=registry)
    assert again.err == (
        f"fp: {bundle}: 2 names registered already with these weights, from file:b: nothing was changed there\n"
    )
    assert {one["origin"] for entry in again.objects for one in entry["registrations"]} == {"file:b"}
    fp("remove", "acme/base", registry=registry)
    ran = fp("import", bundle, "--origin", "again", registry=registry)
    assert "1 new name from again; 1 name registered already" in ran.err
    assert "file: and the file's name" in " ".join(fp("import", "--help").out.split())


def test_removing_by_an_unknown_origin_is_an_error_and_removes_nothing(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    bundle, registry = tmp_path / "b.fpbundle", tmp_path / "registry"
    fp("register", zoo.base, "--name", "acme/base", registry=registry)
    fp("export", "other/model", "-o", bundle, registry=zoo.registry)
    fp("import", bundle, registry=registry)
    ran = fp("remove", "acme/base", "--origin", "b.fpbundle", "--yes", registry=registry)
    assert ran.status == 2
    assert "file:b" in ran.err
    assert len(fp("list", "--format", "json", registry=registry).objects) == 2
    ran = fp("remove", "acme/base", "other/model", "--origin", "file:b", "--yes", registry=registry)
    assert (ran.status, fp("list", "--format", "json", registry=registry).objects) == (0, [])


def test_an_export_overwrites_only_bundles(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    precious, bundle = tmp_path / "model.safetensors", tmp_path / "x.fpbundle"
    precious.write_bytes(b"years of work")
    ran = fp("export", "acme/base", "-o", precious, registry=zoo.registry)
    assert (ran.status, precious.read_bytes()) == (2, b"years of work")
    assert "no bundle" in ran.err
    for _ in range(2):
        assert fp("export", "acme/base", "-o", bundle, registry=zoo.registry).status == 0
    assert fp("export", "acme/base", "-o", precious, "--force", registry=zoo.registry).status == 0
    assert precious.read_bytes() == bundle.read_bytes()


def test_a_bad_bundle_does_not_stop_the_good_one(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    good, bad, registry = tmp_path / "good", tmp_path / "bad", tmp_path / "registry"
    fp("export", "acme/base", "-o", good, registry=zoo.registry)
    bad.write_bytes(good.read_bytes()[:-5])
    fp("sketch", zoo.base, "-o", tmp_path / "one.fpsig")
    ran = fp(
        "import",
        bad,
        tmp_path / "one.fpsig",
        zoo.base,
        good,
        tmp_path / "absent",
        "--format",
        "json",
        registry=registry,
    )
    assert ran.status == 2
    assert [one["name"] for one in ran.objects] == ["acme/base"]
    assert sum(line.startswith("fp: error: ") for line in ran.err.splitlines()) == 4
    assert "single signature" in ran.err
    assert "no bundle" in ran.err


# inspect, index, schema


def test_what_the_readers_see_is_shown_without_measuring(fp: Program, zoo: Zoo) -> None:
    (found,) = fp("inspect", zoo.base, "--tensors", "--format", "json").objects
    assert (found["kind"], found["format"], found["complete"]) == ("checkpoint", "safetensors", True)
    assert (found["layers"], found["width"], found["mlps"]) == (LAYERS, WIDTH, LAYERS)
    assert found["roles"]["gate"] == LAYERS
    gate = next(one for one in found["tensors"] if one["name"] == "model.layers.1.mlp.gate_proj.weight")
    assert (gate["role"], gate["layer"], gate["shape"], gate["dtype"]) == ("gate", 1, [HIDDEN, WIDTH], "F32")
    text = fp("inspect", zoo.base).out
    assert "names as in llama; 2 layers (0-1); width 64; 2 MLPs recognised" in text
    table = fp("inspect", zoo.base, "--tensors").out
    assert "model.layers.1.mlp.gate_proj.weight" in table
    rows = list(csv.DictReader(io.StringIO(fp("inspect", zoo.base, "--format", "csv").out)))
    assert len(rows) == TENSORS


def test_integers_and_hostile_names_are_seen(fp: Program, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"=x\x1b[2J\n\u202e": np.zeros((8, 8), np.int8)}, path)
    ran = fp("inspect", path, "--tensors")
    assert ran.status == 0
    assert "100% of the elements are integers" in ran.out
    assert "=x\\x1b[2J\\n\\u202e" in ran.out
    assert "'=x" in fp("inspect", path, "--format", "csv").out
    assert fp("inspect", path, "--tensors", "--format", "json").objects[0]["tensors"][0]["name"] == "=x\x1b[2J\n\u202e"


def test_an_unreadable_path_does_not_stop_the_rest_of_an_inspection(fp: Program, zoo: Zoo) -> None:
    ran = fp("inspect", zoo.broken, zoo.base, "--format", "json")
    assert (ran.status, len(ran.objects)) == (2, 1)
    assert ran.err.count("fp: error: ") == 1


def test_absent_shards_are_shown(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(Path(zoo.part).read_bytes())
    names = {"renamed.0": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    ran = fp("inspect", tmp_path)
    assert ran.status == 3
    assert "Not whole" in ran.out
    assert "Finding" in ran.out


@pytest.mark.parametrize("action", ["build", "status", "check"])
def test_the_index_is_looked_after(fp: Program, zoo: Zoo, action: str) -> None:
    ran = fp("index", action, "--format", "json", registry=zoo.registry)
    assert (ran.status, ran.objects[0]["action"], ran.objects[0]["problems"]) == (0, action, [])
    assert (ran.objects[0]["models"], ran.objects[0]["covered"]) == (2, 2)
    assert "2 of 2 models" in fp("index", action, registry=zoo.registry).out


def test_a_damaged_registry_fails_the_check(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    fp("register", zoo.base, "--name", "acme/base", registry=registry)
    (signature,) = registry.glob("signatures/*/*")
    data = bytearray(signature.read_bytes())
    data[len(data) // 2] ^= 255
    signature.write_bytes(data)
    ran = fp("index", "check", registry=registry)
    assert ran.status == 2
    assert "fp: error: " in ran.err
    assert "Traceback" not in ran.err


def test_an_absent_signature_file_is_one_clear_error_with_a_remedy(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    for name in ("base", "unrelated", "sibling"):
        fp("register", getattr(zoo, name), "--name", f"acme/{name}", registry=registry)
    places = {
        name: next(registry.glob(f"signatures/*/{entry['identity'][7:]}.fpsig"))
        for name in ("base", "unrelated")
        for entry in fp("show", f"acme/{name}", "--format", "json", registry=registry).objects
    }
    places["base"].unlink()
    places["unrelated"].write_bytes(b"nothing")
    checked = fp("index", "check", "--format", "json", registry=registry)
    assert checked.status == 2
    problems = checked.objects[0]["problems"]
    assert [str(places[name]) in problem for name, problem in zip(places, problems, strict=True)] == [True, True]
    for command in (["scan", zoo.tuned], ["index", "build"], ["export", "--all", "-o", tmp_path / "x"]):
        ran = fp(*command, registry=registry)
        assert (ran.status, ran.err.count("\n")) == (2, 1), command
        assert f"{places['base']}: the signature file is absent" in ran.err
        assert "`fp remove acme/base`" in ran.err
    assert not (tmp_path / "x").exists()
    for name in ("base", "unrelated"):
        assert fp("remove", f"acme/{name}", registry=registry).status == 0
        assert fp("register", getattr(zoo, name), "--name", f"acme/{name}", registry=registry).status == 0
    assert fp("index", "check", registry=registry).status == 0
    assert fp("scan", zoo.tuned, registry=registry).status == 1


def test_schemas_are_listed_and_printed(fp: Program, tmp_path: Path) -> None:
    listed = [line.split()[0] for line in fp("schema").out.splitlines()]
    assert listed == schema_names()
    assert {"fp.scan/1", "fp.compare/1"} <= set(listed)
    for name in listed:
        printed = json.loads(fp("schema", name).out)
        assert printed["properties"]["schema"]["const"] == name
    assert fp("schema", "fp.scan/1", "-o", tmp_path / "schema.json").out == ""
    assert json.loads((tmp_path / "schema.json").read_text())["title"]


# output


def test_a_file_is_written_whole_and_nothing_else(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    ran = fp("scan", zoo.tuned, "--format", "json", "-o", output, registry=zoo.registry)
    assert (ran.status, ran.out) == (1, "")
    assert json.loads(output.read_text())[0]["verdict"] == "match"
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_error_leaves_the_old_file(fp: Program, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "result.json"
    output.write_text("old")
    monkeypatch.setattr("signatures.scan.scan_path", _interrupted)
    assert fp("scan", zoo.tuned, "--format", "json", "-o", output, registry=zoo.registry).status == 130
    assert fp("scan", zoo.tuned, "-o", tmp_path / "absent" / "x", registry=zoo.registry).status == 2
    assert fp("scan", zoo.tuned, "-o", tmp_path, registry=zoo.registry).status == 2
    assert (output.read_text(), os.listdir(tmp_path)) == ("old", ["result.json"])


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_json_is_whole_after_an_interruption(fp: Program, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    real = signatures.scan.scan_path

    def interrupted_later(registry: object, path: str, **rest: object) -> object:
        if path == zoo.unrelated:
            raise KeyboardInterrupt
        return real(registry, path, **rest)

    monkeypatch.setattr("signatures.scan.scan_path", interrupted_later)
    ran = fp("scan", zoo.tuned, zoo.unrelated, "--format", "json", registry=zoo.registry)
    assert (ran.status, len(ran.objects)) == (130, 1)
    assert ran.err == "fp: error: interrupted\n"


def test_a_file_keeps_its_mode_and_its_link(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    assert fp("list", "--format", "csv", "-o", link, registry=zoo.registry).status == 0
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert real.read_text().startswith("name,")


def test_what_is_read_is_never_written_over(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    copy = tmp_path / "model.safetensors"
    copy.write_bytes(Path(zoo.base).read_bytes())
    for command in (["scan", copy], ["sketch", copy], ["compare", copy, zoo.tuned], ["inspect", copy]):
        ran = fp(*command, "-o", copy, registry=zoo.registry)
        assert ran.status == 2, command
        assert "written over" in ran.err
    assert copy.read_bytes() == Path(zoo.base).read_bytes()


def test_quiet_leaves_only_results_and_errors(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    assert fp("sketch", zoo.base, "-o", tmp_path / "x.fpsig", "-q").err == ""
    ran = fp("register", zoo.base, "--name", "a/b", "--base", "not/there", "-q", registry=tmp_path / "registry")
    assert (ran.status, ran.err) == (0, "")
    assert fp("show", "nobody/knows", "-q", registry=zoo.registry).err.startswith("fp: error: ")


def test_tracebacks_only_when_asked_for(fp: Program, zoo: Zoo) -> None:
    assert "Traceback" not in fp("show", "nobody/knows", registry=zoo.registry).err
    assert "Traceback" in fp("show", "nobody/knows", "-v", registry=zoo.registry).err


@pytest.mark.parametrize("command", ["scan", "inspect", "sketch -o x.fpsig", "compare other"])
@pytest.mark.parametrize("registered", [True, False])
def test_every_command_shows_the_traceback_of_what_it_cannot_read(
    fp: Program, zoo: Zoo, empty_home: Path, command: str, registered: bool
) -> None:
    registry = zoo.registry if registered else None
    for path in (zoo.absent, zoo.broken):
        ran = fp(*command.split(), path, "-v", registry=registry)
        assert (ran.status, "Traceback" in ran.err) == (2, True)
        assert ran.err.count("fp: error: ") == 1
        ran = fp(*command.split(), path, registry=registry)
        assert (ran.status, ran.err.count("Traceback"), ran.err.count("\n")) == (2, 0, 1)
