"""Claims about provenance: read from what lies beside the weights, checked against them, and moving nothing."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from safetensors.numpy import save_file

from fingerprint.checkpoint import open_checkpoint
from fingerprint.claims import MAX_CLAIMS, Claim, ClaimKind, Claims, comparable, model_name, names_same, read_claims
from fingerprint.readers.bounded_yaml import (
    MAX_DOCUMENTS,
    MAX_YAML,
    MAX_YAML_DEPTH,
    MAX_YAML_VALUES,
    YamlRefusedError,
    read_yaml,
)
from fingerprint.readers.cards import MAX_NAMED
from signatures.claims import check_claims, may_name
from signatures.records import anonymous_model
from signatures.report import Confidence, Link, Relation, Standing, Verdict
from tests.cli_support import tuned, weights
from tests.cli_values import RECORD, match

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from signatures.records import ModelRecord
    from tests.cli_support import Ran, Zoo

    Program = Callable[..., Ran]

pytest_plugins = ["tests.cli_fixtures"]


def card(front: str, text: str = "# A model\n") -> str:
    return f"---\n{front}\n---\n{text}"


def model(folder: Path, metadata: dict[str, str] | None = None, **files: str) -> Path:
    """A folder with a small model and the texts of ``files`` (a double underscore stands for the dot)."""
    folder.mkdir(exist_ok=True)
    save_file({"w": np.ones((2, 3), np.float32)}, folder / "model.safetensors", metadata)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def claims(path: Path) -> Claims:
    with open_checkpoint(path) as checkpoint:
        return read_claims(checkpoint.metadata)


def said(path: Path) -> list[tuple[str, str]]:
    return [(one.kind.value, one.name) for one in claims(path).claims]


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("front", "names"),
    [
        ("base_model: org/base", ["org/base"]),
        ("base_model:\n- org/a\n- org/b\n- org/a", ["org/a", "org/b"]),
        ("base_model: [org/a, 'org/b']", ["org/a", "org/b"]),
        ("base_model: https://huggingface.co/org/base", ["org/base"]),
        ("base_model: none", []),
        ("base_model: ~", []),
        ("base_model:", []),
        ("base_model: {a: b}", []),
        ("license: mit", []),
        ("base_model: &a org/base\nother: *a", []),
        ("base_model: [org/a", []),
        ("just text", []),
    ],
)
def test_a_card_claims_its_bases(front: str, names: list[str], tmp_path: Path) -> None:
    folder = model(tmp_path / "m", README__md=card(front))
    assert said(folder) == [("base", name) for name in names]
    assert said(folder / "model.safetensors") == said(folder)
    assert claims(folder).described


def test_a_card_says_how_it_was_made(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", README__md=card("base_model: org/base\nbase_model_relation: adapter"))
    (claim,) = claims(folder).claims
    assert claim == Claim(ClaimKind.BASE, "org/base", "README.md: base_model", "org/base", "adapter")


def test_a_card_may_say_that_there_is_no_base(tmp_path: Path) -> None:
    text = "# Big Model\n\nIt is good.\nWe pre-trained it **entirely from scratch** on text. And so on."
    (claim,) = claims(model(tmp_path / "m", README__md=card("license: mit", text))).claims
    assert (claim.kind, claim.value) == (ClaimKind.SCRATCH, "We pre-trained it entirely from scratch on text")


def test_a_card_that_is_no_file_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text(card("base_model: org/secret"))
    folder = model(tmp_path / "m")
    (folder / "README.md").symlink_to(tmp_path / "secret.md")
    assert claims(folder) == Claims()


def test_a_recipe_claims_all_its_models(tmp_path: Path) -> None:
    recipe = """
name: first
merge_method: slerp
slices:
  - sources:
      - model: org/a
        layer_range: [0, 2]
      - model: {model: {path: org/b}, lora: null}
base_model: org/a
---
merge_method: linear
models:
  - model: first
    parameters: {weight: 0.5}
  - model: org/c+org/lora
"""
    found = claims(model(tmp_path / "m", mergekit_config__yml=recipe))
    assert [one.name for one in found.claims] == ["org/a", "org/b", "org/c"]
    assert {one.relation for one in found.claims} == {"merge"}


def test_configs_and_metadata_claim_too(tmp_path: Path) -> None:
    config = {
        "_name_or_path": "/data/models--org--base/snapshots/1",
        "architectures": ["LlamaForCausalLM"],
        "quantization_config": {"quant_method": "gptq"},
    }
    metadata = {"base_model": "org/other", "modelspec.title": "Mine"}
    folder = model(
        tmp_path / "m",
        metadata,
        config__json=json.dumps(config),
        adapter_config__json=json.dumps({"base_model_name_or_path": "org/third"}),
    )
    found = claims(folder)
    assert sorted(said(folder)) == [
        ("base", "org/base"),
        ("base", "org/other"),
        ("base", "org/third"),
        ("name", "Mine"),
    ]
    assert found.architectures == ("LlamaForCausalLM",)
    assert found.quantisation == "gptq"
    assert not found.described


def test_gguf_claims_its_bases_and_its_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_name("Mine 7B")
    writer.add_base_model_count(2)
    writer.add_base_model_name(0, "Llama 3.1 8B")
    writer.add_base_model_organization(0, "Meta Llama")
    writer.add_base_model_repo_url(0, "https://huggingface.co/meta-llama/Llama-3.1-8B")
    writer.add_base_model_name(1, "Base 2")
    writer.add_source_repo_url("https://huggingface.co/org/source")
    writer.add_tensor("w", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert said(tmp_path / "m.gguf") == [
        ("base", "org/source"),
        ("base", "meta-llama/Llama-3.1-8B"),
        ("base", "Base 2"),
        ("name", "Mine 7B"),
    ]


def test_claims_of_components_are_about_these(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    (pipe / "model_index.json").write_text("{}")
    (pipe / "README.md").write_text(card("base_model: org/pipe"))
    model(pipe / "text_encoder", config__json=json.dumps({"_name_or_path": "org/clip"}))
    assert {(one.part, one.name) for one in claims(pipe).claims} == {("", "org/pipe"), ("text_encoder", "org/clip")}


def test_claims_are_bounded(tmp_path: Path) -> None:
    names = "\n".join(f"- org/{'x' * 1000}{n}" if n == 0 else f"- org/m{n}" for n in range(500))
    found = claims(model(tmp_path / "m", README__md=card(f"base_model:\n{names}")))
    assert len(found.claims) == MAX_NAMED
    assert max(len(one.value) for one in found.claims) <= 257
    assert len(read_claims({f"p{n}.base_model": f"org/{n}" for n in range(1000)}).claims) == MAX_CLAIMS


@given(st.dictionaries(st.text(max_size=30) | st.sampled_from(["base_model", "general.name", "card"]), st.text()))
@settings(max_examples=50, deadline=None)
def test_any_metadata_can_be_read(metadata: dict[str, str]) -> None:
    assert len(read_claims(metadata).claims) <= MAX_CLAIMS


# --- hostile YAML ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x]\nb: [*a, *a]",
        "a: " + "[" * (MAX_YAML_DEPTH + 1) + "]" * (MAX_YAML_DEPTH + 1),
        "- x\n" * (MAX_YAML_VALUES + 1),
        "--- x\n" * (MAX_DOCUMENTS + 1),
        "x" * (MAX_YAML + 1),
        "[" * 60_000,
        "a: \x00",
        "a: !!python/object/apply:os.system [",
        "? " * 20_000,
    ],
    ids=["aliases", "depth", "values", "documents", "size", "brackets", "control", "unfinished", "keys"],
)
def test_what_goes_beyond_the_bounds_is_refused(text: str) -> None:
    with pytest.raises(YamlRefusedError):
        read_yaml(text.encode())


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(YamlRefusedError):
        read_yaml(b"a: \xff\xfe\x00")


def test_tags_construct_nothing() -> None:
    assert read_yaml(b"a: !!python/object/apply:os.system ['true']\nb: 2020-01-01\nc: yes\n[d]: e") == [
        {"a": ["true"], "b": "2020-01-01", "c": "yes"}
    ]


@given(st.text(alphabet="ab:-[]{}*&!|>'\"#,?\n ~%@`", max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(YamlRefusedError):
        assert isinstance(read_yaml(text.encode()), list)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("org/base", "org/base"),
        (" base ", "base"),
        ("https://huggingface.co/org/base/tree/main", "org/base"),
        ("hf.co/org/base?x=1", "org/base"),
        ("https://example.org/files/base", "base"),
        ("/home/me/models/base", "base"),
        ("./out", "out"),
        ("C:\\models\\base", "base"),
        ("~/.cache/hub/models--org--base/snapshots/abc", "org/base"),
        ("org/base@main", "org/base"),
        ("None", ""),
        ("", ""),
        ("/", ""),
    ],
)
def test_values_name_a_model(value: str, name: str) -> None:
    assert model_name(value) == name


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Org/Base_7B", "org/base-7b", True),
        ("base-7b", "org/Base 7B", True),
        ("org/base", "base", True),
        ("one/base", "other/base", False),
        ("org/base", "org/base-2", False),
        ("", "org/", False),
    ],
)
def test_names_are_compared_without_case_and_organisation(one: str, other: str, same: bool) -> None:
    assert names_same(one, other) is same
    assert names_same(other, one) is same
    assert comparable(one) == comparable(one.upper())


# --- against the weights ---------------------------------------------------------------------------------------------

BASE = Claim(ClaimKind.BASE, "Acme/Base", "README.md: base_model", "Acme/Base", "finetune")
FOUND = match(model="acme/base")


def among(*models: ModelRecord) -> Callable[[str], list[ModelRecord]]:
    return lambda name: [model for model in models if may_name(name, model)]


@pytest.mark.parametrize(
    ("claim", "found", "verdict", "standing", "phrase"),
    [
        (BASE, FOUND, Verdict.MATCH, Standing.CONFIRMED, "confirmed by the weights (fine-tuned, certain)"),
        (replace(BASE, name="acme/alias"), FOUND, Verdict.MATCH, Standing.CONFIRMED, "registered as acme/base"),
        (replace(BASE, relation="merge"), FOUND, Verdict.MATCH, Standing.CONFIRMED, 'not as the claimed "merge"'),
        (BASE, replace(FOUND, confidence=Confidence.POSSIBLE), Verdict.POSSIBLE, Standing.PARTLY, "only a part"),
        (BASE, match(Link.SHARED_COMPONENT, model="acme/base"), Verdict.POSSIBLE, Standing.PARTLY, "shared-component"),
        (BASE, match(Link.SIBLING, model="acme/base"), Verdict.MATCH, Standing.SIBLING, "share public/base with it"),
        (BASE, None, Verdict.NO_MATCH, Standing.UNSUPPORTED, "registered, and no shared weights were found"),
        (BASE, None, Verdict.INCONCLUSIVE, Standing.UNCHECKED, "cannot tell"),
        (replace(BASE, name="x/y"), FOUND, Verdict.MATCH, Standing.UNREGISTERED, "no model of that name is registered"),
        (Claim(ClaimKind.NAME, "Base", "GGUF", "base"), FOUND, Verdict.MATCH, Standing.CONFIRMED, "calls itself"),
        (Claim(ClaimKind.SCRATCH, "from scratch", "README.md"), FOUND, Verdict.MATCH, Standing.CONTRADICTED, "but it"),
        (Claim(ClaimKind.SCRATCH, "from scratch", "README.md"), None, Verdict.NO_MATCH, Standing.UNCHECKED, "nothing"),
    ],
)
def test_every_standing_of_a_claim(claim: Claim, found: Any, verdict: Verdict, standing: Standing, phrase: str) -> None:
    result = check_claims(Claims((claim,)), [found] if found else [], among(RECORD), verdict)
    (checked,) = result.checked
    assert checked.standing is standing
    assert phrase in checked.says


def test_an_adapter_need_not_resemble_its_base() -> None:
    (checked,) = check_claims(Claims((BASE,)), [], among(RECORD), Verdict.NO_MATCH, adapter=True).checked
    assert checked.standing is Standing.UNCHECKED


def test_copies_of_what_was_trained_from_scratch_contradict_nothing() -> None:
    scratch = Claims((Claim(ClaimKind.SCRATCH, "from scratch", "README.md"),))
    copy = match(model="acme/base", relation=Relation.DTYPE_CAST)
    (checked,) = check_claims(scratch, [copy], among(RECORD), Verdict.MATCH).checked
    assert checked.standing is Standing.UNCHECKED
    assert "the weights are those of acme/base" in checked.says


def test_shared_weights_that_no_claim_names_are_said() -> None:
    other = match(model="other/model")
    result = check_claims(Claims((BASE,)), [other, FOUND], among(RECORD), Verdict.MATCH)
    assert result.unnamed == ("other/model",)
    assert result.statements[-1] == "no claim names other/model (fine-tuned, certain), whose weights are shared"
    silent = check_claims(Claims(described=True), [FOUND], among(RECORD), Verdict.MATCH)
    assert silent.statements == ("names no base, but shares weights with acme/base (fine-tuned, certain)",)
    copy = check_claims(Claims(described=True), [match(relation=Relation.QUANTISED)], None, Verdict.MATCH)
    assert copy.statements == ("no claim names acme/base-7b (quantised, certain), whose weights these are",)
    assert check_claims(Claims(), [FOUND], among(RECORD), Verdict.MATCH).statements == ()


def test_the_registered_base_of_a_claimed_model_counts_as_named() -> None:
    public = replace(RECORD, id=2, registrations=(replace(RECORD.registrations[0], name="public/base", base=None),))
    result = check_claims(Claims((BASE,)), [FOUND, match(model="public/base")], among(RECORD, public), Verdict.MATCH)
    assert result.unnamed == ()


def test_spellings_of_one_name_are_looked_up_once() -> None:
    asked: list[str] = []

    def named(name: str) -> list[ModelRecord]:
        asked.append(name)
        return among(RECORD)(name)

    spelt = ("Acme/Base", "acme/BASE", "ACME/base", "acme/base-")
    claims = Claims(tuple(replace(BASE, value=name, name=name) for name in spelt))
    checked = check_claims(claims, [FOUND], named, Verdict.MATCH).checked
    assert {one.standing for one in checked} == {Standing.CONFIRMED}
    assert asked.count("acme/base") == 1
    assert len(asked) == len(set(asked))


def test_a_path_stands_for_the_names_in_it() -> None:
    ours = anonymous_model("/data/acme/base/model.safetensors")
    found = match(model=ours.name)
    (checked,) = check_claims(Claims((BASE,)), [found], among(ours), Verdict.MATCH).checked
    assert checked.standing is Standing.CONFIRMED


# --- through the commands --------------------------------------------------------------------------------------------

SOURCES: dict[str, dict[str, str]] = {
    "none": {},
    "true": {"README.md": card("base_model: acme/base\nbase_model_relation: finetune")},
    "lying": {
        "README.md": card("base_model: [other/model, nobody/else]", "It was trained from scratch."),
        "mergekit_config.yml": "models: [{model: other/model}]",
        "config.json": json.dumps({"_name_or_path": "other/model"}),
    },
    "hostile": {"README.md": card("base_model: &a [*a]\nx: \x1b[2J"), "mergekit_config.yml": "[" * 5000},
}


def test_claims_never_move_the_verdict(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    """Related, unrelated and partly related weights, with no, true, lying and hostile claims: all else is the same."""
    base = weights(1)
    suspects = {
        "tuned": tuned(base, 2),
        "unrelated": weights(4),
        "embeddings": weights(4) | {"model.embed_tokens.weight": base["model.embed_tokens.weight"]},
    }
    for kind, held in suspects.items():
        seen = []
        for name, files in SOURCES.items():
            folder = tmp_path / f"{kind}-{name}"
            folder.mkdir()
            save_file(held, folder / "model.safetensors", {"base_model": "other/model"} if name == "lying" else None)
            for file, text in files.items():
                (folder / file).write_text(text)
            ran = fp("scan", folder, "--format", "json", registry=zoo.registry)
            (report,) = ran.objects
            statements = report.pop("claims")["statements"]
            assert bool(statements) == (name in {"true", "lying"} or (name == "hostile" and kind == "tuned"))
            for varies in ("seconds", "suspect"):
                report.pop(varies)
            seen.append((ran.status, report))
        assert seen == seen[:1] * len(seen), kind


def test_a_lie_is_shown_beside_the_verdict(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    save_file(tuned(weights(1), 2), tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text(SOURCES["lying"]["README.md"])
    text = " ".join(fp("scan", tmp_path / "model.safetensors", registry=zoo.registry).out.split())
    assert 'base "other/model" (README.md: base_model): registered, and no shared weights were found' in text
    assert 'base "nobody/else" (README.md: base_model): no model of that name is registered' in text
    assert 'says "It was trained from scratch" (README.md): but it shares weights with acme/base (noised' in text
    table = fp("scan", tmp_path, "--format", "csv", registry=zoo.registry).out
    assert "but it shares weights with acme/base" in table


def test_a_comparison_checks_claims_against_the_path(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    save_file(tuned(weights(1), 2), tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text(card("base_model: [acme/base, x/y]"))
    (report,) = fp("compare", zoo.base, tmp_path, "--format", "json").objects
    assert [one["standing"] for one in report["claims"]["checked"]] == ["confirmed", "unregistered"]


def test_an_inspection_shows_claims_and_a_signature_keeps_them(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    save_file(tuned(weights(1), 2), folder / "model.safetensors")
    (folder / "README.md").write_text(card("base_model: acme/base"))
    assert fp("sketch", folder, "-o", tmp_path / "m.fpsig").status == 0
    for path in (folder, tmp_path / "m.fpsig"):
        assert 'its base is "acme/base" (README.md: base_model)' in fp("inspect", path).out
        (shown,) = fp("inspect", path, "--format", "json").objects
        assert [one["name"] for one in shown["provenance"]] == ["acme/base"]
        (report,) = fp("scan", path, "--format", "json", registry=zoo.registry).objects
        assert report["claims"]["checked"][0]["standing"] == "confirmed"


def test_an_empty_registry_checks_nothing(fp: Program, tmp_path: Path, empty_home: Path) -> None:
    folder = model(tmp_path / "m", README__md=card("base_model: acme/base"))
    (report,) = fp("scan", folder, "--format", "json").objects
    assert [one["standing"] for one in report["claims"]["checked"]] == ["unregistered"]
